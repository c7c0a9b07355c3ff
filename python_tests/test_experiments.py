"""The experiments as a package above the layers: public names, what imports what, and pickles."""

import ast
import importlib
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import slt_kernels
from slt_kernels.data import digits
from slt_kernels.models import GPT

FOLDER = Path(slt_kernels.__file__).parent / "experiments"
ORDER = ("data", "models", "train", "sweep")  # each may import those before it
PUBLIC = {name: f"experiments.{name}" for name in ORDER} | {"ticket": "tickets"}


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_those_of_the_package(name):
    public = importlib.import_module(f"slt_kernels.{name}")
    package = importlib.import_module(f"slt_kernels.{PUBLIC[name]}")
    assert public.__all__ == package.__all__
    assert all(getattr(public, n) is getattr(package, n) for n in public.__all__)


def test_importing_the_layers_imports_no_experiment():
    code = "import sys, slt_kernels; print([m for m in sys.modules if m.startswith('slt_kernels.experiments')])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_imports_inside_run_one_way():
    for file in FOLDER.rglob("*.py"):
        name = file.relative_to(FOLDER).parts[0].removesuffix(".py")
        depth = len(file.relative_to(FOLDER).parts)  # how many dots lead to `experiments`
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == depth:
                imported = {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
                for other in imported & set(ORDER):
                    assert ORDER.index(other) < ORDER.index(name), f"{file.relative_to(FOLDER)} imports {other}"


def test_pickles():
    data = pickle.loads(pickle.dumps(digits()))
    (images,), labels = data.train.batch(torch.arange(3))
    (expected,), answers = digits().train.batch(torch.arange(3))
    assert torch.equal(images, expected) and torch.equal(labels, answers)
    model = GPT(classes=5, context=4, width=64, depth=1)
    loaded = pickle.loads(pickle.dumps(model))
    assert all(map(torch.equal, loaded.parameters(), model.parameters()))
