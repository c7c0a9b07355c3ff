"""Data-parallel search: each process has a share of every batch, and all scores or, with FSDP2, a part of them.

Processes exchange the gradients of the scores and the sums of batch normalization; with FSDP2 also scores and mask
bits. Weights are never sent, because every process generates them. A search gives the same scores for any number of
processes, up to the rounding of these sums.
"""

import hashlib
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
import torch.distributed.nn
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from ...nn import SupermaskLayer
from ...nn.sharded_scores import is_dtensor


def launched() -> bool:
    """Whether ``torchrun`` or another launcher that sets its environment variables started this process."""
    return dist.is_torchelastic_launched() or {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys()


@contextmanager
def joined(device: torch.device, alone: bool = False) -> Iterator[torch.device]:
    """Joins the process group of a launcher and yields this process's device, one GPU per process.

    Args:
        device: the device, of which "cuda" has no number yet.
        alone: without a launcher, make a group of this process, as sharding needs. Default False: no group.

    Raises:
        ValueError: more processes than GPUs on this machine.
    """
    if not launched() and not alone:
        yield device
        return
    if device.type == "cuda" and device.index is None:
        local, gpus = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
        if local >= gpus:
            raise ValueError(f"LOCAL_RANK={local}: PyTorch finds {gpus} GPUs; expected at most one process per GPU")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    single = {} if launched() else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", **single)
    try:
        yield device
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """Rank of this process; 0 for a single process."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def total(*numbers: float) -> list[float]:
    """Each number summed over the processes."""
    if world() == 1:
        return list(numbers)
    sums = torch.tensor(numbers, dtype=torch.float64)
    dist.all_reduce(sums)
    return sums.tolist()


@contextmanager
def raised_together() -> Iterator[None]:
    """A ValueError of one process in a ``with`` block becomes one of all, so that none waits forever; collective."""
    error = None
    try:
        yield
    except ValueError as raised:
        error = raised
    if total(error is not None)[0]:
        raise error or ValueError("another process says why")


def wait() -> None:
    """Waits for all processes."""
    if world() > 1:
        dist.barrier()


def parallel(model: nn.Module) -> nn.Module:
    """The model wrapped in DistributedDataParallel; for a single process, the model itself."""
    if world() == 1:
        return model
    check_same(model)
    _synchronize_batch_norm(model)
    with warnings.catch_warnings():  # PyTorch 2.13 warns about an argument that 2.6 lacks
        warnings.simplefilter("ignore", FutureWarning)
        # Only gradients are sent: parameters and buffers (masks, statistics) are equal in all processes.
        return DistributedDataParallel(model, init_sync=False, broadcast_buffers=False, gradient_as_bucket_view=True)


def mesh(device: torch.device) -> DeviceMesh:
    """All processes, in one dimension."""
    return init_device_mesh(device.type, (world(),))


def shard(model: nn.Module) -> None:
    """Shards the parameters of a model over all processes (FSDP2), layer by layer, in place.

    Before each use of a layer the processes gather its parameters, and afterwards drop them.
    """
    from torch.distributed.fsdp import fully_shard

    check_same(model)
    if world() > 1:
        _synchronize_batch_norm(model)
    over = mesh(next(model.parameters()).device)
    for m in list(model.modules()):
        is_layer = isinstance(m, SupermaskLayer) or any(p.dim() >= 2 for p in m.parameters(recurse=False))
        if is_layer and m is not model:
            fully_shard(m, mesh=over, reshard_after_forward=True)
    fully_shard(model, mesh=over, reshard_after_forward=True)


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard` was called on it."""
    return any(is_dtensor(p) for p in model.parameters())


def check_same(model: nn.Module) -> None:
    """Raises RuntimeError unless all processes have the same masks, scores and other parameters.

    Of sharded parameters each process has another part; they are not compared.
    """
    if world() == 1:
        return
    digest = hashlib.sha256()
    whole = [p for p in model.parameters() if not is_dtensor(p)]
    for t in [m.mask_words for m in model.modules() if isinstance(m, SupermaskLayer)] + whole:
        digest.update(t.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    mine = torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)
    every = [torch.empty_like(mine) for _ in range(world())]
    dist.all_gather(every, mine)
    different = [i for i, theirs in enumerate(every) if not torch.equal(theirs, every[0])]
    if different:
        raise RuntimeError(f"the masks or parameters of processes {different} differ from those of process 0")


def _synchronize_batch_norm(model: nn.Module) -> None:
    """Replaces BatchNorm layers, in place, by ones with statistics over all processes."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
                if child.num_batches_tracked.is_cuda:
                    setattr(parent, name, nn.SyncBatchNorm.convert_sync_batchnorm(child))
                else:  # nn.SyncBatchNorm needs CUDA
                    child.__class__ = _SyncBatchNorm


class _SyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """``nn.SyncBatchNorm`` for the CPU; sums are float64, which makes their order nearly irrelevant."""

    def _check_input_dim(self, x: Tensor) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or world() == 1:
            return super().forward(x)
        dims = [0, *range(2, x.dim())]
        shape = [1, -1] + [1] * (x.dim() - 2)
        wide = x.double()
        count = wide.new_tensor([x.numel() / x.shape[1]])
        sums = torch.distributed.nn.all_reduce(torch.cat((wide.sum(dims), wide.square().sum(dims), count)))
        count = sums[-1]
        mean, square = (sums[:-1] / count).chunk(2)
        variance = square - mean.square()
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.float(), self.momentum)
            self.running_var.lerp_((variance * count / (count - 1)).float(), self.momentum)
        y = (wide - mean.view(shape)) * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(x.dtype)


def leave(status: int) -> None:
    """Exits a launched process without the interpreter's teardown.

    After DistributedDataParallel, PyTorch 2.13 sometimes aborts at exit ("terminate called without an active
    exception"), and the launcher would report a failure.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
