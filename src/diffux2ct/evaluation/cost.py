"""What one reconstruction costs: parameters and FLOP, counted on the meta device, where nothing is allocated."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from diffux2ct.reconstructors.base import Reconstructor
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


def reconstruction_cost(model: Reconstructor, size: int, sampling: Mapping[str, Any]) -> Cost:
    """Cost of ``model.reconstruct`` for one volume of ``size``^3 voxels, as ``sampling`` says.

    ``model`` must be on the meta device. Only one and two inference steps are run: each further one costs the same, so
    that a count does not take longer the more steps there are.
    """
    settings = dict(sampling)
    steps = settings.pop("num_inference_steps", None)
    if steps is None:
        once, ran = _flop(model, size, settings)
        total, iterative = once, False
    else:
        once, ran = _flop(model, size, settings | {"num_inference_steps": 1})
        twice, _ = _flop(model, size, settings | {"num_inference_steps": 2})
        total, iterative = once + (int(steps) - 1) * (twice - once), twice != once
    used = _parameters(model) if model in ran else sum(_parameters(network) for network in ran)
    return Cost(used, _parameters(model) - used, total / 1e12, iterative)


def _flop(model: Reconstructor, size: int, sampling: Mapping[str, Any]) -> tuple[int, set[nn.Module]]:
    """FLOP of one call, and which of the model's direct children took part in it (the model itself if it has none)."""
    ran: set[nn.Module] = set()
    children = list(model.children()) or [model]
    hooks = [
        module.register_forward_pre_hook(lambda *_, child=child: ran.add(child))
        for child in children
        for module in child.modules()
    ]
    xrays = {view: torch.empty(1, 1, size, size, device="meta") for view in VIEWS}
    counter = FlopCounterMode(display=False)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), torch.device("meta"), counter:
            model.reconstruct(xrays, **sampling)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    # A model that keeps its parameters to itself runs none of its children.
    own = any(True for _ in model.parameters(recurse=False))
    return counter.get_total_flops(), {model} if own or not ran else ran


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
