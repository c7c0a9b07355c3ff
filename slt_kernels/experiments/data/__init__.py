"""Data sets by name, each split by a seed into training, validation and test part; `Loader` makes their batches."""

import inspect
from collections.abc import Callable
from pathlib import Path

from ..._text import shown
from ...source import integer
from .cifar import cifar10, cifar100
from .dataset import DIMENSIONS, UNANSWERED, Dataset, Part
from .digits import digits
from .folder import image_folder
from .graph import digits_graph, karate, ogbn_arxiv
from .idx import fashion_mnist, kmnist, mnist
from .loader import Batch, Loader
from .own import from_datasets, function, is_function
from .text import bible, text

DATASETS: dict[str, Callable[..., Dataset]] = {
    "digits": digits,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "mnist": mnist,
    "fashion_mnist": fashion_mnist,
    "kmnist": kmnist,
    "image_folder": image_folder,
    "karate": karate,
    "digits_graph": digits_graph,
    "ogbn_arxiv": ogbn_arxiv,
    "text": text,
    "bible": bible,
}
DEFAULTS = {"images": "digits", "nodes": "karate"}
"""For each kind of data, the data set that ships with a package. Text has none: any file is a data set."""


def load(name: str, path: str | Path | None = None, *, seed: int = 0, **options) -> Dataset:
    """Loads a data set.

    Args:
        name: one of `DATASETS`; or ``package.module:function``, whose module is imported (also from the current
            folder) and whose function returns a `Dataset`.
        path: the folder or file of a data set that does not ship with a package.
        seed: for the split and the augmentation; passed to the functions that take it. Default 0.
        options: further arguments of the data set.

    Raises:
        ValueError: an unknown name; an unknown or a missing option; a seed that is not an integer of 64 bits; a missing
            path, or a path for a data set that takes none; a function that returns no `Dataset`.
        FileNotFoundError, ModuleNotFoundError: a file or a package is missing; the message says how to get it.
    """
    if is_function(name):
        builder = function(name)
    elif name in DATASETS:
        builder = DATASETS[name]
    else:
        raise ValueError(f"data={shown(name)}: expected package.module:function, or one of {', '.join(DATASETS)}")
    arguments = inspect.signature(builder).parameters
    takes_any = any(a.kind is a.VAR_KEYWORD for a in arguments.values())
    unknown = sorted(options.keys() - arguments.keys())
    if unknown and not takes_any:
        raise ValueError(f"{unknown[0]}={shown(options[unknown[0]])}: {name} has only {', '.join(arguments)}")
    if path is None and "path" in arguments and arguments["path"].default is inspect.Parameter.empty:
        raise ValueError(f"path={path}: expected the folder or file of {name}")
    if path is not None and "path" not in arguments and not takes_any:
        why = f"{name} takes none" if is_function(name) else f"{name} ships with a package"
        raise ValueError(f"path={path}: expected no path: {why}")
    options |= {} if path is None else {"path": path}
    seed = integer("seed", seed, -(2**63), 2**64 - 1)
    options |= {"seed": seed} if "seed" in arguments else {}
    required = [
        a for a in arguments.values() if a.default is a.empty and a.kind not in (a.VAR_POSITIONAL, a.VAR_KEYWORD)
    ]
    missing = [a.name for a in required if a.name not in options]
    if missing:
        raise ValueError(f"{missing[0]}: expected a value for {name}, as by --set data.{missing[0]}=...")
    loaded = builder(**options)
    if not isinstance(loaded, Dataset):
        raise ValueError(f"data={name}: returned {type(loaded).__name__}, expected a Dataset (see data.from_datasets)")
    return loaded


__all__ = ["DATASETS", "DEFAULTS", "DIMENSIONS", "UNANSWERED", "Batch", "Dataset", "Loader", "Part"]
__all__ += ["from_datasets", "is_function", "load", *DATASETS]
