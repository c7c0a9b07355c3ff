"""The interface of every data set: three parts that make batches."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

UNANSWERED = -100
"""Target of an example without a label in this part (``ignore_index`` of ``F.cross_entropy``)."""

DIMENSIONS = ("classes", "channels", "size", "features", "context")
"""Arguments of networks that follow from the data."""


def read_bytes(file: Path, missing: str) -> np.ndarray:
    """A file's content, uint8 ``[bytes]``.

    Args:
        missing: message for a file that does not exist.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a folder, or a pipe, which could block forever.
        OSError: the file cannot be read.
    """
    if not file.exists():
        raise FileNotFoundError(f"{file}: {missing}")
    if not file.is_file():
        raise ValueError(f"{file}: expected a regular file")
    return np.fromfile(file, dtype=np.uint8)


class Part:
    """Examples by index, read and augmented in batches."""

    def __len__(self) -> int:
        raise NotImplementedError

    def batch(self, indices: Tensor, epoch: int | None = None) -> tuple[tuple[Tensor, ...], Tensor]:
        """The examples of these indices.

        Args:
            indices: int64 ``[B]``.
            epoch: None (default) for examples without augmentation. With an epoch, data sets that augment do so as a
                pure function of (seed, epoch, index).

        Returns:
            The inputs of a network, and int64 targets in the shape of its logits without the last dimension.
            Ignored targets are `UNANSWERED`.
        """
        raise NotImplementedError

    def to(self, device: torch.device | str) -> "Part":
        """The same part with its tensors on that device. Examples in files stay in files."""
        return self


class Dataset(NamedTuple):
    """Three disjoint parts: to train, to choose an epoch, and to report.

    ``kind`` is "images", "nodes" or "text". ``dimensions`` holds some of `DIMENSIONS`: ``classes``, and ``channels``
    and ``size``, ``features``, or ``context``.
    """

    train: Part
    validation: Part
    test: Part
    kind: str
    dimensions: dict[str, int]

    @property
    def classes(self) -> int:
        return self.dimensions["classes"]

    def to(self, device: torch.device | str) -> "Dataset":
        """The same data with all tensors on that device."""
        return self._replace(**{name: getattr(self, name).to(device) for name in ("train", "validation", "test")})
