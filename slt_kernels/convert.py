"""convert: supermask layers in place of every ``nn.Linear``, ``nn.Conv2d`` and ``nn.Embedding`` of a model."""

import logging
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations

from .freezing import spread_freeze
from .nn import SupermaskConv2d, SupermaskEmbedding, SupermaskLayer, SupermaskLinear
from .source import DENSE, Freeze

_log = logging.getLogger(__name__)
_REPLACED = (nn.Linear, nn.Conv2d, nn.Embedding)
_LAZY = (nn.LazyLinear, nn.LazyConv2d)  # the two that become one of those
_NAMED = 3  # of the dense parameters, in a summary
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
    """One supermask layer's name, weight shape, and counts of weights."""

    name: str
    shape: tuple[int, ...]
    weights: int
    pruned: int
    free: int
    locked: int


@dataclass(frozen=True)
class Summary:
    """The supermask layers of a model, and the sizes of its other parameters; ``str()`` of it is a table."""

    layers: tuple[LayerSummary, ...]
    dense: dict[str, int]

    @property
    def weights(self) -> int:
        return sum(layer.weights for layer in self.layers)

    @property
    def free_bits(self) -> int:
        return sum(layer.free for layer in self.layers)

    def __str__(self) -> str:
        rows = [("layer", "shape", "weights", "pruned", "free", "locked")]
        rows += [
            (s.name, "x".join(map(str, s.shape)), *(f"{n:,}" for n in (s.weights, s.pruned, s.free, s.locked)))
            for s in self.layers
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
            for row in rows
        ]
        size = f"{self.free_bits / 8e6:.3f} MB of mask"
        lines.append(f"{len(self.layers)} layers, {self.weights:,} weights, {self.free_bits:,} free bits ({size})")
        if self.dense:
            names = ", ".join(list(self.dense)[:_NAMED]) + (", ..." if len(self.dense) > _NAMED else "")
            lines.append(f"dense parameters: {sum(self.dense.values()):,} ({names})")
        return "\n".join(lines)


def summary(model: nn.Module) -> Summary:
    """What the supermask layers of a model are: names, shapes, and how many weights are pruned, free and locked.

    And what of it is none, and so stays dense: every parameter but scores, by name (biases among them).
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, SupermaskLayer)}
    scores = {id(m.scores) for m in layers.values()}
    return Summary(
        tuple(LayerSummary(name, m.weight_shape, m.total, m.pruned, m.free, m.locked) for name, m in layers.items()),
        {name: p.numel() for name, p in model.named_parameters() if id(p) not in scores and not is_lazy(p)},
    )


def convert(
    model: nn.Module,
    freeze: Freeze | Sequence[Freeze] = DENSE,
    sparsity: float | None = 0.5,
    *,
    spread: str = "uniform",
    weight: str = "signed_constant",
    scale: str | None = None,
    gain: float = math.sqrt(2),
    seed: int = 0,
    compact: bool = False,
    exclude: Collection[str] = (),
) -> nn.Module:
    """Replaces every ``nn.Linear``, ``nn.Conv2d`` and ``nn.Embedding`` of a model, in place, and returns the model.

    Layers are numbered in the order of ``model.modules()``, excluded ones left out: from 0, or on from the highest
    number of the supermask layers that the model has already. A module that stands in two places is replaced once, by
    one layer. Each new layer takes over the bias (the very parameter), device,
    training mode and hooks of the old one; its trained weight is dropped, and two modules that shared one (an embedding
    and the output layer of a language model) have one each. Subclasses of the three are left alone, as are weights
    that belong to another module (``nn.MultiheadAttention``). What was done is logged (``logging``, level
    INFO); `summary` gives it as data.

    Args:
        model: any module; if it is itself one of the three, its replacement is returned.
        freeze: fractions of all the converted weights together, shared out by ``spread``; or one `Freeze` a layer.
        sparsity: of each layer used alone, see `SupermaskLinear`. None where an `EdgePopup` with the global scope will
            make the masks: a spread may prune more than ``sparsity`` in some layers.
        spread: "uniform" (default), "erk", "epl" or "igq": see `freezing`.
        weight, scale, gain, seed, compact: as `SupermaskLinear`'s; embeddings have no gain, but the std 1.
        exclude: names as in ``model.named_modules()``; each leaves out that module and all inside it, in every place
            where they stand.

    Raises:
        TypeError: a model that is no module; a ``freeze`` that is no `Freeze` and no list of them; an ``exclude`` that
            is a string, and no collection of names.
        ValueError: a name in ``exclude`` that no module has; nothing to convert; weights that are parametrized, or
            lazy and not yet made; a list of `Freeze` of another length; or a layer's own argument out of its range.

    Where it raises, the model is unchanged.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a module, got {type(model).__name__}")
    if isinstance(exclude, str):
        raise TypeError(f"exclude={exclude!r}: expected a collection of names, such as [{exclude!r}]")
    modules = dict(model.named_modules(remove_duplicate=False))
    unknown = sorted(set(exclude) - modules.keys())
    if unknown:
        raise ValueError(f"exclude={unknown}: expected names of modules of the model")
    left_out = {id(m) for name in exclude for m in modules[name].modules()}

    def excluded(name: str) -> bool:
        return id(modules[name]) in left_out

    for name, m in modules.items():
        if isinstance(m, _LAZY) and m.has_uninitialized_params() and not excluded(name):
            raise ValueError(f"{name}: {type(m).__name__} has no weight yet: run a forward first, or exclude it")
    places = {n: m for n, m in modules.items() if type_before_parametrizations(m) in _REPLACED and not excluded(n)}
    originals = list({id(m): m for m in places.values()}.values())
    if not originals:
        raise ValueError("model: expected at least one nn.Linear, nn.Conv2d or nn.Embedding to convert")
    for name, m in modules.items():
        if isinstance(m, _REPLACED) and name not in places:
            _log.info("left alone: %s (%s)", name, "excluded" if excluded(name) else type(m).__name__)
    for name, m in places.items():
        if "weight" not in m._parameters or is_parametrized(m):
            raise ValueError(f"{name}: its weight or bias is computed from others: remove the parametrization first")

    shapes = [tuple(m.weight.shape) for m in originals]
    if not isinstance(freeze, Freeze | Sequence) or isinstance(freeze, str):
        raise TypeError(f"freeze={freeze!r}: expected a Freeze(prune, lock), or a list of them, one a layer")
    freezes = spread_freeze(freeze, shapes, spread) if isinstance(freeze, Freeze) else list(freeze)
    if len(freezes) != len(originals):
        raise ValueError(f"freeze: {len(freezes)} given, expected one for each of {len(originals)} layers")

    options = {"sparsity": sparsity, "weight": weight, "scale": scale, "gain": gain, "seed": seed, "compact": compact}
    first = 1 + max((m.source.layer for m in modules.values() if isinstance(m, SupermaskLayer)), default=-1)
    names = {id(m): name for name, m in reversed(places.items())}  # of several places the first
    replacements = {}
    for number, (old, f) in enumerate(zip(originals, freezes, strict=True), first):
        try:
            replacements[id(old)] = _replacement(old, freeze=f, layer=number, **options)
        except ValueError as error:
            raise ValueError(f"{names[id(old)] or 'model'}: {error}") from None
    for name, old in places.items():
        if name:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, replacements[id(old)])
    for m in modules.values():
        _disable_fused_path(m)
    converted = replacements.get(id(model), model)
    _log.info("converted:\n%s", summary(converted))
    return converted


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
    for hooks in _HOOKS:  # the very dicts, so that the handles that the caller holds still remove them
        setattr(new, hooks, getattr(old, hooks))
    return new


def _disable_fused_path(module: nn.Module) -> None:
    """PyTorch's transformer encoder has an inference path that reads the weights of its Linears: not here."""
    if isinstance(module, nn.TransformerEncoderLayer):
        module.activation_relu_or_gelu = 0
    elif isinstance(module, nn.TransformerEncoder):
        module.use_nested_tensor = False
