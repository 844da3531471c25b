"""What a student has to predict, as values without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from methods.parts.encoder import Encoder

if TYPE_CHECKING:
    from methods.networks.targets import TargetNetwork


@dataclass(frozen=True)
class Target:
    """Base of the targets."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Roles of the frozen networks that the target comes from."""
        return ()

    def describe(self) -> str:
        """The name in tables."""
        raise NotImplementedError

    def channels(self, encoder: Any, frozen: Mapping[str, Any]) -> int:
        """Those (or the classes) of a prediction; the tasks of the frozen networks tell as well."""
        raise NotImplementedError

    def averages_size(self, method: Any) -> int:
        """Numbers of moving averages that the target keeps of the method's network."""
        return 0

    def build(self, encoder: Encoder, frozen: Mapping[str, Any]) -> TargetNetwork:
        """What computes the target, given the frozen networks by role."""
        raise NotImplementedError


@dataclass(frozen=True)
class Pixels(Target):
    """The image's own patches, normalised as the student sees them.

    With `normalise_patches` each patch is standardised by its own mean and unbiased variance (MAE).
    """

    normalise_patches: bool = True

    def describe(self) -> str:
        return "normalised pixels" if self.normalise_patches else "pixels"

    def channels(self, encoder: Any, frozen: Mapping[str, Any]) -> int:
        return 3 * int(encoder.patch) ** 2

    def build(self, encoder: Encoder, frozen: Mapping[str, Any]) -> TargetNetwork:
        from methods.networks.targets import PixelTarget

        return PixelTarget(encoder, self.normalise_patches)


@dataclass(frozen=True)
class Features(Target):
    """Tokens of a frozen teacher's last block.

    `tokens`: "raw" block outputs, "normalised" by the teacher's last LayerNorm, or "projected" into
    the space shared with text. `statistics` normalise the teacher's images ("own": by those that it
    was trained with). `normalise` the tokens: "layer" over each token's channels, "batch" each
    channel over the global batch; neither has learned gains.
    """

    teacher: str = "clip"
    tokens: Literal["raw", "normalised", "projected"] = "projected"
    statistics: Literal["imagenet", "clip", "own"] = "clip"
    normalise: Literal["none", "layer", "batch"] = "none"

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.teacher,)

    def describe(self) -> str:
        norm = {"none": "", "layer": ", LayerNorm", "batch": ", BatchNorm"}[self.normalise]
        return f"{self.teacher.upper()} {self.tokens} tokens{norm}"

    def channels(self, encoder: Any, frozen: Mapping[str, Any]) -> int:
        width = int(frozen[self.teacher].widths[self.tokens])
        return width * self.parts(encoder, frozen)

    def parts(self, encoder: Any, frozen: Mapping[str, Any]) -> int:
        """The teacher's tokens in a patch of the student's: several in a Swin's cells."""
        if encoder.class_token:
            return 1
        rows, _ = getattr(frozen[self.teacher], "grid", encoder.grid)
        return max(1, rows // encoder.grid[0]) ** 2

    def build(self, encoder: Encoder, frozen: Mapping[str, Any]) -> TargetNetwork:
        from methods.networks.targets import FeatureTarget

        channels, parts = self.channels(encoder, frozen), self.parts(encoder, frozen)
        return FeatureTarget(self, channels, parts, encoder.grid)


@dataclass(frozen=True)
class Codes(Target):
    """The frozen tokenizer's code of each patch."""

    tokenizer: str = "vqkd"

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.tokenizer,)

    def describe(self) -> str:
        names = {"vqkd": "VQ-KD", "dalle": "DALL-E"}
        return f"{names.get(self.tokenizer, self.tokenizer)} codes"

    def channels(self, encoder: Any, frozen: Mapping[str, Any]) -> int:
        return int(frozen[self.tokenizer].size)

    def build(self, encoder: Encoder, frozen: Mapping[str, Any]) -> TargetNetwork:
        from methods.networks.targets import CodeTarget

        return CodeTarget(self.tokenizer, self.channels(encoder, frozen))
