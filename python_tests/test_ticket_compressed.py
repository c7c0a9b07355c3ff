"""Compressed tickets: round trips, size at the entropy of the bits, and damage."""

import json
import math
import sys
import zlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load as from_safetensors
from safetensors.torch import save as to_safetensors
from test_ticket import (
    check_like_golden,
    contents,
    golden_network,
    images,
    network,
    other_scales,
    refused,
    rewritten,
    searched,
)
from torch import nn

from slt_kernels import EdgePopup, Freeze, cli, convert, load_ticket, save_ticket, ticket_info

GOLDEN = Path(__file__).parent / "golden_ticket.slt"
GOLDEN_COMPRESSED = Path(__file__).parent / "golden_compressed_ticket.slt"


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "net.slt"


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("ticket") / "net.slt"
    save_ticket(searched(network()), path, {"a": 1}, compress=True)
    return path


@pytest.mark.parametrize("forms", ((False, False), (False, True), (True, False)), ids=str)
@pytest.mark.parametrize("sparsity", (0.4, 0.5, 0.7, 0.8), ids=str)
def test_round_trip_gives_the_same_bits(sparsity, forms, file):
    saved, loaded = (network(compact=compact) for compact in forms)
    EdgePopup(searched(saved), sparsity)  # from none to all of the free weights kept
    info = save_ticket(saved, file, compress=True)
    assert info.compressed and load_ticket(file, loaded) == info
    assert torch.equal(loaded.eval()(images()), saved(images()))
    plain = save_ticket(saved, file)
    assert not plain.compressed and plain.mask_bytes == sum(layer.mask_bytes for layer in plain.layers)
    assert (info.kept, info.free_bits, info.tensors) == (plain.kept, plain.free_bits, plain.tensors)


def entropy(model: nn.Module) -> float:
    """Entropy of the learned bits, in bits, given each layer's fraction of ones."""
    total = 0.0
    for layer in (m for m in model.modules() if hasattr(m, "scores")):
        ones = int(layer.mask().sum()) - layer.locked
        for count in (ones, layer.free - ones):
            total -= count * math.log2(count / layer.free) if count else 0
    return total


@pytest.mark.parametrize("sparsity", (0.21, 0.3, 0.5, 0.7, 0.78, 0.799), ids=str)
def test_it_is_as_small_as_its_entropy(sparsity, file):
    """Within 2 % and a few words of the entropy."""
    freeze = Freeze(0.2, 0.2)
    model = convert(nn.Sequential(nn.Linear(900, 400), nn.Linear(400, 300)), freeze, None, spread="erk")
    EdgePopup(model, sparsity)
    info = save_ticket(model, file, compress=True)
    bits = entropy(model)
    assert bits <= 8 * info.mask_bytes <= 1.02 * bits + 64
    others = sum(t.numel * 4 for t in info.tensors)
    assert info.size == file.stat().st_size <= info.mask_bytes + others + 4096 + 200 * len(info.layers)
    load_ticket(file, convert(nn.Sequential(nn.Linear(900, 400), nn.Linear(400, 300)), freeze, None, spread="erk"))


def test_no_free_weight(file):
    model = convert(nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 2)), Freeze(0.5, 0.5), None)
    info = save_ticket(model, file, compress=True)
    assert info.mask_bytes == 0
    assert load_ticket(file, model) == info


@other_scales
def test_golden_ticket():
    """A ticket of version 2 must always decode to the same network."""
    ours, plain = golden_network(), golden_network()
    info = load_ticket(GOLDEN_COMPRESSED, ours)
    load_ticket(GOLDEN, plain)
    assert info.compressed and info.metadata == {"golden": True}
    assert all(torch.equal(t, plain.state_dict()[name]) for name, t in ours.state_dict().items())


@other_scales
def test_golden_ticket_is_written_the_same(file):
    model = golden_network()
    load_ticket(GOLDEN_COMPRESSED, model)
    save_ticket(model, file, {"golden": True}, compress=True)
    check_like_golden(file, GOLDEN_COMPRESSED)
    assert contents(file)[0] == "slt_kernels.ticket 2"


def test_info_says_that_it_is_compressed(written, capsys):
    assert cli.main(["info", str(written)]) == 0
    assert f"learned bits: {ticket_info(written).mask_bytes} bytes, entropy-coded" in capsys.readouterr().out


def test_without_the_package(written, file, monkeypatch):
    model = searched(network())
    monkeypatch.setitem(sys.modules, "constriction", None)
    assert ticket_info(written).compressed
    file.write_bytes(b"old")
    for call in (lambda: save_ticket(model, file, compress=True), lambda: load_ticket(written, model)):
        with pytest.raises(ModuleNotFoundError, match=r'pip install "slt_kernels\[compress\]"'):
            call()
    assert file.read_bytes() == b"old"


# Damage


def test_cut_short_or_altered(written, file):
    content = written.read_bytes()
    for length in range(0, len(content), 97):
        file.write_bytes(content[:length])
        refused(file, "not a ticket, or cut short")
    for at in range(16, len(content), 7):
        file.write_bytes(content[:at] + bytes([content[at] ^ 0x20]) + content[at + 1 :])
        refused(file, file.name)


def damaged(written: Path, file: Path, **changes) -> Path:
    return rewritten(written, file, "2", **changes)


def first_layer(**changes):
    return lambda index: index | {"layers": [index["layers"][0] | changes, *index["layers"][1:]]}


def test_bits_that_do_not_decode(written, file):
    coded = from_safetensors(written.read_bytes())["coded"]
    load_ticket(damaged(written, file), network())
    for wrong in (coded[:-1], coded[:-4], coded[4:], torch.cat((coded, coded)), coded.flip(0), coded[:0], coded * 0):
        refused(damaged(written, file, coded=wrong.clone()), "entropy-coded bits do not decode")
    ones = ticket_info(written).layers[0].ones
    refused(damaged(written, file, index=first_layer(ones=ones + 1)), "entropy-coded bits do not decode")


def test_an_index_that_does_not_fit(written, file):
    for ones in (-1, 10**9, "many", None):
        refused(damaged(written, file, index=first_layer(ones=ones)), "damaged index")
    refused(rewritten(written, file, "1"), "damaged index|contradict its index")
    refused(damaged(written, file, masks=torch.zeros(3, dtype=torch.uint8)), "contradict its index")
    refused(damaged(written, file, coded=None), "damaged index")


def test_a_plain_ticket_with_the_version_of_a_compressed_one(file):
    save_ticket(network(), file)
    tensors = from_safetensors(file.read_bytes())
    tensors["coded"] = tensors.pop("masks")
    file.write_bytes(to_safetensors(tensors))
    refused(file, "expected 'slt_kernels.ticket'")
    index = json.loads(zlib.decompress(tensors["index"].numpy().tobytes()))
    assert "ones" not in index["layers"][0]
    save_ticket(network(), file)
    refused(rewritten(file, file, "2"), "damaged index")
