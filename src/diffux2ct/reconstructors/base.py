"""What every method is: a map from X-rays to a CT, with one or more objectives that train it."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

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


class Trainable(nn.Module, ABC):
    """What the training loop needs: objectives to step. Diffusion and regression have one, a GAN has two."""

    @abstractmethod
    def objectives(self) -> tuple[Objective, ...]:
        """What the training loop steps, in order, on the same batch."""

    def parts(self, batch: Batch) -> dict[str, tuple[nn.Module, Callable[[], Any]]]:
        """The networks inside and one forward call of each on ``batch``: what `summarize_model.py` counts."""
        return {"model": (self, lambda: self(self.objectives()[0].name, batch))}

    def forward(self, objective: str, batch: Batch) -> Losses:
        """The losses of one objective. It is ``forward`` so that DDP sees the call and syncs its gradients."""
        return next(o for o in self.objectives() if o.name == objective).loss(batch)


class Reconstructor(Trainable):
    """X-rays in, CT in [-1, 1] out."""

    @abstractmethod
    def reconstruct(
        self, xrays: Xrays, *, generator: torch.Generator | None = None, **sampling: Any
    ) -> Volume:
        """Reconstruct [B, 1, D, H, W] in [-1, 1] from X-rays in [-1, 1]; random draws come from ``generator``.

        Settings that a method does not name it has no use for.
        """

    def settings_of(self, sampling: Mapping[str, Any]) -> dict[str, Any]:
        """Those of a sampler's settings that ``reconstruct`` names: none of a method that does not sample."""
        named = inspect.signature(self.reconstruct).parameters.keys() - {"xrays", "generator"}
        return {key: value for key, value in sampling.items() if key in named}


def xrays_of(batch: Batch) -> Xrays:
    """The X-ray entries of a batch."""
    return {view: batch[view] for view in VIEWS}


def seeded_normal(shape: Sequence[int], seeds: Tensor, device: torch.device, salt: int = 0) -> Tensor:
    """Gaussian noise [B, *shape], each sample from its own seed.

    A sample's noise then depends neither on its place in the batch nor on how many processes share the batch.
    """
    generators = [seeded_generator(seed, device, salt) for seed in seeds.tolist()]
    return torch.stack([torch.randn(shape, generator=generator, device=device) for generator in generators])


@runtime_checkable
class Perturbed(Protocol):
    """What takes the Gaussian z of Eq. 5, or says that it takes none."""

    def sample_perturbation(
        self, batch: int, generator: torch.Generator | None = None, device: torch.device | str = "cpu"
    ) -> Tensor | None:
        """A draw for ``batch`` samples; None where there is nothing to draw."""
        ...


def seeded_perturbation(network: Perturbed, seeds: Tensor, device: torch.device, salt: int) -> Tensor | None:
    """The z of Eq. 5, one draw per sample from its own seed; None where the network takes none."""
    generators = [seeded_generator(seed, device, salt) for seed in seeds.tolist()]
    draws = [network.sample_perturbation(1, generator, device) for generator in generators]
    return None if draws[0] is None else torch.cat([z for z in draws if z is not None])


def seeded_integers(high: int, seeds: Tensor, device: torch.device, salt: int = 0) -> Tensor:
    """Integers [B] uniform in 0 .. high-1, each sample from its own seed."""
    cpu = torch.device("cpu")
    draws = [
        int(torch.randint(high, (), generator=seeded_generator(seed, cpu, salt))) for seed in seeds.tolist()
    ]
    return torch.tensor(draws, device=device)


def seeded_generator(seed: int, device: torch.device, salt: int = 0) -> torch.Generator:
    """A generator on ``device``; ``salt`` keeps several draws of one sample independent."""
    home = torch.device("cpu") if device.type == "meta" else device  # meta has none, and draws no values
    return torch.Generator(device=home).manual_seed((seed * 1_000_003 + salt) % (2**63 - 1))
