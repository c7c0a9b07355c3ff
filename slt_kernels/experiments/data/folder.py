"""A folder of images with one subfolder per class, like ImageNet; images are read, cropped and mirrored on demand."""

import math
import os
from pathlib import Path
from textwrap import shorten

import numpy as np
import torch
from torch import Tensor

from ..._text import shown
from .augment import DRAWS_PER_OPERATION, ERASING_DRAWS, erase, rand_augment
from .dataset import Dataset, Part
from .rng import RAND_AUGMENT, draws, split

_SUFFIXES = (".jpeg", ".jpg", ".png", ".webp", ".bmp")
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as in torchvision
_TRIES = 10
_MORE = 2 * DRAWS_PER_OPERATION  # numbers of RandAugment


def image_folder(
    path: str | Path,
    seed: int = 0,
    validation: float = 0.2,
    size: int = 224,
    augment: bool = True,
    rand_augment: float = 0.0,
    erasing: float = 0.0,
) -> Dataset:
    """Images in ``path/train/CLASS/`` and ``path/val/CLASS/``: the layout of ImageNet.

    Training images are cropped to 8 to 100 % of their area at an aspect ratio of 3:4 to 4:3, and resized to ``size``.
    Half of them are mirrored. Other images are resized to a shorter side of ``size * 256 / 224`` and cropped at the
    centre. All are standardized with ImageNet's mean and standard deviation. Images are not kept in memory: give the
    `Loader` worker processes.

    Args:
        path: the folder. Classes are the sorted names in its ``train``.
        seed: for the split and the augmentation. Default 0.
        validation: fraction of ``train`` for validation; ``val`` is the test part. Default 0.2.
        size: side of the images that a network takes. Default 224.
        augment: crop and mirror training images at random, as above; if False, crop at the centre. Default True.
        rand_augment: magnitude of two operations of RandAugment on training images, up to 10; the paper's is 9. Default
            0, none.
        erasing: probability that a rectangle of a training image is replaced by noise; the paper's is 0.25. Default 0.

    Raises:
        FileNotFoundError: no such folder, or a folder or class without images; the message shows the layout.
        ModuleNotFoundError: Pillow is not installed (it comes with the ``images`` extra).
        ValueError: a class of ``val`` that is not in ``train``; an image that is not a regular file; a fraction outside
            (0, 1); a magnitude or probability out of range, or without ``augment``. Damaged images raise when they are
            read.
    """
    try:
        import PIL  # noqa: F401
    except ModuleNotFoundError:
        raise ModuleNotFoundError('images are read with Pillow: pip install "slt_kernels[images]"') from None
    if size < 1:
        raise ValueError(f"size={size}: expected at least 1")
    for name, value, most in (("rand_augment", rand_augment, 10), ("erasing", erasing, 1)):
        if not 0 <= value <= most or (value and not augment):
            raise ValueError(f"{name}={shown(value)}: expected 0 to {most}, and 0 without augment")
    path = Path(path)
    classes = sorted(e.name for e in _entries(path / "train") if e.is_dir())
    files, labels = _files(path / "train", classes)
    tested = _files(path / "val", classes)
    rest, held = split(len(labels), validation, seed)
    return Dataset(
        ImageFiles(path / "train", files[rest], labels[rest], size, augment, seed, rand_augment, erasing),
        ImageFiles(path / "train", files[held], labels[held], size),
        ImageFiles(path / "val", *tested, size),
        "images",
        {"classes": len(classes), "channels": 3, "size": size},
    )


def _entries(folder: Path) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(
            f"{folder}: no such folder: images are expected in train/CLASS/ and val/CLASS/ of {folder.parent}. "
            "ImageNet (ILSVRC2012) can be downloaded from https://image-net.org/download.php; unpack its archives to "
            "these folders, and sort the validation images into the folders of their classes"
        ) from None


def _files(folder: Path, classes: list[str]) -> tuple[np.ndarray, Tensor]:
    """File names in the folder, and labels. Names are one array of bytes: workers share it, but copy a list."""
    found = {e.name for e in _entries(folder) if e.is_dir()}
    unknown = sorted(found - set(classes))
    if unknown:
        raise ValueError(f"{folder / unknown[0]}: train has no such class")
    names, labels = [], []
    for label, name in enumerate(classes):
        if name in found:
            images = [e for e in _entries(folder / name) if e.name.lower().endswith(_SUFFIXES)]
            strange = sorted(e.path for e in images if not e.is_file())
            if strange:
                raise ValueError(f"{strange[0]}: expected a regular file, or a link to one")
            inside = sorted(e.name for e in images)
            if not inside:  # an empty class would still add an output to the network
                raise FileNotFoundError(f"{folder / name}: no images ({', '.join(_SUFFIXES)})")
            names += [os.fsencode(os.path.join(name, file)) for file in inside]
            labels += [label] * len(inside)
    if not names:
        raise FileNotFoundError(f"{folder}: no images ({', '.join(_SUFFIXES)}) in folders of their classes")
    return np.array(names), torch.tensor(labels)


class ImageFiles(Part):
    """Image files and their labels; images are read on demand.

    Args:
        folder, files: the folder, and the names in it as bytes.
        labels: int64 ``[N]``.
        size, augment, seed, rand_augment, erasing: see `image_folder`.
    """

    def __init__(
        self,
        folder: Path,
        files: np.ndarray,
        labels: Tensor,
        size: int,
        augment: bool = False,
        seed: int = 0,
        rand_augment: float = 0.0,
        erasing: float = 0.0,
    ) -> None:
        self.folder = folder
        self.files = files
        self.labels = labels
        self.size = size
        self.augment = augment
        self.seed = seed
        self.rand_augment = rand_augment
        self.erasing = erasing

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor, epoch: int | None = None) -> tuple[tuple[Tensor, ...], Tensor]:
        random, more = [None] * len(indices), [None] * len(indices)
        if epoch is not None and self.augment:
            random = draws(indices, 4 * _TRIES + 1, self.seed, epoch).tolist()
            more = draws(indices, _MORE + ERASING_DRAWS, self.seed, epoch, RAND_AUGMENT).tolist()
        names = [self.folder / os.fsdecode(name) for name in self.files[indices.numpy()]]
        images = [self._read(*each) for each in zip(names, random, more, strict=True)]
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (_MEAN, _STD))
        pixels = (pixels - mean) / std
        if self.erasing and epoch is not None:
            for image, numbers in zip(pixels, more, strict=True):
                erase(image, self.erasing, numbers[_MORE:])
        return (pixels,), self.labels[indices]

    def _read(self, file: Path, random: list[float] | None, more: list[float] | None) -> np.ndarray:
        """Pixels uint8 ``[size, size, 3]``."""
        from PIL import Image, ImageOps

        try:
            with Image.open(file) as opened:
                image = opened.convert("RGB")
        except Exception as error:  # PIL raises many types for damaged files
            if isinstance(error, OSError) and error.errno is not None:  # the file cannot be read
                raise
            reason = shorten(str(error) or type(error).__name__, 200)
            raise ValueError(f"{file}: damaged, or not an image: {reason}") from None
        width, height = image.size
        box = _center_box(width, height, self.size) if random is None else random_box(width, height, random)
        image = image.resize((self.size, self.size), Image.Resampling.BILINEAR, box)
        if random is not None and random[-1] < 0.5:
            image = ImageOps.mirror(image)
        if more is not None and self.rand_augment:
            image = rand_augment(image, self.rand_augment, more[:_MORE])
        return np.asarray(image)


def _center_box(width: int, height: int, size: int) -> tuple[float, float, float, float]:
    """Box of the original that remains after a resize to ``size * 256 / 224`` and a crop at the centre."""
    side = min(width, height) * 224 / 256
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def random_box(width: int, height: int, random: list[float]) -> tuple[int, int, int, int]:
    """Box (left, top, right, bottom) of 8 to 100 % of an image's area at a ratio of 3:4 to 4:3 (Szegedy et al., 2015).

    Ten tries of four random numbers each; if none fits, the largest central box with a ratio in that range.
    """
    for area, ratio, x, y in zip(*(iter(random[: 4 * _TRIES]),) * 4, strict=True):
        wanted = width * height * (0.08 + 0.92 * area)
        aspect = math.exp((2 * ratio - 1) * math.log(4 / 3))
        w, h = round(math.sqrt(wanted * aspect)), round(math.sqrt(wanted / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(x * (width - w + 1)), int(y * (height - h + 1))
            return left, top, left + w, top + h
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
