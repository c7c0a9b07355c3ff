"""Images in memory, and CIFAR's augmentation: random crops, half of them mirrored."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .dataset import Part
from .rng import draws


class Images(Part):
    """Images and their labels, in memory.

    Args:
        images: ``[N, C, H, W]``, float32 as a network takes them, or uint8.
        labels: int64 ``[N]``.
        mean, std: float32 ``[C]``, of each channel divided by 255; uint8 images are standardized with them.
        padding: width of the black border that is added before a random crop; half of the crops are mirrored.
            Default 0, no augmentation.
        seed: for the augmentation.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        mean: Tensor | None = None,
        std: Tensor | None = None,
        padding: int = 0,
        seed: int = 0,
    ) -> None:
        self.images = images
        self.labels = labels
        self.mean = mean
        self.std = std
        self.padding = padding
        self.seed = seed

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor, epoch: int | None = None) -> tuple[tuple[Tensor, ...], Tensor]:
        indices = indices.to(self.labels.device)
        images = self.images[indices]
        if epoch is not None and self.padding:
            images = crop_and_flip(images, self.padding, draws(indices, 3, self.seed, epoch))
        if self.mean is not None:
            images = (images.float() / 255 - self.mean.view(-1, 1, 1)) / self.std.view(-1, 1, 1)
        return (images,), self.labels[indices]

    def to(self, device: torch.device | str) -> "Images":
        tensors = (t if t is None else t.to(device) for t in (self.images, self.labels, self.mean, self.std))
        return Images(*tensors, self.padding, self.seed)


def crop_and_flip(images: Tensor, padding: int, random: Tensor) -> Tensor:
    """Crops, in the images' own size, of the images padded by ``padding`` zeros; half of them are mirrored.

    Args:
        images: ``[B, C, H, W]``.
        random: ``[B, 3]`` in [0, 1), for the first row and column of the crop and for mirroring.
    """
    count, _, height, width = images.shape
    padded = F.pad(images, (padding,) * 4)
    start = (random[:, :2] * (2 * padding + 1)).long()
    rows = start[:, :1] + torch.arange(height, device=images.device)  # [B, H]
    across = torch.arange(width, device=images.device).expand(count, width)
    columns = start[:, 1:2] + torch.where(random[:, 2:] < 0.5, across.flip(1), across)  # [B, W]
    each = torch.arange(count, device=images.device).view(-1, 1, 1)
    return padded.permute(0, 2, 3, 1)[each, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2).contiguous()
