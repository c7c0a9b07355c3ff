"""Settings from YAML, plain values and flags; errors name the unknown or wrong setting."""

import dataclasses
import datetime
import json
import math

import hypothesis.strategies as st
import pytest
from hypothesis import given

from slt_kernels.experiments.paper import from_paper
from slt_kernels.train import Experiment, Search, SourceNetwork

EVERYTHING = """
seed: 7
model: {name: resnet50, width: 32}
data: {name: image_folder, path: some/folder, validation: 0.1}
source: {prune: 0.3, lock: 0.2, spread: erk, weight: normal, scale: none, compact: true}
search:
  algorithm: edge_popup
  sparsity: 0.5
  scope: local
  scores: normal
  epochs: 90
  batch_size: 256
  optimizer: adamw
  lr: 1e-3
  momentum: 0
  weight_decay: 5.0e-4
  schedule: multistep
  warmup_epochs: 5
  milestones: [30, 60]
  gamma: 0.2
  label_smoothing: 0.1
  mixup: 0.2
  clip: 1
  amp: bf16
  ema: 0.999
  pick: best
  workers: 4
  min_lr: 1e-6
  warmup_lr: 1e-5
  cutmix: 1
  repeats: 3
  test_each_epoch: true
"""


def test_yaml(tmp_path):
    file = tmp_path / "experiment.yaml"
    file.write_text(EVERYTHING)
    experiment = Experiment.load(file)
    assert experiment.seed == 7
    assert experiment.model == {"name": "resnet50", "width": 32}
    assert experiment.data["validation"] == 0.1
    assert experiment.source == SourceNetwork(0.3, 0.2, "erk", "normal", None, True)
    search = experiment.search
    assert (search.lr, search.weight_decay, search.clip) == (1e-3, 5e-4, 1.0)  # YAML 1.1 reads 1e-3 as text
    assert (search.min_lr, search.warmup_lr, search.cutmix, search.repeats) == (1e-6, 1e-5, 1.0, 3)
    assert (search.milestones, search.amp, search.warmup_epochs) == ((30, 60), "bf16", 5)
    file.write_text("{}")
    assert Experiment.load(file) == Experiment()
    file.write_text("model: conv4\ndata: cifar10\n")
    assert Experiment.load(file).model == {"name": "conv4"}


def test_settings_survive_json():
    experiment = Experiment(seed=3, search=Search(milestones=(1, 2), amp="fp16"), source=SourceNetwork(scale=None))
    assert Experiment.from_dict(json.loads(json.dumps(experiment.to_dict()))) == experiment


@pytest.mark.parametrize(
    "values,message",
    (
        ({"serach": {}}, "serach: unknown; did you mean search?"),
        ({"search": {"epoch": 3}}, "search.epoch: unknown; did you mean epochs?"),
        ({"search": {"learning": 3}}, "search.learning: unknown; expected one of algorithm, sparsity"),
        ({"source": {"pruned": 0.1}}, "source.pruned: unknown; did you mean prune?"),
        ({"search": 3}, "search=3: expected keys and values"),
        ([], r"experiment=[]: expected keys and values"),
        ({"search": {"epochs": 1.5}}, "search.epochs=1.5: expected an integer"),
        ({"search": {"epochs": True}}, "search.epochs=True: expected an integer"),
        ({"search": {"lr": "fast"}}, "search.lr='fast': expected a number"),
        ({"search": {"milestones": 3}}, "search.milestones=3: expected a list of integers"),
        ({"source": {"compact": 1}}, "source.compact=1: expected true or false"),
        ({"search": {"scope": "layer"}}, "scope='layer': expected one of global, local"),
        ({"search": {"amp": "fp8"}}, "amp='fp8': expected one of none, bf16, fp16"),
        ({"search": {"ema": 1.5}}, "ema=1.5: expected 0 to 1"),
        ({"search": {"lr": float("nan")}}, "lr=nan: expected a finite number of at least 0"),
        ({"search": {"lr": float("inf")}}, "lr=inf: expected a finite number of at least 0"),
        ({"search": {"lr": 10**400}}, "expected a number"),
        ({"search": {"lr": 1e39}}, "lr=1e+39: expected at most 3.402823e+38, the largest float32"),
        ({"search": {"lr": -math.inf}}, "lr=-inf: expected a finite number of at least 0"),
        (
            {"search": {"schedule": "multistep", "milestones": [0, 0, 0], "gamma": 1e38}},
            "gamma=1e+38: expected a learning rate of at most 3.402823e+38 after all milestones",
        ),
        (
            {"search": {"schedule": "multistep", "milestones": [0] * 20, "gamma": 1e38}},
            "gamma=1e+38: expected a learning rate",
        ),
        ({"search": {"sparsity": float("nan")}}, "sparsity=nan: expected 0 to 1"),
        ({"source": {"lock": float("nan")}}, "lock=nan: expected 0 to 1"),
        ({"search": {"nesterov": True, "momentum": 0}}, "nesterov=True: expected sgd with momentum, got sgd, 0"),
        ({"search": {"nesterov": True, "optimizer": "adam"}}, "nesterov=True: expected sgd with momentum, got adam"),
        ({"search": {"min_lr": 0.2}}, "min_lr=0.2: expected at most lr=0.1"),
        ({"search": {"warmup_lr": 0.2}}, "warmup_lr=0.2: expected at most lr=0.1"),
        ({"source": {"exclude": "last"}}, "source.exclude='last': expected a list of names"),
        ({"source": {"layers": [[0.5, 0.6]]}}, "layers[0]=[0.5, 0.6]: expected two fractions that add up to at most 1"),
        ({"source": {"layers": [[0.5]]}}, "layers[0]=[0.5]: expected two fractions"),
        ({"source": {"layers": [0.5]}}, "source.layers=0.5: expected a list of numbers"),
        ({"source": {"lock_spread": "both"}}, "lock_spread='both': expected one of frozen, locked"),
        ({"data": {"name": "a:b", "day": datetime.date(2020, 1, 1)}}, "data.day=datetime.date(2020, 1, 1): expected"),
        ({"data": {"name": "a:b", "names": {1: "one"}}}, "data.names={1: 'one'}: expected text, numbers,"),
        ({"seed": -1}, "seed=-1: expected 0 to 18446744073709551615"),
        ({"source": {"prune": 0.8, "lock": 0.8}}, "prune=0.8 + lock=0.8"),
        ({"model": "convent"}, "model.name='convent': unknown"),
        ({"model": "convent"}, "did you mean convnet?"),
        ({"model": {"width": 3}}, "model.name=None: unknown"),
        ({"model": 3}, "model=3: expected a name, or keys and values"),
        ({"model": {"name": ["convnet"]}}, "model.name=['convnet']: unknown"),
        ({"model": {"name": "convnet", 1: 2}}, "model.1=2: convnet has only name, width, classes, channels"),
        ({"model": {"name": "convnet", "device": "cpu"}}, "model.device='cpu': convnet has only"),
        ({"model": {"name": "convnet", "width": "8"}}, "model.width='8': expected an integer"),
        ({"model": {"name": "convnet", "width": 2**31}}, "model.width=2147483648: expected at most 2147483647"),
        ({"model": {"name": "convnet", "width": math.nan}}, "width=nan: expected a factor on 96"),
        ({"model": {"name": "gpt_mini", "depth": 10**8}}, "model.depth=100000000: expected at most 1000"),
        ({"model": {"name": "gpt_mini", "qk_scaling": "maybe"}}, "model.qk_scaling='maybe': expected true or false"),
        ({"data": "cifar"}, "did you mean cifar10"),
        ({"data": {"name": "digits", "seed": 3}}, "data.seed=3: digits has only name"),
        ({"data": {"name": "text", "path": 3}}, "data.path=3: expected text"),
        ({"data": {"name": "text", "path": "a", "context": 0}}, "data.context=0: expected at least 1"),
        ({"data": {"name": "cifar10", "path": "a", "validation": "x"}}, "data.validation='x': expected a number"),
        ({"data": {"name": "cifar10", "path": "a", "validation": math.nan}}, "data.validation=nan: expected a finite"),
        ({"data": {"name": "cifar10", "path": "a", "validation": -1e39}}, "validation=-1e+39: expected at least -3.4"),
    ),
    ids=lambda value: str(value)[:40],
)
def test_refusals(values, message):
    with pytest.raises(ValueError) as error:
        Experiment.from_dict(values)
    assert message in str(error.value)


def test_a_file_is_named_in_its_errors(tmp_path):
    file = tmp_path / "experiment.yaml"
    file.write_text("search: {epoch: 3}")
    with pytest.raises(ValueError, match=r"experiment\.yaml: search\.epoch: unknown"):
        Experiment.load(file)
    for content, message in (
        (b"search: {epochs: [", "not YAML: "),
        (b"", "there is no setting in it"),
        (b"# search:\n", "there is no setting in it"),
        (b"seed: 1\nsearch: {}\nseed: 2", "seed: given twice"),
        (b"search: {lr: 1, lr: 2}", "lr: given twice"),
        (b"\xff\xfe", "not a text file"),
    ):
        file.write_bytes(content)
        with pytest.raises(ValueError) as error:
            Experiment.load(file)
        assert f"{file}: " in str(error.value)
        assert message in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError):
        Experiment.load(tmp_path / "none.yaml")


def test_files_are_utf8_in_every_locale(tmp_path, monkeypatch):
    file = tmp_path / "experiment.yaml"
    file.write_bytes("data: {name: text, path: Übung.txt}".encode())
    monkeypatch.setattr("io.text_encoding", lambda encoding, *_: encoding or "ascii")
    assert Experiment.load(file).data["path"] == "Übung.txt"


def test_options_have_the_builder_s_types():
    values = {"model": "convnet", "data": {"name": "cifar10", "path": "a", "validation": "1e-1"}}
    assert Experiment.from_dict(values).data["validation"] == 0.1  # YAML 1.1 reads 1e-1 as text
    assert Experiment(model="conv2", data="digits") == Experiment(model={"name": "conv2"})


@pytest.mark.parametrize(
    "changes,message",
    (
        ({"lr": [0.1]}, r"lr=\[0\.1\]: expected a number"),
        ({"clip_grad": "norm"}, "clip_grad='norm': expected a number"),
        ({"width_factor": math.inf}, "width_factor=inf: expected a number"),
        ({"gpu_ids": "0,1"}, "gpu_ids='0,1': expected a list of numbers"),
        ({"algo": ["dense"]}, r"algo=\['dense'\]: expected one of dense"),
        ({"model_name": ["conv6"]}, r"model_name=\['conv6'\]: there is no such network"),
        ({"m_init_method": "rand"}, "m_init_method='rand': expected one of None, uniform"),
    ),
)
def test_values_of_another_type_in_the_paper_s_files_are_refused(changes, message):
    values = {"dataset_name": "cifar10", "model_name": "conv6", "algo": "global_ep", "optimizer_name": "sgd"}
    values |= {"w_init_method": "kaiming_normal", "s_init_method": "kaiming_normal", "lr": "1e-3"}
    assert from_paper(values)[0].search.lr == 1e-3  # YAML reads it as text
    with pytest.raises(ValueError, match=message):
        from_paper(values | changes)


def test_identity_ignores_workers():
    assert Experiment(search=Search(workers=3)).identity == Experiment().identity
    assert Experiment(search=Search(epochs=3)).identity != Experiment().identity


def test_settings_newer_than_a_checkpoint_are_in_it_only_if_they_are_used():
    """So that a search and a sweep of an older version continue."""
    assert "cutmix" not in Experiment().identity["search"]
    assert "exclude" not in Experiment().network["source"]
    changed = Experiment(search=Search(cutmix=1.0), source=SourceNetwork(exclude=("last",)))
    assert (changed.identity["search"]["cutmix"], changed.network["source"]["exclude"]) == (1.0, ["last"])
    assert Experiment.from_dict(changed.identity | {"seed": 0}) == changed


def test_the_learning_rate_of_a_warmup_and_of_cosine():
    """The formulas of timm's CosineLRScheduler with ``warmup_prefix``, over the epochs after the warmup."""
    search = Search(lr=0.1, epochs=10, warmup_epochs=4, warmup_lr=0.02, min_lr=0.01)
    rates = [search.rate(epoch) for epoch in range(10)]
    assert rates[:4] == pytest.approx([0.02, 0.04, 0.06, 0.08])
    expected = [0.01 + 0.09 * (1 + math.cos(math.pi * t / 6)) / 2 for t in range(6)]
    assert rates[4:] == pytest.approx(expected)
    assert Search(lr=0.1, epochs=10, warmup_epochs=4).rate(0) == pytest.approx(0.02)


def test_a_file_may_be_named_none():
    values = {"data": {"name": "fashion_mnist", "path": "none"}, "source": {"scale": "none"}}
    experiment = Experiment.from_dict(values)
    assert (experiment.data["path"], experiment.source.scale) == ("none", None)


def test_overriding_a_section_keeps_its_keys_that_are_overridden_too():
    base = Experiment()
    whole = {"epochs": 3}
    for changes in ({"search.lr": 0.3, "search": whole}, {"search": whole, "search.lr": 0.3}):
        assert base.override(changes).search == Search(epochs=3, lr=0.3)
    assert whole == {"epochs": 3}
    assert base.override({"model.width": 4, "model": "conv2"}).model == {"name": "conv2", "width": 4}
    with pytest.raises(ValueError, match="search=3: expected keys and values"):
        base.override({"search": 3, "search.lr": 0.3})


def test_override():
    base = Experiment(model={"name": "resnet18", "width": 32}, data={"name": "image_folder", "path": "here"})
    assert base.override({"model.width": 0.5}).model["width"] == 32
    changed = base.override({"seed": 2, "search.lr": 0.3, "source.prune": 0.2, "data.path": "there", "model.width": 8})
    assert (changed.seed, changed.search.lr, changed.source.prune) == (2, 0.3, 0.2)
    assert changed.data["path"] == "there"
    assert changed.model == {"name": "resnet18", "width": 8}
    assert base.override({"model": "resnet18"}) == base  # keeps the options
    assert base.override({"model": "conv2", "model.width": 4}).model == {"name": "conv2", "width": 4}
    with pytest.raises(ValueError, match=r"serach\.lr: unknown; did you mean search"):
        base.override({"serach.lr": 1})
    with pytest.raises(ValueError, match=r"search\.rate: unknown"):
        base.override({"search.rate": 1})


@given(st.sampled_from(dataclasses.fields(Search)), st.one_of(st.integers(), st.floats(), st.text(), st.none()))
def test_any_value_is_accepted_or_named_in_an_error(setting, value):
    try:
        taken = getattr(Experiment.from_dict({"search": {setting.name: value}}).search, setting.name)
    except ValueError as error:
        assert setting.name in str(error)
    else:
        assert taken == value or (value == "none" and taken is None)


# Huge values

BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 8)}]\n"
    for before, name in zip("abcdefghijklmno", "bcdefghijklmnop", strict=True)
)
MERGES = "a: &a {k: 1}\n" + "".join(
    f"{name}: &{name} {{<<: [{', '.join([f'*{before}'] * 8)}]}}\n"
    for before, name in zip("abcdefghijklmno", "bcdefghijklmnop", strict=True)
)


@pytest.mark.parametrize(
    "use",
    (
        "seed: *p",
        "search: *p",
        "search: {lr: *p}",
        "search: {milestones: *p}",
        "search: {scope: *p}",
        "model: *p",
        "model: {name: *p}",
        "model: {name: convnet, width: *p}",
        "model: {name: convnet, more: *p}",
        "data: {name: text, path: *p}",
        "unknown: *p",
    ),
)
def test_the_error_for_nested_aliases_is_short(use, tmp_path):
    """Each list has 8 of the previous one: 1 KB that prints as 8 ** 16 values."""
    file = tmp_path / "experiment.yaml"
    values = Experiment.read_value(f"{BOMB}{use}")
    key = use.partition(":")[0]
    for content in (f"{BOMB}{use}", None):
        with pytest.raises(ValueError) as error:
            if content is None:
                Experiment.from_dict({key: values[key]})
            else:
                file.write_text(content)
                Experiment.load(file)
        assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
    "text,message",
    (
        (MERGES, "expected at most 1000 keys, including merged ones"),
        ("[" * 20_000, "not YAML: nested too deeply"),
        ("seed: !!timestamp x", "not YAML: "),
        ("seed: !!bool x", "not YAML: "),
        ("seed: !!int x", "not YAML: "),
        ("seed: !!python/object:os.system x", "not YAML: could not determine a constructor"),
        ("seed: " + "9" * 5000, "not YAML: "),
        ("seed: 0x" + "f" * 5000, "seed=<integer of 20000 bits>: expected 0 to"),
        ("search: {epochs: -0x" + "f" * 5000 + "}", "epochs=<integer of 20000 bits>: expected at least 1"),
        ("? [a]\n: 1", "not YAML: "),
        (2 * ("? " + "k" * 10_000 + "\n: 1\n"), "given twice"),
        ("? " + "k" * 10_000 + "\n: 1\n", "unknown"),
        ('"\\e[31m": 1', "x1b"),
    ),
    ids=lambda value: value[:20],
)
def test_the_error_for_wrong_yaml_is_one_short_line(text, message, tmp_path):
    file = tmp_path / "experiment.yaml"
    file.write_text(text)
    with pytest.raises(ValueError) as error:
        Experiment.load(file)
    assert message in str(error.value)
    assert len(str(error.value)) < 1000 and str(error.value).isprintable()
