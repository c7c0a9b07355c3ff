"""The timed cases: single operations of the CPU backend, layers and networks; `pytest bench` and `slt bench` run them.

4096 x 4096, signed constant and a resolved mask unless a case says otherwise; 70 % frozen is 35 % pruned and 35 %
locked. Our times include the conversion of floats to digits and the expansion of a compact mask. Each case is first
compared with the reference backend, float32 forward and grad_input bit for bit (on the first and last rows where the
whole reference would take minutes).
"""

import copy
import time
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from peers import FROZEN, METHODS, Method, supermask, training_step
from rounds import Case, Entry
from ternary import installed
from torch import Tensor, nn
from torch.nn.grad import conv2d_input, conv2d_weight

from slt_kernels import backends, bits
from slt_kernels.backends import registry
from slt_kernels.backends.cpu.arguments import free_offsets
from slt_kernels.bits import words_for
from slt_kernels.conv_geometry import Window
from slt_kernels.models import GPT, convnet, convnext, mobilenet_v2, resnet
from slt_kernels.source import Freeze, Source

cpu, reference = backends.on("cpu"), backends.on("reference")

SIZE = 4096
SCALE = torch.tensor(1 / 64)
DENSE = Freeze()
SIXTEENTHS = Freeze(5 / 16, 6 / 16)  # one call of FREEZE per word, not two
CHECKED = 64  # rows or columns at both ends
FORMATS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}


class WrongResultError(Exception):
    """Ours differs from the reference, or a peer from ours. The case is not timed."""


def expect(condition: bool, message: str) -> None:
    if not condition:
        raise WrongResultError(message)


def mask_of(source: Source, compact: bool = False) -> Tensor:
    shape = (words_for(int(free_offsets(source)[-1])),) if compact else (source.rows, source.words)
    return torch.randint(-(2**31), 2**31, shape, dtype=torch.int64).to(torch.int32)


def dense(mask: Tensor, source: Source) -> Tensor:
    return cpu.materialize(mask, source).float() * SCALE


def equal(got: Tensor, expected: Tensor) -> None:
    """float32: the same bits. 16-bit: within rounding, in relative norm."""
    if got.dtype == torch.float32:
        expect(torch.equal(got, expected), "not the reference's bits")
    else:
        close(got, expected, 4e-3)


def close(got: Tensor, expected: Tensor, error: float) -> None:
    got, expected = got.double(), expected.double()
    found = float((got - expected).norm() / expected.norm())
    expect(found < error, f"relative error {found:.2g}, expected under {error:g}")


# Linear


def linear_forward(
    batch: int, size=SIZE, weight="signed_constant", dtype=torch.float32, freeze=DENSE, dense_too=True
) -> Case:
    """The mask of a frozen source is compact."""
    source = Source.of(size, size, weight=weight, freeze=freeze)
    mask, x = mask_of(source, compact=freeze != DENSE), torch.randn(batch, size).to(dtype)
    methods = {"ours": lambda: cpu.linear_forward(x, mask, SCALE, None, source)}
    if dense_too:
        w = dense(mask, source).to(dtype)
        methods[f"dense {_name(dtype)}"] = lambda: F.linear(x, w)

    return Case(methods, lambda: check_rows(methods["ours"](), x, mask, source))


def check_rows(y: Tensor, x: Tensor, mask: Tensor, source: Source) -> None:
    mask = cpu.expand(mask, source) if mask.dim() == 1 else mask
    for rows in ((0, CHECKED), (source.rows - CHECKED, source.rows)):
        part = source.shard(rows=rows)
        equal(y[:, slice(*rows)], reference.linear_forward(x, mask[slice(*rows)], SCALE, None, part))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def against_convolution(batch: int) -> Case:
    """The dense product as a 1x1 convolution over an image of `batch` pixels: oneDNN's, in its better format."""
    source = Source.of(SIZE, SIZE)
    mask, x = mask_of(source), torch.randn(batch, SIZE)
    kernel = dense(mask, source).view(SIZE, SIZE, 1, 1)
    pixels = x.view(1, batch, 1, SIZE).permute(0, 3, 1, 2)  # channels-last
    images = pixels.contiguous(), x.view(batch, SIZE, 1, 1)
    methods = {
        "ours": lambda: cpu.linear_forward(x, mask, SCALE, None, source),
        "1x1 convolution, channels-last": lambda: F.conv2d(pixels, kernel),
        "1x1 convolution, contiguous": lambda: F.conv2d(images[0], kernel),
        "1x1 convolution, a pixel an image": lambda: F.conv2d(images[1], kernel),
    }
    return Case(methods, lambda: check_rows(methods["ours"](), x, mask, source))


def linear_grad_input(batch: int, dtype=torch.float32) -> Case:
    source = Source.of(SIZE, SIZE)
    mask, dy = mask_of(source), torch.randn(batch, SIZE).to(dtype)
    w = dense(mask, source).to(dtype)
    ours = lambda: cpu.linear_grad_input(dy, mask, SCALE, source)  # noqa: E731

    def check() -> None:
        dx, count = ours(), CHECKED // bits.WORD
        for words in ((0, count), (source.words - count, source.words)):
            columns = slice(words[0] * bits.WORD, words[1] * bits.WORD)
            part = source.shard(words=words)
            equal(dx[:, columns], reference.linear_grad_input(dy, mask[:, slice(*words)], SCALE, part))

    return Case({"ours": ours, f"dense {_name(dtype)}": lambda: dy @ w}, check)


def linear_grad_scores(batch: int, freeze=DENSE, weight="signed_constant", dtype=torch.float32) -> Case:
    """The peer is the dense product; ours also regenerates weights and frozen pattern, and drops frozen weights."""
    source = Source.of(SIZE, SIZE, weight=weight, freeze=freeze)
    dy, x = torch.randn(batch, SIZE).to(dtype), torch.randn(batch, SIZE).to(dtype)
    args = dy, x, torch.randn(source.free), SCALE, source
    ours = lambda: cpu.linear_grad_scores(*args)  # noqa: E731
    methods = {"ours": ours, f"dense {_name(dtype)}": lambda: dy.T @ x}
    return Case(methods, lambda: close(ours(), reference.linear_grad_scores(*args), 1e-6))


# Conv2d


class Convolution(NamedTuple):
    """A square convolution, padded so that a stride of 1 keeps the size of its square images."""

    channels: int
    rows: int
    kernel: int
    size: int
    groups: int = 1
    stride: int = 1
    dilation: int = 1

    @property
    def padding(self) -> int:
        return self.dilation * (self.kernel // 2)

    @property
    def options(self) -> dict[str, int]:
        """Arguments of PyTorch's functions."""
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}

    def source(self, freeze: Freeze = DENSE) -> Source:
        return Source.of(self.rows, self.channels // self.groups * self.kernel**2, freeze=freeze)

    def window(self) -> Window:
        pairs = (self.kernel, self.stride, self.padding, self.dilation)
        return Window(*(n for n in pairs for _ in range(2)), self.groups)

    def x(self, batch: int) -> Tensor:
        return torch.randn(batch, self.channels, self.size, self.size)

    def dy(self, batch: int) -> Tensor:
        return torch.randn(batch, self.rows, *self.window().output_size(self.size, self.size))


WIDE = Convolution(128, 128, kernel=3, size=32)
NARROW = {  # depthwise, narrow or few channels
    "depthwise 3x3 128 32x32": Convolution(128, 128, 3, 32, groups=128),
    "depthwise 7x7 96 28x28": Convolution(96, 96, 7, 28, groups=96),
    "depthwise 3x3 128 32x32 stride 2": Convolution(128, 128, 3, 32, groups=128, stride=2),
    "depthwise 3x3 128 32x32 dilation 2": Convolution(128, 128, 3, 32, groups=128, dilation=2),
    "conv 3x3 16 32x32": Convolution(16, 16, 3, 32),
    "conv 3x3 128 32x32, 4 groups": Convolution(128, 128, 3, 32, groups=4),
    "conv 3x3 3 to 64 32x32": Convolution(3, 64, 3, 32),
}


def conv2d(operation: str, batch: int, last: bool, dtype=torch.float32, shape: Convolution = WIDE) -> Case:
    """Ours in one memory format, the peer in both."""
    source, window, options = shape.source(), shape.window(), shape.options
    mask, taps = mask_of(source), (shape.rows, shape.kernel, shape.kernel, -1)
    kernel = dense(mask, source).to(dtype).view(taps).permute(0, 3, 1, 2)
    a = (shape.x(batch) if operation == "forward" else shape.dy(batch)).to(dtype)
    pairs = {name: tuple(t.contiguous(memory_format=f) for t in (a, kernel)) for name, f in FORMATS.items()}
    a = pairs["channels-last" if last else "contiguous"][0]
    if operation == "forward":
        args = a, mask, SCALE, None, source, window
        ours, check = cpu.conv2d_forward, reference.conv2d_forward
        peers = {name: lambda a=a, k=k: F.conv2d(a, k, **options) for name, (a, k) in pairs.items()}
    else:
        args = a, mask, SCALE, source, window, [shape.size, shape.size]
        ours, check = cpu.conv2d_grad_input, reference.conv2d_grad_input
        size = shape.x(batch).shape
        peers = {name: lambda a=a, k=k: conv2d_input(size, k, a, **options) for name, (a, k) in pairs.items()}
    methods = {"ours": lambda: ours(*args)} | {f"dense {_name(dtype)}, {name}": peer for name, peer in peers.items()}
    return Case(methods, lambda: equal(ours(*args), check(*args)))


def conv2d_grad_scores(batch: int, freeze=DENSE, last=False, dtype=torch.float32, shape: Convolution = WIDE) -> Case:
    source, window, options = shape.source(freeze), shape.window(), shape.options
    format_ = torch.channels_last if last else torch.contiguous_format
    dy, x = (t.to(dtype, memory_format=format_) for t in (shape.dy(batch), shape.x(batch)))
    args = dy, x, torch.randn(source.free), SCALE, source, window
    methods = {"ours": lambda: cpu.conv2d_grad_scores(*args)}
    size = (shape.rows, shape.channels // shape.groups, shape.kernel, shape.kernel)
    for name, f in FORMATS.items():
        a, b = dy.contiguous(memory_format=f), x.contiguous(memory_format=f)
        methods[f"dense {_name(dtype)}, {name}"] = lambda a=a, b=b: conv2d_weight(b, size, a, **options)
    return Case(methods, lambda: close(methods["ours"](), reference.conv2d_grad_scores(*args), 1e-6))


# Masks


def masks(freeze: Freeze, compact: bool) -> Case:
    """The new mask of a ResNet-50: one global threshold, and the bits of each of its 54 layers.

    The peer takes the magnitudes of all scores in one tensor (the concatenation is not timed), its k-th value, and a
    comparison to bools.
    """
    shapes = [p.shape for p in resnet(50, classes=1000, imagenet=True).parameters()]
    sources = [Source.of(s[0], s[1:].numel(), layer=i, freeze=freeze) for i, s in enumerate(shapes)]
    scores = [torch.randn(source.free) for source in sources]
    together = torch.cat(scores)
    rank = int(0.7 * len(together))

    def ours() -> list[Tensor]:
        threshold = cpu.select(scores, rank)
        return [cpu.pack(s, threshold, source, compact)[0] for s, source in zip(scores, sources, strict=True)]

    def peer() -> Tensor:
        magnitudes = together.abs()
        return magnitudes > magnitudes.kthvalue(rank).values

    def check() -> None:
        words = ours()
        if not compact:
            words = [bits.gather(w, s.frozen_words()[0]) for w, s in zip(words, sources, strict=True)]
        kept = [bits.unpack(w).flatten()[: s.free] for w, s in zip(words, sources, strict=True)]
        expect(torch.equal(torch.cat(kept), peer()), "not the mask of kthvalue")

    return Case({"ours": ours, "kthvalue and a comparison": peer}, check)


# Layers and networks as modules, as a user calls them


class Network(NamedTuple):
    """A network of dense layers: its constructor, its inputs for a batch size, and its loss."""

    build: Callable[[], nn.Module]
    inputs: Callable[[int], Tensor]
    loss: Callable[[nn.Module, Tensor], Tensor]


def mean_square(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).float().square().mean()


def classify(model: nn.Module, x: Tensor) -> Tensor:
    """The loss of a classifier; the labels depend on the batch size only."""
    return F.cross_entropy(model(x).float(), torch.arange(len(x)) % 10)


def linear(size: int) -> Network:
    return Network(lambda: nn.Linear(size, size, bias=False), lambda batch: torch.randn(batch, size), mean_square)


def conv3x3(channels: int, size: int) -> Network:
    return Network(
        lambda: nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        lambda batch: torch.randn(batch, channels, size, size),
        mean_square,
    )


def decoder() -> Network:
    """Twelve layers of width 2048, 604 M weights; a forward generates one token, with nothing before it."""

    def build() -> nn.Module:
        return GPT(classes=256, context=256, width=2048, depth=12, head_width=128)

    return Network(build, lambda batch: torch.zeros(batch, 1, dtype=torch.int64), mean_square)


NETWORKS = {f"Linear {size} x {size}": linear(size) for size in (1024, 2048, 4096, 8192)} | {
    "Conv2d 3x3, 64 channels, 8 x 8": conv3x3(64, 8),
    "Conv2d 3x3, 128 channels, 32 x 32": conv3x3(128, 32),
    "Conv2d 3x3, 512 channels, 14 x 14": conv3x3(512, 14),
    "CIFAR ResNet-18": Network(lambda: resnet(18), lambda batch: torch.randn(batch, 3, 32, 32), classify),
    "ImageNet ResNet-50": Network(
        lambda: resnet(50, classes=1000, imagenet=True), lambda batch: torch.randn(batch, 3, 224, 224), classify
    ),
    "CIFAR MobileNetV2": Network(mobilenet_v2, lambda batch: torch.randn(batch, 3, 32, 32), classify),
    "CIFAR ConvNeXt-T": Network(lambda: convnext(patch=2), lambda batch: torch.randn(batch, 3, 32, 32), classify),
    "decoder, 12 layers of 2048": decoder(),
}
for width in (32, 96):
    build = lambda w=width: convnet(width=w)  # noqa: E731
    NETWORKS[f"convnet, width {width}"] = Network(build, lambda batch: torch.randn(batch, 1, 28, 28), classify)
NETWORKS["CIFAR ResNet-18, width 16"] = Network(
    lambda: resnet(18, width=16, channels=1), lambda batch: torch.randn(batch, 1, 28, 28), classify
)


@lru_cache(maxsize=3)
def _source(network: str, frozen: bool, compact: bool) -> nn.Module:
    torch.manual_seed(0)  # the tables of a decoder are PyTorch's, not generated from our seed
    return supermask(NETWORKS[network].build(), frozen, compact)


@lru_cache(maxsize=12)  # one network in each method, over several batches
def held(network: str, form: Method) -> nn.Module:
    """A network in a method's form, for inference."""
    return form.hold(_source(network, form.frozen, form.compact)).eval()


def same_dense(network: str, form: Method) -> nn.Module:
    """The dense float32 network that this form must equal."""
    return held(network, METHODS["dense float32"]._replace(frozen=form.frozen, compact=form.compact))


def inference(network: str, batch: int, methods: tuple[str, ...]) -> Case:
    """A forward of one network in several forms, each compared with its dense float32 form."""
    x = NETWORKS[network].inputs(batch)
    inputs = {name: cast(x, METHODS[name].dtype) for name in methods}
    calls = {name: torch.no_grad()(lambda n=name: held(network, METHODS[n])(inputs[n])) for name in methods}

    @torch.no_grad()
    def check() -> None:
        for name in methods:
            try:
                close(calls[name](), same_dense(network, METHODS[name])(x), METHODS[name].error)
            except WrongResultError as error:
                raise WrongResultError(f"{name}: {error}") from None

    return Case(calls, check)


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype) if x.is_floating_point() else x


def training(network: str, batch: int, methods: tuple[str, ...], autocast: bool = False) -> Case:
    """A training step. The losses of the first step are compared: all methods start from the same network.

    Autocast is to bfloat16, in the forward. Images and convolutions are channels-last, PyTorch's faster format.
    """
    _, inputs, in_float32 = NETWORKS[network]
    x = inputs(batch)
    x = x.to(memory_format=torch.channels_last) if x.dim() == 4 else x

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return in_float32(model, x)

    def copied(model: nn.Module) -> nn.Module:
        return copy.deepcopy(model).to(memory_format=torch.channels_last).train()

    calls = {name: training_step(copied(held(network, METHODS[name])), x, loss) for name in methods}

    def check() -> None:
        for name in methods:
            same = copied(same_dense(network, METHODS[name]))
            got, expected = calls[name](), float(loss(same, x).detach())
            bound = 3e-2 if autocast else 1e-3
            expect(abs(got - expected) < bound * abs(expected), f"{name}: loss {got:g}, expected {expected:g}")

    return Case(calls, check)


LINEAR, CONVOLUTION = "Linear 4096 x 4096", "Conv2d 3x3, 128 channels, 32 x 32"
LOW_BITS = ("int8 dynamic", "int4, bfloat16")
FORWARDS = ("ours", "ours, 70 % frozen, compact", "ours, bfloat16", "dense float32", "dense bfloat16", *LOW_BITS)
MATERIALIZERS = ("ours", "materialize each call", "materializing layer", "sort in each forward")
CONVOLUTIONS = (*FORWARDS[:-2], *MATERIALIZERS[1:])
END_TO_END = (*FORWARDS[:-2], "materializing layer")
DECODER = (*END_TO_END[:-1], *LOW_BITS)
STEPS = ("ours", "ours, 70 % frozen, compact", "dense float32", "materializing layer", "sort in each forward")


# The cases


def targets() -> Iterator[Entry]:
    """The project's targets, against the dense product of the same shape."""

    def entry(name: str, target: float | None, make: Callable[[], Case], quick: bool = False, **options) -> Entry:
        return Entry("targets", name, make, target, quick, **options)

    for batch, target in ((1, 10), (4, 15), (16, 5), (64, 3.5), (256, 3), (1024, 2.8)):
        name = f"forward float32 highest, batch {batch}"
        yield entry(name, target, lambda b=batch: linear_forward(b), batch in (1, 16, 256))
    for batch in (256, 1024):
        name = f"forward float32 highest, batch {batch}, against a 1x1 convolution"
        yield entry(name, 1.15, lambda b=batch: against_convolution(b))
    for batch, target in ((1, 5), (16, 2), (64, 1.2), (256, 1)):
        name = f"forward bfloat16, batch {batch}"
        yield entry(name, target, lambda b=batch: linear_forward(b, dtype=torch.bfloat16), batch in (1, 256))
    yield entry("forward float32 high, batch 256", 4.5, lambda: linear_forward(256), precision="high")
    for batch, target in ((1, 4), (64, 3)):
        name = f"forward compact mask, batch {batch}"
        yield entry(name, target, lambda b=batch: linear_forward(b, freeze=FROZEN), batch == 1)
    name = "forward compact mask, frozen in sixteenths, batch 1"
    yield entry(name, None, lambda: linear_forward(1, freeze=SIXTEENTHS))
    for weight in ("uniform", "normal"):
        for batch, target in ((1, 4), (256, 2.5)):
            name = f"forward {weight} weights, batch {batch}"
            yield entry(name, target, lambda b=batch, w=weight: linear_forward(b, weight=w))
    yield entry("grad_input, batch 256", 2.5, lambda: linear_grad_input(256), True)
    for batch, freeze, weight, target, more in (
        (256, DENSE, "signed_constant", 1.2, ""),
        (256, FROZEN, "signed_constant", None, ", 70 % frozen"),
        (256, DENSE, "normal", None, ", normal weights"),
        (16, FROZEN, "signed_constant", None, ", 70 % frozen"),
    ):
        make = lambda b=batch, f=freeze, w=weight: linear_grad_scores(b, f, w)  # noqa: E731
        yield entry(f"grad_scores, batch {batch}{more}", target, make, bool(freeze.prune) and batch == 256)
    for last in (False, True):
        for batch in (1, 32):
            name = f"conv 3x3 128 32x32{' channels-last' if last else ''}, batch {batch}"
            yield entry(name, 1.2, lambda b=batch, f=last: conv2d("forward", b, f), batch == 32 and not last)
            yield entry(f"{name}, grad_input", None, lambda b=batch, f=last: conv2d("grad_input", b, f))
    for batch, freeze, last, more in (
        (32, DENSE, False, ""),
        (32, FROZEN, False, ", 70 % frozen"),
        (32, DENSE, True, ""),
        (1, DENSE, False, ""),
    ):
        name = f"conv 3x3 128 32x32{' channels-last' if last else ''}, batch {batch}, grad_scores{more}"
        yield entry(name, None, lambda b=batch, f=freeze, c=last: conv2d_grad_scores(b, f, c))
    for name, shape in NARROW.items():
        for batch in (1, 8):
            yield entry(f"{name}, batch {batch}", 1, lambda b=batch, c=shape: conv2d("forward", b, False, shape=c))
        make = lambda c=shape: conv2d("grad_input", 8, False, shape=c)  # noqa: E731
        yield entry(f"{name}, batch 8, grad_input", 1, make)
        make = lambda c=shape: conv2d_grad_scores(8, FROZEN, shape=c)  # noqa: E731
        yield entry(f"{name}, batch 8, grad_scores, 70 % frozen", 1, make)
        last = f"{name} channels-last, batch 8"
        yield entry(last, 1, lambda c=shape: conv2d("forward", 8, True, shape=c))
        yield entry(f"{last}, grad_input", 1, lambda c=shape: conv2d("grad_input", 8, True, shape=c))
        make = lambda c=shape: conv2d_grad_scores(8, FROZEN, True, shape=c)  # noqa: E731
        yield entry(f"{last}, grad_scores, 70 % frozen", 1, make)
    for name in ("convnet, width 32", "convnet, width 96", "CIFAR ResNet-18, width 16"):
        for autocast in (False, True):
            case = f"a training step of {name}, batch 64{', bfloat16 autocast' if autocast else ''}"
            make = lambda n=name, a=autocast: training(n, 64, ("ours, 70 % frozen", "dense float32"), a)  # noqa: E731
            yield entry(case, 1, make)
    case = "a training step of CIFAR ResNet-18, batch 32, bfloat16 autocast"
    make = lambda: training("CIFAR ResNet-18", 32, ("ours, 70 % frozen", "dense float32"), True)  # noqa: E731
    yield entry(case, 1.2, make)
    bf16 = {"dtype": torch.bfloat16}
    yield entry("grad_input bfloat16, batch 256", None, lambda: linear_grad_input(256, **bf16))
    yield entry("grad_scores bfloat16, batch 256", None, lambda: linear_grad_scores(256, **bf16))
    name = "conv 3x3 128 32x32 channels-last bfloat16, batch 32"
    yield entry(name, None, lambda: conv2d("forward", 32, True, **bf16))
    yield entry(f"{name}, grad_input", None, lambda: conv2d("grad_input", 32, True, **bf16))
    yield entry(f"{name}, grad_scores", None, lambda: conv2d_grad_scores(32, last=True, **bf16))
    for freeze, what, target in ((DENSE, "25.5 M scores", 8), (FROZEN, "70 % frozen, 7.6 M scores", None)):
        for compact in (False, True):
            name = f"select + pack, {what}, {'compact' if compact else 'resolved'}"
            yield entry(name, target, lambda f=freeze, c=compact: masks(f, c), not compact and target is None)
    yield entry(
        "materializing layer, forward, batch 1",
        300,
        lambda: inference(LINEAR, 1, ("ours", "materializing layer")),
        True,
    )
    yield entry(
        "a training step of CIFAR ResNet-18, batch 32, against materializing",
        2.5,
        lambda: training("CIFAR ResNet-18", 32, ("ours, 70 % frozen", "materializing layer, 70 % frozen")),
    )


def batches() -> Iterator[Entry]:
    """One layer in each method, over batch sizes."""
    for batch in (1, 4, 16, 64, 256, 1024):
        make = lambda b=batch: inference(LINEAR, b, FORWARDS)  # noqa: E731
        yield Entry("batch", f"{LINEAR}, batch {batch}", make, quick=batch in (1, 16, 256), at={"batch": batch})
    for batch in (1, 16, 256):
        make = lambda b=batch: inference(LINEAR, b, MATERIALIZERS)  # noqa: E731
        at = {"batch": batch}
        yield Entry("materializing", f"{LINEAR}, batch {batch}", make, quick=batch == 1, at=at, rounds=3)
    for batch in (1, 32):
        make = lambda b=batch: inference(CONVOLUTION, b, CONVOLUTIONS)  # noqa: E731
        yield Entry("convolution", f"{CONVOLUTION}, batch {batch}", make, quick=batch == 1, at={"batch": batch})


def training_steps() -> Iterator[Entry]:
    for name, batch, methods in (
        (LINEAR, 256, STEPS[:-1]),
        (CONVOLUTION, 32, STEPS),
        ("CIFAR ResNet-18", 32, STEPS[:-1]),
        ("ImageNet ResNet-50", 8, STEPS[:-1]),
    ):
        make = lambda n=name, b=batch, m=methods: training(n, b, m)  # noqa: E731
        yield Entry("training step", f"{name}, batch {batch}", make, quick=name == CONVOLUTION, rounds=3)


def networks() -> Iterator[Entry]:
    for name in ("CIFAR ResNet-18", "ImageNet ResNet-50"):
        for batch in (1, 32):
            make = lambda n=name, b=batch: inference(n, b, END_TO_END)  # noqa: E731
            quick = name == "CIFAR ResNet-18"
            yield Entry("network", f"{name}, batch {batch}", make, quick=quick, at={"batch": batch})
    for name in ("CIFAR MobileNetV2", "CIFAR ConvNeXt-T"):
        for batch in (1, 32):
            make = lambda n=name, b=batch: inference(n, b, END_TO_END[:-1])  # noqa: E731
            yield Entry("network", f"{name}, batch {batch}", make, 1, at={"batch": batch})
    name = "decoder, 12 layers of 2048"
    yield Entry("network", f"{name}, one token", lambda: inference(name, 1, DECODER), at={"batch": 1})


def scaling() -> Iterator[Entry]:
    """Time of a square layer over its size, and over threads; and of a layer of a billion weights."""
    for batch in (1, 64):
        for size in (512, 1024, 2048, 4096, 8192, 16384):
            name = f"{size} x {size}, batch {batch}"
            quick = batch == 1 and size in (512, 2048)
            at = {"size": size, "batch": batch}
            yield Entry("size", name, lambda b=batch, s=size: linear_forward(b, s), quick=quick, at=at)
    for batch in (1, 64):
        for threads in (1, 2):
            name = f"batch {batch}, {threads} thread{'s' if threads > 1 else ''}"
            at = {"threads": threads, "batch": batch}
            yield Entry("threads", name, lambda b=batch: linear_forward(b), quick=batch == 1, at=at, threads=threads)
    side = 31623
    for compact in (False, True):
        name = f"{side} x {side}, batch 1, {'70 % frozen, compact' if compact else 'dense source, resolved'} mask"
        make = partial(linear_forward, 1, side, freeze=FROZEN if compact else DENSE, dense_too=False)
        yield Entry("billion", name, make, at={"weights": side * side, "compact": compact})


def ternary(batch: int, hot: bool) -> Case:
    """Products of the same ternary weights by engines that hold them in 2 bits; errors are against float64.

    Ours are the plans that layers keep, since the other engines are prepared too. Hot: each timed call follows 5 ms of
    its own, which also wake its threads. Cold: 128 MB of other memory are read and written before it.
    """
    source = Source.of(SIZE, SIZE)
    mask, x = mask_of(source), torch.randn(batch, SIZE)
    weight, signs = cpu.materialize(mask, source), source.signs().contiguous()
    stored, layer = (mask, signs, SCALE, None, source), (mask, SCALE, None, source)
    plans = {
        "ours, int8, stored signs": registry.plan("linear_forward_stored", x.device, *stored, True),
        "ours, int8": registry.plan("linear_forward_int8", x.device, *layer),
        "ours, highest, stored signs": registry.plan("linear_forward_stored", x.device, *stored, False),
        "ours, highest": registry.plan("linear_forward", x.device, *layer),
    }
    methods = {name: lambda plan=plan, held=stored: plan(x) for name, plan in plans.items()}  # plans hold addresses
    bits = dict(zip(methods, (2, 1, 2, 1), strict=True))
    for name, engine in installed():
        product = engine.make(weight, float(SCALE), torch.get_num_threads())
        methods[name], bits[name] = partial(product, x), engine.bits
    other = torch.zeros(32 << 20)

    def repeat(call: Callable[[], Tensor]) -> None:
        end = time.perf_counter() + 5e-3
        call()
        while time.perf_counter() < end:
            call()

    def check() -> dict[str, dict[str, float]]:
        expected = x.double() @ weight.double().T * SCALE.double()
        facts = {}
        for name, call in methods.items():
            close(call(), expected, 3e-2)
            error = float((call().double() - expected).norm() / expected.norm())
            facts[name] = {"error": error, "bits": bits[name]}
        return facts

    return Case(methods, check, before=repeat if hot else (lambda _: other.add_(1)))


def ternary_engines() -> Iterator[Entry]:
    """Against engines for ternary weights; only where one of them is installed (`ternary.py`)."""
    if any("torch" not in engine.needs for _, engine in installed()):
        for hot in (True, False):
            for batch in (1, 4, 16, 64, 256, 1024):
                at = {"batch": batch, "hot": hot}
                name = f"batch {batch}, {'hot' if hot else 'cold'}"
                yield Entry("ternary", name, lambda b=batch, h=hot: ternary(b, h), at=at)


def entries() -> Iterator[Entry]:
    for cases in (targets, batches, training_steps, networks, scaling, ternary_engines):
        yield from cases()
