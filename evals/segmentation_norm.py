"""BatchNorm over the images of all ranks, on the CPU too, where torch's SyncBatchNorm is not."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from methods.engine.distributed import all_reduce


class _Sum(torch.autograd.Function):
    """The sum over ranks; so is its gradient, since every rank's loss depends on it."""

    @staticmethod
    def forward(context: Any, tensor: Tensor) -> Tensor:
        return all_reduce(tensor.clone())

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        return all_reduce(gradients[0].clone())


class RankBatchNorm(nn.BatchNorm2d):
    """BatchNorm2d whose training statistics are those of all ranks' (B,C,H,W) together."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        values = input.float()
        own = [values.sum((0, 2, 3)), values.new_tensor([values.numel() / values.shape[1]])]
        total: Tensor = _Sum.apply(torch.cat(own))
        count = total[-1].detach()
        mean = total[:-1] / count
        centred = values - mean.view(1, -1, 1, 1)
        square: Tensor = _Sum.apply(centred.square().sum((0, 2, 3)))
        self._move(mean.detach(), square.detach() / (count - 1).clamp(min=1))
        scale = self.weight * (square / count + self.eps).rsqrt()
        return (centred * scale.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)).to(input)

    @torch.no_grad()
    def _move(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.momentum is not None and self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)
