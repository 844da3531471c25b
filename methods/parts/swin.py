"""Swin Transformer as a student, as a value without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from methods.parts.encoder import Encoder
from methods.parts.size import StateSize, block, convolution, linear, norm

if TYPE_CHECKING:
    from methods.networks.encoders import Student

_SIZES = {(96, 6): "T", (96, 18): "S", (128, 18): "B", (192, 18): "L"}


@dataclass(frozen=True)
class Swin(Encoder):
    """Swin Transformer (arXiv 2103.14030): attention in windows, in stages of falling resolution.

    A mask hides cells of `patch` pixels a side, the stride of the last stage: the embeddings of all
    patches in them become a learned token (SimMIM). There is no class token, and a token of the
    encoder stands for a cell.

    stem: pixels a side of the patches that are embedded. embedding: their channels; each stage
    after the first has twice the channels and half the rows and columns of the one before. depths,
    heads: of each stage. window: patches a side.
    """

    class_token = False

    image: int = 224
    stem: int = 4
    embedding: int = 128
    depths: tuple[int, ...] = (2, 2, 18, 2)
    heads: tuple[int, ...] = (4, 8, 16, 32)
    window: int = 7
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        for name in ("image", "stem", "embedding", "window"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        stages = (*self.depths, *self.heads)
        if len(self.depths) != len(self.heads) or not stages or min(stages) < 1:
            raise ValueError("depths and heads must each have a positive number for every stage")
        if self.image % self.patch:
            raise ValueError(f"image must be a multiple of {self.patch}, not {self.image}")
        if any(width % heads for width, heads in zip(self.pyramid, self.heads, strict=True)):
            raise ValueError(f"heads must divide the widths {self.pyramid}, not be {self.heads}")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path must be from 0 to below 1, not {self.drop_path}")

    @property
    def patch(self) -> int:
        """Pixels a side of a cell: the stride of the last stage."""
        return self.stem * 2 ** (len(self.depths) - 1)

    @property
    def pyramid(self) -> tuple[int, ...]:
        return tuple(self.embedding * 2**stage for stage in range(len(self.depths)))

    @property
    def width(self) -> int:
        """Channels of the last stage."""
        return self.pyramid[-1]

    @property
    def depth(self) -> int:
        """Blocks of all stages."""
        return sum(self.depths)

    @property
    def grid(self) -> tuple[int, int]:
        return (self.image // self.patch, self.image // self.patch)

    def timm(self) -> tuple[str, dict[str, Any]]:
        return "swin_base_patch4_window7_224", {
            "img_size": self.image,
            "patch_size": self.stem,
            "embed_dim": self.embedding,
            "depths": list(self.depths),
            "num_heads": list(self.heads),
            "window_size": self.window,
            "num_classes": 0,
        }

    def describe(self) -> str:
        third = self.depths[2] if len(self.depths) == 4 and self.depths[::3] == (2, 2) else 0
        size = _SIZES.get((self.embedding, third), f"{self.depth}x{self.embedding}")
        return f"Swin-{size}"

    def build(self) -> Student:
        from methods.networks.swin import StudentSwin

        return StudentSwin(self)

    @property
    def state_size(self) -> StateSize:
        model = self.adapted_size(self.image, self.depth) + norm(self.width)
        return StateSize(model + self.embedding, exported=model)

    def adapted_size(self, image: int, blocks: int) -> int:
        """As of every encoder; all stages are counted, whatever `blocks` says."""
        total = convolution(3, self.embedding, self.stem) + norm(self.embedding)
        for stage, (width, depth) in enumerate(zip(self.pyramid, self.depths, strict=True)):
            side = min(self.window, image // (self.stem * 2**stage))
            table = (2 * side - 1) ** 2 * self.heads[stage]
            merge = norm(2 * width) + linear(2 * width, width, bias=False) if stage else 0
            total += merge + depth * (block(width) + table)
        return total
