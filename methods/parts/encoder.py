"""The students, as values without torch: timm models and what pretraining does to their input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from methods.parts.size import StateSize, block, convolution, norm

if TYPE_CHECKING:
    from methods.networks.encoders import Student


@dataclass(frozen=True)
class Encoder:
    """Base of the students.

    The subclasses here share image and patch (pixels a side), width, depth, heads, drop_path and
    layer_scale (the initial value; None for none).
    """

    hidden = "token"  # no annotation: a subclass may make it a field
    """Whether hidden patches are left out ("drop") or replaced by a learned token ("token")."""
    class_token = True
    """Whether a class token goes before those of the patches."""

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        raise NotImplementedError

    @property
    def pyramid(self) -> tuple[int, ...]:
        """Channels of its stages, where it has such of falling resolution."""
        return ()

    def timm(self) -> tuple[str, dict[str, Any]]:
        """Name and arguments for `timm.create_model` of the encoder as it is exported."""
        raise NotImplementedError

    def describe(self) -> str:
        """The name in tables: "ViT-B/16"."""
        raise NotImplementedError

    def build(self) -> Student:
        """The network that pretraining trains, initialised from torch's global generator."""
        raise NotImplementedError

    @property
    def block_size(self) -> int:
        """Numbers in one block, biases of the relative positions apart."""
        raise NotImplementedError

    @property
    def state_size(self) -> StateSize:
        """Of the network that `build` makes; `exported` is without the mask token."""
        raise NotImplementedError

    def adapted_size(self, image: int, blocks: int) -> int:
        """Numbers in the first `blocks` blocks and all before them, as evaluations train them on
        images of `image` pixels: learned positions, and a table of their biases a block."""
        raise NotImplementedError


LARGE = {"encoder.width": 1024, "encoder.depth": 24, "encoder.heads": 16}
"""ViT-L, as changes of a method's schedule."""
_SIZES = {(192, 12): "Ti", (384, 12): "S", (768, 12): "B", (1024, 24): "L", (1280, 32): "H"}


def _size_name(encoder: ViT | Beit) -> str:
    size = _SIZES.get((encoder.width, encoder.depth), f"{encoder.depth}x{encoder.width}")
    return f"ViT-{size}/{encoder.patch}"


def _check_sizes(encoder: ViT | Beit) -> None:
    for name in ("image", "patch", "width", "depth", "heads"):
        if getattr(encoder, name) < 1:
            raise ValueError(f"{name} must be at least 1, not {getattr(encoder, name)}")
    if encoder.image % encoder.patch:
        raise ValueError(f"patch must divide image ({encoder.image}), not be {encoder.patch}")
    if encoder.width % encoder.heads:
        raise ValueError(f"heads must divide width ({encoder.width}), not be {encoder.heads}")
    if not 0 <= encoder.drop_path < 1:
        raise ValueError(f"drop_path must be from 0 to below 1, not {encoder.drop_path}")
    if encoder.layer_scale is not None and encoder.layer_scale <= 0:
        raise ValueError(f"layer_scale must be above 0, not {encoder.layer_scale}")


def _timm_arguments(encoder: ViT | Beit) -> dict[str, Any]:
    return {
        "img_size": encoder.image,
        "patch_size": encoder.patch,
        "embed_dim": encoder.width,
        "depth": encoder.depth,
        "num_heads": encoder.heads,
        "init_values": encoder.layer_scale,
        "global_pool": "token",
        "num_classes": 0,
    }


def _stem_size(encoder: ViT | Beit) -> int:
    """Numbers of the patch embedding and the class token."""
    return convolution(3, encoder.width, encoder.patch) + encoder.width


@dataclass(frozen=True)
class ViT(Encoder):
    """Vision Transformer with fixed sine-cosine positions (MAE, MILAN).

    `hidden` patches are dropped, or replaced by a learned token.
    """

    image: int = 224
    patch: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    drop_path: float = 0.0
    layer_scale: float | None = None
    hidden: Literal["drop", "token"] = "drop"

    def __post_init__(self) -> None:
        _check_sizes(self)
        if self.width % 4:
            raise ValueError(f"width must be a multiple of 4 (positions), not {self.width}")

    @property
    def grid(self) -> tuple[int, int]:
        return (self.image // self.patch, self.image // self.patch)

    def timm(self) -> tuple[str, dict[str, Any]]:
        return "vit_base_patch16_224", _timm_arguments(self)

    def describe(self) -> str:
        return _size_name(self)

    def build(self) -> Student:
        from methods.networks.encoders import StudentViT

        return StudentViT(self)

    @property
    def block_size(self) -> int:
        return block(self.width, self.layer_scale is not None)

    @property
    def state_size(self) -> StateSize:
        blocks = self.depth * self.block_size
        model = _stem_size(self) + blocks + norm(self.width)
        token = self.width if self.hidden == "token" else 0
        positions = self._positions(self.image)
        return StateSize(model + token, positions, exported=model + positions)

    def adapted_size(self, image: int, blocks: int) -> int:
        return _stem_size(self) + self._positions(image) + blocks * self.block_size

    def _positions(self, image: int) -> int:
        return (1 + (image // self.patch) ** 2) * self.width


@dataclass(frozen=True)
class Beit(Encoder):
    """BEiT's Vision Transformer: mask tokens, LayerScale, one relative position bias for all.

    `deviation` is that of the initial weights before they are cut at one deviation.
    """

    image: int = 224
    patch: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    drop_path: float = 0.0
    layer_scale: float | None = 0.1
    deviation: float = 0.02

    def __post_init__(self) -> None:
        _check_sizes(self)
        if not self.deviation > 0:
            raise ValueError(f"deviation must be above 0, not {self.deviation}")

    @property
    def grid(self) -> tuple[int, int]:
        return (self.image // self.patch, self.image // self.patch)

    def timm(self) -> tuple[str, dict[str, Any]]:
        return "beitv2_base_patch16_224", {
            **_timm_arguments(self),
            "init_values": self.layer_scale or 0.0,  # None would mean timm's own, 1e-5
            "use_abs_pos_emb": False,
            "use_rel_pos_bias": False,
            "use_shared_rel_pos_bias": True,
        }

    def describe(self) -> str:
        return _size_name(self)

    def build(self) -> Student:
        from methods.networks.encoders import StudentBeit

        return StudentBeit(self)

    @property
    def block_size(self) -> int:
        return block(self.width, self.layer_scale is not None) - self.width  # keys have no bias

    @property
    def state_size(self) -> StateSize:
        blocks = self.depth * self.block_size + self._table(self.image)
        model = _stem_size(self) + blocks + norm(self.width)
        return StateSize(model + self.width, exported=model)

    def adapted_size(self, image: int, blocks: int) -> int:
        return _stem_size(self) + blocks * (self.block_size + self._table(image))

    def _table(self, image: int) -> int:
        """Biases of the relative positions, and three for the class token."""
        return ((2 * (image // self.patch) - 1) ** 2 + 3) * self.heads
