"""A frozen tokenizer: images to discrete codes, one for each patch."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from methods.engine.checkpoint import save_tensors
from methods.engine.pictures import Strip, heat
from methods.errors import StageError
from methods.teachers.archive import BROKEN
from methods.teachers.folder import read_card
from methods.teachers.frozen import Frozen, no_autocast
from methods.teachers.half import Copies, dtype_around


class FrozenTokenizer(Frozen):
    """Any network with `codes(images)` and the attributes size, grid and image; never trained.

    Where it has `halves()`, the parts that may run in half precision do so under autocast.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network: Any = network.eval().requires_grad_(False)
        self.copies = Copies(self.network, lambda network: network.halves())
        self.size: int = network.size
        self.grid: tuple[int, int] = network.grid
        self.image: int = network.image

    @torch.no_grad()
    def codes(self, images: Tensor) -> Tensor:
        """Codes (B, N) int64 in [0, size) of images (B, 3, image, image) in [0, 1].

        Raises StageError("layout") for images of another size: resizing would change the codes.
        """
        if images.shape[-2:] != (self.image, self.image):
            found = "x".join(str(side) for side in images.shape[-2:])
            raise StageError("layout", f"the tokenizer reads {self.image} px images, not {found}")
        if not hasattr(self.network, "halves"):
            codes: Tensor = self.network.codes(images.float())
            return codes
        network = self.copies.get(dtype_around(images), images.device)
        with no_autocast(images):
            codes = network.codes(images.float())
        return codes

    forward = codes


def build(card: dict[str, Any]) -> nn.Module:
    """The randomly initialised network that a tokenizer.json describes."""
    if card["type"] == "vqkd":
        from methods.teachers.vqkd_network import VqkdNetwork

        return VqkdNetwork(**card["network"])
    if card["type"] == "dalle":
        from methods.teachers.dalle_network import DalleEncoder

        return DalleEncoder(**card["network"])
    raise KeyError(f"no tokenizer is called {card['type']!r}")


def load(folder: Path) -> FrozenTokenizer:
    """The tokenizer in `folder`, loaded strictly; StageError("needs") when it is broken."""
    card = read_card(folder / "tokenizer.json")
    weights = folder / "tokenizer.safetensors"
    try:
        network = build(card)
        network.load_state_dict(load_file(weights), strict=True)
    except BROKEN as error:
        raise StageError("needs", f"{weights}: no tokenizer ({error})") from None
    return FrozenTokenizer(network)


def save(
    folder: Path, kind: str, network: nn.Module, arguments: dict[str, Any], source: str
) -> None:
    """Leaves the network, of a kind that `build` knows, as a tokenizer folder; the card is last."""
    state = {n: t.detach().cpu().contiguous() for n, t in network.state_dict().items()}
    save_tensors(state, folder / "tokenizer.safetensors")
    card = {"type": kind, "network": arguments, "source": source}
    (folder / "tokenizer.json").write_text(json.dumps(card, indent=2) + "\n")


def usage_strip(counts: Tensor) -> Strip:
    """How often each code occurs, counts (codes,): a square of codes, the most frequent first."""
    shares, codes = counts.double() / counts.sum().clamp(min=1), len(counts)
    rows = math.isqrt(codes - 1) + 1
    squares = shares.new_full((rows * rows,), torch.nan)
    squares[:codes] = shares.sort(descending=True).values
    squares[squares == 0] = torch.nan
    used, most = int((counts > 0).sum()), float(shares.max())
    text = (
        f"codebook on the validation images: {used} of {codes} codes are used, the most frequent "
        f"first; brightness is the share of patches, none (dark) to {most:.2%} (bright)"
    )
    tile = heat(squares.view(rows, rows), max(2, 128 // rows), most)
    return Strip("1-codebook", text, [tile])
