"""The interface of every method: a map from X-rays to a CT, with one or more objectives that train it."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffux2ct.errors import UserError
from diffux2ct.seeding import CPU, seeded_generator
from diffux2ct.types import VIEWS, Volume, Xrays
from diffux2ct.xray.pose import is_view

Batch = Mapping[str, Tensor]
Losses = dict[str, Tensor]


@dataclass(frozen=True)
class Objective:
    """One loss and its parameters, which get one optimiser: ``loss(batch)["total"]`` is minimised.

    ``during``: the part of the run in which it is stepped, as shares of ``max_steps``. Its learning rate runs through
    the whole schedule in this part. At its end its parameters take their averaged values, and stay so.
    """

    name: str
    parameters: Sequence[nn.Parameter]
    loss: Callable[[Batch], Losses]
    during: tuple[float, float] = (0.0, 1.0)


class Trainable(nn.Module, ABC):
    """Objectives for the training loop to step. Diffusion and regression have one, a GAN has two."""

    @abstractmethod
    def objectives(self) -> tuple[Objective, ...]:
        """The objectives, stepped in this order on the same batch."""

    def parts(self, batch: Batch) -> dict[str, tuple[nn.Module, Callable[[], Any]]]:
        """The networks and one forward call of each on ``batch``, for `summarize_model.py` to count."""
        return {"model": (self, lambda: self(self.objectives()[0].name, batch))}

    def forward(self, objective: Any, batch: Batch | None = None) -> Losses:
        """The losses of one objective. It is ``forward`` so that DDP sees the call and syncs its gradients."""
        named = {o.name: o for o in self.objectives()}
        if not isinstance(objective, str) or objective not in named or batch is None:
            raise UserError(
                f"model(objective, batch): gives the training losses of an objective ({', '.join(named)}); "
                "model.reconstruct(xrays) gives a CT"
            )
        return named[objective].loss(batch)


class Reconstructor(Trainable):
    """X-rays in, CT in [-1, 1] out."""

    size: int | tuple[int, int, int] | None = (
        None  # voxels, where the networks take this size only: one side, or D, H, W
    )
    views: tuple[str, ...] = VIEWS  # of the X-rays that ``reconstruct`` takes

    @abstractmethod
    def reconstruct(self, xrays: Xrays, *, generator: torch.Generator | None = None) -> Volume:
        """Reconstruct [B, 1, D, H, W] in [-1, 1] from X-rays in [-1, 1]; random draws come from ``generator``.

        A method may take more settings, as keyword arguments; a ``sampler`` is one.
        """

    def draws(
        self, xrays: Xrays, count: int, *, generator: torch.Generator | None = None, **settings: Any
    ) -> Float[Tensor, "k b 1 d h w"]:
        """``count`` reconstructions that differ in their noise alone. settings: of `reconstruct`.

        UserError of a method that draws nothing.
        """
        if not self.settings():
            remedy = "use one that does: model=posterior_flow or diffux2ct"
            raise UserError(f"uncertainty: a {type(self).__name__} draws nothing, so it has no spread; {remedy}")
        return torch.stack([self.reconstruct(xrays, generator=generator, **settings) for _ in range(count)])

    @classmethod
    def settings(cls) -> set[str]:
        """Names of the settings that ``reconstruct`` takes: none of a method that draws nothing."""
        return inspect.signature(cls.reconstruct).parameters.keys() - {"self", "xrays", "generator"}

    def complete(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Those of ``settings`` that `reconstruct` takes, with the model's own value where one is None."""
        return {key: value for key, value in settings.items() if key in self.settings()}

    def check_views(self, given: Collection[str]) -> None:
        """UserError unless the views are those that the model takes."""
        if set(given) != set(self.views):
            raise UserError(
                f"xrays: views {', '.join(map(str, given)) or 'none'}; this model takes {', '.join(self.views)}: give "
                "these and no others"
            )

    def check_xrays(self, xrays: Xrays) -> None:
        """UserError unless ``xrays`` holds float images of the model's views, of its size, one of each per sample."""
        self.check_views([key for key in xrays if key != "camera"])
        images = {view: xrays[view] for view in self.views}
        for view, image in images.items():
            if image.ndim != 4 or image.shape[1] != 1 or not image.is_floating_point():
                kind = f"{image.dtype} {list(image.shape)}"
                raise UserError(f"xrays: {view} is {kind}; give floats [batch, 1, rows, columns] in [-1, 1]")
        first = images[self.views[0]]
        for view, image in images.items():
            if self.size is None:
                depth, columns = first.shape[2], image.shape[3]
            else:
                depth, height, width = (self.size,) * 3 if isinstance(self.size, int) else self.size
                columns = height if view == "lateral" else width
            expected = [len(first), 1, depth, columns]
            if list(image.shape) != expected:
                raise UserError(f"xrays: {view} is {list(image.shape)}; this model needs {expected}")


def xrays_of(batch: Batch) -> Xrays:
    """The X-ray entries of a batch, with their camera where it is known."""
    return {key: value for key, value in batch.items() if key == "camera" or is_view(key)}


def on_device(batch: Mapping[str, Tensor], device: torch.device | str) -> dict[str, Tensor]:
    """A batch on ``device``, but for what is read as numbers: from a GPU that would be to wait for it."""
    kept = ("seed", "camera", "index")
    return {key: v if key in kept else v.to(device, non_blocking=True) for key, v in batch.items()}


def seeded_normal(shape: Sequence[int], seeds: Tensor, device: torch.device, salt: int = 0) -> Tensor:
    """Gaussian noise [B, *shape], each sample from its own seed.

    A sample's noise then depends neither on its place in the batch nor on how many processes share the batch.
    """
    generators = [seeded_generator(device, seed, salt) for seed in seeds.tolist()]
    return torch.stack([torch.randn(shape, generator=generator, device=device) for generator in generators])


def seeded_perturbation(network: nn.Module, seeds: Tensor, device: torch.device, salt: int) -> Tensor | None:
    """The network's ``sample_perturbation`` (the z of Eq. 5), each sample's from its own seed; None without one."""
    draw: Callable[..., Tensor | None] | None = getattr(network, "sample_perturbation", None)
    if draw is None:
        return None
    generators = [seeded_generator(device, seed, salt) for seed in seeds.tolist()]
    draws = [draw(1, generator, device) for generator in generators]
    return None if draws[0] is None else torch.cat([z for z in draws if z is not None])


def seeded_integers(high: int, seeds: Tensor, device: torch.device, salt: int = 0) -> Tensor:
    """Integers [B] uniform in 0 .. high-1, each sample from its own seed."""
    draws = [int(torch.randint(high, (), generator=seeded_generator(CPU, seed, salt))) for seed in seeds.tolist()]
    return torch.tensor(draws, device=device)
