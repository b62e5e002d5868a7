"""What every method is: a map from X-rays to a CT, with one or more objectives that train it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffux2ct.types import VIEWS, Volume, Xrays

Batch = Mapping[str, Tensor]
Losses = dict[str, Tensor]


@dataclass(frozen=True)
class Objective:
    """Something that is stepped: its parameters get one optimiser, ``loss(batch)["total"]`` is minimised."""

    name: str
    parameters: Sequence[nn.Parameter]
    loss: Callable[[Batch], Losses]


class Reconstructor(nn.Module, ABC):
    """X-rays in, CT in [-1, 1] out. Diffusion models and regressors have one objective, a GAN has two."""

    @abstractmethod
    def objectives(self) -> tuple[Objective, ...]:
        """What the training loop steps, in order."""

    @abstractmethod
    def reconstruct(
        self, xrays: Xrays, *, generator: torch.Generator | None = None, **sampling: Any
    ) -> Volume:
        """Reconstruct [B, 1, D, H, W] in [-1, 1] from X-rays in [-1, 1]; random draws come from ``generator``."""

    def forward(self, objective: str, batch: Batch) -> Losses:
        """The losses of one objective. It is ``forward`` so that DDP sees the call and syncs its gradients."""
        return next(o for o in self.objectives() if o.name == objective).loss(batch)


def xrays_of(batch: Batch) -> Xrays:
    """The X-ray entries of a batch."""
    return {view: batch[view] for view in VIEWS}


def seeded_normal(shape: Sequence[int], seeds: Tensor, device: torch.device, salt: int = 0) -> Tensor:
    """Gaussian noise [B, *shape], each sample from its own seed.

    A sample's noise then depends neither on its place in the batch nor on how many processes share the batch.
    """
    generators = [seeded_generator(seed, device, salt) for seed in seeds.tolist()]
    return torch.stack([torch.randn(shape, generator=generator, device=device) for generator in generators])


def seeded_integers(high: int, seeds: Tensor, device: torch.device, salt: int = 0) -> Tensor:
    """Integers [B] uniform in 0 .. high-1, each sample from its own seed."""
    cpu = torch.device("cpu")
    draws = [
        int(torch.randint(high, (), generator=seeded_generator(seed, cpu, salt))) for seed in seeds.tolist()
    ]
    return torch.tensor(draws, device=device)


def seeded_generator(seed: int, device: torch.device, salt: int = 0) -> torch.Generator:
    """A generator on ``device``; ``salt`` keeps several draws of one sample independent."""
    return torch.Generator(device=device).manual_seed((seed * 1_000_003 + salt) % (2**63 - 1))
