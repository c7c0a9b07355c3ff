"""How a layer is saved, loaded, copied and moved, and the checks of a state that was made for another layer."""

import struct

import torch
from torch import Tensor

from .. import bits, ops
from ..source import CONTRACT_VERSION, Source, fraction
from . import sharded_scores
from .freshness import UNRECORDED, Maker, fingerprint
from .generated_weight import GeneratedWeight
from .inspection import InspectedLayer

SCALES = (None, "static", "dynamic")
IDENTITY = ("contract", *Source._fields, "scale", "gain")
_FIXED = {  # attributes that the weights or the states of a layer depend on
    *("scale", "gain", "freeze", "compact", "in_features", "out_features", "in1_features", "in2_features"),
    *("num_embeddings", "embedding_dim", "in_channels", "out_channels", "kernel_size", "groups"),
}
_STATE_DTYPES = {
    "mask_words": (torch.int32,),
    "source_id": (torch.int64,),
    "mask_origin": (torch.int64,),
    "weight_scale": (torch.float32,),
    "scores": (torch.float32, torch.float64),
}


class LayerState(InspectedLayer):
    """The part of `SupermaskLayer` that overrides ``nn.Module``: attributes, copies, moves, ``state_dict``."""

    _plan: ops.Plan | None = None  # of calls without gradients
    _activations: str | None = None
    _signs: Tensor | None = None  # sign words of the source; no buffer, because they follow from it

    def _identity(self, source: Source) -> list[int]:
        """The numbers that a state of this layer has in ``source_id``."""
        (gain,) = struct.unpack("<q", struct.pack("<d", self.gain))
        return [CONTRACT_VERSION, *source, SCALES.index(self.scale), gain]

    def _write_identity(self) -> None:
        self.source_id.copy_(torch.tensor(self._identity(self.source), device="cpu"))

    def is_initialized(self) -> bool:
        """False on the meta device and after ``to_empty``: there is no mask then."""
        tensors = (self.mask_words, self.weight_scale, self.source_id, self.mask_origin, self.scores)
        if any(t is not None and t.is_meta for t in tensors):
            return False
        return self.source_id.tolist() == self._identity(self.source)

    def _check_state(self) -> None:
        """Raises RuntimeError unless the buffers, as some loader may have left them, are this layer's."""
        here, identity = self._identity(self.source), self.source_id.tolist()
        if identity != here and identity != here[: 1 + len(self.source)]:  # without scale and gain in old states
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

    def _check_mask(self) -> None:
        """Raises RuntimeError for a mask that no search can have made, as averages of mask words are."""
        if wrong := self.wrong_frozen_bits():
            raise RuntimeError(
                f"mask_words: {wrong:,} of its bits keep pruned weights or drop locked ones, so something has averaged "
                "or overwritten it: expected a mask as state_dict holds it (leave buffers out of averages)"
            )

    def _in_own_form(self, words: Tensor) -> Tensor:
        """Mask words, resolved or compact, in the form that this layer holds."""
        if words.dim() == (1 if self.compact else 2):
            return words
        free, locked = self.source.frozen_words(words.device)
        return bits.gather(words, free) if self.compact else bits.scatter(words, free) | locked

    def __setattr__(self, name: str, value: object) -> None:
        if name == "weight":
            if isinstance(value, GeneratedWeight) and value._layer is self:
                return
            raise AttributeError(
                f"weight: expected none, since a {type(self).__name__} generates its own from its seed: it cannot be "
                "set, nor tied to another layer's; convert(model, tie=True) makes layers that share one"
            )
        # The old value of other names is not read, because a changed value that a graph has read recompiles it.
        if name in _FIXED and value != self.__dict__.get(name, value):
            raise AttributeError(f"{name}: fixed when the layer is made, since its weights or its states depend on it")
        if name == "sparsity":
            before = self.__dict__.get(name, value)
            value = None if value is None else fraction(name, value)  # so that a rank is computed in Python floats
            if value != before:
                self._forget_scores()
        if name == "source":
            self._signs = None
        if name != "scores":
            super().__setattr__(name, value)
            return
        # FSDP2 replaces scores by sharded ones, and gathers them for each use: their values stay the same. The version
        # of the sharded ones counts, since the optimizer has them.
        old, is_sharded = self._parameters.get("scores"), sharded_scores.is_dtensor(value)
        was_sharded = sharded_scores.is_dtensor(old)
        fresh = (is_sharded or was_sharded) and self._is_fresh()
        super().__setattr__(name, value)
        gathered = was_sharded and not is_sharded
        object.__setattr__(self, "_sharded_scores", old if gathered else None)  # no parameter of its own
        if fresh:
            self._accept_state()

    def __delattr__(self, name: str) -> None:
        if name == "scores":
            raise AttributeError(
                "scores: a supermask layer keeps its own, but FullyShardedDataParallel and parametrizations take them "
                "away: expected fully_shard (FSDP2), or a layer that is not parametrized"
            )
        super().__delattr__(name)

    def __getstate__(self) -> dict:
        # The versions of a copy's scores start again, so it carries only whether its mask was that of its scores.
        # A plan holds addresses.
        return {**super().__getstate__(), "_seen": self._is_fresh(), "_plan": None}

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        fresh, self._seen = self._seen, None
        if fresh:
            self._accept_state()

    def _in_form(self) -> Tensor:
        """A tensor in the dtype and the format of the weight, which shows what a move or a cast would do to it."""
        return torch.empty(0, dtype=self.dtype, device=self.mask_words.device)

    def _take_form(self, weight: Tensor) -> None:
        self.dtype = weight.dtype

    def _apply(self, fn, recurse: bool = True):
        exact = {id(t) for t in (self.scores, getattr(self.scores, "grad", None), *self._buffers.values())}
        was_meta = self.source_id.is_meta
        fresh, self._seen, self._plan = self._is_fresh(), None, None  # addresses may be used again
        self._take_form(fn(self._in_form()))

        def keep_precision(t: Tensor) -> Tensor:
            new = fn(t)
            return t.to(new.device) if id(t) in exact and new.dtype != t.dtype else new

        super()._apply(keep_precision, recurse)
        if was_meta and not self.source_id.is_meta:  # ``to_empty``, in whose memory may be what another layer left
            self.source_id.zero_()
        if self._signs is not None:
            device = self.mask_words.device
            self._signs = None if device.type == "meta" else self._signs.to(device)
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
            if len(identity) == 1 + len(self.source):  # a state from before scale and gain
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
            # A whole state of an older release; other loaders pass a tensor at a time, in any order.
            if f"{prefix}source_id" in state_dict and f"{prefix}mask_origin" not in state_dict:
                scores = state_dict.get(f"{prefix}scores", self.scores)
                known = scores is not None and not sharded_scores.is_dtensor(scores) and not scores.is_meta
                origin = [Maker.LAYER, fingerprint(scores.float()) if known else UNRECORDED]
                state_dict[f"{prefix}mask_origin"] = torch.tensor(origin, device=words.device)
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)
        if any(prefix + name in state_dict for name in self._buffers):
            self._seen = None
        if f"{prefix}scores" in state_dict:
            self._lacks_scores = False
        elif words is not None:
            self._lacks_scores = self.scores is not None
        origin = state_dict.get(f"{prefix}mask_origin")
        if origin is not None and not errors and not origin.is_meta and origin[0].item() in list(Maker):
            self._maker = Maker(origin[0].item())  # now, because a compiled graph reads no buffer
        if together and not errors and sharded_scores.is_dtensor(self._counted_scores()):
            self._read_changed_state()
            self._accept_state()  # sharded scores have no fingerprint, but they came with their mask

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


def _differences(saved: list[int], here: list[int]) -> str:
    """Of two identities (`SupermaskLayer._identity`), in words."""

    def said(identity: list[int]) -> dict[str, object]:
        named = dict(zip(IDENTITY, identity, strict=False))
        if "gain" in named:
            named["scale"] = dict(enumerate(SCALES)).get(named["scale"], named["scale"])
            named["gain"] = round(*struct.unpack("<d", struct.pack("<q", named["gain"])), 6)
        return named

    ours = said(here)
    found = [f"{name}={x} (expected {ours[name]})" for name, x in said(saved).items() if x != ours[name]]
    return ", ".join(found) or "its gain differs in the last digits, as an average of buffers leaves it"
