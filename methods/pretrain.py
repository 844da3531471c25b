"""The stages that leave an encoder: pretraining by a method, or reading a released file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import methods
from methods.data.sets import ImageData
from methods.errors import StageError
from methods.parts.encoder import Encoder
from methods.parts.model import Method
from methods.parts.size import StateSize
from methods.teachers.encoder import encoder_widths

# Makes the parts known that methods bring in their own files, for reading tasks from plain data.
methods.names()

if TYPE_CHECKING:
    from methods.engine.work import Work
    from methods.released import Imported


def milestone_folder(folder: Path, share: float) -> Path:
    """Where a pretraining in `folder` leaves the encoder that it had after `share` of its schedule.

    The final encoder (a share of 1) lies in `folder` itself.
    """
    return folder if share == 1 else folder / "milestones" / f"{100 * share:g}"


@dataclass(frozen=True)
class EncoderTask:
    """Base of the stages that leave encoder.safetensors and encoder.json."""

    kind: ClassVar[str] = "pretrain"
    version: ClassVar[int] = 1


@dataclass(frozen=True)
class Pretraining(EncoderTask):
    """Pretraining by `method`. milestones: fractions of the schedule to keep an encoder at too."""

    method: Method
    data: ImageData
    seed: int = 0
    threads: int = 0
    milestones: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if any(not 0 < each < 1 for each in self.milestones):
            raise ValueError(f"milestones must be above 0 and below 1, not {self.milestones}")

    def check(self) -> None:
        """Raise ValueError where the method's parts do not fit each other."""
        self.method.check()

    @property
    def widths(self) -> dict[str, int]:
        """Channels of the encoder's tokens where it is a teacher; see `methods.teachers`."""
        return encoder_widths(self.method.encoder)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the encoder's patches."""
        return self.method.encoder.grid

    def state_size(self, needs: Mapping[str, Any]) -> StateSize:
        """`needs`: the tasks of the frozen networks by role. See `Method.state_size`."""
        size = self.method.state_size(needs)
        return replace(size, exported=size.exported * (1 + len(self.milestones)))

    def run(self, work: Work) -> dict[str, float]:
        """Train, then write encoder.safetensors and encoder.json; the last logged losses.

        Milestones are written to milestones/<percent>/. Reads the frozen networks of `method.needs`
        from `work.needs`. Raises StageError, of `methods.engine.loop.fit` and of the loading.
        """
        from methods.networks.pretraining import pretrain

        return pretrain(self, work)


@dataclass(frozen=True)
class ImportedEncoder(EncoderTask):
    """The encoder of a released checkpoint of the method `name`; see `methods.released`.

    It is known by its content, `sha256`, and by the encoder that it has to fit, so that it is never
    taken for a pretraining of ours. `weights`: the file, which is not part of what it is; it may be
    gone once the stage is done. `statistics`: of the images that the encoder was trained on.
    """

    threads: ClassVar[int] = 0

    name: str
    encoder: Encoder
    sha256: str
    statistics: str = "imagenet"
    weights: str = field(default="", compare=False)

    def run(self, work: Work) -> dict[str, float]:
        """Write encoder.safetensors and encoder.json; how many tensors were read.

        Raises StageError("weights") where the file is missing, another, or does not fit.
        """
        if work.layout.rank:
            return {}
        return {"tensors": float(self.read(work.folder).loaded)}

    def state_size(self, needs: Mapping[str, Any]) -> StateSize:
        """Nothing but the encoder."""
        return StateSize(exported=self.encoder.state_size.exported)

    def read(self, folder: Path | None = None) -> Imported:
        """Check the file, and write the encoder into `folder` if there is one. As `run` raises."""
        from methods.released import digest, import_encoder

        path = Path(self.weights)
        if not self.weights or not path.is_file():
            raise StageError("weights", f"{self.weights or self.sha256}: no such file")
        if digest(path) != self.sha256:
            raise StageError("weights", f"{path}: its SHA-256 is no longer {self.sha256[:8]}...")
        return import_encoder(path, self.encoder, self.statistics, folder)
