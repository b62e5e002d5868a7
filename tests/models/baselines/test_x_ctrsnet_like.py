import pytest
import torch

from diffux2ct.errors import UserError
from diffux2ct.models.baselines.x_ctrsnet_like import ChannelsToDepth, XCtrsNetLike

SMALL = {
    "plane_channels": 8,
    "encoder_channels": (8, 8, 16),
    "num_blocks": 1,
    "view_channels": (2, 2, 4),
    "volume_channels": (8, 8, 16),
}


def count(module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_parameters_of_the_paper_s_size():
    with torch.device("meta"):
        network = XCtrsNetLike(128)
    assert count(network) == 24_409_153
    parts = {name: count(part) for name, part in network.named_children()}
    assert parts["frontal"] == parts["lateral"] == 6_636_992
    assert parts["decoder"] == 5_865_121


@pytest.mark.parametrize(("view", "other_axis"), [("frontal", 4), ("lateral", 3)])
def test_a_bright_pixel_lights_its_ray_and_nothing_else(view, other_axis):
    torch.manual_seed(0)
    lift = ChannelsToDepth(view, in_channels=3, out_channels=2, num_depths=6)
    dark, lit = torch.zeros(1, 3, 8, 6), torch.zeros(1, 3, 8, 6)
    lit[0, :, 5, 2] = 1.0  # z = 5, x or y = 2
    change = (lift(lit) - lift(dark)).abs()
    assert change.shape == (1, 2, 8, 6, 6)
    ray = change.select(other_axis, 2)[:, :, 5]  # [1, 2, depths]
    assert ray.min() > 1e-4
    torch.testing.assert_close(change.sum(), ray.sum())


@pytest.mark.parametrize("view", ["frontal", "lateral"])
def test_a_channel_is_a_depth(view):
    """Channel c * num_depths + k lands on feature c, k voxels along the ray: y (frontal) or x (lateral)."""
    lift = ChannelsToDepth(view, in_channels=1, out_channels=2, num_depths=4)
    torch.nn.init.zeros_(lift.conv.weight)
    torch.nn.init.zeros_(lift.conv.bias)
    lift.conv.bias.data[1 * 4 + 3] = 1.0
    volume = lift(torch.zeros(1, 1, 4, 4))
    expected = torch.zeros(1, 2, 4, 4, 4)
    if view == "frontal":
        expected[:, 1, :, 3, :] = 1.0
    else:
        expected[:, 1, :, :, 3] = 1.0
    assert torch.equal(volume, expected)


def test_both_xrays_matter_and_neither_stands_for_the_other():
    torch.manual_seed(0)
    network = XCtrsNetLike(16, **SMALL).eval()
    xrays = {view: torch.rand(2, 1, 16, 16) for view in ("frontal", "lateral")}
    base = network(xrays)
    assert base.shape == (2, 1, 16, 16, 16)
    for view in xrays:
        assert (network(xrays | {view: torch.rand(2, 1, 16, 16)}) - base).abs().max() > 1e-3
    swapped = network({"frontal": xrays["lateral"], "lateral": xrays["frontal"]})
    assert (swapped - base).abs().max() > 1e-3
    network.train()(xrays).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


@pytest.mark.parametrize("view", ["frontal", "lateral"])
def test_a_pixel_of_the_whole_network_changes_most_along_its_ray(view):
    torch.manual_seed(0)
    network = XCtrsNetLike(32, **SMALL).eval()
    xrays = {view: torch.zeros(1, 1, 32, 32) for view in ("frontal", "lateral")}
    base = network(xrays)
    lit = xrays[view].clone()
    lit[0, 0, 20, 9] = 20.0
    change = (network(xrays | {view: lit}) - base).abs()[0, 0]
    seen = change.mean(1 if view == "frontal" else 2)  # along the rays: [z, x] or [z, y]
    z, other = divmod(int(seen.argmax()), 32)
    assert abs(z - 20) <= 2
    assert abs(other - 9) <= 2


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match=r"dataset.size=18: .* choose a multiple of 4"):
        XCtrsNetLike(18, **SMALL)
    with pytest.raises(UserError, match="3 encoder_channels, 3 view_channels and 2 volume_channels"):
        XCtrsNetLike(16, **(SMALL | {"volume_channels": (8, 8)}))
