import pytest
import torch
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from tests.diffusion.samplers import peers
from tests.diffusion.samplers.draws import noises

from diffux2ct.diffusion.process import DiffusionProcess
from diffux2ct.diffusion.samplers.dpm_solver import DpmSolver
from diffux2ct.diffusion.samplers.sampling import sample


@pytest.mark.parametrize("schedule", peers.SCHEDULES)
@pytest.mark.parametrize("kind", peers.KINDS)
@pytest.mark.parametrize("steps", [1, 2, 7, 20])
def test_equals_diffusers(schedule, kind, steps):
    # With thresholds of 1 their dynamic thresholding clips to [-1, 1], as ours does.
    scheduler = DPMSolverMultistepScheduler(
        **peers.settings(schedule, kind),
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        final_sigmas_type="zero",
        thresholding=True,
        sample_max_value=1.0,
    )
    start = noises(7)()
    process = DiffusionProcess(schedule=schedule, prediction_type=kind)
    ours = sample(peers.network, process, DpmSolver(steps), start, noises(0))
    scheduler.set_timesteps(steps)
    torch.testing.assert_close(ours, peers.diffusers_sample(scheduler, start), rtol=0, atol=1e-5)


def test_nothing_is_left_between_two_reconstructions():
    sampler, process, start = DpmSolver(5), DiffusionProcess(prediction_type="v"), noises(0)()
    before = dict(vars(sampler))
    first = sample(peers.network, process, sampler, start, noises(0))
    sample(peers.network, process, sampler, noises(1)(), noises(0))
    torch.testing.assert_close(sample(peers.network, process, sampler, start, noises(0)), first, rtol=0, atol=0)
    assert vars(sampler) == before
