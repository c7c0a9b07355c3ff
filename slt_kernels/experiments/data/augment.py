"""RandAugment (Cubuk et al., 2020) of Pillow images, and random erasing (Zhong et al., 2020), as functions of numbers.

The operations and their ranges are those of timm's "increasing" set (``rand-m9-mstd0.5-inc1``), which the paper's files
use for ImageNet: a higher magnitude is a stronger change for each.
"""

import math
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

OPERATIONS = ("autocontrast", "equalize", "invert", "rotate", "posterize", "solarize", "solarize_add", "color")
OPERATIONS += ("contrast", "brightness", "sharpness", "shear_x", "shear_y", "translate_x", "translate_y")
DRAWS_PER_OPERATION = 4
_GRAY = (128, 128, 128)


def rand_augment(image: "Image", magnitude: float, random: list[float]) -> "Image":
    """Operations on an image, each chosen from `OPERATIONS` and applied with probability 1/2.

    Args:
        image: RGB.
        magnitude: mean of the magnitudes, 0 to 10; their standard deviation is 0.5.
        random: `DRAWS_PER_OPERATION` numbers in [0, 1) for each operation: which, whether, magnitude, and sign.
    """
    for which, whether, deviation, sign in zip(*(iter(random),) * DRAWS_PER_OPERATION, strict=True):
        if whether < 0.5:
            normal = NormalDist(magnitude, 0.5).inv_cdf(min(max(deviation, 1e-9), 1 - 1e-9))
            level = min(max(normal, 0.0), 10.0) / 10
            image = apply(OPERATIONS[int(which * len(OPERATIONS))], image, level, -1 if sign < 0.5 else 1)
    return image


def apply(operation: str, image: "Image", level: float, sign: int) -> "Image":
    """One of `OPERATIONS` at a level from 0 to 1.

    Level 0 is no change, except that posterize keeps 4 bits. Invert, equalize and autocontrast have no level.
    """
    from PIL import Image, ImageEnhance, ImageOps

    width, height = image.size
    signed = sign * level
    if operation in ("autocontrast", "equalize", "invert"):
        return getattr(ImageOps, operation)(image)
    if operation == "rotate":
        return image.rotate(30 * signed, Image.Resampling.BILINEAR, fillcolor=_GRAY)
    if operation == "posterize":
        return ImageOps.posterize(image, max(1, 4 - int(4 * level)))  # Pillow keeps at least 1 bit
    if operation == "solarize":
        return ImageOps.solarize(image, 256 - int(256 * level))
    if operation == "solarize_add":
        added = int(110 * level)
        return image.point([min(255, value + added) if value < 128 else value for value in range(256)] * 3)
    if operation in ("color", "contrast", "brightness", "sharpness"):
        return getattr(ImageEnhance, operation.capitalize())(image).enhance(1 + 0.9 * signed)
    row = {
        "shear_x": (1, 0.3 * signed, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, 0.3 * signed, 1, 0),
        "translate_x": (1, 0, 0.45 * signed * width, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, 0.45 * signed * height),
    }[operation]
    return image.transform(image.size, Image.Transform.AFFINE, row, Image.Resampling.BILINEAR, fillcolor=_GRAY)


ERASING_DRAWS = 5


def erase(image: Tensor, probability: float, random: list[float]) -> None:
    """Fills a rectangle of a standardized image with normal noise, in place, with a probability.

    The rectangle has 2 to 33 % of the area, at a ratio of 1:3 to 3:1; a side that is too long is cut to the image.

    Args:
        image: ``[C, H, W]``.
        probability: that a rectangle is erased.
        random: `ERASING_DRAWS` numbers in [0, 1): whether, area, ratio, row, and column. The noise follows from them.
    """
    whether, area, ratio, row, column = random
    if whether >= probability:
        return
    channels, height, width = image.shape
    pixels = height * width * (0.02 + 0.31 * area)
    aspect = math.exp((2 * ratio - 1) * math.log(3))
    h, w = min(height, round(math.sqrt(pixels * aspect))), min(width, round(math.sqrt(pixels / aspect)))
    top, left = int(row * (height - h + 1)), int(column * (width - w + 1))
    noise = np.random.default_rng([int(r * 2**32) for r in random]).standard_normal((channels, h, w))
    image[:, top : top + h, left : left + w] = image.new_tensor(noise)
