"""SupermaskMultiheadAttention, in place of ``nn.MultiheadAttention``: four `SupermaskLinear` around the attention."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.checks import check_tensor
from ..source import DENSE, MAX_ROWS, Freeze, fraction, integer
from .composite import CompositeLayer, weight_options
from .linear import SupermaskLinear


class SupermaskMultiheadAttention(CompositeLayer):
    """``nn.MultiheadAttention`` with random weights and learned masks.

    Its supermask layers are ``q_proj``, ``k_proj``, ``v_proj`` and ``out_proj``, also where ``nn.MultiheadAttention``
    packs the first three into one ``in_proj_weight``. The other parameters, which train as PyTorch's, have its names:
    ``in_proj_bias`` ``[3 * embed_dim]``, ``out_proj.bias``, ``bias_k`` and ``bias_v``.

    Args:
        embed_dim, num_heads, dropout, bias, add_bias_kv, add_zero_attn, kdim, vdim, batch_first, device, dtype: as
            ``nn.MultiheadAttention``'s.
        freeze: as `SupermaskLinear`'s, or one `Freeze` for each of the four layers.
        layer: the number of ``q_proj``; the others have the next three.
        **options: ``sparsity``, ``weight``, ``scale``, ``gain``, ``seed`` and ``compact``, as `SupermaskLinear`'s. The
            fans are ``embed_dim``, ``kdim``, ``vdim`` and ``embed_dim``.

    Raises:
        ValueError, TypeError: an argument outside its range; the message names it.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        freeze: Freeze | Sequence[Freeze] = DENSE,
        layer: int = 0,
        **options: Any,
    ) -> None:
        super().__init__()
        self.embed_dim = integer("embed_dim", embed_dim, 1, MAX_ROWS // 3)
        self.num_heads = integer("num_heads", num_heads, 1, MAX_ROWS)
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim={embed_dim}: expected a multiple of num_heads={num_heads}")
        self.head_dim = self.embed_dim // self.num_heads
        self.kdim = self.embed_dim if kdim is None else integer("kdim", kdim, 1, MAX_ROWS)
        self.vdim = self.embed_dim if vdim is None else integer("vdim", vdim, 1, MAX_ROWS)
        self._qkv_same_embed_dim = self.kdim == self.vdim == self.embed_dim  # nn.TransformerEncoderLayer reads it
        self.dropout = fraction("dropout", dropout)
        self.batch_first = batch_first
        self.add_zero_attn = add_zero_attn

        placement: dict[str, Any] = {"device": device, "dtype": dtype}
        each = weight_options(freeze, 4, layer)
        for name, fan in (("q_proj", self.embed_dim), ("k_proj", self.kdim), ("v_proj", self.vdim)):
            self.add_module(name, SupermaskLinear(fan, self.embed_dim, False, **placement, **next(each), **options))
        self.out_proj = SupermaskLinear(self.embed_dim, self.embed_dim, bias, **placement, **next(each), **options)
        own = {"num_heads": self.num_heads, "add_zero_attn": int(add_zero_attn), "batch_first": int(batch_first)}
        self.out_proj.outer_arguments = own
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * self.embed_dim, **placement)) if bias else None
        for name in ("bias_k", "bias_v"):
            extra = nn.Parameter(torch.empty(1, 1, self.embed_dim, **placement)) if add_bias_kv else None
            self.register_parameter(name, extra)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initializes biases as PyTorch does; the four layers initialize themselves."""
        with torch.no_grad():
            for bias in (self.in_proj_bias, self.out_proj.bias):
                if bias is not None:
                    bias.zero_()
            for bias in (self.bias_k, self.bias_v):
                if bias is not None:
                    nn.init.xavier_normal_(bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As ``nn.MultiheadAttention``'s, inputs ``[L, B, E]``, ``[B, L, E]`` with ``batch_first``, or ``[L, E]``.

        ``need_weights=False`` uses ``F.scaled_dot_product_attention``. ``is_causal`` is a hint in PyTorch, for which
        ``attn_mask`` must be given too; here only the mask counts.

        Raises:
            ValueError: inputs or masks of other shapes; ``is_causal`` without ``attn_mask``.
        """
        for name, x in (("query", query), ("key", key), ("value", value)):
            check_tensor(name, x)
        batched = query.dim() == 3
        if query.dim() not in (2, 3) or not query.dim() == key.dim() == value.dim():
            shapes = ", ".join(str(list(x.shape)) for x in (query, key, value))
            raise ValueError(f"query, key, value: shapes {shapes}: expected three of two or of three dimensions")
        if is_causal and attn_mask is None:
            raise ValueError("is_causal=True: expected the causal mask as attn_mask too, as PyTorch does")
        if not batched:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        batch, length = query.shape[:2]
        keys, values = key.shape[:2], value.shape[:2]
        if keys != values or keys[0] != batch:
            raise ValueError(
                f"key, value: {keys[0]} x {keys[1]} and {values[0]} x {values[1]} (batch x sequence): "
                f"expected the batch of query, {batch}, and equal sequences"
            )
        mask = self._mask(attn_mask, key_padding_mask, batch, length, key.shape[1], query.dtype)

        q, k, v = self.q_proj(query), self.k_proj(key), self.v_proj(value)
        if self.in_proj_bias is not None:
            q, k, v = ((x + b).to(x.dtype) for x, b in zip((q, k, v), self.in_proj_bias.chunk(3), strict=True))
        if self.bias_k is not None:
            extra = zip((k, v), (self.bias_k, self.bias_v), strict=True)
            k, v = (torch.cat((x, b.to(x.dtype).expand(batch, 1, -1)), 1) for x, b in extra)
        if self.add_zero_attn:
            k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
        if mask is not None:
            mask = F.pad(mask.to(q.dtype), (0, k.shape[1] - mask.shape[-1]))
        q, k, v = (x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for x in (q, k, v))

        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            logits = (q / math.sqrt(self.head_dim)) @ k.transpose(-2, -1)
            weights = F.dropout((logits if mask is None else logits + mask).softmax(-1), dropout)
            attended = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if batched else weights.squeeze(0)
        else:
            attended = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        y = self.out_proj(attended.transpose(1, 2).flatten(2))
        if not batched:
            return y.squeeze(0), weights
        # Contiguous, because PyTorch's is and other code takes a view of it.
        return y if self.batch_first else y.transpose(0, 1).contiguous(), weights

    def _mask(
        self,
        attn_mask: Tensor | None,
        key_padding_mask: Tensor | None,
        batch: int,
        length: int,
        keys: int,
        dtype: torch.dtype,
    ) -> Tensor | None:
        """Both masks as one that is added to the logits: ``[B or 1, heads or 1, length or 1, keys]``."""
        parts = []
        if attn_mask is not None:
            heads = batch * self.num_heads
            if attn_mask.shape not in {(length, keys), (heads, length, keys)}:
                raise ValueError(
                    f"attn_mask.shape={list(attn_mask.shape)}: expected [{length}, {keys}] or "
                    f"[{heads}, {length}, {keys}]"
                )
            per_head = attn_mask.dim() == 3
            parts.append(attn_mask.unflatten(0, (batch, self.num_heads)) if per_head else attn_mask[None, None])
        if key_padding_mask is not None:
            if key_padding_mask.shape != (batch, keys):
                raise ValueError(f"key_padding_mask.shape={list(key_padding_mask.shape)}: expected [{batch}, {keys}]")
            parts.append(key_padding_mask.view(batch, 1, 1, keys))
        for i, part in enumerate(parts):
            if part.dtype == torch.bool:
                parts[i] = torch.zeros_like(part, dtype=dtype).masked_fill_(part, -math.inf)
            elif not part.is_floating_point():
                raise ValueError(f"attn_mask, key_padding_mask: dtype {part.dtype}: expected bool or floating")
        return sum(parts[1:], parts[0]).to(dtype) if parts else None

    def to_dense(self) -> nn.Module:
        """``nn.MultiheadAttention`` with copies of the weights and biases."""
        first = self.q_proj
        dense = nn.utils.skip_init(
            nn.MultiheadAttention,
            self.embed_dim,
            self.num_heads,
            dropout=self.dropout,
            bias=self.in_proj_bias is not None,
            add_bias_kv=self.bias_k is not None,
            add_zero_attn=self.add_zero_attn,
            kdim=self.kdim,
            vdim=self.vdim,
            batch_first=self.batch_first,
            device=first.mask_words.device,
            dtype=first.dtype,
        )
        projections = [m.to_dense().weight.detach() for m in (self.q_proj, self.k_proj, self.v_proj)]
        with torch.no_grad():
            if dense.in_proj_weight is not None:
                dense.in_proj_weight.copy_(torch.cat(projections))
            else:
                for name, weight in zip("qkv", projections, strict=True):
                    getattr(dense, f"{name}_proj_weight").copy_(weight)
            dense.out_proj.weight.copy_(self.out_proj.to_dense().weight)
        dense.out_proj.bias = _copied(self.out_proj.bias)
        for name in ("in_proj_bias", "bias_k", "bias_v"):
            setattr(dense, name, _copied(getattr(self, name)))
        return dense.train(self.training)

    def extra_repr(self) -> str:
        return f"{self.embed_dim}, {self.num_heads}, dropout={self.dropout}, batch_first={self.batch_first}"


def _copied(bias: nn.Parameter | None) -> nn.Parameter | None:
    return None if bias is None else nn.Parameter(bias.detach().clone(), bias.requires_grad)
