"""Data sets by name, each split by a seed into training, validation and test part; `Loader` makes their batches."""

import inspect
from collections.abc import Callable
from pathlib import Path

from ..._text import shown
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
"""For each kind of data, the data set that ships with a package. Text has none: any file is a data set."""


def load(name: str, path: str | Path | None = None, *, seed: int = 0, **options) -> Dataset:
    """Loads a data set.

    Args:
        name: one of `DATASETS`.
        path: the folder or file of a data set that does not ship with a package.
        seed: for the split and the augmentation. Default 0.
        options: further arguments of the data set.

    Raises:
        ValueError: an unknown name or option; a seed that is not an integer of 64 bits; a missing path, or a path for a
            data set that takes none.
        FileNotFoundError, ModuleNotFoundError: a file or a package is missing; the message says how to get it.
    """
    if name not in DATASETS:
        raise ValueError(f"data={shown(name)}: expected one of {', '.join(DATASETS)}")
    arguments = inspect.signature(DATASETS[name]).parameters
    unknown = sorted(options.keys() - arguments.keys())
    if unknown:
        raise ValueError(f"{unknown[0]}={shown(options[unknown[0]])}: {name} has only {', '.join(arguments)}")
    if ("path" in arguments) != (path is not None):
        wanted = f"the folder or file of {name}" if path is None else f"no path: {name} ships with a package"
        raise ValueError(f"path={path}: expected {wanted}")
    options |= {} if path is None else {"path": path}
    seed = integer("seed", seed, -(2**63), 2**64 - 1)
    options |= {"seed": seed} if "seed" in arguments else {}
    return DATASETS[name](**options)


__all__ = ["DATASETS", "DEFAULTS", "UNANSWERED", "Batch", "Dataset", "Loader", "Part", "load", *DATASETS]
