"""Functions of a model's supermask layers."""

from torch import nn

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
