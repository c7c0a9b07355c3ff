"""Any file as text, or the Bible of Debian's packages; the bytes are the tokens."""

import subprocess
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..._text import shown
from .dataset import Dataset, Part, read_bytes
from .rng import draws


def text(path: str | Path, seed: int = 0, validation: float = 0.1, context: int = 256) -> Dataset:
    """The bytes of a file, each to be predicted from the bytes before it.

    The parts follow each other in the file: training, validation, test.

    Args:
        path: any file.
        seed: for the offsets at which training sequences start. Default 0.
        validation: fraction of the file for validation, and the fraction for test. Default 0.1.
        context: bytes in a sequence. Default 256.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a path that is not a regular file; a fraction outside (0, 0.5); a file too short for one sequence in
            each part.
    """
    missing = "no such file: expected any file, whose bytes are read as text"
    return _split(read_bytes(Path(path), missing), str(path), seed, validation, context)


def bible(seed: int = 0, validation: float = 0.1, context: int = 256) -> Dataset:
    """The King James Bible, 4.4 million bytes with a verse per line, as Debian's program ``bible`` prints it.

    Args:
        seed, validation, context: as in `text`.

    Raises:
        FileNotFoundError: the program is not installed.
        RuntimeError: it fails.
    """
    return _split(np.frombuffer(_verses(), dtype=np.uint8).copy(), "bible", seed, validation, context)


def _verses() -> bytes:
    try:
        done = subprocess.run(
            ("bible", "-f", "gen1:1-rev22:21"), stdin=subprocess.DEVNULL, capture_output=True, timeout=60
        )
    except FileNotFoundError:
        raise FileNotFoundError(
            "bible: no such program: install Debian's packages bible-kjv and bible-kjv-text, or use the data set text "
            "with any file"
        ) from None
    if done.returncode != 0 or not done.stdout:
        raise RuntimeError(f"bible: exit status {done.returncode}: {shown(done.stderr.decode(errors='replace'))}")
    return done.stdout


def _split(content: np.ndarray, path: str, seed: int, validation: float, context: int) -> Dataset:
    if context < 1:
        raise ValueError(f"context={context}: expected at least 1")
    if not 0 < validation < 0.5:
        raise ValueError(f"validation={shown(validation)}: expected a fraction in (0, 0.5)")
    content = torch.from_numpy(content)
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
    """Consecutive sequences of ``context`` tokens; the target of each token is the next token.

    In training, a random offset per epoch shifts all starts, so that over the epochs a token appears at every position.

    Args:
        tokens: ``[N]``, any integer dtype, N at least ``context + 1``.
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
            room = len(self.tokens) - self.context  # starts that leave room for a sequence and its last target
            start = (start + int(draws(torch.tensor(0), 1, self.seed, epoch) * room)) % room
        tokens = self.tokens[start.unsqueeze(1) + torch.arange(self.context + 1, device=device)].long()
        return (tokens[:, :-1],), tokens[:, 1:]

    def to(self, device: torch.device | str) -> "Sequences":
        return Sequences(self.tokens.to(device), self.context, self.seed)
