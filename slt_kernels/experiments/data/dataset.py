"""What every data set is to the training loop."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

UNANSWERED = -100
"""The target where none is asked for: what ``F.cross_entropy`` leaves out."""


def read_bytes(file: Path, missing: str) -> np.ndarray:
    """A file's content, uint8 ``[bytes]``.

    Args:
        missing: what to say where there is none.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no regular file: a folder, or a pipe, which could be waited for without end.
        OSError: it cannot be read.
    """
    if not file.exists():
        raise FileNotFoundError(f"{file}: {missing}")
    if not file.is_file():
        raise ValueError(f"{file}: expected a regular file")
    return np.fromfile(file, dtype=np.uint8)


class Part:
    """Examples by number, read and augmented batch by batch."""

    def __len__(self) -> int:
        raise NotImplementedError

    def batch(self, indices: Tensor, epoch: int | None = None) -> tuple[tuple[Tensor, ...], Tensor]:
        """The examples of these numbers.

        Args:
            indices: int64 ``[B]``.
            epoch: None (default) for the examples as they are; else augmented, where the data set augments at all, by
                a pure function of its seed, the epoch and each index.

        Returns:
            What a network takes, and int64 targets of the shape of its logits without their last dimension,
            `UNANSWERED` where none is asked for.
        """
        raise NotImplementedError

    def to(self, device: torch.device | str) -> "Part":
        """The same part, its tensors on that device; what lies in files stays there."""
        return self


class Dataset(NamedTuple):
    """Three disjoint parts: to train on, to choose by, and to report.

    ``kind`` ("images", "nodes" or "text") is what networks take, and ``dimensions`` the arguments of theirs that the
    data decide: ``classes``, and ``channels`` and ``size``, ``features``, or ``context``.
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
        """The same data, what of them is in memory on that device."""
        return self._replace(**{name: getattr(self, name).to(device) for name in ("train", "validation", "test")})
