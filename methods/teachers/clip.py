"""The stages that give a CLIP: training a small one on captions, or importing OpenAI's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from methods.data.sets import ImageData, Patchwork
from methods.parts.augment import Augmentation
from methods.parts.optimisation import Optimisation
from methods.parts.size import StateSize, block, convolution, linear, norm
from methods.teachers.folder import Teacher

if TYPE_CHECKING:
    from methods.engine.work import Work

VOCABULARY = 49408  # of CLIP's tokenizer


@dataclass(frozen=True)
class ClipTraining(Teacher):
    """A small CLIP (open_clip's classes) trained on captions; the defaults are the mini scale's.

    Measured with them, 24,000 images: zero-shot 0.702 and 0.699 with seeds 0 and 1 (chance 0.10),
    76 to 92 s on one core. A batch of 128 on as many images: 0.635, and 0.617 at rate 2e-3. They
    were chosen on the validation split that zero_shot is measured on.

    Contrastive in both directions over the global batch; images whose captions are equal are
    positives of each other. `image_image_weight` > 0 adds SLIP's second term: two augmented views
    of an image find each other, through a head that is thrown away (SLIP-like: the first view
    also meets the caption, where SLIP draws a third).

    width, depth, heads: of the image tower; text_*: of the text tower, `context` in tokens;
    embedding: of the common space. prompts: "{}" takes a class name; their text features are
    averaged. minimum_zero_shot: zero-shot accuracy on the validation split that is asked for, as a
    multiple of chance; below it the stage fails, since nothing may be distilled from noise.
    """

    version: ClassVar[int] = 1

    data: ImageData = Patchwork()
    image: int = 48
    patch: int = 8
    width: int = 128
    depth: int = 4
    heads: int = 4
    text_width: int = 32
    text_depth: int = 1
    text_heads: int = 1
    context: int = 16
    embedding: int = 64
    augmentation: Augmentation = Augmentation(size=48, scale=(0.6, 1.0), statistics="clip")
    optimisation: Optimisation = Optimisation(
        epochs=3, batch=32, learning_rate=1e-3, warmup_epochs=0.2, betas=(0.9, 0.98)
    )
    image_image_weight: float = 0.0
    prompts: tuple[str, ...] = ("a photo of {}",)
    minimum_zero_shot: float = 2.0
    seed: int = 0
    threads: int = 0

    def __post_init__(self) -> None:
        if self.image % self.patch:
            raise ValueError(f"image ({self.image}) is not a multiple of patch ({self.patch})")
        if self.augmentation.size != self.image:
            raise ValueError(f"augmentation.size must equal image ({self.image})")
        if self.width % self.heads or self.text_width % self.text_heads:
            raise ValueError("width and text_width must be multiples of their heads")
        if not self.prompts or not all("{}" in prompt for prompt in self.prompts):
            raise ValueError("each of prompts needs a {} for the class name")
        if self.image_image_weight < 0 or self.minimum_zero_shot < 0:
            raise ValueError("image_image_weight and minimum_zero_shot must not be negative")

    @property
    def widths(self) -> dict[str, int]:
        return {"raw": self.width, "normalised": self.width, "projected": self.embedding}

    @property
    def grid(self) -> tuple[int, int]:
        return (self.image // self.patch, self.image // self.patch)

    @property
    def model(self) -> dict[str, Any]:
        """Arguments of open_clip.CLIP."""
        vision = {
            "layers": self.depth,
            "width": self.width,
            "head_width": self.width // self.heads,
            "patch_size": self.patch,
            "image_size": self.image,
        }
        text = {
            "context_length": self.context,
            "width": self.text_width,
            "heads": self.text_heads,
            "layers": self.text_depth,
        }
        return {"embed_dim": self.embedding, "vision_cfg": vision, "text_cfg": text}

    def state_size(self, needs: Mapping[str, Any]) -> StateSize:
        image, text, common = self.width, self.text_width, self.embedding
        positions = 1 + (self.image // self.patch) ** 2
        vision = convolution(3, image, self.patch, bias=False) + image + positions * image
        vision += self.depth * block(image) + 2 * norm(image) + image * common
        words = (VOCABULARY + self.context) * text
        words += self.text_depth * block(text) + norm(text) + text * common
        clip = vision + words + 1  # the scale of the logits
        head = linear(common, 4 * common) + linear(4 * common, common)
        return StateSize(clip + head * (self.image_image_weight > 0), exported=clip)

    def run(self, work: Work) -> dict[str, float]:
        """Trains, writes the teacher folder, returns zero_shot.

        Raises StageError("layout") when the batch would be cut into micro-batches (the negatives
        would depend on it), "data" without captions, "teacher" below `minimum_zero_shot`.
        """
        from methods.teachers.clip_training import train

        return train(self, work)


@dataclass(frozen=True)
class ReleasedClip(Teacher):
    """OpenAI's CLIP from a file under the data root; converted, never downloaded.

    weights: OpenAI's own TorchScript archive, or its state dict as safetensors or torch.save (the
    names of OpenAI's CLIP, with or without the text tower). sha256: how the digest begins (5806e77c
    for ViT-B-16.pt, b8cca3fd for ViT-L-14.pt, the names their releases carry); "" takes any file.
    image: pixels of a side, 0 for the file's own; another size interpolates the position
    embedding (196 gives L/14 the 14 x 14 grid of a B/16 student, as in MaskAlign and dBOT).
    """

    version: ClassVar[int] = 1
    fetch: ClassVar[str] = (
        "OpenAI's CLIP weights (ViT-B-16.pt or ViT-L-14.pt, named in the openai/CLIP repository)"
    )

    weights: str = "clip/ViT-B-16.pt"
    sha256: str = "5806e77c"
    image: int = 0
    threads: int = 0

    def __post_init__(self) -> None:
        if self.image < 0:
            raise ValueError(f"image must not be negative, not {self.image}")

    @property
    def widths(self) -> dict[str, int]:
        """Of the size that the file's name tells: OpenAI's ViT-L, else ViT-B."""
        width, projected = (1024, 768) if "ViT-L" in self.weights else (768, 512)
        return {"raw": width, "normalised": width, "projected": projected}

    @property
    def grid(self) -> tuple[int, int]:
        """As the file's name tells its patches, at 224 pixels unless `image` says otherwise."""
        patch = next((each for each in (14, 32) if f"-{each}" in self.weights), 16)
        return ((self.image or 224) // patch, (self.image or 224) // patch)

    def run(self, work: Work) -> dict[str, float]:
        """Writes the teacher folder; StageError("weights") for a missing or foreign file."""
        from methods.teachers.released_clip import convert

        return convert(self, work)
