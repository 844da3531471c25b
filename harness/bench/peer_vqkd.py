"""BEiT v2's step of VQ-KD's training, written plainly, as a peer.

`modeling_vqkd.py` and `norm_ema_quantizer.py`: the teacher's float32 weights under autocast,
distances and one-hot codes as matrices, attention by plain products, torch's AdamW as it comes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.bench.counting import SMALL
from harness.bench.measure import Clock
from harness.bench.peer import Peer
from harness.bench.subject import Subject
from methods.data.mixing import to_float
from methods.teachers.clip_network import CLIP_MEAN, CLIP_STD, build_clip
from methods.teachers.vqkd_network import Codebook, VqkdNetwork, patch_tokens


def load(precision: str, subject: Subject, clock: Clock) -> Peer:
    """The official step; see `harness.bench.peer.load_peer`."""
    trainable: Any = subject.build()
    teacher = sequence_first(build_clip(trainable.teacher.card["model"]).visual)
    network: VqkdNetwork = trainable.network.train()
    for each in network.modules():
        if hasattr(each, "fused_attn"):
            setattr(each, "fused_attn", False)  # noqa: B010
    optimizer = torch.optim.AdamW(trainable.groups(), subject.optimisation.peak)
    both = nn.ModuleList([network, teacher]).to(clock.device)
    sizes = {*SMALL, subject.optimisation.batch}
    pictures = {size: to_float(subject.sample(size)["image"]).to(clock.device) for size in sizes}

    def loss(size: int) -> Tensor:
        images = pictures[size]
        return official_loss(network, images, targets(teacher, images))

    def update() -> None:
        optimizer.step()
        optimizer.zero_grad()

    about = ("official", "BEiT v2 run_vqkd_training")
    return Peer(about, precision, (), both, loss, update, subject.optimisation.batch, clock)


def sequence_first(visual: Any) -> Any:
    """CLIP's image tower, frozen, with tokens (N, B, W) between its blocks, as in OpenAI's code.

    Batch first, as open_clip has it, bf16 products on a CPU copy their weights for every image.
    """
    visual.transformer.batch_first = False
    for block in visual.transformer.resblocks:
        block.attn.batch_first = False
    return visual.requires_grad_(False).eval()


@torch.no_grad()
def targets(visual: Any, images: Tensor) -> Tensor:
    """CLIP's projected patch tokens (B, N, P) of images (B, 3, H, W) in [0, 1]."""
    mean, std = (torch.tensor(each, device=images.device) for each in (CLIP_MEAN, CLIP_STD))
    tokens = visual._embeds((images - mean.view(3, 1, 1)) / std.view(3, 1, 1))
    projected: Tensor = visual.ln_post(visual.transformer(tokens)) @ visual.proj
    return projected[:, 1:]


def official_loss(network: VqkdNetwork, images: Tensor, target: Tensor) -> Tensor:
    """1 - cosine to the teacher's tokens, and the commitment; moves the codebook."""
    features = patch_tokens(network.encoder, images * 2 - 1)
    with torch.autocast(images.device.type, enabled=False):
        tokens = network.encode_task_layer(features.float())
    quantised, commitment = quantise(network.quantize, tokens)
    predicted = F.normalize(network.decode(quantised).float(), dim=-1)
    return (1 - (predicted * F.normalize(target.float(), dim=-1)).sum(-1)).mean() + commitment


def quantise(book: Codebook, tokens: Tensor, decay: float = 0.99) -> tuple[Tensor, Tensor]:
    """NormEMAVectorQuantizer: tokens (B, N, C) -> (straight-through unit tokens, commitment)."""
    tokens = F.normalize(tokens, dim=-1)
    flat, codes = tokens.flatten(0, 1), book.embedding.weight
    distance = (
        flat.pow(2).sum(dim=1, keepdim=True)
        + codes.pow(2).sum(dim=1)
        - 2 * torch.einsum("bd,nd->bn", flat, codes)
    )
    nearest = distance.argmin(dim=1)
    chosen = F.embedding(nearest, codes).view(tokens.shape)
    assigned = F.one_hot(nearest, len(codes)).type(tokens.dtype)
    commitment = F.mse_loss(chosen.detach(), tokens)
    with torch.no_grad():
        counts = assigned.sum(0)
        book.cluster_size.mul_(decay).add_(counts, alpha=1 - decay)
        empty = counts == 0
        means = F.normalize((flat.t() @ assigned).t() / counts.masked_fill(empty, 1.0)[:, None])
        means = torch.where(empty[:, None], codes, means.float())
        codes.copy_(F.normalize(codes.mul(decay).add(means, alpha=1 - decay)))
    return tokens + (chosen - tokens).detach(), commitment
