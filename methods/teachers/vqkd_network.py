"""VQ-KD's network: ViT encoder, cosine codebook, ViT decoder that predicts CLIP's tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from timm.models.beit import Beit
from torch import Tensor, nn

from methods.errors import StageError
from methods.teachers.archive import BROKEN, find_weights, read_weights
from methods.teachers.tokenizer import save

if TYPE_CHECKING:
    from methods.engine.work import Work
    from methods.teachers.vqkd import ReleasedVqkd


class Embedding(nn.Module):
    """The codebook: unit rows (codes, dimension); a buffer, since only its average moves it."""

    weight: Tensor

    def __init__(self, codes: int, dimension: int) -> None:
        super().__init__()
        self.register_buffer("weight", F.normalize(torch.randn(codes, dimension), dim=-1))


class Codebook(nn.Module):
    """Codes as directions, moved by an exponential average of the directions assigned to them.

    `cluster_size` (codes,) is a usage statistic: an average of counts since the epoch began. In
    training mode a forward pass adds its tokens to (sums, counts); `update` uses them up.
    """

    cluster_size: Tensor
    sums: Tensor
    counts: Tensor

    def __init__(self, codes: int, dimension: int) -> None:
        super().__init__()
        self.embedding = Embedding(codes, dimension)
        self.register_buffer("cluster_size", torch.zeros(codes))
        self.register_buffer("sums", torch.zeros(codes, dimension), persistent=False)
        self.register_buffer("counts", torch.zeros(codes), persistent=False)

    def assign(self, tokens: Tensor) -> Tensor:
        """Nearest code int64 (...) of unit tokens (..., C): for unit rows the largest product."""
        return (tokens @ self.embedding.weight.T).argmax(-1)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Unit tokens (B, N, C) -> (straight-through tokens, codes (B, N), commitment).

        The commitment is the mean over all B*N*C entries of (sg(code) - token)^2. There is no
        loss on the codebook.
        """
        codes = self.assign(tokens.detach())
        nearest = self.embedding.weight[codes]
        if self.training:
            self.sums.index_add_(0, codes.flatten(), tokens.detach().flatten(0, 1))
            self.counts += torch.bincount(codes.flatten(), minlength=len(self.counts))
        commitment = F.mse_loss(tokens, nearest)
        return tokens + (nearest - tokens).detach(), codes, commitment

    @torch.no_grad()
    def update(self, sums: Tensor, counts: Tensor, decay: float) -> None:
        """Move the codes: m = l2norm(sums / max(counts, 1)), C <- l2norm(decay C + (1-decay) m).

        sums (codes, C) and counts (codes,) are of the whole batch; an unused code stays.
        """
        weight = self.embedding.weight
        means = F.normalize(sums / counts.clamp(min=1).unsqueeze(1), dim=-1)
        means = torch.where((counts == 0).unsqueeze(1), weight, means)
        weight.copy_(F.normalize(decay * weight + (1 - decay) * means, dim=-1))
        self.cluster_size.mul_(decay).add_(counts, alpha=1 - decay)
        self.sums.zero_()
        self.counts.zero_()


def vit(image: int, patch: int, channels: int, width: int, depth: int, heads: int) -> Beit:
    """timm's Beit as VQ-KD uses it: absolute positions, q/v bias, no relative bias, no LayerScale.

    Its initialisation is the official one (trunc-normal 0.02; proj and fc2 over sqrt(2i)).
    """
    return Beit(
        img_size=image,
        patch_size=patch,
        in_chans=channels,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        num_classes=0,
        global_pool="avg",
        init_values=None,
        use_abs_pos_emb=True,
    )


def patch_tokens(network: Beit, images: Tensor) -> Tensor:
    """`fc_norm` of the patch tokens (B, N, W); the class token is dropped."""
    return network.fc_norm(network.forward_features(images)[:, 1:])


def task_layer(width: int, out: int) -> nn.Sequential:
    """Linear, tanh, Linear; trunc-normal 0.02 and zero bias."""
    first, last = nn.Linear(width, width), nn.Linear(width, out)
    for linear in (first, last):
        nn.init.trunc_normal_(linear.weight, std=0.02)
        nn.init.zeros_(linear.bias)
    return nn.Sequential(first, nn.Tanh(), last)


class VqkdNetwork(nn.Module):
    """The tokenizer with the decoder that trains it; state dict names are the official ones.

    size: number of codes; grid: (rows, columns) of patches; image: pixels of a side.
    """

    def __init__(
        self,
        image: int,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        decoder_depth: int,
        codes: int,
        code_dimension: int,
        target: int,
    ) -> None:
        super().__init__()
        side = image // patch
        self.size, self.image, self.grid = codes, image, (side, side)
        self.encoder = vit(image, patch, 3, width, depth, heads)
        self.decoder = vit(side, 1, code_dimension, width, decoder_depth, heads)
        self.quantize = Codebook(codes, code_dimension)
        self.encode_task_layer = task_layer(width, code_dimension)
        self.decode_task_layer = task_layer(width, target)

    def halves(self) -> list[nn.Module]:
        """What may run in half precision once it is frozen; codes are picked in float32."""
        return [self.encoder]

    def encode(self, images: Tensor) -> Tensor:
        """Unit tokens (B, N, C) float32 of images (B, 3, H, W) in [0, 1]."""
        images = (images * 2 - 1).to(self.encoder.patch_embed.proj.weight.dtype)
        features = patch_tokens(self.encoder, images)
        with torch.autocast(images.device.type, enabled=False):
            return F.normalize(self.encode_task_layer(features.float()), dim=-1)

    def decode(self, tokens: Tensor) -> Tensor:
        """Predicted teacher tokens (B, N, target) from quantised tokens (B, N, C)."""
        squares = tokens.transpose(1, 2).unflatten(2, self.grid)
        return self.decode_task_layer(patch_tokens(self.decoder, squares))

    def codes(self, images: Tensor) -> Tensor:
        """Codes (B, N) int64 of images (B, 3, H, W) in [0, 1]."""
        tokens = self.encode(images)
        with torch.autocast(images.device.type, enabled=False):
            return self.quantize.assign(tokens)


def convert(task: ReleasedVqkd, work: Work) -> dict[str, float]:
    """Rank 0 reads the official file and writes the tokenizer folder; no metrics."""
    if work.layout.rank != 0:
        return {}
    path = find_weights(work.data, task)
    state = official_state(read_weights(path))
    try:
        arguments = network_of(state, task.heads)
        network = VqkdNetwork(**arguments)
        network.load_state_dict(state, strict=True)
    except BROKEN as error:
        raise StageError("weights", f"{path}: not a VQ-KD tokenizer ({error})") from None
    length = network.quantize.embedding.weight.norm(dim=-1)
    if not bool(((length - 1).abs() < 1e-2).all()):
        raise StageError("weights", f"{path}: the codebook's rows are not of unit length")
    save(work.folder, "vqkd", network, arguments, task.weights)
    return {}


def official_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an official file that the network has, in float32."""
    unused = ("loss", "teacher", "scaling")
    statistics = {f"quantize.embedding.{name}" for name in ("cluster_size", "embed_avg", "initted")}
    return {
        name: tensor.float()
        for name, tensor in state.items()
        if not name.startswith(unused) and name not in statistics
    }


def network_of(state: dict[str, Tensor], heads: int = 0) -> dict[str, Any]:
    """Arguments of VqkdNetwork that fit the tensors; heads 0: 64 wide."""
    width, _, patch, _ = state["encoder.patch_embed.proj.weight"].shape
    side = round((state["encoder.pos_embed"].shape[1] - 1) ** 0.5)
    codes, dimension = state["quantize.embedding.weight"].shape
    depths = {
        part: 1 + max(int(n.split(".")[2]) for n in state if n.startswith(f"{part}.blocks."))
        for part in ("encoder", "decoder")
    }
    if max(depths.values()) > len(state):  # or a name alone could ask for any number of blocks
        raise ValueError(f"{depths} blocks in {len(state)} tensors")
    return {
        "image": side * patch,
        "patch": patch,
        "width": width,
        "depth": depths["encoder"],
        "heads": heads or width // 64,
        "decoder_depth": depths["decoder"],
        "codes": codes,
        "code_dimension": dimension,
        "target": len(state["decode_task_layer.2.weight"]),
    }
