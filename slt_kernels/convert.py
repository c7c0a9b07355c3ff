"""`convert` replaces the layers of a model by supermask layers; `summary` describes the result."""

import logging
import math
import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized, type_before_parametrizations

from .freezing import spread_freeze
from .nn import SupermaskConv2d, SupermaskEmbedding, SupermaskLayer, SupermaskLinear
from .numbering import warn_of_equal_layers
from .source import DENSE, Freeze

_log = logging.getLogger(__name__)
_REPLACED = (nn.Linear, nn.Conv2d, nn.Embedding)
_LAZY = (nn.LazyLinear, nn.LazyConv2d)  # become one of _REPLACED in their first forward
_LAZY_WEIGHTS = (nn.LazyLinear, nn.LazyConv1d, nn.LazyConv2d, nn.LazyConv3d)
_LAZY_WEIGHTS += (nn.LazyConvTranspose1d, nn.LazyConvTranspose2d, nn.LazyConvTranspose3d)
_NORMS = (nn.LayerNorm, nn.RMSNorm)  # their scale and bias may have several dimensions
_NAMED = 3  # most parameters that a summary, a warning or an error names
_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
)


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
            lines.append(f"dense parameters: {sum(self.dense.values()):,} ({_names(list(self.dense))})")
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
    seen = {id(m) for m in replaced}
    for prefix, m in model.named_modules():
        if id(m) in seen or isinstance(m, (SupermaskLayer, *_NORMS)):
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
        parts.append(f"{modules} {kind} ({sum(d.weights for d in those):,} weights: {_names([d.name for d in those])})")
    return ", ".join(parts)


def _names(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")


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
    exclude: Collection[str] = (),
    strict: bool = False,
) -> nn.Module:
    """Replaces every ``nn.Linear``, ``nn.Conv2d`` and ``nn.Embedding`` of a model, in place, and returns the model.

    Each new layer takes over the bias (the same parameter), device, training mode and hooks of the old one. The trained
    weight is dropped. A module that occurs in two places is replaced by one layer. Two modules that share one weight
    (such as an embedding and the output layer of a language model) get separate random weights and masks, with a
    warning. Layers are numbered in the order of ``model.modules()``, from 0 or from the number after the highest one in
    the model.

    These stay as they are, and are not numbered: modules in ``exclude``; modules whose weight has
    ``requires_grad=False``, such as fixed sinusoids (to convert a frozen model, call ``model.requires_grad_(True)``
    first); subclasses of the three; other modules, such as ``nn.MultiheadAttention``.

    Dense weights are all other parameters of two dimensions or more, including those of 1D and 3D convolutions,
    recurrent layers, ``nn.Bilinear``, fused experts and single ``nn.Parameter``s. Biases and the scales of norms do not
    count. A dense weight that trains is not part of the lottery ticket, so one warning gives types, counts and names.

    The conversion is logged (``logging``, level INFO). `summary` gives the result as data.

    Args:
        model: any module; if it is itself one of the three, its replacement is returned.
        freeze: fractions of all converted weights together, divided by ``spread``; or one `Freeze` per layer.
        sparsity: of each layer used alone, see `SupermaskLinear`. Use None if an `EdgePopup` with the global scope
            makes the masks, because a spread may prune more than ``sparsity`` in some layers.
        spread: "uniform" (default), "erk", "epl" or "igq": see `freezing`.
        lock_spread: "frozen" (default) or "locked": see `freezing.LOCK_SPREADS`.
        weight, scale, gain, seed, compact: as in `SupermaskLinear`. Embeddings have no gain; their std is 1.
        exclude: names as in ``model.named_modules()``. Each excludes that module and all inside it, wherever they
            occur. Also names of dense weights, as in ``model.named_parameters()``. There is no warning for either.
        strict: raise an error for dense weights that would train, instead of a warning. Default False.

    Warns:
        UserWarning: dense weights that train, outside ``exclude``; weights that two modules share.

    Raises:
        TypeError: ``model`` is not a module; ``freeze`` is not a `Freeze` or a list of them; ``exclude`` is a string
            instead of a collection of names.
        ValueError: a name in ``exclude`` is not that of a module or a dense weight; there is nothing to convert; a
            weight is parametrized, empty, or lazy and uninitialized; a module has other parameters, buffers or modules,
            which its replacement would lose; a list of `Freeze` has another length; an argument of a layer is out of
            range; or, if ``strict``, dense weights would train.

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

    def left_because(m: nn.Module) -> str:
        """Why a module stays as it is; empty if it is replaced."""
        if id(m) in left_out:
            return "excluded"
        if type_before_parametrizations(m) not in _REPLACED:
            return type(m).__name__
        return "requires_grad=False" if _is_fixed(m) else ""

    for name, m in modules.items():
        if isinstance(m, _LAZY) and m.has_uninitialized_params() and id(m) not in left_out:
            raise ValueError(f"{name}: {type(m).__name__} has no weight yet; run a forward first, or exclude it")
    places = {name: m for name, m in modules.items() if not left_because(m)}
    originals = list({id(m): m for m in places.values()}.values())
    dense = dict(_dense_weights(model, originals))
    unknown = sorted(exclude - modules.keys() - {d.name for d in dense.values()})
    if unknown:
        raise ValueError(f"exclude={unknown}: expected names of modules of the model, or of weights that stay dense")
    if not originals:
        if any(left_because(m) == "requires_grad=False" for m in modules.values()):
            raise ValueError(
                "model: every weight to convert has requires_grad=False, and such weights are not converted; call "
                "model.requires_grad_(True) first to convert them"
            )
        raise ValueError("model: expected at least one nn.Linear, nn.Conv2d or nn.Embedding to convert")
    for name, m in modules.items():
        if isinstance(m, _REPLACED) and name not in places:
            _log.info("not converted: %s (%s)", name, left_because(m))
    for name, m in places.items():
        _check_replaceable(name or "model", m)

    wanted = {p for top in excluded for p in top.parameters()}
    trained = [d for p, d in dense.items() if d.trains and p not in wanted and d.name not in exclude]
    message = f"{sum(d.weights for d in trained):,} dense weights stay in the model and train: {_by_kind(trained)}"
    if trained and strict:
        raise ValueError(f"{message}; expected none (strict=True): exclude them, or set requires_grad=False")

    shapes = [tuple(m.weight.shape) for m in originals]
    if not isinstance(freeze, Freeze | Sequence) or isinstance(freeze, str):
        raise TypeError(f"freeze={freeze!r}: expected a Freeze(prune, lock), or a list of them, one per layer")
    freezes = spread_freeze(freeze, shapes, spread, lock_spread) if isinstance(freeze, Freeze) else list(freeze)
    if len(freezes) != len(originals):
        raise ValueError(f"freeze: {len(freezes)} given, expected one for each of {len(originals)} layers")

    options = {"sparsity": sparsity, "weight": weight, "scale": scale, "gain": gain, "seed": seed, "compact": compact}
    first = 1 + max((m.source.layer for m in modules.values() if isinstance(m, SupermaskLayer)), default=-1)
    names = {id(m): name for name, m in reversed(places.items())}  # the first of several places
    replacements = {}
    for number, (old, f) in enumerate(zip(originals, freezes, strict=True), first):
        try:
            replacements[id(old)] = _replacement(old, freeze=f, layer=number, **options)
        except ValueError as error:
            raise ValueError(f"{names[id(old)] or 'model'}: {error}") from None

    # Before the first change, because a warning filter may raise.
    if trained:
        warnings.warn(f"{message}; to silence this, exclude them or set requires_grad=False", stacklevel=2)
    shared = _shared_weights(model, originals)
    if shared:
        what = "; ".join(" and ".join(group) for group in shared)
        warnings.warn(
            f"weights that modules share are not shared after convert; each layer has its own: {what}", stacklevel=2
        )

    for name, old in places.items():
        if name:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, replacements[id(old)])
    for m in modules.values():
        _disable_fused_path(m)
    converted = replacements.get(id(model), model)
    _log.info("converted:\n%s", _summary(converted))
    return converted


def _is_fixed(m: nn.Module) -> bool:
    """Whether the weight does not train. The weight of a parametrized module is computed from other parameters."""
    if "weight" in m._parameters:
        return not m.weight.requires_grad
    return not any(p.requires_grad for name, p in m.named_parameters() if name != "bias")


def _check_replaceable(name: str, m: nn.Module) -> None:
    """Raises ValueError for a module that a supermask layer cannot replace."""
    if "weight" not in m._parameters or is_parametrized(m):
        raise ValueError(f"{name}: its weight or bias is computed from others; remove the parametrization first")
    if m.weight.numel() == 0:
        raise ValueError(f"{name}: its weight of shape {list(m.weight.shape)} is empty; exclude it")
    extra = sorted((m._parameters.keys() | m._buffers.keys() | m._modules.keys()) - {"weight", "bias"})
    if extra:
        raise ValueError(f"{name}: its replacement would lose what was added to it ({_names(extra)}); exclude it")


def _shared_weights(model: nn.Module, replaced: Collection[nn.Module]) -> list[list[str]]:
    """For each weight of a replaced module that another module holds too, all names of that weight."""
    names: dict[nn.Parameter, list[str]] = {}
    for prefix, m in model.named_modules():
        for name, p in m._parameters.items():
            names.setdefault(p, []).append(f"{prefix}.{name}".lstrip("."))
    weights = dict.fromkeys(m.weight for m in replaced)
    return [names[p] for p in weights if len(names[p]) > 1]


def _replacement(old: nn.Linear | nn.Conv2d | nn.Embedding, *, gain: float, **options) -> SupermaskLayer:
    options |= {"device": old.weight.device, "dtype": old.weight.dtype}
    if isinstance(old, nn.Embedding):
        extras = (old.padding_idx, old.max_norm, old.norm_type, old.scale_grad_by_freq, old.sparse)
        new = SupermaskEmbedding(old.num_embeddings, old.embedding_dim, *extras, **options)
    elif isinstance(old, nn.Linear):
        new = SupermaskLinear(old.in_features, old.out_features, old.bias is not None, gain=gain, **options)
    else:
        geometry = (old.kernel_size, old.stride, old.padding, old.dilation, old.groups, old.bias is not None)
        new = SupermaskConv2d(old.in_channels, old.out_channels, *geometry, old.padding_mode, gain=gain, **options)
    if new.bias is not None:
        new.bias = old.bias
    new.train(old.training)
    for hooks in _HOOKS:  # the same dicts, so that existing handles can still remove hooks
        setattr(new, hooks, getattr(old, hooks))
    return new


def _disable_fused_path(module: nn.Module) -> None:
    """Turns off the inference path of PyTorch's transformer encoder, which reads the weights of its Linears."""
    if isinstance(module, nn.TransformerEncoderLayer):
        module.activation_relu_or_gelu = 0
    elif isinstance(module, nn.TransformerEncoder):
        module.use_nested_tensor = False
