"""Regression as a reconstructor: one pass from X-rays to CT (ICM-Reg, X-CTRSNet-like, and anybody's network)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from diffux2ct.arguments import check_choice
from diffux2ct.diffusion.projection_loss import projection_distance
from diffux2ct.reconstructors.base import Batch, Losses, Objective, Reconstructor, seeded_perturbation, xrays_of
from diffux2ct.types import Volume, Xrays

_PERTURBATION = 3  # salt of the draw of Eq. 5's z, as in the diffusion model
_DISTANCES = {"l1": nn.functional.l1_loss, "l2": nn.functional.mse_loss}


class RegressionReconstructor(Reconstructor):
    """Any network ``network(xrays) -> volume``, trained on the distance to the true CT.

    A network with ``sample_perturbation`` is also given the z of Eq. 5 while training, a draw per sample.

    ``norm``: ``l1`` (ICM-Reg, X-CTRSNet) or ``l2``. ``projection_weight``: weight of the L1 distance of the three
    mean projections (paper Eq. 9); 0 leaves it out, as the paper does for its regressors.
    """

    def __init__(self, network: nn.Module, norm: str = "l1", projection_weight: float | int = 0.0) -> None:
        super().__init__()
        check_choice("model.norm", norm, _DISTANCES)
        self.network = network
        self.size = getattr(network, "size", None)
        self.norm = norm
        self.projection_weight = float(projection_weight)

    def objectives(self) -> tuple[Objective, ...]:
        return (Objective("regression", list(self.parameters()), self._loss),)

    def _loss(self, batch: Batch) -> Losses:
        truth = batch["volume"]
        z = seeded_perturbation(self.network, batch["seed"], truth.device, _PERTURBATION)
        prediction = (self.network(xrays_of(batch)) if z is None else self.network(xrays_of(batch), z)).float()
        distance = _DISTANCES[self.norm](prediction, truth)
        if self.projection_weight == 0:
            return {"total": distance, self.norm: distance.detach()}
        projection = projection_distance(prediction, truth).mean()
        total = distance + self.projection_weight * projection
        return {"total": total, self.norm: distance.detach(), "projection": projection.detach()}

    def parts(self, batch: Batch) -> dict[str, tuple[nn.Module, Callable[[], Any]]]:
        xrays = xrays_of(batch)
        return {"network": (self.network, lambda: self.network(xrays))}

    def reconstruct(self, xrays: Xrays, *, generator: torch.Generator | None = None) -> Volume:
        """One pass, clamped to [-1, 1]. Nothing is drawn from ``generator``."""
        self.check_xrays(xrays)
        return self.network(xrays).float().clamp(-1.0, 1.0)
