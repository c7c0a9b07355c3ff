"""Handwritten digits: 1,797 images of 8 x 8 that ship with scikit-learn (Alpaydin and Kaynak, 1998)."""

import torch
from torch import Tensor

from .dataset import Dataset
from .images import Images


def digits(seed: int = 0) -> Dataset:
    """The digits in three parts, stratified by class: 1,149 for training, 288 for validation, 360 for test.

    Args:
        seed: for the split, which uses its low 32 bits. Default 0.

    Returns:
        Images float32 ``[N, 1, 8, 8]``, standardized with the mean and standard deviation of the
        training part; not augmented.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed (it comes with the ``demo`` extra).
    """
    x, y, parts = read_digits(seed)
    x = (x - x[parts[0]].mean()) / x[parts[0]].std()
    images = (Images(x[part].view(-1, 1, 8, 8), y[part]) for part in parts)
    return Dataset(*images, "images", {"classes": 10, "channels": 1, "size": 8})


def read_digits(seed: int) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Pixels float32 ``[1797, 64]``, labels, and the indices of the three parts."""
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ModuleNotFoundError:
        raise ModuleNotFoundError('the digits ship with scikit-learn: pip install "slt_kernels[demo]"') from None
    images, labels = load_digits(return_X_y=True)
    state = seed % 2**32
    rest, test = train_test_split(range(len(labels)), test_size=0.2, stratify=labels, random_state=state)
    train, validation = train_test_split(rest, test_size=0.2, stratify=labels[rest], random_state=state)
    parts = [torch.tensor(part) for part in (train, validation, test)]
    return torch.tensor(images, dtype=torch.float32), torch.tensor(labels, dtype=torch.int64), parts
