"""A model's layers and other tensors in a ticket; checks whether a ticket fits a model, and loads it."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from .. import bits
from .._text import printable, shown, some_of
from ..nn import SupermaskLayer, sharded_scores
from ..source import WEIGHTS, Source
from .format import TicketError, TicketInfo, TicketLayer, dtype_name

# State of a supermask layer. Scores are not in a ticket; the rest follows from the mask and the index.
_OWN = ("scores", "mask_words", "weight_scale", "source_id", "mask_origin")


@lru_cache
def _is_storable(dtype: torch.dtype) -> bool:
    try:
        to_safetensors({"x": torch.empty(0, dtype=dtype, device="cpu")})
    except Exception:  # the type depends on the version of safetensors
        return False
    return True


@dataclass(frozen=True)
class Other:
    """A parameter or buffer outside the masks; may be sharded, as a DTensor or as the bias of a sharded layer."""

    name: str
    tensor: Tensor
    layer: SupermaskLayer | None  # the sharded layer whose bias this is

    @property
    def dtype(self) -> str:
        return dtype_name(self.tensor)

    @property
    def shape(self) -> torch.Size:
        return self.tensor.shape if self.layer is None else torch.Size([self.layer.whole.rows])

    def check_storable(self) -> None:
        """Raises ValueError for a tensor that safetensors cannot store."""
        if self.tensor.layout != torch.strided or not _is_storable(self.tensor.dtype):
            raise ValueError(
                f"{self.name}: dtype={self.dtype}, layout={self.tensor.layout}: expected a dense tensor of a dtype "
                "that safetensors supports"
            )

    def gather(self) -> Tensor:
        """The complete tensor. If it is sharded, every process must call this."""
        whole = sharded_scores.whole(self.tensor.detach()) if self.layer is None else self.layer.whole_bias()
        return whole.resolve_conj().resolve_neg()

    @torch.no_grad()
    def load(self, values: Tensor) -> None:
        """Writes the complete tensor, or this process's part."""
        sharded_scores.copy_(self.tensor, values if self.layer is None else self.layer.part_of_bias(values))

    def holds(self, values: Tensor) -> bool:
        """Whether the tensor equals these values, bit for bit; True for a sharded one."""
        if self.layer is not None or sharded_scores.is_dtensor(self.tensor):
            return True
        here, there = (t.contiguous().view(-1).view(torch.uint8) for t in (self.gather().cpu(), values))
        return torch.equal(here, there)


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel, DataParallel and ``torch.compile``.

    Raises:
        TypeError: a model that is not a module.
    """
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        elif isinstance(model, torch._dynamo.eval_frame.OptimizedModule):
            model = model._orig_mod
        elif isinstance(model, nn.Module):
            return model
        else:
            raise TypeError(f"model: expected a module, got {type(model).__name__}")


def layers_of(model: nn.Module) -> dict[str, SupermaskLayer]:
    """The model's supermask layers by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, SupermaskLayer)}


def other_tensors(model: nn.Module) -> dict[str, Other]:
    """Parameters and persistent buffers outside the masks, each once.

    Raises:
        ValueError: extra state that is not a tensor, or an uninitialized parameter of a lazy module.
    """
    state = model.state_dict(keep_vars=True)  # first, because with FSDP2 it restores the sharded parameters
    layers = layers_of(model).values()
    seen = {id(getattr(m, name, None)) for m in layers for name in _OWN}
    biases = {id(m.bias): m for m in layers if m.group is not None}
    others = {}
    for name, t in state.items():
        if not isinstance(t, Tensor):
            raise ValueError(f"{name}: expected a tensor, got extra state of type {type(t).__name__}")
        if nn.parameter.is_lazy(t):
            raise ValueError(f"{name}: expected an initialized parameter: call the lazy module once")
        if id(t) not in seen:
            seen.add(id(t))
            others[name] = Other(name, t, biases.get(id(t)))
    return others


class Target:
    """A network that loads a ticket.

    Raises:
        TicketError: as `other_tensors`.
    """

    def __init__(self, model: nn.Module) -> None:
        self.layers = layers_of(model)
        try:
            self.others = other_tensors(model)
        except (ValueError, RuntimeError) as error:  # RuntimeError: a layer cannot compute its mask from its scores
            raise TicketError(str(error)) from None

    def _tensors(self) -> dict[str, Tensor]:
        """All tensors that are written, by name."""
        own = {
            f"{name}.{own}": getattr(m, own)
            for name, m in self.layers.items()
            for own in _OWN
            if own != "scores" and getattr(m, own, None) is not None
        }
        return own | {name: other.tensor for name, other in self.others.items()}

    def check_fits(self, info: TicketInfo) -> None:
        """Raises TicketError unless this is the ticket's network and its tensors can be written."""
        for name, t in self._tensors().items():
            _check_writable(name.removesuffix(".mask_words"), t)
        for name, m in self.layers.items():  # the layer itself has checked its mask words
            if (m.weight_scale.dtype, m.weight_scale.dim()) != (torch.float32, 0):
                found = f"{dtype_name(m.weight_scale)} {list(m.weight_scale.shape)}"
                raise TicketError(f"{name}.weight_scale: the network has {found}, expected float32 []")
        _check_names("supermask layers", [x.name for x in info.layers], list(self.layers))
        _check_names("other tensors", [x.name for x in info.tensors], list(self.others))
        for layer in info.layers:
            _check_layer(layer, self.layers[layer.name])
        if sizes := [layer.name for layer in info.layers if _has_other_gain(layer, self.layers[layer.name])]:
            warnings.warn(
                f"the weights of {len(sizes)} of {len(info.layers)} layers ({some_of(sizes)}) have the ticket's size, "
                "and would change to this network's at the next mask from scores: expected the ticket's gain or std, "
                "or drop_scores(model) if it trains no further",
                stacklevel=3,
            )
        for saved in info.tensors:
            here = self.others[saved.name]
            _check_equal(saved.name, "dtype", saved.dtype, here.dtype)
            _check_equal(saved.name, "shape", list(saved.shape), list(here.shape))

    def load(self, info: TicketInfo, octets: Sequence[Tensor], tensors: Mapping[str, Tensor]) -> None:
        """Loads a ticket that fits, completely or not at all.

        Args:
            info: the ticket's content.
            octets: mask of each layer, uint8 ``[ceil(free / 8)]``.
            tensors: the other tensors, by dtype.

        Raises:
            TicketError: masks that contradict the ticket's index, or a failure to write; the network is unchanged.
        """
        masks = [
            _mask(saved, of_layer, self.layers[saved.name]) for saved, of_layer in zip(info.layers, octets, strict=True)
        ]
        values, taken = {}, dict.fromkeys(tensors, 0)
        for saved in info.tensors:
            start, taken[saved.dtype] = taken[saved.dtype], taken[saved.dtype] + saved.numel
            values[saved.name] = tensors[saved.dtype][start : start + saved.numel].view(saved.shape)

        before = [(t, t.detach().clone()) for t in self._tensors().values()]
        attributes = [(m, dict(m.__dict__), dict(m._buffers)) for m in self.layers.values()]
        try:
            for saved, mask in zip(info.layers, masks, strict=True):
                self.layers[saved.name].load_mask(mask, saved.weight_scale)
            for name, value in values.items():
                self.others[name].load(value)
            for name, value in values.items():
                if not self.others[name].holds(value):
                    raise TicketError(f"{name}: shares memory with a tensor that has other values in the ticket")
        except BaseException as error:
            for m, own, buffers in attributes:
                m.__dict__.update(own)
                m._buffers.update(buffers)
            with torch.no_grad():
                for t, old in before:
                    t.copy_(old)
            if isinstance(error, TicketError) or not isinstance(error, Exception):
                raise
            raise TicketError(f"could not be loaded ({error!r}); the network is unchanged") from error


def _mask(saved: TicketLayer, octets: Tensor, layer: SupermaskLayer) -> Tensor:
    """A compact mask from its bytes; TicketError if its count contradicts the ticket."""
    padded = torch.zeros(bits.words_for(saved.free) * 4, dtype=torch.uint8, device="cpu")
    padded[: len(octets)] = octets
    if saved.free % 8 and int(octets[-1]) >> saved.free % 8:
        raise TicketError(f"{saved.name}: damaged: its mask has bits past its last free weight")
    words = padded.view(torch.int32)
    kept = int(bits.popcount(words)) + layer.locked
    if kept != saved.kept:
        raise TicketError(f"{saved.name}: damaged: its mask keeps {kept} weights, expected kept={saved.kept}")
    return words


def _check_writable(name: str, t: Tensor) -> None:
    if t.is_meta:
        raise TicketError(f"{name}: on the meta device, which has no memory; expected model.to_empty(device=...) first")
    if t.is_inference() and not torch.is_inference_mode_enabled():
        raise TicketError(f"{name}: an inference tensor; expected load_ticket inside torch.inference_mode()")
    if t.layout != torch.strided:
        raise TicketError(f"{name}: layout={t.layout}: expected a dense tensor")
    local = sharded_scores.local(t)
    if any(size > 1 and stride == 0 for size, stride in zip(local.shape, local.stride(), strict=True)):
        raise TicketError(f"{name}: expanded: its elements share memory; expected a copy (clone())")


def _check_names(what: str, saved: list[str], here: list[str]) -> None:
    if saved != here:
        missing, extra = sorted(set(saved) - set(here)), sorted(set(here) - set(saved))
        raise TicketError(
            f"the ticket is of another network: {what} only in the ticket {missing}, only in the network {extra}"
            + ("" if missing or extra else "; the same names in another order")
        )


def _check_layer(saved: TicketLayer, here: SupermaskLayer) -> None:
    _check_equal(saved.name, "shape", list(saved.shape), list(here.weight_shape))
    generated = _generated(here.whole)
    for argument, value in _generated(saved.source).items():
        _check_equal(saved.name, argument, value, generated[argument])
    _check_equal(saved.name, "source", saved.source, here.whole)
    _check_equal(saved.name, "scale", saved.scale, here.scale)
    _check_equal(saved.name, "free", saved.free, here.free)
    if saved.arguments is not None:
        arguments = here.arguments
        for argument in arguments | saved.arguments:
            if argument.startswith("tied_") and argument not in saved.arguments:
                continue  # older tickets do not tell those of tied modules
            _check_equal(saved.name, argument, *(a.get(argument, "unknown") for a in (saved.arguments, arguments)))


def _has_other_gain(saved: TicketLayer, here: SupermaskLayer) -> bool:
    """Whether a mask from the scores here would have another scale; a static one depends on its sparsity, too."""
    if here.scores is None or here.scale == "static":
        return False
    return not math.isclose(
        here._scale_for(torch.tensor(saved.kept, device="cpu")).item(), saved.weight_scale, rel_tol=1e-5
    )


def _generated(source: Source) -> dict[str, Any]:
    """The layer's source in terms of the layer's arguments."""

    def fraction(steps: int) -> str:
        return f"{steps / 256:.3g} ({steps}/256)"

    return {
        "seed": source.seed % 2**64,
        "layer": source.layer,
        "weight": WEIGHTS[source.weight],
        "prune": fraction(source.prune_below),
        "lock": fraction(256 - source.lock_from),
    }


def check_initialized(name: str, layer: SupermaskLayer) -> None:
    """Raises ValueError for a layer on the meta device or uninitialized after ``to_empty``."""
    if not layer.is_initialized():
        raise ValueError(
            f"{name}: its source_id does not match its source, so its mask is uninitialized; after to_empty, expected "
            "reset_parameters, load_ticket or load_state_dict"
        )


def check_frozen(name: str, layer: SupermaskLayer) -> None:
    """Raises ValueError if a resolved mask differs from the seed's at frozen weights, which the file does not store."""
    if wrong := layer.wrong_frozen_bits():
        raise ValueError(
            f"{name}: its mask keeps pruned weights or drops locked ones ({wrong:,} in total), so it was not made from "
            "scores; expected a mask of EdgePopup, update_mask or a ticket"
        )


def _check_equal(name: str, field: str, saved: Any, here: Any) -> None:
    if saved != here:
        raise TicketError(
            f"{printable(name)}: the ticket has {field}={_text(saved)}, the network {field}={_text(here)}"
        )


def _text(value: Any) -> str:
    return printable(value) if isinstance(value, str) else shown(value)
