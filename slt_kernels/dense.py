"""`to_dense`: a network with supermask layers as one of PyTorch's own layers."""

from collections.abc import Callable

from torch import nn

from .nn import CompositeLayer, SupermaskLayer
from .nn.composite import take_hooks, with_dense_layers
from .nn.network import supermask_layers

FINISHERS: list[Callable[[nn.Module], None]] = []  # called with each dense copy: see `huggingface`


def to_dense(model: nn.Module) -> nn.Module:
    """A copy of a model with PyTorch's own layers in place of its supermask layers.

    A layer's weight is ``scale * mask * v``, rounded to the layer's dtype, so the copy gives the same outputs up to the
    rounding of its products. Its weights are plain parameters, which train. Biases and other tensors are copies, hooks
    are the same functions. `SupermaskExperts`, for which PyTorch has no layer, keep their type, with ``nn.Linear``
    inside; a Hugging Face ``Conv1D`` or torch-geometric ``Linear`` that was converted is a ``nn.Linear``. The model
    itself is unchanged.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: it has no supermask layer, or one is sharded over processes.
        RuntimeError: a layer is uninitialized after ``to_empty``.

    Example::

        plain = to_dense(model)
        torch.onnx.export(plain, (x,), "net.onnx")
    """
    supermask_layers(model)  # which raises if there is none
    if isinstance(model, SupermaskLayer | CompositeLayer):
        return take_hooks(model.to_dense(), model, copied=True)
    dense = with_dense_layers(model)
    for finish in FINISHERS:
        finish(dense)
    return dense
