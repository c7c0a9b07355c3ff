"""Data-parallel search: each process has all scores and a share of every batch.

Processes exchange the gradients of the scores and the sums of batch normalization. Weights and masks are never sent,
because every process generates them. A search gives the same scores for any number of processes.
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
from torch.nn.parallel import DistributedDataParallel

from ...nn import SupermaskLayer


def launched() -> bool:
    """Whether ``torchrun`` or another launcher that sets its environment variables started this process."""
    return dist.is_torchelastic_launched() or {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys()


@contextmanager
def joined(device: torch.device) -> Iterator[torch.device]:
    """Joins the process group of a launcher and yields this process's device, one GPU per process.

    Raises:
        ValueError: more processes than GPUs on this machine.
    """
    if not launched():
        yield device
        return
    if device.type == "cuda" and device.index is None:
        local, gpus = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
        if local >= gpus:
            raise ValueError(f"LOCAL_RANK={local}: PyTorch finds {gpus} GPUs; expected at most one process per GPU")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
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


def check_same(model: nn.Module) -> None:
    """Raises RuntimeError unless all processes have the same masks, scores and other parameters."""
    if world() == 1:
        return
    digest = hashlib.sha256()
    for t in [m.mask_words for m in model.modules() if isinstance(m, SupermaskLayer)] + list(model.parameters()):
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
