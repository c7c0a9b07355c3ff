"""Tickets: a network as a file of its seed, its learned bits, and its other tensors.

A ticket is a safetensors file with these one-dimensional tensors:

=============  =====================================================================================================
``index``      uint8: zlib-compressed JSON: the contract's version, the layers, the other tensors' names, metadata
``masks``      uint8: compact mask of each layer, ``ceil(free / 8)`` bytes, lowest bit first, in the order of the index
``coded``      uint8, in place of ``masks`` in a compressed ticket: the same bits, entropy-coded
``float32`` …  one per dtype: all other parameters and buffers of that dtype, flattened, in the order of the index
=============  =====================================================================================================

The metadata of safetensors has one entry, ``slt_kernels.ticket``: the version, and the sha256 of the tensors. It is a
single entry because safetensors writes several entries in random order, and equal networks should give equal bytes.
The other tensors are grouped by dtype because a header entry for each would be larger than a small tensor.

A layer's entry in the index has the fields of `TicketLayer`; `format` checks their types and ranges. ``arguments`` is
missing in the first files, and then not compared.

A plain ticket has version 1, a compressed one version 2. A compressed ticket's index has ``ones``, the number of set
bits in a layer's mask. The bits are symbols of a Bernoulli distribution with probability ``ones / free``, coded by an
ANS coder (``constriction.stream.stack.AnsCoder``) to one stream of little-endian words for all layers.

`format` converts bytes to index and tensors and back, `entropy` codes the bits, and `model` is the network's side.
"""

import json
import os
from typing import Any

import torch
from torch import nn

from .. import bits
from .._text import shown
from ..files import write_atomically
from ..numbering import warn_of_equal_layers
from ..source import CONTRACT_VERSION
from . import entropy
from . import model as network
from .entropy import entropy_coder
from .format import TicketError, TicketInfo, TicketLayer, TicketTensor, parse, read, to_bytes


def save_ticket(
    model: nn.Module, path: str | os.PathLike, metadata: dict[str, Any] | None = None, compress: bool = False
) -> TicketInfo:
    """Writes a model with supermask layers as a ticket.

    The file holds the learned bits, seed, freezing, distribution and scale of every layer, and all other parameters and
    buffers of the model's ``state_dict`` (BatchNorm statistics, biases). It holds no weights and no scores. Its size is
    at most ``free_bits / 8 + bytes of the other tensors + 4096 + 200 * layers``. It is replaced atomically, so a
    failure leaves an old file unchanged.

    Args:
        model: the module, or one wrapped by DistributedDataParallel or ``torch.compile``. For a sharded model
            (``fully_shard``, `nn.parallel`) every process must call this; each writes the same complete ticket.
        path: the file.
        metadata: a dict of JSON values, which `ticket_info` returns.
        compress: entropy-code the learned bits (the extra ``compress``). A layer of ``n`` free weights, a fraction
            ``p`` of which is kept, then takes ``n (-p log2 p - (1 - p) log2 (1 - p))`` bits in place of ``n``. This
            helps if ``p`` is far from one half. Default False.

    Returns:
        The content of the file.

    Raises:
        ModuleNotFoundError: ``compress`` without its package.
        TypeError: a model that is not a module.
        ValueError: a model without supermask layers; a layer that is uninitialized after ``to_empty``, whose mask keeps
            pruned weights or drops locked ones, or whose ``weight_scale`` is not finite; extra state that is not a
            tensor, or a tensor that safetensors cannot store (sparse, or complex128); metadata that are not a dict of
            JSON values.
        RuntimeError: a loader, or an average of buffers, has left a state that is not the layer's.
        FileNotFoundError, IsADirectoryError, FileExistsError: the path's folder does not exist, or the path is a
            folder, a device or a pipe.
        OSError: the file cannot be written; ``filename`` is the path.
    """
    if not isinstance(metadata, dict | None):
        raise ValueError(f"metadata={shown(metadata)}: expected a dict")
    try:
        json.dumps(metadata, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"metadata={shown(metadata)}: expected JSON values ({error})") from None
    model = network.unwrap(model)
    layers = network.layers_of(model)
    if not layers:
        raise ValueError("model: expected at least one supermask layer")
    warn_of_equal_layers(model)
    others = network.other_tensors(model)
    for name, m in layers.items():
        network.check_initialized(name, m)
    for other in others.values():
        other.check_storable()
    masks = [m.compact_mask().cpu() for m in layers.values()]
    for name, m in layers.items():
        network.check_frozen(name, m)
        if not m.weight_scale.isfinite():
            raise ValueError(f"{name}.weight_scale={m.weight_scale.item()}: expected a finite number")
    ones = [int(bits.popcount(mask)) for mask in masks]
    index = {
        "contract": CONTRACT_VERSION,
        "layers": [
            {
                "name": name,
                "shape": m.weight_shape,
                "source": m.whole,
                "free": m.free,
                "kept": count + m.locked,
                "scale": m.scale,
                "sparsity": m.sparsity,
                "weight_scale": m.weight_scale.item(),
                **({"arguments": m.arguments} if m.arguments else {}),
                **({"ones": count} if compress else {}),
            }
            for (name, m), count in zip(layers.items(), ones, strict=True)
        ],
        "tensors": [{"name": name, "dtype": t.dtype, "shape": t.shape} for name, t in others.items()],
        "metadata": metadata or {},
    }
    free = [m.free for m in layers.values()]
    octets = [mask.view(torch.uint8)[: (n + 7) // 8] for mask, n in zip(masks, free, strict=True)]
    tensors = {"coded": entropy.encode(octets, free, ones)} if compress else {"masks": torch.cat(octets)}
    for dtype in dict.fromkeys(t.dtype for t in others.values()):
        tensors[dtype] = torch.cat([t.gather().cpu().flatten() for t in others.values() if t.dtype == dtype])
    content = to_bytes(index, tensors, compress)
    info, _ = parse(content, path)  # verified before it replaces an old file
    write_atomically(path, content)
    return info


def load_ticket(path: str | os.PathLike, model: nn.Module) -> TicketInfo:
    """Loads a ticket into a network of its architecture, whose outputs then equal the saved one's, bit for bit.

    The ticket is decoded and checked completely before the model is changed. A later failure (out of memory, an
    interrupt) restores the model. The scores are not changed. The layers' `auto_mask` is set to False, so the masks
    stay until an `EdgePopup` computes them from scores. To resume a search, use a checkpoint instead.

    Args:
        path: the file. It is opened and read once.
        model: a model with the same layers, names, seed, freezing, distribution and scale as the saved one. It may be
            sharded: each process loads its part. `train.load_network` makes such a model for a ticket of ``slt find``.

    Returns:
        The content of the file.

    Raises:
        ModuleNotFoundError: the ticket is compressed, and the package of the extra ``compress`` is missing.
        TypeError: a model that is not a module.
        TicketError: a file that is not a ticket, or is cut short, altered, damaged, or of a newer version; the ticket
            of another network; or a model that cannot be written: on the meta device, of inference tensors, expanded.
            The model is unchanged. TicketError is a ValueError.
        OSError: the file cannot be opened (FileNotFoundError, PermissionError).
    """
    info, tensors = read(path)
    target = network.Target(network.unwrap(model))
    target.check_fits(info)
    if info.compressed:
        counts = zip(*((layer.free, layer.ones) for layer in info.layers), strict=True)
        try:
            octets = entropy.decode(tensors["coded"], *counts)
        except ValueError as error:
            raise TicketError(f"{path}: damaged: its entropy-coded bits do not decode ({error})") from None
    else:
        octets = tensors["masks"].split([layer.mask_bytes for layer in info.layers])
    try:
        target.load(info, octets, tensors)
    except TicketError as error:
        raise TicketError(f"{path}: {error}") from error.__cause__
    return info


def ticket_info(path: str | os.PathLike) -> TicketInfo:
    """The content of a ticket, after verifying its checksum.

    Raises:
        TicketError: a file that is not a ticket, or is cut short, altered, damaged, or of a newer version.
        OSError: the file cannot be opened (FileNotFoundError, PermissionError).
    """
    return read(path)[0]


__all__ = [
    "TicketError",
    "TicketInfo",
    "TicketLayer",
    "TicketTensor",
    "entropy_coder",
    "load_ticket",
    "save_ticket",
    "ticket_info",
]
