"""Runs scripts in other processes of this machine: in several of torch.distributed, or in one new process."""

import json
import os
import subprocess
import sys
import tempfile
from functools import cache
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


# Reads a request per line, runs its code in a fork, and prints the exit status.
SERVER = """
import json, os, signal, sys, traceback
import torch

for line in sys.stdin:
    code, environment, outputs = json.loads(line)
    child = os.fork()
    if child == 0:
        signal.alarm(120)
        for number, name in enumerate((os.devnull, *outputs)):
            os.dup2(os.open(name, os.O_RDWR), number)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv, status = ["-c"], 0
        try:
            exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
        except SystemExit as end:
            status = int(end.code or 0)
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@cache
def _server() -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def run_forked(code: str, environment: dict[str, str]) -> subprocess.CompletedProcess:
    """Runs code as ``python -c`` does, in a fork of a process that has imported torch: importing it takes seconds.

    The environment is set after torch is imported. Code that ends by an exception has status 1.
    """
    with tempfile.NamedTemporaryFile("r") as out, tempfile.NamedTemporaryFile("r") as errors:
        server = _server()
        server.stdin.write(json.dumps([code, environment, [out.name, errors.name]]) + "\n")
        server.stdin.flush()
        status = int(server.stdout.readline())
        return subprocess.CompletedProcess(["-c"], status, out.read(), errors.read())
