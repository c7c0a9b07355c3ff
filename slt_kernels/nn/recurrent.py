"""SupermaskRNN, SupermaskLSTM, SupermaskGRU and their cells, in place of PyTorch's.

Each matrix of a cell, all its gates together, is a `SupermaskLinear`. The products of the inputs of all time steps are
one product; those of the hidden states run step by step.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ..ops.autograd import autocast
from ..ops.checks import check_tensor
from ..source import DENSE, MAX_ROWS, Freeze, fraction, integer
from .composite import CompositeLayer, weight_options
from .linear import SupermaskLinear

State = tuple[Tensor, ...]
"""The hidden state, and an LSTM's cell state: each ``[batch, features]``."""


def _lstm(from_input: Tensor, from_hidden: Tensor, state: State) -> State:
    """One step of an LSTM: the new state, from the products and the old one."""
    i, f, g, o = (from_input + from_hidden).chunk(4, -1)
    c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _gru(from_input: Tensor, from_hidden: Tensor, state: State) -> State:
    """One step of a GRU; PyTorch's, which resets after the product."""
    r, z, n = from_input.chunk(3, -1)
    hidden_r, hidden_z, hidden_n = from_hidden.chunk(3, -1)
    z = (z + hidden_z).sigmoid()
    n = (n + (r + hidden_r).sigmoid() * hidden_n).tanh()
    return ((1 - z) * n + z * state[0],)


class _Gated(CompositeLayer):
    """What cells and layers share: the number of gates, the states, and the step."""

    _gates: ClassVar[int]
    _states: ClassVar[int]
    _dense_type: ClassVar[type[nn.Module]]
    _step: Callable[[Tensor, Tensor, State], State]

    @property
    def _own_options(self) -> dict[str, str]:
        """Arguments that other recurrent layers do not have."""
        return {}

    def _as_states(self, hx: Any) -> State:
        """``hx`` as a tuple: PyTorch passes the state of a GRU as a tensor."""
        states = (hx,) if self._states == 1 else tuple(hx)
        if len(states) != self._states or not all(isinstance(s, Tensor) for s in states):
            raise TypeError(f"hx: expected {'a tensor' if self._states == 1 else 'a pair of tensors'}")
        return states

    def _copy_to(self, dense: nn.Module, names: dict[str, str]) -> nn.Module:
        """Copies weights and biases to PyTorch's layer; ``names`` has the end of theirs for each of ours."""
        with torch.no_grad():
            for ours, theirs in names.items():
                layer = self.get_submodule(ours).to_dense()
                dense.get_parameter(f"weight_{theirs}").copy_(layer.weight)
                if layer.bias is not None:
                    dense.get_parameter(f"bias_{theirs}").copy_(layer.bias).requires_grad_(layer.bias.requires_grad)
        return dense.train(self.training)


class _Simple(_Gated):
    """One gate, and a choice of the nonlinearity."""

    _gates, _states = 1, 1
    nonlinearity: str

    def _step(self, from_input: Tensor, from_hidden: Tensor, state: State) -> State:
        h = from_input + from_hidden
        return (h.tanh() if self.nonlinearity == "tanh" else h.relu(),)

    @property
    def _own_options(self) -> dict[str, str]:
        return {"nonlinearity": self.nonlinearity}

    def _take_nonlinearity(self, nonlinearity: str, first: SupermaskLinear) -> None:
        """Takes the argument, which tickets compare too."""
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"nonlinearity={nonlinearity!r}: expected 'tanh' or 'relu'")
        self.nonlinearity = nonlinearity
        first.outer_arguments = {**first.outer_arguments, "nonlinearity": nonlinearity}


class _Cell(_Gated):
    """Base of the cells. Arguments as `SupermaskLSTMCell`'s."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        freeze: Freeze | Sequence[Freeze] = DENSE,
        layer: int = 0,
        **options: Any,
    ) -> None:
        super().__init__()
        self.input_size = integer("input_size", input_size, 1, MAX_ROWS)
        self.hidden_size = integer("hidden_size", hidden_size, 1, MAX_ROWS // 4)
        self.bias = bias
        rows = self._gates * self.hidden_size
        each = weight_options(freeze, 2, layer)
        self.ih = SupermaskLinear(self.input_size, rows, bias, device, dtype, **next(each), **options)
        self.hh = SupermaskLinear(self.hidden_size, rows, bias, device, dtype, **next(each), **options)

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        check_tensor("input", input)
        if input.dim() not in (1, 2) or input.shape[-1] != self.input_size:
            raise ValueError(f"input.shape={list(input.shape)}: expected [B, {self.input_size}] or [{self.input_size}]")
        shape = (*input.shape[:-1], self.hidden_size)
        states = (input.new_zeros(shape),) * self._states if hx is None else self._as_states(hx)
        for state in states:
            if state.shape != shape:
                raise ValueError(f"hx: a state of shape {list(state.shape)}: expected {list(shape)}")
        new = self._step(self.ih(input), self.hh(states[0]), states)
        return new if self._states == 2 else new[0]

    def to_dense(self) -> nn.Module:
        """PyTorch's own cell with copies of the weights and biases."""
        placement = {"device": self.ih.mask_words.device, "dtype": self.ih.dtype}
        sizes = (self.input_size, self.hidden_size, self.bias)
        dense = nn.utils.skip_init(self._dense_type, *sizes, **self._own_options, **placement)
        return self._copy_to(dense, {"ih": "ih", "hh": "hh"})

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}, bias={self.bias}"


class SupermaskLSTMCell(_Cell):
    """``nn.LSTMCell`` with random weights and learned masks.

    Input ``[B, input_size]`` or ``[input_size]``, and the state ``(h, c)``; output the new state.

    Args:
        input_size, hidden_size, bias, device, dtype: as ``nn.LSTMCell``'s. Its supermask layers are ``ih`` and ``hh``,
            each of all four gates.
        freeze: as `SupermaskLinear`'s, or one `Freeze` for each of the two.
        layer: the number of ``ih``; ``hh`` has the next.
        **options: ``sparsity``, ``weight``, ``scale``, ``gain``, ``seed`` and ``compact``, as `SupermaskLinear`'s.

    Raises:
        ValueError, TypeError: an argument outside its range; the message names it.
    """

    _gates, _states, _dense_type, _step = 4, 2, nn.LSTMCell, staticmethod(_lstm)


class SupermaskGRUCell(_Cell):
    """``nn.GRUCell`` with random weights and learned masks.

    Input ``[B, input_size]`` or ``[input_size]``, and the state ``h``; output the new state. Arguments as
    `SupermaskLSTMCell`'s; three gates.
    """

    _gates, _states, _dense_type, _step = 3, 1, nn.GRUCell, staticmethod(_gru)


class SupermaskRNNCell(_Simple, _Cell):
    """``nn.RNNCell`` with random weights and learned masks.

    Input ``[B, input_size]`` or ``[input_size]``, and the state ``h``; output the new state. Arguments as
    `SupermaskLSTMCell`'s, and ``nonlinearity``, as ``nn.RNNCell``'s: "tanh" (default) or "relu".
    """

    _dense_type = nn.RNNCell

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, device, dtype, **options)
        self._take_nonlinearity(nonlinearity, self.ih)


class _Recurrent(_Gated):
    """Base of the layers over time. Arguments as `SupermaskLSTM`'s."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        freeze: Freeze | Sequence[Freeze] = DENSE,
        layer: int = 0,
        **options: Any,
    ) -> None:
        super().__init__()
        self.input_size = integer("input_size", input_size, 1, MAX_ROWS)
        self.hidden_size = integer("hidden_size", hidden_size, 1, MAX_ROWS // 4)
        self.num_layers = integer("num_layers", num_layers, 1, MAX_ROWS)
        self.proj_size = integer("proj_size", proj_size, 0, self.hidden_size - 1)
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = fraction("dropout", dropout)
        self.bidirectional = bidirectional

        output, rows = self.proj_size or self.hidden_size, self._gates * self.hidden_size
        each = weight_options(freeze, len(self._ends()) * (3 if self.proj_size else 2), layer)
        placement: dict[str, Any] = {"device": device, "dtype": dtype}
        for i, end in enumerate(self._ends()):
            fan = self.input_size if i < self._directions else self._directions * output
            for name, fan_in, features, biased in (
                ("ih", fan, rows, bias),
                ("hh", output, rows, bias),
                *([("hr", self.hidden_size, self.proj_size, False)] if self.proj_size else []),
            ):
                linear = SupermaskLinear(fan_in, features, biased, **placement, **next(each), **options)
                self.add_module(f"{name}_{end}", linear)
        self.get_submodule("ih_l0").outer_arguments = {"batch_first": int(batch_first)}

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    def _ends(self) -> list[str]:
        """The ends of PyTorch's names of parameters, one per layer and direction."""
        return [f"l{i}{way}" for i in range(self.num_layers) for way in ("", "_reverse")[: self._directions]]

    def flatten_parameters(self) -> None:
        """Does nothing: PyTorch's layers order the memory of their weights by it."""

    def forward(self, input: Tensor | PackedSequence, hx: Any = None) -> tuple[Any, Any]:
        packed = isinstance(input, PackedSequence)
        if not packed:
            check_tensor("input", input)
        batched = packed or input.dim() == 3
        if packed:
            data, sizes = input.data, input.batch_sizes.tolist()
        else:
            if input.dim() not in (2, 3) or input.shape[-1] != self.input_size:
                raise ValueError(f"input.shape={list(input.shape)}: expected {self._expected_shapes()}")
            x = input.unsqueeze(1) if not batched else input.transpose(0, 1) if self.batch_first else input
            data, sizes = x.flatten(0, 1), [x.shape[1]] * x.shape[0]
        if not sizes:
            raise ValueError(f"input.shape={list(input.shape)}: expected at least one time step")
        states = self._initial_states(data, hx, sizes[0], batched)
        if data.is_cuda or (self._states == 2 and not self.proj_size):  # PyTorch has a kernel of autocast's dtype
            data, states = autocast(data), tuple(autocast(s) for s in states)
        if packed and hx is not None and input.sorted_indices is not None:
            states = tuple(s.index_select(1, input.sorted_indices) for s in states)

        last: list[State] = []
        for i in range(self.num_layers):
            ways = []
            for end in self._ends()[i * self._directions : (i + 1) * self._directions]:
                start = tuple(s[len(last)] for s in states)
                outputs, final = self._one_way(end, data, sizes, start)
                ways.append(outputs)
                last.append(final)
            data = torch.cat(ways, -1)
            if self.dropout and i + 1 < self.num_layers:
                data = F.dropout(data, self.dropout, self.training)
        finals = tuple(torch.stack(s) for s in zip(*last, strict=True))

        if packed:
            y = PackedSequence(data, input.batch_sizes, input.sorted_indices, input.unsorted_indices)
            if input.unsorted_indices is not None:
                finals = tuple(s.index_select(1, input.unsorted_indices) for s in finals)
        else:
            y = data.unflatten(0, (len(sizes), sizes[0]))
            y = y.squeeze(1) if not batched else y.transpose(0, 1) if self.batch_first else y
            finals = finals if batched else tuple(s.squeeze(1) for s in finals)
        return y, finals if self._states == 2 else finals[0]

    def _one_way(self, end: str, data: Tensor, sizes: list[int], state: State) -> tuple[Tensor, State]:
        """One layer in one direction.

        Args:
            end: of its names.
            data: ``[sum of sizes, features]``, the time steps one after another.
            sizes: how many sequences have each step; none is larger than the one before.
            state: ``[sizes[0], features]`` each.

        Returns:
            The outputs, like ``data``, and the last state.
        """
        hidden = self.get_submodule(f"hh_{end}")
        from_input = self.get_submodule(f"ih_{end}")(data).split(sizes)
        outputs: list[Tensor] = [data] * len(sizes)
        times = range(len(sizes))
        for t in reversed(times) if end.endswith("_reverse") else times:
            running = tuple(s[: sizes[t]] for s in state)
            new = self._step(from_input[t], hidden(running[0]), running)
            if self.proj_size:
                new = (self.get_submodule(f"hr_{end}")(new[0]), *new[1:])
            outputs[t] = new[0]
            rest = tuple(s[sizes[t] :] for s in state)  # of sequences that are over, or have not begun
            state = tuple(torch.cat((n, r)) if len(r) else n for n, r in zip(new, rest, strict=True))
        return torch.cat(outputs), state

    def _initial_states(self, data: Tensor, hx: Any, batch: int, batched: bool) -> State:
        """Each ``[num_layers * directions, batch, features]``."""
        widths = (self.proj_size or self.hidden_size, self.hidden_size)[: self._states]
        shapes = [(len(self._ends()), batch, width) for width in widths]
        if hx is None:
            return tuple(data.new_zeros(shape) for shape in shapes)
        states = self._as_states(hx)
        states = states if batched else tuple(s.unsqueeze(1) for s in states)
        for state, shape in zip(states, shapes, strict=True):
            if state.shape != shape:
                raise ValueError(f"hx: a state of shape {list(state.shape)}: expected {list(shape)}")
        return states

    def _expected_shapes(self) -> str:
        leading = "[B, T, " if self.batch_first else "[T, B, "
        return f"{leading}{self.input_size}] or [T, {self.input_size}]"

    def to_dense(self) -> nn.Module:
        """PyTorch's own layer with copies of the weights and biases."""
        first = self.get_submodule("ih_l0")
        options = {name: getattr(self, name) for name in ("bias", "batch_first", "dropout", "bidirectional")}
        if self.proj_size:
            options["proj_size"] = self.proj_size
        sizes = (self.input_size, self.hidden_size, self.num_layers)
        placement = {"device": "meta", "dtype": first.dtype}  # as skip_init, which refuses these types
        dense = self._dense_type(*sizes, **options, **self._own_options, **placement)
        dense = dense.to_empty(device=first.mask_words.device)
        return self._copy_to(dense, {name: name for name, _ in self.named_children()})

    def extra_repr(self) -> str:
        parts = [f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}, bias={self.bias}"]
        parts += [f"batch_first={self.batch_first}, dropout={self.dropout}, bidirectional={self.bidirectional}"]
        return ", ".join(parts + [f"proj_size={self.proj_size}"] * bool(self.proj_size))


class SupermaskLSTM(_Recurrent):
    """``nn.LSTM`` with random weights and learned masks.

    Its supermask layers have the names of PyTorch's parameters without ``weight_``: ``ih_l0``, ``hh_l0``, with
    ``proj_size`` also ``hr_l0``, with two directions then ``ih_l0_reverse``, and so on; each has all four gates. Their
    biases are PyTorch's ``bias_ih_l0``, ....

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size, device, dtype: as
            ``nn.LSTM``'s.
        freeze: as `SupermaskLinear`'s, or one `Freeze` for each supermask layer.
        layer: the number of the first; the others have the next ones.
        **options: ``sparsity``, ``weight``, ``scale``, ``gain``, ``seed`` and ``compact``, as `SupermaskLinear`'s.
            PyTorch's standard deviation is ``1 / sqrt(3 * hidden_size)`` for all of them, and for the biases; this
            layer's is ``gain / sqrt(fan)``, with ``gain=sqrt(2)`` by default, and ``1 / sqrt(3 * fan)`` for biases.

    Input ``[T, B, input_size]``, with ``batch_first`` ``[B, T, input_size]``, ``[T, input_size]`` or a
    ``PackedSequence``; and the state ``(h, c)``. Output and last state as ``nn.LSTM``'s.

    Raises:
        ValueError, TypeError: an argument outside its range; the message names it.
    """

    _gates, _states, _dense_type, _step = 4, 2, nn.LSTM, staticmethod(_lstm)


class SupermaskGRU(_Recurrent):
    """``nn.GRU`` with random weights and learned masks.

    As `SupermaskLSTM`, with three gates, no ``proj_size`` and a state ``h``.
    """

    _gates, _states, _dense_type, _step = 3, 1, nn.GRU, staticmethod(_gru)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        sizes = (input_size, hidden_size, num_layers)
        super().__init__(*sizes, bias, batch_first, dropout, bidirectional, 0, device, dtype, **options)


class SupermaskRNN(_Simple, _Recurrent):
    """``nn.RNN`` with random weights and learned masks.

    As `SupermaskLSTM`, with one gate, no ``proj_size``, a state ``h``, and ``nonlinearity``, as ``nn.RNN``'s: "tanh"
    (default) or "relu".
    """

    _dense_type = nn.RNN

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        sizes = (input_size, hidden_size, num_layers)
        super().__init__(*sizes, bias, batch_first, dropout, bidirectional, 0, device, dtype, **options)
        self._take_nonlinearity(nonlinearity, self.get_submodule("ih_l0"))
