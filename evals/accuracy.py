"""Top-1 and top-5 accuracy over all ranks, every image counted once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from methods.engine.distributed import all_reduce

TOP = (1, 5)


def evaluation_batch(device_batch: int | None) -> int:
    """Images per device in evaluation, where it changes no number."""
    return device_batch or 256


@torch.no_grad()
def accuracies(
    batches: Iterable[dict[str, Any]],
    logits: Callable[[Tensor], Tensor],
    device: torch.device,
) -> Tensor:
    """Accuracies TOP in percent (2, heads), float64, of `logits` over this rank's `batches`.

    `logits` maps images uint8 (B,3,H,W) to (B,heads,classes). With fewer classes than k, the
    top-k accuracy counts every image.
    """
    right: Tensor | None = None
    count = torch.zeros(1, dtype=torch.float64, device=device)
    for batch in batches:
        scores = logits(batch["image"].to(device))
        labels = batch["label"].to(device)
        best = scores.topk(min(max(TOP), scores.shape[-1]), dim=-1).indices
        hits = best == labels.view(-1, 1, 1)
        counted = torch.stack([hits[..., :k].any(-1).sum(0) for k in TOP]).double()
        right = counted if right is None else right + counted
        count += len(labels)
    if right is None:
        raise ValueError("there is nothing to evaluate on this rank")
    return 100 * all_reduce(right) / all_reduce(count)
