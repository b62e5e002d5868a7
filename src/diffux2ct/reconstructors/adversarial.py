"""Adversarial regression as a reconstructor: a generator and a discriminator, stepped in turn (X2CT-GAN)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from diffux2ct.diffusion.projection_loss import projection_distance
from diffux2ct.models.baselines.x2ct_gan import to_unit
from diffux2ct.reconstructors.base import Batch, Losses, Objective, Reconstructor, seeded_perturbation, xrays_of
from diffux2ct.types import Volume, Xrays

_DROPOUT = 6  # salt of the generator's dropout


class AdversarialReconstructor(Reconstructor):
    """Any generator ``generator(xrays[, z]) -> volume`` and discriminator ``discriminator(volume, xrays) -> scores``.

    Two objectives on the same batch: first the discriminator's, on what the generator makes now, then the
    generator's, against the discriminator just stepped. Least squares (LSGAN): scores to 1 for
    real and 0 for generated volumes.

    All losses are of volumes in [0, 1], as X2CT-GAN's weights are meant. ``adversarial_weight`` multiplies both sides'
    adversarial loss; ``mse_weight`` that of the voxels, and ``projection_weight`` that of the three mean projections
    (L1).
    """

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        adversarial_weight: float | int = 0.1,
        mse_weight: float | int = 10.0,
        projection_weight: float | int = 10.0,
    ) -> None:
        super().__init__()
        self.generator = generator
        self.size = getattr(generator, "size", None)
        self.discriminator = discriminator
        self.adversarial_weight = float(adversarial_weight)
        self.mse_weight = float(mse_weight)
        self.projection_weight = float(projection_weight)

    def objectives(self) -> tuple[Objective, ...]:
        return (
            Objective("discriminator", list(self.discriminator.parameters()), self._discriminator_loss),
            Objective("generator", list(self.generator.parameters()), self._generator_loss),
        )

    def _discriminator_loss(self, batch: Batch) -> Losses:
        """The generator is run without a graph: it gets no gradient, and its step makes the same volume again."""
        xrays = xrays_of(batch)
        with torch.no_grad():
            generated = self._generate(batch)
        real = self.discriminator(batch["volume"], xrays).float()
        fake = self.discriminator(generated, xrays).float()
        losses = {"real": (real - 1).square().mean(), "fake": fake.square().mean()}
        scores = {"score_real": real.mean().detach(), "score_fake": fake.mean().detach()}
        total = self.adversarial_weight * (losses["real"] + losses["fake"])
        return {"total": total, **{key: value.detach() for key, value in losses.items()}, **scores}

    def _generator_loss(self, batch: Batch) -> Losses:
        generated, truth = self._generate(batch), batch["volume"]
        # With detached weights the gradient passes through the discriminator and leaves none in it.
        frozen = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        score = functional_call(self.discriminator, frozen, (generated, xrays_of(batch))).float()
        losses = {
            "adversarial": (score - 1).square().mean(),
            "mse": nn.functional.mse_loss(to_unit(generated), to_unit(truth)),
            "projection": projection_distance(to_unit(generated), to_unit(truth)).mean(),
        }
        total = (
            self.adversarial_weight * losses["adversarial"]
            + self.mse_weight * losses["mse"]
            + self.projection_weight * losses["projection"]
        )
        return {"total": total, **{key: value.detach() for key, value in losses.items()}}

    def _generate(self, batch: Batch) -> Tensor:
        """The generator's volume, its dropout (where it has one) drawn from each sample's seed: one per step."""
        xrays = xrays_of(batch)
        z = seeded_perturbation(self.generator, batch["seed"], batch["volume"].device, _DROPOUT)
        return (self.generator(xrays) if z is None else self.generator(xrays, z)).float()

    def parts(self, batch: Batch) -> dict[str, tuple[nn.Module, Callable[[], Any]]]:
        xrays, volume = xrays_of(batch), batch["volume"]
        return {
            "generator": (self.generator, lambda: self.generator(xrays)),
            "discriminator": (self.discriminator, lambda: self.discriminator(volume, xrays)),
        }

    def reconstruct(self, xrays: Xrays, *, generator: torch.Generator | None = None) -> Volume:
        """One pass without dropout, clamped to [-1, 1]. Nothing is drawn from ``generator``, of random numbers."""
        self.check_xrays(xrays)
        return self.generator(xrays).float().clamp(-1.0, 1.0)
