"""DiffuX2CT as a reconstructor: conditions once per volume, then the reverse process (paper Sec. 3)."""

from collections.abc import Callable, Mapping
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn

from diffux2ct.diffusion.consistency import Correction
from diffux2ct.diffusion.losses import DiffusionLoss
from diffux2ct.diffusion.process import DiffusionProcess
from diffux2ct.diffusion.samplers.ddim import Ddim
from diffux2ct.diffusion.samplers.sampling import Sampler, inference_timesteps, sample
from diffux2ct.errors import UserError
from diffux2ct.models.conditioning import Conditioning
from diffux2ct.models.denoiser import UNet3d
from diffux2ct.reconstructors.base import (
    Batch,
    Losses,
    Objective,
    Reconstructor,
    seeded_integers,
    seeded_normal,
    seeded_perturbation,
    xrays_of,
)
from diffux2ct.seeding import CPU
from diffux2ct.types import Volume, Xrays

# Salts keep the three draws of one sample independent of each other.
_NOISE, _TIMESTEP, _PERTURBATION = 1, 2, 3
_DEFAULT_STEPS = 50


class DiffusionReconstructor(Reconstructor):
    """A conditional diffusion model over CT volumes.

    conditioning: 3D features at three scales from the X-rays.
    denoiser: the network, given these features.
    process: the diffusion.
    loss: the objective.
    size: voxels per side.
    perturbation: the z of Eq. 5 in a reconstruction, which is drawn once per volume and kept over all steps
        (``random``) or left out (``zero``).
    """

    def __init__(
        self,
        conditioning: Conditioning,
        denoiser: UNet3d,
        process: DiffusionProcess,
        loss: DiffusionLoss,
        size: int,
        perturbation: str = "random",
    ) -> None:
        super().__init__()
        loss.check_fits(process)
        self.conditioning = conditioning
        self.denoiser = denoiser
        self.process = process
        self.loss = loss
        self.size = size
        self.perturbation = _checked_perturbation(perturbation)

    def objectives(self) -> tuple[Objective, ...]:
        """One objective: noise prediction plus geometry projection (paper Eq. 10)."""
        return (Objective("diffusion", list(self.parameters()), self._loss),)

    def _loss(self, batch: Batch) -> Losses:
        """Losses of a batch with ``volume``, the X-rays and one ``seed`` per sample."""
        x_0, seeds = batch["volume"], batch["seed"]
        noise = seeded_normal(x_0.shape[1:], seeds, x_0.device, _NOISE)
        trained = self.process.timesteps
        draws = seeded_integers(len(trained), seeds, CPU, _TIMESTEP).tolist()
        t = torch.tensor([trained[draw] for draw in draws], device=x_0.device)
        z = seeded_perturbation(self.conditioning, seeds, x_0.device, _PERTURBATION)
        conditions = self.conditioning(xrays_of(batch), z)
        x_t = self.process.add_noise(x_0, noise, t)
        return self.loss(self.process, self.denoiser(x_t, t, conditions), x_t, x_0, noise, t)

    def parts(self, batch: Batch) -> dict[str, tuple[nn.Module, Callable[[], Any]]]:
        """Conditioning, once a volume, and denoiser, once a step."""
        xrays, x_t = xrays_of(batch), batch["volume"]
        # The conditions are leaves here, so that the denoiser's count holds nothing of the conditioning.
        features = [h.detach().requires_grad_() for h in self.conditioning(xrays)]
        t = torch.zeros(len(x_t))
        return {
            "conditioning": (self.conditioning, lambda: self.conditioning(xrays)),
            "denoiser": (self.denoiser, lambda: self.denoiser(x_t, t, features)),
        }

    def complete(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """``settings`` of `reconstruct` without None: the model's own perturbation and number of timesteps."""
        settings = super().complete(settings)
        sampler = copy(settings["sampler"])
        sampler.num_inference_steps = len(inference_timesteps(self.process.timesteps, sampler.num_inference_steps))
        own = {"sampler": sampler, "perturbation": settings.get("perturbation") or self.perturbation}
        return own if settings.get("consistency") is None else own | {"consistency": settings["consistency"]}

    def reconstruct(
        self,
        xrays: Xrays,
        *,
        generator: torch.Generator | None = None,
        sampler: Sampler | None = None,
        perturbation: str | None = None,
        consistency: Correction | None = None,
    ) -> Volume:
        """Sample a volume [B, 1, D, H, W] in [-1, 1] given frontal and lateral X-rays [B, 1, D, *] in [-1, 1].

        ``sampler``: None is DDIM in 50 steps, or in as many as there are timesteps. ``perturbation``: ``random`` or
        ``zero``; None: the model's own. ``consistency``: of each estimate of x_0 with the
        X-rays. The conditions depend neither on x_t nor on t, so they are computed once.
        """
        self.check_xrays(xrays)
        perturbation = self.perturbation if perturbation is None else _checked_perturbation(perturbation)
        sampler = sampler or Ddim(min(_DEFAULT_STEPS, len(self.process.timesteps)))
        frontal = xrays["frontal"]
        device, shape = frontal.device, (frontal.shape[0], 1, self.size, self.size, self.size)

        def draw() -> Tensor:
            # Drawn on the generator's device, so that a seed gives one volume on every device.
            source = generator.device if generator is not None else device
            return torch.randn(shape, generator=generator, device=source).to(device)  # type: ignore[call-overload]

        z = self.conditioning.sample_perturbation(shape[0], generator, device)
        if z is not None and perturbation == "zero":
            z = torch.zeros_like(z)
        conditions = self.conditioning(xrays, z)
        network = lambda x_t, t: self.denoiser(x_t, t, conditions)  # noqa: E731
        return sample(network, self.process, sampler, draw(), draw, consistency)


def _checked_perturbation(perturbation: str) -> str:
    if perturbation not in ("random", "zero"):
        raise UserError(f"perturbation={perturbation}: choose random or zero")
    return perturbation
