"""What every data set is to the training loop."""

from typing import NamedTuple

from torch import Tensor


class Part(NamedTuple):
    """Images float32 ``[N, C, H, W]`` and labels int64 ``[N]``."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:  # examples, not fields
        return self.labels.shape[0]


class Dataset(NamedTuple):
    """Three disjoint parts: to train on, to choose by, and to report."""

    train: Part
    validation: Part
    test: Part
    classes: int
