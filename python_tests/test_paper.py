"""Configuration files and masks of the paper's code."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from slt_kernels import EdgePopup, convert, import_mask, models, summary
from slt_kernels.cli import main
from slt_kernels.experiments.paper import from_paper
from slt_kernels.freezing import epl
from slt_kernels.train import Experiment

THEIRS = """
gpu_ids: [0, 1]
seed: 3
optimizer_name: sgd
lr: 0.1
momentum: 0.9
weight_decay: 0.0005
scheduler_name: cosine_lr_warmup
warmup_t: 5
warmup_lr_init: 0.001
warmup_prefix: True
min_lr: 0.0001
batch_size_per_gpu: 64
max_epoch: 90
model_name: resnet18
use_affine_bn: True
width_factor: 0.5
algo: local_ep
sparsity: 0.6
scale_method: dynamic_scaled
w_init_method: signed_kaiming_constant
s_init_method: kaiming_normal
m_init_method: epl
p_ratio: 0.3
r_ratio: 0.2
cutmix: 1.0
mixup: 0.8
mixup_prob: 0.7
drop_path: 0.1
repeated_aug: True
dataset_name: cifar100
dataset_dir: data
train_val_ratio: 0.9
"""


def test_a_configuration_is_converted(tmp_path, capsys):
    (tmp_path / "theirs.yaml").write_text(THEIRS)
    assert main(["import", str(tmp_path / "theirs.yaml"), "--out", str(tmp_path / "ours.yaml")]) == 0
    left_out = capsys.readouterr().err
    for key in (
        "gpu_ids=[0, 1]: see --device",
        "mixup_prob=0.7: every batch is mixed",
        "drop_path=0.1: there is nothing",
    ):
        assert f"slt import: {key}" in left_out
    ours = Experiment.load(tmp_path / "ours.yaml")
    assert (ours.seed, ours.model) == (3, {"name": "cifar_resnet18", "width": 32, "affine": True})
    assert ours.data == {"name": "cifar100", "path": "data", "validation": 0.1}
    source, search = ours.source, ours.search
    assert (source.prune, source.lock, source.spread, source.lock_spread) == (0.3, 0.2, "epl", "locked")
    assert (source.weight, source.scale) == ("signed_constant", "dynamic")
    assert (search.algorithm, search.scope, search.sparsity, search.scores) == ("edge_popup", "local", 0.6, "normal")
    assert (search.batch_size, search.epochs, search.repeats, search.pick) == (128, 90, 3, "best")
    assert (search.warmup_epochs, search.warmup_lr, search.min_lr) == (5, 0.001, 0.0001)
    assert (search.mixup, search.cutmix, search.weight_decay) == (0.8, 1.0, 0.0005)


def theirs(**changes) -> dict:
    values = Experiment.read_value(THEIRS)
    return values | {"model_name": "conv6", "width_factor": 1} | changes


def test_the_input_is_not_overwritten(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "theirs.yaml").write_text(THEIRS + "mask_file: masks.pt")
    (tmp_path / "masks.pt").touch()
    for out, message in (
        ("./theirs.yaml", "--out=theirs.yaml: expected another file than file=theirs.yaml"),
        ("masks.pt", "--out=masks.pt: expected another file than mask_file=masks.pt"),
        ("none/a.yaml", "--out=none/a.yaml: expected a file in a folder that exists"),
    ):
        assert main(["import", "theirs.yaml", "--out", out]) == 2
        assert capsys.readouterr() == ("", f"slt import: {message}\n")  # before the notes
    assert (tmp_path / "theirs.yaml").read_text().startswith(THEIRS)


def test_a_default_is_not_noted_as_none():
    _, notes = from_paper(theirs(dataset_dir=None))
    assert "dataset_dir: expected to hold the binary version of CIFAR; theirs is that of Python" in notes


def test_a_file_that_is_not_text(tmp_path, capsys):
    (tmp_path / "a.slt").write_bytes(b"\x80\x00")
    assert main(["import", str(tmp_path / "a.slt")]) == 2
    assert capsys.readouterr().err == f"slt import: {tmp_path / 'a.slt'}: not a text file\n"


def test_a_dense_and_an_unfrozen_configuration():
    dense, _ = from_paper(theirs(algo="dense", w_init_method="kaiming_uniform"))
    assert (dense.search.algorithm, dense.source.weight) == ("dense", "uniform")
    unfrozen, left_out = from_paper(theirs(m_init_method=None))
    assert (unfrozen.source.prune, unfrozen.source.lock) == (0.0, 0.0)
    assert "p_ratio, r_ratio: without m_init_method nothing is frozen, as in their code" in left_out


def test_a_configuration_of_a_graph_network():
    values = {"model_name": "gin_based_net", "hidden_dim": 386, "n_layers": 3, "use_bias": True, "dropout_p": 0.1}
    values |= {"norm_type": None, "dataset_name": "ogbn-arxiv", "optimizer_name": "adamw", "lr": 0.01}
    ours, _ = from_paper(theirs(**values, use_affine_bn=False))
    expected = {"name": "gin", "width": 386, "depth": 3, "dropout": 0.1, "bias": True, "norm": False}
    assert (ours.model, ours.data["name"], ours.search.batch_size) == (expected, "ogbn_arxiv", 1)


GIN = {"model_name": "gin_based_net", "dataset_name": "ogbn-arxiv"}


@pytest.mark.parametrize(
    "changes,message",
    (
        ({"model_name": "vgg"}, "model_name='vgg': there is no such network for dataset_name='cifar100'"),
        ({"dataset_name": "cora"}, "dataset_name='cora': expected one of mnist, cifar10"),
        ({"w_init_method": "trunc_normal"}, "w_init_method='trunc_normal': expected one of kaiming_uniform"),
        ({"scheduler_name": "step"}, "scheduler_name='step': expected one of multi_step_lr"),
        ({"r_method": "other"}, "r_method='other': expected one of None, density_distribution"),
        ({"train_val_ratio": 2}, "train_val_ratio=2: expected a number from 0 to 1"),
        ({"width_factor": 1e308}, r"width_factor=1e\+308: expected a factor on 64 that gives from 1 to 2147483647"),
        ({**GIN, "hidden_dim": 1e300, "width_factor": 1e300}, r"hidden_dim=1e\+300: expected a number from 1 to"),
        ({**GIN, "hidden_dim": 3, "width_factor": 0.1}, r"width_factor=0\.1: expected a factor on 3 that gives"),
        ({**GIN, "n_layers": 10**9}, "n_layers=1000000000: expected an integer from 1 to 1000"),
        ({"mask_file": "m", "m_init_method": None}, "mask_file='m': expected m_init_method too"),
    ),
)
def test_a_value_without_a_meaning_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        from_paper(theirs(**changes))


# Masks


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 20, 3, bias=False), nn.Flatten(), nn.Linear(180, 100), nn.Linear(100, 10))


KEPT = {"0": 0.05, "2": 0.4, "3": 0.9}


def masks(suffix: str = ".mask", prefix: str = "") -> dict[str, torch.Tensor]:
    found = {}
    for name, m in network().named_modules():
        if name in KEPT:
            flat = torch.zeros(m.weight.numel())
            flat[torch.randperm(len(flat))[: round(KEPT[name] * len(flat))]] = 1
            found |= {f"{prefix}{name}.weight": m.weight.detach(), f"{prefix}{name}{suffix}": flat.view_as(m.weight)}
    return found


def test_fractions_follow_the_masks():
    """Half of the free weights are kept, unless the mask keeps too few or drops too few for it."""
    shapes = [m.weight.shape for m in network() if hasattr(m, "weight")]
    for frozen in (0.0, 0.3, 0.5, 1.0):
        fractions = import_mask(network(), masks(), frozen, "epl")
        for f, kept, free in zip(fractions, KEPT.values(), epl(shapes, 1 - frozen), strict=True):
            ones = kept - f.lock  # of the free weights
            assert f.prune + f.lock == pytest.approx(1 - free)
            assert ones == pytest.approx(min(max(free / 2, free - (1 - kept)), kept))
            assert min(f.prune, f.lock, ones) >= 0


@pytest.mark.parametrize("suffix,prefix", ((".mask", "module."), (".weight_mask", ""), (".mask", "net.layer")))
def test_masks_are_found_by_name_or_in_order(suffix, prefix, tmp_path):
    expected = import_mask(network(), masks(), 0.5)
    held = masks(suffix, prefix)
    torch.save(held, tmp_path / "masks.pt")
    save_file(held, tmp_path / "masks.safetensors")
    for given in (held, tmp_path / "masks.pt", str(tmp_path / "masks.safetensors")):
        assert import_mask(network(), given, 0.5) == expected


def test_a_network_is_converted_with_them():
    model = convert(network(), freeze=import_mask(network(), masks(), 0.5, "erk"), sparsity=None)
    assert summary(model).prune + summary(model).lock == pytest.approx(0.5, abs=0.01)
    EdgePopup(model, 0.6)


def test_masks_that_do_not_fit(tmp_path):
    (tmp_path / "text").write_text("no masks")
    torch.save({"2.mask": network()}, tmp_path / "pickle")
    few = {name: t for name, t in masks(prefix="x").items() if "x3" not in name}
    for given, message in (
        ({}, "masks: expected a state_dict with NAME.mask or NAME.weight_mask"),
        (few, "masks: 2 of them, expected one for each of 3 layers"),
        (masks() | {"2.mask": torch.ones(3, 3)}, r"2: mask of shape \[3, 3\], expected \[100, 180\], as layer 2 has"),
        (tmp_path / "text", "text: not safetensors, and not readable by torch.load"),
        (tmp_path / "pickle", "pickle: .* by torch.load: expected a state_dict of tensors alone$"),
        (tmp_path, f"{tmp_path}: not a file: expected a state_dict with masks"),
    ):
        with pytest.raises(ValueError, match=message):
            import_mask(network(), given, 0.5)
    with pytest.raises(FileNotFoundError, match="none: no such file: expected a state_dict"):
        import_mask(network(), tmp_path / "none", 0.5)
    with pytest.raises(ValueError, match=r"frozen=1\.5: expected a fraction"):
        import_mask(network(), masks(), 1.5)


def test_a_mask_file_becomes_fractions_of_each_layer(tmp_path):
    layers = [m for m in models.build("conv6", device="meta").modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    held = {f"convs.{i}.mask": (torch.rand(m.weight.shape) < 0.5).float() for i, m in enumerate(layers)}
    torch.save(held, tmp_path / "masks.pt")
    ours, _ = from_paper(theirs(mask_file=str(tmp_path / "masks.pt"), dataset_name="cifar10", r_method=None))
    assert len(ours.source.layers) == len(layers)
    again = Experiment.from_dict(Experiment.read_value(ours.to_yaml()))
    assert again == ours
    assert len(again.source.supermask(0)["freeze"]) == len(layers)
