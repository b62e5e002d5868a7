"""An exponential moving average of the weights, which is what is sampled and shipped."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from diffux2ct.training.sharding import local, part_of


class Ema:
    """Averages a model's parameters; ``decay`` is reached gradually: min(decay, (1 + n) / (10 + n)) at update n.

    Without the warm-up a short run would still be averaging its random initialisation.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.num_updates = 0
        self.average = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average toward the model's current weights."""
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        parameters = [local(p.detach()) for _, p in model.named_parameters()]
        averages = [local(self.average[name]) for name, _ in model.named_parameters()]
        torch._foreach_lerp_(averages, parameters, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
        self.num_updates += 1

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """Put the averaged weights into the model for the length of a ``with`` block."""
        own = {name: p.detach().clone() for name, p in model.named_parameters()}
        _copy_into(model, self.average)
        try:
            yield
        finally:
            _copy_into(model, own)

    def state_dict(self) -> dict[str, Tensor | int]:
        """Averages by parameter name, plus the number of updates."""
        return {"num_updates": self.num_updates, **self.tensors()}

    def tensors(self) -> dict[str, Tensor]:
        """The averages, named as in ``state_dict``."""
        return {f"average.{name}": value for name, value in self.average.items()}

    def load_state_dict(self, state: dict) -> None:
        """Inverse of ``state_dict``."""
        self.num_updates = int(state["num_updates"])
        for name, value in self.average.items():
            value.copy_(part_of(state[f"average.{name}"], value))


@torch.no_grad()
def _copy_into(model: nn.Module, values: dict[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        parameter.copy_(values[name])
