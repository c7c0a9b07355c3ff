"""Backends: kernels of the same operations (`operations`), each written for one kind of machine.

What they compute is stated by `reference`, the oracle of all others: their float32 forward and grad_input, and all of
select, pack, expand and materialize, are its very bits. Masks may hold garbage past the last weight.

The first backend that runs here, takes a tensor's device and has a kernel for the arguments is used; ``SLT_BACKEND``
in the environment, or `use`, forces one for the whole process. A new backend is a new package: `register` it.
"""

from . import cpu, cuda, reference, triton
from .registry import (
    available,
    copies_images,
    describe,
    kernel,
    name_for,
    names,
    on,
    register,
    run,
    table,
    use,
    why_unavailable,
)

__all__ = [
    "available",
    "copies_images",
    "describe",
    "kernel",
    "name_for",
    "names",
    "on",
    "register",
    "run",
    "table",
    "use",
    "why_unavailable",
]

register("reference", reference)
register("triton", triton)
register("cuda", cuda)
register("cpu", cpu)
