"""The reference backend: plain PyTorch, on any device, and the oracle of all others.

It is written to be obviously right. Weights are materialized; products are float64. For inputs narrower than
float64, forward and grad_input first round each vector that shares a scale to fixed point, so every product and
every partial sum is an integer that float64 holds exactly, and the order of the sum does not matter. float32 is only
read and rounded to, in ways that `torch.set_flush_denormal` does not change (`numbers`).
"""

import torch


def unavailable() -> str | None:
    return None


def describe() -> str:
    return "plain PyTorch, on any device"


def supports(device: torch.device) -> bool:
    return True
