"""One learning rate of our own linear probe, as the peer of ten."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from harness.bench.evaluations import labelled, linear
from harness.bench.measure import Clock
from harness.bench.peer import Peer
from harness.bench.peer_official import Made, step_of, updating
from harness.bench.subject import Subject
from methods.engine.optim import build_optimizer


def load(precision: str, subject: Subject, clock: Clock) -> Peer:
    """The published rate alone; see `harness.bench.peer.load_peer`."""
    return step_of({"linear": one_rate}, "one-rate", precision, subject, clock)


def one_rate(task: Any, sizes: set[int], device: torch.device) -> Made:
    """The published rate of our linear probe, by itself."""
    alone = dataclasses.replace(task, rates=())
    probing: Any = linear(alone)
    encoder = probing.frozen["encoder"].to(device)
    heads = probing.module.to(device).train()
    optimizer = build_optimizer(probing.groups(), alone.optimisation)
    batches = {
        size: {name: item.to(device) for name, item in labelled(alone, size).items()}
        for size in sizes
    }

    def loss(size: int) -> Tensor:
        with torch.no_grad():
            prepared = probing.prepare(0, [batches[size]])
        found: Tensor = heads(prepared[0])["loss"]
        return found

    network = nn.ModuleList([encoder, heads])
    return ("one-rate", "of the same code"), network, loss, updating(optimizer)
