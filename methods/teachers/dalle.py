"""The stages that give BEiT's and CAE's tokenizer: DALL-E's discrete VAE, small or OpenAI's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

from methods.data.sets import ImageData, Patchwork
from methods.parts.augment import Augmentation
from methods.parts.optimisation import Optimisation
from methods.parts.size import StateSize, convolution
from methods.teachers.folder import Tokenizer

if TYPE_CHECKING:
    from methods.engine.work import Work

STRIDE = 8
"""Pixels of a side per code: three poolings."""


def groups_size(widths: tuple[int, ...], blocks: int, kernels: tuple[int, ...]) -> int:
    """Numbers in groups of bottlenecks, of `widths` into the first and out of each."""
    total = 0
    for before, after in pairwise(widths):
        for source in (before, *[after] * (blocks - 1)):
            inner = pairwise((source, *(after // 4,) * 3, after))
            total += sum(convolution(*each, k) for each, k in zip(inner, kernels, strict=True))
            total += convolution(source, after, 1) * (source != after)
    return total


@dataclass(frozen=True)
class DvaeTraining(Tokenizer):
    """A small discrete VAE after DALL-E (arXiv 2102.12092, section 2.1); defaults: the mini scale.

    OpenAI never released the training. From the paper, as remembered (UNVERIFIED): Gumbel-softmax
    codes whose temperature falls along a cosine from 1 to 1/16, logit-Laplace likelihood, and the
    divergence from the uniform distribution with weight 6.6. `divergence` is larger here, because
    in so short a training the codes collapse otherwise. Measured after 8,000 images, about 35 s on
    one core: perplexity of the hard codes 1.2 at 0.1, 11 at 6.6, 22 (usage 0.38) at 20, 18 at 40.

    hidden: channels of the first group (256 at OpenAI); blocks: per group (2 there).
    minimum_usage: share of the codes that the validation split must use.
    """

    version: ClassVar[int] = 1

    data: ImageData = Patchwork()
    image: int = 48
    hidden: int = 16
    blocks: int = 1
    codes: int = 256
    temperature: tuple[float, float] = (1.0, 1 / 16)
    divergence: float = 20.0
    minimum_usage: float = 0.1
    augmentation: Augmentation = Augmentation(size=48, scale=(0.5, 1.0), interpolation="lanczos")
    optimisation: Optimisation = Optimisation(
        epochs=1.0, batch=32, learning_rate=2e-3, warmup_epochs=0.05, weight_decay=1e-4
    )
    seed: int = 0
    threads: int = 0

    def __post_init__(self) -> None:
        if self.image % STRIDE or self.augmentation.size != self.image:
            raise ValueError(f"image must be a multiple of {STRIDE} and equal augmentation.size")
        if min(self.codes, self.blocks) < 1 or self.hidden < 4 or self.hidden % 4:
            raise ValueError("codes and blocks must be positive, hidden a multiple of 4")
        if not 0 < self.temperature[1] <= self.temperature[0]:
            raise ValueError(f"temperature must fall and stay positive, not {self.temperature}")
        if self.divergence < 0 or not 0 <= self.minimum_usage <= 1:
            raise ValueError("divergence must not be negative, minimum_usage lies in [0, 1]")

    @property
    def size(self) -> int:
        return self.codes

    @property
    def network(self) -> dict[str, Any]:
        """Arguments of DalleEncoder."""
        names = ("image", "hidden", "blocks", "codes")
        return {name: getattr(self, name) for name in names}

    def state_size(self, needs: Mapping[str, Any]) -> StateSize:
        """Of encoder and decoder; the encoder is exported."""
        hidden, blocks = self.hidden, self.blocks
        widths, start = (hidden, hidden, 2 * hidden, 4 * hidden, 8 * hidden), max(8, hidden // 2)
        encoder = convolution(3, hidden, 7) + groups_size(widths, blocks, (3, 3, 3, 1))
        encoder += convolution(widths[-1], self.codes, 1)
        decoder = convolution(self.codes, start, 1) + convolution(hidden, 6, 1)
        decoder += groups_size((start, *reversed(widths[1:])), blocks, (1, 3, 3, 3))
        return StateSize(encoder + decoder, exported=encoder)

    def run(self, work: Work) -> dict[str, float]:
        """Trains; usage, perplexity, reconstruction (mean absolute error of pixels, validation).

        Raises StageError("codebook") below `minimum_usage`.
        """
        from methods.teachers.dvae_training import train

        return train(self, work)


@dataclass(frozen=True)
class ReleasedDalle(Tokenizer):
    """OpenAI's DALL-E encoder (8192 codes) from a file under the data root.

    Takes OpenAI's encoder.pkl, which pickles a whole module: its tensors are read and none of its
    classes are run. Also a state dict (torch.save, safetensors) with the names of that module. No
    copy of the file was at hand: that it is a zip archive of torch.save is UNVERIFIED.
    image: pixels of the view that is tokenised; 112 gives 14 x 14 codes.
    """

    version: ClassVar[int] = 1
    fetch: ClassVar[str] = (
        "the encoder of OpenAI's DALL-E (encoder.pkl, named in the openai/DALL-E repository)"
    )

    weights: str = "dalle/encoder.pkl"
    sha256: str = ""
    image: int = 112
    threads: int = 0

    def __post_init__(self) -> None:
        if self.image < STRIDE or self.image % STRIDE:
            raise ValueError(f"image ({self.image}) must be a positive multiple of {STRIDE}")

    @property
    def size(self) -> int:
        return 8192

    def run(self, work: Work) -> dict[str, float]:
        """Writes the tokenizer folder; StageError("weights") for a missing or foreign file."""
        from methods.teachers.dalle_network import convert

        return convert(self, work)
