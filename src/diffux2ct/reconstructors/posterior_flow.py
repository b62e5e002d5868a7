"""The posterior of a CT given its X-rays: its mean by regression, and samples by a flow that starts at the mean.

After PMRF (Ohayon et al. 2024, arXiv 2410.00418): the mean squared error has its least at the posterior mean, and a
rectified flow from that mean (with a little noise) to the true CTs gives samples that stay close to it.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffux2ct.arguments import check_choice
from diffux2ct.diffusion.consistency import Correction
from diffux2ct.errors import UserError
from diffux2ct.models.conditioning import Conditioning, Conditions
from diffux2ct.models.plus.patches import PatchUNet3d
from diffux2ct.reconstructors.base import Batch, Losses, Objective, Reconstructor, seeded_normal, xrays_of
from diffux2ct.seeding import seeded_generator
from diffux2ct.types import Volume, Xrays

_NOISE, _TIME = 1, 2  # salts: the two draws of one sample are independent
OUTPUTS = ("mean", "sample", "ensemble")
_DISTANCES = {"l1": nn.functional.l1_loss, "l2": nn.functional.mse_loss}
_TIME_SCALE = 1000.0  # the U-Net's sinusoids are made for steps of a thousand


class PosteriorFlow(Reconstructor):
    """Posterior mean and posterior samples from one checkpoint.

    The mean is ``mean(0, conditions)``, trained on the squared error (``norm="l1"`` would learn the median). The flow
    starts at x_0 = mean + ``sigma`` noise and moves along dx/dt = v(x_t, t; mean, conditions) to the CT x_1 at t = 1;
    it is trained on |velocity - (x_1 - x_0)|^2 at x_t = (1 - t) x_0 + t x_1, t uniform. The flow is trained when the
    mean is finished: the mean during the first ``flow_after`` of all steps, the flow during the rest, on the mean's
    averaged weights.

    conditioning, flow_conditioning: 3D features of the X-rays for each of the two networks.
    size: voxels per side.
    num_inference_steps, num_samples: the defaults of ``reconstruct``.
    """

    flow_trained: Tensor  # bool: the flow has had a step

    def __init__(
        self,
        conditioning: Conditioning,
        mean: PatchUNet3d,
        flow_conditioning: Conditioning,
        flow: PatchUNet3d,
        size: int,
        sigma: float | int = 0.06,
        flow_after: float | int = 0.5,
        num_inference_steps: int = 2,
        num_samples: int = 8,
        norm: str = "l2",
    ) -> None:
        super().__init__()
        check_choice("model.norm", norm, _DISTANCES)
        if not 0 < flow_after < 1:
            raise UserError(f"model.flow_after={flow_after}: a share of all steps, between 0 and 1")
        for unet in (mean, flow):
            if unet.in_channels != 2:
                raise UserError(f"unet.in_channels={unet.in_channels}: must be 2, for x_t and the mean")
        if not sigma > 0:
            raise UserError(f"model.sigma={sigma}: must be positive")
        self.mean_conditioning, self.mean = conditioning, mean
        self.flow_conditioning, self.flow = flow_conditioning, flow
        self.views = conditioning.takes
        self.size, self.sigma, self.flow_after, self.norm = size, float(sigma), float(flow_after), norm
        self.num_inference_steps = _count("num_inference_steps", num_inference_steps)
        self.num_samples = _count("num_samples", num_samples)
        self.register_buffer("flow_trained", torch.tensor(False))

    def objectives(self) -> tuple[Objective, ...]:
        """The mean, then the flow; each has its own parameters and its own part of the steps."""
        mean = [*self.mean_conditioning.parameters(), *self.mean.parameters()]
        flow = [*self.flow_conditioning.parameters(), *self.flow.parameters()]
        return (
            Objective("mean", mean, self._mean_loss, (0.0, self.flow_after)),
            Objective("flow", flow, self._flow_loss, (self.flow_after, 1.0)),
        )

    def _mean_loss(self, batch: Batch) -> Losses:
        prediction = self._mean(xrays_of(batch))
        error = _DISTANCES[self.norm](prediction, batch["volume"])
        return {"total": error, self.norm: error.detach()}

    def _flow_loss(self, batch: Batch) -> Losses:
        x_1, seeds = batch["volume"], batch["seed"]
        self.flow_trained.fill_(True)
        with torch.no_grad(), _evaluating(self.mean_conditioning, self.mean):
            mean = self._mean(xrays_of(batch))
        x_0 = mean + self.sigma * seeded_normal(x_1.shape[1:], seeds, x_1.device, _NOISE)
        times = [float(torch.rand((), generator=seeded_generator("cpu", seed, _TIME))) for seed in seeds.tolist()]
        t = torch.tensor(times, device=x_1.device)
        x_t = torch.lerp(x_0, x_1, t.view(-1, 1, 1, 1, 1))
        velocity = self._velocity(x_t, t, mean, self.flow_conditioning(xrays_of(batch)))
        error = nn.functional.mse_loss(velocity, x_1 - x_0)
        return {"total": error, "velocity": error.detach()}

    def _mean(self, xrays: Xrays) -> Volume:
        """The mean, not clamped, in fp32."""
        conditions = self.mean_conditioning(xrays)
        batch = len(conditions[0])
        nothing = conditions[0].new_zeros(batch, 2, *conditions[0].shape[2:])
        return self.mean(nothing, torch.zeros(batch, device=nothing.device), conditions).float()

    def _velocity(self, x_t: Volume, t: Float[Tensor, " b"], mean: Volume, conditions: Conditions) -> Volume:
        """The flow at x_t, a network's output around the best linear guess, as in EDM (Karras et al. 2022, Eq. 7).

        With d = x_t - mean = (1 - t) sigma noise + t residual, and residuals as large as the noise, the best linear
        guess of the velocity is (2 t - 1) d / b, b = (1 - t)^2 + t^2, and what it leaves has a deviation of
        sigma / sqrt(b). Without this the network first has to learn to tell the noise from the mean, whose range is
        thirty times as wide, and that takes it most of a short run.
        """
        times = t.view(-1, 1, 1, 1, 1)
        b = (1 - times).square() + times.square()
        d = x_t - mean
        inputs = torch.cat((d / (self.sigma * b.sqrt()), mean), dim=1)
        output = self.flow(inputs, t * _TIME_SCALE, conditions).float()
        return (2 * times - 1) / b * d + self.sigma / b.sqrt() * output

    def parts(self, batch: Batch) -> dict[str, tuple[nn.Module, Callable[[], Any]]]:
        """The networks, each once: a reconstruction runs all but the flow once, and the flow once a step."""
        xrays, volume = xrays_of(batch), batch["volume"]
        leaves = {
            name: [h.detach().requires_grad_() for h in part(xrays)]
            for name, part in (("mean", self.mean_conditioning), ("flow", self.flow_conditioning))
        }
        t = torch.zeros(len(volume))
        return {
            "mean_conditioning": (self.mean_conditioning, lambda: self.mean_conditioning(xrays)),
            "mean": (self.mean, lambda: self.mean(volume.repeat(1, 2, 1, 1, 1), t, leaves["mean"])),
            "flow_conditioning": (self.flow_conditioning, lambda: self.flow_conditioning(xrays)),
            "flow": (self.flow, lambda: self._velocity(volume, t, volume, leaves["flow"])),
        }

    def complete(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """``settings`` of `reconstruct` without None, and without those that the output does not use."""
        settings = super().complete(settings)
        output = settings.get("output") or self._default_output()
        complete = {"output": output, "consistency": settings.get("consistency")}
        if output != "mean":
            complete["num_inference_steps"] = settings.get("num_inference_steps") or self.num_inference_steps
            complete["blend"] = settings.get("blend")
        if output == "ensemble":
            complete["num_samples"] = settings.get("num_samples") or self.num_samples
        return {key: value for key, value in complete.items() if value is not None}

    def reconstruct(
        self,
        xrays: Xrays,
        *,
        generator: torch.Generator | None = None,
        output: str | None = None,
        num_inference_steps: int | None = None,
        num_samples: int | None = None,
        blend: float | int | None = None,
        consistency: Correction | None = None,
    ) -> Volume:
        """A CT [B, 1, D, H, W] in [-1, 1].

        output: ``mean``, the posterior mean, nothing drawn; ``sample``, one draw of the posterior in
        ``num_inference_steps`` Euler steps; ``ensemble``, the mean of ``num_samples`` draws. None: a sample, or the
        mean while the flow is untrained. blend: 0 gives the mean, 1 (None) the sample or ensemble, linear between.
        consistency: of the mean with the X-rays, and of each estimate of the CT along the flow.
        """
        self.check_xrays(xrays)
        output = output or self._default_output()
        if output not in OUTPUTS:
            raise UserError(f"output={output}: choose {', '.join(OUTPUTS)}")
        mean = self._mean(xrays)
        finish = _clamped if consistency is None else consistency
        if output == "mean":
            return finish(mean)
        self._check_flow(f"output={output}", "use output=mean, or train on")
        steps = _count("num_inference_steps", num_inference_steps or self.num_inference_steps)
        count = 1 if output == "sample" else _count("num_samples", num_samples or self.num_samples)
        volume = self.samples(xrays, mean, count, steps, generator, consistency).mean(0)
        share = 1.0 if blend is None else float(blend)
        if not 0 <= share <= 1:
            raise UserError(f"blend={blend}: must lie between 0 (the mean) and 1")
        return volume if share == 1 else torch.lerp(finish(mean), volume, share)

    @torch.no_grad()
    def samples(
        self,
        xrays: Xrays,
        mean: Volume,
        count: int,
        steps: int,
        generator: torch.Generator | None = None,
        consistency: Correction | None = None,
    ) -> Float[Tensor, "n b 1 d h w"]:
        """``count`` draws [count, B, 1, D, H, W] in [-1, 1]; the features of the X-rays are computed once."""
        conditions = self.flow_conditioning(xrays)
        source = mean.device if generator is None else generator.device
        draws = []
        for _ in range(count):
            # Drawn on the generator's device, so that a seed gives one volume on every device.
            noise = torch.randn(mean.shape, generator=generator, device=source).to(mean.device)
            x = mean + self.sigma * noise
            for k in range(steps):
                t = torch.full((len(x),), k / steps, device=x.device)
                velocity = self._velocity(x, t, mean, conditions)
                if consistency is not None:
                    left = 1 - k / steps
                    velocity = (consistency(x + left * velocity) - x) / left
                x = x + velocity / steps
            draws.append(_clamped(x))
        return torch.stack(draws)

    def draws(
        self,
        xrays: Xrays,
        count: int,
        *,
        generator: torch.Generator | None = None,
        num_inference_steps: int | None = None,
        **_: Any,
    ) -> Float[Tensor, "k b 1 d h w"]:
        """``count`` draws of the posterior, see `samples`; other settings of `reconstruct` have no effect on them."""
        self._check_flow("uncertainty", "train on")
        self.check_xrays(xrays)
        steps = _count("num_inference_steps", num_inference_steps or self.num_inference_steps)
        return self.samples(xrays, self._mean(xrays), count, steps, generator)

    def _check_flow(self, wanted: str, remedy: str) -> None:
        if not self._samples_are_trained():
            raise UserError(
                f"{wanted}: the flow of this model is not trained yet (it is from {self.flow_after:.0%} of "
                f"trainer.max_steps on); {remedy}"
            )

    def _default_output(self) -> str:
        return "sample" if self._samples_are_trained() else "mean"

    def _samples_are_trained(self) -> bool:
        # On the meta device, where costs are counted, there are no values: a sample is counted.
        return self.flow_trained.is_meta or bool(self.flow_trained)


def _clamped(volume: Volume) -> Volume:
    return volume.clamp(-1.0, 1.0)


def _count(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{name}={value}: must be a whole number of at least 1")
    return value


@contextmanager
def _evaluating(*modules: nn.Module) -> Iterator[None]:
    """Dropout off inside, as when the finished mean is used."""
    training = [module.training for module in modules]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for module, was in zip(modules, training, strict=True):
            module.train(was)
