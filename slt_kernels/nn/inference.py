"""How the products of a model's layers run in inference."""

from torch import nn

from .. import ops
from .linear import SupermaskLinear
from .network import supermask_layers


def prepare_inference(model: nn.Module, *, signs: str = "generated", activations: str | None = None) -> nn.Module:
    """Puts a model into evaluation and chooses how the products of its supermask layers run. Gives it back.

    Args:
        signs: "generated" (default): a product makes the signs of its weights from the seed. "stored": every
            `SupermaskLinear` holds its sign words, one more bit per weight, until it trains (`store_signs`). Outputs
            keep their bits; on a CPU with AVX-512 VNNI a batch of one takes half of the time with int8 activations, two
            thirds without, if the words are in the cache. Other layers generate as before.
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
