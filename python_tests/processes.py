"""Runs scripts in other processes of this machine: in several of torch.distributed, or in one new process."""

import atexit
import json
import os
import socket
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
# What FSDP2, the layers and the digits import in each process.
DISTRIBUTED = "torch.distributed.fsdp, torch.distributed.tensor.parallel, torch._dynamo, slt_kernels, sklearn.datasets"


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
    return _outputs(_fork(DISTRIBUTED, BEFORE + script + AFTER, ranks, environment, seconds))


def run_as_torchrun(script: str, world: int) -> list[str]:
    """Returns what each of `world` processes prints, which have the environment that torchrun gives them.

    Raises:
        AssertionError: a process failed. The message has the outputs of all.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    environment = os.environ | shared | {"GLOO_SOCKET_IFNAME": "lo"}
    before = "import os, sys, torch\nos.environ['RANK'] = os.environ['LOCAL_RANK'] = sys.argv[1]\n"
    before += "torch.set_num_threads(1)\n"
    return _outputs(_fork(DISTRIBUTED, before + script, [[str(rank)] for rank in range(world)], environment, 100))


def _outputs(done: list[subprocess.CompletedProcess]) -> list[str]:
    assert all(process.returncode == 0 for process in done), [(process.stdout, process.stderr) for process in done]
    return [process.stdout for process in done]


def run_forked(code: str, environment: dict[str, str] | None = None, *arguments: str) -> subprocess.CompletedProcess:
    """Runs code as ``python -c`` does with these arguments, in a fork of a process that has imported torch.

    The environment (by default this process's) is set after torch is imported. Code that ends by an exception has
    status 1.
    """
    (done,) = _fork("torch", code, [list(arguments)], dict(os.environ if environment is None else environment), 600)
    return done


def run_script(path: Path | str, *arguments: str) -> subprocess.CompletedProcess:
    """Runs a script as ``python path`` does, in a fork of a process that has imported torch."""
    code = f"import runpy, sys\nsys.path.insert(0, {str(Path(path).parent)!r})\n"
    return run_forked(f"{code}runpy.run_path({str(path)!r}, run_name='__main__')", None, *arguments)


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
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(_end, server)
    return server


def _end(server: subprocess.Popen) -> None:
    server.kill()  # a fork may hold the other end of its input
    server.communicate()


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
