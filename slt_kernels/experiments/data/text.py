"""Any file as text: its bytes are the tokens."""

from pathlib import Path

import torch
from torch import Tensor

from .dataset import Dataset, Part, read_bytes
from .rng import draws


def text(path: str | Path, seed: int = 0, validation: float = 0.1, context: int = 256) -> Dataset:
    """A file's bytes, to predict each from those before it: first the training part, then validation, then test.

    Args:
        path: any file.
        seed: of the offsets at which training sequences start. Default 0.
        validation: fraction of the file to validate with, and to test with. Default 0.1 each.
        context: bytes of a sequence. Default 256.

    Raises:
        FileNotFoundError: no such file.
        ValueError: what is no regular file; a fraction outside (0, 0.5), or a file too short for one sequence in each
            part.
    """
    if context < 1:
        raise ValueError(f"context={context}: expected at least 1")
    if not 0 < validation < 0.5:
        raise ValueError(f"validation={validation}: expected a fraction in (0, 0.5)")
    missing = "no such file: expected any file, of which the bytes are read as text"
    content = torch.from_numpy(read_bytes(Path(path), missing))
    held = round(validation * len(content))
    parts = content.split([len(content) - 2 * held, held, held])
    for name, part in zip(("training", "validation", "test"), parts, strict=True):
        if len(part) < context + 1:
            raise ValueError(
                f"{path}: {len(content):,} bytes leave {len(part):,} for {name}, expected at least {context + 1} for a "
                f"sequence of context={context}"
            )
    sequences = (Sequences(part, context, seed) for part in parts)
    return Dataset(*sequences, "text", {"classes": 256, "context": context})


class Sequences(Part):
    """Consecutive sequences of ``context`` tokens, each with the one that follows as its target.

    In training their starts are rotated by an offset drawn for the epoch, so that each token is met at each position.

    Args:
        tokens: ``[N]``, of any integer type, N at least ``context + 1``.
    """

    def __init__(self, tokens: Tensor, context: int, seed: int = 0) -> None:
        self.tokens = tokens
        self.context = context
        self.seed = seed

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // self.context

    def batch(self, indices: Tensor, epoch: int | None = None) -> tuple[tuple[Tensor, ...], Tensor]:
        device = self.tokens.device
        start = indices.to(device) * self.context
        if epoch is not None:
            room = len(self.tokens) - self.context  # places where a sequence and its last target fit
            start = (start + int(draws(torch.tensor(0), 1, self.seed, epoch) * room)) % room
        tokens = self.tokens[start.unsqueeze(1) + torch.arange(self.context + 1, device=device)].long()
        return (tokens[:, :-1],), tokens[:, 1:]

    def to(self, device: torch.device | str) -> "Sequences":
        return Sequences(self.tokens.to(device), self.context, self.seed)
