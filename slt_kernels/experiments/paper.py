"""Configuration files of the code of Otsuka et al. (2024), as experiments of this package.

Their keys are those of ``utils/parser.py`` in https://github.com/Hikari43/slt_within_frozen_network.
"""

import math
from collections.abc import Mapping
from typing import Any

from .._text import shown
from ..freezing import SPREADS
from ..mask_import import import_mask
from ..source import MAX_ROWS, Freeze, integer
from . import models
from .train import Experiment

_CIFAR = {"conv2", "conv4", "conv6", "conv8", "resnet18", "resnet34"}
_IMAGENET = {"resnet18", "resnet34", "resnet50", "resnet101", "wide_resnet50_2"}
_DATA = {
    "mnist": "mnist",
    "cifar10": "cifar10",
    "cifar100": "cifar100",
    "imagenet": "image_folder",
    "ogbn-arxiv": "ogbn_arxiv",
}
_CLASSES = {"mnist": 10, "cifar10": 10, "cifar100": 100, "imagenet": 1000, "ogbn-arxiv": 40}
_WEIGHTS = {"kaiming_uniform": "uniform", "kaiming_normal": "normal", "signed_kaiming_constant": "signed_constant"}
_SCORES = {"kaiming_uniform": "uniform", "kaiming_normal": "normal", "trunc_normal": "trunc_normal"}
_SCALES = {None: None, "none": None, "static_scaled": "static", "dynamic_scaled": "dynamic"}
_SCHEDULES = {"multi_step_lr": "multistep", "cosine_lr": "cosine", "cosine_lr_warmup": "cosine"}
_ALGORITHMS = {"dense": "dense", "global_ep": "edge_popup", "local_ep": "edge_popup"}
_LOCK_SPREADS = {None: "locked", "density_distribution": "locked", "sparsity_distribution": "frozen"}
_HERE = {  # keys that are about a machine: the flag that does the same
    "gpu_ids": "--device",
    "omp_num_threads": "--threads",
    "save_dir": "--folder and --out",
    "save_interval": "--keep-every",
}
_NO_EFFECT = ("config", "eval_interval", "batch_size_val_per_gpu", "batch_size_test_per_gpu", "n_worker_eval")
_NO_EFFECT += ("n_worker_test", "use_non_blocking", "nonlinearity", "in_dim", "model_ema_force_cpu", "r_method")


class _Keys:
    """The keys of a file; those that are read, or explained, are not listed as left out."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = {str(key): None if value == "None" else value for key, value in values.items()}
        self.read: set[str] = set(_NO_EFFECT)
        self.notes: list[str] = []

    def get(self, key: str, default: Any = None) -> Any:
        self.read.add(key)
        value = self.values.get(key)
        return default if value is None else value

    def number(self, key: str, default: float = 0.0, least: float = -math.inf, most: float = math.inf) -> float:
        """A finite number in that range, also as text: YAML reads 1e-4 as text."""
        value = self.get(key, default)
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(f"{key}={shown(value)}: expected a number")
        if not least <= number <= most:
            raise ValueError(f"{key}={shown(value)}: expected a number from {least} to {most}")
        return number

    def one_of(self, key: str, known: Mapping[Any, Any], default: Any = None) -> Any:
        """What a value means here; ValueError for one that means nothing."""
        value = self.get(key, default)
        if not isinstance(value, str | None) or value not in known:
            raise ValueError(f"{key}={shown(value)}: expected one of {', '.join(map(str, known))}")
        return known[value]

    def note(self, key: str, why: str) -> None:
        self.read.add(key)
        value = self.values.get(key)
        self.notes.append(f"{key}: {why}" if value is None else f"{key}={shown(value)}: {why}")

    def left_out(self) -> list[str]:
        rest = (key for key, value in self.values.items() if key not in self.read and value not in (None, False))
        return self.notes + [f"{key}={shown(self.values[key])}: there is nothing like it here" for key in rest]


def from_paper(values: Mapping[str, Any]) -> tuple[Experiment, list[str]]:
    """An experiment from the keys of one of their files, and what was left out or differs, one line each.

    A ``mask_file`` is read (`import_mask`), and its fractions become ``source.layers``.

    Raises:
        ValueError: a value that has no meaning here, such as weights of ``trunc_normal``; a number out of range; a
            network or data set that this package does not have; a ``mask_file`` without ``m_init_method``, or of
            another network.
        FileNotFoundError: no such ``mask_file``.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"config={shown(values)}: expected keys and values")
    keys = _Keys(values)
    data = _data(keys)
    model = _model(keys)
    search = _search(keys)
    graph = model["name"] == "gin"
    search["batch_size"] = 1 if graph else _batch_size(keys)
    source = _source(keys, model)
    for key, flag in _HERE.items():
        if key in keys.values:
            keys.note(key, f"see {flag} of slt find")
    experiment = Experiment.from_dict(
        {"seed": keys.get("seed", 0), "model": model, "data": data, "source": source, "search": search}
    )
    return experiment, keys.left_out()


def _batch_size(keys: _Keys) -> int:
    gpus = keys.get("gpu_ids", [0])
    if not isinstance(gpus, list):
        raise ValueError(f"gpu_ids={shown(gpus)}: expected a list of numbers")
    return int(keys.number("batch_size_per_gpu", 128)) * len(gpus)


def _data(keys: _Keys) -> dict[str, Any]:
    name = keys.one_of("dataset_name", _DATA)
    data = {"name": name, "path": str(keys.get("dataset_dir", "data"))}
    ratio = keys.get("train_val_ratio")
    if ratio is not None and name != "ogbn_arxiv":
        data["validation"] = round(1 - keys.number("train_val_ratio", least=0, most=1), 6)
    if name in ("cifar10", "cifar100"):
        keys.note("dataset_dir", "expected to hold the binary version of CIFAR; theirs is that of Python")
    if name == "image_folder" and not keys.get("use_simple_transform", False):
        data |= {"rand_augment": 9.0, "erasing": 0.25}
    return data


def _model(keys: _Keys) -> dict[str, Any]:
    name, dataset = keys.get("model_name"), keys.values.get("dataset_name")
    factor = keys.number("width_factor", 1)
    base = keys.number("hidden_dim", 386, 1, MAX_ROWS) if name == "gin_based_net" else 64
    if not 1 <= base * factor <= MAX_ROWS:
        raise ValueError(f"width_factor={factor}: expected a factor on {base:g} that gives from 1 to {MAX_ROWS}")
    width = int(base * factor)
    affine = {"affine": True} if keys.get("use_affine_bn", False) else {}
    if name == "gin_based_net":
        depth = integer("n_layers", keys.get("n_layers", 4), 1, models.largest("depth"))
        model = {"name": "gin", "width": width, "depth": depth}
        model |= {"dropout": p} if (p := keys.number("dropout_p")) else {}
        model |= {"bias": True} if keys.get("use_bias", False) else {}
        return model | ({} if keys.get("norm_type") == "bn" else {"norm": False}) | affine
    if not isinstance(name, str) or name not in (_IMAGENET if dataset == "imagenet" else _CIFAR):
        raise ValueError(f"model_name={shown(name)}: there is no such network for dataset_name={shown(dataset)}")
    model = {"name": f"cifar_{name}" if dataset != "imagenet" and name.startswith("resnet") else name}
    if factor != 1:
        model["width"] = width
        if any(int(base * factor * 2**i) != width << i for i in range(4)):
            keys.note("width_factor", f"channels are {width} times a power of 2; theirs are rounded one by one")
    if affine and name.startswith("conv"):
        affine = {}  # these have no BatchNorm
    if name == "conv4":
        keys.note("model_name", "their first linear layer has four times as many inputs as there are, and cannot run")
    return model | affine


def _source(keys: _Keys, model: Mapping[str, Any]) -> dict[str, Any]:
    if keys.values.get("algo") == "dense":  # trained from these weights
        keys.read |= {"scale_method", "m_init_method", "p_ratio", "r_ratio", "mask_file"}
        return {"prune": 0.0, "lock": 0.0, "weight": keys.one_of("w_init_method", _WEIGHTS)}
    spread = keys.one_of("m_init_method", {None: None} | {name: name for name in SPREADS})
    prune, lock = keys.number("p_ratio"), keys.number("r_ratio")
    source: dict[str, Any] = {
        "prune": prune if spread else 0.0,
        "lock": lock if spread else 0.0,
        "weight": keys.one_of("w_init_method", _WEIGHTS),
        "scale": keys.one_of("scale_method", _SCALES),
    }
    if not spread and (prune or lock):
        keys.notes.append("p_ratio, r_ratio: without m_init_method nothing is frozen, as in their code")
    if spread:
        source["spread"] = spread
        if lock:
            source["lock_spread"] = keys.one_of("r_method", _LOCK_SPREADS)
    file = keys.get("mask_file")
    if file is not None:
        if not spread:
            raise ValueError(f"mask_file={shown(file)}: expected m_init_method too")
        options = {"features": keys.get("in_dim", 128)} if model["name"] == "gin" else {}
        classes = _CLASSES[keys.values["dataset_name"]]
        network = models.build(**model, **options, classes=classes, device="meta")
        Freeze(prune, lock)  # refuses what is out of range
        fractions = import_mask(network, str(file), prune + lock, spread)
        source |= {"prune": 0.0, "lock": 0.0, "layers": [[f.prune, f.lock] for f in fractions]}
        source.pop("lock_spread", None)
    return source


def _search(keys: _Keys) -> dict[str, Any]:
    algorithm = keys.get("algo")
    search: dict[str, Any] = {
        "algorithm": keys.one_of("algo", _ALGORITHMS),
        "epochs": keys.get("max_epoch", 100),
        "optimizer": keys.one_of("optimizer_name", {"sgd": "sgd", "adamw": "adamw"}),
        "lr": keys.number("lr", 0.1),
        "weight_decay": keys.number("weight_decay"),
        "schedule": keys.one_of("scheduler_name", _SCHEDULES, "cosine_lr"),
        "pick": "best",
    }
    if algorithm != "dense":
        search["sparsity"] = keys.number("sparsity", 0.5)
        search["scope"] = "global" if algorithm == "global_ep" else "local"
        search["scores"] = keys.one_of("s_init_method", _SCORES)
    else:
        keys.read |= {"sparsity", "s_init_method"}
    if search["optimizer"] == "sgd":
        search["momentum"] = keys.number("momentum")
    if search["schedule"] == "multistep":
        search |= {"milestones": keys.get("milestones", []), "gamma": keys.number("gamma", 0.1)}
    if keys.values.get("scheduler_name") == "cosine_lr_warmup":
        search |= {"min_lr": keys.number("min_lr"), "warmup_epochs": keys.get("warmup_t", 0)}
        search["warmup_lr"] = keys.number("warmup_lr_init")
        keys.note("scheduler_name", "cosine reaches min_lr after max_epoch epochs, warmup included")
    keys.read |= {"momentum", "milestones", "gamma", "min_lr", "warmup_lr_init", "warmup_t", "warmup_prefix"}
    names = {"mixup": "mixup", "cutmix": "cutmix", "smoothing": "label_smoothing", "clip_grad": "clip"}
    for key, name in names.items():
        if value := keys.number(key):
            search[name] = value
    if search.get("mixup") and search.get("cutmix"):
        search["switch"] = keys.number("mixup_switch_prob", 0.5)
    if keys.get("mixup_prob", 1.0) != 1.0 and (search.get("mixup") or search.get("cutmix")):
        keys.note("mixup_prob", "every batch is mixed")
    if keys.get("mixup_mode", "batch") != "batch":
        keys.note("mixup_mode", "one mixture for a whole batch")
    keys.read.add("mixup_switch_prob")
    if keys.get("model_ema", False):
        search["ema"] = keys.number("model_ema_decay", 0.9999)
    keys.read.add("model_ema_decay")
    if keys.get("use_amp", False):
        search["amp"] = "fp16"
    if keys.get("repeated_aug", False):
        search["repeats"] = 3
    search["workers"] = keys.get("n_worker", 0) if keys.values.get("dataset_name") == "imagenet" else 0
    keys.read.add("n_worker")
    return search
