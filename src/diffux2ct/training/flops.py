"""What a training step costs, counted once on the meta device, and how fast the device multiplies matrices."""

import time
from collections.abc import Callable, Mapping
from functools import cache

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from diffux2ct.reconstructors.base import Trainable


def step_flops(make_model: Callable[[], Trainable], sample: Mapping[str, Tensor]) -> float:
    """FLOP of one step on one sample: forward and backward of every objective; nothing is allocated.

    ``sample``: a batch of one as training sees it; only shapes and dtypes count. FLOP = 2 x multiply-accumulate of
    convolutions and matrix products; activations that are computed twice count twice.
    """
    with torch.random.fork_rng(devices=[]):
        with torch.device("meta"):
            model = make_model().train()
        batch = {key: value if key == "seed" else value.to("meta") for key, value in sample.items()}
        with FlopCounterMode(display=False) as counter:
            for objective in model.objectives():
                model(objective.name, batch)["total"].backward()
    return float(counter.get_total_flops())


@cache
def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large square matrix product: the best of some runs, measured once a process (under 0.2 s)."""
    size = 8192 if device.type == "cuda" else 512
    a = torch.ones(size, size, device=device, dtype=dtype)
    best, began = float("inf"), time.perf_counter()
    for turn in range(12):
        start = time.perf_counter()
        torch.mm(a, a)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if turn:  # the first one also sets up
            best = min(best, time.perf_counter() - start)
        if turn and time.perf_counter() - began > 0.1:
            break
    return 2 * size**3 / best
