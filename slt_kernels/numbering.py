"""Layer numbers. Layers with the same seed and number have the same random weights and initial scores."""

import warnings

import torch
from torch import nn

from . import bits
from ._text import some_of
from .nn import SupermaskLayer, sharded_scores
from .nn.network import layers_to_search


def number_layers(model: nn.Module) -> nn.Module:
    """Numbers the supermask layers of a model 0, 1, 2, ... in the order of ``model.modules()``; returns the model.

    For networks built by hand, where ``layer=`` is 0 by default. `convert` numbers its layers itself. Call it before
    the search, and before making an optimizer, an `EdgePopup` or `BernoulliMasks`.

    A layer whose number changes gets new weights, frozen pattern, counts, ``source_id``, ``scores`` (a new parameter),
    mask and ``weight_scale``; trained scores are lost. Its bias, seed and hooks stay. A layer whose number is right
    stays unchanged, so a second call changes nothing. After ``to_empty``, a layer stays uninitialized until
    ``reset_parameters``.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: there is no supermask layer, or one has no scores or is sharded over processes. The model is
            unchanged.
    """
    layers = layers_to_search(model)
    if any(layer.group is not None or sharded_scores.is_dtensor(layer.scores) for layer in layers):
        raise ValueError("model: its scores are sharded over processes; number the layers before sharding them")
    for number, layer in enumerate(layers):
        if layer.whole.layer != number:
            _renumber(layer, number)
    return model


@torch.no_grad()
def _renumber(layer: SupermaskLayer, number: int) -> None:
    initialized = layer.is_initialized()
    layer.source = layer.whole = layer.whole._replace(layer=number)
    layer.pruned, layer.free, layer.locked = layer.source.count_frozen()
    layer.scores = nn.Parameter(layer.scores.new_empty(layer.free), layer.scores.requires_grad)
    if layer.compact:
        layer.mask_words = layer.mask_words.new_empty(bits.words_for(layer.free))
    if initialized:
        layer._write_identity()
        layer.reset_scores()
        layer.update_mask()


def warn_of_equal_layers(model: nn.Module) -> None:
    """Warns if supermask layers of a model have the same seed and layer number.

    Such layers draw the same random numbers for weights, frozen pattern and initial scores, even with other shapes.
    """
    named: dict[tuple[int, int], list[str]] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, SupermaskLayer):
            named.setdefault((layer.whole.seed, layer.whole.layer), []).append(name)
    equal = {key: names for key, names in named.items() if len(names) > 1}
    if not equal:
        return
    (seed, number), names = next(iter(equal.items()))
    others = f", and {len(equal) - 1} more such sets" if len(equal) > 1 else ""
    warnings.warn(
        f"{len(names)} layers ({some_of(names)}) have seed={seed % 2**64} and layer={number}{others}: "
        "layers with the same seed and number have the same random weights and scores; give each its own layer=, or "
        "call slt_kernels.number_layers(model) before the search",
        stacklevel=3,
    )
