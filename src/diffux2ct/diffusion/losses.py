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
    sample by min(1, sqrt(snr_t)), since at high noise Eq. 8 magnifies errors without bound. ``min_snr_gamma``: L_simple
    weighted by timestep, 5 in Hang et al. 2023; for l1 by the roots of their weights, which are of squared errors.
    """

    def __init__(
        self,
        norm: str = "l1",
        projection_weight: float | int | None = None,
        projection_mode: str = "paper",
        min_snr_gamma: float | int | None = None,
    ) -> None:
        super().__init__()
        if norm not in ("l1", "l2"):
            raise UserError(f"loss.norm={norm}: choose l1 or l2")
        if projection_mode not in ("paper", "snr"):
            raise UserError(f"loss.projection_mode={projection_mode}: choose paper or snr")
        if min_snr_gamma is not None and not min_snr_gamma > 0:
            raise UserError(f"loss.min_snr_gamma={min_snr_gamma}: must be positive, or null")
        self.norm = norm
        self.projection_weight = projection_weight
        self.projection_mode = projection_mode
        self.min_snr_gamma = min_snr_gamma

    def check_fits(self, process: DiffusionProcess) -> None:
        """UserError where one of few timesteps, from which sampling starts, has no weight."""
        few = len(process.timesteps) < process.num_train_timesteps
        if self.min_snr_gamma is not None and process.zero_terminal_snr and few:
            raise UserError(
                f"loss.min_snr_gamma={self.min_snr_gamma}: gives no weight to the last of diffusion.timesteps, whose "
                "SNR is 0, and sampling starts there; add diffusion.zero_terminal_snr=false"
            )

    def forward(
        self, process: DiffusionProcess, output: Volume, x_t: Volume, x_0: Volume, noise: Volume, t: Tensor
    ) -> dict[str, Tensor]:
        """Scalars ``total``, ``simple`` and ``projection``, all in fp32 (Eq. 8 divides by numbers near 0)."""
        output = output.float()
        difference = output - process.target(x_0, noise, t)
        distance = difference.abs() if self.norm == "l1" else difference.square()
        if self.min_snr_gamma is not None:
            of_sample = process.min_snr_weight(t, self.min_snr_gamma).view(-1, 1, 1, 1, 1)
            distance = distance * (of_sample.sqrt() if self.norm == "l1" else of_sample)
        simple = distance.mean()
        weight = self.projection_weight
        weight = 1 / process.num_train_timesteps if weight is None else weight
        if weight == 0:
            return {"total": simple, "simple": simple.detach()}
        distance = projection_distance(process.predict_x0(output, x_t, t), x_0)
        if self.projection_mode == "snr":
            distance = distance * process.snr_weight(t)
        projection = distance.mean()
        return {"total": simple + weight * projection, "simple": simple.detach(), "projection": projection.detach()}
