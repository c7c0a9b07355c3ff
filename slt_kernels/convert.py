"""`convert` replaces the layers of a model by supermask layers; `summary` describes the result."""

import logging
import math
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized, type_before_parametrizations

from ._text import some_of
from .conv_geometry import channels_last
from .conversions import conversion_of, full_name, has_conversion, is_subclass_of_converted
from .freezing import spread_freeze
from .nn import CompositeLayer, SupermaskLayer, TiedEmbedding, TiedLinear
from .nn.composite import take_hooks
from .nn.embedding import check_defaults
from .numbering import warn_of_equal_layers
from .source import DENSE, Freeze

_log = logging.getLogger(__name__)
_LAZY_WEIGHTS = (nn.LazyLinear, nn.LazyConv1d, nn.LazyConv2d, nn.LazyConv3d)
_LAZY_WEIGHTS += (nn.LazyConvTranspose1d, nn.LazyConvTranspose2d, nn.LazyConvTranspose3d)
_NORMS = (nn.LayerNorm, nn.RMSNorm)  # their scale and bias may have several dimensions
_NESTED = 3  # containers in containers that are searched for references


@dataclass(frozen=True)
class LayerSummary:
    """Name, weight shape and weight counts of a supermask layer.

    ``prune`` and ``lock`` are realized fractions; a `Freeze` is rounded to steps of 1/256.
    """

    name: str
    shape: tuple[int, ...]
    weights: int
    pruned: int
    free: int
    locked: int

    @property
    def prune(self) -> float:
        return self.pruned / self.weights

    @property
    def lock(self) -> float:
        return self.locked / self.weights


@dataclass(frozen=True)
class DenseSummary:
    """A dense weight: a parameter of two dimensions or more that is not a supermask layer's.

    Biases, and the scale and bias of a norm, do not count. ``kind`` is the type of the module, ``weights`` the size (0
    for an uninitialized lazy parameter), and ``trains`` the ``requires_grad``.
    """

    name: str
    kind: str
    weights: int
    trains: bool


@dataclass(frozen=True)
class Summary:
    """The supermask layers of a model, and its other parameters. Its ``str()`` is a table.

    ``dense`` holds the sizes of all parameters except scores, by name, biases included. ``dense_weights`` describes the
    weights among them. ``prune`` and ``lock`` are the realized fractions of all layers together.
    """

    layers: tuple[LayerSummary, ...]
    dense: dict[str, int]
    dense_weights: tuple[DenseSummary, ...] = ()

    @property
    def weights(self) -> int:
        return sum(layer.weights for layer in self.layers)

    @property
    def free_bits(self) -> int:
        return sum(layer.free for layer in self.layers)

    @property
    def prune(self) -> float:
        return sum(layer.pruned for layer in self.layers) / max(self.weights, 1)

    @property
    def lock(self) -> float:
        return sum(layer.locked for layer in self.layers) / max(self.weights, 1)

    def __str__(self) -> str:
        rows = [("layer", "shape", "weights", "pruned", "free", "locked", "prune", "lock")]
        rows += [
            (
                s.name,
                "x".join(map(str, s.shape)),
                *(f"{n:,}" for n in (s.weights, s.pruned, s.free, s.locked)),
                *(f"{share:.4f}" for share in (s.prune, s.lock)),
            )
            for s in self.layers
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
            for row in rows
        ]
        size = f"{self.free_bits / 8e6:.3f} MB of mask"
        lines.append(f"{len(self.layers)} layers, {self.weights:,} weights, {self.free_bits:,} free bits ({size})")
        lines.append(f"frozen: prune={self.prune:.4f}, lock={self.lock:.4f} of all weights")
        if self.dense:
            lines.append(f"dense parameters: {sum(self.dense.values()):,} ({some_of(list(self.dense))})")
        for what, trains in (("dense weights that train", True), ("dense weights that are fixed", False)):
            found = [d for d in self.dense_weights if d.trains is trains]
            if found:
                lines.append(f"{what}: {_by_kind(found)}")
        return "\n".join(lines)


def summary(model: nn.Module) -> Summary:
    """Describes the supermask layers of a model: names, shapes, and numbers of pruned, free and locked weights.

    Also lists the parameters that stay dense (`Summary`): those that train and those that are fixed
    (``requires_grad=False``).

    Warns:
        UserWarning: two layers have the same seed and layer number (`number_layers`).
    """
    warn_of_equal_layers(model)
    return _summary(model)


def _summary(model: nn.Module) -> Summary:
    layers = {name: m for name, m in model.named_modules() if isinstance(m, SupermaskLayer)}
    scores = {id(m.scores) for m in layers.values()}
    return Summary(
        tuple(LayerSummary(name, m.weight_shape, m.total, m.pruned, m.free, m.locked) for name, m in layers.items()),
        {name: p.numel() for name, p in model.named_parameters() if id(p) not in scores and not is_lazy(p)},
        tuple(found for _, found in _dense_weights(model)),
    )


def _dense_weights(
    model: nn.Module, replaced: Collection[nn.Module] = ()
) -> Iterator[tuple[nn.Parameter, DenseSummary]]:
    """The dense weights of a model, each once, without those of the modules in ``replaced``."""
    seen = {id(m) for top in replaced for m in top.modules()}
    for prefix, m in model.named_modules():
        if id(m) in seen or isinstance(m, (SupermaskLayer, CompositeLayer, *_NORMS)):
            continue
        owner = m
        if isinstance(m, ParametrizationList):  # its parameters make up the weight of another module
            owner = model.get_submodule(prefix.rpartition("parametrizations.")[0].rstrip("."))
        for name, p in m._parameters.items():
            if p is not None and id(p) not in seen and _is_weight(m, name, p):
                seen.add(id(p))
                kind = type_before_parametrizations(owner).__name__
                size = 0 if is_lazy(p) else p.numel()
                yield p, DenseSummary(f"{prefix}.{name}".lstrip("."), kind, size, p.requires_grad)


def _is_weight(module: nn.Module, name: str, p: nn.Parameter) -> bool:
    if is_lazy(p):  # it has no dimensions yet
        return name == "weight" and isinstance(module, _LAZY_WEIGHTS)
    return p.dim() >= 2


def _by_kind(found: Collection[DenseSummary]) -> str:
    """For each type, the numbers of modules and weights, and names: ``1 Conv1d (24 weights: conv.weight)``."""
    kinds: dict[str, list[DenseSummary]] = {}
    for d in found:
        kinds.setdefault(d.kind, []).append(d)
    parts = []
    for kind, those in kinds.items():
        modules = len({d.name.rpartition(".")[0] for d in those})
        parts.append(
            f"{modules} {kind} ({sum(d.weights for d in those):,} weights: {some_of([d.name for d in those])})"
        )
    return ", ".join(parts)


def convert(
    model: nn.Module,
    freeze: Freeze | Sequence[Freeze] = DENSE,
    sparsity: float | None = 0.5,
    *,
    spread: str = "uniform",
    lock_spread: str = "frozen",
    weight: str = "signed_constant",
    scale: str | None = None,
    gain: float = math.sqrt(2),
    seed: int = 0,
    compact: bool = False,
    tie: bool = False,
    types: Collection[type[nn.Module]] | None = None,
    exclude: Collection[str] = (),
    strict: bool = False,
) -> nn.Module:
    """Replaces the layers of a model by supermask layers, in place, and returns the model.

    Replaced are ``nn.Linear``, ``nn.Bilinear``, ``nn.Embedding``, ``nn.EmbeddingBag``, the convolutions and transposed
    convolutions of one to three dimensions, ``nn.MultiheadAttention``, ``nn.RNN``, ``nn.LSTM``, ``nn.GRU`` and
    their cells; ``Conv1D`` and stacked experts of Hugging Face; torch-geometric's ``Linear``; and what
    `register_conversion` adds.

    Each new layer takes over the biases (the same parameters), device, training mode and hooks of the old one. The
    trained weights are dropped. A module that occurs in two places is replaced by one layer. Two modules that share one
    weight (such as an embedding and the output layer of a language model) get separate random weights and masks, with a
    warning; with ``tie=True`` embeddings and Linears go on sharing. Layers are numbered in the order of
    ``model.modules()``, from 0 or from the number after the highest one in the model. A module with several matrices,
    such as attention, is replaced by one with several supermask layers, which are numbered one after another.

    These stay as they are, and are not numbered: modules in ``exclude``; modules whose weights have
    ``requires_grad=False``, such as fixed sinusoids (to convert a frozen model, call ``model.requires_grad_(True)``
    first); subclasses of the types above; other modules.

    Dense weights are all other parameters of two dimensions or more, such as single ``nn.Parameter``s. Biases and the
    scales of norms do not count. A dense weight that trains is not part of the lottery ticket, so one warning gives
    types, counts and names.

    The conversion is logged (``logging``, level INFO). `summary` gives the result as data.

    Args:
        model: any module; if it is itself one that is replaced, its replacement is returned.
        freeze: fractions of all converted weights together, divided by ``spread``; or one `Freeze` per layer.
        sparsity: of each layer used alone, see `SupermaskLinear`. Use None if an `EdgePopup` with the global scope
            makes the masks, because a spread may prune more than ``sparsity`` in some layers.
        spread: "uniform" (default), "erk", "epl" or "igq": see `freezing`.
        lock_spread: "frozen" (default) or "locked": see `freezing.LOCK_SPREADS`.
        weight, scale, gain, seed, compact: as in `SupermaskLinear`. Embeddings have no gain; their std is 1.
        tie: of embeddings and Linears that share a weight, make the first embedding (or the first Linear) a supermask
            layer, and the others a `TiedEmbedding` or `TiedLinear`, which use its weight, mask and scores.
        types: the types of modules to replace, without their subclasses. Default None: all that can be.
        exclude: names as in ``model.named_modules()``. Each excludes that module and all inside it, wherever they
            occur. Also names of dense weights, as in ``model.named_parameters()``. There is no warning for either.
        strict: raise an error for dense weights that would train, instead of a warning. Default False.

    Warns:
        UserWarning: dense weights that train, outside ``exclude``; weights that two modules share; modules that are
            replaced, but stay in use because an attribute that is no submodule keeps them.

    Raises:
        TypeError: ``model`` is not a module; ``freeze`` is not a `Freeze` or a list of them; ``exclude`` is a string
            instead of a collection of names, or ``types`` no collection of types.
        ValueError: a name in ``exclude`` is not that of a module or a dense weight, or that of a part of a module that
            is replaced as a whole; a type in ``types`` has no conversion; there is nothing to convert; a weight is
            parametrized, empty, or lazy and uninitialized; some weights of a module have ``requires_grad=False`` and
            some have not; a module has other parameters, buffers or modules, which its replacement would lose; a list
            of `Freeze` has another length; an argument of a layer is out of range; or, if ``strict``, dense weights
            would train.

    After an error the model is unchanged.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a module, got {type(model).__name__}")
    if isinstance(exclude, str):
        raise TypeError(f"exclude={exclude!r}: expected a collection of names, such as [{exclude!r}]")
    exclude = set(exclude)
    modules = dict(model.named_modules(remove_duplicate=False))
    excluded = [modules[name] for name in exclude if name in modules]
    left_out = {id(m) for top in excluded for m in top.modules()}
    wanted_types = _check_types(types, modules)

    def left_because(m: nn.Module) -> str:
        """Why a module stays as it is; empty if it is replaced."""
        if id(m) in left_out:
            return "excluded"
        if conversion_of(m) is None or not (wanted_types is None or type_before_parametrizations(m) in wanted_types):
            return type(m).__name__
        return "requires_grad=False" if _is_fixed(m) else ""

    for name, m in modules.items():
        if id(m) not in left_out and _is_lazy(m, wanted_types):
            raise ValueError(f"{name}: {type(m).__name__} has no weight yet; run a forward first, or exclude it")
    places, inside = _places(modules, left_because)
    parts = sorted(exclude & inside.keys())
    if parts:
        raise ValueError(
            f"exclude={parts}: {parts[0]} is a part of {inside[parts[0]] or 'the model'}, which is replaced as a "
            "whole; exclude that"
        )
    replaced = list({id(m): m for m in places.values()}.values())
    owners = _owners(replaced) if tie else {}
    originals = [m for m in replaced if id(m) not in owners]
    dense = dict(_dense_weights(model, replaced))
    unknown = sorted(exclude - modules.keys() - {d.name for d in dense.values()})
    if unknown:
        raise ValueError(f"exclude={unknown}: expected names of modules of the model, or of weights that stay dense")
    if not originals:
        if any(left_because(m) == "requires_grad=False" for m in modules.values()):
            raise ValueError(
                "model: every weight to convert has requires_grad=False, and such weights are not converted; call "
                "model.requires_grad_(True) first to convert them"
            )
        raise ValueError(
            "model: expected at least one module to convert, such as nn.Linear, nn.Conv2d or nn.Embedding"
            + (f", of types={_type_names(types)}" if types is not None else "")
        )
    for name, m in modules.items():
        if name not in places and name not in inside and (conversion_of(m) or is_subclass_of_converted(m)):
            _log.info("not converted: %s (%s)", name, left_because(m))
    for name, m in places.items():
        _check_replaceable(name or "model", m)

    wanted = {p for top in excluded for p in top.parameters()}
    trained = [d for p, d in dense.items() if d.trains and p not in wanted and d.name not in exclude]
    message = f"{sum(d.weights for d in trained):,} dense weights stay in the model and train: {_by_kind(trained)}"
    if trained and strict:
        raise ValueError(f"{message}; expected none (strict=True): exclude them, or set requires_grad=False")

    matrices = [conversion_of(m).matrices(m) for m in originals]
    shapes = [shape for its in matrices for _, shape in its]
    if not isinstance(freeze, Freeze | Sequence) or isinstance(freeze, str):
        raise TypeError(f"freeze={freeze!r}: expected a Freeze(prune, lock), or a list of them, one per layer")
    freezes = spread_freeze(freeze, shapes, spread, lock_spread) if isinstance(freeze, Freeze) else list(freeze)
    if len(freezes) != len(shapes):
        raise ValueError(f"freeze: {len(freezes)} given, expected one for each of {len(shapes)} layers")

    options = {"sparsity": sparsity, "weight": weight, "scale": scale, "gain": gain, "seed": seed, "compact": compact}
    first = number = 1 + max((m.source.layer for m in modules.values() if isinstance(m, SupermaskLayer)), default=-1)
    names = {id(m): name or "model" for name, m in reversed(places.items())}  # the first of several places
    replacements = {}
    for old, its in zip(originals, matrices, strict=True):
        its_freezes = freezes[number - first : number - first + len(its)]
        with _errors_name(names[id(old)]):
            replacements[id(old)] = _replacement(old, its_freezes, number, options)
        number += len(its)
    for old in replaced:
        if id(old) in owners:
            with _errors_name(names[id(old)]):
                replacements[id(old)] = _tied(old, replacements[id(owners[id(old)])], gain)

    # Before the first change, because a warning filter may raise.
    if trained:
        how = "exclude them or set requires_grad=False; register_conversion makes more types convertible"
        warnings.warn(f"{message}; to silence this, {how}", stacklevel=2)
    _warn_of_what_stays(_shared_weights(model, originals, owners), _references(modules, names), tie)

    for old in replaced:
        take_hooks(replacements[id(old)], old)
    _put_in_places(modules, places, replacements)
    for m in modules.values():
        _disable_fused_path(m)
    converted = replacements.get(id(model), model)
    _log.info("converted:\n%s", _summary(converted))
    return converted


def _places(
    modules: Mapping[str, nn.Module], left_because: Callable[[nn.Module], str]
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """The modules to replace, by name; and for each module inside one, the name of that one."""
    places: dict[str, nn.Module] = {}
    inside: dict[str, str] = {}
    for name, m in modules.items():  # parents come before what is inside them
        parent = name.rpartition(".")[0]
        if name and (parent in places or parent in inside):
            inside[name] = inside.get(parent, parent)
        elif not left_because(m):
            places[name] = m
    return places, inside


def _warn_of_what_stays(shared: Sequence[Sequence[str]], kept: Sequence[str], tie: bool) -> None:
    """Warns of weights no longer shared (`_shared_weights`), and of replaced modules still in use (`_references`)."""
    if shared:
        what = "; ".join(" and ".join(group) for group in shared)
        hint = "" if tie else " (with tie=True embeddings and Linears go on sharing)"
        warnings.warn(
            f"weights that modules share are not shared after convert; each layer has its own{hint}: {what}",
            stacklevel=3,
        )
    if kept:
        warnings.warn(
            "attributes that are no submodules keep modules that convert replaces, whose trained weights go on being "
            f"used there: {some_of(kept, between='; ')}; use nn.ModuleList or nn.ModuleDict, or set them again",
            stacklevel=3,
        )


def _references(modules: Mapping[str, nn.Module], replaced: Mapping[int, str]) -> list[str]:
    """Attributes that refer to replaced modules other than as submodules: in containers, bound methods and partials.

    Args:
        modules: of the model, by name.
        replaced: names of those that are replaced, by id.

    Returns:
        For each, its name and that of the module: ``blocks (conv1)``.
    """
    own = nn.Module().__dict__.keys()

    def found(value: Any, depth: int) -> str | None:
        if isinstance(value, nn.Module):
            return replaced.get(id(value))
        inside: Any = ()
        if isinstance(value, Mapping):
            inside = value.values()
        elif isinstance(value, list | tuple | set | frozenset):
            inside = value
        elif isinstance(value, partial):
            inside = (value.func, *value.args, *value.keywords.values())
        elif isinstance(value, MethodType):
            inside = (value.__self__,)
        return next((name for v in inside if depth and (name := found(v, depth - 1))), None)

    seen: dict[str, str] = {}
    for name, m in {id(m): (n, m) for n, m in reversed(modules.items())}.values():
        if id(m) not in replaced:
            for key, value in vars(m).items():
                if key not in own and (of := found(value, _NESTED)):
                    seen[f"{name}.{key}".lstrip(".")] = of
    return [f"{name} ({of})" for name, of in seen.items()]


@contextmanager
def _errors_name(name: str) -> Iterator[None]:
    """Puts the name of a module before the message of a ValueError."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _put_in_places(
    modules: Mapping[str, nn.Module], places: Mapping[str, nn.Module], replacements: Mapping[int, nn.Module]
) -> None:
    """Replaces modules by name, all or, if one cannot be set, none."""
    done: list[tuple[nn.Module, str, nn.Module]] = []
    try:
        for name, old in places.items():
            if name:
                parent, _, child = name.rpartition(".")
                done.append((modules[parent], child, old))
                setattr(modules[parent], child, replacements[id(old)])
    except BaseException:
        for parent_module, child, old in done:
            parent_module._modules[child] = old
        raise


def _check_types(
    types: Collection[type[nn.Module]] | None, modules: Mapping[str, nn.Module]
) -> set[type[nn.Module]] | None:
    """The types as a set; TypeError or ValueError unless all are types that can be converted."""
    if types is None:
        return None
    if not isinstance(types, Collection) or not all(isinstance(t, type) and issubclass(t, nn.Module) for t in types):
        raise TypeError(f"types={types!r}: expected a collection of types of modules, such as [nn.Linear]")
    for kind in types:
        found = {name: m for name, m in modules.items() if type_before_parametrizations(m) is kind}
        if has_conversion(kind) or (found and all(conversion_of(m) for m in found.values())):
            continue
        where = f" ({some_of([name or 'the model itself' for name in found])})" if found else ""
        raise ValueError(
            f"types: {full_name(kind)}{where} has no conversion; expected a type that convert knows, or "
            f"register_conversion({kind.__name__}, build) before: a function that makes its replacement"
        )
    return set(types)


def _type_names(types: Collection[type[nn.Module]]) -> str:
    return f"[{', '.join(sorted(t.__name__ for t in types))}]"


def _is_lazy(m: nn.Module, types: set[type[nn.Module]] | None) -> bool:
    """Whether it would be replaced, had a first forward given it its weight."""
    if not any(is_lazy(p) and p.requires_grad for p in m._parameters.values()):
        return False
    becomes = m.cls_to_become if isinstance(m, LazyModuleMixin) else type(m)
    return becomes is not None and has_conversion(becomes) and (types is None or becomes in types)


def _weights(m: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that a replacement does without; fewer if one is computed from others."""
    parameters = dict(m.named_parameters(remove_duplicate=False))
    names = dict.fromkeys(name for name, _ in conversion_of(m).matrices(m))
    return {name: parameters[name] for name in names if name in parameters}


def _is_fixed(m: nn.Module) -> bool:
    """Whether the weights do not train. Those of a parametrized module are computed from other parameters."""
    weights = list(_weights(m).values())
    if is_parametrized(m) or not weights:
        weights = [p for name, p in m.named_parameters() if not name.startswith("bias")]
    return not any(p.requires_grad for p in weights)


def _check_replaceable(name: str, m: nn.Module) -> None:
    """Raises ValueError for a module that its conversion cannot replace."""
    weights = _weights(m)
    computed = any(isinstance(value, Tensor) for part in m.modules() for value in vars(part).values())
    if computed or is_parametrized(m) or weights.keys() != {weight for weight, _ in conversion_of(m).matrices(m)}:
        raise ValueError(f"{name}: its weight or bias is computed from others; remove the parametrization first")
    for weight, p in weights.items():
        if p.numel() == 0:
            raise ValueError(f"{name}: its {weight} of shape {list(p.shape)} is empty; exclude it")
    fixed = [weight for weight, p in weights.items() if not p.requires_grad]
    if fixed:
        raise ValueError(
            f"{name}: some of its weights have requires_grad=False ({some_of(fixed)}) and some have not; expected the "
            "same for all, or exclude it"
        )


def _owners(replaced: Collection[nn.Module]) -> dict[int, nn.Module]:
    """For each module, by id, whose weight stays that of another one: the module that has it."""
    sharing: dict[nn.Parameter, list[nn.Module]] = {}
    for m in replaced:
        if type(m) in (nn.Embedding, nn.Linear):  # a subclass is replaced by what was registered for it
            sharing.setdefault(m.weight, []).append(m)
    owners: dict[int, nn.Module] = {}
    for group in sharing.values():
        owner = next((m for m in group if isinstance(m, nn.Embedding)), group[0])
        owners |= {id(m): owner for m in group if m is not owner}
    return owners


def _tied(old: nn.Module, owner: nn.Module, gain: float) -> nn.Module:
    """A module in the place of ``old`` that uses the weight of ``owner``; errors as `_replacement`'s."""
    if isinstance(old, nn.Embedding):
        check_defaults(old.max_norm, old.sparse)
        new: nn.Module = TiedEmbedding(owner, old.padding_idx, old.scale_grad_by_freq)
    else:
        new = TiedLinear(owner, old.bias, gain)
    _check_nothing_lost(old, new)
    return new.train(old.training)


def _shared_weights(
    model: nn.Module, replaced: Collection[nn.Module], owners: Mapping[int, nn.Module]
) -> list[list[str]]:
    """For each weight of a replaced module that is no longer shared with another one, all names of that weight."""
    names: dict[nn.Parameter, list[str]] = {}
    for prefix, m in model.named_modules():
        if id(m) not in owners:
            for name, p in m._parameters.items():
                names.setdefault(p, []).append(f"{prefix}.{name}".lstrip("."))
    weights = dict.fromkeys(p for m in replaced for p in _weights(m).values())
    return [names[p] for p in weights if len(names[p]) > 1]


def _replacement(old: nn.Module, freezes: list[Freeze], layer: int, options: dict[str, Any]) -> nn.Module:
    """A module in the place of ``old``, which stays as it is.

    Raises:
        ValueError: an argument out of range; a conversion that makes other layers than it has to, or would lose what
            was added to the old module.
    """
    conversion = conversion_of(old)
    placed = next(iter(_weights(old).values()))
    freeze = freezes if len(freezes) > 1 else freezes[0]
    new = conversion.build(old, freeze=freeze, layer=layer, device=placed.device, dtype=placed.dtype, **options)
    if placed.dim() == 4 and channels_last(placed):
        new.to(memory_format=torch.channels_last)
    numbers = [m.source.layer for m in new.modules() if isinstance(m, SupermaskLayer)]
    expected = list(range(layer, layer + len(freezes)))
    if numbers != expected:
        raise ValueError(
            f"its conversion made supermask layers with the numbers {numbers}, expected {expected}: one for each of "
            "its matrices, in order"
        )
    _check_nothing_lost(old, new)
    return new.train(old.training)


def _check_nothing_lost(old: nn.Module, new: nn.Module) -> None:
    """Raises ValueError if ``old`` has what ``new`` has not: parameters besides its weights, buffers, modules, or a
    ``forward`` of its own."""
    weights = _weights(old)
    kept = {id(x) for x in (*new.parameters(), *new.buffers(), *new.modules())}
    emptied = {weight.rpartition(".")[0] for weight in weights}  # modules inside that hold the dropped weights
    parts = [*old.named_parameters(), *old.named_buffers(), *(c for c in old.named_modules() if c[0])]
    lost = sorted(name for name, x in parts if id(x) not in kept and name not in weights and name not in emptied)
    lost += [f"{name}.forward".lstrip(".") for name, m in old.named_modules() if "forward" in vars(m)]
    if lost:
        raise ValueError(f"its replacement would lose what was added to it ({some_of(lost)}); exclude it")


def _disable_fused_path(module: nn.Module) -> None:
    """Turns off the inference path of PyTorch's transformer encoder, which reads the weights of its Linears."""
    if isinstance(module, nn.TransformerEncoderLayer):
        module.activation_relu_or_gelu = 0
    elif isinstance(module, nn.TransformerEncoder):
        module.use_nested_tensor = False
