"""Settings of an experiment; each field is a key of a YAML file and a flag of ``slt find``."""

import dataclasses
import difflib
import inspect
import json
import math
import types
import typing
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any

import torch

from ..._text import printable, shown
from ...edge_popup import SCOPES
from ...freezing import LOCK_SPREADS, SPREADS
from ...nn.state import SCALES
from ...nn.supermask import INITIAL_SCORES
from ...source import WEIGHTS, Freeze, python_number
from ..data import DATASETS, is_function
from ..models import MODELS, largest, scaled_width

ALGORITHMS = ("edge_popup", "bernoulli", "dense")
OPTIMIZERS = ("sgd", "adam", "adamw")
SCORES = (*INITIAL_SCORES, "trunc_normal")
SCHEDULES = ("cosine", "multistep", "constant")
AMP = (None, "bf16", "fp16")
PICKS = ("last", "best")

_LATER = {
    "source": ("lock_spread", "exclude", "layers"),
    "search": ("nesterov", "min_lr", "warmup_lr", "cutmix", "switch", "repeats", "test_each_epoch"),
}
"""Settings that are newer than some checkpoints and tickets, in which they are left out at their defaults."""

_LARGEST = torch.finfo(torch.float32).max  # of a setting that is a float: optimizers convert it
_MAX_KEYS = 1000  # of one mapping in a YAML file; an experiment has about 40 keys


def setting(default: Any, what: str, choices: Collection[Any] = (), least: float = -math.inf, most: float = math.inf):
    """A field with its help text and the values that it accepts."""
    return field(default=default, metadata={"what": what, "choices": tuple(choices), "least": least, "most": most})


class Settings:
    """Base of the dataclasses below.

    A value of the wrong type, outside its choices or out of range raises a ValueError that names it. Numbers become
    Python numbers, as JSON needs them.
    """

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            if f.metadata:
                object.__setattr__(self, f.name, _typed(getattr(self, f.name), f.type, f.name))
                _check(f.name, getattr(self, f.name), **f.metadata)


def _check(name: str, value: Any, what: str, choices: tuple, least: float, most: float) -> None:
    if isinstance(value, int) and most == math.inf and value >= 2**63:  # sizes in PyTorch are int64
        raise ValueError(f"{name}={shown(value)}: expected less than 2**63")
    if choices and value not in choices:
        raise ValueError(f"{name}={shown(value)}: expected one of {', '.join(c or 'none' for c in choices)}")
    if not isinstance(value, int | float) or max(least, -_LARGEST) <= value <= min(most, _LARGEST):
        return
    if most != math.inf:
        expected = f"{least} to {most}"
    elif isinstance(value, float) and not math.isfinite(value):
        expected = "a finite number" + (f" of at least {least}" if least != -math.inf else "")
    elif value > _LARGEST:
        expected = f"at most {_LARGEST:.7g}, the largest float32"
    else:
        expected = f"at least {max(least, -_LARGEST)}"
    raise ValueError(f"{name}={shown(value)}: expected {expected}")


@dataclass(frozen=True)
class SourceNetwork(Settings):
    """The random network in which the ticket is searched; see `convert`."""

    prune: float = setting(
        0.6,
        "fraction of the weights that are pruned: never in the ticket. Sixteenths of pruned and of locked weights are "
        "twice as fast to regenerate",
        least=0,
        most=1,
    )
    lock: float = setting(0.1, "fraction of the weights that are locked: always in the ticket", least=0, most=1)
    spread: str = setting("uniform", "how pruned and locked weights are distributed over layers", SPREADS)
    weight: str = setting("signed_constant", "distribution of the weights", WEIGHTS)
    scale: str | None = setting("dynamic", "factor on the weights", SCALES)
    compact: bool = setting(False, "hold masks as one bit per free weight, for least memory")
    lock_spread: str = setting(
        "frozen",
        "a layer's locked weights: what the spread of the frozen ones leaves, or the spread of the locked fraction",
        LOCK_SPREADS,
    )
    exclude: tuple[str, ...] = setting(
        (), "layers that stay dense and are trained: names of modules, or first and last"
    )

    layers: tuple[tuple[float, ...], ...] = setting(
        (), "fractions [pruned, locked] of each layer, in place of prune, lock and spread; slt import makes them"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        Freeze(self.prune, self.lock)
        for i, layer in enumerate(self.layers):
            if len(layer) != 2 or not all(0 <= part <= 1 for part in layer) or sum(layer) > 1 + 1e-9:
                raise ValueError(f"layers[{i}]={list(layer)}: expected two fractions that add up to at most 1")

    def supermask(self, seed: int) -> dict[str, Any]:
        """Arguments of `convert`; sparsity is None because masks come from a threshold or sampling over the network."""
        freeze: Any = [Freeze.of_layer(*layer) for layer in self.layers] or Freeze(self.prune, self.lock)
        names = ("spread", "lock_spread", "exclude", "weight", "scale", "compact")
        options = {name: getattr(self, name) for name in names}
        return {"freeze": freeze, "sparsity": None, "seed": seed, **options}


@dataclass(frozen=True)
class Search(Settings):
    """How a ticket is searched. Defaults are those of Otsuka et al. (2024), except for epochs and batch size."""

    algorithm: str = setting(
        "edge_popup",
        "edge_popup keeps weights with scores above a threshold; bernoulli samples them; dense trains the weights, "
        "without a source network or masks",
        ALGORITHMS,
    )
    sparsity: float = setting(
        0.7, "fraction of all weights dropped, frozen ones included; for bernoulli, the initial one", least=0, most=1
    )
    scope: str = setting("global", "edge_popup: one threshold for all layers, or one per layer", SCOPES)
    scores: str = setting("uniform", "edge_popup: initial scores; see SupermaskLayer.reset_scores", SCORES)
    epochs: int = setting(16, "passes over the training part", least=1)
    batch_size: int = setting(32, "examples per step, over all processes", least=1)
    optimizer: str = setting("sgd", "optimizer of the scores, and of dense parameters", OPTIMIZERS)
    lr: float = setting(0.1, "highest learning rate", least=0)
    momentum: float = setting(0.9, "sgd: momentum", least=0)
    nesterov: bool = setting(False, "sgd: Nesterov's momentum")
    weight_decay: float = setting(1e-4, "weight decay of the scores", least=0)
    schedule: str = setting("cosine", "how the learning rate changes from epoch to epoch", SCHEDULES)
    min_lr: float = setting(0.0, "cosine: learning rate at its end", least=0)
    warmup_epochs: int = setting(0, "epochs of linear warmup before the schedule", least=0)
    warmup_lr: float = setting(0.0, "learning rate of the first warmup epoch; 0 for lr / (warmup_epochs + 1)", least=0)
    milestones: tuple[int, ...] = setting((), "multistep: epochs after which the learning rate falls")
    gamma: float = setting(0.1, "multistep: factor on the learning rate at a milestone", least=0)
    label_smoothing: float = setting(
        0.0, "fraction of a target that is spread evenly over all classes", least=0, most=1
    )
    mixup: float = setting(0.0, "alpha of the Beta distribution that mixes pairs of images; 0 for no mixup", least=0)
    cutmix: float = setting(
        0.0, "alpha of the Beta distribution of the area that is pasted from another image; 0 for no cutmix", least=0
    )
    switch: float = setting(0.5, "with mixup and cutmix: probability of cutmix in a step", least=0, most=1)
    repeats: int = setting(1, "differently augmented versions of an example in an epoch, for fewer examples", least=1)
    clip: float = setting(0.0, "largest norm of the gradient; 0 for no clipping", least=0)
    amp: str | None = setting(None, "dtype of autocast; fp16 uses loss scaling", AMP)
    ema: float = setting(
        0.0, "decay of a moving average of the scores, which is evaluated in their place; 0 for none", least=0, most=1
    )
    pick: str = setting("last", "epoch of the ticket: the last, or the best on validation", PICKS)
    test_each_epoch: bool = setting(False, "also test after each epoch, for the log; the ticket is not picked by it")
    workers: int = setting(0, "processes that read examples from files", least=0, most=1024)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ema == 1:
            raise ValueError("ema=1: expected less, since such an average never moves")
        if self.nesterov and (self.optimizer != "sgd" or self.momentum == 0):
            raise ValueError(f"nesterov=True: expected sgd with momentum, got {self.optimizer}, {self.momentum}")
        for name in ("min_lr", "warmup_lr"):
            if getattr(self, name) > self.lr:
                raise ValueError(f"{name}={getattr(self, name)}: expected at most lr={self.lr}")
        if self.schedule == "multistep" and self.gamma > 1:
            try:
                highest = self.rate(self.epochs - 1)
            except OverflowError:
                highest = math.inf
            if highest > _LARGEST:
                most = f"expected a learning rate of at most {_LARGEST:.7g} after all milestones"
                raise ValueError(f"gamma={self.gamma}: {most}")

    def rate(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 0."""
        if epoch < self.warmup_epochs:
            if self.warmup_lr:
                return self.warmup_lr + (self.lr - self.warmup_lr) * epoch / self.warmup_epochs
            return self.lr * (epoch + 1) / (self.warmup_epochs + 1)
        done = epoch - self.warmup_epochs
        if self.schedule == "cosine":
            fall = (1 + math.cos(math.pi * done / (self.epochs - self.warmup_epochs))) / 2
            return self.min_lr + (self.lr - self.min_lr) * fall if self.min_lr else self.lr * fall
        if self.schedule == "multistep":
            return self.lr * self.gamma ** sum(done >= milestone for milestone in self.milestones)
        return self.lr


@dataclass(frozen=True)
class Experiment(Settings):
    """A network, a data set, a source and a search.

    Args:
        seed: for the network, the split of the data, and everything that is sampled.
        model: ``{"name": ..., **options}``, arguments of `models.build`; or the name alone. A ``width`` that is a float
            becomes the integer that it stands for.
        data: ``{"name": ..., **options}``, arguments of `data.load`; or the name alone. The options of a function
            ``package.module:function`` are checked when it is called.
        source, search: see `SourceNetwork` and `Search`.
    """

    seed: int = setting(0, "for the network, the split and the order of examples", least=0, most=2**64 - 1)
    model: dict[str, Any] = field(default_factory=lambda: {"name": "convnet"})
    data: dict[str, Any] = field(default_factory=lambda: {"name": "digits"})
    source: SourceNetwork = field(default_factory=SourceNetwork)
    search: Search = field(default_factory=Search)

    def __post_init__(self) -> None:
        super().__post_init__()
        builders = {name: architecture.builder for name, architecture in MODELS.items()}
        object.__setattr__(self, "model", _options("model", self.model, builders))
        object.__setattr__(self, "data", _options("data", self.data, DATASETS))

    @property
    def network(self) -> dict[str, Any]:
        """The settings with which a ticket's network can be rebuilt and tested."""
        return {name: value for name, value in self._without_later().items() if name != "search"}

    @property
    def identity(self) -> dict[str, Any]:
        """All settings that influence the result: all except ``workers``."""
        values = self._without_later()
        del values["search"]["workers"]
        return values

    def _without_later(self) -> dict[str, Any]:
        values, defaults = self.to_dict(), type(self)().to_dict()
        for section, names in _LATER.items():
            for name in names:
                if values[section][name] == defaults[section][name]:
                    del values[section][name]
        return values

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON and YAML; the inverse of `from_dict`."""
        return _plain(dataclasses.asdict(self))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Experiment":
        """An experiment from plain values; missing keys have their defaults.

        Raises:
            ValueError: an unknown key (the error suggests a similar one), or a value of the wrong type or out of range.
        """
        return _parse(cls, values, "")

    @classmethod
    def load(cls, path: str | Path) -> "Experiment":
        """An experiment from a YAML file.

        Raises:
            ValueError: as `from_dict`, or a file that is not text or not YAML, has a key twice or is empty.
            FileNotFoundError: no such file.
            ModuleNotFoundError: PyYAML is missing (it comes with the ``demo`` extra).
        """
        try:
            values = cls.read_values(path)
            if values is None:  # perhaps cut off; the defaults are a whole experiment
                raise ValueError("there is no setting in it: write {} for the defaults")
            return cls.from_dict(values)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def to_yaml(self) -> str:
        """YAML that `load` reads, with the values that differ from the defaults.

        Raises:
            ModuleNotFoundError: PyYAML is missing (it comes with the ``demo`` extra).
        """
        values, defaults = self.to_dict(), type(self)().to_dict()
        for section in ("source", "search"):
            changed = {name: v for name, v in values[section].items() if v != defaults[section][name]}
            values[section] = {name: "none" if v is None else v for name, v in changed.items()}
        return _yaml().safe_dump(values, sort_keys=False, default_flow_style=None, width=110)

    @classmethod
    def read_values(cls, path: str | Path) -> Any:
        """The content of a YAML file; ValueError, without the file's name, for a file that is not YAML."""
        path = Path(path)
        if path.exists() and not (path.is_file() or path.is_dir()):  # a device may have no end
            raise ValueError("expected a file, not a device or a pipe")
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise ValueError("not a text file") from None
        return cls.read_value(text)

    @staticmethod
    def read_value(text: str) -> Any:
        """A value from YAML text; ValueError for other text."""
        yaml = _yaml()

        class Loader(yaml.SafeLoader):
            def construct_mapping(self, node, deep=False):
                keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
                for key, times in keys.most_common(1):
                    if times > 1:  # YAML forbids it; PyYAML would use the last
                        raise _NotTakenError(f"{printable(key[:100])}: given twice")
                return super().construct_mapping(node, deep)

            def flatten_mapping(self, node):
                super().flatten_mapping(node)
                if len(node.value) > _MAX_KEYS:  # each merge of a merge doubles the keys
                    raise _NotTakenError(f"expected at most {_MAX_KEYS} keys, including merged ones")

        try:
            return yaml.load(text, Loader)
        except _NotTakenError:
            raise
        except RecursionError:
            raise ValueError("not YAML: nested too deeply") from None
        except Exception as error:  # of many types: PyYAML converts the value of a tag before it checks it
            raise ValueError(f"not YAML: {' '.join(str(error).split())[:400]}") from None

    def override(self, changes: Mapping[str, Any]) -> "Experiment":
        """This experiment with some values changed; keys are paths, as in ``{"search.lr": 0.2, "model.width": 8}``.

        The order of the keys does not matter: a section is replaced before its keys are changed.
        """
        values = self.to_dict()
        for path, value in sorted(changes.items(), key=lambda change: "." in change[0]):
            section, _, name = path.rpartition(".")
            if section and not isinstance(values.get(section), dict):
                if section in changes:
                    raise ValueError(f"{section}={shown(values[section])}: expected keys and values")
                raise ValueError(f"{path}: unknown{_nearest(section, values)}")
            if path in ("model", "data") and isinstance(value, str):
                value = values[path] if value == values[path]["name"] else {"name": value}  # options belong to a name
            (values[section] if section else values)[name] = dict(value) if isinstance(value, dict) else value
        return type(self).from_dict(values)


class _NotTakenError(ValueError):
    """YAML that is refused, with a message that needs no prefix."""


# From plain values to dataclasses

_WORDS = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "text",
    tuple: "a list",
    dict: "a name, or keys and values",
}


def _parse(kind: type, values: Any, where: str) -> Any:
    if not isinstance(values, Mapping):
        raise ValueError(f"{where or 'experiment'}={shown(values)}: expected keys and values")
    hints = typing.get_type_hints(kind)
    for key in values:
        if key not in hints:
            raise ValueError(f"{_join(where, key)}: unknown{_nearest(key, hints)}")
    return kind(**{key: _typed(value, hints[key], _join(where, key)) for key, value in values.items()})


def _options(section: str, values: Mapping[str, Any] | str, known: Mapping[str, Callable]) -> dict[str, Any]:
    """Name and options of a network or a data set, checked against the parameters of its builder."""
    values = {"name": values} if isinstance(values, str) else dict(values)
    name = values.pop("name", None)
    if section == "data" and is_function(name):  # importing its module would run it, and a ticket may name any
        checked = {_join("", key): _writable(value, _join("data", key)) for key, value in values.items()}
        if "path" in values:
            _typed(values["path"], str, "data.path")
        return {"name": name} | checked
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"{section}.name={shown(name)}: unknown{_nearest(name, known)}")
    hints = {n: a.annotation for n, a in inspect.signature(known[name]).parameters.items() if n != "seed"}
    checked = {"name": name}
    for key, value in values.items():
        where = _join(section, key)
        if key not in hints and where != "data.path":  # `data.load` explains a wrong path better
            raise ValueError(f"{where}={shown(value)}: {name} has only {', '.join(['name', *hints])}")
        if section == "model" and key == "width" and isinstance(value, float):
            value = scaled_width(name, value)
        checked[key] = _typed(value, hints.get(key, str), where)
        if hints.get(key) in (int, float):
            _check(where, checked[key], "", (), 1 if hints[key] is int else -math.inf, math.inf)
        if hints.get(key) is int and checked[key] > largest(key):
            raise ValueError(f"{where}={shown(checked[key])}: expected at most {largest(key)}")
    return checked


def _writable(value: Any, where: str) -> Any:
    """A value that a ticket can hold: one that JSON gives back."""
    try:
        value = _plain(value)
        same = json.loads(json.dumps(value)) == value
    except (TypeError, ValueError, RecursionError):
        same = False
    if not same:
        raise ValueError(
            f"{where}={shown(value)}: expected text, numbers, true or false, or lists and mappings of them"
        )
    return value


def _typed(value: Any, hint: Any, where: str) -> Any:
    value = python_number(value)
    if dataclasses.is_dataclass(hint):
        return _parse(hint, value, where)
    if typing.get_origin(hint) is dict:
        value = {"name": value} if isinstance(value, str) else value
        if isinstance(value, Mapping):
            return dict(value)
    elif typing.get_origin(hint) is types.UnionType:  # `str | None`
        kinds = typing.get_args(hint)
        none = value is None or (value == "none" and Path not in kinds)  # a file may have that name
        return None if none else _typed(value, kinds[0], where)
    elif typing.get_origin(hint) is tuple:
        if isinstance(value, list | tuple):
            return tuple(_typed(v, typing.get_args(hint)[0], where) for v in value)
    elif isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    elif hint is float and isinstance(value, Real | str) and not isinstance(value, bool):
        try:
            return float(value)  # YAML reads 1e-4 as text
        except (ValueError, OverflowError):
            pass
    words = _WORDS[typing.get_origin(hint) or hint]
    if typing.get_origin(hint) is tuple:
        words += {int: " of integers", str: " of names", float: " of numbers"}.get(typing.get_args(hint)[0], "")
    raise ValueError(f"{where}={shown(value)}: expected {words}")


def _join(where: str, key: Any) -> str:
    key = printable(key[:100]) if isinstance(key, str) else shown(key)
    return f"{where}.{key}" if where else key


def _nearest(name: Any, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, list(known), 1, 0.5) if isinstance(name, str) else []
    return f"; did you mean {near[0]}?" if near else f"; expected one of {', '.join(known)}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def _yaml():
    try:
        import yaml
    except ModuleNotFoundError:
        raise ModuleNotFoundError('configurations are YAML: pip install "slt_kernels[demo]"') from None
    return yaml
