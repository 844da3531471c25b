"""Modules named as a file's tensors are, for tests that write TorchScript archives."""

from __future__ import annotations

from torch import Tensor, nn


class Namespace(nn.Module):
    """Modules and parameters in the nesting of their dotted names: what torch.jit.save archives."""

    def add(self, name: str, tensor: Tensor) -> None:
        first, _, rest = name.partition(".")
        if not rest:
            self.register_buffer(first, tensor)
            return
        if not hasattr(self, first):
            self.add_module(first, Namespace())
        child = getattr(self, first)
        assert isinstance(child, Namespace)
        child.add(rest, tensor)
