"""Data sets by name, each in three parts fixed by a seed; and the `Loader` that makes batches of a part."""

import inspect
import reprlib
from collections.abc import Callable
from pathlib import Path

from ...source import integer
from .cifar import cifar10, cifar100
from .dataset import UNANSWERED, Dataset, Part
from .digits import digits
from .folder import image_folder
from .graph import karate, ogbn_arxiv
from .loader import Batch, Loader
from .text import text

DATASETS: dict[str, Callable[..., Dataset]] = {
    "digits": digits,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "image_folder": image_folder,
    "karate": karate,
    "ogbn_arxiv": ogbn_arxiv,
    "text": text,
}
DEFAULTS = {"images": "digits", "nodes": "karate"}
"""For each kind, the data set that ships with a package. There is none of text: any file will do."""


def load(name: str, path: str | Path | None = None, *, seed: int = 0, **options) -> Dataset:
    """Loads a data set.

    Args:
        name: one of `DATASETS`.
        path: the folder or the file that it lies in, for those that do not ship with a package.
        seed: of its split and its augmentation, where it has them. Default 0.
        options: its own arguments.

    Raises:
        ValueError: an unknown name or option; a seed that is no integer of 64 bits; a path that is missing, or that it
            does not take.
        FileNotFoundError, ModuleNotFoundError: a file or a package is missing; the message says how to get it.
    """
    if name not in DATASETS:
        raise ValueError(f"data={reprlib.repr(name)}: expected one of {', '.join(DATASETS)}")
    arguments = inspect.signature(DATASETS[name]).parameters
    unknown = sorted(options.keys() - arguments.keys())
    if unknown:
        raise ValueError(f"{unknown[0]}={reprlib.repr(options[unknown[0]])}: {name} has only {', '.join(arguments)}")
    if ("path" in arguments) != (path is not None):
        wanted = "the folder or file that it lies in" if path is None else "none, it ships with a package"
        raise ValueError(f"path={path}: expected {wanted}, for {name}")
    options |= {} if path is None else {"path": path}
    seed = integer("seed", seed, -(2**63), 2**64 - 1)
    options |= {"seed": seed} if "seed" in arguments else {}
    return DATASETS[name](**options)


__all__ = ["DATASETS", "DEFAULTS", "UNANSWERED", "Batch", "Dataset", "Loader", "Part", "load", *DATASETS]
