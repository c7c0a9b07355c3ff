"""Runs a script in several processes of one torch.distributed group on this machine."""

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
    """Runs ``script`` in ``world`` processes with a gloo group; returns the standard output of each.

    Args:
        script: Python code, in which ``rank`` and ``world`` are defined and ``sys.argv[4:]`` are ``arguments``.
        folder: folder for the file through which the processes find each other.

    Raises:
        AssertionError: a process failed; the message has all outputs.
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
