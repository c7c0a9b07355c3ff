"""Scores that several processes hold: thresholds and masks without gathering them.

FSDP2 (``torch.distributed.fsdp.fully_shard``) makes a layer's scores a DTensor; each process holds a run of it. Under
tensor parallelism (`parallel`) each process has a shard of the layer, and that shard's scores. A threshold is an order
statistic of all scores: processes add their histograms.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .. import bits, ops
from ..source import Source


class Layer(Protocol):
    """What a mask needs of a layer (`SupermaskLayer`)."""

    scores: Tensor
    source: Source
    group: dist.ProcessGroup | None
    free: int
    compact: bool


def is_dtensor(tensor: Tensor | None) -> bool:
    """Whether it is a DTensor; without importing torch.distributed.tensor."""
    if tensor is None or type(tensor) in (Tensor, nn.Parameter):
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds."""
    return tensor.to_local() if is_dtensor(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor; collective for a DTensor."""
    return tensor.full_tensor() if is_dtensor(tensor) else tensor


def copy_(tensor: Tensor, values: Tensor) -> None:
    """``tensor.copy_(values)``; collective for a DTensor, of which each process writes its part."""
    if is_dtensor(tensor):
        from torch.distributed.tensor import distribute_tensor

        values = values.to(tensor.device, tensor.dtype)
        values = distribute_tensor(values, tensor.device_mesh, tensor.placements)
    tensor.copy_(values)


def select(layers: Sequence[Layer], rank: int) -> Tensor:
    """`ops.select` over the scores of all layers in all processes; every process gets the threshold."""
    by_groups: dict[tuple[dist.ProcessGroup, ...], list[Tensor]] = {}
    for layer in layers:
        by_groups.setdefault(_groups(layer), []).append(local(layer.scores))
    scores = [s for part in by_groups.values() for s in part]
    if by_groups.keys() == {()} or rank < 1 or rank >= sum(layer.free for layer in layers):
        return ops.select(scores, rank)

    def counts(prefix: int, shift: int) -> Tensor:
        return sum(
            _added(sum(bits.histogram(s, prefix, shift) for s in part), groups) for groups, part in by_groups.items()
        )

    return bits.find_rank(counts, rank, scores[0].dtype)


def pack(layer: Layer, threshold: Tensor) -> tuple[Tensor, Tensor]:
    """`ops.pack` of a layer's scores: the mask of what this process multiplies, and how many the whole layer keeps."""
    if is_dtensor(layer.scores):
        mask, kept = _pack_dtensor(layer.scores, threshold, layer.source, layer.compact)
    else:
        mask, kept = ops.pack(layer.scores, threshold, layer.source, layer.compact)
    return mask, kept if layer.group is None else _added(kept, (layer.group,))


def _pack_dtensor(scores: Tensor, threshold: Tensor, source: Source, compact: bool) -> tuple[Tensor, Tensor]:
    """Each process packs its run of the scores, and all get all bits: a 32nd of the scores' size."""
    (group,) = _mesh_groups(scores)
    processes = dist.get_world_size(group)
    run = -(-len(scores) // processes)  # as `torch.chunk` has it: the last ones may be shorter, or empty
    mine = bits.exceeds(local(scores), threshold)
    mine = bits.pack_sequence(nn.functional.pad(mine, (0, run - len(mine))))
    runs = [torch.empty_like(mine) for _ in range(processes)]
    dist.all_gather(runs, mine, group=group)
    mask = bits.pack_sequence(torch.cat([bits.unpack(words).flatten()[:run] for words in runs])[: len(scores)])
    kept = bits.popcount(mask) + source.count_frozen()[2]
    return (mask if compact else ops.expand(mask, source)), kept


def _groups(layer: Layer) -> tuple[dist.ProcessGroup, ...]:
    """The groups over which the layer's scores are spread: each score is in one process of them."""
    mesh = _mesh_groups(layer.scores) if is_dtensor(layer.scores) else ()
    return mesh if layer.group is None else (*mesh, layer.group)


def _mesh_groups(scores: Tensor) -> tuple[dist.ProcessGroup, ...]:
    return tuple(scores.device_mesh.get_group(i) for i, placed in enumerate(scores.placements) if placed.is_shard())


def _added(count: Tensor, groups: tuple[dist.ProcessGroup, ...]) -> Tensor:
    for group in groups:
        dist.all_reduce(count, group=group)
    return count
