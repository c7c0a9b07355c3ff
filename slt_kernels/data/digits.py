"""Handwritten digits: 1,797 images of 8 x 8 that ship with scikit-learn (Alpaydin and Kaynak, 1998)."""

import torch

from .dataset import Dataset, Part


def digits(seed: int = 0) -> Dataset:
    """The digits in three parts, stratified by class: 1,149 to train, 288 to validate, 360 to test.

    Args:
        seed: of the split. Default 0.

    Returns:
        Images float32 ``[N, 1, 8, 8]``, standardized with the mean and deviation of the training part.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed (it comes with the ``demo`` extra).
        ValueError: a seed outside the 32 bits that scikit-learn takes.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed={seed}: expected an integer from 0 to {2**32 - 1}, for the split of the digits")
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ModuleNotFoundError:
        raise ModuleNotFoundError('the digits ship with scikit-learn: pip install "slt_kernels[demo]"') from None
    images, labels = load_digits(return_X_y=True)
    rest, test = train_test_split(range(len(labels)), test_size=0.2, stratify=labels, random_state=seed)
    train, validation = train_test_split(rest, test_size=0.2, stratify=labels[rest], random_state=seed)
    x = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8)
    x = (x - x[train].mean()) / x[train].std()
    y = torch.tensor(labels, dtype=torch.int64)
    return Dataset(*(Part(x[part], y[part]) for part in (train, validation, test)), classes=10)
