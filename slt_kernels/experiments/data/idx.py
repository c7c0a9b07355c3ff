"""Data sets in IDX files (LeCun et al., 1998): MNIST, Fashion-MNIST (Xiao et al., 2017) and KMNIST (Clanuwat, 2018)."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .dataset import Dataset, read_bytes
from .images import split_pixels

_CLASSES = 10
_DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # of the package dataset-fashion-mnist
_FASHION = "https://github.com/zalandoresearch/fashion-mnist"


def mnist(path: str | Path, seed: int = 0, validation: float = 0.2, augment: bool = True) -> Dataset:
    """MNIST: 60,000 training images of digits, some of them for validation, and 10,000 test images.

    Args:
        path: the folder of the four IDX files ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``,
            ``t10k-images-idx3-ubyte`` and ``t10k-labels-idx1-ubyte``, each as it is or as ``.gz``; or the folder to
            which torchvision downloads.
        seed: for the split and the augmentation. Default 0.
        validation: fraction of the training images for validation. Default 0.2.
        augment: train on random crops of images padded by 2 pixels. Default True.

    Returns:
        Images ``[N, 1, 28, 28]``, in memory as uint8. Batches are standardized with the mean and standard deviation of
        the training part.

    Raises:
        FileNotFoundError: a file is missing; the message names it and says how to get it.
        ValueError: a file that is not IDX of unsigned bytes, or is damaged; images that are not square or not as large
            as the others; another number of labels than of images; a label out of range; images that are all the same
            gray; a fraction outside (0, 1).
    """
    return _load("MNIST", path, "https://yann.lecun.org/exdb/mnist", seed, validation, augment)


def kmnist(path: str | Path, seed: int = 0, validation: float = 0.2, augment: bool = True) -> Dataset:
    """KMNIST: cursive Japanese characters of 10 classes; like `mnist`."""
    return _load("KMNIST", path, "https://github.com/rois-codh/kmnist", seed, validation, augment)


def fashion_mnist(
    path: str | Path | None = None, seed: int = 0, validation: float = 0.2, augment: bool = True
) -> Dataset:
    """Fashion-MNIST: pictures of clothes of 10 classes; like `mnist`, but half of the random crops are mirrored.

    Args:
        path: as in `mnist`. Default None: the files of Debian's package ``dataset-fashion-mnist``.
        seed, validation, augment: as in `mnist`.
    """
    if path is None and not _DEBIAN.is_dir():
        raise FileNotFoundError(
            f"Fashion-MNIST: no {_DEBIAN}: install Debian's package dataset-fashion-mnist, or download the four files "
            f"of {_FASHION} and give their folder as path"
        )
    return _load("FashionMNIST", _DEBIAN if path is None else path, _FASHION, seed, validation, augment, mirror=True)


def _load(
    name: str, path: str | Path, address: str, seed: int, validation: float, augment: bool, mirror: bool = False
) -> Dataset:
    folders = [Path(path), Path(path) / name / "raw"]  # the second is torchvision's
    missing = f"download the four files of {address} to that folder, with or without .gz"
    if name == "FashionMNIST":
        missing = f"{missing}, or install Debian's package dataset-fashion-mnist and give no path"
    parts = []
    for part in ("train", "t10k"):
        images_file = _find(folders, f"{part}-images", 3, f"{name}: {missing}")
        labels_file = _find(folders, f"{part}-labels", 1, f"{name}: {missing}")
        images, labels = read_idx(images_file, 3), read_idx(labels_file, 1).long()
        if len(images) != len(labels) or not len(labels):
            raise ValueError(f"{labels_file}: {len(labels)} labels, expected one for each of {len(images)} images")
        if images.shape[1] != images.shape[2]:
            raise ValueError(f"{images_file}: images of {images.shape[1]} x {images.shape[2]}, expected square ones")
        if labels.max() >= _CLASSES:
            raise ValueError(f"{labels_file}: label {labels.max()}, expected less than {_CLASSES}")
        parts.append((images.unsqueeze(1), labels))
    (train, _), (test, _) = parts
    if train.shape[2] != test.shape[2]:
        raise ValueError(f"{path}: images of {train.shape[2]} and {test.shape[2]} pixels, expected one size")
    where = str(folders[0])
    return split_pixels(*parts, _CLASSES, seed, validation, 2 if augment else 0, where, mirror)


def _find(folders: list[Path], stem: str, dimensions: int, missing: str) -> Path:
    """The IDX file of that name: with ``-`` or ``.`` before ``idx``, unpacked or not."""
    names = [f"{stem}{mark}idx{dimensions}-ubyte{end}" for end in ("", ".gz") for mark in "-."]
    for file in (folder / name for folder in folders for name in names):
        if file.exists():
            return file
    raise FileNotFoundError(f"{folders[0] / names[0]}: not found: {missing}")


def read_idx(file: Path, dimensions: int) -> Tensor:
    """The unsigned bytes of an IDX file: uint8 of that many dimensions. A name that ends in ``.gz`` is unpacked.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another format, or a damaged file.
    """
    content = read_bytes(file, "not found").tobytes()
    if file.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{file}: damaged, or not gzip: {error}") from None
    start = 4 + 4 * dimensions
    if len(content) < start or content[:3] != b"\0\0\x08" or content[3] != dimensions:
        raise ValueError(
            f"{file}: begins with {content[:4].hex() or 'nothing'}, expected 000008{dimensions:02x}: IDX of unsigned "
            f"bytes in {dimensions} dimensions"
        )
    shape = np.frombuffer(content[4:start], dtype=">u4").tolist()
    size = math.prod(shape)
    if size != len(content) - start or size == 0:
        raise ValueError(
            f"{file}: {len(content) - start:,} bytes after the header, expected {' x '.join(map(str, shape))} = "
            f"{size:,}: damaged; download it again"
        )
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=start).view(shape)
