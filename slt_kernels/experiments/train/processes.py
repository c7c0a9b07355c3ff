"""Several processes that search one ticket: each has all scores and a share of every batch.

Weights and masks are never sent: every process makes them itself. What travels is the scores' gradients, compact, and
the sums of batch normalization, so that a search gives the same scores on any number of processes.
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
    """Whether ``torchrun``, or another launcher that sets its variables, started this process."""
    return dist.is_torchelastic_launched() or {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys()


@contextmanager
def joined(device: torch.device) -> Iterator[torch.device]:
    """Joins the processes that were launched together; gives this one's device: of several GPUs, its own.

    Raises:
        ValueError: more processes than GPUs on this machine.
    """
    if not launched():
        yield device
        return
    if device.type == "cuda" and device.index is None:
        local, gpus = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
        if local >= gpus:
            raise ValueError(
                f"LOCAL_RANK={local}: PyTorch sees {gpus} GPUs here; expected at most one process for each"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """This process's number; 0 where it is alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def total(*numbers: float) -> list[float]:
    """Each number summed over the processes."""
    if world() == 1:
        return list(numbers)
    sums = torch.tensor(numbers, dtype=torch.float64)
    dist.all_reduce(sums)
    return sums.tolist()


def wait() -> None:
    """Until all processes are here."""
    if world() > 1:
        dist.barrier()


def parallel(model: nn.Module) -> nn.Module:
    """The model, wrapped so that a backward pass averages the gradients over the processes; itself for one process."""
    if world() == 1:
        return model
    check_same(model)
    _synchronize_batch_norm(model)
    with warnings.catch_warnings():  # PyTorch 2.13 asks for an argument that 2.6 does not know
        warnings.simplefilter("ignore", FutureWarning)
        # Nothing but gradients is sent: the processes start alike, and their buffers (masks, statistics) stay alike.
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
    """Batch statistics over the batches of all processes, in place."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
                if child.num_batches_tracked.is_cuda:
                    setattr(parent, name, nn.SyncBatchNorm.convert_sync_batchnorm(child))
                else:  # where PyTorch's own does not run
                    child.__class__ = _SyncBatchNorm


class _SyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """``nn.SyncBatchNorm`` in plain operations; sums in float64, so that their order hardly matters."""

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
    """Ends a launched process without the interpreter's teardown.

    PyTorch 2.13 aborts in some exits that follow DistributedDataParallel ("terminate called without an active
    exception"), and the launcher would call the search failed.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
