"""The stages that give BEiT v2's tokenizer (VQ-KD): training it on CLIP, or importing theirs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from methods.data.sets import ImageData, ImageNet
from methods.parts.augment import Augmentation
from methods.parts.optimisation import Optimisation
from methods.parts.size import StateSize, block, convolution, linear, norm
from methods.teachers.folder import Tokenizer

if TYPE_CHECKING:
    from methods.engine.work import Work


@dataclass(frozen=True)
class VqkdTraining(Tokenizer):
    """VQ-KD of BEiT v2 (arXiv 2208.06366, section 2.2; recipes from the official TOKENIZER.md).

    Defaults are the paper scale: ViT-B/16, 8192 codes of dimension 32, a decoder of 3 blocks.

    Deviations from the official code: the k-means start sees the global batch (theirs runs per
    process, unsynchronised); codes are picked in float32 (theirs under fp16); the input is always
    read as [0, 1] (theirs guesses the range from the batch maximum).

    decay: of the codebook's moving average. commitment: weight of the commitment term.
    teacher: role of the network whose projected tokens are predicted (DINO's: normalised).
    minimum_usage: share of the codes that the validation split must use, else the codebook has
    collapsed and the stage fails (the official 3-layer tokenizer uses 97 %).
    """

    version: ClassVar[int] = 1
    data: ImageData = ImageNet()
    image: int = 224
    patch: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    decoder_depth: int = 3
    codes: int = 8192
    code_dimension: int = 32
    decay: float = 0.99
    commitment: float = 1.0
    kmeans_iterations: int = 10
    minimum_usage: float = 0.1
    augmentation: Augmentation = Augmentation(scale=(0.08, 1.0))
    optimisation: Optimisation = Optimisation(
        epochs=100,
        batch=512,
        learning_rate=5e-5,
        per=128,
        warmup_epochs=10,
        minimum_rate=1e-5,
        warmup="table",
        betas=(0.9, 0.99),
        weight_decay=1e-4,
        undecayed=("cls_token", "pos_embed"),
        precision="fp16",
    )
    seed: int = 0
    threads: int = 0
    teacher: str = "clip"

    def __post_init__(self) -> None:
        if self.image % self.patch:
            raise ValueError(f"image ({self.image}) is not a multiple of patch ({self.patch})")
        if self.augmentation.size != self.image:
            raise ValueError(f"augmentation.size must equal image ({self.image})")
        if self.width % self.heads:
            raise ValueError(f"width ({self.width}) is not a multiple of heads ({self.heads})")
        if min(self.codes, self.code_dimension, self.depth, self.decoder_depth) < 1:
            raise ValueError("codes, code_dimension, depth and decoder_depth must be positive")
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay must be in [0, 1), not {self.decay}")
        if not 0 <= self.minimum_usage <= 1 or self.commitment < 0 or self.kmeans_iterations < 0:
            raise ValueError("minimum_usage must be in [0, 1], the others not negative")

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.teacher,)

    @property
    def size(self) -> int:
        return self.codes

    def network(self, target: int) -> dict[str, Any]:
        """Arguments of VqkdNetwork for a teacher whose projected tokens have `target` channels."""
        names = ("image", "patch", "width", "depth", "heads", "decoder_depth", "codes")
        sizes = {name: getattr(self, name) for name in names}
        return {**sizes, "code_dimension": self.code_dimension, "target": target}

    def state_size(self, needs: Mapping[str, Any]) -> StateSize:
        """`needs`: what tells the teacher's `widths`."""
        width, dimension = self.width, self.code_dimension
        tokens = 1 + (self.image // self.patch) ** 2
        blocks = (self.depth + self.decoder_depth) * (block(width) - width)  # keys have no bias
        stems = convolution(3, width, self.patch) + convolution(dimension, width, 1)
        both = stems + blocks + 2 * (width + tokens * width + norm(width))
        target = needs[self.teacher].widths["projected"]
        ends = 2 * linear(width, width) + linear(width, dimension) + linear(width, target)
        codes = self.codes * (dimension + 1)
        return StateSize(both + ends, fixed=codes, exported=both + ends + codes)

    def run(self, work: Work) -> dict[str, float]:
        """Trains on the teacher in `work.needs`; validation usage, perplexity, reconstruction.

        Raises StageError("teacher") when the grids differ, "codebook" below `minimum_usage`.
        """
        from methods.teachers.vqkd_training import train

        return train(self, work)


@dataclass(frozen=True)
class ReleasedVqkd(Tokenizer):
    """The official VQ-KD checkpoint from a file under the data root; names as in `VqkdNetwork`.

    The file's name and digest are UNVERIFIED, so `sha256` is empty: set it to pin a file. Codebook
    rows of unit length and every expected tensor are checked. The teacher inside training
    checkpoints is dropped. heads: 0 for width / 64.
    """

    version: ClassVar[int] = 1
    fetch: ClassVar[str] = (
        "the VQ-KD tokenizer of BEiT v2 (decoder of 3 layers, CLIP; see unilm's beit2/TOKENIZER.md)"
    )

    weights: str = "vqkd/vqkd_encoder_base_decoder_3x768x12_clip.pth"
    sha256: str = ""
    heads: int = 0
    threads: int = 0

    def __post_init__(self) -> None:
        if self.heads < 0:
            raise ValueError(f"heads must not be negative, not {self.heads}")

    @property
    def size(self) -> int:
        return 8192

    def run(self, work: Work) -> dict[str, float]:
        """Writes the tokenizer folder; StageError("weights") for a missing or foreign file."""
        from methods.teachers.vqkd_network import convert

        return convert(self, work)
