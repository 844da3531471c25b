"""Swin as a student: mask tokens after the patch embedding, a token for each cell at the end."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from methods.networks.encoders import Encoded, Student
from methods.parts.swin import Swin


class StudentSwin(Student):
    """timm's SwinTransformer with hidden cells; see `methods.parts.swin.Swin`.

    It starts as timm's (and SimMIM's) does: truncated normal of deviation 0.02 for matrices, the
    tables of relative positions and the mask token, zero biases.
    """

    def __init__(self, value: Swin) -> None:
        super().__init__(value, value.embedding)
        self.subdivision = value.patch // value.stem
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(
        self,
        images: Tensor,
        mask: Tensor,
        early_layer: int | None = None,
        hidden_only: bool = False,
    ) -> Encoded:
        """Encode normalised images (B, 3, H, W) without the cells where mask (B, N) is True.

        The tokens (B, N, D) are those of all cells, without a class.
        """
        if early_layer is not None:
            raise ValueError("the stages of a Swin have no tokens of one size")
        cells = mask.view(len(mask), *self.grid)
        hidden = cells.repeat_interleave(self.subdivision, 1).repeat_interleave(self.subdivision, 2)
        patches = self.model.patch_embed(images)  # (B, rows, columns, C)
        tokens = self.model.layers(self.hide(patches, hidden)).flatten(1, 2)
        order = mask.to(torch.uint8).argsort(dim=1, stable=True)
        return Encoded(tokens, None, mask, order, self.model.norm)

    def initialise(self, module: nn.Module) -> None:
        for each in module.modules():
            if isinstance(each, nn.Linear):
                nn.init.trunc_normal_(each.weight, std=0.02)
                if each.bias is not None:
                    nn.init.zeros_(each.bias)
