"""How many numbers a network holds, from its sizes alone: what its checkpoints take of a disk."""

from __future__ import annotations

from dataclasses import dataclass

from methods.parts.optimisation import Optimisation

KEPT = 2
"""Checkpoints of a stage that are kept."""
BYTES = 4
"""Of a number: weights and moments are kept in single precision whatever computes with them."""
MOMENTS = {"adamw": 2, "lars": 1, "sgd": 1}


@dataclass(frozen=True)
class StateSize:
    """Numbers that a stage keeps.

    trained: what the optimiser updates. fixed: what a checkpoint holds besides (positions that are
    not learned, moving averages, running statistics). exported: of the encoder, or whatever else
    the stage leaves when it is done.
    """

    trained: int = 0
    fixed: int = 0
    exported: int = 0

    def checkpoint_bytes(self, optimisation: Optimisation) -> int:
        """One checkpoint: weights and the optimiser's moments."""
        moments = MOMENTS[optimisation.optimizer]
        return BYTES * (self.trained * (1 + moments) + self.fixed)

    def disk_bytes(self, optimisation: Optimisation | None) -> int:
        """The checkpoints that are kept, and what is exported in the end."""
        kept = KEPT * self.checkpoint_bytes(optimisation) if optimisation else 0
        return kept + BYTES * self.exported


def linear(inputs: int, outputs: int, bias: bool = True) -> int:
    """Of a linear layer."""
    return (inputs + bias) * outputs


def convolution(inputs: int, outputs: int, kernel: int, bias: bool = True) -> int:
    """Of a convolution with a kernel of `kernel` x `kernel`, transposed or not."""
    return (inputs * kernel**2 + bias) * outputs


def norm(width: int) -> int:
    """Of a LayerNorm, or the trained ones of a BatchNorm."""
    return 2 * width


def mlp(width: int) -> int:
    """Of a block's two layers, four times as wide in between."""
    return linear(width, 4 * width) + linear(4 * width, width)


def block(width: int, layer_scale: bool = False) -> int:
    """Of a transformer block: two norms, attention, two layers, and two scales if it has them."""
    attention = linear(width, 3 * width) + linear(width, width)
    return 2 * norm(width) + attention + mlp(width) + 2 * width * layer_scale
