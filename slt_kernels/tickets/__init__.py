"""Tickets: a network as a file of its seed, the learned bits, and what else it holds.

A ticket is a safetensors file. Its tensors, all of one dimension:

=============  =====================================================================================================
``index``      uint8: zlib-compressed JSON: the contract's version, the layers, the other tensors' names, metadata
``masks``      uint8: each layer's compact mask, ``ceil(free / 8)`` bytes, first bit lowest, in the index's order
``coded``      uint8, in place of ``masks`` in a compressed ticket: the same bits, entropy-coded
``float32`` …  one for each dtype: all other parameters and buffers of that dtype, flattened, in the index's order
=============  =====================================================================================================

and one entry of safetensors metadata, ``slt_kernels.ticket``: the version and the sha256 of the tensors. (Of several
entries safetensors would write the order at random; so the same network is the same bytes.) Grouping the other tensors
keeps a file at its information content: a header entry each would cost more than a BatchNorm's counter holds.

A layer's entry has the fields of `TicketLayer`, each of one type and range (`format`). ``arguments`` may be missing, as
in the first files: then nothing is known of them, and nothing is compared.

A plain ticket is of version 1, a compressed one of version 2. There the index has ``ones``, how many bits of a layer's
mask are set, and the bits are symbols of a Bernoulli variable of probability ``ones / free`` to an ANS coder
(``constriction.stream.stack.AnsCoder``), one stream for all layers, little-endian words.

`format` has the bytes and what they say, `entropy` the coder, and `model` a network's side.
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

    The file holds every layer's learned bits, seed, freezing, distribution and scale, and all other parameters and
    buffers of the model's ``state_dict`` (BatchNorm statistics, biases) as they are: at most
    ``free_bits / 8 + their bytes + 4096 + 200 * layers``. No weights, no scores. It is written beside ``path`` and
    renamed, so a failure leaves an old file as it was.

    Args:
        model: the module, or one wrapped by DistributedDataParallel or ``torch.compile``. Of one that is sharded
            (``fully_shard``, `nn.parallel`) every process has to write a ticket, each the same whole one.
        path: the file.
        metadata: a dict of what JSON holds, for `ticket_info` to give back.
        compress: entropy-code the learned bits (the extra ``compress``): a layer of ``n`` free weights, the fraction
            ``p`` of them kept, takes ``n (-p log2 p - (1 - p) log2 (1 - p))`` bits in place of ``n``. It is smaller
            where much more or less than half is kept. Default False.

    Returns:
        What the file holds.

    Raises:
        ModuleNotFoundError: to compress, without the package for it.
        TypeError: a model that is no module.
        ValueError: no supermask layer in it; one that ``to_empty`` left open, with a mask that keeps pruned weights or
            drops locked ones, or with a ``weight_scale`` that is not finite; extra state that is no tensor, or a tensor
            that safetensors does not hold (sparse, or complex128); or metadata that is no dict or that JSON does not
            hold.
        FileNotFoundError, IsADirectoryError, FileExistsError: the path's folder is not there, or the path is a folder,
            a device or a pipe.
        OSError: the file cannot be written; ``filename`` is the path.
    """
    if not isinstance(metadata, dict | None):
        raise ValueError(f"metadata={shown(metadata)}: expected a dict")
    try:
        json.dumps(metadata, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"metadata={shown(metadata)}: expected what JSON holds ({error})") from None
    model = network.unwrap(model)
    layers = network.layers_of(model)
    if not layers:
        raise ValueError("model: expected at least one supermask layer in it")
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
                **({"arguments": arguments} if (arguments := network.arguments_of(m)) else {}),
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
    info, _ = parse(content, path)  # before an old file is replaced
    write_atomically(path, content)
    return info


def load_ticket(path: str | os.PathLike, model: nn.Module) -> TicketInfo:
    """Loads a ticket into a network of its architecture, which then gives the same answers, bit for bit.

    Everything is decoded and checked before anything is changed, and what fails after that (no memory, an interrupt)
    puts back what was there. The scores are left alone, and the layers' `auto_mask` is off: the masks stay until an
    `EdgePopup` makes others from scores of its own. Continue a search from a checkpoint.

    Args:
        path: the file. It is opened and read once.
        model: built as the saved one was: the same layers, names, seed, freezing, distribution and scale. It may be
            sharded: each process takes its part.

    Returns:
        What the file holds.

    Raises:
        ModuleNotFoundError: it is compressed, and the package for that (the extra ``compress``) is missing.
        TypeError: a model that is no module.
        TicketError: a file that is no ticket, or is cut short, altered, damaged, or of a newer version; the ticket of
            another network; or a model that cannot take it: on the meta device, of inference tensors, expanded. The
            model is unchanged. It is a ValueError.
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
        target.take(info, octets, tensors)
    except TicketError as error:
        raise TicketError(f"{path}: {error}") from error.__cause__
    return info


def ticket_info(path: str | os.PathLike) -> TicketInfo:
    """What a ticket holds, its checksum verified.

    Raises:
        TicketError: a file that is no ticket, or is cut short, altered, damaged, or of a newer version.
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
