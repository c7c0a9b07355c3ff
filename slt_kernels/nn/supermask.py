"""The base of all supermask layers: scores, the mask made of them, and a scale."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .. import bits, ops
from ..source import Freeze, Source, positive
from . import sharded_scores
from .checks import check_sparsity, check_words, scale_number
from .freshness import UNRECORDED, Maker
from .state import IDENTITY, SCALES, LayerState

INITIAL_SCORES = ("uniform", "normal", "hidden_networks")


class SupermaskLayer(LayerState):
    """A random layer with a learned mask; the base of `SupermaskLinear` and of all other layers with one weight.

    Attributes:
        scores: parameter, float32 ``[free]``, one per free weight in the contract's order (row, word, bit); None after
            `drop_scores`.
        mask_words: buffer, int32: the mask, resolved ``[rows, words]`` or compact ``[ceil(free / 32)]``.
        weight_scale: buffer, one float32: the factor on the integer weights.
        bias: parameter or None; ``[rows]``, of a transposed convolution ``[out_channels]``.
        source: generates the weights and the frozen pattern, of the whole layer or of this process's shard.
        whole: the source of the whole layer.
        group: the processes that hold its shards; None if it is not sharded.
        total, pruned, free, locked: counts of the whole layer's weights.
        sparsity: fraction of all weights, frozen included, that the layer's own mask drops; None keeps all. A new value
            makes another mask at the next use. The other arguments of a layer's weights and scale are fixed.
        auto_mask: whether the layer makes its own mask, with `sparsity`, when the mask is used after the scores have
            changed. A forward, ``eval()``, ``state_dict()``, `save_ticket` and the methods that return it use it.
            Changes are recognized by the scores' version counter, an optimizer's step, and another tensor as `scores`;
            after a write to ``scores.data``, as ``torch.nn.utils.vector_to_parameters`` does it, call `update_mask`. A
            compiled graph makes the mask in every forward in training; in evaluation it uses the mask of the last
            ``eval()``. Making the mask of a sharded layer is collective. `EdgePopup`, `load_ticket` and `load_mask`
            turn `auto_mask` off, and then only they change the mask. ``mask_origin`` records this, so a layer that
            loads such a mask, by any loader, keeps it until an `EdgePopup`, a ticket or `update_mask` makes another.
        mask_origin: buffer, int64 ``[2]``: who made the mask (`freshness.Maker`), and a fingerprint of the scores for
            which it is valid, 0 where none is recorded.
        activations: how the product takes its input: None (default), or "int8", of a Linear or a convolution. It may be
            set, and is part of no state and no ticket, as PyTorch's matmul precision is not.
        takes_int8: whether this kind of layer has such a product.
        stored_signs: whether the layer holds its sign words (`store_signs`).
        dtype: of the weight, as ``.to(dtype)`` leaves it; products take inputs of any.
        graded_scores: an identity function of the scores with a backward of its own, for another gradient than
            Edge-Popup's (`BernoulliMasks` has one); None for Edge-Popup's.
        outer_arguments: those that change the outputs of the composite layer around this one, such as the number of
            heads; in a ticket with this layer's own.

    Moving a layer, or casting it to another dtype, never changes a score or a mask bit: scores stay float32.
    """

    takes_int8 = False
    graded_scores: Callable[[Tensor], Tensor] | None = None
    outer_arguments: Mapping[str, Any] = {}  # JSON values

    def __init__(
        self,
        source: Source,
        biases: int,
        freeze: Freeze,
        sparsity: float | None,
        scale: str | None,
        gain: float,
        compact: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        if scale not in SCALES:
            raise ValueError(f"scale={scale!r}: expected None, 'static' or 'dynamic'")
        if sparsity is not None:
            check_sparsity(sparsity, freeze.prune, freeze.lock)
        gain = positive("gain", gain)
        self.source = self.whole = source
        self.group: dist.ProcessGroup | None = None
        self.freeze = freeze
        self.sparsity = sparsity
        self.scale = scale
        self.gain = gain
        self.compact = compact
        self.dtype = dtype or torch.get_default_dtype()
        self.pruned, self.free, self.locked = source.count_frozen()

        self.scores = nn.Parameter(torch.empty(self.free, dtype=torch.float32, device=device))
        words = (bits.words_for(self.free),) if compact else (source.rows, source.words)
        self.register_buffer("mask_words", torch.zeros(words, dtype=torch.int32, device=device))
        self.register_buffer("weight_scale", torch.zeros((), dtype=torch.float32, device=device))
        identity = torch.empty(len(IDENTITY), dtype=torch.int64, device=device)
        self.register_buffer("source_id", identity)  # so that a checkpoint of another network is refused
        self.register_buffer("mask_origin", torch.zeros(2, dtype=torch.int64, device=device))
        self.bias = nn.Parameter(torch.empty(biases, device=device, dtype=dtype)) if biases else None
        self.reset_parameters()

    @property
    def total(self) -> int:
        return self.whole.total

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the weight as PyTorch's own layer has it."""
        raise NotImplementedError

    def _as_weight(self, matrix: Tensor) -> Tensor:
        """``[rows, fan]`` to `weight_shape`."""
        raise NotImplementedError

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments that change the layer's outputs but not its weight, as JSON values; a ticket holds them."""
        return dict(self.outer_arguments)

    def _dense_module(self, **placement: Any) -> nn.Module:
        """PyTorch's own layer, uninitialized."""
        raise NotImplementedError

    @torch.no_grad()
    def to_dense(self) -> nn.Module:
        """PyTorch's own layer with copies of this layer's weight and bias; see `slt_kernels.to_dense`.

        Raises:
            ValueError: the layer is sharded over processes.
        """
        if self.group is not None or sharded_scores.is_dtensor(self.scores):
            raise ValueError("layer: expected one that is not sharded over processes")
        dense = self._dense_module(device=self.mask_words.device, dtype=self.dtype)
        dense.weight.copy_(self._dense_weight(torch.promote_types(self.dtype, torch.float32)))
        if self.bias is not None:
            dense.bias = nn.Parameter(self.bias.detach().clone(), self.bias.requires_grad)
        return dense.train(self.training)

    @property
    def activations(self) -> str | None:
        """See `SupermaskLayer`."""
        return self._activations

    @activations.setter
    def activations(self, value: str | None) -> None:
        ops.check_activations(value)
        if value is not None and not self.takes_int8:
            raise ValueError(f"activations={value!r}: expected None, since a {type(self).__name__} has no int8 product")
        self._activations = value

    @property
    def stored_signs(self) -> bool:
        """See `SupermaskLayer`."""
        return self._signs is not None

    @property
    def score_gain(self) -> float:
        """Initial scores have Kaiming's standard deviation ``score_gain / sqrt(fan)``: that of the weights."""
        return self.gain

    def _operands(self) -> tuple:
        """What the layer's operation takes after the input and the scores."""
        raise NotImplementedError

    def _bias(self) -> Tensor | None:
        """``self.bias``, found faster; a parametrized one is no parameter of the layer."""
        parameters = self._parameters
        return parameters["bias"] if "bias" in parameters else self.bias  # noqa: SIM401 (looks it up if it need not)

    def _forward_by_plan(self, kind: Callable[..., ops.Plan], input: Tensor) -> Tensor | None:
        """The output of the layer's plan; None if the operation has to be called.

        In the latter case the mask is then up to date, and the next call may find a plan.
        """
        plan, operands = self._plan, self._operands()
        if plan is not None and plan.takes(input) and self._is_fresh() and plan.is_of(*operands):
            return plan.call(input)
        self._refresh_mask()
        if not ops.differentiates() and ops.is_plain(input, *operands):
            operands = self._operands()
            if plan is None or not plan.is_of(*operands):
                self._plan = kind(*operands)
        return None

    def _scores_to_grade(self) -> Tensor | None:
        """The scores as a forward passes them to the operations.

        Raises:
            RuntimeError: they are sharded by FSDP2 and not gathered, and gradients are recorded.
        """
        if sharded_scores.is_dtensor(self.scores) and torch.is_grad_enabled():
            raise RuntimeError(
                "scores: FSDP2 has not gathered them, because the layer is sharded by itself and another module uses "
                "its weight: expected fully_shard on a module that holds both"
            )
        self._warn_of_ignored_steps()
        return self.scores if self.graded_scores is None or self.scores is None else self.graded_scores(self.scores)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initial scores from the seed (`reset_scores`); bias uniform within ``1 / sqrt(fan)``, as ``nn.Linear``'s.

        It initializes a layer made on the meta device after ``layer.to_empty(device=...)``.
        """
        self._write_identity()
        self.mask_origin.zero_()
        if self.bias is not None:
            bound = 1 / math.sqrt(self.whole.fan)
            nn.init.uniform_(self.bias, -bound, bound)
        if self.scores is not None:
            self.reset_scores()
            if not self.scores.is_meta or self.mask_words.is_meta:  # else a loader will give both
                self.update_mask()

    @torch.no_grad()
    def reset_scores(self, how: str = "uniform") -> None:
        """Initial scores from the seed: the same on every device, and in every process.

        Args:
            how: "uniform" (default) or "normal", with the standard deviation ``score_gain / sqrt(fan)``; or
                "hidden_networks", the uniform of Ramanujan et al.'s code (a = sqrt(5)), ``1 / sqrt(fan)`` at most.

        Raises:
            ValueError: another ``how``.
            RuntimeError: the scores were dropped.
        """
        self._need_scores()
        if how not in INITIAL_SCORES:
            raise ValueError(f"how={how!r}: expected one of {', '.join(INITIAL_SCORES)}")
        root = math.sqrt(self.whole.fan)
        std = self.score_gain / root
        bound = {"uniform": std * math.sqrt(3), "normal": 1.0, "hidden_networks": 1 / root}[how]
        scores = self.whole.initial_scores(self.free, bound, self.scores.device)
        if how == "normal":
            inverse = torch.erfinv(scores.cpu()).to(scores.device)  # erfinv differs in the last bits between devices
            scores = inverse * (std * math.sqrt(2))
        sharded_scores.copy_(self.scores, self._part_of_scores(scores))

    # The mask

    @property
    def rank(self) -> int:
        """How many free weights the mask of `sparsity` drops (under 1: none)."""
        return 0 if self.sparsity is None else math.floor(self.sparsity * self.total) - self.pruned

    @torch.no_grad()
    def update_mask(self, threshold: Tensor | None = None) -> None:
        """Makes the mask, and the scale that depends on it, from the scores as they are now.

        Args:
            threshold: keep the free weights with |score| above it; by default that of `sparsity` in this layer alone.
                It is NaN where so many scores are; the outputs are NaN then, as those of NaN weights.

        Raises:
            RuntimeError: the scores were dropped.
        """
        self._need_scores()
        maker = Maker.LAYER if threshold is None else Maker.THRESHOLD
        if threshold is None:
            threshold = sharded_scores.select([self], self.rank)
        self.take_mask(*sharded_scores.pack(self, threshold), maker)
        if not self.mask_words.is_meta:
            self.weight_scale.masked_fill_(threshold.isnan().to(self.weight_scale.device), torch.nan)

    @torch.no_grad()
    def take_mask(self, words: Tensor, kept: Tensor, maker: Maker = Maker.SAMPLE) -> None:
        """Takes a mask as `ops.pack` makes it.

        Args:
            words: int32, in this layer's form, of the shape of `mask_words`.
            kept: int64, one element: how many weights it keeps, frozen ones included.
            maker: who made it.

        Raises:
            TypeError, ValueError: words that are no tensor, or of another dtype or shape.
        """
        if not torch.compiler.is_compiling():
            self._read_changed_state()
        check_words("words", words, self.mask_words.shape)
        self.mask_words.copy_(words)
        if not words.is_meta:  # PyTorch would import its compiler, to compute no value
            self.weight_scale.copy_(self._scale_for(kept))
        self._remember_scores(maker)

    def drop_scores(self) -> None:
        """Frees the scores, 32 bits per free weight, of a layer in inference.

        The mask and the outputs stay the same bits, and gradients flow to the input and the bias. After it only
        `load_mask` and `load_ticket` change the mask; `load_state_dict` takes states with and without scores.
        """
        initialized = self.is_initialized()
        if initialized:
            self._refresh_mask()
            self._write_origin(Maker.LOADED, UNRECORDED)
        self.scores = None
        self.auto_mask = False
        if initialized:
            self._accept_state()

    def _need_scores(self) -> None:
        if self.scores is None:
            raise RuntimeError("this layer's scores were dropped: expected a layer that has them")

    def train(self, mode: bool = True):
        """As ``nn.Module``'s; evaluation starts with the mask of the scores where `auto_mask` is on.

        Training drops stored signs.
        """
        if mode:
            self._signs = None
        elif not self._is_fresh() and self.is_initialized():
            self._refresh_mask()
        return super().train(mode)

    @torch.no_grad()
    def load_mask(self, compact: Tensor, weight_scale: Tensor | float) -> None:
        """Takes a mask as it is, with its scale, and keeps it until an `EdgePopup` or `update_mask` makes another.

        Args:
            compact: int32 ``[ceil(free / 32)]``, a bit for each free weight of the whole layer, first bit lowest. Bits
                past the last free weight are ignored.
            weight_scale: the finite number that multiplies the integer weights.

        Raises:
            TypeError, ValueError: another type, dtype or shape, or a scale that is not finite. Nothing is changed.
        """
        free = self.whole.free
        check_words("compact", compact, (bits.words_for(free),))
        weight_scale = scale_number(weight_scale)
        compact = compact.to(self.mask_words.device, copy=True)
        if free % bits.WORD:
            compact[-1] &= (1 << free % bits.WORD) - 1
        if self.group is not None:
            self._take_words(ops.expand(compact, self.whole)[self._part])
        else:
            self.mask_words.copy_(compact if self.compact else ops.expand(compact, self.source))
        self.weight_scale.fill_(weight_scale)
        self._write_identity()  # which ``to_empty`` has left open
        self._write_origin(Maker.LOADED, UNRECORDED)
        self.auto_mask = False
        self._accept_state()

    def compact_mask(self) -> Tensor:
        """The learned bits alone: int32 ``[ceil(free / 32)]``, first bit lowest, 0 past the last.

        They are the bits of the whole layer; collective over the `group` of a sharded one.
        """
        self._refresh_mask()
        if self.group is not None:
            words = self.mask_words.new_zeros(self.whole.rows, self.whole.words)
            words[self._part] = self._resolved_words()
            dist.all_reduce(words, group=self.group)  # no two shards meet: the sum is an OR
            return bits.gather(words, self.whole.frozen_words(words.device)[0])
        if self.compact:
            return self.mask_words.clone()
        return bits.gather(self.mask_words, self.source.frozen_words(self.mask_words.device)[0])

    def _scale_for(self, kept: Tensor) -> Tensor:
        base = self.gain / math.sqrt(self.whole.fan) / self.whole.weight_std
        factor = torch.ones((), dtype=torch.float64, device=kept.device)
        if self.scale == "dynamic":
            factor = (kept.double() / self.total).rsqrt()
        elif self.scale == "static" and self.sparsity is not None:
            factor = factor / math.sqrt(1 - self.sparsity) if self.sparsity < 1 else 0 * factor
        return torch.where(kept > 0, base * factor, 0)  # an emptied layer is 0, not 0 * inf
