"""What all supermask layers share: scores, a mask made of them, and a scale."""

import math
import struct
from collections.abc import Callable
from numbers import Real

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .. import bits, ops
from ..source import CONTRACT_VERSION, WEIGHTS, Freeze, Source, fraction, positive
from . import spread
from .freshness import UNRECORDED, FreshMask, Maker, fingerprint
from .generated_weight import GeneratedWeight

SCALES = (None, "static", "dynamic")
INITIAL_SCORES = ("uniform", "normal", "hidden_networks")
_ROUNDING = 1e-7  # sparsity and prune may be equal in decimal and differ by float32's rounding


def check_sparsity(sparsity: Real, prune: float, lock: float) -> float:
    """The sparsity as a float; ValueError unless that share of all weights, frozen ones included, can be dropped."""
    sparsity = fraction("sparsity", sparsity)
    if sparsity < prune - _ROUNDING:
        raise ValueError(
            f"sparsity={sparsity} is below prune={prune}: sparsity counts the pruned weights too, so nothing would be "
            f"left to search; expected sparsity in [{prune}, {1 - lock}]"
        )
    if sparsity > 1 - lock + _ROUNDING:
        raise ValueError(
            f"sparsity={sparsity} is above 1 - lock={1 - lock}: locked weights are always kept; "
            f"expected sparsity in [{prune}, {1 - lock}]"
        )
    return sparsity


_IDENTITY = ("contract", *Source._fields, "scale", "gain")


_STATE_DTYPES = {
    "mask_words": (torch.int32,),
    "source_id": (torch.int64,),
    "mask_origin": (torch.int64,),
    "weight_scale": (torch.float32,),
    "scores": (torch.float32, torch.float64),
}


def _check_words(name: str, words: object, shape: tuple[int, ...]) -> None:
    if not isinstance(words, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(words).__name__}")
    if words.dtype != torch.int32 or words.shape != shape:
        raise ValueError(f"{name}: expected int32 {list(shape)}, got {words.dtype} {list(words.shape)}")


def _scale_number(weight_scale: object) -> float:
    try:
        value = float(weight_scale)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"weight_scale: expected a number, got {type(weight_scale).__name__}") from None
    if not abs(value) <= torch.finfo(torch.float32).max:  # NaN too
        raise ValueError(f"weight_scale={value}: expected a finite float32 number")
    return value


def _differences(saved: list[int], here: list[int]) -> str:
    """Of two identities (`SupermaskLayer._identity`), in words."""

    def said(identity: list[int]) -> dict[str, object]:
        named = dict(zip(_IDENTITY, identity, strict=False))
        if "gain" in named:
            named["scale"] = dict(enumerate(SCALES)).get(named["scale"], named["scale"])
            named["gain"] = round(*struct.unpack("<d", struct.pack("<q", named["gain"])), 6)
        return named

    ours = said(here)
    return ", ".join(f"{name}={x} (expected {ours[name]})" for name, x in said(saved).items() if x != ours[name])


class SupermaskLayer(FreshMask):
    """A random layer of which only a mask is learned; the base of `SupermaskLinear` and the others.

    Attributes:
        scores: parameter, float32 ``[free]``, one a free weight in the contract's order (row, word, bit); None once
            `drop_scores` has dropped them.
        mask_words: buffer, int32: the mask, resolved ``[rows, words]`` or compact ``[ceil(free / 32)]``.
        weight_scale: buffer, one float32: what the integer weights are multiplied by.
        bias: parameter ``[rows]`` or None.
        source: what generates the weights and the frozen pattern here; of the whole layer, or of a shard of it.
        whole: the source of the whole layer.
        group: the processes that hold the shards of it; None where there are none.
        total, pruned, free, locked: counts of the whole layer's weights.
        sparsity: fraction of all weights, frozen included, that a mask of this layer's own drops; None keeps all.
        auto_mask: whether the mask is made anew, of this layer's `sparsity`, when it is used and the scores have
            changed since: by a forward, ``eval()``, ``state_dict()``, `save_ticket` and the methods that look at it.
            A change is seen by the scores' version counter, a step of an optimizer, and another tensor in their place;
            after a write to ``scores.data`` call `update_mask`. A compiled graph cannot see one: it makes the mask in
            every forward in training, and in evaluation uses that of the last ``eval()``. In a sharded layer, every
            process has to use the mask. An `EdgePopup`, `load_ticket` and `load_mask` turn `auto_mask` off: then only
            they change the mask. The state says so too (``mask_origin``): a layer that has loaded such a mask, by
            whatever loader, keeps it until an `EdgePopup`, a ticket or `update_mask` makes another.
        mask_origin: buffer, int64 ``[2]``: who made the mask (`freshness.Maker`), and a fingerprint of the scores that
            it was made of, 0 where none is recorded.
        dtype: of the weight, as ``.to(dtype)`` leaves it; products take inputs of any.
        graded_scores: what a forward puts in the scores' place, for another gradient than Edge-Popup's (as
            `BernoulliMasks` does): a function of them with the same values; None for the scores themselves.

    Moving a layer, or casting it to another dtype, never changes a score or a mask bit: scores stay float32.
    """

    graded_scores: Callable[[Tensor], Tensor] | None = None

    def __init__(
        self,
        source: Source,
        bias: bool,
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
        identity = torch.empty(len(_IDENTITY), dtype=torch.int64, device=device)
        self.register_buffer("source_id", identity)  # so that a checkpoint of another network is refused
        self.register_buffer("mask_origin", torch.zeros(2, dtype=torch.int64, device=device))
        self.bias = nn.Parameter(torch.empty(source.rows, device=device, dtype=dtype)) if bias else None
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
    def score_gain(self) -> float:
        """Initial scores have Kaiming's standard deviation ``score_gain / sqrt(fan)``: that of the weights."""
        return self.gain

    def _identity(self, source: Source) -> list[int]:
        """What a state has to have in common with this layer."""
        (gain,) = struct.unpack("<q", struct.pack("<d", self.gain))
        return [CONTRACT_VERSION, *source, SCALES.index(self.scale), gain]

    def _write_identity(self) -> None:
        self.source_id.copy_(torch.tensor(self._identity(self.source), device="cpu"))

    def _scores_to_grade(self) -> Tensor | None:
        """The scores as a forward hands them to the operations."""
        self._warn_of_ignored_steps()
        return self.scores if self.graded_scores is None or self.scores is None else self.graded_scores(self.scores)

    def is_initialized(self) -> bool:
        """False on the meta device, and as ``to_empty`` leaves it: there is no mask then."""
        tensors = (self.mask_words, self.weight_scale, self.source_id, self.mask_origin, self.scores)
        if any(t is not None and t.is_meta for t in tensors):
            return False
        return self.source_id.tolist() == self._identity(self.source)

    def _check_state(self) -> None:
        """Raises RuntimeError unless the buffers, as some loader may have left them, are this layer's."""
        here, identity = self._identity(self.source), self.source_id.tolist()
        if identity != here and identity != here[: 1 + len(self.source)]:  # the latter from before scale and gain
            raise RuntimeError(
                f"source_id is of another network: {_differences(identity, here)}; or nothing was loaded after "
                "to_empty: expected this layer's own state, or reset_parameters()"
            )
        words = {(bits.words_for(self.source.free),), (self.source.rows, self.source.words)}
        expected = (
            ("mask_words", torch.int32, words),
            ("weight_scale", torch.float32, {()}),
            ("mask_origin", torch.int64, {(2,)}),
        )
        for name, dtype, shapes in expected:
            tensor = self._buffers[name]
            if tensor.dtype != dtype or tuple(tensor.shape) not in shapes:
                raise RuntimeError(
                    f"{name}: expected {dtype} of shape {' or '.join(map(str, sorted(shapes)))}, got {tensor.dtype} of "
                    f"{tuple(tensor.shape)}: a loader has cast or replaced it"
                )
        if self.mask_origin[0].item() not in list(Maker):
            raise RuntimeError(
                f"mask_origin={self.mask_origin.tolist()}: expected a first number of 0 to {len(Maker) - 1}"
            )
        if self.mask_words.dim() != (1 if self.compact else 2):  # as a layer of the other form has it
            self.mask_words = self._in_own_form(self.mask_words)

    def _in_own_form(self, words: Tensor) -> Tensor:
        """Mask words, resolved or compact, in the form that this layer holds."""
        if words.dim() == (1 if self.compact else 2):
            return words
        free, locked = self.source.frozen_words(words.device)
        return bits.gather(words, free) if self.compact else bits.scatter(words, free) | locked

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initial scores from the seed (`reset_scores`); bias as PyTorch's.

        With it a layer made on the meta device becomes a whole one: ``layer.to_empty(device=...)``, then this.
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
            inverse = torch.erfinv(scores.cpu()).to(scores.device)  # another device's erfinv has other last bits
            scores = inverse * (std * math.sqrt(2))
        spread.copy_(self.scores, self._part_of_scores(scores))

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

        Raises:
            RuntimeError: the scores were dropped.
        """
        self._need_scores()
        maker = Maker.LAYER if threshold is None else Maker.THRESHOLD
        if threshold is None:
            threshold = spread.select([self], self.rank)
        self.take_mask(*spread.pack(self, threshold), maker)

    @torch.no_grad()
    def take_mask(self, words: Tensor, kept: Tensor, maker: Maker = Maker.SAMPLE) -> None:
        """Takes a mask as `ops.pack` makes it.

        Args:
            words: int32, in this layer's form, of the shape of `mask_words`.
            kept: int64, one element: how many weights it keeps, frozen ones included.
            maker: who made it.

        Raises:
            ValueError: words of another dtype or shape.
        """
        if not torch.compiler.is_compiling():
            self._read_changed_state()
        _check_words("words", words, self.mask_words.shape)
        self.mask_words.copy_(words)
        self.weight_scale.copy_(self._scale_for(kept))
        self._remember_scores(maker)

    def drop_scores(self) -> None:
        """Gives back the scores' memory, 32 bits a free weight, in a layer that is used and not searched.

        Its mask stays as it is, its answers are the same bits, and gradients flow to its input and bias. From now on
        only `load_mask` and `load_ticket` change the mask; `load_state_dict` takes states with scores and without.
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
        """As ``nn.Module``'s; evaluation starts with the mask of the scores where `auto_mask` is on."""
        if not mode and not self._is_fresh() and self.is_initialized():
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
        _check_words("compact", compact, (bits.words_for(free),))
        weight_scale = _scale_number(weight_scale)
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

        They are the whole layer's: of a sharded one, every process of the `group` has to ask.
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

    # A shard of the layer

    @torch.no_grad()
    def shard(
        self, group: dist.ProcessGroup, rows: tuple[int, int] | None = None, words: tuple[int, int] | None = None
    ) -> None:
        """Keeps rows ``[n0, n1)``, or words ``[w0, w1)`` of each, with their scores and mask bits, and drops the rest.

        Thresholds, scale, counts and tickets stay the whole layer's: the processes of ``group`` hold all of its
        shards, and make masks together. `parallel` has what tensor parallelism needs besides. `scores` is a new
        parameter: make the optimizer afterwards.

        Raises:
            ValueError: a layer that is sharded already, or a range that is empty or leaves it.
        """
        if self.group is not None or spread.is_dtensor(self.scores):
            raise ValueError("layer: expected one that is not sharded yet")
        fresh = self._is_fresh()
        resolved = self._resolved_words()
        self.source = self.whole.shard(rows, words)
        self.group = group
        shape = bits.words_for(self.source.free) if self.compact else (self.source.rows, self.source.words)
        self.mask_words = self.mask_words.new_empty(shape)
        self._take_words(resolved[self._part])
        self.source_id = torch.tensor(self._identity(self.source), device=self.source_id.device)
        if self.scores is not None:
            self.scores = nn.Parameter(self._part_of_scores(self.scores.detach()), self.scores.requires_grad)
            if fresh:
                self._remember_scores()
        if self.bias is not None:
            self.bias = nn.Parameter(self.part_of_bias(self.bias.detach()).clone(), self.bias.requires_grad)

    @property
    def _part(self) -> tuple[slice, slice]:
        """This shard's words among the whole layer's ``[rows, words]``."""
        row, word = self.source.first_row - self.whole.first_row, self.source.first_word - self.whole.first_word
        return slice(row, row + self.source.rows), slice(word, word + self.source.words)

    def _part_of_scores(self, scores: Tensor) -> Tensor:
        """The scores of this shard's free weights, of the whole layer's."""
        if self.group is None:
            return scores
        free = bits.unpack(self.whole.frozen_words(scores.device)[0])  # [rows, words, 32]
        mine = torch.zeros_like(free)
        mine[self._part] = True
        return scores[mine[free]]

    def whole_bias(self) -> Tensor:
        """The bias of all rows; of a sharded layer, every process of the `group` has to ask."""
        if self.source.rows == self.whole.rows:
            return self.bias.detach()
        bias = self.bias.new_zeros(self.whole.rows, requires_grad=False)
        bias[self._part[0]] = self.bias.detach()
        dist.all_reduce(bias, group=self.group)
        return bias

    def part_of_bias(self, bias: Tensor) -> Tensor:
        """This shard's rows of the bias of all."""
        return bias[self._part[0]]

    def _resolved_words(self) -> Tensor:
        return ops.expand(self.mask_words, self.source) if self.compact else self.mask_words

    def _take_words(self, resolved: Tensor) -> None:
        free = self.source.frozen_words(resolved.device)[0]
        self.mask_words.copy_(bits.gather(resolved.contiguous(), free) if self.compact else resolved)

    # Looking and testing: all of these materialize, of a sharded layer the shard

    def frozen_state(self) -> Tensor:
        """Int8, the weight's shape: -1 pruned, 0 free, +1 locked."""
        return self._as_weight(self.source.frozen_state(self.mask_words.device))

    def integer_weight(self) -> Tensor:
        """Int8, the weight's shape: the random weight without mask and scale."""
        return self._as_weight(self.source.integer_weight(self.mask_words.device))

    def mask(self) -> Tensor:
        """Bool, the weight's shape: what is kept, frozen and learned decided."""
        self._refresh_mask()
        return self._as_weight(bits.to_k_order(bits.unpack(self._resolved_words()), self.source.fan))

    def dense_weight(self) -> Tensor:
        """Float32, the weight's shape: the effective weight ``scale * mask * v``."""
        self._refresh_mask()
        return self._as_weight(ops.materialize(self.mask_words, self.source)) * self.weight_scale

    @property
    def weight(self) -> GeneratedWeight:
        """The weight, read-only, for code that asks for it: see `GeneratedWeight`."""
        return GeneratedWeight(self)

    # nn.Module

    def __setattr__(self, name: str, value: object) -> None:
        if name == "weight":
            if isinstance(value, GeneratedWeight) and value._layer is self:
                return
            raise AttributeError(
                f"weight: expected none, since a {type(self).__name__} generates its own from its seed: it cannot be "
                "set, nor tied to another layer's (in transformers set tie_word_embeddings=False)"
            )
        if name == "sparsity" and value is not None:
            value = fraction(name, value)  # once, so that a rank is computed in Python floats
        if name != "scores":
            super().__setattr__(name, value)
            return
        # FSDP2 shards scores, and gathers them for each use: they stay what they were, and those that it shards count.
        old, is_sharded = self._parameters.get("scores"), spread.is_dtensor(value)
        was_sharded = spread.is_dtensor(old)
        fresh = (is_sharded or was_sharded) and self._is_fresh()
        super().__setattr__(name, value)
        gathered = was_sharded and not is_sharded
        object.__setattr__(self, "_sharded_scores", old if gathered else None)  # no parameter of its own
        if fresh:
            self._accept_state()

    def __getstate__(self) -> dict:
        # A copy's scores count their versions anew: what it can know is whether its mask was of them.
        return {**self.__dict__, "_seen": self._is_fresh()}

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        fresh, self._seen = self._seen, None
        if fresh:
            self._accept_state()

    def _apply(self, fn, recurse: bool = True):
        exact = {id(t) for t in (self.scores, getattr(self.scores, "grad", None), self.weight_scale) if t is not None}
        fresh, self._seen = self._is_fresh(), None
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=self.mask_words.device)).dtype

        def keep_precision(t: Tensor) -> Tensor:
            new = fn(t)
            return t.to(new.device) if id(t) in exact and new.dtype != t.dtype else new

        super()._apply(keep_precision, recurse)
        if fresh and self.is_initialized():  # moving is no change; ``to_empty`` is
            self._accept_state()
        return self

    def _save_to_state_dict(self, destination, prefix, keep_vars) -> None:
        if self.is_initialized():  # after to_empty a state is a template to load into
            self._refresh_mask()
            self._record_fingerprint()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing, unexpected, errors) -> None:
        if self.scores is None:
            state_dict.pop(f"{prefix}scores", None)
        if f"{prefix}source_id" in state_dict:
            here, identity = self._identity(self.source), state_dict[f"{prefix}source_id"].tolist()
            if len(identity) == 1 + len(self.source):  # as states were before they told scale and gain
                identity += here[len(identity) :]
                state_dict[f"{prefix}source_id"] = torch.tensor(identity)
            if self.group is not None and identity == self._identity(self.whole):
                self._take_part_of_state(state_dict, prefix)
            elif identity != here:
                errors.append(f"{prefix}source_id is of another network: {_differences(identity, here)}")
                return
        for name, dtypes in _STATE_DTYPES.items():
            tensor = state_dict.get(prefix + name)
            if tensor is not None and tensor.dtype not in dtypes:
                errors.append(f"{prefix}{name}: expected {dtypes[0]}, got {tensor.dtype}: a cast has lost bits of it")
                return
        words = state_dict.get(f"{prefix}mask_words")
        together = words is not None and (self.scores is None or f"{prefix}scores" in state_dict)
        if words is not None:
            state_dict[f"{prefix}mask_words"] = self._in_own_form(words)
            if f"{prefix}mask_origin" not in state_dict:  # a state from before it: the mask stays until scores change
                scores = state_dict.get(f"{prefix}scores", self.scores)
                known = scores is not None and not spread.is_dtensor(scores) and not scores.is_meta
                origin = [Maker.LAYER, fingerprint(scores.float()) if known else UNRECORDED]
                state_dict[f"{prefix}mask_origin"] = torch.tensor(origin, device=words.device)
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)
        self._seen = None
        if together and not errors and spread.is_dtensor(self._counted_scores()):
            self._read_changed_state()
            self._accept_state()  # they have no fingerprint, and came with their mask

    def _take_part_of_state(self, state_dict: dict, prefix: str) -> None:
        """Makes the whole layer's state this shard's."""

        def resolved(words: Tensor) -> Tensor:
            return ops.expand(words, self.whole) if words.dim() == 1 else words

        parts = {
            "scores": self._part_of_scores,
            "mask_words": lambda words: resolved(words)[self._part].contiguous(),
            "bias": self.part_of_bias,
            "source_id": lambda _: self.source_id,
            "mask_origin": lambda origin: torch.stack((origin[0], origin[1].new_zeros(()))),
        }
        for name, part in parts.items():
            if prefix + name in state_dict:
                state_dict[prefix + name] = part(state_dict[prefix + name])

    def _repr_options(self) -> str:
        parts = [f"prune={self.freeze.prune:.4g}, lock={self.freeze.lock:.4g}, sparsity={self.sparsity}"]
        parts += [f"weight={WEIGHTS[self.source.weight]}, scale={self.scale}"]
        parts += [f"seed={self.source.seed & (2**64 - 1)}, layer={self.source.layer}, free={self.free}"]
        return ", ".join(parts)


def drop_scores(model: nn.Module) -> nn.Module:
    """Drops the scores of all supermask layers (`SupermaskLayer.drop_scores`), and gives back the model.

    A network that is only used then holds a bit a weight, and what is no supermask layer. On the meta device nothing
    is allocated before a ticket is loaded, which gives every parameter and buffer of the model's ``state_dict``::

        with torch.device("meta"):
            model = drop_scores(network())
        load_ticket("net.slt", model.to_empty(device="cpu"))

    Raises:
        TypeError: no module.
        ValueError: no supermask layer.
    """
    for layer in supermask_layers(model):
        layer.drop_scores()
    return model


def layers_to_search(model: nn.Module) -> list[SupermaskLayer]:
    """The supermask layers of a model.

    Raises:
        TypeError: no module.
        ValueError: there is none, or one's scores were dropped.
    """
    layers = supermask_layers(model)
    if any(layer.scores is None for layer in layers):
        raise ValueError("model: its scores were dropped; expected supermask layers that have them")
    return layers


def supermask_layers(model: nn.Module) -> list[SupermaskLayer]:
    """The supermask layers of a model.

    Raises:
        TypeError: no module.
        ValueError: there is none.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a module, got {type(model).__name__}")
    layers = [m for m in model.modules() if isinstance(m, SupermaskLayer)]
    if not layers:
        raise ValueError("model: expected at least one supermask layer in it")
    return layers
