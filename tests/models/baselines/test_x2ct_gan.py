import pytest
import torch
from torch import nn

from diffux2ct.errors import UserError
from diffux2ct.models.baselines.x2ct_gan import PatchDiscriminator3d, X2ctGenerator

VIEWS = ("frontal", "lateral")
SMALL = {"stem": 8, "growth": 4, "dense_layers": (2, 2, 2), "channels": (4, 8, 8, 16)}

# Counted in the official code (github.com/kylekma/X2CT), which also holds a last convolution and a 7-wide one per view
# for outputs that its released recipe gives no loss.
OFFICIAL_GENERATOR = 61_740_467
OFFICIAL_DISCRIMINATOR = 11_055_169
UNUSED_HEAD = 6_928 + 5_489


def count(module) -> int:
    return sum(p.numel() for p in module.parameters())


def xrays(size: int, num: int = 1, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {view: torch.rand(num, 1, size, size, generator=generator) * 2 - 1 for view in VIEWS}


def lively(network: nn.Module) -> nn.Module:
    """Weights that let signals through: N(0, 0.02) is meant for the paper's widths."""
    torch.manual_seed(0)
    for p in network.parameters():
        if p.dim() > 1:
            nn.init.kaiming_normal_(p)
    return network.requires_grad_(False)


def test_parameters_are_the_official_ones():
    with torch.device("meta"):
        generator, discriminator = X2ctGenerator(128), PatchDiscriminator3d()
        volume = generator(views := {view: torch.empty(1, 1, 128, 128) for view in VIEWS})
        assert volume.shape == (1, 1, 128, 128, 128)
        assert discriminator(volume, views).shape == (1, 1, 19, 19, 19)
    assert count(generator) == OFFICIAL_GENERATOR - 2 * UNUSED_HEAD
    assert count(discriminator) == OFFICIAL_DISCRIMINATOR
    assert count(generator) == pytest.approx(61.74e6, rel=0.01)
    assert count(discriminator) == pytest.approx(11.06e6, rel=0.01)


def test_parameters_of_each_part_are_the_official_ones():
    with torch.device("meta"):
        generator = X2ctGenerator(128)
    for view in VIEWS:
        branch = generator.branches[view]
        parts = (branch.encoder, branch.code_link, branch.plane_links, branch.merges, branch.ups)
        assert [count(part) for part in parts] == [13_569_984, 11_550_720, 704_512, 1_189_120, 2_357_728]
    assert count(generator.trunk) + count(generator.out) == 2_971_505


@pytest.mark.parametrize(("size", "patches"), [(8, 4), (16, 5), (32, 7)])
def test_smaller_sizes_drop_levels(size, patches):
    generator, discriminator = X2ctGenerator(size, **SMALL), PatchDiscriminator3d((4, 4, 4, 4))
    data = xrays(size, 2)
    volume = generator(data)
    assert volume.shape == (2, 1, size, size, size)
    assert volume.min() >= -1
    assert discriminator(volume, data).shape == (2, 1, patches, patches, patches)


@pytest.mark.parametrize(("size", "reason"), [(48, "power of two"), (4, "power of two"), (64, "lists of sizes have 3")])
def test_a_size_that_does_not_halve_to_four_is_refused(size, reason):
    with pytest.raises(UserError, match=rf"dataset\.size={size}: .*{reason}"):
        X2ctGenerator(size, **SMALL)


def test_weights_start_as_narrow_gaussians():
    torch.manual_seed(0)
    for network in (X2ctGenerator(32, **SMALL), PatchDiscriminator3d((8, 8, 8, 8))):
        weights = torch.cat([p.flatten() for p in network.parameters() if p.dim() > 1])
        assert weights.std().item() == pytest.approx(0.02, rel=0.03)
        assert all((p == 0).all() for p in network.parameters() if p.dim() == 1)


@pytest.mark.parametrize(("view", "row", "column"), [("frontal", 6, 26), ("lateral", 6, 20)])
def test_a_voxel_depends_most_on_the_pixels_that_it_projects_to(view, row, column):
    """(z, y, x) = (6, 20, 26): on the frontal image at (z, x), on the lateral one at (z, y)."""
    generator = lively(X2ctGenerator(32, **SMALL))
    generator.out.bias.fill_(100.0)  # no voxel under the ReLU
    slope = torch.zeros(32, 32)
    for seed in range(4):
        data = xrays(32, seed=seed)
        data[view].requires_grad_()
        generator(data)[0, 0, 6, 20, 26].backward()
        slope += data[view].grad[0, 0].abs()
    around = lambda r, c: slope[r - 2 : r + 3, c - 2 : c + 3].mean()  # noqa: E731
    for elsewhere in ((column, row), (31 - row, column), (row, 31 - column)):
        assert around(row, column) > 1.3 * around(*elsewhere)


def test_branches_see_the_volume_in_their_own_axes_and_return_it():
    from diffux2ct.models.baselines.x2ct_gan import _TO_BRANCH, _TO_VOLUME

    volume = torch.empty(1, 2, 3, 4, 5)  # z, y, x
    assert volume.permute(_TO_BRANCH["frontal"]).shape == (1, 2, 4, 3, 5)  # beam y; image z, x
    assert volume.permute(_TO_BRANCH["lateral"]).shape == (1, 2, 5, 3, 4)  # beam x; image z, y
    for view in VIEWS:
        assert volume.permute(_TO_BRANCH[view]).permute(_TO_VOLUME[view]).shape == volume.shape


def test_each_sample_has_its_own_statistics_at_test_too():
    generator = lively(X2ctGenerator(16, **SMALL))
    data = xrays(16, 2)
    together = generator.train()(data)
    assert together.std() > 0.1
    torch.testing.assert_close(generator.eval()(data), together)
    alone = torch.cat([generator({view: x[i : i + 1] for view, x in data.items()}) for i in range(2)])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-4)


def test_dropout_keeps_half_and_the_mean():
    generator = lively(X2ctGenerator(32, **SMALL))
    draw = generator.sample_perturbation(2, torch.Generator().manual_seed(0))
    assert draw.shape == (2, 2, 16 * 4**3)
    assert draw.unique().tolist() == [0.0, 2.0]
    assert draw.mean().item() == pytest.approx(1.0, abs=0.05)
    assert torch.equal(draw, generator.sample_perturbation(2, torch.Generator().manual_seed(0)))
    data = xrays(32, 2)
    assert (generator(data, draw) - generator(data)).abs().max() > 0.01
    assert X2ctGenerator(32, **SMALL, dropout=0.0).sample_perturbation(2) is None


@pytest.mark.parametrize("size", [8, 16, 32])
def test_the_discriminator_s_gradients_are_sound_in_bf16(size):
    """Unpadded, the convolutions whose input is smaller than their kernel got garbage from oneDNN."""
    torch.manual_seed(0)
    discriminator, data, volume = (PatchDiscriminator3d((8, 8, 8, 8)), xrays(size, 2), torch.rand(2, 1, *[size] * 3))
    gradients = []
    for enabled in (False, True):
        discriminator.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            discriminator(volume, data).float().square().mean().backward()
        gradients.append([p.grad.norm().item() for p in discriminator.parameters() if p.dim() > 1])
    assert gradients[1] == pytest.approx(gradients[0], rel=0.05)


def test_the_discriminator_looks_at_the_volume_and_at_both_xrays():
    discriminator = lively(PatchDiscriminator3d((4, 8, 8, 8)))
    data, volume = xrays(16), torch.rand(1, 1, 16, 16, 16)
    base = discriminator(volume, data)
    assert (discriminator(volume + 0.5 * volume**2, data) - base).abs().max() > 1e-3
    for view in VIEWS:
        other = data | {view: xrays(16, seed=1)[view]}
        assert (discriminator(volume, other) - base).abs().max() > 1e-3
