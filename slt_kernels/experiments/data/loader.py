"""Batches of a part, the same for any number of workers and from any step on."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ...source import MAX_ROWS, integer
from .dataset import Part
from .rng import order


class Batch(NamedTuple):
    """A network's inputs (``model(*inputs)``), the targets, and this rank's fraction of the global batch."""

    inputs: tuple[Tensor, ...]
    targets: Tensor
    share: float

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on that device; copies from pinned memory are asynchronous."""
        inputs = tuple(t.to(device, non_blocking=True) for t in self.inputs)
        return Batch(inputs, self.targets.to(device, non_blocking=True), self.share)


class Loader:
    """Batches of a part, epoch by epoch.

    In training, order and augmentation of the examples are pure functions of (seed, epoch, index). So the global
    batches of an epoch are the same for any number of workers and ranks, and an epoch can start at any step.

    Args:
        part: a part of a `Dataset`.
        batch_size: examples of a step, over all ranks.
        seed: for the order. Default 0.
        training: shuffle and augment. All ranks take the same number of steps, so a last batch with fewer examples than
            ranks is dropped. Default False: in order, not augmented, each example on exactly one rank.
        rank, ranks: this process takes every ``ranks``-th example of a batch, starting at ``rank``. Default 0 of 1.
        workers: processes that read and augment. Default 0 reads in this process, which suits data in memory.
        repeats: in training, differently augmented versions of each example that follow each other (repeated
            augmentation, Hoffer et al., 2020). An epoch keeps its number of examples, so it has fewer different ones:
            the first ``1 / repeats`` of its order. Default 1.

    Raises:
        ValueError: a value that is not an integer or is out of range; in training, an empty part or a batch with fewer
            examples than ranks.
    """

    def __init__(
        self,
        part: Part,
        batch_size: int,
        *,
        seed: int = 0,
        training: bool = False,
        rank: int = 0,
        ranks: int = 1,
        workers: int = 0,
        repeats: int = 1,
    ) -> None:
        batch_size = integer("batch_size", batch_size, 1, MAX_ROWS)
        ranks = integer("ranks", ranks, 1, MAX_ROWS)
        rank = integer("rank", rank, 0, ranks - 1)
        workers = integer("workers", workers, 0, MAX_ROWS)
        self.repeats = integer("repeats", repeats, 1, MAX_ROWS)
        if training and min(batch_size, len(part)) < ranks:
            raise ValueError(f"batch_size={batch_size} of {len(part)} examples: expected one for each of {ranks} ranks")
        self.part = part
        self.batch_size = batch_size
        self.seed = integer("seed", seed, -(2**63), 2**64 - 1)
        self.training = training
        self.rank = rank
        self.ranks = ranks
        self._batches = _Batches(part)
        self._plan: list[_Task] = []  # tasks of an epoch for the workers, one per batch
        self._workers: DataLoader | None = None
        if workers > 0:
            self._workers = DataLoader(
                self._batches,
                batch_size=None,
                sampler=self._plan,
                num_workers=workers,
                persistent_workers=True,
                pin_memory=torch.cuda.is_available(),
                generator=torch.Generator(),  # so that an epoch does not advance the global generator
            )

    @property
    def steps(self) -> int:
        """Number of batches in an epoch."""
        whole, rest = divmod(len(self.part), self.batch_size)
        return whole + (rest >= self.ranks if self.training else rest > self.rank)

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from step ``start`` on. A loader with workers runs one epoch at a time."""
        count = len(self.part)
        numbers = order(count, self.seed, epoch) if self.training else torch.arange(count)
        versions = torch.zeros_like(numbers)
        if self.training and self.repeats > 1:
            numbers = numbers.repeat_interleave(self.repeats)[:count]
            versions = torch.arange(count) % self.repeats
        batches = numbers.split(self.batch_size)[start : self.steps]
        shares = [batch[self.rank :: self.ranks] for batch in batches]
        of_batches = versions.split(self.batch_size)[start : self.steps]
        first = epoch * self.repeats if self.training else None
        tasks = [
            _Task(share.tolist(), version[self.rank :: self.ranks].tolist(), first)
            for share, version in zip(shares, of_batches, strict=True)
        ]
        if self._workers is None:
            loaded = map(self._batches.__getitem__, tasks)
        else:
            self._plan[:] = tasks
            loaded = self._workers
        for whole, share, examples in zip(batches, shares, loaded, strict=True):
            if isinstance(examples, Exception):
                raise examples
            inputs, targets = examples
            yield Batch(tuple(inputs), targets, len(share) / len(whole))


class _Task(NamedTuple):
    indices: list[int]
    versions: list[int]  # of the augmentation of each
    epoch: int | None  # of version 0; version v is augmented as in epoch + v


class _Batches:
    """A part as a data set for DataLoader; an item is a batch, or the error of reading it.

    Errors are returned because DataLoader turns an exception of a worker into one with the traceback as its message.
    """

    def __init__(self, part: Part) -> None:
        self.part = part

    def __getitem__(self, task: _Task) -> tuple[tuple[Tensor, ...], Tensor] | Exception:
        try:
            indices = torch.tensor(task.indices)
            if not any(task.versions):
                return self.part.batch(indices, task.epoch)
            return self._versions(indices, torch.tensor(task.versions), task.epoch)
        except (ValueError, OSError) as error:
            return error

    def _versions(self, indices: Tensor, versions: Tensor, epoch: int) -> tuple[tuple[Tensor, ...], Tensor]:
        """A batch of several versions of examples: read version by version, and put back in order."""
        places = [(versions == version).nonzero()[:, 0] for version in versions.unique()]
        read = [self.part.batch(indices[at], epoch + int(versions[at[0]])) for at in places]
        back = torch.cat(places).argsort()
        inputs = zip(*(inputs for inputs, _ in read), strict=True)
        back = back.to(read[0][1].device)
        return tuple(torch.cat(parts)[back] for parts in inputs), torch.cat([targets for _, targets in read])[back]
