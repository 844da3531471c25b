"""mmsegmentation's UPerNet with a timm encoder as its backbone."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evals.encoders import Source, Timm, build_trainable
from evals.segmentation import Segmentation
from evals.segmentation_mmseg import MODELS, BaseModule, ConfigDict, EncoderDecoder
from evals.segmentation_norm import RankBatchNorm
from methods.errors import StageError
from methods.parts.augment import mean_std


@MODELS.register_module()
class TimmBackbone(BaseModule):
    """Raw outputs of four blocks of a timm ViT or Beit, without a final norm.

    The position tables fix the size of the input. A smaller one, as the sliding window meets in
    very long images, is padded with zeros and its maps are cut back.
    """

    def __init__(self, encoder: Timm, blocks: tuple[int, ...]) -> None:
        super().__init__()
        # Every trainable parameter must get a gradient (DDP), so what follows the last map goes.
        encoder.blocks = encoder.blocks[: blocks[-1] + 1]
        encoder.norm = encoder.fc_norm = encoder.head = nn.Identity()
        self.encoder, self.blocks = encoder, list(blocks)

    def init_weights(self) -> None:
        """Nothing: mmengine would call timm's `init_weights` and so undo the pretraining."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B,3,H,W) -> four maps (B,width,H/patch,W/patch)."""
        maps = self.encoder.forward_intermediates(
            padded(images, self.encoder), indices=self.blocks, norm=False, intermediates_only=True
        )
        patch, _ = self.encoder.patch_embed.patch_size
        return tuple(cut(each, images, patch) for each in maps)


@MODELS.register_module()
class SwinBackbone(BaseModule):
    """The maps of a timm Swin's four stages, each after a fresh norm (mmsegmentation's Swin).

    A smaller input than the window is padded and its maps are cut back, as in `TimmBackbone`.
    """

    def __init__(self, encoder: Timm) -> None:
        super().__init__()
        encoder.norm = encoder.head = nn.Identity()
        self.encoder = encoder
        self.norms = nn.ModuleList(nn.LayerNorm(each["num_chs"]) for each in encoder.feature_info)

    def init_weights(self) -> None:
        """Nothing, as in `TimmBackbone`."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B,3,H,W) -> four maps (B,width 2^i,H/(stem 2^i),W/(stem 2^i))."""
        maps = self.encoder.forward_intermediates(
            padded(images, self.encoder), norm=False, intermediates_only=True
        )
        strides = [int(each["reduction"]) for each in self.encoder.feature_info]
        return tuple(
            cut(norm(each.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), images, stride)
            for each, norm, stride in zip(maps, self.norms, strides, strict=True)
        )


def padded(images: Tensor, encoder: Timm) -> Tensor:
    """Images (B,3,H,W) with zeros below and on the right where the encoder takes larger ones."""
    height, width = encoder.patch_embed.img_size
    below, right = height - images.shape[2], width - images.shape[3]
    return F.pad(images, (0, right, 0, below)) if below > 0 or right > 0 else images


def cut(maps: Tensor, images: Tensor, stride: int) -> Tensor:
    """The part of (B,C,h,w) maps of that stride which shows the images and no padding."""
    rows, columns = -(-images.shape[2] // stride), -(-images.shape[3] // stride)
    return maps[:, :, :rows, :columns]


def norm_layer(world: int, device: str) -> dict[str, Any]:
    """mmengine's config of a BatchNorm over the global batch, for this layout."""
    if world == 1:
        return {"type": "BN", "requires_grad": True}
    return {"type": "SyncBN" if device == "cuda" else RankBatchNorm, "requires_grad": True}


def build_segmentor(
    task: Segmentation, found: Source, norm: dict[str, Any] | None = None
) -> EncoderDecoder:
    """The segmentor of `task` on the encoder `found`; heads initialised from the task's seed."""
    norm = norm or norm_layer(1, "cpu")
    check_blocks(task, found)
    encoder = build_trainable(
        found, task.seed, classes=0, drop_path=task.drop_path, image=task.crop
    )
    backbone: dict[str, Any]
    if found.staged:
        config = heads_config(task, [each["num_chs"] for each in encoder.feature_info], norm)
        backbone = {"type": SwinBackbone, "encoder": encoder}
    else:
        config = segmentor_config(task, encoder.embed_dim, norm)
        blocks = task.taken(found.depth)
        backbone = {"type": TimmBackbone, "encoder": encoder, "blocks": blocks}
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # It warns of its own default, the mean over all pixels, ignored ones included.
        warnings.filterwarnings("ignore", message=".*avg_non_ignore.*")
        torch.manual_seed(task.seed)
        segmentor = MODELS.build({**config, "backbone": backbone})
        segmentor.init_weights()
    return segmentor


def check_blocks(task: Segmentation, found: Source) -> None:
    """StageError "weights" where the encoder has not the blocks, or not four stages."""
    if found.staged and (found.depth != 4 or task.blocks is not None):
        raise StageError("weights", "a Swin is used by its four stages: blocks must not be set")
    blocks = task.taken(found.depth)
    if blocks[-1] >= found.depth:
        raise StageError("weights", f"blocks {blocks}: the encoder has only {found.depth} blocks")


def segmentor_config(task: Segmentation, width: int, norm: dict[str, Any]) -> dict[str, Any]:
    """mmsegmentation's config of the segmentor without its backbone, as BEiT's and MAE's."""
    neck = {
        "type": "Feature2Pyramid",
        "embed_dim": width,
        "rescales": [4, 2, 1, 0.5],
        "norm_cfg": norm,
    }
    return {**heads_config(task, [width] * 4, norm), "neck": neck}


def heads_config(task: Segmentation, widths: list[int], norm: dict[str, Any]) -> dict[str, Any]:
    """The same without its neck, for four maps of these widths and falling resolution."""
    head = {
        "num_classes": len(task.data.classes),
        "dropout_ratio": task.dropout,
        "norm_cfg": norm,
        "align_corners": False,
    }
    loss = {"type": "CrossEntropyLoss", "use_sigmoid": False}
    mean, std = mean_std(task.statistics)
    return {
        "type": "EncoderDecoder",
        "data_preprocessor": {
            "type": "mmseg.SegDataPreProcessor",
            "mean": [255 * value for value in mean],
            "std": [255 * value for value in std],
            "bgr_to_rgb": True,
            "pad_val": 0,
            "seg_pad_val": 255,
            "size": (task.crop, task.crop),
        },
        "decode_head": {
            "type": "UPerHead",
            "in_channels": widths,
            "in_index": [0, 1, 2, 3],
            "pool_scales": task.pool_scales,
            "channels": task.channels,
            "loss_decode": {**loss, "loss_weight": 1.0},
            **head,
        },
        "auxiliary_head": {
            "type": "FCNHead",
            "in_channels": widths[2],
            "in_index": 2,
            "channels": task.auxiliary_channels,
            "num_convs": 1,
            "concat_input": False,
            "loss_decode": {**loss, "loss_weight": task.auxiliary_weight},
            **head,
        },
        "train_cfg": {},
        "test_cfg": ConfigDict(_inference(task)),
    }


def _inference(task: Segmentation) -> dict[str, Any]:
    if task.inference == "whole":
        return {"mode": "whole"}
    window, stride = (task.crop, task.crop), (task.stride, task.stride)
    return {"mode": "slide", "crop_size": window, "stride": stride}
