"""Data sets from small files of the real formats, and loaders that resume at any step."""

import gzip
import itertools
import math
import os
import shutil
import struct
import sys

import hypothesis.strategies as st
import numpy as np
import oracle
import pytest
import torch
from hypothesis import given
from PIL import Image, UnidentifiedImageError

from slt_kernels.data import DEFAULTS, UNANSWERED, Loader, Part, from_datasets, load
from slt_kernels.experiments.data.augment import ERASING_DRAWS, OPERATIONS, apply, erase, rand_augment
from slt_kernels.experiments.data.folder import ImageFiles, random_box
from slt_kernels.experiments.data.graph import neighbours_mean
from slt_kernels.experiments.data.images import crop_and_flip
from slt_kernels.experiments.data.rng import draws, order, split
from slt_kernels.experiments.data.text import Sequences

SUFFIXES = ("JPEG", "JPEG", "png", "png", "JPEG")


class Numbers(Part):
    """Examples equal to their indices; augmentation adds 1000 per epoch."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def batch(self, indices, epoch=None):
        return (indices + 1000 * (epoch or 0),), indices


def numbers(loader: Loader, *epoch) -> list[list[int]]:
    return [batch.inputs[0].tolist() for batch in loader.epoch(*epoch)]


def together(lists) -> list[int]:
    return sorted(itertools.chain.from_iterable(lists))


# Random numbers


def test_order_is_a_permutation_of_seed_and_epoch():
    assert sorted(order(1000, 3).tolist()) == list(range(1000))
    assert torch.equal(order(1000, 3, 5), order(1000, 3, 5))
    orders = {tuple(order(1000, seed, epoch).tolist()) for seed in (0, 1, 2**63) for epoch in (0, 1)}
    assert len(orders) == 6
    assert (order(1000, 0) - torch.arange(1000)).abs().float().mean().item() == pytest.approx(1000 / 3, rel=0.1)


def test_order_and_draws_are_their_definitions():
    """A search that a later version resumes must have the same batches."""
    keys = []
    for i in range(4):
        words = oracle.call(2**63 + 1, 2, 4, i)
        keys += [words[0] + (words[1] << 32), words[2] + (words[3] << 32)]
    signed = [key - 2**64 * (key >= 2**63) for key in keys[:7]]
    assert order(7, seed=2**63 + 1, epoch=2).tolist() == sorted(range(7), key=signed.__getitem__)
    expected = [oracle.call(1, 2, 5, 2 * i) + oracle.call(1, 2, 5, 2 * i + 1)[:1] for i in (0, 2**33)]
    assert (draws(torch.tensor([0, 2**33]), 5, seed=1, epoch=2) * 2**32).tolist() == expected


def test_draws_depend_on_each_index_only():
    all_of_them = draws(torch.arange(500), 6, 3, 4)
    assert all_of_them.shape == (500, 6)
    assert 0 <= all_of_them.min() < 0.01 < 0.99 < all_of_them.max() < 1
    some = torch.tensor([499, 3, 3])
    assert torch.equal(draws(some, 6, 3, 4), all_of_them[some])
    assert len(all_of_them.unique()) == 3000
    assert not torch.equal(draws(some, 6, 3, 5), all_of_them[some])
    assert not torch.equal(draws(some, 6, 2, 4), all_of_them[some])


def test_split():
    rest, held = split(50, 0.2, 0)
    assert (len(rest), len(held)) == (40, 10)
    assert sorted([*rest.tolist(), *held.tolist()]) == list(range(50))
    assert not torch.equal(split(50, 0.2, 1)[1], held)
    for fraction in (0, 1, -0.5, 0.001, float("nan")):
        with pytest.raises(ValueError, match=f"validation={fraction}: expected a fraction in"):
            split(50, fraction, 0)


# Loaders


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 5), st.integers(0, 2), st.integers(0, 9))
def test_training_batches(count, batch_size, ranks, epoch, start):
    """Global batches are the same for any number of ranks and any start."""
    if min(count, batch_size) < ranks:
        with pytest.raises(ValueError, match="expected one for each of"):
            Loader(Numbers(count), batch_size, training=True, ranks=ranks)
        return
    whole = Loader(Numbers(count), batch_size, seed=3, training=True)
    batches = numbers(whole, epoch)
    assert whole.steps == len(batches)
    assert together(batches) == [1000 * epoch + i for i in range(count)]
    assert all(batch.share == 1 for batch in whole.epoch(epoch))
    each = [Loader(Numbers(count), batch_size, seed=3, training=True, rank=r, ranks=ranks) for r in range(ranks)]
    shares = [list(loader.epoch(epoch)) for loader in each]
    assert {len(s) for s in shares} == {loader.steps for loader in each}
    kept = [b for b in batches if len(b) >= ranks]
    assert len(kept) == each[0].steps
    for step, batch in enumerate(kept):
        assert together(s[step].inputs[0].tolist() for s in shares) == sorted(batch)
        assert sum(s[step].share for s in shares) == pytest.approx(1)
        assert all(len(s[step].targets) == pytest.approx(s[step].share * len(batch)) for s in shares)
    assert numbers(each[-1], epoch, start) == numbers(each[-1], epoch)[start:]


@pytest.mark.parametrize("ranks", (1, 2))
def test_repeats_are_other_versions_of_fewer_examples(ranks):
    """Version v of an epoch of r versions is augmented as epoch ``r * epoch + v``."""
    each = [Loader(Numbers(20), 6, seed=3, training=True, repeats=3, rank=r, ranks=ranks) for r in range(ranks)]
    found = []
    for batches in zip(*(loader.epoch(2) for loader in each), strict=True):
        shares = [batch.inputs[0].tolist() for batch in batches]
        assert all(batch.targets.tolist() == [x % 1000 for x in batch.inputs[0].tolist()] for batch in batches)
        found += [share[i] for i in range(len(shares[0])) for share in shares if i < len(share)]
    indices = order(20, 3, 2)[:7].tolist()
    assert found == [1000 * (6 + version) + i for i in indices for version in range(3)][:20]
    assert numbers(each[0], 2, 1) == numbers(each[0], 2)[1:]


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 5))
def test_evaluation_has_each_example_once(count, batch_size, ranks):
    each = [Loader(Numbers(count), batch_size, rank=r, ranks=ranks) for r in range(ranks)]
    assert [len(numbers(loader)) for loader in each] == [loader.steps for loader in each]
    assert together(batch for loader in each for batch in numbers(loader)) == list(range(count))
    assert numbers(Loader(Numbers(count), batch_size), 7)[0] == list(range(min(count, batch_size)))


@pytest.mark.parametrize("workers", (0, 2))
def test_an_epoch_does_not_change_the_global_generator(workers):
    before = torch.random.get_rng_state()
    for batch in Loader(Numbers(30), 7, training=True, workers=workers).epoch(1):
        assert type(batch.inputs) is tuple
    assert torch.equal(torch.random.get_rng_state(), before)


def test_workers_are_other_processes():
    class Process(Numbers):
        def batch(self, indices, epoch=None):
            return (torch.tensor(os.getpid()),), indices

    seen = {int(batch.inputs[0]) for batch in Loader(Process(30), 3, workers=2).epoch()}
    assert len(seen) == 2
    assert os.getpid() not in seen


def test_epochs_can_be_interleaved():
    loader = Loader(Numbers(30), 7, training=True)
    pairs = list(zip(loader.epoch(0), loader.epoch(1), strict=True))
    assert [[b.inputs[0].tolist() for b in pair] for pair in pairs] == [
        list(pair) for pair in zip(numbers(loader, 0), numbers(loader, 1), strict=True)
    ]


def test_epochs_and_seeds_differ():
    loader = Loader(Numbers(30), 30, training=True)
    first, second = (torch.tensor(numbers(loader, epoch)[0]) % 1000 for epoch in (0, 1))
    assert not torch.equal(first, second)
    assert not torch.equal(torch.tensor(numbers(Loader(Numbers(30), 30, training=True, seed=1), 0)[0]), first)


@pytest.mark.parametrize(
    "arguments,message",
    (
        ({"batch_size": 0}, "batch_size=0: expected an integer from 1 to"),
        ({"batch_size": 1.5}, r"batch_size=1\.5: expected an integer"),
        ({"batch_size": True}, "batch_size=True: expected an integer"),
        ({"batch_size": 4, "workers": "2"}, "workers='2': expected an integer"),
        ({"batch_size": 4, "rank": 2, "ranks": 2}, "rank=2: expected an integer from 0 to 1"),
        ({"batch_size": 4, "ranks": 0}, "ranks=0: expected an integer from 1 to"),
        ({"batch_size": 4, "workers": -1}, "workers=-1: expected an integer from 0 to"),
    ),
)
def test_loader_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        Loader(Numbers(5), **arguments)


# Images in memory


@pytest.mark.parametrize("dtype", (torch.uint8, torch.float32))
def test_crop_and_flip_is_its_definition(dtype):
    images = torch.randint(256, (30, 3, 5, 7)).to(dtype)
    chance = torch.rand(30, 3, dtype=torch.float64)
    chance[0], chance[1] = 0.0, 1 - 2**-32
    ours = crop_and_flip(images, 2, chance)
    for image, (u, v, flip), out in zip(images, chance.tolist(), ours, strict=True):
        padded = np.pad(image.numpy(), ((0, 0), (2, 2), (2, 2)))
        top, left = int(u * 5), int(v * 5)
        expected = padded[:, top : top + 5, left : left + 7]
        assert np.array_equal(out.numpy(), expected[:, :, ::-1] if flip < 0.5 else expected)


def write_cifar(folder, classes: int = 10, count: int = 20) -> dict[str, np.ndarray]:
    """Writes files of the binary format; returns the records of each."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    labels = 1 if classes == 10 else 2
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"] if classes == 10 else ["train", "test"]
    written = {}
    for name in names:
        records = random.integers(0, 256, (count, labels + 3072), dtype=np.uint8)
        records[:, 0] = random.integers(0, 20 if labels == 2 else classes, count)
        records[:, labels - 1] = random.integers(0, classes, count)
        records.tofile(folder / f"{name}.bin")
        written[name] = records
    return written


@pytest.mark.parametrize("inside", (False, True))
@pytest.mark.parametrize("classes,folder", ((10, "cifar-10-batches-bin"), (100, "cifar-100-binary")))
def test_cifar(classes, folder, inside, tmp_path):
    records = write_cifar(tmp_path / folder, classes)
    loaded = load(f"cifar{classes}", tmp_path / folder if inside else tmp_path, seed=4)
    assert loaded.kind == "images"
    assert loaded.dimensions == {"classes": classes, "channels": 3, "size": 32}
    count = 100 if classes == 10 else 20
    assert [len(part) for part in loaded[:3]] == [count * 4 // 5, count // 5, 20]
    raw = np.concatenate([r for name, r in records.items() if "test" not in name])
    pixels = {row[-3072:].tobytes(): int(row[-3073]) for row in raw}
    for part in (loaded.train, loaded.validation):
        for image, label in zip(part.images, part.labels, strict=True):
            assert pixels.pop(image.numpy().tobytes()) == label
    assert not pixels
    (images,), labels = loaded.test.batch(torch.arange(20))
    test = records["test_batch" if classes == 10 else "test"]
    seen = loaded.train.images.numpy() / 255
    mean, std = (f(seen, axis=(0, 2, 3)).reshape(3, 1, 1) for f in (np.mean, np.std))
    expected = (test[:, -3072:].reshape(-1, 3, 32, 32) / 255 - mean) / std
    assert np.allclose(images.numpy(), expected, atol=1e-5)
    assert (images.dtype, labels.tolist()) == (torch.float32, test[:, -3073].tolist())


def test_cifar_is_augmented_only_in_training(tmp_path):
    write_cifar(tmp_path / "cifar-10-batches-bin")
    loaded, plain = load("cifar10", tmp_path), load("cifar10", tmp_path, augment=False)
    indices = torch.arange(len(loaded.train))
    (still,), labels = loaded.train.batch(indices)
    (moved,), moved_labels = loaded.train.batch(indices, epoch=3)
    assert not torch.equal(still, moved)
    assert torch.equal(labels, moved_labels)
    assert torch.equal(plain.train.batch(indices, 3)[0][0], still)
    assert torch.equal(loaded.train.batch(indices[5:6], 3)[0][0], moved[5:6])
    assert torch.equal(loaded.validation.batch(indices[:9], 3)[0][0], loaded.validation.batch(indices[:9])[0][0])
    other = load("cifar10", tmp_path, seed=1)
    assert not torch.equal(other.train.labels, loaded.train.labels)


def test_cifar_refuses(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"CIFAR-10: no \.bin files in .*https://www.cs.toronto.edu/.*10-binary"
    ):
        load("cifar10", tmp_path / "none")
    folder = tmp_path / "cifar-10-batches-bin"
    write_cifar(folder)
    batch = folder / "data_batch_3.bin"
    content = batch.read_bytes()
    batch.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=r"data_batch_3\.bin: 61,459 bytes, expected a multiple of 3073"):
        load("cifar10", tmp_path)
    batch.write_bytes(b"")
    with pytest.raises(ValueError, match=r"data_batch_3\.bin: 0 bytes"):
        load("cifar10", tmp_path)
    batch.write_bytes(b"\x0a" + content[1:])
    with pytest.raises(ValueError, match=r"data_batch_3\.bin: label 10, expected less than 10"):
        load("cifar10", tmp_path)
    batch.unlink()
    with pytest.raises(FileNotFoundError, match=r"data_batch_3\.bin: not found"):
        load("cifar10", tmp_path)
    for file in folder.glob("data*.bin"):
        file.write_bytes(bytes(3073 * 20))
    batch.write_bytes(bytes(3073 * 20))
    with pytest.raises(ValueError, match="cifar-10-batches-bin: a channel is constant"):
        load("cifar10", tmp_path)


# Data sets of the user: more in test_own_data.py


@pytest.mark.parametrize(
    "image,message",
    (
        (torch.ones(1, 2, 2, dtype=torch.int64), r"got torch\.int64 \[1, 2, 2\]; pixels are .* or uint8"),
        (Image.new("I;16", (2, 2)), r"train\[0\]: image of Pillow's mode I;16, expected one of 8 bits"),
    ),
    ids=("int64", "16 bits"),
)
def test_pixels_of_an_unknown_range_are_refused(image, message):
    with pytest.raises(ValueError, match=message):
        from_datasets([(image, 0)], [(image, 0)], [(image, 0)], classes=2)


def test_tokens_are_integers_less_than_the_number_of_classes():
    rows = [([0, 1, 2], [1, 2, 0]), ([0, 3, 2], [0, 0, 0]), ([0.0, 1.0, 2.0], [0, 0, 0])]
    part = from_datasets(rows, rows, rows, classes=3).train
    for number, message in ((1, "token 3, expected 0 to 2$"), (2, r".* integer tokens \[T\], got torch\.float32")):
        with pytest.raises(ValueError, match=rf"train\[{number}\]: {message}"):
            part.batch(torch.tensor([number]))


# IDX files


def idx(array: np.ndarray, kind: int = 8) -> bytes:
    return bytes((0, 0, kind, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx(folder, pattern: str = "{}-{}-idx{}-ubyte", train: int = 30) -> dict[str, np.ndarray]:
    """Writes the four files; returns the arrays."""
    folder.mkdir(parents=True, exist_ok=True)
    random, written = np.random.default_rng(0), {}
    for part, count in (("train", train), ("t10k", 20)):
        written[f"{part}-images"] = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        written[f"{part}-labels"] = random.integers(0, 10, count, dtype=np.uint8)
    for name, array in written.items():
        content = idx(array)
        file = folder / pattern.format(*name.split("-"), array.ndim)
        file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)
    return written


@pytest.mark.parametrize(
    "name,folder,pattern",
    (
        ("mnist", "", "{}-{}-idx{}-ubyte"),
        ("kmnist", "", "{}-{}.idx{}-ubyte"),
        ("fashion_mnist", "", "{}-{}-idx{}-ubyte.gz"),
        ("fashion_mnist", "FashionMNIST/raw", "{}-{}-idx{}-ubyte"),
    ),
)
def test_idx_files_in_any_folder(name, folder, pattern, tmp_path):
    written = write_idx(tmp_path / folder, pattern)
    loaded = load(name, tmp_path, seed=4)
    assert (loaded.kind, loaded.dimensions) == ("images", {"classes": 10, "channels": 1, "size": 28})
    assert [len(part) for part in loaded[:3]] == [24, 6, 20]
    labels = {
        image.tobytes(): int(k) for image, k in zip(written["train-images"], written["train-labels"], strict=True)
    }
    for part in (loaded.train, loaded.validation):
        for image, label in zip(part.images, part.labels, strict=True):
            assert labels.pop(image.numpy().tobytes()) == label
    assert not labels
    (images,), labels = loaded.test.batch(torch.arange(20))
    seen = loaded.train.images.numpy() / 255
    expected = (written["t10k-images"] / 255 - seen.mean()) / seen.std()
    assert np.allclose(images[:, 0].numpy(), expected, atol=1e-5)
    assert labels.tolist() == written["t10k-labels"].tolist()


@pytest.mark.parametrize("name", ("mnist", "kmnist", "fashion_mnist"))
def test_only_clothes_are_mirrored(name, tmp_path):
    """A mirrored digit would be another one."""
    write_idx(tmp_path, train=40)
    part = load(name, tmp_path).train
    part.images = torch.arange(28, dtype=torch.uint8).expand(len(part), 1, 28, 28)  # rising from left to right
    (images,), _ = part.batch(torch.arange(len(part)), epoch=1)
    rises = {bool(image[14, 20] > image[14, 8]) for image in images[:, 0]}
    assert rises == ({True, False} if name == "fashion_mnist" else {True})


def test_the_package_of_debian_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr("slt_kernels.experiments.data.idx._DEBIAN", tmp_path)
    write_idx(tmp_path, "{}-{}-idx{}-ubyte.gz")
    assert len(load("fashion_mnist").test) == 20


def test_missing_clothes_say_both_ways_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setattr("slt_kernels.experiments.data.idx._DEBIAN", tmp_path / "none")
    both = "(?=.*package dataset-fashion-mnist)(?=.*https://github.com/zalandoresearch/fashion-mnist)"
    for path in (None, tmp_path):
        with pytest.raises(FileNotFoundError, match=both):
            load("fashion_mnist", path)
    with pytest.raises(ValueError, match="path=None: expected the folder or file of mnist"):
        load("mnist")
    with pytest.raises(FileNotFoundError, match="train-images-idx3-ubyte: not found: MNIST: download the four files"):
        load("mnist", tmp_path)


PIXELS = np.arange(5 * 28 * 28, dtype=np.int64).astype(np.uint8).reshape(5, 28, 28)


@pytest.mark.parametrize(
    "file,content,message",
    (
        ("train-images-idx3", b"", "begins with nothing, expected 00000803"),
        ("train-images-idx3", b"\x1f\x8b" + bytes(20), "begins with 1f8b0000, expected 00000803"),
        ("train-images-idx3", idx(PIXELS, kind=13), "begins with 00000d03, expected 00000803: IDX of unsigned bytes"),
        ("train-images-idx3", idx(PIXELS[0]), "begins with 00000802, expected 00000803"),
        ("train-images-idx3", idx(PIXELS)[:-1], r"3,919 bytes after the header, expected 5 x 28 x 28 = 3,920: damaged"),
        ("train-images-idx3", idx(PIXELS) + b"x", "3,921 bytes after the header, expected 5 x 28 x 28"),
        ("train-images-idx3", idx(PIXELS)[:4] + b"\xff" * 12, r"0 bytes after the header, expected 4294967295 x 429"),
        ("train-images-idx3", idx(PIXELS[:0]), "0 bytes after the header, expected 0 x 28 x 28"),
        ("train-images-idx3", idx(PIXELS[:, :9]), "images of 9 x 28, expected square ones"),
        ("t10k-images-idx3", idx(PIXELS[:, :9, :9]), "images of 28 and 9 pixels, expected one size"),
        ("train-images-idx3", idx(np.ones_like(PIXELS)), "a channel is constant over all training images"),
        ("train-labels-idx1", idx(np.array([1, 2, 3, 10, 4], dtype=np.uint8)), "label 10, expected less than 10"),
        ("t10k-labels-idx1", idx(np.zeros(4, dtype=np.uint8)), "4 labels, expected one for each of 5 images"),
        ("t10k-labels-idx1", None, "t10k-labels-idx1-ubyte.gz: damaged, or not gzip: Not a gzipped file"),
        ("t10k-labels-idx1", b"cut", "t10k-labels-idx1-ubyte.gz: damaged, or not gzip: Compressed file ended"),
    ),
    ids=lambda value: str(value)[:25],
)
def test_idx_files_that_are_not_as_expected(file, content, message, tmp_path):
    for name, array in (("images-idx3", PIXELS), ("labels-idx1", np.arange(5, dtype=np.uint8))):
        for part in ("train", "t10k"):
            (tmp_path / f"{part}-{name}-ubyte").write_bytes(idx(array))
    assert len(load("mnist", tmp_path).test) == 5
    changed = tmp_path / f"{file}-ubyte"
    if content in (None, b"cut"):
        changed.rename(f"{changed}.gz")
        if content:
            (tmp_path / f"{file}-ubyte.gz").write_bytes(gzip.compress(bytes(99))[:-9])
    else:
        changed.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load("mnist", tmp_path)


@pytest.mark.parametrize("make", (os.mkfifo, os.mkdir), ids=("pipe", "folder"))
def test_paths_that_are_not_regular_files_are_refused(make, tmp_path):
    """Reading a pipe would block forever."""
    write_cifar(tmp_path / "cifar-10-batches-bin")
    batch = tmp_path / "cifar-10-batches-bin/data_batch_3.bin"
    image = tmp_path / "train/a/0.png"
    image.parent.mkdir(parents=True)
    batch.unlink()
    for file, name, path in (
        (batch, "cifar10", tmp_path),
        (image, "image_folder", tmp_path),
        (tmp_path / "t", "text", 0),
    ):
        make(file)
        with pytest.raises(ValueError, match=f"^{file}: expected a regular file"):
            load(name, path or file)


def test_a_broken_link_among_images_is_refused(tmp_path):
    (tmp_path / "train/a").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "train/a/0.png")
    (tmp_path / "train/a/1.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"a/1\.png: expected a regular file, or a link to one"):
        load("image_folder", tmp_path)


# Folders of images


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """train: two classes of five images of many modes and shapes; val: one image each, of one color."""
    root = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    shapes = ((40, 60), (60, 40), (33, 33), (9, 120), (50, 31))
    for name in ("cat", "dog"):
        (root / "train" / name).mkdir(parents=True)
        (root / "val" / name).mkdir(parents=True)
        for i, (mode, shape) in enumerate(zip(("RGB", "L", "RGBA", "P", "CMYK"), shapes, strict=True)):
            image = Image.fromarray(random.integers(0, 256, (*shape, 3), dtype=np.uint8)).convert(mode)
            image.save(root / "train" / name / (f"{i}.JPEG" if mode in ("RGB", "L", "CMYK") else f"{i}.png"))
        Image.new("RGB", (30, 20), (255, 51, 0) if name == "cat" else (0, 0, 0)).save(root / "val" / name / "one.png")
    (root / "train" / "cat" / "notes.txt").write_text("no image")
    return root


def test_image_folder(folder):
    loaded = load("image_folder", folder, size=16, validation=0.3)
    assert (loaded.kind, loaded.dimensions) == ("images", {"classes": 2, "channels": 3, "size": 16})
    assert [len(part) for part in loaded[:3]] == [7, 3, 2]
    names = [*loaded.train.files, *loaded.validation.files]
    assert sorted(names) == sorted(f"{c}/{i}.{e}".encode() for c in ("cat", "dog") for i, e in enumerate(SUFFIXES))
    for part in loaded[:3]:
        (images,), labels = part.batch(torch.arange(len(part)))
        assert (images.shape, images.dtype) == ((len(part), 3, 16, 16), torch.float32)
        assert labels.tolist() == [int(name.startswith(b"dog")) for name in part.files]
    (images,), _ = loaded.test.batch(torch.tensor([0, 1]))
    color = (torch.tensor([1, 0.2, 0]) - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    assert torch.allclose(images[0], color.view(3, 1, 1).expand(3, 16, 16), atol=1e-5)


def test_images_are_cropped_at_the_centre(tmp_path):
    """Of a blue image with a central red square of 7/8 of the shorter side, only red is left."""
    pixels = np.zeros((64, 96, 3), dtype=np.uint8)
    pixels[..., 2] = 255
    pixels[4:60, 20:76] = (255, 0, 0)
    for part in ("train", "val"):
        (tmp_path / part / "a").mkdir(parents=True)
        for i in range(2):
            Image.fromarray(pixels).save(tmp_path / part / "a" / f"{i}.png")
    loaded = load("image_folder", tmp_path, size=56, validation=0.5)
    (images,), _ = loaded.test.batch(torch.tensor([0]))
    assert (images[0, 0] > 2).all()
    assert (images[0, 2] < 0).all()


def test_images_are_augmented_only_in_training(folder):
    loaded, plain = load("image_folder", folder, size=12), load("image_folder", folder, size=12, augment=False)
    indices = torch.arange(8)
    (still,), _ = loaded.train.batch(indices)
    (moved,), _ = loaded.train.batch(indices, 2)
    assert not torch.isclose(still, moved).flatten(1).all(1).any()
    assert torch.equal(loaded.train.batch(indices[3:5], 2)[0][0], moved[3:5])
    assert torch.equal(plain.train.batch(indices, 2)[0][0], still)
    assert torch.equal(loaded.validation.batch(indices[:2], 2)[0][0], loaded.validation.batch(indices[:2])[0][0])


def test_half_of_the_training_images_are_mirrored(tmp_path):
    """Red decreases to the right, so a mirrored image is redder on the right for any crop."""
    pixels = np.zeros((48, 48, 3), dtype=np.uint8)
    pixels[:, :, 0] = np.linspace(255, 0, 48).astype(np.uint8)
    for part in ("train", "val"):
        (tmp_path / part / "a").mkdir(parents=True)
        for i in range(50):
            Image.fromarray(pixels).save(tmp_path / part / "a" / f"{i}.png")
    part = load("image_folder", tmp_path, size=8).train
    (images,), _ = part.batch(torch.arange(40), 0)
    mirrored = images[:, 0, :, -1].mean(1) > images[:, 0, :, 0].mean(1)
    assert torch.equal(mirrored, draws(torch.arange(40), 41, 0, 0)[:, -1] < 0.5)
    assert 8 < mirrored.sum() < 32


def test_workers_make_the_same_batches(folder):
    part = load("image_folder", folder, size=12).train
    alone = Loader(part, 3, training=True, seed=5)
    workers = Loader(part, 3, training=True, seed=5, workers=2)
    next(workers.epoch(1))  # and abandon the epoch
    for epoch, start in ((0, 0), (1, 1), (2, 0)):
        pairs = list(zip(alone.epoch(epoch, start), workers.epoch(epoch, start), strict=True))
        assert len(pairs) == 3 - start
        for a, b in pairs:
            assert torch.equal(a.inputs[0], b.inputs[0])
            assert torch.equal(a.targets, b.targets)


RISING = np.tile(np.arange(3, 256, 4, dtype=np.uint8), (64, 1))
GRADIENT = Image.fromarray(np.stack((RISING, RISING.T, 255 - RISING), 2))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_operations_of_rand_augment_grow_with_their_level(operation):
    """Level 0 changes nothing, except in posterize and in the three operations without a level."""
    rgb = GRADIENT.rotate(30)

    def change(level: float, sign: int = 1) -> float:
        result = apply(operation, rgb, level, sign)
        assert (result.size, result.mode) == (rgb.size, "RGB")
        return float(np.abs(np.asarray(result, dtype=float) - np.asarray(rgb, dtype=float)).mean())

    levels = [change(level) for level in (0.0, 0.5, 1.0)]
    if operation in ("autocontrast", "equalize", "invert"):
        assert len(set(levels)) == 1
    else:
        assert (levels[0] == 0) is (operation != "posterize")
        assert levels[0] < levels[1] < levels[2]
        assert change(1.0, -1) > 0


def test_levels_are_those_of_timm():
    """At the paper's magnitude: one bit, and thresholds of whole numbers that are rounded down."""
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None].repeat(2, 0)).convert("RGB")
    for operation, expected in (
        ("posterize", lambda x: x & 128),
        ("solarize", lambda x: np.where(x < 26, x, 255 - x)),
        ("solarize_add", lambda x: np.where(x < 128, x + 99, x)),
    ):
        assert np.array_equal(np.asarray(apply(operation, ramp, 0.9, 1))[0, :, 0], expected(np.arange(256)))


def test_rand_augment_is_a_function_of_its_numbers():
    numbers = [3.5 / 15, 0.4, 0.5, 0.9, 2.5 / 15, 0.4, 0.5, 0.9]  # rotate, then invert
    expected = apply("invert", apply("rotate", GRADIENT, 0.9, 1), 0.9, 1)
    assert rand_augment(GRADIENT, 9, numbers).tobytes() == expected.tobytes()
    skipped = [3.5 / 15, 0.6, 0.5, 0.9, 2.5 / 15, 0.4, 0.5, 0.9]
    assert rand_augment(GRADIENT, 9, skipped).tobytes() == apply("invert", GRADIENT, 0.9, 1).tobytes()


def test_erasing_fills_a_rectangle_with_noise():
    areas = []
    for numbers in np.random.default_rng(0).random((200, ERASING_DRAWS)).tolist():
        image = torch.full((3, 20, 30), torch.inf)
        erase(image, 0.5, numbers)
        erased = image.isfinite()[0]
        assert bool(erased.any()) is (numbers[0] < 0.5)
        if erased.any():
            places = erased.nonzero()
            assert len(places) == math.prod((places.amax(0) - places.amin(0) + 1).tolist())
            areas.append(len(places) / 600)
            again = torch.full((3, 20, 30), torch.inf)
            erase(again, 0.5, numbers)
            assert torch.equal(image, again)
    assert 0.01 < min(areas) < 0.05 and 0.25 < max(areas) < 0.36


def test_strong_augmentation_is_only_in_training(folder):
    strong = load("image_folder", folder, size=16, validation=0.3, rand_augment=9.0, erasing=1.0)
    weak = load("image_folder", folder, size=16, validation=0.3)
    indices = torch.arange(7)
    assert not torch.equal(strong.train.batch(indices, 2)[0][0], weak.train.batch(indices, 2)[0][0])
    assert torch.equal(strong.train.batch(indices)[0][0], weak.train.batch(indices)[0][0])
    assert torch.equal(strong.train.batch(indices[3:4], 2)[0][0], strong.train.batch(indices, 2)[0][0][3:4])
    for options, message in (
        ({"rand_augment": 11.0}, r"rand_augment=11\.0: expected 0 to 10"),
        ({"erasing": -0.1}, r"erasing=-0\.1: expected 0 to 1"),
        ({"erasing": 0.1, "augment": False}, r"erasing=0\.1: expected 0 to 1, and 0 without augment"),
    ):
        with pytest.raises(ValueError, match=message):
            load("image_folder", folder, **options)


@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 99))
def test_random_box(width, height, index):
    chance = draws(torch.tensor(index), 41, 0, 0).tolist()
    left, top, right, bottom = random_box(width, height, chance)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    w, h = right - left, bottom - top
    if min(width, height) > 60 and max(width, height) < 1.3 * min(width, height):
        assert 0.07 <= w * h / (width * height) <= 1
        assert 0.7 < w / h < 1.43


def test_random_boxes_of_extreme_images():
    chance = [0.999] * 41
    assert random_box(1, 100, chance) == (0, 49, 1, 50)
    assert random_box(100, 3, chance) == (48, 0, 52, 3)


def test_image_folder_refuses(folder, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"none/train: no such folder: .* train/CLASS/ and val/CLASS/.*image-net"
    ):
        load("image_folder", tmp_path / "none")
    (tmp_path / "train" / "a").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"train/a: no images \(.jpeg, .*\)"):
        load("image_folder", tmp_path)
    for i in range(5):
        Image.new("RGB", (4, 4)).save(tmp_path / "train" / "a" / f"{i}.png")
    with pytest.raises(FileNotFoundError, match="val: no such folder"):
        load("image_folder", tmp_path)
    (tmp_path / "train" / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"train/empty: no images \(.jpeg"):
        load("image_folder", tmp_path)
    (tmp_path / "train" / "empty").rmdir()
    (tmp_path / "val" / "b").mkdir(parents=True)
    with pytest.raises(ValueError, match="val/b: train has no such class"):
        load("image_folder", tmp_path)
    with pytest.raises(ValueError, match="size=0: expected at least 1"):
        load("image_folder", folder, size=0)


@pytest.mark.parametrize("suffix", ("png", "jpg"))
@pytest.mark.parametrize("damage", (lambda c: c[: len(c) // 2], lambda c: b"", lambda c: b"not an image"))
def test_damaged_images(damage, suffix, tmp_path):
    for part in ("train", "val"):
        (tmp_path / part / "a").mkdir(parents=True)
        for i in range(2):
            pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / part / "a" / f"{i}.{suffix}")
    file = tmp_path / "val" / "a" / f"1.{suffix}"
    file.write_bytes(damage(file.read_bytes()))
    loaded = load("image_folder", tmp_path, validation=0.5, size=8)
    loaded.test.batch(torch.tensor([0]))
    with pytest.raises(ValueError, match=rf"a/1\.{suffix}: damaged, or not an image"):
        loaded.test.batch(torch.tensor([0, 1]))


@given(st.sampled_from(("png", "jpg", "bmp", "webp")), st.data())
def test_damage_to_an_image_raises_or_is_harmless(tmp_path_factory, suffix, data):
    file = tmp_path_factory.mktemp("image") / f"0.{suffix}"
    pixels = np.random.default_rng(0).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)
    content = bytearray(file.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=8)):
        content[place] = data.draw(st.integers(0, 255))
    file.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    part = ImageFiles(file.parent, np.array([os.fsencode(file.name)]), torch.zeros(1, dtype=torch.int64), 8)
    try:
        (images,), _ = part.batch(torch.tensor([0]))
    except ValueError as error:
        assert str(error).startswith(f"{file}: damaged, or not an image: ")
        assert len(str(error)) < len(str(file)) + 250
    else:
        assert images.isfinite().all()


@pytest.mark.parametrize(
    "error",
    (
        KeyError("x"),
        EOFError(),
        OverflowError("x" * 10**6),
        UnidentifiedImageError("a\n" * 10**6),
        MemoryError(),
        struct.error(),
    ),
    ids=lambda error: type(error).__name__,
)
def test_errors_of_pillow_name_the_file(error, tmp_path, monkeypatch):
    def read(*_):
        raise error

    monkeypatch.setattr(Image, "open", read)
    part = ImageFiles(tmp_path, np.array([b"0.png"]), torch.zeros(1, dtype=torch.int64), 8)
    with pytest.raises(ValueError, match=r"0\.png: damaged, or not an image: ") as raised:
        part.batch(torch.tensor([0]))
    assert len(str(raised.value)) < 500
    assert "\n" not in str(raised.value)
    error = PermissionError(13, "Permission denied", "0.png")  # not damage
    with pytest.raises(PermissionError):
        part.batch(torch.tensor([0]))


@pytest.mark.parametrize("workers", (0, 1))
def test_the_error_of_a_damaged_image_is_one_sentence(workers, tmp_path):
    for part in ("train", "val"):
        (tmp_path / part / "a").mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (4, 4)).save(tmp_path / part / "a" / f"{i}.png")
    file = tmp_path / "val" / "a" / "1.png"
    file.write_bytes(b"not an image")
    test = load("image_folder", tmp_path, validation=0.5, size=8).test
    with pytest.raises(ValueError) as error:
        list(Loader(test, 1, workers=workers).epoch())
    assert str(error.value).startswith(f"{file}: damaged, or not an image")
    assert "\n" not in str(error.value)


# Graphs


def test_neighbours_mean_is_its_definition():
    edges = torch.tensor([[0, 1, 2, 2, 2, 4], [1, 0, 0, 0, 3, 4]])
    dense = torch.zeros(6, 6)
    dense[edges[0], edges[1]] = dense[edges[1], edges[0]] = 1
    expected = dense / dense.sum(1, keepdim=True).clamp(min=1)
    mean = neighbours_mean(edges, 6)
    assert mean.is_coalesced()
    assert torch.equal(mean.to_dense(), expected)
    h = torch.randn(6, 3, requires_grad=True)
    torch.sparse.mm(mean, h).square().sum().backward()
    other = h.detach().clone().requires_grad_()
    (expected @ other).square().sum().backward()
    assert torch.allclose(h.grad, other.grad)


def test_karate():
    loaded = load("karate")
    assert (loaded.kind, loaded.dimensions) == ("nodes", {"features": 34, "classes": 2})
    (features, mean), _ = loaded.train.batch(torch.tensor([0]))
    assert torch.equal(features, torch.eye(34))
    ties = mean.to_dense() > 0
    assert torch.equal(ties, ties.T)
    assert (ties.sum().item(), ties[33].sum().item(), ties[0].sum().item()) == (2 * 78, 17, 16)
    asked = [part.targets != UNANSWERED for part in loaded[:3]]
    assert [int(a.sum()) for a in asked] == [18, 6, 10]
    assert torch.stack(asked).sum(0).eq(1).all()
    labels = torch.stack([part.targets for part in loaded[:3]]).amax(0)
    assert (labels[0], labels[33], labels.sum()) == (0, 1, 17)
    for part in loaded[:3]:
        counts = part.targets[part.targets != UNANSWERED].bincount()
        assert counts[0] == counts[1]
    assert not torch.equal(load("karate", seed=1).train.targets, loaded.train.targets)


def test_the_digits_as_a_graph():
    """Each node is tied to the digits whose pixels are nearest; ties go to the first."""
    images, graph = load("digits", seed=3), load("digits_graph", seed=3, neighbours=2)
    (features, mean), labels = graph.test.batch(torch.tensor([0]))
    assert (graph.kind, graph.dimensions) == ("nodes", {"features": 64, "classes": 10})
    assert (labels != UNANSWERED).sum() == 360
    parts = [part.batch(torch.tensor([0]))[1] != UNANSWERED for part in graph[:3]]
    assert torch.equal(parts[0].int() + parts[1].int() + parts[2].int(), torch.ones(1797, dtype=torch.int32))
    shown = {tuple(x.flatten().tolist()) for x in images.test.images}
    assert {tuple(x.tolist()) for x in features[labels != UNANSWERED]} == shown
    tied = mean.to_dense() > 0
    assert torch.equal(tied, tied.T) and not tied.diagonal().any()
    pixels = features.double()
    for node in (0, 500, 1796):
        far = (pixels - pixels[node]).square().sum(1)
        far[node] = torch.inf
        assert tied[node, far.argsort(stable=True)[:2]].all()
    with pytest.raises(ValueError, match="neighbours=1797: expected 1 to 1796"):
        load("digits_graph", neighbours=1797)


@pytest.mark.skipif(shutil.which("bible") is None, reason="Debian's packages bible-kjv and bible-kjv-text")
def test_the_bible_of_debian():
    part = load("bible", context=64).train
    (tokens,), targets = part.batch(torch.tensor([0]))
    assert bytes(tokens[0].tolist()).startswith(b"Ge1:1 In the beginning God created the heaven and the earth.\n")
    assert torch.equal(tokens[0, 1:], targets[0, :-1])


def test_a_missing_bible_names_its_packages(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(FileNotFoundError, match="install Debian's packages bible-kjv and bible-kjv-text"):
        load("bible")


def write_arxiv(root) -> dict[str, np.ndarray]:
    """Writes a small graph in the files that ogb unpacks."""
    random = np.random.default_rng(0)
    tables = {
        "raw/edge": random.integers(0, 30, (70, 2)),
        "raw/node-feat": random.normal(size=(30, 5)).round(4),
        "raw/node-label": random.integers(0, 40, (30, 1)),
        "raw/num-node-list": np.array([[30]]),
        "raw/num-edge-list": np.array([[70]]),
        "split/time/train": np.arange(15).reshape(-1, 1),
        "split/time/valid": np.arange(15, 20).reshape(-1, 1),
        "split/time/test": np.arange(20, 30).reshape(-1, 1),
    }
    for name, table in tables.items():
        file = root / f"{name}.csv.gz"
        file.parent.mkdir(parents=True, exist_ok=True)
        with gzip.open(file, "wt") as f:
            f.writelines(",".join(map(str, row)) + "\n" for row in table.tolist())
    (root / "RELEASE_v1.txt").touch()
    return tables


def test_ogbn_arxiv(tmp_path):
    tables = write_arxiv(tmp_path / "ogbn_arxiv")
    loaded = load("ogbn_arxiv", tmp_path)
    assert (loaded.kind, loaded.dimensions) == ("nodes", {"features": 5, "classes": 40})
    (features, mean), targets = loaded.validation.batch(torch.tensor([0]))
    assert np.allclose(features.numpy(), tables["raw/node-feat"])
    assert features.dtype == torch.float32
    expected = neighbours_mean(torch.from_numpy(tables["raw/edge"].T), 30)
    assert torch.equal(mean.to_dense(), expected.to_dense())
    assert targets[15:20].tolist() == tables["raw/node-label"][15:20, 0].tolist()
    assert (targets != UNANSWERED).sum() == 5
    assert [(part.targets != UNANSWERED).sum().item() for part in loaded[:3]] == [15, 5, 10]


def test_ogbn_arxiv_refuses(tmp_path, monkeypatch):
    write_arxiv(tmp_path / "ogbn_arxiv")
    (tmp_path / "ogbn_arxiv/raw/node-feat.csv.gz").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"ogbn_arxiv: ogb could not load .*arxiv\.zip"):
        load("ogbn_arxiv", tmp_path)

    def offline(*_):
        raise OSError("no network")

    monkeypatch.setattr("ogb.nodeproppred.dataset.decide_download", offline)
    with pytest.raises(RuntimeError, match=r"none/ogbn_arxiv: ogb could not download .*no network.*arxiv\.zip"):
        load("ogbn_arxiv", tmp_path / "none")


@pytest.mark.parametrize(
    "name,row,message",
    (
        ("raw/edge", "3,30", "edge: expected integers from 0 to 29"),
        ("raw/edge", "-1,3", "edge: expected integers from 0 to 29"),
        ("raw/node-label", "40", "node-label: expected integers from 0 to 39"),
        ("raw/node-label", "-1", "node-label: expected integers from 0 to 39"),
        ("raw/node-label", "nan", "node-label: expected integers"),
        ("raw/node-label", "1.5", "node-label: expected integers"),
        ("raw/node-label", "cs.LG", "TypeError"),
        ("raw/node-feat", "1,2,nan,4,5", r"node-feat \[30, 5\]: expected finite features of 30 nodes"),
        ("raw/node-feat", "1,2,inf,4,5", r"node-feat \[30, 5\]: expected finite features of 30 nodes"),
        ("raw/num-node-list", "29", "node-feat"),
        ("split/time/train", "30", "train: expected integers from 0 to 29"),
        ("split/time/test", "-1", "test: expected integers from 0 to 29"),
        ("split/time/valid", "3", "split: expected each node at most once"),
    ),
)
def test_a_graph_out_of_bounds_is_refused(name, row, message, tmp_path):
    """An edge to a missing node would read out of bounds."""
    write_arxiv(tmp_path / "ogbn_arxiv")
    file = tmp_path / f"ogbn_arxiv/{name}.csv.gz"
    first, *others = gzip.decompress(file.read_bytes()).decode().splitlines()
    assert first.count(",") == row.count(",")
    file.write_bytes(gzip.compress("\n".join([row, *others]).encode()))
    with pytest.raises(ValueError, match=f"^{tmp_path}/ogbn_arxiv: ogb could not load .*{message}"):
        load("ogbn_arxiv", tmp_path)


# Text


def test_text(tmp_path):
    content = bytes(np.random.default_rng(0).integers(0, 256, 1000, dtype=np.uint8))
    (tmp_path / "a.bin").write_bytes(content)
    loaded = load("text", tmp_path / "a.bin", context=10)
    assert (loaded.kind, loaded.dimensions) == ("text", {"classes": 256, "context": 10})
    assert [len(part) for part in loaded[:3]] == [79, 9, 9]
    (tokens,), targets = loaded.test.batch(torch.tensor([0, 8]))
    assert (tokens.dtype, targets.dtype) == (torch.int64, torch.int64)
    assert bytes(tokens.flatten().tolist()) == content[900:910] + content[980:990]
    assert bytes(targets.flatten().tolist()) == content[901:911] + content[981:991]
    assert torch.equal(loaded.train.batch(torch.arange(79))[0][0].flatten(), torch.tensor(list(content[:790])))


@given(st.integers(12, 60), st.integers(0, 5))
def test_all_training_sequences_shift_by_one_offset(count, epoch):
    part = Sequences(torch.arange(count), 10, seed=1)
    (tokens,), targets = part.batch(torch.arange(len(part)), epoch)
    assert torch.equal(tokens + 1, targets)
    assert torch.equal(tokens - tokens[:, :1], torch.arange(10).expand_as(tokens))
    starts = tokens[:, 0]
    assert len(starts.unique()) == len(part)
    assert 0 <= starts.min() <= starts.max() <= count - 11
    assert torch.equal(part.batch(torch.arange(len(part))[-1:], epoch)[0][0], tokens[-1:])


def test_training_sequences_start_anywhere(tmp_path):
    (tmp_path / "a").write_bytes(bytes(250) * 8)
    part = load("text", tmp_path / "a", context=16).train
    part.tokens = torch.arange(1600)
    assert len({part.batch(torch.tensor([0]), epoch)[0][0][0, 0].item() for epoch in range(50)}) > 40


@pytest.mark.parametrize(
    "options,error,message",
    (
        ({"path": "none"}, FileNotFoundError, "none: no such file: expected any file"),
        ({"context": 0}, ValueError, "context=0: expected at least 1"),
        ({"validation": 0.5}, ValueError, r"validation=0\.5: expected a fraction in \(0, 0\.5\)"),
        ({"context": 100}, ValueError, "1,000 bytes leave 100 for validation, expected at least 101"),
    ),
)
def test_text_refuses(options, error, message, tmp_path):
    (tmp_path / "a").write_bytes(bytes(1000))
    with pytest.raises(error, match=message):
        load("text", **{"path": tmp_path / "a", **options})


# By name


def test_defaults_ship_with_packages():
    for kind, name in DEFAULTS.items():
        assert load(name).kind == kind


def test_data_move_to_a_device(tmp_path):
    write_cifar(tmp_path / "cifar-10-batches-bin")
    (tmp_path / "a").write_bytes(bytes(1000))
    for loaded in (load("digits"), load("cifar10", tmp_path), load("text", tmp_path / "a", context=8)):
        moved = loaded.to("meta")
        for part in moved[:3]:
            inputs, targets = part.batch(torch.tensor([0, 1]))
            assert all(x.is_meta for x in inputs)
            assert targets.is_meta


@pytest.mark.parametrize(
    "name,options,message",
    (
        ("minst", {}, "data='minst': expected package.module:function, or one of digits"),
        ("cifar10", {}, "path=None: expected the folder or file of cifar10"),
        ("digits", {"path": "a"}, "path=a: expected no path: digits ships with a package"),
        ("digits", {"size": 8}, "size=8: digits has only seed"),
    ),
)
def test_load_refuses(name, options, message):
    with pytest.raises(ValueError, match=message):
        load(name, **options)


@pytest.mark.parametrize(
    "name,package,extra",
    (
        ("digits", "sklearn.datasets", "demo"),
        ("image_folder", "PIL", "images"),
        ("karate", "networkx", "graphs"),
        ("ogbn_arxiv", "ogb.nodeproppred", "ogb"),
    ),
)
def test_a_missing_package_is_named(name, package, extra, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, package, None)
    path = tmp_path if name in ("image_folder", "ogbn_arxiv") else None
    with pytest.raises(ModuleNotFoundError, match=rf'pip install "slt_kernels\[{extra}\]"'):
        load(name, path)
