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


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize(
    ("kind", "weight"),
    [
        ("epsilon", lambda snr: min(snr, 5) / snr),
        ("v", lambda snr: min(snr, 5) / (snr + 1)),
        ("x0", lambda snr: min(snr, 5)),
    ],
)
def test_min_snr_weights_are_those_of_the_paper(kind, weight, norm):
    process, steps = DiffusionProcess(num_train_timesteps=100, prediction_type=kind), [2, 90]
    x_0, noise, output = draw(0), draw(1), draw(2)
    t = torch.tensor(steps)
    x_t = process.add_noise(x_0, noise, t)
    loss = DiffusionLoss(norm, projection_weight=0, min_snr_gamma=5)(process, output, x_t, x_0, noise, t)["simple"]
    error = (output - process.target(x_0, noise, t)).double()
    expected = 0.0
    for i, step in enumerate(steps):  # on either side of gamma
        a = float(process.alphas_cumprod[step])
        snr = a / (1 - a)
        assert (snr > 5) == (step == 2)
        w = weight(snr)
        expected += w * error[i].square().mean() / 2 if norm == "l2" else w**0.5 * error[i].abs().mean() / 2
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_min_snr_weights_make_the_prediction_types_equal(norm):
    """One estimate of x_0 has one loss, whatever the network's output is."""
    x_0, noise, estimate, t = draw(0), draw(1), draw(2), torch.tensor([3, 70])
    losses = []
    for kind in ("epsilon", "v", "x0"):
        process = DiffusionProcess(num_train_timesteps=100, prediction_type=kind)
        x_t = process.add_noise(x_0, noise, t)
        a = process.alphas_cumprod[t].view(-1, 1, 1, 1, 1)
        output = process.target(estimate, (x_t - a.sqrt() * estimate) / (1 - a).sqrt(), t)
        loss = DiffusionLoss(norm, projection_weight=0, min_snr_gamma=5)
        losses.append(loss(process, output, x_t, x_0, noise, t)["total"])
    torch.testing.assert_close(losses[1:], losses[:1] * 2, rtol=1e-3, atol=0)


def test_few_timesteps_without_weight_at_the_first_sampled_are_refused():
    loss = DiffusionLoss(min_snr_gamma=5)
    loss.check_fits(DiffusionProcess(prediction_type="v", zero_terminal_snr=True))
    loss.check_fits(DiffusionProcess(prediction_type="v", timesteps=10))
    with pytest.raises(UserError, match="min_snr_gamma=5: gives no weight to the last of diffusion.timesteps"):
        loss.check_fits(DiffusionProcess(prediction_type="v", zero_terminal_snr=True, timesteps=10))


def test_wrong_settings_are_named():
    for gamma in (0, -1.0, float("nan")):
        with pytest.raises(UserError, match=r"loss\.min_snr_gamma"):
            DiffusionLoss(min_snr_gamma=gamma)
    with pytest.raises(UserError, match=r"loss\.norm"):
        DiffusionLoss("huber")
    with pytest.raises(UserError, match=r"projection_mode"):
        DiffusionLoss(projection_mode="x")
