"""The experiments as a package above the layers: public names, imports and pickles."""

import importlib
import pickle

import pytest
import torch
from processes import run_forked

from slt_kernels.data import digits
from slt_kernels.models import GPT

PUBLIC = {name: f"experiments.{name}" for name in ("data", "models", "train", "sweep")} | {"ticket": "tickets"}


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_those_of_the_package(name):
    public = importlib.import_module(f"slt_kernels.{name}")
    package = importlib.import_module(f"slt_kernels.{PUBLIC[name]}")
    assert public.__all__ == package.__all__
    assert all(getattr(public, n) is getattr(package, n) for n in public.__all__)


def test_importing_the_layers_imports_no_experiment():
    code = "import sys, slt_kernels; print([m for m in sys.modules if m.startswith('slt_kernels.experiments')])"
    assert run_forked(code).stdout.strip() == "[]"


def test_pickles():
    data = pickle.loads(pickle.dumps(digits()))
    (images,), labels = data.train.batch(torch.arange(3))
    (expected,), answers = digits().train.batch(torch.arange(3))
    assert torch.equal(images, expected) and torch.equal(labels, answers)
    model = GPT(classes=5, context=4, width=64, depth=1)
    loaded = pickle.loads(pickle.dumps(model))
    assert all(map(torch.equal, loaded.parameters(), model.parameters()))
