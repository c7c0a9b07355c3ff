"""``slt eval`` of foreign tickets, whose metadata are checked before a network is built or a file opened."""

import re

import pytest
import torch
from torch import nn

from slt_kernels import models, save_ticket
from slt_kernels.cli import main
from slt_kernels.experiments.train import reload
from slt_kernels.train import Experiment, build, load_data, load_network

EXPERIMENT = Experiment(model={"name": "convnet", "width": 4})
GRAPH = Experiment(model={"name": "gin", "width": 8}, data={"name": "karate"})


@pytest.fixture(scope="module")
def networks() -> dict[str, nn.Module]:
    return {e.model["name"]: build(e, load_data(e)) for e in (EXPERIMENT, GRAPH)}


@pytest.fixture
def evaluate(networks, tmp_path, capsys, monkeypatch):
    """Status and error of eval for a ticket with other metadata; building the network is forbidden."""

    def run(metadata: dict, *arguments: str, name: str = "convnet", builds: bool = False) -> tuple[int, str]:
        save_ticket(networks[name], tmp_path / "net.slt", metadata)
        if not builds:
            monkeypatch.setattr(reload, "build", None)
        status = main(["eval", str(tmp_path / "net.slt"), *arguments])
        return status, capsys.readouterr().err

    return run


def named(experiment: Experiment = EXPERIMENT, **changes) -> dict:
    return {"network": experiment.network | changes, "test_accuracy": 0.5}


@pytest.mark.parametrize("experiment", (EXPERIMENT, GRAPH), ids=("digits", "karate"))
def test_a_ticket_of_its_network_is_tested(experiment, evaluate):
    assert evaluate(named(experiment), name=experiment.model["name"], builds=True) == (0, "")


@pytest.mark.parametrize("experiment", (EXPERIMENT, GRAPH), ids=("digits", "karate"))
def test_a_network_is_built_from_its_ticket_alone(experiment, networks, monkeypatch, tmp_path):
    data, model = load_data(experiment), networks[experiment.model["name"]].eval()
    save_ticket(model, tmp_path / "net.slt", named(experiment) | {"dimensions": data.dimensions})
    monkeypatch.setattr("slt_kernels.experiments.data.load", None)
    again = load_network(tmp_path / "net.slt")
    (inputs, _), layer = data.test.batch(torch.arange(1)), next(m for m in again.modules() if hasattr(m, "scores"))
    assert torch.equal(again(*inputs), model(*inputs))
    assert layer.scores is None and not again.training
    assert any(p.requires_grad for p in load_network(tmp_path / "net.slt", scores=True).parameters())


@pytest.mark.parametrize(
    "dimensions,message",
    (
        (None, "of an older release, without the dimensions of its data: expected load_ticket, with a network of"),
        ([10], r"dimensions=\[10\]: expected some of classes, channels"),
        ({"classes": 10, "channels": 1, "depth": 10**9}, "dimensions=.*: expected some of classes, channels"),
        ({"classes": "10"}, "classes='10': expected an integer"),
        ({"classes": 10**9, "channels": 1}, "has shape"),
    ),
    ids=("older", "list", "depth", "text", "huge"),
)
def test_dimensions_that_do_not_fit_are_refused(dimensions, message, networks, monkeypatch, tmp_path):
    metadata = named() if dimensions is None else named() | {"dimensions": dimensions}
    save_ticket(networks["convnet"], tmp_path / "net.slt", metadata)
    monkeypatch.setattr(reload, "build", None)
    with pytest.raises(ValueError, match=message):
        load_network(tmp_path / "net.slt")


def test_the_path_in_the_ticket_is_not_opened(evaluate, monkeypatch, tmp_path):
    monkeypatch.setattr("slt_kernels.experiments.data.load", None)
    for name in ("text", "cifar10", "image_folder", "ogbn_arxiv"):
        status, error = evaluate(named(data={"name": name, "path": str(tmp_path / "theirs")}))
        assert status == 2
        assert f"path: expected --path, the folder or file of {name} (path in the ticket: '{tmp_path}" in error


def test_the_path_of_the_flag_is_opened(evaluate, tmp_path):
    metadata = named(data={"name": "text", "path": "theirs"}, model={"name": "gpt_mini", "width": 64})
    status, error = evaluate(metadata, "--path", str(tmp_path / "ours"))
    assert (status, "ours" in error, "theirs" in error) == (2, True, False)


@pytest.mark.parametrize("width", (5, 10**4, 10**9, 2**62, 10**30), ids=str)
def test_a_network_of_another_width_is_not_built(width, evaluate):
    status, error = evaluate(named(model={"name": "convnet", "width": width}))
    assert status == 2
    assert "net.slt: " in error and any(what in error for what in ("has shape", "cannot be built", "expected "))


@pytest.mark.parametrize("depth,most", ((10**9, "1000"), (1000, "5, the number of its layers")))
@pytest.mark.parametrize("name,options", (("gin", {}), ("vit_tiny", {"size": 8, "channels": 1, "patch": 4})), ids=str)
def test_a_huge_network_is_not_built(name, options, depth, most, evaluate):
    data = {"name": "karate" if name == "gin" else "digits"}
    status, error = evaluate(named(model={"name": name, "depth": depth, **options}, data=data))
    assert status == 2
    assert f"model.depth={depth}: expected at most {most}\n" in error


def test_the_error_of_another_network_names_a_tensor(evaluate):
    status, error = evaluate(named(model={"name": "conv2", "width": 4, "size": 8, "channels": 1}))
    assert status == 2 and " has shape " in error and ", in the network that it describes " in error


@pytest.mark.parametrize("found", (-1, 1.5, 1e308, 10**400), ids=lambda found: f"{str(found)[:5]}")
def test_an_impossible_accuracy(found, evaluate):
    status, error = evaluate(named() | {"test_accuracy": found})
    assert status == 2
    assert re.search(r"net\.slt: test_accuracy=\S.*: expected a number from 0 to 1\n", error)


@pytest.mark.parametrize(
    "metadata",
    (
        {"network": None, "test_accuracy": 0.5},
        {"network": [], "test_accuracy": 0.5},
        {"network": "convnet", "test_accuracy": 0.5},
        named() | {"test_accuracy": "0.5"},
        named() | {"test_accuracy": None},
        named() | {"test_accuracy": [0.5]},
        named() | {"test_accuracy": True},
        named(seed=-1),
        named(seed="x"),
        named(model=[]),
        named(model={"name": ["convnet"]}),
        named(data={"name": "digits", "path": 3}),
        named(source={"prune": 7}),
        named(more=1),
        {},
    ),
    ids=lambda metadata: str(metadata)[-40:],
)
def test_metadata_without_a_network(metadata, evaluate):
    status, error = evaluate(metadata)
    assert status == 2
    assert "net.slt: " in error and error.count("\n") == 1


def test_info_escapes_control_characters(tmp_path, capsys):
    """Escapes keep each name on its line."""
    model = nn.Module()
    model.add_module("a\x1b[31m\nb", models.build("convnet", width=4, supermask={}))
    model.register_buffer("\u202e", torch.zeros(1))
    file = tmp_path / "net.slt"
    save_ticket(model, file, {"k\r": "v\x07", "deep": [[[[[[1]]]]]], "long": "x" * 10**6})
    assert main(["info", str(file)]) == 0
    printed = capsys.readouterr().out
    assert all(line.isprintable() for line in printed.splitlines())
    assert "a\\x1b[31m\\nb.0" in printed and "\\u202e: float32 [1]" in printed and "k\\r: v\\x07" in printed
    assert len(printed) < 1_010_000


def test_eval_bounds_the_depth_by_the_layers():
    """Networks of arbitrary depth have at least one layer per unit of depth."""
    for name, (_, kind, _) in models.MODELS.items():
        if kind != "images" or name.startswith(("vit", "cifar_vit")):
            needed = {"gin": {"features": 3, "classes": 2}}.get(
                name, {"classes": 7, "context": 8} if kind == "text" else {}
            )
            layers = {
                depth: len(list(models.build(name, **needed, depth=depth, device="meta").parameters()))
                for depth in (2, 4)
            }
            assert all(count >= depth for depth, count in layers.items()), name
