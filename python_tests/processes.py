"""Runs one script in several processes of torch.distributed on this machine."""

import os
import subprocess
import sys
from pathlib import Path

BEFORE = """
import os, sys
import torch
import torch.distributed as dist

rank, world = int(sys.argv[1]), int(sys.argv[2])
dist.init_process_group("gloo", init_method="file://" + sys.argv[3], rank=rank, world_size=world)
"""

# After DistributedDataParallel, PyTorch 2.13 sometimes aborts at exit ("terminate called without an active exception"),
# even if the group is destroyed. So the interpreter's teardown is skipped.
AFTER = """
dist.barrier()
sys.stdout.flush()
os._exit(0)
"""


def run_processes(script: str, world: int, folder: Path, *arguments: str, seconds: float = 100) -> list[str]:
    """Returns what each of `world` processes prints. `script` has `rank`, `world` and an initialized gloo group.

    Args:
        script: Python text; `sys.argv[4:]` holds `arguments`.
        folder: for the store of the processes; not shared with another call.

    Raises:
        AssertionError: a process failed. The message has the outputs of all.
    """
    store = folder / f"store{len(list(folder.glob('store*')))}"
    command = [sys.executable, "-c", BEFORE + script + AFTER]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    children = [
        subprocess.Popen([*command, str(rank), str(world), str(store), *arguments], **pipes) for rank in range(world)
    ]
    try:
        outputs = [child.communicate(timeout=seconds) for child in children]
    finally:
        for child in children:
            child.kill()
    assert all(child.returncode == 0 for child in children), outputs
    return [out for out, _ in outputs]
