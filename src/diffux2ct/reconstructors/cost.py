"""Parameters, FLOP and activation memory, counted on the meta device, where nothing is allocated."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from diffux2ct.diffusion.samplers.ddim import Ddim
from diffux2ct.reconstructors.base import Reconstructor, Trainable, on_device
from diffux2ct.types import VIEWS


@dataclass(frozen=True)
class Cost:
    """Cost of one volume.

    parameters: of the networks that a reconstruction runs.
    training_only: of those that it does not run: a discriminator's.
    tflop: 1e12 floating-point operations of convolutions and matrix products, 2 per multiply-accumulate.
    iterative: whether the number of inference steps changes ``tflop``.
    """

    parameters: int
    training_only: int
    tflop: float
    iterative: bool


def reconstruction_cost(model: Reconstructor, size: int, num_evaluations: int | None = None) -> Cost:
    """Cost of ``model.reconstruct`` for one volume of ``size``^3 voxels, with so many runs of a sampler's network.

    ``model`` must be on the meta device. Only one and two steps of one run each are counted: each further one costs the
    same with any sampler, and counting then takes no longer the more there are.
    """
    if "sampler" not in model.settings() or num_evaluations is None:
        total, ran = _flop(model, size)
        iterative = False
    else:
        once, ran = _flop(model, size, sampler=Ddim(1))
        twice, _ = _flop(model, size, sampler=Ddim(2))
        total, iterative = once + (num_evaluations - 1) * (twice - once), twice != once
    used = _parameters(model) if model in ran else sum(_parameters(network) for network in ran)
    return Cost(used, _parameters(model) - used, total / 1e12, iterative)


def _flop(model: Reconstructor, size: int, **settings: Any) -> tuple[int, set[nn.Module]]:
    """FLOP of one call, and which of the model's direct children took part in it (the model itself if it has none)."""
    ran: set[nn.Module] = set()
    children = list(model.children()) or [model]
    hooks = [
        module.register_forward_pre_hook(lambda *_, child=child: ran.add(child))
        for child in children
        for module in child.modules()
    ]
    xrays = meta_xrays(size, model.views)
    counter = FlopCounterMode(display=False)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), torch.device("meta"), counter:
            model.reconstruct(xrays, **settings)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    # A model that keeps its parameters to itself runs none of its children.
    own = any(True for _ in model.parameters(recurse=False))
    return counter.get_total_flops(), {model} if own or not ran else ran


def meta_xrays(size: int, views: Sequence[str] = VIEWS) -> dict[str, Tensor]:
    """X-rays to count with, of a cone camera, since parallel rays cost a model that follows them nothing."""
    xrays = {view: torch.empty(1, 1, size, size, device="meta") for view in views}
    return xrays | {"camera": torch.tensor([[1.0, 0.1, 1.0, 0.1]], device="cpu")}


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def part_cost(model: nn.Module, call: Callable[[], Any]) -> dict[str, float]:
    """Forward FLOP and bytes saved for backward of one call; parameters are not counted as saved."""
    own = {id(p) for p in model.parameters()}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if id(tensor) not in own:
            storage = tensor.untyped_storage()
            saved[storage._cdata] = max(saved.get(storage._cdata, 0), tensor.numel() * tensor.element_size())
            kept.append(tensor)
        return tensor

    kept: list[Tensor] = []  # keeps storages alive, so that no address is counted for two of them
    with (
        FlopCounterMode(display=False) as counter,
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        call()
    return {"forward_tflop": counter.get_total_flops() / 1e12, "saved_gib": sum(saved.values()) / 2**30}


def step_flops(make_model: Callable[[], Trainable], sample: Mapping[str, Tensor]) -> float:
    """FLOP of one step on one sample: forward and backward of every objective; nothing is allocated.

    ``sample``: a batch of one as training sees it; only shapes and dtypes count. FLOP = 2 x multiply-accumulate of
    convolutions and matrix products; activations that are computed twice count twice.
    """
    with torch.random.fork_rng(devices=[]):
        with torch.device("meta"):
            model = make_model().train()
        batch = on_device(sample, "meta")
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
