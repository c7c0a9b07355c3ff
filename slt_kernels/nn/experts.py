"""SupermaskExperts, in place of the experts of a mixture whose weights are stacked in one parameter."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..source import DENSE, MAX_ROWS, Freeze, integer
from .composite import CompositeLayer, weight_options
from .linear import SupermaskLinear


class SupermaskExperts(CompositeLayer):
    """Gated experts with random weights and learned masks, as those of Hugging Face's Mixtral.

    Expert ``e`` computes ``down(act(gate) * up)``, with ``gate, up`` the halves of ``gate_up(x)``. Its supermask layers
    are ``gate_up_proj[e]`` and ``down_proj[e]``; Hugging Face stacks each of the two over the experts in one parameter.

    Args:
        num_experts, hidden_dim, intermediate_dim: numbers of experts, of a token's features, and of a gate's.
        act_fn: the activation of the gate.
        device, dtype: as `SupermaskLinear`'s.
        freeze: as `SupermaskLinear`'s, or one `Freeze` for each of the ``2 * num_experts`` layers: those of
            ``gate_up_proj``, then those of ``down_proj``.
        layer: the number of the first layer, in the same order.
        **options: ``sparsity``, ``weight``, ``scale``, ``gain``, ``seed`` and ``compact``, as `SupermaskLinear`'s.

    Raises:
        ValueError, TypeError: an argument outside its range; the message names it.
    """

    def __init__(
        self,
        num_experts: int,
        hidden_dim: int,
        intermediate_dim: int,
        act_fn: Callable[[Tensor], Tensor] = nn.functional.silu,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        freeze: Freeze | Sequence[Freeze] = DENSE,
        layer: int = 0,
        **options: Any,
    ) -> None:
        super().__init__()
        self.num_experts = integer("num_experts", num_experts, 1, MAX_ROWS)
        self.hidden_dim = integer("hidden_dim", hidden_dim, 1, MAX_ROWS)
        self.intermediate_dim = integer("intermediate_dim", intermediate_dim, 1, MAX_ROWS // 2)
        each = weight_options(freeze, 2 * self.num_experts, layer)

        def stack(fan: int, rows: int) -> nn.ModuleList:
            options_of = (next(each) | options for _ in range(self.num_experts))
            return nn.ModuleList(SupermaskLinear(fan, rows, False, device, dtype, **o) for o in options_of)

        self.gate_up_proj = stack(self.hidden_dim, 2 * self.intermediate_dim)
        self.down_proj = stack(self.intermediate_dim, self.hidden_dim)
        self.act_fn = act_fn

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """The sum of each token's experts, weighted.

        Args:
            hidden_states: ``[tokens, hidden_dim]``.
            top_k_index: ``[tokens, k]``, the experts of each token; an index of ``num_experts`` is none.
            top_k_weights: ``[tokens, k]``.

        Returns:
            ``[tokens, hidden_dim]``.
        """
        y = torch.zeros_like(hidden_states)
        for expert, (gate_up, down) in enumerate(zip(self.gate_up_proj, self.down_proj, strict=True)):
            # An expert without a token runs too, so that its scores have a gradient, of zeros.
            token, place = torch.where(top_k_index == expert)
            gate, up = gate_up(hidden_states[token]).chunk(2, dim=-1)
            x = down(self.act_fn(gate) * up) * top_k_weights[token, place, None]
            y = y.index_add(0, token, x.to(y.dtype))
        return y

    def extra_repr(self) -> str:
        return f"{self.num_experts}, {self.hidden_dim}, {self.intermediate_dim}"
