"""Every file in configs/ runs, at small size and on small files of the real formats."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_data import write_arxiv, write_cifar, write_idx

from slt_kernels import data, load_ticket, models, ticket_info
from slt_kernels.cli import main
from slt_kernels.train import Experiment, build, load_data

FOLDER = Path(__file__).parent.parent / "configs"
CONFIGS = sorted(FOLDER.glob("*.yaml"))
WEIGHTS = {"cifar10_conv6": 2_261_184, "cifar10_resnet18": 11_164_352, "imagenet_resnet50": 25_502_912}
PAPER = {  # (data, pruned fraction, locked fraction, sparsity, epochs) of Otsuka et al. (2024)
    "cifar10_conv6": ("cifar10", 0.25, 0.25, 0.5, 100),
    "cifar10_resnet18": ("cifar10", 0.25, 0.25, 0.5, 100),
    "imagenet_resnet50": ("image_folder", 0.49, 0.21, 0.7, 100),
    "ogbn_arxiv_gin": ("ogbn_arxiv", 0.0, 0.4, 0.2, 400),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    """A small data set of each kind, by name."""
    root = tmp_path_factory.mktemp("data")
    write_cifar(root / "cifar")
    write_arxiv(root / "ogb/ogbn_arxiv")
    random = np.random.default_rng(0)
    for part, name in ((p, c) for p in ("train", "val") for c in ("cat", "dog")):
        (root / "images" / part / name).mkdir(parents=True)
        for i in range(4):
            image = Image.fromarray(random.integers(0, 256, (40, 50, 3), dtype=np.uint8))
            image.save(root / "images" / part / name / f"{i}.png")
    (root / "text.txt").write_text("so it goes " * 200)
    write_idx(root / "fashion")
    return {
        "cifar10": str(root / "cifar"),
        "image_folder": str(root / "images"),
        "fashion_mnist": str(root / "fashion"),
        "ogbn_arxiv": str(root / "ogb"),
        "text": str(root / "text.txt"),
    }


@pytest.mark.parametrize("config", PAPER)
def test_it_has_the_paper_s_settings(config):
    experiment = Experiment.load(FOLDER / f"{config}.yaml")
    source, search = experiment.source, experiment.search
    settings = (experiment.data["name"], source.prune, source.lock, search.sparsity, search.epochs)
    assert settings == PAPER[config]
    assert (source.spread, search.algorithm, search.scope, search.scores) == ("epl", "edge_popup", "global", "normal")
    assert (search.schedule, search.pick) == ("cosine", "best")


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.stem)
def test_it_runs(config, files, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        sys.modules["slt_kernels.experiments.data.text"], "_verses", lambda: b"Ge1:1 In the beginning. " * 100
    )
    experiment = Experiment.load(config)
    name = experiment.data["name"]
    options = ["--config", str(config), "--epochs", "1", "--workers", "0"]
    options += ["--width", "64" if name in ("text", "bible") else "4"]
    options += ["--path", files[name]] if name in files else []
    options += {
        "image_folder": ["--set", "data.size=32"],
        "text": ["--set", "data.context=16"],
        "bible": ["--set", "data.context=16"],
    }.get(name, [])
    assert main(["find", "--out", str(tmp_path / "net.slt"), *options]) == 0, capsys.readouterr().err
    evaluate = ["eval", str(tmp_path / "net.slt")]
    assert main([*evaluate, *(["--path", files[name]] if name in files else [])]) == 0


@pytest.mark.parametrize("config", WEIGHTS)
def test_it_is_the_paper_s_network(config):
    """Counts the weights of the config's dense network on the meta device."""
    experiment = Experiment.load(FOLDER / f"{config}.yaml")
    model = models.build(**experiment.model, device="meta")
    masked = (torch.nn.Linear, torch.nn.Conv2d)
    assert sum(m.weight.numel() for m in model.modules() if isinstance(m, masked)) == WEIGHTS[config]
    assert all(p.numel() == 0 for m in model.modules() if not isinstance(m, masked) for p in m.parameters(False))


def test_the_digits_are_the_default():
    assert Experiment.load(FOLDER / "digits.yaml") == Experiment(model={"name": "convnet", "width": 96})


def test_a_ticket_builds_its_network_again(tmp_path):
    """The metadata that `slt find` writes are sufficient."""
    out = tmp_path / "net.slt"
    assert main(["find", "--config", str(FOLDER / "karate_gin.yaml"), "--epochs", "1", "--out", str(out)]) == 0
    network = Experiment.from_dict(ticket_info(out).metadata["network"])
    dataset = load_data(network)
    assert isinstance(dataset, data.Dataset)
    load_ticket(out, build(network, dataset))
