"""Clear: zeros, for what other launches add to."""

from torch import Tensor

from . import launch

_THREADS = 256


def clear(tensor: Tensor) -> None:
    """Writes zeros. The elements must have a multiple of four bytes."""
    words = tensor.numel() * tensor.element_size() // 4
    launch.enqueue(_launch(launch.blocks(words, _THREADS)), tensor.device, tensor, words)


@launch.planned
def _launch(blocks: int) -> launch.Launch:
    return launch.Launch(
        file="clear",
        kernel="slt_clear",
        arguments="Clear",
        blocks=blocks,
        threads=_THREADS,
        values={},
        later=["words", "count"],
    )
