"""DALL-E's discrete VAE: the encoder that BEiT and CAE read codes from, and a decoder to train."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from methods.errors import StageError
from methods.teachers.archive import BROKEN, find_weights, read_module, read_weights
from methods.teachers.dalle import STRIDE
from methods.teachers.tokenizer import save

if TYPE_CHECKING:
    from methods.engine.work import Work
    from methods.teachers.dalle import ReleasedDalle

MARGIN = 0.1
"""Pixels are squeezed to [0.1, 0.9], where the logit-Laplace likelihood is finite."""
GROUPS = 4


def squeeze(images: Tensor) -> Tensor:
    """[0, 1] -> [0.1, 0.9]."""
    return (1 - 2 * MARGIN) * images + MARGIN


def convolution(inputs: int, outputs: int, kernel: int) -> nn.Conv2d:
    """Same size out; N(0, 1 / fan-in) weights, zero bias."""
    layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
    nn.init.normal_(layer.weight, std=(inputs * kernel**2) ** -0.5)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


class Bottleneck(nn.Module):
    """x + gain * four convolutions at a quarter of the width, the gain 1 / (blocks in all)^2."""

    def __init__(self, inputs: int, outputs: int, kernels: tuple[int, ...], total: int) -> None:
        super().__init__()
        self.gain = 1 / total**2
        same = inputs == outputs
        self.id_path = nn.Identity() if same else convolution(inputs, outputs, 1)
        widths = (inputs, *(outputs // 4,) * 3, outputs)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for i, kernel in enumerate(kernels):
            layers[f"relu_{i + 1}"] = nn.ReLU()
            layers[f"conv_{i + 1}"] = convolution(widths[i], widths[i + 1], kernel)
        self.res_path = nn.Sequential(layers)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H, W)."""
        out: Tensor = self.id_path(x) + self.gain * self.res_path(x)
        return out


def stack(
    first: nn.Module,
    widths: tuple[int, ...],
    blocks: int,
    kernels: tuple[int, ...],
    between: tuple[str, nn.Module],
    outputs: int,
) -> nn.Sequential:
    """input, four groups with `between` after the first three, and ReLU with a 1x1 convolution.

    widths: into the first group, then out of each.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict(input=first)
    for group in range(GROUPS):
        inner: OrderedDict[str, nn.Module] = OrderedDict()
        for block in range(blocks):
            source = widths[group] if block == 0 else widths[group + 1]
            inner[f"block_{block + 1}"] = Bottleneck(
                source, widths[group + 1], kernels, GROUPS * blocks
            )
        if group < GROUPS - 1:
            inner[between[0]] = between[1]
        layers[f"group_{group + 1}"] = nn.Sequential(inner)
    head = OrderedDict(relu=nn.ReLU(), conv=convolution(widths[-1], outputs, 1))
    layers["output"] = nn.Sequential(head)
    return nn.Sequential(layers)


class DalleEncoder(nn.Module):
    """Images to logits over the codes, one per 8 x 8 pixels; OpenAI's names, `w`, `b` spelled out.

    size: number of codes; grid: (rows, columns); image: pixels of a side.
    """

    def __init__(self, image: int, hidden: int, blocks: int, codes: int) -> None:
        super().__init__()
        self.size, self.image = codes, image
        self.grid = (image // STRIDE, image // STRIDE)
        widths = (hidden, hidden, 2 * hidden, 4 * hidden, 8 * hidden)
        first, pool = convolution(3, hidden, 7), ("pool", nn.MaxPool2d(2))
        self.blocks = stack(first, widths, blocks, (3, 3, 3, 1), pool, codes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, codes, H/8, W/8) of images (B, 3, H, W) in [0, 1]."""
        *groups, output = self.blocks
        hidden = squeeze(images).to(self.blocks.input.weight.dtype)  # type: ignore[arg-type, union-attr]
        for group in groups:
            hidden = group(hidden)
        logits: Tensor = output(hidden.float())
        return logits

    def halves(self) -> list[nn.Module]:
        """What may run in half precision once it is frozen: all but the logits, as at OpenAI."""
        return list(self.blocks)[:-1]

    def codes(self, images: Tensor) -> Tensor:
        """Codes (B, N) int64, row by row."""
        return self(images).argmax(1).flatten(1)


class DalleDecoder(nn.Module):
    """Code distributions to the parameters of a logit-Laplace for each pixel and channel."""

    def __init__(self, hidden: int, blocks: int, codes: int) -> None:
        super().__init__()
        start = max(8, hidden // 2)
        widths = (start, 8 * hidden, 4 * hidden, 2 * hidden, hidden)
        first, larger = convolution(codes, start, 1), ("upsample", nn.Upsample(scale_factor=2))
        self.blocks = stack(first, widths, blocks, (1, 3, 3, 3), larger, 6)

    def forward(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """(B, codes, h, w) -> centre and log scale, each (B, 3, 8h, 8w), in logits of pixels."""
        centre, scale = self.blocks(codes).chunk(2, dim=1)
        return centre, scale


def convert(task: ReleasedDalle, work: Work) -> dict[str, float]:
    """Rank 0 reads the file and writes the tokenizer folder; no metrics."""
    if work.layout.rank != 0:
        return {}
    path = find_weights(work.data, task)
    found = read_module(path, ("dall_e",)) if path.suffix == ".pkl" else read_weights(path)
    state = {spelled(name): tensor.float() for name, tensor in found.items()}
    try:
        arguments = network_of(state, task.image)
        network = DalleEncoder(**arguments)
        network.load_state_dict(state, strict=True)
    except BROKEN as error:
        raise StageError("weights", f"{path}: not DALL-E's encoder ({error})") from None
    if not all(bool(tensor.isfinite().all()) for tensor in state.values()):
        raise StageError("weights", f"{path}: has numbers that are not finite")
    save(work.folder, "dalle", network, arguments, task.weights)
    return {}


def spelled(name: str) -> str:
    """OpenAI's `...conv_1.w` -> `...conv_1.weight`."""
    head, _, last = name.rpartition(".")
    return f"{head}.{ {'w': 'weight', 'b': 'bias'}.get(last, last) }"


def network_of(state: dict[str, Tensor], image: int) -> dict[str, Any]:
    """Arguments of DalleEncoder that fit the tensors."""
    names = {name.split(".")[2] for name in state if name.startswith("blocks.group_1.block_")}
    return {
        "image": image,
        "hidden": len(state["blocks.input.weight"]),
        "blocks": len(names),
        "codes": len(state["blocks.output.conv.weight"]),
    }
