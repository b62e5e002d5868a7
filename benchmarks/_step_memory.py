"""Memory and FLOPs of one whole training step, counted without allocating anything."""

import weakref
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from diffux2ct.models.layers import swin3d
from diffux2ct.reconstructors.diffusion import DiffusionReconstructor
from diffux2ct.training.state import prepare_model
from diffux2ct.types import VIEWS


class PeakMemory(TorchDispatchMode):
    """Bytes of all storages alive, and the most that there were."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.live: set[int] = set()

    def add(self, tensor: torch.Tensor) -> None:
        """Count a tensor's storage until it is freed."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.live:
            return
        self.live.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self.live.discard(key)
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.add(leaf)
        return out


def count_step(model: DiffusionReconstructor, size: int, batch: int) -> dict[str, float]:
    """One step of Adam with an EMA, in bf16 autocast: GiB and TFLOP.

    state: weights, gradients, Adam's two moments and EMA, all fp32. kept: what is alive between forward and backward
    beside the state. peak: of the whole step, temporaries included.
    """
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    make_fake(prepare_model(model, torch.device("cpu"), channels_last=True), fake)
    weights = list(model.parameters())
    memory, flops = PeakMemory(), FlopCounterMode(display=False)

    def forward() -> torch.Tensor:
        volume = torch.empty(batch, 1, size, size, size)
        xrays = {view: torch.empty(batch, 1, size, size) for view in VIEWS}
        t = torch.zeros(batch, dtype=torch.long)
        with torch.autocast("cpu", torch.bfloat16):
            z = model.conditioning.sample_perturbation(batch)
            prediction = model.denoiser(volume, t, model.conditioning(xrays, z))
            return model.loss(model.process, prediction, volume, volume, volume, t)["total"]

    try:
        with fake, memory:
            for parameter in weights:
                memory.add(parameter)
            others = [torch.empty_like(p) for p in weights for _ in range(3)]  # moments and EMA
            before = memory.now
            total = forward()
            kept = memory.now - before
            total.backward()
        model.zero_grad()
        # On its own: the counter of FLOPs holds on to tensors that checkpointing has computed again.
        with fake, flops:
            forward().backward()
    finally:  # the windows' tables, made above, hold nothing
        swin3d.shift_mask.cache_clear()
        swin3d.relative_position_index.cache_clear()
    state = 2 * sum(p.numel() * p.element_size() for p in weights) + sum(x.nbytes for x in others)
    gib = {"state_gib": state, "kept_gib": kept, "peak_gib": memory.peak}
    return {name: value / 2**30 for name, value in gib.items()} | {"tflop": flops.get_total_flops() / 1e12}


def make_fake(model: nn.Module, mode: FakeTensorMode) -> None:
    """Replace parameters and buffers by ones without content, of the same layout."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(mode.from_tensor(parameter.data)))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, mode.from_tensor(buffer))
