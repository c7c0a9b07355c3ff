"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009), read from their binary versions."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .dataset import Dataset, read_bytes
from .images import split_pixels

_PIXELS = 3 * 32 * 32


def cifar10(path: str | Path, seed: int = 0, validation: float = 0.2, augment: bool = True) -> Dataset:
    """CIFAR-10: 50,000 training images, some of them for validation, and 10,000 test images.

    Args:
        path: the folder ``cifar-10-batches-bin`` with its six ``.bin`` files, or its parent folder.
        seed: for the split and the augmentation. Default 0.
        validation: fraction of the training images for validation. Default 0.2.
        augment: train on random crops of images padded by 4 pixels; half of the crops are mirrored. Default True.

    Returns:
        Images ``[N, 3, 32, 32]``, in memory as uint8. Batches are standardized with the mean and standard deviation of
        the training part.

    Raises:
        FileNotFoundError: a file is missing; the message names it and says how to get it.
        ValueError: a path that is not a regular file; a file whose size is not a multiple of a record; a label out of
            range; a channel that is constant over the training images; a fraction outside (0, 1).
    """
    folder = _folder(path, "CIFAR-10", "cifar-10-batches-bin", "cifar-10-binary.tar.gz")
    files = [f"data_batch_{i}.bin" for i in range(1, 6)]
    return _cifar(folder, files, "test_batch.bin", 1, 10, seed, validation, augment)


def cifar100(path: str | Path, seed: int = 0, validation: float = 0.2, augment: bool = True) -> Dataset:
    """CIFAR-100 with its 100 fine labels: like `cifar10`, from the two ``.bin`` files of ``cifar-100-binary``."""
    folder = _folder(path, "CIFAR-100", "cifar-100-binary", "cifar-100-binary.tar.gz")
    return _cifar(folder, ["train.bin"], "test.bin", 2, 100, seed, validation, augment)


def _folder(path: str | Path, title: str, name: str, archive: str) -> Path:
    for folder in (Path(path), Path(path) / name):
        if any(folder.glob("*.bin")):
            return folder
    raise FileNotFoundError(
        f"{title}: no .bin files in {path} or {Path(path) / name}: unpack the binary version there: "
        f"https://www.cs.toronto.edu/~kriz/{archive}"
    )


def _cifar(
    folder: Path, train: Sequence[str], test: str, labels: int, classes: int, seed: int, fraction: float, augment: bool
) -> Dataset:
    images, targets = (torch.cat(t) for t in zip(*(_read(folder / f, labels, classes) for f in train), strict=True))
    tested = _read(folder / test, labels, classes)
    return split_pixels((images, targets), tested, classes, seed, fraction, 4 if augment else 0, str(folder))


def _read(file: Path, labels: int, classes: int) -> tuple[Tensor, Tensor]:
    """Images and labels of a file; a record is ``labels`` label bytes, of which the last is used, and an image."""
    records = read_bytes(file, "not found: unpack the whole archive again")
    if records.size == 0 or records.size % (labels + _PIXELS):
        raise ValueError(
            f"{file}: {records.size:,} bytes, expected a multiple of {labels + _PIXELS}, the size of a record: "
            "damaged; unpack the archive again"
        )
    records = records.reshape(-1, labels + _PIXELS)
    targets = records[:, labels - 1]
    if targets.max() >= classes:
        raise ValueError(f"{file}: label {targets.max()}, expected less than {classes}: damaged, or another data set")
    images = torch.from_numpy(records[:, labels:].copy()).view(-1, 3, 32, 32)
    return images, torch.from_numpy(targets.astype(np.int64))
