import pytest
import torch

from diffux2ct.diffusion.losses import DiffusionLoss, projection_distance
from diffux2ct.diffusion.process import DiffusionProcess
from diffux2ct.errors import UserError


def draw(seed: int, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 1, 6, 7, 8, generator=torch.Generator().manual_seed(seed))


def test_projection_distance_equals_numpy_by_hand():
    a, b = draw(0), draw(1)
    x, y = a[:, 0].numpy(), b[:, 0].numpy()
    expected = [sum(abs(x[i].mean(k) - y[i].mean(k)).mean() for k in range(3)) / 3 for i in range(2)]
    torch.testing.assert_close(projection_distance(a, b), torch.tensor(expected), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("norm", "power"), [("l1", 1), ("l2", 2)])
def test_total_is_simple_plus_lambda_times_projection(norm, power):
    process, t = DiffusionProcess(num_train_timesteps=100), torch.tensor([3, 40])
    x_0, noise, output = draw(0), draw(1), draw(2)
    x_t = process.add_noise(x_0, noise, t)
    losses = DiffusionLoss(norm)(process, output, x_t, x_0, noise, t)
    torch.testing.assert_close(losses["simple"], (output - noise).abs().pow(power).mean())
    projection = projection_distance(process.predict_x0(output, x_t, t), x_0).mean()
    torch.testing.assert_close(losses["projection"], projection)
    torch.testing.assert_close(losses["total"], losses["simple"] + projection / 100)  # lambda = 1/T


def test_snr_weight_tames_the_magnified_error_of_the_last_step():
    process, t = DiffusionProcess(), torch.tensor([999, 999])
    x_0, noise = draw(0), draw(1)
    x_t = process.add_noise(x_0, noise, t)
    args = (process, torch.zeros_like(noise), x_t, x_0, noise, t)
    raw = DiffusionLoss(projection_mode="paper")(*args)["projection"]
    tamed = DiffusionLoss(projection_mode="snr")(*args)["projection"]
    a = process.alphas_cumprod[999]
    torch.testing.assert_close(tamed, raw * torch.sqrt(a / (1 - a)))
    assert raw / tamed > 100


def test_no_projection_leaves_the_simple_loss_alone():
    process, t = DiffusionProcess(), torch.tensor([1, 2])
    losses = DiffusionLoss(projection_weight=0)(process, draw(0), draw(1), draw(2), draw(3), t)
    assert set(losses) == {"total", "simple"}
    torch.testing.assert_close(losses["total"], (draw(0) - draw(3)).abs().mean())


def test_wrong_settings_are_named():
    with pytest.raises(UserError, match=r"loss\.norm"):
        DiffusionLoss("huber")
    with pytest.raises(UserError, match=r"projection_mode"):
        DiffusionLoss(projection_mode="x")
