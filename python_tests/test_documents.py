"""What README.md and docs/ say is what the code does and what the results hold."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path
from statistics import NormalDist

import torch

from slt_kernels import Freeze, SupermaskEmbedding, SupermaskLinear
from slt_kernels.source import NORMAL_TABLE

ROOT = Path(__file__).parent.parent


def test_tables_are_what_the_results_say():
    command = [sys.executable, str(ROOT / "bench/render.py"), "--check"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_readme_example_runs(tmp_path):
    """As it stands, and it prints the counts that its comments name."""
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (counts,) = re.findall(r"# ([\d,]+ weights, [\d,]+ free bits)", example)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", example]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert counts in run.stdout
    assert (tmp_path / "net.slt").exists()


def test_the_normal_table_and_the_scale_as_the_contract_words_them():
    quantile = NormalDist().inv_cdf
    half = [max(1, round(44 * quantile((u + 1 / 2) / 256))) for u in range(128, 256)]
    assert tuple([-t for t in reversed(half)] + half) == NORMAL_TABLE
    assert min(abs(44 * quantile((u + 1 / 2) / 256) % 1 - 1 / 2) for u in range(128, 256)) > 0.006
    std = math.sqrt(sum(t * t for t in NORMAL_TABLE) / 256)
    options = {"freeze": Freeze(0.2, 0.2), "sparsity": 0.6, "weight": "normal"}
    kept = SupermaskLinear(70, 30, **options).mask().sum().item()
    densities = {None: 1.0, "static": 1 / math.sqrt(1 - 0.6), "dynamic": 1 / math.sqrt(kept / (30 * 70))}
    for scale, density in densities.items():
        expected = torch.tensor(math.sqrt(2) / math.sqrt(70) / std * density, dtype=torch.float64).float()
        assert torch.equal(SupermaskLinear(70, 30, scale=scale, **options).weight_scale, expected)
    assert torch.equal(SupermaskLinear(70, 30, sparsity=1.0, scale="dynamic").weight_scale, torch.zeros(()))
    expected = torch.tensor(0.5 * math.sqrt(70) / math.sqrt(70) / std, dtype=torch.float64).float()
    assert torch.equal(SupermaskEmbedding(30, 70, std=0.5, weight="normal").weight_scale, expected)


def anchors(document: Path) -> set[str]:
    """Of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_somewhere():
    for document in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", document.read_text()):
            there = document.parent / target if target else document
            assert there.exists(), f"{document.name}: {target}"
            assert not anchor or anchor in anchors(there), f"{document.name}: {target}#{anchor}"
