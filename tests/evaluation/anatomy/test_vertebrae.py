"""Vertebrae painted as tilted drums with an arch behind, so that heights and distances are known."""

import numpy as np
import pytest
from scipy import ndimage

from diffux2ct.data.labels import LABELS, screw_label
from diffux2ct.evaluation.anatomy.vertebra_matching import level_evidence, match_bodies
from diffux2ct.evaluation.anatomy.vertebrae import measure_bodies, spacings, vertebra_errors

STEP = 2.0
SPACING = (STEP, STEP, STEP)
SHAPE = (72, 48, 36)
MIDDLE = np.array([35.0, 30.0, 71.0])
HEIGHTS = {"L2": 24.0, "L3": 26.0, "L4": 28.0}
CENTRES = {"L2": np.array([0.0, 3.0, 36.3]), "L3": np.array([1.0, 0.0, 0.4]), "L4": np.array([0.0, 4.0, -37.1])}
TILTS = {"L2": -12.0, "L3": 0.0, "L4": 17.0}  # degrees about the left-right axis


def paint(heights=HEIGHTS, centres=CENTRES, step=SPACING) -> tuple[np.ndarray, np.ndarray]:
    """HU (shell of 500, inside of 180) and labels of three vertebrae, in voxels of ``step`` (x, y, z) mm."""
    shape = tuple(round(n * STEP / s) for n, s in zip(SHAPE, reversed(step), strict=True))
    index = np.indices(shape)
    points = np.stack([index[2 - i] * step[i] for i in range(3)], -1) - MIDDLE
    hu, labels = np.full(shape, 50.0), np.zeros(shape, np.uint8)
    for name in heights:
        c, s = np.cos(np.radians(TILTS[name])), np.sin(np.radians(TILTS[name]))
        p = points - centres[name]
        u, v, w = p[..., 0], c * p[..., 1] - s * p[..., 2], s * p[..., 1] + c * p[..., 2]
        drum = np.maximum(np.hypot(u / 1.3, v) - 16, np.abs(w) - heights[name] / 2)
        arch = np.maximum.reduce([np.abs(u) - 4, np.abs(v - 30) - 16, np.abs(w + 6) - 5])
        bone = np.minimum(drum, arch)
        hu = np.where(bone < 1, np.maximum(hu, 50 + np.clip(0.5 - bone / STEP, 0, 1) * 450), hu)
        hu = np.where(drum < -3, 180.0, hu)
        labels[bone <= 0] = LABELS[name]
    return hu.astype(np.float32), labels


def angle(axis: np.ndarray, degrees: float) -> float:
    expected = np.array([0.0, np.sin(np.radians(degrees)), np.cos(np.radians(degrees))])
    return float(np.degrees(np.arccos(axis @ expected)))


def test_heights_axes_and_distances_of_drums():
    bodies = measure_bodies(paint()[1], SPACING)
    assert set(bodies) == {LABELS[name] for name in HEIGHTS}
    for name, height in HEIGHTS.items():
        body = bodies[LABELS[name]]
        assert body.height == pytest.approx(height, abs=0.8)
        assert np.linalg.norm(body.centre - MIDDLE - CENTRES[name]) < 0.8
        assert angle(body.axis, TILTS[name]) < 3.0
    found = spacings(bodies)
    assert set(found) == {(21, 22), (22, 23)}
    for pair, (a, b) in (((21, 22), ("L2", "L3")), ((22, 23), ("L3", "L4"))):
        assert found[pair] == pytest.approx(np.linalg.norm(CENTRES[a] - CENTRES[b]), abs=0.8)


def test_what_is_cut_off_a_fragment_or_no_vertebra_is_left_out():
    _, labels = paint()
    labels[:4] = LABELS["L5"]
    labels[40:43, 2:5, 2:5] = LABELS["L1"]
    labels[labels == LABELS["L4"]] = LABELS["sacrum"]
    labels[60:, :, 20] = LABELS["L2"]  # reaches the last slice
    assert set(measure_bodies(labels, SPACING)) == {LABELS["L3"]}


def test_screws_in_a_body_do_not_hollow_it():
    _, labels = paint()
    plain = measure_bodies(labels, SPACING)
    middle = np.rint((MIDDLE + CENTRES["L3"]) / STEP).astype(int)
    x, y, z = middle
    labels[z - 1 : z + 2, y - 5 : y + 20, x + 2 : x + 5] = screw_label(0)
    drilled = measure_bodies(labels, SPACING)
    assert drilled[22].height == pytest.approx(plain[22].height, abs=0.3)
    assert np.linalg.norm(drilled[22].centre - plain[22].centre) < 1.0  # half a voxel


def test_errors_are_the_change_that_was_made():
    heights = HEIGHTS | {"L3": 22.0}
    centres = CENTRES | {"L4": CENTRES["L4"] + [0.0, 0.0, -5.0]}
    truth, changed = (measure_bodies(paint(*p)[1], SPACING) for p in ((), (heights, centres)))
    errors = vertebra_errors(changed, truth)
    assert errors.heights[22] == pytest.approx(-4.0, abs=0.8)
    assert errors.heights[21] == pytest.approx(0.0, abs=0.01)
    assert errors.height_mm == pytest.approx(4 / 3, abs=0.5)
    assert errors.spacings[22, 23] == pytest.approx(5.0, abs=0.8)
    assert errors.spacing_mm == pytest.approx(2.5, abs=0.5)
    assert errors.share == 1.0
    assert set(errors.as_row()) == {"vertebra_height_mm", "vertebra_spacing_mm", "vertebra_found"}


def test_missed_vertebrae_lower_the_share():
    truth = measure_bodies(paint()[1], SPACING)
    errors = vertebra_errors({22: truth[22]}, truth)
    assert (errors.height_mm, errors.spacing_mm, errors.share) == (0.0, None, pytest.approx(1 / 3))
    assert vertebra_errors({}, truth).as_row()["vertebra_height_mm"] is None
    assert vertebra_errors(truth, {}).share is None


def test_plates_are_found_again_without_labels():
    hu, labels = paint()
    truth = measure_bodies(labels, SPACING)
    same = vertebra_errors(match_bodies(hu, hu, truth, SPACING), truth)
    assert (same.height_mm, same.spacing_mm) == (pytest.approx(0, abs=0.1), pytest.approx(0, abs=0.1))
    heights = HEIGHTS | {"L3": 22.0}
    centres = CENTRES | {"L4": CENTRES["L4"] + [0.0, 0.0, -5.0]}
    moved, _ = paint(heights, centres)
    errors = vertebra_errors(match_bodies(moved, hu, truth, SPACING), truth)
    assert errors.share == 1.0
    assert errors.heights[22] == pytest.approx(-4.0, abs=0.8)
    assert errors.heights[21] == pytest.approx(0.0, abs=0.1)
    assert errors.spacings[22, 23] == pytest.approx(5.0, abs=0.8)


def test_where_nothing_correlates_nothing_is_made_up():
    hu, labels = paint()
    truth = measure_bodies(labels, SPACING)
    noise = np.random.default_rng(0).normal(50, 100, hu.shape)
    flat = np.full_like(hu, 50)
    for volume in (noise, flat):
        assert match_bodies(volume, hu, truth, SPACING) == {}
    blurred = match_bodies(ndimage.gaussian_filter(hu, 0.5), hu, truth, SPACING)
    errors = vertebra_errors(blurred, truth)
    assert errors.share == 1.0
    assert errors.height_mm is not None
    assert errors.height_mm < 0.6


def raised(mm: float, step=SPACING) -> np.ndarray:
    """HU of the three vertebrae, all moved upwards."""
    return paint(centres={name: c + np.array([0.0, 0.0, mm]) for name, c in CENTRES.items()}, step=step)[0]


@pytest.mark.parametrize("mm", [-7.0, 7.0])
def test_a_spine_that_is_moved_within_reach_is_found_there(mm):
    hu, labels = paint()
    truth = measure_bodies(labels, SPACING)
    found = match_bodies(raised(mm), hu, truth, SPACING)
    assert set(found) == set(truth)
    for value, body in found.items():
        # Along the body's own axis, which leans by up to 17 degrees.
        assert (body.centre - truth[value].centre)[2] == pytest.approx(mm, abs=0.9)
        assert body.height == pytest.approx(truth[value].height, abs=0.9)


@pytest.mark.parametrize("mm", [-9.0, 9.0])
def test_a_spine_that_is_moved_past_reach_is_not_found(mm):
    hu, labels = paint()
    assert match_bodies(raised(mm), hu, measure_bodies(labels, SPACING), SPACING) == {}


@pytest.mark.parametrize("mm", [0.75, -1.25])
def test_moves_are_found_between_the_steps_of_the_search(mm):
    hu, labels = paint()
    upright = {22: measure_bodies(labels, SPACING)[22]}
    smooth = ndimage.gaussian_filter(hu, 1.5)  # so that voxels can be moved by less than one
    moved = ndimage.shift(smooth, (mm / STEP, 0, 0), order=3, mode="nearest")
    move = (match_bodies(moved, smooth, upright, SPACING)[22].centre - upright[22].centre)[2]
    assert move == pytest.approx(mm, abs=0.1)


@pytest.mark.parametrize("step", [(1.5, 3.0, 2.0), (3.0, 2.0, 1.5)])
def test_plates_are_found_in_voxels_that_are_no_cubes(step):
    hu, labels = paint(step=step)
    truth = measure_bodies(labels, step)
    heights = HEIGHTS | {"L3": 22.0}
    centres = CENTRES | {"L4": CENTRES["L4"] + [0.0, 0.0, -5.0]}
    errors = vertebra_errors(match_bodies(paint(heights, centres, step)[0], hu, truth, step), truth)
    assert errors.share == 1.0
    assert errors.heights[22] == pytest.approx(-4.0, abs=0.9)
    assert errors.heights[21] == pytest.approx(0.0, abs=0.1)
    assert errors.spacings[22, 23] == pytest.approx(5.0, abs=0.9)


@pytest.mark.parametrize(("noise", "least", "most", "share"), [(160, 0.65, 0.89, 1), (500, 0.25, 0.5, 0)])
def test_a_plate_is_found_where_it_correlates_by_more_than_half(noise, least, most, share):
    hu, labels = paint()
    truth = measure_bodies(labels, SPACING)
    noisy = hu + noise * np.random.default_rng(3).standard_normal(hu.shape)
    for body in truth.values():
        for side in (-0.5, 0.5):
            x, y, z = np.rint((body.centre + side * body.height * body.axis) / STEP).astype(int)
            around = (slice(z - 4, z + 5), slice(y - 3, y + 4), slice(x - 3, x + 4))
            assert least < np.corrcoef(hu[around].ravel(), noisy[around].ravel())[0, 1] < most
    assert vertebra_errors(match_bodies(noisy, hu, truth, SPACING), truth).share == share


def alike(mm: float) -> tuple[np.ndarray, np.ndarray]:
    """Three vertebrae of one shape, 36 mm apart, moved upwards."""
    centres = {name: np.array([0.0, 0.0, z + mm]) for name, z in zip(HEIGHTS, (36.0, 0.0, -36.0), strict=True)}
    return paint(dict.fromkeys(HEIGHTS, 24.0), centres)


@pytest.mark.parametrize("mm", [-30.0, 30.0, 36.0])
def test_a_spine_a_whole_level_off_is_not_matched_with_the_neighbours(mm, monkeypatch):
    monkeypatch.setitem(TILTS, "L2", 0.0)
    monkeypatch.setitem(TILTS, "L4", 0.0)
    hu, labels = alike(0.0)
    truth = measure_bodies(labels, SPACING)
    assert len(match_bodies(alike(6.0)[0], hu, truth, SPACING)) == 3
    off = alike(mm)[0]
    assert level_evidence(off, hu, truth, SPACING) > 0.2
    assert level_evidence(hu, hu, truth, SPACING) < 0.01  # neighbours fit as well, but no better
    assert match_bodies(off, hu, truth, SPACING) == {}


def test_a_vertebra_at_the_edge_of_the_volume_does_not_speak_against_its_spine():
    """Its window sticks out, so that it can be compared farther off only."""
    hu, labels = (whole[:63] for whole in paint())
    truth = measure_bodies(labels, SPACING)
    assert len(truth) == 3
    assert len(match_bodies(hu, hu, truth, SPACING)) == 3
    assert level_evidence(hu, hu, truth, SPACING) < 0.01
