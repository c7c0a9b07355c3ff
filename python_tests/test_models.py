"""Networks compared with plain formulas, and what a search needs of them."""

import math
import re
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from layers import relative_error
from torch import nn

from slt_kernels import EdgePopup, Freeze, convert, data, load_ticket, models, save_ticket, summary
from slt_kernels.experiments.data.graph import neighbours_mean
from slt_kernels.experiments.models.transformer import Attention
from slt_kernels.models import MODELS, build
from slt_kernels.nn import SupermaskLayer

FROZEN = {"freeze": Freeze(0.3, 0.2), "sparsity": None, "weight": "uniform", "seed": 7}


def tiny(name: str, **supermask) -> tuple[nn.Module, tuple[torch.Tensor, ...], torch.Tensor]:
    """A narrow network with inputs and targets."""
    kind, options = MODELS[name].kind, {"width": 4}
    if kind == "images":
        options |= {"channels": 2, "classes": 5}
        side = 32 if "convnext" in name else 16
        if re.fullmatch(r"conv\d|lenet_300_100", name):
            options["size"] = side
        if name == "lenet_300_100":
            options["width"] = 24
        if "vit" in name:
            options |= {"width": 16, "head_width": 8, "depth": 2, "size": 16, "patch": 8}
        inputs, targets = (torch.randn(3, 2, side, side),), torch.tensor([0, 4, 2])
    elif kind == "nodes":
        options |= {"features": 6, "classes": 5}
        edges = torch.tensor([[0, 1, 2, 5], [1, 2, 3, 0]])
        inputs, targets = (torch.randn(9, 6), neighbours_mean(edges, 9)), torch.arange(9) % 5
    else:
        options |= {"width": 16, "head_width": 8, "depth": 2, "classes": 11, "context": 6}
        inputs = (torch.randint(11, (2, 6)),)
        targets = inputs[0].roll(1, 1)
    return build(name, supermask=supermask or None, **options), inputs, targets


def layers_of(model: nn.Module) -> dict[str, SupermaskLayer]:
    return {name: m for name, m in model.named_modules() if isinstance(m, SupermaskLayer)}


def loss_of(model: nn.Module, inputs, targets) -> torch.Tensor:
    return F.cross_entropy(model(*inputs).flatten(0, -2), targets.flatten())


# All of them


@pytest.mark.parametrize("name", MODELS)
def test_forward_backward_and_a_threshold_step(name):
    model, inputs, targets = tiny(name, **FROZEN)
    optimizer = torch.optim.SGD(model.parameters(), 0.5, momentum=0.9)
    popup = EdgePopup(model, 0.5)
    popup.attach(optimizer)
    dropped = math.floor(0.5 * popup.total)
    before = [layer.mask() for layer in popup.layers]
    for _ in range(2):
        optimizer.zero_grad()
        loss = loss_of(model, inputs, targets)
        loss.backward()
        assert loss.isfinite()
        assert all(layer.scores.grad.isfinite().all() for layer in popup.layers)
        assert any(layer.scores.grad.any() for layer in popup.layers)
        optimizer.step()
        assert sum(int(layer.mask().sum()) for layer in popup.layers) == popup.total - dropped
    assert any(not torch.equal(layer.mask(), b) for layer, b in zip(popup.layers, before, strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_a_supermask_network_is_the_dense_one_with_its_weights(name):
    """In float64 both compute the same function, so every weight is converted and no option lost."""
    supermask, inputs, _ = tiny(name, **FROZEN)
    dense, *_ = tiny(name)
    assert {n for n, _ in supermask.named_parameters()} == {f"{n}.scores" for n in layers_of(supermask)}
    assert {n for n, _ in dense.named_parameters()} == {f"{n}.weight" for n in layers_of(supermask)}
    supermask, dense = supermask.double().eval(), dense.double().eval()  # evaluation mode is better conditioned
    with torch.no_grad():
        for layer_name, layer in layers_of(supermask).items():
            weight = layer.integer_weight() * layer.mask() * layer.weight_scale.double()
            dense.get_submodule(layer_name).weight.copy_(weight)
    inputs = [x.double() if x.is_floating_point() else x for x in inputs]
    expected = dense(*inputs)
    assert expected.std() > 0
    assert relative_error(supermask(*inputs), expected) < 1e-10


@pytest.mark.parametrize("name", MODELS)
def test_heads_have_the_requested_classes(name):
    model, inputs, targets = tiny(name)
    classes = 11 if MODELS[name].kind == "text" else 5
    assert model.eval()(*inputs).shape == (*targets.shape, classes)


@pytest.mark.parametrize("name", ("conv4", "gpt_mini", "gin"))
def test_building_on_the_meta_device_gives_the_same_network(name):
    direct, *_ = tiny(name, **FROZEN)
    dense, *_ = tiny(name)
    converted = convert(dense, **FROZEN).state_dict()
    assert direct.state_dict().keys() == converted.keys()
    assert all(torch.equal(t, converted[n]) for n, t in direct.state_dict().items())
    assert tiny(name, **FROZEN)[0].state_dict().keys() == converted.keys()


def test_no_dense_weight_is_allocated(monkeypatch):
    made = []
    for kind in (nn.Linear, nn.Conv2d, nn.Embedding):
        monkeypatch.setattr(kind, "reset_parameters", lambda module: made.append(module.weight.device.type))
    for name in ("cifar_vit_tiny", "gpt_mini"):
        model, *_ = tiny(name, **FROZEN)
        assert {p.device.type for p in model.parameters()} == {"cpu"}
    assert set(made) == {"meta"}
    tiny("gpt_mini")
    assert set(made) == {"meta", "cpu"}


@pytest.mark.parametrize("name", ("conv2", "cifar_resnet18", "gin", "cifar_vit_tiny", "gpt_mini"))
def test_mixed_precision(name):
    """Loss and gradients under bfloat16 autocast are near those of float32."""
    results = []
    for enabled in (False, True):
        torch.manual_seed(1)
        model, inputs, targets = tiny(name, **FROZEN)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = loss_of(model.eval(), inputs, targets)
        loss.backward()
        gradient = torch.cat([layer.scores.grad for layer in layers_of(model).values()])
        results.append((loss.detach(), gradient))
    (loss, gradient), (mixed_loss, mixed_gradient) = results
    assert torch.allclose(mixed_loss, loss, rtol=0.05)
    assert relative_error(mixed_gradient, gradient) < 0.3


@pytest.mark.parametrize("name", ("cifar_resnet18", "gin", "gpt_mini"))
def test_tickets(name, tmp_path):
    model, inputs, targets = tiny(name, **FROZEN)
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    EdgePopup(model, 0.5).attach(optimizer)
    loss_of(model, inputs, targets).backward()
    optimizer.step()
    save_ticket(model, tmp_path / "net.slt")
    other, *_ = tiny(name, **FROZEN)
    load_ticket(tmp_path / "net.slt", other)
    assert torch.equal(other.eval()(*inputs), model.eval()(*inputs))


# Counts


@pytest.mark.parametrize(
    "name,options,weights",
    (
        ("conv2", {}, 4_300_992),
        ("conv4", {}, 2_425_024),
        ("conv6", {}, 2_261_184),
        ("conv8", {}, 5_275_840),
        ("cifar_resnet18", {}, 11_164_352),
        ("cifar_resnet18", {"classes": 100}, 11_164_352 + 90 * 512),
        ("cifar_resnet34", {}, 21_779_648 - 990 * 512 - 3 * 64 * (49 - 9)),
        ("resnet18", {}, 11_678_912),
        ("resnet34", {}, 21_779_648),
        ("resnet50", {}, 25_502_912),
        ("resnet101", {}, 44_549_160 - 1000 - 105_344),  # parameters of torchvision without biases and BatchNorm
        ("wide_resnet50_2", {}, 68_814_016),
        ("wide_resnet101_2", {}, 126_886_696 - 1000 - 2 * 68_928),
        ("mobilenet_v2", {}, 3_504_872 - 1000 - 2 * 17_056),
        # torchvision's without the vectors of its blocks, norms and biases
        ("convnext_tiny", {}, 28_589_128 - 9 * 6624 - 4 * 672 - 3 * 96 - 2 * 768 - 1000),
        ("lenet_300_100", {}, 784 * 300 + 300 * 100 + 100 * 10),
        ("gin", {"features": 128, "classes": 40}, 128 * 386 + 2 * 386 * 386 + 2 * 386 * 40),
        ("vit_tiny", {}, 3 * 256 * 192 + 196 * 192 + 12 * 12 * 192**2 + 192 * 1000),
        ("vit_base", {"classes": 10}, 3 * 256 * 768 + 196 * 768 + 12 * 12 * 768**2 + 768 * 10),
        ("gpt_small", {"classes": 50257, "context": 1024}, (2 * 50257 + 1024) * 768 + 12 * 12 * 768**2),
        ("gpt_medium", {}, 2 * 256 * 1024 + 256 * 1024 + 24 * 12 * 1024**2),
    ),
)
def test_counts_of_maskable_weights(name, options, weights):
    assert (
        summary(build(name, supermask={"sparsity": None, "strict": True}, device="meta", **options)).weights == weights
    )
    assert sum(p.numel() for p in build(name, device="meta", **options).parameters()) == weights


def test_the_table_of_the_documentation():
    text = (Path(__file__).parent.parent / "docs/models.md").read_text()
    counts = dict(re.findall(r"^\| `(\w+)` \| ([\d,]+) \|", text, re.MULTILINE))
    assert counts.keys() == MODELS.keys()
    for name, count in counts.items():
        options = {"features": 128, "classes": 40} if name == "gin" else {}
        model = build(name, device="meta", **options)
        assert f"{sum(p.numel() for p in model.parameters()):,}" == count


def test_widths_scale_everything():
    for name in ("conv6", "cifar_resnet18", "gin"):
        options = {"features": 30, "classes": 30} if name == "gin" else {}
        narrow, wide = (build(name, width=w, device="meta", **options) for w in (10, 20))
        for n, p in narrow.named_parameters():
            grown = [b / a for a, b in zip(p.shape[:2], wide.get_parameter(n).shape[:2], strict=True)]
            assert set(grown) <= {1, 2}
            assert 2 in grown


def test_layers_without_bias_and_batch_norm_without_affine():
    for name in MODELS:
        for module in tiny(name)[0].modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                assert module.bias is None
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.LayerNorm):
                assert module.weight is None
            assert not isinstance(module, nn.BatchNorm2d) or name.startswith("conv") is (name == "convnet")


@pytest.mark.parametrize("name", ("convnet", "cifar_resnet18", "resnet50", "mobilenet_v2", "gin"))
def test_affine_batch_norm_is_learned(name):
    options = {"features": 6, "classes": 5} if name == "gin" else {}
    model = build(name, supermask=FROZEN | {"strict": True}, width=4, affine=True, **options)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert norms
    assert all(m.weight.requires_grad and m.weight.eq(1).all() and m.bias.eq(0).all() for m in norms)


def test_layers_can_be_excluded_by_place_and_by_name():
    for name, exclude, dense in (
        ("convnet", ("first", "last"), ["0", "15"]),
        ("convnet", ("3",), ["3"]),
        ("gpt_mini", ("first",), ["words"]),
        ("lenet_300_100", ("last",), ["5"]),
    ):
        model, *_ = tiny(name, **FROZEN, exclude=exclude)
        kept = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.Embedding)]
        assert kept == dense
        assert all(model.get_submodule(n).weight.requires_grad for n in kept)
        assert all(0 < model.get_submodule(n).weight.std() < 2 for n in kept)
    with pytest.raises(ValueError, match="exclude=\\['none'\\]: expected names of modules"):
        tiny("convnet", **FROZEN, exclude=("none",))
    with pytest.raises(TypeError, match="exclude='last': expected a collection"):
        tiny("convnet", **FROZEN, exclude="last")


# Building


def test_build_takes_dimensions_of_the_data(tmp_path):
    (tmp_path / "a").write_bytes(bytes(range(200)) * 2)
    text = data.load("text", tmp_path / "a", context=8)
    for loaded, name, options in (
        (data.load("digits"), "conv4", {"width": 2}),
        (data.load("digits"), "cifar_resnet18", {"width": 2}),
        (data.load("karate"), "gin", {"width": 4}),
        (text, "gpt_mini", {"width": 8, "head_width": 8, "depth": 1}),
    ):
        model = build(name, loaded, **options)
        inputs, targets = loaded.train.batch(torch.tensor([0]))
        assert model.eval()(*inputs).shape == (*targets.shape, loaded.classes)
    assert build("convnet", data.load("digits"), width=2, classes=3)[-1].out_features == 3
    assert build("convnet", data.load("digits"))[0].in_channels == 1


@pytest.mark.parametrize(
    "name,options,message",
    (
        ("resnet", {}, "model='resnet': expected one of convnet, lenet_300_100"),
        ("conv6", {"widht": 4}, "widht=4: conv6 has only depth, classes, width, channels, size"),
        ("conv6", {"width": 0}, "width=0: expected an integer from 1 to"),
        ("conv6", {"classes": 2.5}, r"classes=2\.5: expected an integer from 1 to"),
        ("conv6", {"width": 0.01}, r"width=0\.01: expected a factor on 64 that gives from 1 to"),
        ("conv6", {"width": math.nan}, "width=nan: expected a factor on 64"),
        ("vit_tiny", {"drop_path": 1.0}, r"drop_path=1\.0: expected a probability in \[0, 1\)"),
        ("conv6", {"width": True}, "width=True: expected an integer from 1 to"),
        ("conv6", {"depth": 5}, "depth=5: expected 2, 4, 6 or 8"),
        ("conv8", {"size": 8}, "size=8: expected at least 16, for 4 poolings"),
        ("resnet50", {"depth": 20}, "depth=20: expected one of 18, 34, 50, 101"),
        ("gin", {"classes": 3}, "features: expected a value for gin"),
        ("gin", {"features": 3, "classes": 3, "depth": 1}, "depth=1: expected at least 2"),
        ("vit_tiny", {"size": 30}, "patch=16: expected a divisor of size=30"),
        ("vit_tiny", {"width": 100}, "width=100: expected a positive multiple of head_width=64"),
        ("gin", {"data": "digits"}, "model='gin': expected data of kind nodes, got images"),
        (
            "conv6",
            {"supermask": {"fre": 1}},
            "supermask: fre=1: convert has only freeze, sparsity, spread, lock_spread",
        ),
        ("conv6", {"supermask": {"spread": "none"}}, "spread='none': expected one of uniform"),
    ),
)
def test_build_refuses(name, options, message):
    if "data" in options:
        options = {"data": data.load(options["data"])}
    with pytest.raises(ValueError, match=message):
        build(name, **options)


# The graph network


@given(st.integers(2, 8), st.integers(0, 12), st.integers(2, 5))
@settings(max_examples=15)
def test_gin_is_its_definition(nodes, edges, depth):
    """Mean aggregation with eps 0, a linear map, BatchNorm and ReLU per layer; mean of the last two outputs."""
    torch.manual_seed(nodes + 10 * edges)
    pairs = torch.randint(nodes, (2, edges))
    model = models.GIN(3, 4, width=6, depth=depth).double()
    features = torch.randn(nodes, 3, dtype=torch.float64)
    neighbours = [set() for _ in range(nodes)]
    for a, b in pairs.T.tolist():
        neighbours[a].add(b)
        neighbours[b].add(a)
    h = [features]
    for layer in model.layers:
        rows = []
        for node in range(nodes):
            near = [h[-1][n] for n in neighbours[node]]
            share = float(torch.tensor(1 / max(len(near), 1)))  # float32, as in the matrix
            rows.append(h[-1][node] + share * sum(near))
        z = torch.stack(rows) @ layer.weight.T
        z = (z - z.mean(0)) / (z.var(0, unbiased=False) + 1e-5).sqrt()
        h.append(z.clamp(min=0))
    expected = (h[-2] @ model.head.weight.T + h[-1]) / 2
    y = model(features, neighbours_mean(pairs, nodes).double())
    assert torch.allclose(y, expected, rtol=0, atol=1e-10)


def test_options_of_gin():
    features, mean = torch.randn(9, 6), neighbours_mean(torch.tensor([[0, 1], [1, 2]]), 9)
    plain = build("gin", features=6, classes=3, width=4, norm=False)
    assert not any(isinstance(m, nn.BatchNorm1d) for m in plain.modules())
    assert torch.isfinite(plain(features, mean)).all()
    biased = build("gin", features=6, classes=3, width=4, bias=True, supermask=FROZEN)
    assert {n for n, _ in biased.named_parameters() if n.endswith("bias")} == {f"{n}.bias" for n in layers_of(biased)}
    dropping = build("gin", features=6, classes=3, width=50, dropout=0.5).train()
    seen = []
    dropping.dropout.register_forward_hook(lambda m, args, y: seen.append((args[0] > 0, y)))
    dropping(features, mean)
    dropped = torch.cat([y[positive] == 0 for positive, y in seen]).float().mean().item()
    assert len(seen) == 4 and dropped == pytest.approx(0.5, abs=0.1)
    with pytest.raises(ValueError, match=r"dropout=1\.0: expected a probability in"):
        build("gin", features=6, classes=3, dropout=1.0)


# Transformers


@pytest.mark.parametrize("qk_scaling", (False, True))
@pytest.mark.parametrize("causal", (False, True))
def test_attention_is_its_definition(causal, qk_scaling):
    """Scaling multiplies the query and key weights by n_K ** (1/4) (arXiv 2511.04217, section 3.1)."""
    width, head_width, tokens = 12, 4, 5
    attention = Attention(width, head_width, causal, qk_scaling).double()
    x = torch.randn(2, tokens, width, dtype=torch.float64)
    w_q, w_k, w_v = attention.qkv.weight.view(-1, 3, head_width, width).unbind(1)  # [heads, head_width, width]
    if qk_scaling:
        w_q, w_k = w_q * head_width**0.25, w_k * head_width**0.25
    heads = []
    for h in range(width // head_width):
        q, k, v = (x @ w[h].T for w in (w_q, w_k, w_v))
        logits = q @ k.transpose(1, 2) / math.sqrt(head_width)
        if causal:
            logits = logits.masked_fill(torch.ones(tokens, tokens).triu(1).bool(), -math.inf)
        heads.append(logits.softmax(-1) @ v)
    expected = torch.cat(heads, -1) @ attention.out.weight.T
    assert torch.allclose(attention(x), expected, rtol=0, atol=1e-12)


def test_vit_is_its_definition():
    model = models.ViT(classes=3, size=6, channels=2, patch=2, width=8, depth=2, head_width=4).double()
    images = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    x = F.unfold(images, 2, stride=2).transpose(1, 2) @ model.patches.weight.flatten(1).T + model.positions.weight
    for block in model.blocks:
        x = block(x)
    pooled = F.layer_norm(x, (8,)).mean(1)
    assert torch.allclose(model(images), pooled @ model.head.weight.T, rtol=0, atol=1e-12)


def test_a_block_is_its_definition():
    block = models.GPT(width=8, depth=3, head_width=4).blocks[0]
    x = torch.randn(2, 5, 8)
    attended = x + 6**-0.5 * block.attention(F.layer_norm(x, (8,)))
    hidden = F.layer_norm(attended, (8,)) @ block.mlp[1].weight.T
    expected = attended + 6**-0.5 * hidden.relu() @ block.mlp[3].weight.T
    assert torch.allclose(block(x), expected, rtol=0, atol=1e-5)


def test_drop_path_drops_branches_of_examples():
    torch.manual_seed(0)
    vit = build("cifar_vit_tiny", width=8, head_width=8, depth=3, drop_path=0.6, supermask=FROZEN)
    rates = [block.drop_path.p for block in vit.blocks]
    assert rates == pytest.approx([0, 0.3, 0.6])
    drop, branches = vit.blocks[2].drop_path, torch.ones(2000, 3, 8)
    factors = drop(branches).flatten(1)
    assert torch.equal(factors, factors[:, :1].expand_as(factors))  # all of an example, or nothing
    kept = factors[:, 0] > 0
    assert torch.allclose(factors[kept], torch.tensor(2.5))
    assert kept.float().mean().item() == pytest.approx(0.4, abs=0.05)
    x = torch.randn(2, 3, 32, 32)
    assert not torch.equal(vit(x), vit(x))
    vit.eval()
    assert torch.equal(drop(branches), branches) and torch.equal(vit(x), vit(x))


def test_a_float_multiplies_the_default_width():
    for name, width in (("conv4", 32), ("lenet_300_100", 150), ("cifar_resnet18", 32), ("gpt_mini", 256)):
        first = next(m for m in build(name, width=0.5, device="meta").modules() if hasattr(m, "weight"))
        assert width in first.weight.shape, name


@pytest.mark.parametrize("name", ("gpt_mini", "cifar_vit_tiny"))
def test_qk_scaling_reaches_every_block_and_changes_the_network(name):
    options = {"width": 16, "head_width": 8, "depth": 2}
    plain, scaled = (build(name, **options, qk_scaling=q, supermask=FROZEN) for q in (False, True))
    assert [b.attention.logit_scale for b in plain.blocks] == [8**-0.5] * 2
    assert [b.attention.logit_scale for b in scaled.blocks] == [1.0] * 2
    x = torch.randint(256, (2, 9)) if name == "gpt_mini" else torch.randn(2, 3, 32, 32)
    assert not torch.allclose(plain(x), scaled(x))


def gpt(**options) -> models.GPT:
    options = {"classes": 11, "context": 9, "width": 16, "head_width": 8, "depth": 2} | options
    return build("gpt_mini", supermask=FROZEN, **options).eval()


@pytest.mark.parametrize("cuts", ((9,), (1,) * 9, (4, 1, 3, 1), (1, 8)), ids=str)
def test_a_cache_changes_no_logits(cuts):
    model, tokens = gpt(), torch.randint(11, (3, 9))
    cache = model.new_cache()
    with torch.no_grad():
        pieces = [model(piece, cache) for piece in tokens.split(list(cuts), 1)]
        assert torch.allclose(torch.cat(pieces, 1), model(tokens), rtol=0, atol=1e-5)


def test_later_tokens_do_not_change_logits():
    model, tokens = gpt(), torch.randint(11, (2, 9))
    changed = tokens.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 11
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :5], after[:, :5])
    assert (before[:, 5:] != after[:, 5:]).any(-1).all()


def test_generate_takes_the_most_likely_token():
    model, tokens = gpt(), torch.randint(11, (2, 3))
    expected = tokens
    with torch.no_grad():
        for _ in range(6):
            expected = torch.cat((expected, model(expected)[:, -1:].argmax(-1)), 1)
    assert torch.equal(model.generate(tokens, 6, temperature=0), expected)
    assert torch.equal(model.generate(tokens, 0), tokens)


def test_generating_a_token_costs_one_row_of_each_layer():
    model, rows = gpt(), []
    for layer in layers_of(model).values():
        layer.register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[: args[0].dim() - 1].numel()))
    model.blocks[0].register_forward_pre_hook(lambda *_: rows.clear())
    model.generate(torch.randint(11, (1, 4)), 5)
    assert len(rows) == 2 * 4 + 1
    assert set(rows) == {1}


def test_generate_draws_from_the_temperature_and_the_generator():
    model, tokens = gpt(), torch.zeros(200, 1, dtype=torch.int64)

    def draw(temperature: float, seed: int = 0) -> torch.Tensor:
        return model.generate(tokens, 1, temperature, torch.Generator().manual_seed(seed))[:, 1]

    assert torch.equal(draw(1.0), draw(1.0))
    assert not torch.equal(draw(1.0), draw(1.0, seed=1))
    assert len(draw(1e-3).unique()) == 1 < len(draw(1.0).unique()) <= len(draw(100.0).unique()) == 11


@pytest.mark.parametrize(
    "call,message",
    (
        (lambda m: m(torch.zeros(1, 10, dtype=torch.int64)), "tokens: 10 in a sequence, expected at most context=9"),
        (lambda m: m.generate(torch.zeros(1, 0, dtype=torch.int64), 1), "tokens: expected at least one"),
        (lambda m: m.generate(torch.zeros(1, 4, dtype=torch.int64), 6), "count=6 after 4: expected at most context=9"),
        (lambda m: m.generate(torch.zeros(1, 4, dtype=torch.int64), 1, -1.0), r"temperature=-1\.0: expected"),
    ),
)
def test_gpt_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call(gpt())
