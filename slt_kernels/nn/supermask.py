"""What all supermask layers share: scores, a mask made of them, and a scale."""

import math
import struct
from collections.abc import Callable
from numbers import Real
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from .. import bits, ops
from ..source import CONTRACT_VERSION, WEIGHTS, Freeze, Source, fraction, positive
from . import spread

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


class _Made(NamedTuple):
    """What a mask was made of; that it holds the storage keeps its address from coming to mean other scores."""

    scores: torch.UntypedStorage | Tensor
    version: int
    words: Tensor  # into which: ``functional_call`` may put other buffers in place


def _held(scores: Tensor) -> torch.UntypedStorage | Tensor:
    return scores if spread.is_dtensor(scores) else scores.untyped_storage()


@torch._disable_dynamo  # as `torch.compiler.disable`, which would import the compiler now
def _count_step(optimizer: torch.optim.Optimizer, *_: object) -> None:
    """Fused optimizers, and those that write to ``.data``, leave a parameter's version as it was."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            if getattr(p, "makes_mask", False):
                torch.autograd.graph.increment_version(p)


register_optimizer_step_post_hook(_count_step)


class SupermaskLayer(nn.Module):
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
            What tells is the scores' version counter, a step of an optimizer, and another tensor in their place; after
            a write to ``scores.data`` call `update_mask`. A compiled graph cannot ask: it makes the mask in every
            forward in training, and in evaluation uses that of the last ``eval()``. Of a layer that is sharded, every
            process has to ask. An `EdgePopup` and `load_ticket` turn `auto_mask` off: then only they change the mask.
            A ``state_dict`` does not say so: after loading one of a search with an `EdgePopup`, attach it again before
            continuing, or the first changed scores make masks of each layer's own `sparsity`.
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
        self.auto_mask = True
        self.pruned, self.free, self.locked = source.count_frozen()
        self._made: _Made | None = None
        self._sharded_scores: Tensor | None = None  # FSDP2's, while gathered ones stand in their place

        self.scores = nn.Parameter(torch.empty(self.free, dtype=torch.float32, device=device))
        words = (bits.words_for(self.free),) if compact else (source.rows, source.words)
        self.register_buffer("mask_words", torch.zeros(words, dtype=torch.int32, device=device))
        self.register_buffer("weight_scale", torch.zeros((), dtype=torch.float32, device=device))
        identity = torch.empty(len(_IDENTITY), dtype=torch.int64, device=device)
        self.register_buffer("source_id", identity)  # so that a checkpoint of another network is refused
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
        return self.scores if self.graded_scores is None or self.scores is None else self.graded_scores(self.scores)

    def is_initialized(self) -> bool:
        """False on the meta device, and as ``to_empty`` leaves it: the mask is then none."""
        return not self.source_id.is_meta and self.source_id.tolist() == self._identity(self.source)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initial scores from the seed (`reset_scores`); bias as PyTorch's.

        With it a layer made on the meta device becomes a whole one: ``layer.to_empty(device=...)``, then this.
        """
        self._write_identity()
        if self.bias is not None:
            bound = 1 / math.sqrt(self.whole.fan)
            nn.init.uniform_(self.bias, -bound, bound)
        if self.scores is not None:
            self.reset_scores()
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
        if threshold is None:
            threshold = spread.select([self], self.rank)
        self.take_mask(*spread.pack(self, threshold))

    @torch.no_grad()
    def take_mask(self, words: Tensor, kept: Tensor) -> None:
        """Takes a mask as `ops.pack` makes it: its words in this layer's form, and how many weights it keeps."""
        self.mask_words.copy_(words)
        self.weight_scale.copy_(self._scale_for(kept))
        self._remember_scores()

    def drop_scores(self) -> None:
        """Gives back the scores' memory, 32 bits a free weight, in a layer that is used and not searched.

        Its mask stays as it is, its answers are the same bits, and gradients flow to its input and bias. From now on
        only `load_mask` and `load_ticket` change the mask; `load_state_dict` takes states with scores and without.
        """
        self.scores = None
        self.auto_mask = False

    def _need_scores(self) -> None:
        if self.scores is None:
            raise RuntimeError("this layer's scores were dropped: expected a layer that has them")

    def _counted_scores(self) -> Tensor | None:
        """The scores whose changes count: those that an optimizer has."""
        return self.scores if self._sharded_scores is None else self._sharded_scores

    def _remember_scores(self) -> None:
        scores = self._counted_scores()
        if scores is None or torch.compiler.is_compiling() or scores.is_inference():
            self._made = None
        else:
            scores.makes_mask = True
            self._made = _Made(_held(scores), scores._version, self.mask_words)

    def _is_fresh(self) -> bool:
        """Whether the mask is of the scores as they are now."""
        made, scores = self._made, self._counted_scores()
        if made is None or scores is None:
            return scores is None
        return made.version == scores._version and made.scores is _held(scores) and made.words is self.mask_words

    def _refresh_mask(self) -> None:
        """Makes the mask anew if `auto_mask` and the scores ask for it."""
        if self.scores is None or not self.auto_mask:
            return
        if torch.compiler.is_compiling():
            stale = self.training
        elif self.scores.is_inference():  # these have no versions, and change in inference mode alone
            stale = self.training and torch.is_inference_mode_enabled()
        else:
            stale = not self._is_fresh()
        if stale:
            self.update_mask()

    def train(self, mode: bool = True):
        """As ``nn.Module``'s; `auto_mask` sees to it that evaluation starts with the mask of the scores."""
        if not mode:
            self._refresh_mask()
        return super().train(mode)

    @torch.no_grad()
    def load_mask(self, compact: Tensor, weight_scale: Tensor | float) -> None:
        """Takes a mask as it is, with its scale, and keeps it until an `EdgePopup` or `update_mask` makes another.

        Args:
            compact: int32 ``[ceil(free / 32)]``, a bit a free weight.
            weight_scale: the number that multiplies the integer weights.
        """
        compact = compact.to(self.mask_words.device)
        if self.group is not None:
            self._take_words(ops.expand(compact, self.whole)[self._part])
        else:
            self.mask_words.copy_(compact if self.compact else ops.expand(compact, self.source))
        self.weight_scale.fill_(weight_scale)
        self._write_identity()  # which ``to_empty`` has left open
        self.auto_mask = False

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

    # nn.Module

    def __setattr__(self, name: str, value: object) -> None:
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
        self._made = None
        if fresh:
            self._remember_scores()

    def __getstate__(self) -> dict:
        # A copy's scores count their versions anew: what it can know is whether its mask was of them.
        return {**self.__dict__, "_made": self._is_fresh()}

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        fresh, self._made = self._made, None
        if fresh:
            self._remember_scores()

    def _apply(self, fn, recurse: bool = True):
        exact = {id(t) for t in (self.scores, getattr(self.scores, "grad", None), self.weight_scale) if t is not None}
        fresh, self._made = self._is_fresh(), None  # moving is no change

        def keep_precision(t: Tensor) -> Tensor:
            new = fn(t)
            return t.to(new.device) if id(t) in exact and new.dtype != t.dtype else new

        super()._apply(keep_precision, recurse)
        if fresh:
            self._remember_scores()
        return self

    def _save_to_state_dict(self, destination, prefix, keep_vars) -> None:
        self._refresh_mask()
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
        words = state_dict.get(f"{prefix}mask_words")
        if words is not None and words.dim() != self.mask_words.dim():  # saved in the other form
            free, locked = self.source.frozen_words(words.device)
            other = bits.gather(words, free) if self.compact else bits.scatter(words, free) | locked
            state_dict[f"{prefix}mask_words"] = other
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)
        if words is not None:
            self._remember_scores()

    def _take_part_of_state(self, state_dict: dict, prefix: str) -> None:
        """Makes the whole layer's state this shard's."""

        def resolved(words: Tensor) -> Tensor:
            return ops.expand(words, self.whole) if words.dim() == 1 else words

        parts = {
            "scores": self._part_of_scores,
            "mask_words": lambda words: resolved(words)[self._part].contiguous(),
            "bias": self.part_of_bias,
            "source_id": lambda _: self.source_id,
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
