"""The sharded tensors of a checkpoint, in a folder beside it that any number of processes can read.

`torch.distributed.checkpoint` writes them, each process its parts. The checkpoint holds all other values, and in place
of a sharded tensor one on the meta device, with the whole tensor's shape and dtype.
"""

import hashlib
import re
import secrets
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ...files import read_file
from ...nn.sharded_scores import is_dtensor
from . import processes


def write(state: Mapping[str, Any], folder: Path, name: str) -> dict[str, Any]:
    """Writes the sharded tensors of a state; collective.

    Args:
        state: plain values and tensors, in dicts and lists.
        folder: the folder of the checkpoint. The tensors get a new folder ``name.TOKEN`` in it.
        name: of the checkpoint.

    Returns:
        The state without them, and "sharded": the name of their folder, and the sha256 of each of its files.
    """
    import torch.distributed.checkpoint as dcp

    token = [secrets.token_hex(4)]
    dist.broadcast_object_list(token)
    where = folder / f"{name}.{token[0]}"
    parts: dict[str, Tensor] = {}

    def taken_out(path: str, tensor: Tensor) -> Tensor:
        if not is_dtensor(tensor):
            return tensor
        parts[path] = tensor
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")

    rest = _mapped(state, taken_out)
    dcp.save(parts, checkpoint_id=str(where))
    return {**rest, "sharded": {"folder": where.name, "files": _digests(where)}}


def read(state: Mapping[str, Any], folder: Path, device: torch.device) -> dict[str, Any]:
    """The state of which `write` returned the rest, sharded over the present processes; collective.

    Raises:
        Exception: of any type, in every process, if files are missing or altered.
    """
    import torch.distributed.checkpoint as dcp
    from torch.distributed.tensor import Shard, zeros

    sharded = state["sharded"]
    where = folder / sharded["folder"]
    if where.parent != folder or _digests(where) != sharded["files"]:
        raise ValueError("altered")
    mesh, parts = processes.mesh(device), {}

    def put_in(path: str, tensor: Tensor) -> Tensor:
        if tensor.is_meta:
            tensor = zeros(tensor.shape, dtype=tensor.dtype, device_mesh=mesh, placements=[Shard(0)])
            parts[path] = tensor
        return tensor

    whole = _mapped({name: value for name, value in state.items() if name != "sharded"}, put_in)
    dcp.load(parts, checkpoint_id=str(where))
    return whole


def remove_others(state: Mapping[str, Any], folder: Path, name: str) -> None:
    """Removes the folders of older checkpoints of that name, once the checkpoint of ``state`` is written."""
    for path in folder.iterdir():
        if re.fullmatch(rf"{name}\.[0-9a-f]{{8}}", path.name) and path.name != state["sharded"]["folder"]:
            shutil.rmtree(path, ignore_errors=True)


def _mapped(state: Any, change: Callable[[str, Tensor], Tensor], path: str = "") -> Any:
    """The state with each tensor changed; ``change`` has its path, such as ``.optimizer.state.0.exp_avg``, too."""
    if isinstance(state, Mapping):
        return {key: _mapped(value, change, f"{path}.{key}") for key, value in state.items()}
    if isinstance(state, list):
        return [_mapped(value, change, f"{path}.{i}") for i, value in enumerate(state)]
    return change(path, state) if isinstance(state, Tensor) else state


def _digests(folder: Path) -> dict[str, str]:
    """The sha256 of each file, divided among the processes; collective. Empty if there is no such folder."""
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    own = names[processes.rank() :: processes.world()]
    mine = {name: hashlib.sha256(read_file(folder / name)).hexdigest() for name in own}
    every: list[Any] = [None] * processes.world()
    dist.all_gather_object(every, mine)
    return {name: digest for part in every for name, digest in part.items()}
