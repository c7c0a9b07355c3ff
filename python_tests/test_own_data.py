"""Data sets of the user: `from_datasets`, and functions named on the command line."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset as TorchDataset

from slt_kernels import data, ticket_info
from slt_kernels.cli import main
from slt_kernels.data import UNANSWERED, Loader, from_datasets

CLASSES = 3


class Examples(TorchDataset):
    """Images of one gray each, 0.1 times the index, as pairs; ``change`` alters an example."""

    def __init__(self, count: int = 12, change=None) -> None:
        self.count = count
        self.change = change or (lambda x, y: (x, y))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int):
        return self.change(torch.full((2, 8, 8), i / 10), i % CLASSES)


class Columns(list):
    """A list of dicts with the types of columns, as a data set of Hugging Face has them."""

    def __init__(self, rows, **features) -> None:
        super().__init__(rows)
        self.features = features


class ClassLabel:
    num_classes = CLASSES


def loaded(train=None, validation=None, test=None, **options) -> data.Dataset:
    given = zip((train, validation, test), (12, 5, 4), strict=True)
    sets = [Examples(count) if part is None else part for part, count in given]
    return from_datasets(*sets, **({"classes": CLASSES} | options))


def test_examples_of_a_torch_dataset():
    ours = loaded()
    assert (ours.kind, ours.dimensions) == ("images", {"classes": CLASSES, "channels": 2, "size": 8})
    assert [len(part) for part in ours[:3]] == [12, 5, 4]
    (images,), labels = ours.test.batch(torch.tensor([3, 1]))
    assert torch.equal(images, torch.tensor([0.3, 0.1]).view(2, 1, 1, 1).expand(2, 2, 8, 8))
    assert labels.tolist() == [0, 1]


def test_a_fraction_of_the_training_set_is_for_validation():
    ours = loaded(validation=0.25)
    grays = [set((10 * part.batch(torch.arange(len(part)))[0][0][:, 0, 0, 0]).round().tolist()) for part in ours[:2]]
    assert list(map(len, grays)) == [9, 3]
    assert grays[0] | grays[1] == set(range(12))


@pytest.mark.parametrize("mode,channels", (("RGB", 3), ("L", 1), ("RGBA", 3), ("1", 1)))
def test_columns_and_pillow_images(mode, channels):
    images = [Image.fromarray(np.full((8, 8, 3), 51 * i, np.uint8)).convert(mode) for i in range(6)]
    rows = [{"image": image, "label": i % CLASSES} for i, image in enumerate(images)]
    part = Columns(rows, label=ClassLabel())
    ours = from_datasets(part, part, part)
    assert ours.dimensions == {"classes": CLASSES, "channels": channels, "size": 8}
    (x,), _ = ours.train.batch(torch.arange(6))
    assert x.dtype == torch.float32
    if mode in ("RGB", "L"):
        assert torch.allclose(x[:, 0, 3, 3], torch.arange(6) / 5)


def test_a_dataset_of_hugging_face():
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=CLASSES)})
    images = [np.full((8, 8, 3), 51 * i, np.uint8) for i in range(6)]
    part = datasets.Dataset.from_dict({"image": images, "label": [0, 1, 2] * 2}, features)
    (x,), y = from_datasets(part, 0.5, part).test.batch(torch.tensor([5, 1]))
    assert torch.equal(x[:, :, 0, 0], torch.tensor([1.0, 0.2]).view(2, 1).expand(2, 3))
    assert y.tolist() == [2, 1]


def test_tokens():
    rows = [{"input_ids": list(range(i, i + 5)), "labels": [*range(i + 1, i + 5), UNANSWERED]} for i in range(4)]
    ours = from_datasets(rows, rows, rows, classes=9)
    assert (ours.kind, ours.dimensions) == ("text", {"classes": 9, "context": 5})
    (x,), y = ours.train.batch(torch.tensor([2]))
    assert (x.tolist(), y.tolist()) == ([[2, 3, 4, 5, 6]], [[3, 4, 5, 6, UNANSWERED]])


def test_columns_can_be_named():
    rows = [{"a": torch.zeros(1, 4, 4), "b": torch.ones(1, 4, 4), "label": 0, "coarse": 1}] * 3
    ours = from_datasets(rows, rows, rows, classes=2, input="b", target="coarse")
    (x,), y = ours.train.batch(torch.tensor([0]))
    assert (float(x.mean()), y.tolist()) == (1, [1])


def noisy(x, y):
    """A transform that uses all three global generators."""
    return x + torch.rand(()) + random.random() + float(np.random.rand()), y


@pytest.mark.parametrize("workers", (0, 2))
def test_random_transforms_are_functions_of_seed_epoch_and_index(workers):
    def epoch(number: int, seed: int = 1, workers: int = 0) -> dict[int, float]:
        part = loaded(Examples(change=lambda x, y: noisy(x, y)), seed=seed).train
        loader = Loader(part, 5, seed=9, training=True, workers=workers)
        images = torch.cat([batch.inputs[0][:, 0, 0, 0] for batch in loader.epoch(number)])
        return images.tolist()

    torch.manual_seed(5)
    assert epoch(3, workers=workers) == epoch(3)
    assert len({tuple(epoch(*settings)) for settings in ((3, 1), (4, 1), (3, 2))}) == 3


def test_reading_examples_leaves_the_generators_alone():
    part = loaded(Examples(change=noisy)).train
    drawn = []
    for read in (False, True):
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        if read:
            part.batch(torch.arange(3), 0)
        drawn.append((random.random(), np.random.rand(), float(torch.rand(()))))
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize(
    "changes,message",
    (
        ({"train": [1]}, r"train\[0\]: expected a pair \(input, target\), got 1"),
        ({"train": iter(())}, "train: expected a data set with a length and examples by index, got tuple_iterator"),
        ({"train": Examples(0)}, "train: expected at least one example"),
        ({"validation": 2}, "validation: expected a data set with a length and examples by index, got int"),
        ({"validation": 1.5}, r"validation=1\.5: expected a fraction in"),
        ({"classes": None}, "classes=None: expected the number of classes, which train does not state"),
        ({"classes": 0}, "classes=0: expected an integer from 1"),
        ({"input": "image"}, "input='image': expected examples with columns, got tuple"),
        ({"train": [{"a": 1, "b": 2}]}, "target=None: expected one of the columns a, b"),
        ({"train": [{"a": 1, "b": 2, "label": 0}]}, "input=None: expected one of the columns a, b"),
        ({"train": [("text", 1)]}, r"train\[0\]: expected an image or tokens, and classes"),
        ({"train": [(torch.zeros(3), 1)]}, r"train\[0\]: expected an image \[C, H, W\] or integer tokens \[T\], got"),
        ({"train": [(torch.zeros(1, 2, 2), 0.5)]}, r"train\[0\]: target of torch\.float32, expected integers"),
    ),
    ids=lambda value: value[:40] if isinstance(value, str) else "-".join(value),
)
def test_from_datasets_refuses(changes, message):
    with pytest.raises((ValueError, TypeError), match=message):
        loaded(**changes)


@pytest.mark.parametrize(
    "change,message",
    (
        (lambda x, y: (x[:, :7], y), r"test\[1\]: input of shape \[2, 7, 8\], expected \[2, 8, 8\]"),
        (lambda x, y: (x.index_fill(2, torch.tensor([3]), torch.nan), y), r"test\[1\]: input with NaN or infinity"),
        (lambda x, y: (x, 3), r"test\[1\]: target 3, expected 0 to 2, or -100"),
        (lambda x, y: (x, -1), r"test\[1\]: target -1, expected 0 to 2, or -100"),
        (lambda x, y: (x, [1, 2]), r"test\[1\]: target of shape \[2\], expected one class"),
        (lambda x, y: (x, y, 1), r"test\[1\]: expected a pair"),
    ),
)
def test_an_example_that_does_not_fit_is_named(change, message):
    part = loaded(test=Examples(change=change)).test
    with pytest.raises(ValueError, match=message):
        part.batch(torch.tensor([1]))


MODULE = """
import torch
from slt_kernels import data

def load(seed: int, gray: float = 0.5):
    images = torch.rand(40, 1, 8, 8) * gray
    part = [(image, int(image.mean() > 0.25)) for image in images]
    return data.from_datasets(part, 0.2, part, classes=2, seed=seed)

def sized(size, *, lr, gray=0.5, seed, **more):
    return 3

def wrong():
    return 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch) -> str:
    """Name of a module in the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "user_data_of_a_test.py").write_text(MODULE)
    return "user_data_of_a_test"


def test_a_function_of_the_command_line(module, capsys):
    name = f"{module}:load"
    options = ["--width", "4", "--epochs", "1", "--set", "data.gray=0.25"]
    assert main(["find", "--data", name, *options, "--out", "net.slt"]) == 0, capsys.readouterr().err
    assert ticket_info("net.slt").metadata["network"]["data"] == {"name": name, "gray": 0.25}
    assert main(["eval", "net.slt", "--data", name]) == 0
    capsys.readouterr()
    assert main(["find", "--data", name, *options, "--set", "data.grey=1"]) == 2
    assert f"data.grey=1: {name} has only seed, gray" in capsys.readouterr().err
    assert main(["find", "--data", f"{module}:wrong", "--width", "4"]) == 2
    assert f"--data={module}:wrong: returned int, expected a Dataset" in capsys.readouterr().err


def test_a_missing_argument_of_a_function_is_named(module, capsys):
    command = ["find", "--data", f"{module}:sized", "--width", "4"]
    for given, message in (
        ((), "size: expected a value for {}, as by --set data.size=..."),
        (("--set", "data.size=3"), "lr: expected a value for {}, as by --set data.lr=..."),
        (("--set", "data.size=3", "--set", "data.lr=3"), "--data={}: returned int, expected a Dataset"),
    ):
        assert main([*command, *given]) == 2
        assert f"slt find: {message.format(f'{module}:sized')}" in capsys.readouterr().err


def test_a_ticket_s_function_runs_only_if_it_is_named(module, capsys, monkeypatch):
    """Else a ticket could run any function with any arguments."""
    assert main(["find", "--data", f"{module}:load", "--width", "4", "--epochs", "1", "--out", "net.slt"]) == 0
    monkeypatch.setattr("importlib.import_module", None)
    for given, message in ((), f"expected --data {module}:load"), (("--data", "digits"), "expected --data"):
        assert main(["eval", "net.slt", *given]) == 2
        assert message in capsys.readouterr().err
