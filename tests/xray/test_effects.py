import math
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from diffux2ct.errors import UserError
from diffux2ct.xray.effects import XrayEffects, XrayRandomization, add_scatter, equalize_locally, sharpen

CONFIG = Path(__file__).parents[2] / "configs" / "dataset" / "randomize" / "exposure.yaml"


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def torso(size=48):
    """Line integrals of a water ellipse with a denser rod in air, [1, 1, size, size], up to about 6."""
    line = (torch.arange(size) - (size - 1) / 2) / (size / 2)
    v, u = torch.meshgrid(line, line, indexing="ij")
    depth = (1 - (u / 0.7) ** 2 - (v / 0.9) ** 2).clamp(min=0).sqrt()
    return (4.5 * depth + 1.5 * ((u.abs() < 0.1) & (v.abs() < 0.6)))[None, None]


def test_no_effects_change_nothing():
    assert torch.equal(XrayEffects()(torso()), torso())


@pytest.mark.parametrize(("photons", "electronic"), [(1e5, 0.0), (1e5, 60.0), (2e6, 0.0)])
def test_noise_has_the_variance_of_counting(photons, electronic):
    """Of -log(n / N0), n Poisson with mean m = N0 exp(-p): 1 / m + (electronic / m)^2."""
    p = torch.full((1, 1, 200, 200), 3.0)
    noisy = XrayEffects(photons=photons, electronic_noise=electronic)(p, seeded())
    arriving = photons * math.exp(-3)
    assert float(noisy.mean()) == pytest.approx(3, abs=2e-3)
    assert float(noisy.var()) == pytest.approx(1 / arriving + (electronic / arriving) ** 2, rel=0.04)


def test_noise_is_fixed_by_its_generator_and_leaves_the_global_one_alone():
    effects = XrayEffects(photons=1e4, electronic_noise=5.0)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one, same, other = (effects(torso(), seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ValueError, match="needs a generator"):
        effects(torso())


def test_where_no_photon_comes_through_the_image_stays_finite():
    image = XrayEffects(photons=100.0)(torch.full((1, 1, 8, 8), 50.0), seeded())
    torch.testing.assert_close(image, torch.full((1, 1, 8, 8), math.log(100)))


@pytest.mark.parametrize("ratio", [0.3, 2.0])
@pytest.mark.parametrize("width", [0.05, 0.5])
def test_scatter_has_the_asked_ratio_over_the_shadow(ratio, width):
    primary = torch.exp(-torch.cat((torso(), torso() / 3)))
    scatter = add_scatter(primary, ratio, width) - primary
    assert scatter.min() >= 0
    shadow = 1 - primary
    got = (shadow * scatter).sum(dim=(1, 2, 3)) / (shadow * primary).sum(dim=(1, 2, 3))
    torch.testing.assert_close(got, torch.full((2,), ratio))
    # It is wide: smoother than what it comes from.
    assert scatter[0, 0].diff(dim=1).abs().max() < 0.5 * primary[0, 0].diff(dim=1).abs().max()


def test_scatter_over_a_uniform_slab_is_known():
    slab = torch.full((1, 1, 20, 30), 2.0)
    expected = torch.full_like(slab, 2.0 - math.log(1 + 0.7))
    torch.testing.assert_close(XrayEffects(scatter_to_primary=0.7)(slab), expected)


def test_nothing_in_the_beam_scatters_nothing():
    empty = torch.zeros(1, 1, 16, 16)
    assert torch.equal(XrayEffects(scatter_to_primary=3.0)(empty), empty)


def test_scatter_takes_contrast_from_the_spine():
    seen = XrayEffects(scatter_to_primary=1.0)(torso())[0, 0]
    contrast = float(seen[24, 24] - seen[24, 30])
    clean = float(torso()[0, 0, 24, 24] - torso()[0, 0, 24, 30])
    assert 0.2 * clean < contrast < 0.8 * clean


def test_metal_saturates_and_the_rest_does_not():
    image = torso()
    image[..., 10:14, 10:14] += 30.0
    seen = XrayEffects(saturation=8.0)(image)
    torch.testing.assert_close(seen, image.clamp(max=8.0), rtol=1e-4, atol=1e-5)


def test_contrast_scales_and_gamma_keeps_the_ends():
    torch.testing.assert_close(XrayEffects(contrast=0.8)(torso()), torso() * 0.8)
    bent = XrayEffects(gamma=2.0)(torso())
    peak = torso().max()
    torch.testing.assert_close(bent, torso() ** 2 / peak)
    torch.testing.assert_close(bent.max(), peak)
    assert bent.min() == 0


def test_equalizing_without_a_limit_gives_every_grey_level_its_rank():
    """One tile, no limit: the histogram becomes flat. Of r^2, r in [0, 1], level k ends at the rank sqrt(k / 256)."""
    ramp = torch.linspace(0, 1, 64 * 64).view(1, 1, 64, 64)
    seen = equalize_locally(2.0 + 3.0 * ramp**2, clip_limit=1.0, tile=1.0)
    rank = ((256 * ramp**2).floor() + 1).clamp(max=256).div(256).sqrt()
    # The darkest level, 1/16 of all pixels, stays the least value. The end of a level may fall into the next one.
    expected = 2.0 + 3.0 * (rank - 1 / 16) / (1 - 1 / 16)
    torch.testing.assert_close(seen[..., 16:, :], expected[..., 16:, :], rtol=0, atol=3.0 * 0.009)
    assert (seen - expected).abs().mean() < 3.0 * 0.002


def test_equalizing_lifts_local_contrast_and_keeps_the_range():
    image, low_contrast = torso(64), torso(64)
    bump = 0.05 * torch.sin(torch.arange(64.0))
    low_contrast[..., 20:44, 14:24] += bump[20:44, None]
    plain = (low_contrast - image)[..., 20:44, 14:24].std()
    lifted = (equalize_locally(low_contrast, 0.03) - equalize_locally(image, 0.03))[..., 20:44, 14:24].std()
    unlimited = (equalize_locally(low_contrast, 0.5) - equalize_locally(image, 0.5))[..., 20:44, 14:24].std()
    assert 1.2 * plain < lifted < 0.8 * unlimited
    seen = XrayEffects(clahe=0.03)(torch.cat((image, image / 2)))
    torch.testing.assert_close(seen[1], seen[0] / 2)
    for ends in (torch.amin, torch.amax):
        torch.testing.assert_close(ends(seen[:1]), ends(image))
    flat = torch.full((1, 1, 16, 16), 2.0)
    assert torch.equal(XrayEffects(clahe=0.01)(flat), flat)


@pytest.mark.parametrize("size", [16, 32, 64])
def test_the_clip_limit_counts_at_every_size(size):
    least, middle, most = (equalize_locally(torso(size), limit) - torso(size) for limit in (0.004, 0.02, 0.04))
    assert (middle - least).abs().mean() > 0.01
    assert (most - middle).abs().mean() > 0.01


def test_sharpening_overshoots_at_an_edge_by_half_of_its_detail_and_leaves_the_rest():
    step = torch.ones(1, 1, 40, 40)
    step[..., 20:] = 3.0
    seen = XrayEffects(sharpen=0.6, sharpen_width=0.05)(step)[0, 0, 20]
    torch.testing.assert_close(seen[[0, 39]], step[0, 0, 20, [0, 39]], rtol=0, atol=1e-4)
    # Half a pixel from the edge, a Gaussian of 2 pixels is Phi(-1/4) = 0.4013 of the step away from the near side.
    torch.testing.assert_close(
        seen[[19, 20]], torch.tensor([1 - 0.6 * 2 * 0.4013, 3 + 0.6 * 2 * 0.4013]), rtol=0, atol=2e-3
    )
    assert sharpen(torch.eye(8)[None, None], 5.0, 0.2).min() == 0


def test_collimation_blackens_a_border_and_nothing_else():
    seen = XrayEffects(collimation=(0.1, 0.2, 0.0, 0.5))(torch.full((1, 1, 20, 10), 2.0))[0, 0]
    expected = torch.zeros(20, 10)
    expected[2:16, :5] = 2.0
    assert torch.equal(seen, expected)


def test_processing_comes_last_and_in_order():
    """gamma, then local contrast, then edges, then the border: the collimator's black is black."""
    image = torso(32)
    steps = [{"gamma": 1.2}, {"clahe": 0.02}, {"sharpen": 1.0}, {"collimation": (0.1, 0.1, 0.2, 0.1)}]
    one_by_one = image
    for step in steps:
        one_by_one = XrayEffects(**step)(one_by_one)
    at_once = XrayEffects(**{key: value for step in steps for key, value in step.items()})(image)
    assert torch.equal(at_once, one_by_one)
    assert at_once[..., :3, :].max() == 0


def test_all_but_noise_and_clahe_has_a_gradient():
    image = torso(16).requires_grad_()
    effects = XrayEffects(scatter_to_primary=0.5, contrast=0.9, gamma=1.3, saturation=9.0, sharpen=0.1)
    effects(image).square().sum().backward()
    assert torch.isfinite(image.grad).all()
    assert (image.grad[torso(16) > 1] > 0).float().mean() > 0.9


def test_drawn_exposures_lie_in_their_ranges_and_come_as_often_as_asked():
    ranges = XrayRandomization(probability=0.75)
    generator = seeded()
    drawn = [ranges.draw(generator) for _ in range(800)]
    for name, low, high, share in (
        ("photons", 5e4, 5e6, 0.75),
        ("gamma", 0.7, 1.4, 0.75),
        ("saturation", 7.0, 9.7, 0.75),
        ("clahe", 0.004, 0.04, 0.33),
        ("sharpen", 0.3, 1.5, 0.33),
    ):
        values = [getattr(effects, name) for effects in drawn if getattr(effects, name) not in (None, 1.0, 0.0)]
        assert len(values) / len(drawn) == pytest.approx(share, abs=0.06)
        assert low <= min(values) < low + 0.05 * (high - low)
        assert high >= max(values) > high - 0.05 * (high - low)
    borders = torch.tensor([effects.collimation for effects in drawn if any(effects.collimation)])
    assert len(borders) / len(drawn) == pytest.approx(0.33, abs=0.06)
    torch.testing.assert_close(borders.mean(0), torch.full((4,), 0.1), rtol=0, atol=0.015)
    assert borders.min() >= 0
    assert borders.max() <= 0.2
    assert (borders[:, 0] - borders[:, 1]).abs().max() > 0.1  # each side by itself
    photons = sorted(effects.photons for effects in drawn if effects.photons)
    assert photons[len(photons) // 2] == pytest.approx(5e5, rel=0.3)  # the middle of the logarithm
    assert ranges.draw(seeded(3)) == ranges.draw(seeded(3)) != ranges.draw(seeded(4))


def test_no_probability_and_no_ranges_draw_nothing():
    names = [field.name for field in fields(XrayRandomization)]
    never = dict.fromkeys((name for name in names if name.endswith("probability")), 0.0)
    assert XrayRandomization(**never).draw(seeded()) == XrayEffects()
    nothing = dict.fromkeys(name for name in names if name not in never)
    assert XrayRandomization.from_dict(nothing).draw(seeded()) == XrayEffects()


def test_the_config_s_ranges_are_the_documented_defaults():
    assert XrayRandomization.from_dict(OmegaConf.to_container(OmegaConf.load(CONFIG))) == XrayRandomization()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sharpness": [0, 1]}, r"unknown key 'dataset\.randomize\.sharpness'"),
        ({"gamma": [1.4, 0.7]}, r"randomize\.gamma=\[1\.4, 0\.7\]: give \[lowest, highest\]"),
        ({"gamma": [0.0, 1.0]}, r"gamma=0\.0: must be positive"),
        ({"gamma": 1.0}, r"give \[lowest, highest\], or null"),
        ({"gamma": ["low", "high"]}, r"give \[lowest, highest\], or null"),
        ({"photons": [-5, 10]}, "must be positive"),
        ({"photons": [1e4, float("inf")]}, r"give \[lowest, highest\]"),
        ({"gamma": [float("nan"), 1.0]}, r"give \[lowest, highest\]"),
        ({"probability": 1.5}, r"probability=1\.5: must lie in \[0, 1\]"),
        ({"probability": None}, r"give \[lowest, highest\], or null"),
        ({"clahe_probability": -0.1}, r"clahe_probability=-0\.1: must lie in \[0, 1\]"),
        ({"collimation": [0.1, 0.5]}, r"collimation=\(0\.5, 0\.5, 0\.5, 0\.5\): give four fractions from 0"),
        ({"sharpen": [-1, 1]}, r"sharpen=-1\.0: must be positive"),
    ],
)
def test_impossible_ranges_are_refused_in_one_line(values, message):
    with pytest.raises(UserError, match=message) as error:
        XrayRandomization.from_dict(values)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 0])
def test_impossible_effects_are_refused_in_one_line(value):
    border = (0.1, 0.1, value, 0.1) if value else (0.5, 0.5, 0, 0)
    with pytest.raises(UserError, match="X-ray effect collimation="):
        XrayEffects(collimation=border)
    with pytest.raises(UserError, match="X-ray effect contrast=.*: must be positive"):
        XrayEffects(contrast=value)


OTHER_TYPES = """
import numpy as np
from diffux2ct.errors import UserError
from diffux2ct.xray.camera import Camera, spacing_xyz
from diffux2ct.xray.effects import XrayEffects, XrayRandomization
from diffux2ct.xray.pose import Pose, random_pose

rng, cone = np.random.default_rng(0), ("cone", 1000.0, 1500.0)
for make in (
    lambda: random_pose(rng, "small", 0), lambda: random_pose(rng, None, 0), lambda: random_pose(rng, True, 0),
    lambda: Pose(5), lambda: Pose((0.0, "1", 0.0)), lambda: Pose.from_dict({"rotation_deg": 0, "shift_mm": [0, 0, 0]}),
    lambda: Camera(*cone, 2.5, 4, (1, 1)), lambda: Camera(*cone, "4", 4, (1, 1)), lambda: Camera(*cone, 4, 4, 1.0),
    lambda: Camera("cone", "near", 1500.0, 4, 4, (1.0, 1.0)), lambda: Camera(*cone, 4, 4, (1.0, 1.0), reverse="no"),
    lambda: Camera(*cone, 4, 4, (1.0, "1")), lambda: spacing_xyz("wide"), lambda: spacing_xyz(None),
    lambda: XrayEffects(contrast="much"), lambda: XrayEffects(gamma=None), lambda: XrayEffects(photons=True),
    lambda: XrayRandomization(gamma=1.0), lambda: XrayRandomization(probability="often"),
    lambda: XrayRandomization(gamma=("low", "high")), lambda: XrayRandomization(collimation=0.1),
    lambda: XrayEffects(collimation=0.1), lambda: XrayEffects(collimation=None), lambda: XrayEffects(clahe=None),
    lambda: XrayEffects(collimation=(0, 0, 0)), lambda: XrayEffects(collimation=(0, 0, 0, "wide")),
):
    try:
        print("accepted", make())
    except UserError as error:
        print("refused", str(error).count(chr(10)))
"""


def test_values_of_another_type_are_refused_in_one_line():
    # In a process of its own: here, beartype refuses them before the code does.
    done = subprocess.run([sys.executable, "-c", OTHER_TYPES], capture_output=True, text=True, check=False)
    assert done.stdout.split("\n")[:-1] == ["refused 0"] * 26, done.stdout + done.stderr


def test_readout_noise_without_photons_is_refused():
    with pytest.raises(UserError, match="give photons too"):
        XrayEffects(electronic_noise=2.0)


@pytest.mark.gpu
def test_gpu_equals_cpu():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    effects = XrayEffects(scatter_to_primary=0.8, contrast=0.9, gamma=1.2, saturation=5.0)
    torch.testing.assert_close(effects(torso().cuda()).cpu(), effects(torso()), rtol=1e-4, atol=1e-5)
    noisy = XrayEffects(photons=1e5)(torso().cuda(), torch.Generator("cuda").manual_seed(0))
    assert float((noisy.cpu() - torso()).abs().mean()) == pytest.approx(0.02, abs=0.02)
