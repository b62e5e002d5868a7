import io
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.diffusion.samplers import peers
from tests.diffusion.samplers.draws import noises

from diffux2ct.diffusion.consistency import Consistency
from diffux2ct.diffusion.process import DiffusionProcess
from diffux2ct.diffusion.samplers import sampling
from diffux2ct.diffusion.samplers.ddim import Ddim
from diffux2ct.diffusion.samplers.ddpm import Ddpm
from diffux2ct.diffusion.samplers.dpm_solver import DpmSolver
from diffux2ct.diffusion.samplers.heun import Heun
from diffux2ct.diffusion.samplers.sampling import (
    Sampler,
    Step,
    changed_settings,
    inference_timesteps,
    sample,
    sampling_record,
)
from diffux2ct.errors import UserError

GOLDEN = Path(__file__).parents[2] / "goldens" / "samplers.json"
EVERY = [Ddpm, Ddim, DpmSolver, Heun]
SAMPLERS = {"ddpm 1000": Ddpm(), "ddpm 10": Ddpm(10), "ddim 50": Ddim(), "ddim 10 eta 1": Ddim(10, eta=1)}


class Guess(Sampler):
    """Takes the estimate of x_0 at once, with a setting of its own."""

    def __init__(self, num_inference_steps: int = 2, temperature: float = 1.0) -> None:
        super().__init__(num_inference_steps)
        self.temperature = temperature

    def step(self, now):
        """x_0, and scaled noise."""
        return now.x_0 + self.temperature * now.draw_noise()


def test_timesteps_start_at_the_end_and_cover_the_range():
    assert inference_timesteps(range(1000)) == list(range(999, -1, -1))
    assert inference_timesteps(range(1000), 4) == [999, 749, 499, 249]
    assert inference_timesteps(range(1000), 1) == [999]
    with pytest.raises(UserError, match="num_inference_steps=0"):
        inference_timesteps(range(1000), 0)
    with pytest.raises(UserError, match="num_inference_steps=11: must lie between 1 and diffusion.num_train_timesteps"):
        inference_timesteps(range(10), 11)


def test_only_trained_timesteps_are_visited():
    trained = [99, 499, 899, 999]
    assert inference_timesteps(trained) == [999, 899, 499, 99]
    assert inference_timesteps(trained, 2) == [999, 499]
    with pytest.raises(
        UserError, match="num_inference_steps=5: must lie between 1 and 4, as diffusion.timesteps alone"
    ):
        inference_timesteps(trained, 5)


@pytest.mark.parametrize("sampler", EVERY)
@pytest.mark.parametrize("kind", ["epsilon", "v", "x0"])
@pytest.mark.parametrize("steps", [5, 50])
def test_an_oracle_network_leads_to_its_volume(sampler, kind, steps):
    # The network outputs at every step what agrees with x_0; every sampler must then arrive there.
    process = DiffusionProcess(prediction_type=kind)
    x_0 = torch.rand(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(3)) * 1.8 - 0.9

    def oracle(x_t, t):
        a = process.alphas_cumprod[t]
        return process.target(x_0, (x_t - a.sqrt() * x_0) / (1 - a).sqrt(), t)

    draw = noises(0)
    out = sample(oracle, process, sampler(steps), draw(), draw)
    torch.testing.assert_close(out, x_0, rtol=0, atol=2e-3)


@pytest.mark.parametrize("sampler", EVERY)
@pytest.mark.parametrize("kind", ["v", "x0"])
@pytest.mark.parametrize("steps", [1, 3, 20])
def test_volumes_are_finite_from_pure_noise(sampler, kind, steps):
    process = DiffusionProcess(num_train_timesteps=20, zero_terminal_snr=True, prediction_type=kind)
    assert process.alphas_cumprod[-1] == 0
    out = sample(peers.network, process, sampler(steps), noises(0)(), noises(1))
    assert torch.isfinite(out).all()
    assert out.std() > 0.01


def test_steps_from_pure_noise_are_those_of_ddim():
    """At a_t = 0, and in a multistep solver's step after it, too: an estimate of x_0 at pure noise corrects nothing."""
    a_t, a_prev, a_next = torch.tensor([0.0, 0.3, 0.6])
    x_t, x_0, other = (noises(seed)() for seed in (0, 1, 2))
    first = Step(x_t, x_0.clamp(-1, 1), a_t, a_prev, noises(3), lambda x: other.clamp(-1, 1))
    for sampler in (DpmSolver(), Heun()):
        torch.testing.assert_close(sampler.step(first), Ddim().step(first))
    second = replace(first, a_t=a_prev, a_prev=a_next, earlier=(a_t, other))
    torch.testing.assert_close(DpmSolver().step(second), Ddim().step(second))
    third = replace(second, earlier=(torch.tensor(0.1), other))
    assert not torch.allclose(DpmSolver().step(third), Ddim().step(third), atol=0.01)
    assert not torch.allclose(Heun().step(second), Ddim().step(second), atol=0.01)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("kind", ["epsilon", "v"])
def test_whole_loops_keep_their_golden_sums(request, kind, name):
    draw = noises(7)
    x = sample(peers.network, DiffusionProcess(prediction_type=kind), SAMPLERS[name], draw(), draw).double()
    found = [x.sum().item(), x.abs().mean().item()]
    goldens = json.loads(GOLDEN.read_text())
    if request.config.getoption("--update-goldens"):
        GOLDEN.write_text(json.dumps(goldens | {f"{kind} {name}": found}, indent=1) + "\n")
    else:
        assert found == pytest.approx(goldens[f"{kind} {name}"], rel=1e-4)


@pytest.mark.parametrize("sampler", EVERY)
def test_consistency_corrects_each_estimate_and_has_the_last_word(sampler):
    estimates = []

    def correct(x_0):
        estimates.append(x_0)
        return torch.full_like(x_0, 0.1 * len(estimates))

    process = DiffusionProcess(num_train_timesteps=20, prediction_type="v")
    out = sample(peers.network, process, sampler(3), noises(0)(), noises(1), correct)
    assert len(estimates) == sampler(3).num_evaluations(3)
    assert max(float(x_0.abs().max()) for x_0 in estimates) <= 1
    torch.testing.assert_close(out, torch.full_like(out, 0.1 * len(estimates)))


def test_none_takes_every_timestep_of_the_training():
    visited = []

    def network(x_t, t):
        visited.append(int(t[0]))
        return x_t

    sample(network, DiffusionProcess(num_train_timesteps=7), Ddpm(), noises(0)(), noises(0))
    assert visited == [6, 5, 4, 3, 2, 1, 0]


def test_the_last_step_of_any_sampler_gets_no_noise():
    draws = []

    def draw():
        draws.append(1)
        return torch.full((1, 1, 8, 8, 8), 0.25)

    out = sample(lambda x, t: 0 * x, DiffusionProcess(prediction_type="x0"), Guess(3), noises(0)(), draw)
    assert len(draws) == 2
    assert out.abs().max() == 0


def test_samplers_are_recorded_by_name_and_settings():
    settings = {"sampler": Ddim(5, eta=1), "perturbation": "zero"}
    ddim = {"name": "ddim", "num_inference_steps": 5, "eta": 1.0, "perturbation": "zero"}
    assert sampling_record(settings) == ddim
    assert sampling_record(settings | {"consistency": Consistency(3)}) == ddim | {"consistency": 3}
    heun = {"name": "heun", "num_inference_steps": 5, "num_evaluations": 9}
    assert sampling_record({"sampler": Heun(5)}) == heun
    assert sampling_record({"sampler": DpmSolver(5)}) == {"name": "dpm_solver", "num_inference_steps": 5}
    assert changed_settings(Ddim(5)) == {} == changed_settings(Ddpm(9))
    assert changed_settings(Ddim(5, eta=0.5)) == {"eta": 0.5}
    assert changed_settings(Guess(temperature=2.0)) == {"temperature": 2.0}


@pytest.mark.parametrize(("patience", "shown"), [(0.0, True), (60.0, False)])
def test_a_long_sampling_has_a_progress_bar_on_a_terminal(monkeypatch, patience, shown):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sampling, "_PATIENCE", patience)
    monkeypatch.setattr(sys, "stderr", Terminal())
    sample(lambda x_t, t: x_t, DiffusionProcess(num_train_timesteps=7), Ddpm(), noises(0)(), noises(0))
    assert ("sampling" in sys.stderr.getvalue()) == shown


@pytest.mark.parametrize("steps", [0, -1])
def test_a_wrong_number_of_steps_is_refused(steps):
    with pytest.raises(UserError, match=f"sampler.num_inference_steps={steps}"):
        Ddpm(steps)
