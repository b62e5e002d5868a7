import pytest
import torch
from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteScheduler
from tests.diffusion.samplers import peers
from tests.diffusion.samplers.draws import noises

from diffux2ct.diffusion.process import DiffusionProcess
from diffux2ct.diffusion.samplers.heun import Heun
from diffux2ct.diffusion.samplers.sampling import sample


@pytest.mark.parametrize("schedule", peers.SCHEDULES)
@pytest.mark.parametrize("kind", ["epsilon", "v"])  # theirs has no x0
@pytest.mark.parametrize("steps", [1, 2, 7, 20])
def test_equals_diffusers(schedule, kind, steps):
    process = DiffusionProcess(schedule=schedule, prediction_type=kind).double()
    scheduler = HeunDiscreteScheduler(**peers.settings(schedule, kind), clip_sample=True, clip_sample_range=1.0)
    scheduler.set_timesteps(steps)
    # Theirs works on x / sqrt(alphas_cumprod), which is up to 20,291 times as large: that needs sigmas in float64.
    a = process.alphas_cumprod[scheduler.timesteps.long()]
    sigmas = torch.cat([((1 - a) / a).sqrt(), torch.zeros(1)])
    torch.testing.assert_close(scheduler.sigmas.double(), sigmas, rtol=1e-4, atol=0)
    scheduler.sigmas = sigmas
    start = noises(7)().double()
    theirs = peers.diffusers_sample(scheduler, start / process.alphas_cumprod[-1].sqrt())
    ours = sample(peers.network, process, Heun(steps), start, noises(0))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 5])
def test_the_network_runs_as_often_as_is_said(steps):
    runs = []
    sample(lambda x, t: runs.append(1) or x, DiffusionProcess(), Heun(steps), noises(0)(), noises(0))
    assert len(runs) == Heun().num_evaluations(steps)
