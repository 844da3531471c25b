"""Decoders, as values without torch: from the encoder's tokens to named predictions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from methods.parts.encoder import Encoder
from methods.parts.size import StateSize, block, linear, norm

if TYPE_CHECKING:
    from torch import nn

    from methods.networks.encoders import Student

Where = Literal["hidden", "visible", "patches", "all", "image"]
"""A prediction's rows: hidden, visible or all patches, those and the class, or one an image."""


class Output(NamedTuple):
    """What an objective reads of a prediction: its number of channels, and its rows.

    parts: a row's channels are those of so many tokens, (rows, parts, width / parts).
    """

    width: int
    where: Where
    parts: int = 1


@dataclass(frozen=True)
class Decoder:
    """Base of the decoders."""

    predictions: ClassVar[tuple[str, ...]] = ("tokens",)
    """Names of what the decoder predicts."""
    reads: ClassVar[tuple[str, ...]] = ("token",)
    """The kinds of encoder, by what they do with hidden patches, that the decoder can follow."""
    whole_batch: ClassVar[bool] = False
    """Whether a device's share of the batch must not be cut into micro-batches: the decoder
    gathers over ranks what depends on the global batch, but cannot over accumulation steps."""

    def describe(self) -> str:
        """The name in tables."""
        raise NotImplementedError

    def check(self, encoder: Encoder) -> None:
        """Raise ValueError where the decoder cannot follow `encoder`."""
        if encoder.hidden not in self.reads:
            name = type(self).__name__
            raise ValueError(f"decoder: {name} cannot follow an encoder of hidden={encoder.hidden}")

    def build(self, student: Student, outputs: Mapping[str, Output]) -> nn.Module:
        """The network; its forward(encoded) gives {name: the rows that outputs[name] asks for}.

        Rows are (B, 1+N, C) for "all", (B, N, C) for "patches", (B, C) for "image" and, in raster
        order, (rows, C) for "hidden" and "visible".
        """
        raise NotImplementedError

    def state_size(self, encoder: Any, widths: Mapping[str, int]) -> StateSize:
        """Of the network that `build` makes for predictions with so many channels."""
        raise NotImplementedError


@dataclass(frozen=True)
class LinearHead(Decoder):
    """One linear layer on the encoder's normalised tokens."""

    def describe(self) -> str:
        return "linear"

    def build(self, student: Student, outputs: Mapping[str, Output]) -> nn.Module:
        from methods.networks.decoders import LinearHeadDecoder

        return LinearHeadDecoder(student, outputs["tokens"])

    def state_size(self, encoder: Any, widths: Mapping[str, int]) -> StateSize:
        return StateSize(linear(encoder.width, widths["tokens"]))


def full_sequence_size(width: int, depth: int, encoder: Any, output: int) -> StateSize:
    """Of a decoder of `depth` blocks that restores all positions from what the encoder saw."""
    rows, columns = encoder.grid
    ends = linear(encoder.width, width) + width + norm(width) + linear(width, output)
    return StateSize(ends + depth * block(width), fixed=(1 + rows * columns) * width)


@dataclass(frozen=True)
class Transformer(Decoder):
    """Self-attention over visible tokens and mask tokens (MAE)."""

    reads: ClassVar[tuple[str, ...]] = ("drop",)

    width: int = 512
    depth: int = 8
    heads: int = 16

    def __post_init__(self) -> None:
        for name in ("width", "depth", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.width % 4:
            raise ValueError(f"width must be a multiple of 4 (positions), not {self.width}")
        if self.width % self.heads:
            raise ValueError(f"heads must divide width ({self.width}), not be {self.heads}")

    def describe(self) -> str:
        return f"transformer {self.depth}x{self.width}"

    def build(self, student: Student, outputs: Mapping[str, Output]) -> nn.Module:
        from methods.networks.decoders import TransformerDecoder

        return TransformerDecoder(self, student, outputs["tokens"])

    def state_size(self, encoder: Any, widths: Mapping[str, int]) -> StateSize:
        return full_sequence_size(self.width, self.depth, encoder, widths["tokens"])


@dataclass(frozen=True)
class Prompting(Transformer):
    """Blocks that update the hidden tokens only; the visible ones are a fixed prompt (MILAN)."""

    def describe(self) -> str:
        return f"prompting {self.depth}x{self.width}"

    def build(self, student: Student, outputs: Mapping[str, Output]) -> nn.Module:
        from methods.networks.prompting import PromptingDecoder

        return PromptingDecoder(self, student, outputs["tokens"])


@dataclass(frozen=True)
class PatchAggregation(Decoder):
    """A linear head, and the same again behind a bottleneck at the class token (BEiT v2).

    The last class token and the patches after block `early_layer` pass `depth` more blocks to the
    prediction "aggregated"; norm and head are the linear head's unless `shared_head` is False.
    """

    predictions: ClassVar[tuple[str, ...]] = ("tokens", "aggregated")

    early_layer: int = 9
    depth: int = 2
    shared_head: bool = True

    def __post_init__(self) -> None:
        for name in ("early_layer", "depth"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")

    def check(self, encoder: Encoder) -> None:
        super().check(encoder)
        if not encoder.class_token:
            raise ValueError("decoder: PatchAggregation needs an encoder with a class token")
        depth = getattr(encoder, "depth", self.early_layer + 1)
        if self.early_layer >= depth:
            raise ValueError(f"decoder.early_layer must be below the encoder's depth, {depth}")

    def describe(self) -> str:
        return f"linear + aggregation {self.depth} after {self.early_layer}"

    def build(self, student: Student, outputs: Mapping[str, Output]) -> nn.Module:
        from methods.networks.decoders import PatchAggregationDecoder

        return PatchAggregationDecoder(self, student, outputs)

    def state_size(self, encoder: Any, widths: Mapping[str, int]) -> StateSize:
        heads = linear(encoder.width, widths["tokens"])
        if not self.shared_head:
            heads += norm(encoder.width) + linear(encoder.width, widths["aggregated"])
        return StateSize(heads + self.depth * encoder.block_size)
