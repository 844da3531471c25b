"""Parameter groups by the rules of MAE and BEiT, and the optimisers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from methods.parts.optimisation import Optimisation

Group = dict[str, Any]

STEM = ("cls_token", "pos_embed", "mask_token", "reg_token", "patch_embed")


def parameter_groups(
    module: nn.Module, optimisation: Optimisation, prefix: str = ""
) -> list[Group]:
    """The trainable parameters of `module`, grouped by weight decay and learning-rate scale.

    Weight decay spares 1-D parameters, biases and `optimisation.undecayed`; so MAE's class and mask
    tokens (3-D) are decayed, and BEiT's relative position biases (2-D). With `layer_decay` d the
    scale is d^(L+1-i), i from `layer_of` for the timm encoder whose names begin with `prefix`.
    MILAN `util/lr_decay.py`, BEiT v2 `optim_factory.py`.
    """
    named = [(name, item) for name, item in module.named_parameters() if item.requires_grad]
    depths = _depths((name for name, _ in module.named_parameters()), prefix)
    depth = sum(depths)
    if optimisation.layer_decay is not None and depth == 0:
        raise ValueError(f"layer_decay needs an encoder with parameters named {prefix}blocks.0.*")
    groups: dict[tuple[float, float], Group] = {}
    for name, item in named:
        decay = optimisation.weight_decay if _is_decayed(name, item, optimisation) else 0.0
        scale = (optimisation.layer_decay or 1.0) ** (depth + 1 - layer_of(name, depths, prefix))
        group = {"params": [], "weight_decay": decay, "lr_scale": scale}
        groups.setdefault((decay, scale), group)["params"].append(item)
    return list(groups.values())


def layer_of(name: str, depths: Sequence[int], prefix: str = "") -> int:
    """Layer of a parameter of a timm ViT or Beit, or of a Swin, with so many blocks in each stage.

    0: tokens, absolute positions and patch embedding; k+1: block k, counted through all stages, and
    with it the merging that follows it (SimMIM `optimizer.py`); depth+1: everything else (the final
    norm, fc_norm, head, shared relative positions, and what is outside the encoder).
    """
    depth = sum(depths)
    if not name.startswith(prefix):
        return depth + 1
    parts = name[len(prefix) :].split(".")
    if parts[0] in STEM:
        return 0
    if parts[0] == "blocks":
        return int(parts[1]) + 1
    if parts[0] == "layers":
        # timm has the merging at the start of a stage, the source at the end of the one before.
        before = sum(depths[: int(parts[1])])
        return before + int(parts[3]) + 1 if parts[2] == "blocks" else before
    return depth + 1


def _depths(names: Iterable[str], prefix: str) -> tuple[int, ...]:
    """Blocks of each stage; a ViT or Beit is one stage."""
    pattern = re.compile(re.escape(prefix) + r"(?:layers\.(\d+)\.)?blocks\.(\d+)\.")
    stages: dict[int, int] = {}
    for name in names:
        if found := pattern.match(name):
            stage = int(found[1] or 0)
            stages[stage] = max(stages.get(stage, 0), int(found[2]) + 1)
    return tuple(stages[stage] for stage in sorted(stages))


def _is_decayed(name: str, item: Tensor, optimisation: Optimisation) -> bool:
    spared = any(name == each or name.endswith(f".{each}") for each in optimisation.undecayed)
    return item.ndim > 1 and not name.endswith(".bias") and not spared


def build_optimizer(groups: list[Group], optimisation: Optimisation) -> torch.optim.Optimizer:
    """The optimiser of `groups`; `set_rate` gives it the rate before each update."""
    groups = [{"lr_scale": 1.0, **group} for group in groups]
    rate, decay = optimisation.peak, optimisation.weight_decay
    if optimisation.optimizer == "lars":
        return LARS(groups, rate, optimisation.momentum, decay, optimisation.trust)
    if optimisation.optimizer == "sgd":
        return torch.optim.SGD(groups, rate, optimisation.momentum, weight_decay=decay)
    return torch.optim.AdamW(
        groups, rate, optimisation.betas, optimisation.eps, weight_decay=decay, fused=True
    )


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group `rate` times its "lr_scale"."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


class LARS(torch.optim.Optimizer):
    """MAE's LARS (`util/lars.py`): neither trust ratio nor weight decay for 1-D parameters.

    The rate multiplies the momentum buffer when it is applied and is not folded into it.
    """

    def __init__(
        self, groups: list[Group], lr: float, momentum: float, weight_decay: float, trust: float
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for item in group["params"]:
                if item.grad is not None:
                    self._update(item, group)

    def _update(self, item: Tensor, group: Group) -> None:
        change = item.grad
        assert change is not None
        if item.ndim > 1:
            change = change.add(item, alpha=group["weight_decay"])
            size, step = item.norm(), change.norm()
            ratio = torch.where((size > 0) & (step > 0), group["trust"] * size / step, 1.0)
            change = change * ratio
        state = self.state[item]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(item)
        buffer = state["momentum"]
        buffer.mul_(group["momentum"]).add_(change)
        item.add_(buffer, alpha=-group["lr"])
