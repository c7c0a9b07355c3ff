"""The machine of a measurement, as recorded in each JSON under bench/results."""

import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

from slt_kernels import backends

# Environment variables that restrict our kernels, or PyTorch's, to a lower instruction set.
LIMITS = ("SLT_CPU_ISA", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")
# Files that a result depends on. Changes elsewhere do not mark a commit as dirty.
CODE = (":/slt_kernels", ":/csrc", ":/bench", ":/setup.py", ":(exclude,top)bench/results")


def machine() -> dict[str, Any]:
    """The processor, its threads, versions, backends, and the measured commit ("" without git)."""
    changed = _git("status", "--porcelain", "-uno", "--", *CODE)
    info = {
        "cpu": _cpu_model(),
        "threads": torch.get_num_threads(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "limits": {name: os.environ[name] for name in LIMITS if name in os.environ},
        "backends": {name: backends.describe(name) for name in backends.names()},
        "commit": _git("rev-parse", "--short=12", "HEAD") + ("-dirty" if changed else ""),
    }
    if torch.cuda.is_available():
        info["gpu"] = torch.cuda.get_device_name()
    return info


def slug(info: dict[str, Any]) -> str:
    """A machine as a file name: processor, instruction set in use, threads."""
    cpu = re.sub(r"\(.*?\)|processor|cpu|@.*", " ", info["cpu"].split(",")[0], flags=re.IGNORECASE)
    isa = info["backends"]["cpu"].split(",")[0]
    return "-".join(re.findall(r"[a-z0-9]+", f"{cpu} {isa} {info['threads']}threads".lower()))


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    flags = fields.get("flags", "").split()
    sets = [f for f in ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8") if f in flags]
    name = f"{fields.get('model name', 'unknown')}, family {fields.get('cpu family')} model {fields.get('model')}"
    return f"{name} ({' '.join(sets)})"


def _git(*arguments: str) -> str:
    try:
        result = subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True)
    except FileNotFoundError:  # git is not required to measure
        return ""
    return result.stdout.strip()
