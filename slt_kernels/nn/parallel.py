"""Tensor parallelism: each process generates its shard of a layer, and holds that shard's scores and mask alone.

The styles stand in plans of ``torch.distributed.tensor.parallel.parallelize_module`` as PyTorch's own do::

    from slt_kernels.nn.parallel import ColwiseParallel, RowwiseParallel

    mesh = init_device_mesh("cuda", (8,))
    parallelize_module(model, mesh, {"mlp.up": ColwiseParallel(), "mlp.down": RowwiseParallel()})

A shard of a weight is an offset in its generator (section 6 of the weight contract), so no weight is sent. Processes
exchange activations, their gradients and histograms of scores, and masks to write a ticket. Masks
are those of the whole layer in one process, under `EdgePopup` of either scope, and tickets are of the whole network.
Scores stay plain tensors, each in one process: a gradient's norm over all of them is a sum over the processes.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor import parallel as torch_parallel

from ..bits import WORD
from .embedding import SupermaskEmbedding
from .linear import SupermaskLinear
from .supermask import SupermaskLayer

_LAST = Shard(-1)


class ColwiseParallel(torch_parallel.ColwiseParallel):
    """Splits the output features of a `SupermaskLinear`, or the embedding_dim of a `SupermaskEmbedding`.

    Keyword Args:
        input_layouts, output_layouts, use_local_output: as PyTorch's: by default the input is replicated, and the
            output a local tensor, sharded on its last dimension.

    Plain ``nn.Linear`` and ``nn.Embedding`` are PyTorch's to split.

    Raises:
        ValueError: a layer that cannot be split: too small, or an embedding_dim that is not whole words of 32 for
            each process.
    """

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        if isinstance(module, SupermaskLinear):
            _shard(module, self, device_mesh, rows=_part("out_features", module.out_features, device_mesh))
        elif isinstance(module, SupermaskEmbedding):
            _shard(module, self, device_mesh, words=_words("embedding_dim", module.embedding_dim, device_mesh))
        else:
            return super()._apply(module, device_mesh)

        def before(module: SupermaskLayer, inputs: tuple[Tensor, ...]) -> Tensor:
            x = self._prepare_input_fn(self.input_layouts, (Replicate(),), module, inputs, device_mesh)
            return x.to_local(grad_placements=[Partial()])  # each process has the gradient of its own features

        def after(module: SupermaskLayer, inputs: tuple[Tensor, ...], y: Tensor) -> Tensor:
            size = module.weight_shape[0 if isinstance(module, SupermaskLinear) else 1]
            y = _from_local(y, device_mesh, _LAST, size)
            return self._prepare_output_fn(self.output_layouts, self.use_local_output, module, y, device_mesh)

        module.register_forward_pre_hook(before)
        module.register_forward_hook(after)
        return module


class RowwiseParallel(torch_parallel.RowwiseParallel):
    """Splits the input features of a `SupermaskLinear`, or the rows of a `SupermaskEmbedding`; outputs are added up.

    Keyword Args:
        input_layouts, output_layouts, use_local_output: as PyTorch's: by default a Linear's input is sharded on its
            last dimension (what `ColwiseParallel` gives), an Embedding's is replicated, and the output is a local
            tensor, replicated.

    Plain ``nn.Linear`` and ``nn.Embedding`` are PyTorch's to split.

    Raises:
        ValueError: a layer that cannot be split: too small, in_features that are not whole words of 32 for each
            process, or an embedding with ``scale_grad_by_freq``.
    """

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        if isinstance(module, SupermaskLinear):
            _shard(module, self, device_mesh, words=_words("in_features", module.in_features, device_mesh))
            wanted = _LAST
        elif isinstance(module, SupermaskEmbedding):
            if module.scale_grad_by_freq:
                raise ValueError("scale_grad_by_freq=True: expected False, where each process counts its own rows only")
            _shard(module, self, device_mesh, rows=_part("num_embeddings", module.num_embeddings, device_mesh))
            wanted = Replicate()
        else:
            return super()._apply(module, device_mesh)
        given = self.input_layouts if isinstance(module, SupermaskLinear) else (Replicate(),)

        def before(module: SupermaskLayer, inputs: tuple[Tensor, ...]) -> Tensor:
            return self._prepare_input_fn(given, (wanted,), module, inputs, device_mesh).to_local()

        def after(module: SupermaskLayer, inputs: tuple[Tensor, ...], y: Tensor) -> Tensor:
            y = DTensor.from_local(y, device_mesh, [Partial()], run_check=False)
            y = self._prepare_output_fn(self.output_layouts, False, module, y, device_mesh)
            # The bias is added once, after the sum. Where one process has all inputs, its layer adds it.
            if module.bias is not None and module.source.fan < module.whole.fan:
                y = y + DTensor.from_local(module.bias.to(y.dtype), device_mesh, [Replicate()], run_check=False)
            return y.to_local() if self.use_local_output else y

        module.register_forward_pre_hook(before)
        module.register_forward_hook(after)
        return module


def _shard(module: SupermaskLayer, style: torch_parallel.ParallelStyle, mesh: DeviceMesh, **part: tuple) -> None:
    """Shards a layer. All processes take the first one's bias, unless the style says that they have the same one."""
    group = mesh.get_group()
    first = getattr(style, "src_data_rank", 0)  # PyTorch 2.6 always takes the first
    if module.bias is not None and module.group is None and first is not None:
        dist.broadcast(module.bias.detach(), dist.get_global_rank(group, first), group)
    module.shard(group, **part)


def _part(name: str, size: int, mesh: DeviceMesh) -> tuple[int, int]:
    """This process's part of ``size``, as ``torch.chunk`` has it."""
    step = -(-size // mesh.size())
    first = step * mesh.get_local_rank()
    if step * (mesh.size() - 1) >= size:
        raise ValueError(f"{name}={size}: expected a part for each of {mesh.size()} processes, of {step}")
    return first, min(first + step, size)


def _words(name: str, size: int, mesh: DeviceMesh) -> tuple[int, int]:
    if size % (WORD * mesh.size()):
        raise ValueError(f"{name}={size}: expected a multiple of {WORD * mesh.size()}, {WORD} for each process")
    first, last = _part(name, size, mesh)
    return first // WORD, last // WORD


def _from_local(y: Tensor, mesh: DeviceMesh, placement: Shard, size: int) -> DTensor:
    """``y`` as a part of a tensor whose last dimension is ``size``: parts need not be equal."""
    shape = torch.Size((*y.shape[:-1], size))
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(y, mesh, [placement], run_check=False, shape=shape, stride=stride)
