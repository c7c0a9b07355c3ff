"""Functions of a model's supermask layers."""

from torch import nn

from .. import ops
from .linear import SupermaskLinear
from .supermask import SupermaskLayer


def drop_scores(model: nn.Module) -> nn.Module:
    """Drops the scores of all supermask layers (`SupermaskLayer.drop_scores`), and gives back the model.

    In inference the network then holds one bit per weight, and its other parameters and buffers. On the meta device
    nothing is allocated before a ticket is loaded, which has every parameter and buffer of the ``state_dict``::

        with torch.device("meta"):
            model = drop_scores(network())
        load_ticket("net.slt", model.to_empty(device="cpu"))

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: ``model`` has no supermask layer.
    """
    for layer in supermask_layers(model):
        layer.drop_scores()
    return model


def prepare_inference(model: nn.Module, *, signs: str = "generated", activations: str | None = None) -> nn.Module:
    """Puts a model into evaluation and chooses how the products of its supermask layers run. Gives it back.

    Args:
        signs: "generated" (default): a product makes the signs of its weights from the seed. "stored": every
            `SupermaskLinear` holds its sign words, one more bit per weight, until it trains (`store_signs`). Outputs
            keep their bits; on a CPU with AVX-512 VNNI a batch of one takes about half the time. Other layers generate
            as before.
        activations: None (default), or "int8" for every Linear and convolution: see `SupermaskLinear`.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: it has no supermask layer, or a Linear without signs for "stored"; another ``signs`` or
            ``activations``. Nothing is changed.
    """
    layers = supermask_layers(model)
    if signs not in ("generated", "stored"):
        raise ValueError(f"signs={signs!r}: expected 'generated' or 'stored'")
    ops.check_activations(activations)
    linears = {name: layer for name, layer in model.named_modules() if isinstance(layer, SupermaskLinear)}
    for name, layer in linears.items():
        if signs == "stored" and (reason := layer.why_no_signs()):
            raise ValueError(f"{name or 'model'}: {reason}, for signs='stored'")
    model.eval()
    for layer in layers:
        if layer.takes_int8:
            layer.activations = activations
    for layer in linears.values():
        layer.store_signs(signs == "stored")
    return model


def layers_to_search(model: nn.Module) -> list[SupermaskLayer]:
    """The supermask layers of a model.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: it has no supermask layer, or the scores of one were dropped.
    """
    layers = supermask_layers(model)
    if any(layer.scores is None for layer in layers):
        raise ValueError("model: its scores were dropped; expected supermask layers that have them")
    return layers


def supermask_layers(model: nn.Module) -> list[SupermaskLayer]:
    """The supermask layers of a model.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: it has no supermask layer.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a module, got {type(model).__name__}")
    layers = [m for m in model.modules() if isinstance(m, SupermaskLayer)]
    if not layers:
        raise ValueError("model: expected at least one supermask layer in it")
    return layers
