"""Which modules `convert` replaces, by what, and how users add others."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import type_before_parametrizations

from .nn import (
    SupermaskBilinear,
    SupermaskConv1d,
    SupermaskConv2d,
    SupermaskConv3d,
    SupermaskConvTranspose1d,
    SupermaskConvTranspose2d,
    SupermaskConvTranspose3d,
    SupermaskEmbedding,
    SupermaskEmbeddingBag,
    SupermaskExperts,
    SupermaskGRU,
    SupermaskGRUCell,
    SupermaskLinear,
    SupermaskLSTM,
    SupermaskLSTMCell,
    SupermaskMultiheadAttention,
    SupermaskRNN,
    SupermaskRNNCell,
)

Build = Callable[..., nn.Module]
Matrices = list[tuple[str, tuple[int, ...]]]


def _one_weight(old: nn.Module) -> Matrices:
    return [("weight", tuple(old.weight.shape))]


@dataclass(frozen=True)
class Conversion:
    """How modules of one type are converted; see `register_conversion`."""

    kind: type[nn.Module] | str | Callable[[nn.Module], bool]
    build: Build
    matrices: Callable[[nn.Module], Matrices]

    def takes(self, module: nn.Module) -> bool:
        """Whether it converts this module: one of exactly its type, parametrized or not."""
        kind = type_before_parametrizations(module)
        if isinstance(self.kind, str):
            return full_name(kind) == self.kind
        return kind is self.kind if isinstance(self.kind, type) else bool(self.kind(module))


_conversions: list[Conversion] = []


def register_conversion(
    kind: type[nn.Module] | str | Callable[[nn.Module], bool],
    build: Build,
    matrices: Callable[[nn.Module], Matrices] = _one_weight,
) -> None:
    """Makes `convert` replace modules of one more type. A later registration comes before an earlier one.

    Args:
        kind: the type, without its subclasses; its full name, such as ``"transformers.pytorch_utils.Conv1D"``, which
            imports nothing; or a function that says whether a module is converted this way.
        build: makes the replacement: ``build(old, freeze=, layer=, sparsity=, weight=, scale=, gain=, seed=, compact=,
            device=, dtype=)``. It uses what it keeps of the old module, such as the bias, as the same parameter, and
            leaves the old module as it is. ``freeze`` is a `Freeze`, or a list where ``matrices`` gives several;
            ``layer`` is the number of the first, and the others have the next ones, in the order of ``modules()``.
        matrices: the parameters that the replacement does without, as ``(name, shape)``, in the order of its layer
            numbers: one for each of its supermask layers. A name occurs several times if its parameter holds several
            matrices. Default: ``weight``, one matrix of its shape.

    Raises:
        TypeError: a ``kind`` that is neither a type of modules, nor text, nor a function.

    Example::

        register_conversion(MyLinear, lambda old, **options: SupermaskLinear(old.inputs, old.outputs, False, **options))
    """
    if isinstance(kind, type) and not issubclass(kind, nn.Module):
        raise TypeError(f"kind={kind.__name__}: expected a type of modules")
    if isinstance(kind, nn.Module) or not (isinstance(kind, str) or callable(kind)):
        raise TypeError(f"kind={kind!r}: expected a type of modules, its full name, or a function of a module")
    _conversions.insert(0, Conversion(kind, build, matrices))


def conversion_of(module: nn.Module) -> Conversion | None:
    """The conversion of a module; None if its type has none."""
    return next((c for c in _conversions if c.takes(module)), None)


def has_conversion(kind: type[nn.Module]) -> bool:
    """Whether a conversion is registered for this type itself or for its name."""
    return any(c.kind is kind or c.kind == full_name(kind) for c in _conversions)


def is_subclass_of_converted(module: nn.Module) -> bool:
    """Whether its type is one that is converted, or a subclass of one."""
    return any(isinstance(c.kind, type) and isinstance(module, c.kind) for c in _conversions)


def full_name(kind: type) -> str:
    """A type's name with its module's."""
    return f"{kind.__module__}.{kind.__qualname__}"


# The built-in conversions


def _linear(old: nn.Module, **options: Any) -> nn.Module:
    """Of ``nn.Linear`` and of torch-geometric's own."""
    rows, fan = old.weight.shape
    new = SupermaskLinear(fan, rows, old.bias is not None, **options)
    new.bias = old.bias
    return new


def _transposed_linear(old: nn.Module, **options: Any) -> nn.Module:
    """Of Hugging Face's ``Conv1D``, a Linear whose weight is ``[in_features, out_features]``."""
    new = SupermaskLinear(*old.weight.shape, **options)
    new.bias = old.bias
    return new


def _convolution(new_type: type[nn.Module]) -> Build:
    def build(old: Any, **options: Any) -> nn.Module:
        geometry = (old.kernel_size, old.stride, old.padding, old.dilation, old.groups, old.bias is not None)
        new = new_type(old.in_channels, old.out_channels, *geometry, old.padding_mode, **options)
        new.bias = old.bias
        return new

    return build


def _transposed_convolution(new_type: type[nn.Module]) -> Build:
    def build(old: Any, **options: Any) -> nn.Module:
        geometry = (old.kernel_size, old.stride, old.padding, old.output_padding, old.groups)
        channels = (old.in_channels, old.out_channels)
        new = new_type(*channels, *geometry, old.bias is not None, old.dilation, old.padding_mode, **options)
        new.bias = old.bias
        return new

    return build


def _embedding(old: nn.Embedding, *, gain: float, **options: Any) -> nn.Module:
    extras = (old.padding_idx, old.max_norm, old.norm_type, old.scale_grad_by_freq, old.sparse)
    return SupermaskEmbedding(old.num_embeddings, old.embedding_dim, *extras, **options)


def _embedding_bag(old: nn.EmbeddingBag, *, gain: float, **options: Any) -> nn.Module:
    extras = (old.max_norm, old.norm_type, old.scale_grad_by_freq, old.mode, old.sparse)
    sizes = (old.num_embeddings, old.embedding_dim)
    return SupermaskEmbeddingBag(*sizes, *extras, old.include_last_offset, old.padding_idx, **options)


def _bilinear(old: nn.Bilinear, **options: Any) -> nn.Module:
    sizes = (old.in1_features, old.in2_features, old.out_features)
    new = SupermaskBilinear(*sizes, old.bias is not None, **options)
    new.bias = old.bias
    return new


def _attention(old: nn.MultiheadAttention, **options: Any) -> nn.Module:
    new = SupermaskMultiheadAttention(
        old.embed_dim,
        old.num_heads,
        old.dropout,
        old.in_proj_bias is not None,
        old.bias_k is not None,
        old.add_zero_attn,
        old.kdim,
        old.vdim,
        old.batch_first,
        **options,
    )
    new.in_proj_bias, new.bias_k, new.bias_v = old.in_proj_bias, old.bias_k, old.bias_v
    new.out_proj.bias = old.out_proj.bias
    return new


def _attention_matrices(old: nn.MultiheadAttention) -> Matrices:
    names = ("in_proj_weight",) * 3 if old._qkv_same_embed_dim else ("q_proj_weight", "k_proj_weight", "v_proj_weight")
    inputs = zip(names, (old.embed_dim, old.kdim, old.vdim), strict=True)
    return [*((name, (old.embed_dim, fan)) for name, fan in inputs), ("out_proj.weight", (old.embed_dim,) * 2)]


def _recurrent(new_type: type[nn.Module]) -> Build:
    def build(old: Any, **options: Any) -> nn.Module:
        names = ("num_layers", "bias", "batch_first", "dropout", "bidirectional")
        options |= {name: getattr(old, name) for name in (*names, *_own_options(old))}
        return _with_biases(new_type(old.input_size, old.hidden_size, **options), old)

    return build


def _cell(new_type: type[nn.Module]) -> Build:
    def build(old: Any, **options: Any) -> nn.Module:
        options |= {name: getattr(old, name) for name in ("bias", *_own_options(old))}
        return _with_biases(new_type(old.input_size, old.hidden_size, **options), old)

    return build


def _own_options(old: Any) -> list[str]:
    """Names of the arguments that not all recurrent modules have."""
    if isinstance(old, nn.RNN | nn.RNNCell):
        return ["nonlinearity"]
    return ["proj_size"] if isinstance(old, nn.LSTM) else []


def _with_biases(new: nn.Module, old: nn.Module) -> nn.Module:
    """Gives each layer of a recurrent module the bias of its name."""
    for name, layer in new.named_children():
        if layer.bias is not None:
            layer.bias = getattr(old, f"bias_{name}")
    return new


def _recurrent_matrices(old: Any) -> Matrices:
    names = [name for names in old._all_weights for name in names] if isinstance(old, nn.RNNBase) else _CELL_WEIGHTS
    return [(name, tuple(getattr(old, name).shape)) for name in names if name.startswith("weight")]


_CELL_WEIGHTS = ("weight_ih", "weight_hh")


def _is_experts(module: nn.Module) -> bool:
    """Whether it is a layer of experts as in Hugging Face's Mixtral, under any name.

    Its class states how its weights are stored and used; experts that do it in another way stay dense.
    """
    usual = {"is_transposed": False, "is_concatenated": True, "has_bias": False, "has_gate": True}
    if any(getattr(module, name, None) is not value for name, value in usual.items()):
        return False
    gate = getattr(type(module)._apply_gate, "__qualname__", "") if hasattr(type(module), "_apply_gate") else ""
    weights = (module._parameters.get("gate_up_proj"), module._parameters.get("down_proj"))
    return (
        gate == "_default_apply_gate"
        and not getattr(module, "has_post_expert_norm", False)
        and not getattr(module, "_is_expert_parallel", False)
        and all(w is not None and w.dim() == 3 for w in weights)
        and weights[0].shape == (len(weights[1]), 2 * weights[1].shape[2], weights[1].shape[1])
    )


def _experts(old: Any, **options: Any) -> nn.Module:
    count, hidden, intermediate = old.down_proj.shape
    return SupermaskExperts(count, hidden, intermediate, old.act_fn, **options)


def _experts_matrices(old: Any) -> Matrices:
    weights = (("gate_up_proj", old.gate_up_proj), ("down_proj", old.down_proj))
    return [(name, tuple(matrix.shape)) for name, stacked in weights for matrix in stacked]


for _kind, *_how in (
    (nn.Linear, _linear),
    (nn.Conv1d, _convolution(SupermaskConv1d)),
    (nn.Conv2d, _convolution(SupermaskConv2d)),
    (nn.Conv3d, _convolution(SupermaskConv3d)),
    (nn.ConvTranspose1d, _transposed_convolution(SupermaskConvTranspose1d)),
    (nn.ConvTranspose2d, _transposed_convolution(SupermaskConvTranspose2d)),
    (nn.ConvTranspose3d, _transposed_convolution(SupermaskConvTranspose3d)),
    (nn.Embedding, _embedding),
    (nn.EmbeddingBag, _embedding_bag),
    (nn.Bilinear, _bilinear),
    (nn.MultiheadAttention, _attention, _attention_matrices),
    (nn.RNN, _recurrent(SupermaskRNN), _recurrent_matrices),
    (nn.LSTM, _recurrent(SupermaskLSTM), _recurrent_matrices),
    (nn.GRU, _recurrent(SupermaskGRU), _recurrent_matrices),
    (nn.RNNCell, _cell(SupermaskRNNCell), _recurrent_matrices),
    (nn.LSTMCell, _cell(SupermaskLSTMCell), _recurrent_matrices),
    (nn.GRUCell, _cell(SupermaskGRUCell), _recurrent_matrices),
    ("transformers.pytorch_utils.Conv1D", _transposed_linear),
    ("torch_geometric.nn.dense.linear.Linear", _linear),
    (_is_experts, _experts, _experts_matrices),
):
    register_conversion(_kind, *_how)
