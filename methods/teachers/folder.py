"""The bases of the teacher and tokenizer stages, and loading what they leave in their folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from methods.errors import StageError
from methods.parts.size import StateSize

if TYPE_CHECKING:
    from methods.teachers.clip_network import FrozenClip
    from methods.teachers.encoder_network import FrozenEncoder
    from methods.teachers.tokenizer import FrozenTokenizer


@dataclass(frozen=True)
class Teacher:
    """Base of the stages that leave a frozen teacher.

    A CLIP: clip.safetensors (the names of open_clip.CLIP) and clip.json {"model": the arguments of
    open_clip.CLIP, "mean", "std", "source"}. Any other encoder: what pretraining stages leave.
    """

    kind: ClassVar[str] = "teacher"
    version: ClassVar[int] = 1
    needs: ClassVar[tuple[str, ...]] = ()  # roles of the frozen stages that it is made from

    @property
    def widths(self) -> dict[str, int]:
        """Channels of the tokens, by name as FrozenClip has them: raw, normalised, projected."""
        raise NotImplementedError

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        raise NotImplementedError

    def state_size(self, needs: Mapping[str, Any]) -> StateSize:
        """Of the network in training; nothing where released weights are read and converted."""
        return StateSize()


@dataclass(frozen=True)
class Tokenizer:
    """Base of the stages that leave a tokenizer: tokenizer.safetensors and tokenizer.json
    {"type": network, "network": its arguments, "source"}."""

    kind: ClassVar[str] = "tokenizer"
    version: ClassVar[int] = 1
    needs: ClassVar[tuple[str, ...]] = ()

    @property
    def size(self) -> int:
        """Number of codes."""
        raise NotImplementedError

    def state_size(self, needs: Mapping[str, Any]) -> StateSize:
        """Of the network in training; nothing where released weights are read and converted."""
        return StateSize()


def load_teacher(folder: Path, grid: tuple[int, int] | None = None) -> FrozenClip | FrozenEncoder:
    """The frozen network of a finished teacher stage, or the encoder of a pretraining stage.

    `grid` is the student's (rows, columns) of patches: another one at the teacher is a
    StageError("teacher").
    """
    teacher = _load(folder)
    if grid is not None and tuple(grid) != teacher.grid:
        raise StageError(
            "teacher",
            f"{folder}: the teacher has a grid of {teacher.grid} patches, the student {grid}; "
            "set the teacher's image size so that both agree",
        )
    return teacher


def _load(folder: Path) -> FrozenClip | FrozenEncoder:
    if (folder / "encoder.json").exists():
        from methods.teachers.encoder_network import FrozenEncoder

        return FrozenEncoder.load(folder)
    from methods.teachers.clip_network import FrozenClip

    return FrozenClip.load(folder)


def load_tokenizer(folder: Path) -> FrozenTokenizer:
    """The frozen tokenizer of a finished tokenizer stage."""
    from methods.teachers.tokenizer import load

    return load(folder)


def read_card(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; StageError("needs") when it is missing or broken."""
    try:
        card = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise StageError("needs", f"{path}: cannot be read ({error})") from None
    if not isinstance(card, dict):
        raise StageError("needs", f"{path}: expected a JSON object")
    return card
