"""Images in memory, and CIFAR's augmentation: random crops, half of them mirrored."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .dataset import Dataset, Part
from .rng import draws, split


class Images(Part):
    """Images and their labels, in memory.

    Args:
        images: ``[N, C, H, W]``, float32 as a network takes them, or uint8.
        labels: int64 ``[N]``.
        mean, std: float32 ``[C]``, of each channel divided by 255; uint8 images are standardized with them.
        padding: width of the black border that is added before a random crop. Default 0, no augmentation.
        seed: for the augmentation.
        mirror: whether half of the crops are mirrored. Default True.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        mean: Tensor | None = None,
        std: Tensor | None = None,
        padding: int = 0,
        seed: int = 0,
        mirror: bool = True,
    ) -> None:
        self.images = images
        self.labels = labels
        self.mean = mean
        self.std = std
        self.padding = padding
        self.seed = seed
        self.mirror = mirror

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor, epoch: int | None = None) -> tuple[tuple[Tensor, ...], Tensor]:
        indices = indices.to(self.labels.device)
        images = self.images[indices]
        if epoch is not None and self.padding:
            random = draws(indices, 3, self.seed, epoch)
            if not self.mirror:
                random[:, 2] = 1
            images = crop_and_flip(images, self.padding, random)
        if self.mean is not None:
            images = (images.float() / 255 - self.mean.view(-1, 1, 1)) / self.std.view(-1, 1, 1)
        return (images,), self.labels[indices]

    def to(self, device: torch.device | str) -> "Images":
        tensors = (t if t is None else t.to(device) for t in (self.images, self.labels, self.mean, self.std))
        return Images(*tensors, self.padding, self.seed, self.mirror)


def split_pixels(
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    classes: int,
    seed: int,
    validation: float,
    padding: int,
    where: str,
    mirror: bool = True,
) -> Dataset:
    """A data set of images that are in memory, with a fraction of the training images for validation.

    Args:
        train, test: images uint8 ``[N, C, H, W]`` and labels int64 ``[N]``.
        classes: number of classes.
        seed: for the split and the augmentation.
        validation: fraction of the training images for validation.
        padding, mirror: augmentation of the training part; see `Images`.
        where: file or folder of the images, for the error.

    Raises:
        ValueError: a channel that is constant over the training images; a fraction outside (0, 1).
    """
    images, labels = train
    rest, held = split(len(labels), validation, seed)
    mean, std = _statistics(images[rest])
    if not (std > 0).all():
        raise ValueError(f"{where}: a channel is constant over all training images: damaged; unpack the archive again")
    return Dataset(
        Images(images[rest], labels[rest], mean, std, padding, seed, mirror),
        Images(images[held], labels[held], mean, std),
        Images(*test, mean, std),
        "images",
        {"classes": classes, "channels": images.shape[1], "size": images.shape[2]},
    )


def _statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel divided by 255, from histograms: without a float copy."""
    levels = torch.arange(256, dtype=torch.float64) / 255
    counts = torch.stack([channel.flatten().bincount(minlength=256) for channel in images.transpose(0, 1)]).double()
    shares = counts / counts.sum(1, keepdim=True)
    mean = shares @ levels
    variance = (shares * (levels - mean.unsqueeze(1)).square()).sum(1)
    return mean.float(), variance.sqrt().float()


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
