"""The training objective of the diffusion model (paper Eq. 7 and 10)."""

from torch import Tensor, nn

from diffux2ct.diffusion.process import DiffusionProcess
from diffux2ct.diffusion.projection_loss import projection_distance
from diffux2ct.errors import UserError
from diffux2ct.types import Volume


class DiffusionLoss(nn.Module):
    """L_total = L_simple + lambda L_proj (paper Eq. 10).

    ``norm``: ``l1`` (the paper) or ``l2`` between the network's output and its target. ``projection_weight``:
    lambda; None is the paper's 1/T. ``projection_mode``: ``paper`` takes L_proj as it is; ``snr`` weights each
    sample by min(1, sqrt(snr_t)), since at high noise Eq. 8 magnifies errors without bound.
    """

    def __init__(
        self, norm: str = "l1", projection_weight: float | int | None = None, projection_mode: str = "paper"
    ) -> None:
        super().__init__()
        if norm not in ("l1", "l2"):
            raise UserError(f"loss.norm={norm}: choose l1 or l2")
        if projection_mode not in ("paper", "snr"):
            raise UserError(f"loss.projection_mode={projection_mode}: choose paper or snr")
        self.norm = norm
        self.projection_weight = projection_weight
        self.projection_mode = projection_mode

    def forward(
        self, process: DiffusionProcess, output: Volume, x_t: Volume, x_0: Volume, noise: Volume, t: Tensor
    ) -> dict[str, Tensor]:
        """Scalars ``total``, ``simple`` and ``projection``, all in fp32 (Eq. 8 divides by numbers near 0)."""
        output = output.float()
        difference = output - process.target(x_0, noise, t)
        simple = difference.abs().mean() if self.norm == "l1" else difference.square().mean()
        weight = self.projection_weight
        weight = 1 / process.num_train_timesteps if weight is None else weight
        if weight == 0:
            return {"total": simple, "simple": simple.detach()}
        distance = projection_distance(process.predict_x0(output, x_t, t), x_0)
        if self.projection_mode == "snr":
            distance = distance * process.snr_weight(t)
        projection = distance.mean()
        return {"total": simple + weight * projection, "simple": simple.detach(), "projection": projection.detach()}
