import math

import pytest
import torch

from diffux2ct.diffusion.process import DiffusionProcess
from diffux2ct.diffusion.schedule import make_alphas_cumprod
from diffux2ct.errors import UserError

STEPS = torch.tensor([0, 100, 500, 998])


@pytest.fixture
def volumes():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(4, 1, 4, 5, 6, generator=generator) for _ in range(2)]


def test_linear_schedule_has_ddpm_s_known_values():
    a = make_alphas_cumprod(1000)
    torch.testing.assert_close(a[0].item(), 1 - 1e-4, rtol=0, atol=1e-12)
    torch.testing.assert_close(a[-1].item(), 4.04e-5, rtol=0.01, atol=0)  # docs/method.md
    # An independent product in plain Python.
    product = math.prod(1 - (1e-4 + i * (2e-2 - 1e-4) / 999) for i in range(501))
    torch.testing.assert_close(a[500].item(), product, rtol=1e-9, atol=0)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_zero_terminal_snr_ends_at_zero_and_keeps_the_start(schedule):
    plain, rescaled = (make_alphas_cumprod(1000, schedule, zero_terminal_snr=flag) for flag in (False, True))
    assert rescaled[-1] == 0
    torch.testing.assert_close(rescaled[0], plain[0])
    assert (rescaled[1:] < rescaled[:-1]).all()


@pytest.mark.parametrize("kind", ["epsilon", "v", "x0"])
def test_a_perfect_network_recovers_x0(kind, volumes):
    x_0, noise = volumes
    process = DiffusionProcess(prediction_type=kind)
    x_t = process.add_noise(x_0, noise, STEPS)
    recovered = process.predict_x0(process.target(x_0, noise, STEPS), x_t, STEPS)
    torch.testing.assert_close(recovered, x_0, rtol=0, atol=3e-4)  # 1 / sqrt(abar_998) = 155 magnifies rounding


def test_eq8_as_printed_leaves_the_known_share_of_noise(volumes):
    x_0, noise = volumes
    process = DiffusionProcess(eq8="as_printed")
    t = torch.full((4,), 215)
    residue = process.predict_x0(noise, process.add_noise(x_0, noise, t), t) - x_0
    # g = s sqrt((1 - s) / (1 + s)) with s = sqrt(1 - abar); its largest value is 0.3003, near t = 215 of 1000.
    s = math.sqrt(1 - process.alphas_cumprod[215].item())
    torch.testing.assert_close(residue, s * math.sqrt((1 - s) / (1 + s)) * noise, rtol=0, atol=1e-5)
    torch.testing.assert_close(s * math.sqrt((1 - s) / (1 + s)), 0.3003, rtol=0, atol=1e-3)


def test_the_timesteps_that_are_trained_are_all_or_some_that_end_at_the_last():
    assert list(DiffusionProcess().timesteps) == list(range(1000))
    assert DiffusionProcess(timesteps=10).timesteps == [99, 199, 299, 399, 499, 599, 699, 799, 899, 999]
    assert DiffusionProcess(timesteps=3).timesteps == [332, 666, 999]
    assert DiffusionProcess(timesteps=[199, 699, 999]).timesteps == [199, 699, 999]


@pytest.mark.parametrize("kind", ["v", "x0"])
def test_pure_noise_still_predicts_x0_at_zero_terminal_snr(kind, volumes):
    x_0, noise = volumes
    process = DiffusionProcess(prediction_type=kind, zero_terminal_snr=True)
    t = torch.full((4,), 999)
    x_t = process.add_noise(x_0, noise, t)
    torch.testing.assert_close(x_t, noise)
    torch.testing.assert_close(process.predict_x0(process.target(x_0, noise, t), x_t, t), x_0)


def test_added_noise_keeps_unit_variance():
    generator = torch.Generator().manual_seed(1)
    x_0, noise = (torch.randn(4, 1, 16, 16, 16, generator=generator) for _ in range(2))
    x_t = DiffusionProcess().add_noise(x_0, noise, STEPS)
    torch.testing.assert_close(x_t.flatten(1).std(1), torch.ones(4), rtol=0, atol=0.05)


@pytest.mark.parametrize(
    "wrong", [{"prediction_type": "eps"}, {"prediction_type": "epsilon", "zero_terminal_snr": True}, {"eq8": "other"}]
)
def test_wrong_settings_are_named(wrong):
    with pytest.raises(UserError, match=next(k for k in reversed(wrong))):
        DiffusionProcess(**wrong)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"schedule": "square"}, "diffusion.schedule=square: choose linear or cosine"),
        ({"num_train_timesteps": 0}, "num_train_timesteps=0: must be at least 1"),
        ({"timesteps": 0}, "diffusion.timesteps=0: must lie between 1 and diffusion.num_train_timesteps=1000"),
        ({"timesteps": 1001}, "diffusion.timesteps=1001: must lie between 1 and"),
        (
            {"timesteps": [9, 3, 999]},
            r"diffusion.timesteps=\[9, 3, 999\]: .* rising timesteps that end at 999, where sampling starts, or null",
        ),
        ({"timesteps": [9, 998]}, "end at 999"),
        ({"timesteps": [-1, 999]}, "end at 999"),
        ({"timesteps": [0.5, 999]}, "end at 999"),
        ({"timesteps": []}, "end at 999"),
        ({"beta_start": -0.1}, "beta_start=-0.1"),
        ({"beta_end": 1.0}, "beta_end=1.0"),
    ],
)
def test_settings_that_give_no_schedule_are_refused(settings, words):
    with pytest.raises(UserError, match=words):
        DiffusionProcess(**settings)
