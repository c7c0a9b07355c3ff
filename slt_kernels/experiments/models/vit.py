"""The vision transformer (Dosovitskiy et al., 2021) with the mean over patches in place of a class token."""

import torch
from torch import Tensor, nn

from .transformer import blocks


class ViT(nn.Module):
    """Patches of an image through transformer blocks, and their mean through a linear head.

    The patch convolution and the position embedding are masked too. No bias and no affine normalization; ReLU in place
    of the paper's GELU.

    Args:
        classes: outputs. Default 10.
        size, channels: size and channels of the input ``[B, channels, size, size]``. Default 32 and 3.
        patch: side of a patch, a divisor of ``size``. Default 4, for small images.
        width: features of a patch. Default 192.
        depth: blocks. Default 12.
        head_width: features of a head, a divisor of ``width``. Default 64.
        qk_scaling: see `transformer.Attention`. Default False.
        drop_path: probability with which the branches of the last block are dropped for an example in training; that
            of the blocks before falls to 0 in equal steps (`transformer.DropPath`). Default 0.

    Raises:
        ValueError: a size that is not a multiple of ``patch``; a width that is not a multiple of ``head_width``; a
            depth below 1; a ``drop_path`` outside [0, 1).
    """

    def __init__(
        self,
        classes: int = 10,
        size: int = 32,
        channels: int = 3,
        patch: int = 4,
        width: int = 192,
        depth: int = 12,
        head_width: int = 64,
        qk_scaling: bool = False,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if patch < 1 or size < 1 or size % patch:
            raise ValueError(f"patch={patch}: expected a divisor of size={size}")
        self.patches = nn.Conv2d(channels, width, patch, patch, bias=False)
        self.positions = nn.Embedding((size // patch) ** 2, width)
        self.blocks = blocks(depth, width, head_width, causal=False, qk_scaling=qk_scaling, drop_path=drop_path)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.head = nn.Linear(width, classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.positions(torch.arange(x.shape[1], device=x.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))
