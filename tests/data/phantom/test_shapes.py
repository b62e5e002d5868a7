"""The phantom's tools: partial volume, distances, curves, and noise that is correlated like a CT's."""

import numpy as np
import pytest

from diffux2ct.data.phantom.canvas import Canvas
from diffux2ct.data.phantom.shapes import ball, capsule, ellipsoid, spline, super_ellipse, tube
from diffux2ct.data.phantom.textures import add_scan_noise, lattice_noise


@pytest.mark.parametrize("size", [32, 64])
def test_partial_volume_keeps_the_volume_of_a_ball(size: int) -> None:
    canvas = Canvas(size, 128.0, centre=(3.0, -2.0, 7.0))
    box = canvas.around((3.0, -2.0, 7.0), 40)
    assert box is not None
    canvas.fill(box, ball(box.x, box.y, box.z, (3.0, -2.0, 7.0), 30.0), 0.0, label=9)
    volume = ((canvas.hu + 1000) / 1000).sum() * canvas.voxel**3
    assert volume == pytest.approx(4 / 3 * np.pi * 30**3, rel=0.02)
    assert (canvas.labels == 9).sum() * canvas.voxel**3 == pytest.approx(volume, rel=0.03)


def test_a_shell_thinner_than_a_voxel_keeps_its_share() -> None:
    canvas = Canvas(32, 128.0)
    box = canvas.whole()
    canvas.hu[:] = 0
    canvas.fill_bone(box, ball(box.x, box.y, box.z, (0, 0, 0), 40.0), 1.0, 1000.0, 0.0, 1)
    shell = canvas.hu.sum() / 1000 * canvas.voxel**3
    assert shell == pytest.approx(4 / 3 * np.pi * (40**3 - 39**3), rel=0.05)


def test_distances_are_zero_on_surfaces_and_negative_inside() -> None:
    x = np.array([0.0, 10.0, 20.0, 25.0], np.float32)
    np.testing.assert_allclose(ball(x, 0 * x, 0 * x, (0, 0, 0), 20), [-20, -10, 0, 5], atol=1e-4)
    np.testing.assert_allclose(ellipsoid(x, 0 * x, 0 * x, (0, 0, 0), (20, 5, 5))[2:], [0, 5], atol=0.6)
    d = capsule(x, 0 * x, 0 * x, (-5.0, 0.0, 0.0), (15.0, 0.0, 0.0), 5.0)
    np.testing.assert_allclose(d, [-5, -5, 0, 5], atol=1e-4)
    # On the diagonal |x/a|^p + |y/a|^p = 1 is met at a / 2^(1/p), whatever the power.
    for power in (2, 2.4, 3.0, 4.0):
        at = np.array([20 / 2 ** (1 / power)], np.float32)
        np.testing.assert_allclose(super_ellipse(at, at, 20.0, 20.0, power), [0], atol=0.02)
    assert super_ellipse(x[:1], x[:1], 20.0, 10.0, 2.4) < -9


def test_a_coarse_field_is_interpolated_to_the_canvas() -> None:
    canvas = Canvas(64, 128.0)

    def field(x, y, z):
        return [2 * x - y + 0.5 * z + 3, ball(x, y, z, (0, 0, 0), 40)]

    box = canvas.whole()
    plane, sphere = canvas.smooth(box, field)
    exact = field(box.x, box.y, box.z)
    np.testing.assert_allclose(plane, exact[0], atol=1e-3)
    near = np.abs(exact[1]) < 10
    assert np.abs(sphere - exact[1])[near].max() < 0.4


def test_splines_and_tubes_follow_their_knots() -> None:
    knots = np.array([(0.0, 0, -30), (10, 0, 0), (0, 10, 30)])
    points = spline(knots, 4)
    for knot in knots:
        assert np.linalg.norm(points - knot, axis=1).min() < 1e-6
    assert 0.5 < np.linalg.norm(np.diff(points, axis=0), axis=1).max() < 6
    canvas = Canvas(64, 128.0)
    part, distance = tube(canvas, points, np.full(len(points), 5.0))
    inside = canvas.coverage(distance).sum() * canvas.voxel**3
    length = np.linalg.norm(np.diff(points, axis=0), axis=1).sum()
    assert inside == pytest.approx(np.pi * 25 * length + 4 / 3 * np.pi * 125, rel=0.06)
    assert part.shape == distance.shape
    box, d = tube(canvas, points + 500, 5.0)
    assert box.empty
    assert d.size == 0
    before = canvas.hu.copy()
    canvas.fill(box, d, 100, 7)
    assert np.array_equal(canvas.hu, before)
    assert not canvas.labels.any()


def test_smooth_noise_is_the_same_field_at_any_size_and_place() -> None:
    fine, coarse = Canvas(64, 64.0), Canvas(16, 64.0)
    a = lattice_noise(np.random.default_rng(1), fine, (9.0, 9.0, 9.0))
    b = lattice_noise(np.random.default_rng(1), coarse, (9.0, 9.0, 9.0))
    np.testing.assert_allclose(a.reshape(16, 4, 16, 4, 16, 4).mean((1, 3, 5)), b, atol=0.5)
    assert np.abs(a.reshape(16, 4, 16, 4, 16, 4).mean((1, 3, 5)) - b).mean() < 0.08
    moved = lattice_noise(np.random.default_rng(1), Canvas(64, 64.0, (8.0, 0.0, -16.0)), (9.0, 9.0, 9.0))
    np.testing.assert_allclose(moved[16:, :, :-8], a[:-16, :, 8:], atol=1e-3)


def test_scan_noise_has_the_asked_strength_and_is_correlated() -> None:
    canvas = Canvas(64, 128.0)
    canvas.hu[:] = 0
    add_scan_noise(canvas, np.random.default_rng(0), 12.0, np.linspace(1, 1, 64))
    noise = canvas.hu[4:-4, 4:-4, 4:-4]
    assert noise.std() == pytest.approx(12.0, rel=0.05)
    lag = [
        float(np.corrcoef(noise[..., k:].ravel(), noise[..., : noise.shape[2] - k].ravel())[0, 1]) for k in (1, 2, 3)
    ]
    assert 0.4 < lag[0] < 0.7
    assert abs(lag[1]) < 0.2
    assert -0.2 < lag[2] < 0.0
    coarse = Canvas(32, 128.0)
    coarse.hu[:] = 0
    add_scan_noise(coarse, np.random.default_rng(0), 12.0, np.ones(32))
    blocks = noise.reshape(28, 2, 28, 2, 28, 2).mean((1, 3, 5))
    assert coarse.hu.std() == pytest.approx(float(blocks.std()), rel=0.15)
