import pytest
import torch
from torch import nn

from diffux2ct import build
from diffux2ct.errors import UserError
from diffux2ct.reconstructors.regression import RegressionReconstructor


class Backproject(nn.Module):
    """The plainest network there is: the mean of both X-rays, expanded; one learned scale."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, xrays):
        return self.scale * (xrays["frontal"][:, :, :, None, :] + xrays["lateral"][:, :, :, :, None]) / 2


def batch(size: int = 8, num: int = 2):
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.rand(num, 1, *shape, generator=generator) * 2 - 1  # noqa: E731
    return {
        "volume": draw(size, size, size),
        "frontal": draw(size, size),
        "lateral": draw(size, size),
        "seed": torch.arange(num),
    }


def test_losses_are_the_distances_that_they_are_named_after():
    data, network = batch(), Backproject()
    xrays = {view: data[view] for view in ("frontal", "lateral")}
    difference = network(xrays) - data["volume"]
    l1 = RegressionReconstructor(network).objectives()[0].loss(data)
    torch.testing.assert_close(l1["total"], difference.abs().mean())
    l2 = RegressionReconstructor(network, norm="l2", projection_weight=3).objectives()[0].loss(data)
    planes = [difference.mean(axis).abs().mean() for axis in (2, 3, 4)]
    torch.testing.assert_close(l2["projection"], sum(planes) / 3)
    torch.testing.assert_close(l2["total"], difference.square().mean() + sum(planes))


def test_reconstruction_is_clamped_and_takes_no_settings():
    network = Backproject()
    network.scale.data.fill_(5.0)
    data = batch()
    xrays = {view: data[view] for view in ("frontal", "lateral")}
    volume = RegressionReconstructor(network).reconstruct(xrays)
    assert (volume.min(), volume.max()) == (-1, 1)
    assert RegressionReconstructor.settings() == set()
    with pytest.raises(UserError, match="norm=l3"):
        RegressionReconstructor(network, norm="l3")


def test_a_sample_s_loss_does_not_depend_on_its_place_in_the_batch(compose):
    model = build.build_reconstructor(compose("model=icm_reg")).train()
    data = batch(size=16)
    loss = model.objectives()[0].loss
    together = loss(data)["total"]
    alone = [loss({key: value[i : i + 1] for key, value in data.items()})["total"] for i in range(2)]
    torch.testing.assert_close(together, sum(alone) / 2, rtol=1e-5, atol=1e-6)
    other = loss(data | {"seed": torch.tensor([7, 8])})["total"]
    assert (other - together).abs() > 1e-7  # the z of Eq. 5 is drawn from the seed
