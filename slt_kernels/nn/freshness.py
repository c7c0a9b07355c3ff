"""When a layer makes its mask again: the record of who made the mask, and from which scores.

Some loaders write parameters and buffers one by one and call no method of the layer. So the record is part of the
state, the buffer ``mask_origin``. It is read again when a buffer was replaced or written.
"""

import warnings
from enum import IntEnum
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from . import sharded_scores

_CHUNK = 1 << 20  # scores per step of a fingerprint: bounds its memory


class Maker(IntEnum):
    """Who made a mask; the first number of ``mask_origin``."""

    LAYER = 0  # the layer alone, with its own sparsity
    THRESHOLD = 1  # an EdgePopup, or whoever gave `update_mask` a threshold
    SAMPLE = 2  # BernoulliMasks, or whoever called `take_mask`
    LOADED = 3  # `load_mask` and `load_ticket`; also the mask of a layer whose scores were dropped


UNRECORDED = 0  # second number of ``mask_origin``: no fingerprint of the scores


def fingerprint(scores: Tensor) -> int:
    """A 64-bit sum over the bits and positions of scores, the same on every device; never `UNRECORDED`.

    Args:
        scores: float32 or float64 ``[n]``, contiguous or not.
    """
    integer = {4: torch.int32, 8: torch.int64}[scores.element_size()]
    bits = scores.detach().contiguous().view(integer)
    total = torch.zeros((), dtype=torch.int64, device=scores.device)
    for start in range(0, len(bits), _CHUNK):
        part = bits[start : start + _CHUNK].long()
        place = torch.arange(start, start + len(part), device=scores.device)
        total += ((part ^ part >> 29) * (2 * place + 0x5851F42D4C957F2D)).sum()  # wraps; odd factors lose no bit
    return int(total) or 1


class _Seen(NamedTuple):
    """The tensors of a layer for which its mask is known to be valid.

    Keeps them, and the scores' storage, alive so that their addresses cannot be reused.
    """

    scores: tuple[int, int | None, int]  # address, version, and steps of optimizers
    state: tuple[int | None, ...]  # ids and versions of the buffers
    held: tuple[object, ...]
    shared: bool  # other processes may write the scores, which no version tells


def _version(tensor: Tensor) -> int | None:
    """The version counter; inference tensors have none."""
    return None if tensor.is_inference() else tensor._version


def _address(tensor: Tensor) -> int:
    try:
        return tensor.data_ptr()
    except RuntimeError:  # a DTensor, or a tensor that functorch wraps
        return id(tensor)


class FreshMask(nn.Module):
    """Base of `SupermaskLayer`: keeps the mask up to date with the scores, or keeps the mask that was loaded.

    Subclasses have the parameter ``scores`` (or None), the buffers ``mask_words``, ``mask_origin`` and ``source_id``,
    and ``update_mask()``.
    """

    _lacks_scores = False  # a state was loaded that had a mask, and no scores so far

    def __init__(self) -> None:
        super().__init__()
        _hook_optimizers()
        self._auto_mask = True
        self._maker = Maker.LAYER
        self._fingerprint = UNRECORDED  # as mask_origin holds it
        self._seen: _Seen | None = None
        self._sharded_scores: Tensor | None = None  # FSDP2's, while gathered ones take their place

    @property
    def auto_mask(self) -> bool:
        """Whether the layer makes its own mask when it is used and its scores have changed; see `SupermaskLayer`."""
        if not torch.compiler.is_compiling():
            self._read_changed_state()
        return self._auto_mask and self._maker == Maker.LAYER

    @auto_mask.setter
    def auto_mask(self, value: bool) -> None:
        self._auto_mask = value
        if value and self._maker != Maker.LAYER:  # from now on the layer's own, though the present mask stays
            self._remember_scores(Maker.LAYER)

    def _present_scores(self) -> Tensor | None:
        """``self.scores``, found faster.

        Raises:
            RuntimeError: code has taken the parameter away, as ``torch.nn.utils.prune`` does.
        """
        try:
            return self._parameters["scores"]
        except KeyError:
            raise RuntimeError(
                "scores: no parameter of the layer any more; expected one that is neither pruned nor parametrized (the "
                "mask prunes)"
            ) from None

    def _counted_scores(self) -> Tensor | None:
        """The scores whose changes count: those that an optimizer has."""
        return self._present_scores() if self._sharded_scores is None else self._sharded_scores

    def _scores_key(self) -> tuple[int, int | None, int]:
        scores = self._sharded_scores
        if scores is None:
            scores = self._present_scores()
        return (0, None, 0) if scores is None else (_address(scores), _version(scores), getattr(scores, "steps", 0))

    def _state_key(self) -> tuple[int | None, ...]:
        buffers = self._buffers
        origin, source_id = buffers["mask_origin"], buffers["source_id"]
        return id(buffers["mask_words"]), id(origin), _version(origin), id(source_id), _version(source_id)

    def _state_is_seen(self) -> bool:
        """Whether no buffer was replaced or written since the mask was known to be valid."""
        return self._seen is not None and self._seen.state == self._state_key()

    def _see(self) -> None:
        """Records the present tensors as those for which the mask is valid."""
        scores, buffers = self._counted_scores(), self._buffers
        storage = scores if scores is None or sharded_scores.is_dtensor(scores) else scores.untyped_storage()
        held = (scores, storage, *(buffers[name] for name in ("mask_words", "mask_origin", "source_id")))
        shared = isinstance(storage, torch.UntypedStorage) and storage.device.type == "cpu" and storage.is_shared()
        self._seen = _Seen(self._scores_key(), self._state_key(), held, shared)

    def _remember_scores(self, maker: Maker | None = None) -> None:
        """Records that the mask was just made from the present scores, and by whom (None: as before)."""
        self._lacks_scores = False
        if torch.compiler.is_compiling():
            self._seen = None
            if maker is not None:
                self.mask_origin.fill_(0).select(0, 0).fill_(int(maker))
            return
        if maker is not None and not (
            self._maker == maker and self._fingerprint == UNRECORDED and self._origin_is_read()
        ):
            self._write_origin(maker, UNRECORDED)
        scores = self._counted_scores()
        if scores is not None:
            scores.makes_mask, scores.step_is_open, scores.steps_since_mask = True, False, 0
        self._see()

    def _origin_is_read(self) -> bool:
        """Whether ``mask_origin`` is the tensor that was last read or written, unchanged."""
        return self._seen is not None and self._seen.state[1:3] == self._state_key()[1:3]

    def _forget_scores(self) -> None:
        """Has the layer's own mask made again, even from the same scores."""
        if self._maker == Maker.LAYER and not self.mask_origin.is_meta:
            self._write_origin(Maker.LAYER, UNRECORDED)
            self._seen = None

    def _write_origin(self, maker: Maker, fingerprint: int) -> None:
        self._maker, self._fingerprint = maker, fingerprint
        if self.mask_origin.is_inference() and not torch.is_inference_mode_enabled():
            self._fingerprint = UNRECORDED  # such a tensor cannot be written here
        else:
            self.mask_origin.copy_(torch.tensor([maker, fingerprint], device="cpu"))

    def _record_fingerprint(self) -> None:
        """Writes the fingerprint of the scores if the mask is theirs; sharded scores have none."""
        scores = self.scores
        if scores is None or self._fingerprint != UNRECORDED or not self._is_fresh() or self.mask_origin.is_meta:
            return
        if not sharded_scores.is_dtensor(scores) and not scores.is_meta:
            self._write_origin(self._maker, fingerprint(scores))
            self._see()

    def _is_fresh(self) -> bool:
        """Whether no tensor was replaced or written since the mask was known to be valid."""
        seen = self._seen
        if seen is None or seen.state != self._state_key() or seen.scores != self._scores_key():
            return False
        if seen.shared:
            return False
        if seen.scores[1] is None and self._parameters["scores"] is not None:
            # Inference tensors have no version; they are written in inference mode only.
            return not (self.training and torch.is_inference_mode_enabled())
        return True

    def _read_for_graph(self) -> bool:
        """`_read_changed_state` while a graph is traced: run for real then, and no part of the graph."""
        return self._read_changed_state()

    _read_for_graph._dynamo_marked_constant = True  # as `torch.compiler.assume_constant_result`, which imports dynamo

    def _read_changed_state(self) -> bool:
        """Reads ``mask_origin`` again if a tensor was replaced or written; returns whether the mask may be stale."""
        if self._is_fresh():
            return False
        if not self._state_is_seen():
            if any(self._buffers[name].is_meta for name in ("mask_words", "mask_origin", "source_id")):
                return False
            self._check_state()
            maker, self._fingerprint = self.mask_origin.tolist()
            self._maker = Maker(maker)
        return True

    def _refresh_mask(self) -> None:
        """Makes the mask again if it is the layer's own and the scores have changed."""
        scores = self._present_scores()
        if torch.compiler.is_compiling():
            if scores is not None and self._auto_mask and self.training:
                if torch.compiler.is_dynamo_compiling():  # torch.export may trace with fake tensors, which hold nothing
                    self._read_for_graph()
                if self._maker == Maker.LAYER:
                    self.update_mask()
            return
        state_changed = not self._state_is_seen()
        if self._read_changed_state() and not (scores is not None and scores.is_meta):
            alone = scores is not None and self._lacks_scores and self._maker == Maker.LAYER
            if alone and not self._is_recorded(scores):  # the scores here are others than those that made the mask
                self._write_origin(Maker.LOADED, UNRECORDED)
            self._lacks_scores = False
            own = self._maker == Maker.LAYER and self._auto_mask
            if scores is not None and own and not self._is_recorded(scores):
                self.update_mask()
                return
            if scores is not None and not own and self._is_of_other_scores(scores):
                self._warn_of_other_scores("scores were changed")
            if state_changed:
                self._check_mask()
            self._accept_state()

    def _accept_state(self) -> None:
        """Records that the present mask is valid for the present scores."""
        scores = self._counted_scores()
        if scores is not None:
            scores.makes_mask = True
        self._see()

    def _is_recorded(self, scores: Tensor) -> bool:
        """Whether ``mask_origin`` has the fingerprint of these scores."""
        return (
            self._fingerprint != UNRECORDED
            and self._has_fingerprint(scores)
            and fingerprint(scores) == self._fingerprint
        )

    def _has_fingerprint(self, scores: Tensor) -> bool:
        if sharded_scores.is_dtensor(scores) or scores.is_inference():
            return False
        return scores.dtype in (torch.float32, torch.float64)

    def _is_of_other_scores(self, scores: Tensor) -> bool:
        """Whether the mask is known to be of other scores, and no step of an optimizer is the reason."""
        if not self._state_is_seen():
            return self._fingerprint != UNRECORDED and self._has_fingerprint(scores) and not self._is_recorded(scores)
        counted = self._counted_scores()
        by_optimizer = getattr(counted, "stepped_version", None) == _version(counted)
        return not (by_optimizer or getattr(counted, "step_is_open", False))

    def _warn_of_ignored_steps(self) -> None:
        """Warns if scores are trained and nothing makes masks from them."""
        scores = self._counted_scores()
        if torch.compiler.is_compiling() or not (self.training and getattr(scores, "steps_since_mask", 0)):
            return
        scores.steps_since_mask = 0
        if self._maker == Maker.LAYER and self._auto_mask:
            return
        self._warn_of_other_scores("scores were trained")

    def _warn_of_other_scores(self, what: str) -> None:
        made = {
            Maker.LAYER: "the layer, whose auto_mask was turned off",
            Maker.THRESHOLD: "an EdgePopup (or a threshold given to update_mask)",
            Maker.SAMPLE: "BernoulliMasks (or take_mask)",
            Maker.LOADED: "load_ticket or load_mask",
        }[self._maker]
        warnings.warn(
            f"{what}, but the masks are still those made by {made}: attach(optimizer) an EdgePopup, or call its step() "
            "after each change of the scores",
            stacklevel=5,
        )


@torch._disable_dynamo  # `torch.compiler.disable` would import the compiler now
def _count_step(optimizer: torch.optim.Optimizer, *_: object) -> None:
    """Counts steps: fused optimizers, and those that write to ``.data``, increment no version.

    Runs after the optimizer's own hooks. One that has made a mask has closed the step; others are counted.
    """
    for group in optimizer.param_groups:
        for p in group["params"]:
            if getattr(p, "makes_mask", False):
                p.steps, p.stepped_version = getattr(p, "steps", 0) + 1, _version(p)
                if getattr(p, "step_is_open", False) and p.grad is not None:
                    p.step_is_open, p.steps_since_mask = False, getattr(p, "steps_since_mask", 0) + 1


@torch._disable_dynamo
def _expect_mask(optimizer: torch.optim.Optimizer, *_: object) -> None:
    """Opens a step of the scores. It is counted at its end: a closure runs forwards inside it."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            if getattr(p, "makes_mask", False):
                p.step_is_open = True


@cache
def _hook_optimizers() -> None:
    """Once per process, when its first layer is made: importing the package changes no optimizer."""
    register_optimizer_step_pre_hook(_expect_mask)
    register_optimizer_step_post_hook(_count_step)
