"""Networks by name; `build` makes one, dense or with supermask layers."""

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from ..._text import shown
from ...convert import convert
from ...source import MAX_ROWS, integer
from ..data import Dataset
from .conv_n import conv_n
from .convnet import convnet
from .convnext import convnext
from .gin import GIN
from .gpt import GPT
from .lenet import lenet
from .mobilenet import mobilenet_v2
from .resnet import resnet
from .vit import ViT

_MAX_DEPTH = 1000  # of the networks whose depth is a choice; each block takes up to 30 ms to build


class Architecture(NamedTuple):
    """Builder of a dense network, the kind of data that it takes, and the options that its name implies."""

    builder: Callable[..., nn.Module]
    kind: str
    preset: Mapping[str, Any]


def _images(builder: Callable[..., nn.Module], **preset) -> Architecture:
    return Architecture(builder, "images", preset)


_VIT_IMAGENET = {"size": 224, "classes": 1000, "patch": 16, "depth": 12}
_IMAGENET = {"imagenet": True, "classes": 1000}

MODELS: dict[str, Architecture] = {
    "convnet": _images(convnet),
    "lenet_300_100": _images(lenet),
    **{f"conv{depth}": _images(conv_n, depth=depth) for depth in (2, 4, 6, 8)},
    **{f"cifar_resnet{depth}": _images(resnet, depth=depth) for depth in (18, 34)},
    **{f"resnet{depth}": _images(resnet, depth=depth, **_IMAGENET) for depth in (18, 34, 50, 101)},
    "wide_resnet50_2": _images(resnet, depth=50, bottleneck_width=2, **_IMAGENET),
    "wide_resnet101_2": _images(resnet, depth=101, bottleneck_width=2, **_IMAGENET),
    "mobilenet_v2": _images(mobilenet_v2, **_IMAGENET),
    "cifar_mobilenet_v2": _images(mobilenet_v2),
    "convnext_tiny": _images(convnext, classes=1000),
    "cifar_convnext_tiny": _images(convnext, patch=2),
    "vit_tiny": _images(ViT, width=192, **_VIT_IMAGENET),
    "vit_small": _images(ViT, width=384, **_VIT_IMAGENET),
    "vit_base": _images(ViT, width=768, **_VIT_IMAGENET),
    "cifar_vit_tiny": _images(ViT, width=192, patch=4, depth=12),
    "gin": Architecture(GIN, "nodes", {}),
    "gpt_mini": Architecture(GPT, "text", {"width": 512, "depth": 4}),
    "gpt_small": Architecture(GPT, "text", {"width": 768, "depth": 12}),
    "gpt_medium": Architecture(GPT, "text", {"width": 1024, "depth": 24}),
}


def build(
    name: str,
    data: Dataset | Mapping[str, int] | None = None,
    *,
    supermask: Mapping[str, Any] | None = None,
    device: torch.device | str | None = None,
    **options,
) -> nn.Module:
    """Builds a network.

    Args:
        name: one of `MODELS`.
        data: a data set, whose `Dataset.dimensions` (classes, channels and so on) become arguments of the builder; or
            these dimensions.
        supermask: arguments of `convert`, for a network of supermask layers. No dense weight is allocated, except for
            layers in ``exclude``, in which "first" and "last" stand for the first and the last layer with a weight.
            Default None, a dense network.
        device: the device of the network. Default: PyTorch's default device.
        options: arguments of the builder; they override those of ``data`` and of the name. A ``width`` that is a float
            multiplies the network's default width, as 0.5 does (`scaled_width`).

    Returns:
        A module; ``model(*batch.inputs)`` returns logits ``[..., classes]``.

    Raises:
        ValueError: an unknown name, option or key of ``supermask``; a missing option; a size that is not positive;
            data of another kind; or an error of the builder or of `convert`.

    Example::

        data = slt_kernels.data.load("cifar10", "data")
        model = build("cifar_resnet18", data, width=32, supermask={"freeze": Freeze(0.35, 0.35), "sparsity": None})
    """
    if name not in MODELS:
        raise ValueError(f"model={shown(name)}: expected one of {', '.join(MODELS)}")
    builder, kind, preset = MODELS[name]
    arguments = inspect.signature(builder).parameters
    unknown = sorted(options.keys() - arguments.keys())
    if unknown:
        raise ValueError(f"{unknown[0]}={shown(options[unknown[0]])}: {name} has only {', '.join(arguments)}")
    if data is not None:
        if isinstance(data, Dataset) and data.kind != kind:
            raise ValueError(f"model={name!r}: expected data of kind {kind}, got {data.kind}")
        dimensions = data.dimensions if isinstance(data, Dataset) else data
        options = {n: v for n, v in dimensions.items() if n in arguments} | options
    options = {**preset, **options}
    if isinstance(options.get("width"), float):
        options["width"] = scaled_width(name, options["width"])
    for n, value in options.items():
        if arguments[n].annotation is int:
            options[n] = integer(n, value, 1, largest(n))
    missing = [n for n, a in arguments.items() if a.default is a.empty and n not in options]
    if missing:
        raise ValueError(f"{missing[0]}: expected a value for {name}, or data that provide it")

    known = [n for n in inspect.signature(convert).parameters if n != "model"]
    unknown = sorted((supermask or {}).keys() - set(known))
    if unknown:
        raise ValueError(f"supermask: {unknown[0]}={shown(supermask[unknown[0]])}: convert has only {', '.join(known)}")

    supermask = None if supermask is None else dict(supermask)
    device = torch.get_default_device() if device is None else torch.device(device)
    if supermask is None:
        with device:
            return builder(**options)
    with torch.device("meta"):
        network = builder(**options)
        exclude = _excluded(network, supermask.pop("exclude", ()))
        network = convert(network, exclude=exclude, **supermask)
    network.to_empty(device=device)
    for module in network.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return network


def largest(option: str) -> int:
    """The largest value of a builder's integer option."""
    return _MAX_DEPTH if option == "depth" else MAX_ROWS


def scaled_width(name: str, factor: float) -> int:
    """The default width of a network times a factor, rounded down.

    Raises:
        ValueError: the result is not at least 1.
    """
    builder, _, preset = MODELS[name]
    width = preset.get("width", inspect.signature(builder).parameters["width"].default)
    if not 1 <= width * factor <= MAX_ROWS:
        raise ValueError(f"width={factor}: expected a factor on {width} that gives from 1 to {MAX_ROWS}")
    return int(width * factor)


def _excluded(network: nn.Module, names: Collection[str]) -> Collection[str]:
    """The argument ``exclude`` of `convert`, with names in place of "first" and "last"."""
    if isinstance(names, str):
        return names  # `convert` refuses it
    layers = [n for n, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.Embedding)]
    known = {"first": layers[0], "last": layers[-1]}
    return {known.get(name, name) for name in names}


__all__ = [
    "GIN",
    "GPT",
    "MODELS",
    "Architecture",
    "ViT",
    "build",
    "conv_n",
    "convnet",
    "convnext",
    "lenet",
    "mobilenet_v2",
    "resnet",
]
