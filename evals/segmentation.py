"""Semantic segmentation: UPerNet on four blocks of the encoder, trained on ADE20K."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from evals.protocol import optimisation_card
from methods.data.sets import Ade20k, SegmentationData
from methods.parts.augment import Statistics
from methods.parts.encoder import Encoder
from methods.parts.optimisation import Optimisation
from methods.parts.size import StateSize, convolution, norm

if TYPE_CHECKING:
    from methods.engine.work import Work

# implus/mae_segmentation, which reproduces MAE ViT-B's 48.1; batch 16 = 8 devices x 2.
MAE_BASE = Optimisation(
    epochs=1,
    batch=16,
    learning_rate=1e-4,
    schedule="poly",
    warmup="product",
    warmup_start=1e-6,
    iterations=160_000,
    warmup_iterations=1500,
    weight_decay=0.05,
    undecayed=("cls_token", "pos_embed"),
    layer_decay=0.65,
)


@dataclass(frozen=True)
class Segmentation:
    """mmsegmentation's UPerHead and auxiliary FCNHead on raw block outputs, without a final norm.

    BEiT's and MAE's configs under today's mmsegmentation, with two known differences: MAE's adds
    relative position biases to its ViT, which the pretrained one has not, and both trained in fp16.

    scale: longest and shortest side to which an image is resized before `ratio` is drawn.
    cat_max: largest share of a crop that one class may have (ten tries).
    blocks: whose outputs are used, from 0; None takes those after a third, a half, two thirds and
        all of the depth, which is BEiT's 3, 5, 7, 11 of 12 and 7, 11, 15, 23 of 24.
    channels, auxiliary_channels: of the two heads. stride: of the sliding window of size `crop`.
    scales: factors of `scale` at which the images are tested once more, all together (BEiT: 0.5,
        0.75, 1, 1.25, 1.5, 1.75), and with `mirrored` their mirror images too: mIoU_multi_scale,
        beside mIoU, which remains that of the single scale. No copy's shorter side
        is below `crop` (BEiT).
    """

    kind: ClassVar[str] = "segmentation"
    version: ClassVar[int] = 1

    encoder: Encoder
    data: SegmentationData = Ade20k()
    optimisation: Optimisation = MAE_BASE
    crop: int = 512
    scale: tuple[int, int] = (2048, 512)
    ratio: tuple[float, float] = (0.5, 2.0)
    cat_max: float = 0.75
    flip: float = 0.5
    distortion: bool = True
    statistics: Statistics = "imagenet"
    blocks: tuple[int, int, int, int] | None = None
    channels: int = 768
    pool_scales: tuple[int, ...] = (1, 2, 3, 6)
    auxiliary_channels: int = 256
    auxiliary_weight: float = 0.4
    dropout: float = 0.1
    drop_path: float = 0.1
    inference: Literal["slide", "whole"] = "slide"
    stride: int = 341
    seed: int = 0
    threads: int = 0
    scales: tuple[float, ...] = ()
    mirrored: bool = False

    def __post_init__(self) -> None:
        positive = {"crop": self.crop, "channels": self.channels, "stride": self.stride}
        positive["auxiliary_channels"] = self.auxiliary_channels
        for name, value in positive.items():
            if value < 1:
                raise ValueError(f"{name} must be positive, not {value}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio must be two positive numbers in order, not {self.ratio}")
        if not 0 < self.cat_max <= 1:
            raise ValueError(f"cat_max must be above 0 and at most 1, not {self.cat_max}")
        if self.blocks is not None and list(self.blocks) != sorted(set(self.blocks)):
            raise ValueError(f"blocks must rise, not {self.blocks}")
        if self.blocks is not None and self.blocks[0] < 0:
            raise ValueError(f"blocks count from 0, not {self.blocks}")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip must be from 0 to 1, not {self.flip}")
        if any(not 0 < factor <= 8 for factor in self.scales):
            raise ValueError(f"scales must be above 0 and at most 8, not {self.scales}")
        if self.mirrored and not self.scales:
            raise ValueError("mirrored is of the tests at several scales, and scales is empty")
        if self.scales and self.inference == "whole":
            raise ValueError("scales need inference = 'slide': the encoder takes one size of image")
        for name in ("dropout", "drop_path"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be from 0 to below 1, not {getattr(self, name)}")

    def taken(self, depth: int) -> tuple[int, ...]:
        """The blocks that are used of an encoder of `depth` blocks."""
        if self.blocks is not None:
            return self.blocks
        return tuple(round(depth * share) - 1 for share in (1 / 3, 1 / 2, 2 / 3, 1))

    def run(self, work: Work) -> dict[str, float]:
        """Percentages mIoU, aAcc and mAcc on the validation images, after the last update.

        And mIoU_multi_scale where there are `scales`.
        """
        from evals.segmentation_training import run

        return run(self, work)

    def state_size(self, needs: Mapping[str, Any]) -> StateSize:
        """Of the encoder as far as it is used, the neck and both heads."""
        encoder: Any = self.encoder
        blocks = self.taken(encoder.depth)[-1] + 1
        layers, norms = self._heads(encoder.pyramid or (encoder.width,) * 4)
        trained = encoder.adapted_size(self.crop, blocks) + layers + sum(map(norm, norms))
        if encoder.pyramid:  # its maps have norms of their own, without running statistics
            trained += sum(map(norm, encoder.pyramid))
        else:
            trained += 3 * convolution(encoder.width, encoder.width, 2) + norm(encoder.width)
            norms = [encoder.width, *norms]
        # A BatchNorm keeps a mean, a variance and how many batches it has seen.
        return StateSize(trained, fixed=sum(2 * width + 1 for width in norms))

    def _heads(self, widths: tuple[int, ...]) -> tuple[int, list[int]]:
        """Numbers in the layers of UPerHead and FCNHead on such maps; their norms' widths."""
        own, other, classes = self.channels, self.auxiliary_channels, len(self.data.classes)
        pools = len(self.pool_scales)
        into = (*widths[:3], *[widths[3]] * pools)
        narrow = sum(convolution(width, own, 1, bias=False) for width in into)
        wide = convolution(widths[3] + pools * own, own, 3, bias=False)
        pyramid = (3 + 4) * convolution(own, own, 3, bias=False)
        auxiliary = convolution(widths[2], other, 3, bias=False)
        scores = convolution(own, classes, 1) + convolution(other, classes, 1)
        norms = [*[own] * (pools + 3 + 1 + 3 + 1), other]
        return narrow + wide + pyramid + auxiliary + scores, norms

    def _tests(self) -> str:
        """The scales of the tests, for the protocol card."""
        if not self.scales:
            return "single, no flip"
        factors = ", ".join(f"{factor:g}" for factor in self.scales)
        return f"single, no flip; multi-scale: {factors}{', mirrored' if self.mirrored else ''}"

    def protocol(self) -> dict[str, Any]:
        """What a reader needs to compare this number with another's."""
        window, stages = f"window {self.crop}, stride {self.stride}", bool(self.encoder.pyramid)
        return {
            "head": f"UPerNet {self.channels}, auxiliary FCN {self.auxiliary_channels}",
            "features": "four stages, fresh norms" if stages else "raw outputs of four blocks",
            "crop": self.crop,
            "inference": window if self.inference == "slide" else "whole image",
            "scales": self._tests(),
            "statistics": self.statistics,
            "drop path": self.drop_path,
            **optimisation_card(self.optimisation),
            "reported": "last",
        }
