"""Runs scripts in other processes of this machine: in several of torch.distributed, or in one new process."""

import json
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from functools import cache
from pathlib import Path

BEFORE = """
import os, sys
import torch
import torch.distributed as dist

torch.set_num_threads(1)
rank, world = int(sys.argv[1]), int(sys.argv[2])
dist.init_process_group("gloo", init_method="file://" + sys.argv[3], rank=rank, world_size=world)
"""
AFTER = """
dist.barrier()
"""


def run_processes(script: str, world: int, folder: Path, *arguments: str, seconds: int = 100) -> list[str]:
    """Returns what each of `world` processes prints. `script` has `rank`, `world` and an initialized gloo group.

    Args:
        script: Python text; `sys.argv[4:]` holds `arguments`.
        folder: for the store of the processes; not shared with another call.
        seconds: after which a process is ended.

    Raises:
        AssertionError: a process failed. The message has the outputs of all.
    """
    store = folder / f"store{len(list(folder.glob('store*')))}"
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo"}
    ranks = [[str(rank), str(world), str(store), *arguments] for rank in range(world)]
    imported = "torch.distributed.fsdp, torch.distributed.tensor.parallel"
    done = _fork(imported, BEFORE + script + AFTER, ranks, environment, seconds)
    assert all(process.returncode == 0 for process in done), [(process.stdout, process.stderr) for process in done]
    return [process.stdout for process in done]


def run_forked(code: str, environment: dict[str, str]) -> subprocess.CompletedProcess:
    """Runs code as ``python -c`` does, in a fork of a process that has imported torch.

    The environment is set after torch is imported. Code that ends by an exception has status 1.
    """
    (done,) = _fork("torch", code, [[]], environment, 120)
    return done


# Reads a request per line, runs its code in forks beside each other, and prints their exit statuses. They end without
# the interpreter's teardown: after DistributedDataParallel, PyTorch 2.13 sometimes aborts in it ("terminate called
# without an active exception"), even if the group is destroyed.
SERVER = """
import json, os, signal, sys, traceback

for line in sys.stdin:
    code, environment, seconds, processes = json.loads(line)
    children = []
    for arguments, outputs in processes:
        children.append(os.fork())
        if children[-1]:
            continue
        signal.alarm(seconds)
        for number, name in enumerate((os.devnull, *outputs)):
            os.dup2(os.open(name, os.O_RDWR), number)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv, status = ["-c", *arguments], 0
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
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]), flush=True)
"""


@cache
def _server(imported: str) -> subprocess.Popen:
    """A process that has imported some modules, which takes seconds, and then forks for each request."""
    command = [sys.executable, "-c", f"import {imported}\n{SERVER}"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _fork(
    imported: str, code: str, arguments: list[list[str]], environment: dict[str, str], seconds: int
) -> list[subprocess.CompletedProcess]:
    """Runs code in a process for each of some lists of arguments, beside each other."""
    with ExitStack() as stack:
        files = [[stack.enter_context(tempfile.NamedTemporaryFile("r")) for _ in range(2)] for _ in arguments]
        names = [[file.name for file in pair] for pair in files]
        server = _server(imported)
        server.stdin.write(json.dumps([code, environment, seconds, list(zip(arguments, names, strict=True))]) + "\n")
        server.stdin.flush()
        statuses = json.loads(server.stdout.readline())
        return [
            subprocess.CompletedProcess(["-c"], status, out.read(), errors.read())
            for status, (out, errors) in zip(statuses, files, strict=True)
        ]
