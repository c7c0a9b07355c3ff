"""A layer's ``weight``, for code that expects one: shape, dtype and device are free, values are generated."""

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_map


class Layer(Protocol):
    """What a weight needs of its layer (`SupermaskLayer`)."""

    dtype: torch.dtype
    mask_words: Tensor
    weight_shape: tuple[int, ...]

    def dense_weight(self) -> Tensor:
        """The values."""

    def learned_weight(self) -> Tensor:
        """The values, with a gradient for the scores."""


_FREE = {
    *(getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "ndim", "layout", "requires_grad")),
    *(getattr(Tensor, name).__get__ for name in ("is_leaf", "grad", "grad_fn", "is_meta", "is_cuda", "is_cpu")),
    *(getattr(Tensor, name).__get__ for name in ("is_sparse", "is_quantized", "is_nested", "itemsize", "nbytes")),
    *(getattr(Tensor, name) for name in ("size", "dim", "numel", "nelement", "element_size", "ndimension", "__len__")),
    *(getattr(Tensor, name) for name in ("is_floating_point", "is_complex", "is_inference", "__hash__")),
    torch.is_floating_point,
    torch.is_complex,
    torch.numel,
}
"""Functions that need no values."""

_READS = {"__int__", "__index__", "__invert__", "__iter__", "__init__", "__init_subclass__"}


def _is_in_place(name: str) -> bool:
    """Whether a function of this name writes; those in `_READS` begin as in-place operators do."""
    return (name.endswith("_") and not name.endswith("__")) or (name.startswith("__i") and name not in _READS)


_WRITES = {
    *(getattr(Tensor, name).__set__ for name in ("data", "grad", "requires_grad")),
    *(getattr(Tensor, name) for name in dir(Tensor) if _is_in_place(name)),
    Tensor.__setitem__,
}

_DATA = Tensor.data.__get__

_ADDRESSES = {getattr(Tensor, name) for name in dir(Tensor) if name.endswith("data_ptr")}

_LEAVES_TORCH = {Tensor.numpy, Tensor.__array__}  # PyTorch refuses these for tensors with a gradient


class GeneratedWeight(Tensor):
    """The weight of a supermask layer, read-only: any operation on it takes the values of that moment.

    Values are those of `SupermaskLayer.dense_weight`, in this tensor's dtype. Where gradients are recorded, they have
    that of the scores, so code that multiplies by the weight itself trains them too. It counts as a
    ``torch.nn.Parameter`` where that is asked, but is not one of the module's parameters.

    Raises:
        RuntimeError: an operation that would write to it, or a request for its address.
    """

    _is_param = True  # isinstance(weight, nn.Parameter) is True
    _is_hf_initialized = True  # transformers' own initialization leaves it alone
    _layer: Layer

    @staticmethod
    def __new__(cls, layer: Layer) -> "GeneratedWeight":
        # One element, expanded. It is NaN, so that code that bypasses __torch_function__ does not use it unnoticed.
        one = torch.full((), torch.nan, dtype=layer.dtype, device=layer.mask_words.device)
        weight = torch.Tensor._make_subclass(cls, one.expand(layer.weight_shape))
        weight._layer = layer
        return weight

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            if func in _FREE:
                return func(*args, **kwargs)
            if not torch.compiler.is_compiling() and func == _DATA:
                return DetachedWeight(args[0]._layer)
            if func in _ADDRESSES:
                raise RuntimeError("weight: has no address, because its values are generated; use dense_weight()")
            in_place = func in _WRITES
            if not torch.compiler.is_compiling():  # which does not read names
                in_place = in_place or _is_in_place(getattr(func, "__name__", ""))
            first = args[0] if args else next(iter(kwargs.values()), None)
            for written in (first if in_place else None, kwargs.get("out")):
                if isinstance(written, cls):
                    raise RuntimeError(
                        f"weight: read-only: a {type(written._layer).__name__}'s weight is generated from its seed, "
                        "and only its mask is learned"
                    )
            values = _values if func in _LEAVES_TORCH or not torch.is_grad_enabled() else _learned_values
            return func(*tree_map(values, args), **tree_map(values, kwargs))

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"GeneratedWeight(shape={list(self.shape)}, dtype={self.dtype}, device='{self.device}')"

    def __deepcopy__(self, memo: dict) -> Tensor:
        return _values(self)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _values(self).__reduce_ex__(protocol)


class DetachedWeight(GeneratedWeight):
    """``weight.data``: read-only too, so that no write to it is lost. Its values have no gradient."""


def _values(value: Any) -> Any:
    if not isinstance(value, GeneratedWeight):
        return value
    return value._layer.dense_weight().to(_dtype(value))


def _learned_values(value: Any) -> Any:
    if not isinstance(value, GeneratedWeight) or isinstance(value, DetachedWeight):
        return _values(value)
    return value._layer.learned_weight().to(_dtype(value))


def _dtype(weight: GeneratedWeight) -> torch.dtype:
    with torch._C.DisableTorchFunctionSubclass():
        return weight.dtype
