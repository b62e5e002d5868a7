"""The forward process, and x_0 from a network's output (paper Eq. 1, 7, 8)."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffux2ct.arguments import check_choice
from diffux2ct.diffusion.schedule import make_alphas_cumprod, trained_timesteps
from diffux2ct.errors import UserError
from diffux2ct.types import Volume

PREDICTION_TYPES = ("epsilon", "v", "x0")


class DiffusionProcess(nn.Module):
    """Schedule and parameterisation of a diffusion over volumes in [-1, 1].

    ``prediction_type``: what the network outputs. ``epsilon`` is the paper's; ``v`` (Salimans and Ho 2022) keeps
    the estimate of x_0 stable at every t; ``x0`` predicts the volume itself. ``eq8``: ``corrected`` divides out
    sqrt(1 - alphas_cumprod); ``as_printed`` uses the paper's printed (1 - alphas_cumprod), with which a perfect
    network does not recover x_0 (docs/method.md, errata). ``timesteps``: those that are trained, and that sampling
    may visit: a number, a sequence, or None for all (`trained_timesteps`).
    """

    alphas_cumprod: Tensor

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        schedule: str = "linear",
        beta_start: float = 1e-4,
        beta_end: float = 2e-2,
        zero_terminal_snr: bool = False,
        prediction_type: str = "epsilon",
        eq8: str = "corrected",
        timesteps: Any = None,
    ) -> None:
        super().__init__()
        check_choice("diffusion.prediction_type", prediction_type, PREDICTION_TYPES)
        if prediction_type == "epsilon" and zero_terminal_snr:
            raise UserError(
                "diffusion.zero_terminal_snr=true: at the last step the input is pure noise, from which epsilon gives "
                "no volume; use prediction_type=v or x0"
            )
        check_choice("diffusion.eq8", eq8, ("corrected", "as_printed"))
        self.num_train_timesteps = num_train_timesteps
        self.prediction_type = prediction_type
        self.eq8 = eq8
        alphas_cumprod = make_alphas_cumprod(num_train_timesteps, schedule, beta_start, beta_end, zero_terminal_snr)
        self.register_buffer("alphas_cumprod", alphas_cumprod.float(), persistent=False)
        self.zero_terminal_snr = zero_terminal_snr
        self.timesteps = trained_timesteps(num_train_timesteps, timesteps)

    def _roots(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(alphas_cumprod_t) and sqrt(1 - alphas_cumprod_t), shaped to multiply volumes."""
        a = self.alphas_cumprod[t].view(-1, 1, 1, 1, 1)
        return a.sqrt(), (1 - a).sqrt()

    def add_noise(self, x_0: Volume, noise: Volume, t: Int[Tensor, " b"]) -> Volume:
        """x_t = sqrt(alphas_cumprod_t) x_0 + sqrt(1 - alphas_cumprod_t) noise, ``t`` in 0 .. T-1."""
        signal, sigma = self._roots(t)
        return signal * x_0 + sigma * noise

    def target(self, x_0: Volume, noise: Volume, t: Int[Tensor, " b"]) -> Volume:
        """The network's target for this (x_0, noise, t)."""
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "x0":
            return x_0
        signal, sigma = self._roots(t)
        return signal * noise - sigma * x_0

    def predict_x0(self, output: Volume, x_t: Volume, t: Int[Tensor, " b"]) -> Volume:
        """The network's estimate of x_0, unclipped (paper Eq. 8 for epsilon)."""
        if self.prediction_type == "x0":
            return output
        signal, sigma = self._roots(t)
        if self.prediction_type == "v":
            return signal * x_t - sigma * output
        if self.eq8 == "as_printed":
            sigma = sigma**2
        return (x_t - sigma * output) / signal

    def snr_weight(self, t: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        """min(1, sqrt(alphas_cumprod / (1 - alphas_cumprod))): undoes how Eq. 8 magnifies errors at high noise."""
        a = self.alphas_cumprod[t]
        return torch.sqrt(a / (1 - a)).clamp(max=1.0)

    def min_snr_weight(self, t: Int[Tensor, " b"], gamma: float | int) -> Float[Tensor, " b"]:
        """Weights of the output's squared error that give x_0's the weight min(SNR, gamma) (Hang et al. 2023).

        The squared error of epsilon is SNR times that of x_0, the one of v SNR + 1 times.
        """
        a = self.alphas_cumprod[t]
        snr = a / (1 - a)
        times = {"epsilon": snr, "v": snr + 1, "x0": torch.ones_like(snr)}[self.prediction_type]
        return snr.clamp(max=gamma) / times
