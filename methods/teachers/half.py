"""Frozen networks in the precision of the autocast around them, cast once and not at each use."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def dtype_around(tensor: Tensor) -> torch.dtype:
    """What autocast computes products in where `tensor` is; float32 without it."""
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32


class Copies:
    """A frozen network and its copy in half precision, made when it is first asked for.

    cast: gives the parts of a copy that shall be cast, so that the others stay in float32.
    """

    def __init__(self, network: nn.Module, cast: Callable[[Any], list[nn.Module]]) -> None:
        self.network, self.cast = network, cast
        self.half: nn.Module | None = None
        self.kind: tuple[torch.dtype, torch.device] | None = None

    def get(self, dtype: torch.dtype, device: torch.device) -> Any:
        """The network whose cast parts take and give `dtype`."""
        if dtype == torch.float32:
            return self.network
        if self.half is None or self.kind != (dtype, device):
            self.half = copy.deepcopy(self.network).to(device)
            for part in self.cast(self.half):
                part.to(dtype)
            self.kind = (dtype, device)
        return self.half
