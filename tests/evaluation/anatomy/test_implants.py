"""Screws and rods painted here, so that tips and axes are known; then moved, taken away and added."""

from functools import cache

import numpy as np
import pytest
from scipy import ndimage

from diffux2ct.data.labels import rod_label, screw_label
from diffux2ct.data.phantom.make import make_phantom
from diffux2ct.evaluation.anatomy.implants import Implants, implant_scores, true_implants

STEP = 2.0
SPACING = (STEP, STEP, STEP)
SIDE = 56  # voxels: 112 mm
MIDDLE = np.full(3, (SIDE - 1) / 2 * STEP)

# Tip and head (mm from the middle, x to the Left, y to Posterior, z up) of screws at two levels on both sides.
SCREWS = [
    (np.array([side * 9.0, -22.0, level]), np.array([side * 25.0, 28.0, level + 4.0]))
    for side in (-1, 1)
    for level in (-17.3, 16.1)
]
RODS = [(SCREWS[i][1] + [0, 0, -8.0], SCREWS[i + 1][1] + [0, 0, 8.0]) for i in (0, 2)]


def capsule(shape_points: np.ndarray, a: np.ndarray, b: np.ndarray, radius: float) -> np.ndarray:
    """Distance of points to a bar's surface, mm; flat at a, so that the tip is where a is."""
    axis = (b - a) / np.linalg.norm(b - a)
    along = (shape_points - a) @ axis
    off = np.linalg.norm(shape_points - a - along[..., None] * axis, axis=-1)
    return np.maximum.reduce([off - radius, -along, along - np.linalg.norm(b - a)])


@cache
def grid() -> np.ndarray:
    z, y, x = np.indices((SIDE,) * 3) * STEP
    return np.stack((x, y, z), -1) - MIDDLE


def paint(move=lambda p: p, screws=range(4), extra=(), scale: float = 1.0):
    """HU and labels of the construct after ``move`` (of points in mm from the middle)."""
    hu = np.full((SIDE,) * 3, 60.0)
    labels = np.zeros(hu.shape, np.uint8)
    parts = [(screw_label(i), *SCREWS[i], 3.0) for i in screws]
    parts += [(rod_label(i), *rod, 2.75) for i, rod in enumerate(RODS)]
    parts += [(screw_label(20 + i), *bar, 3.0) for i, bar in enumerate(extra)]
    for value, a, b, radius in parts:
        share = np.clip(0.5 - capsule(grid(), move(np.array(a)), move(np.array(b)), radius) / STEP, 0, 1)
        hu = np.maximum(hu, 60 + share * 8000 * scale)
        labels[share >= 0.5] = value
    return np.clip(hu, -1024, 1500).astype(np.float32), labels


@cache
def truth() -> tuple[np.ndarray, Implants]:
    hu, labels = paint()
    return hu, true_implants(hu, labels, SPACING)


def turned(degrees: float, axis: int = 0):
    """A turn about one axis through the middle."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    i, j = (axis + 1) % 3, (axis + 2) % 3
    matrix = np.eye(3)
    matrix[i, i], matrix[i, j], matrix[j, i], matrix[j, j] = c, -s, s, c
    return lambda p: matrix @ p


def test_labelled_screws_are_measured_where_they_are():
    _, found = truth()
    assert (len(found.screws), len(found.rods), found.unseen) == (4, 2, 0)
    for tip, head in SCREWS:
        screw = min(found.screws, key=lambda s: float(np.linalg.norm(s.start - MIDDLE - tip)))
        assert np.linalg.norm(screw.start - MIDDLE - tip) < 1.6  # metal shines over its edge: less than a voxel
        angle = np.degrees(np.arccos(screw.axis @ (head - tip) / np.linalg.norm(head - tip)))
        assert angle < 1.5


def test_a_perfect_reconstruction_is_perfect():
    hu, found = truth()
    scores = implant_scores(hu, found, SPACING)
    assert scores.recall == scores.precision == 1.0
    assert scores.num_true == scores.num_found == 6
    assert scores.tip_mm == pytest.approx(0.0, abs=0.05)
    assert scores.axis_deg == pytest.approx(0.0, abs=0.1)
    assert scores.rod_mm == pytest.approx(0.0, abs=0.05)
    assert set(scores.as_row()) == {f"implant_{k}" for k in ("recall", "precision", "tip_mm", "axis_deg", "rod_mm")}
    assert implant_scores(hu, found, SPACING).tips == scores.tips  # the search is seeded


@pytest.mark.parametrize("shift", [(0.0, 0.0, 5.0), (3.0, 2.0, 0.0), (0.7, -1.1, 0.4)])
def test_a_shift_is_the_error_of_every_tip(shift):
    _, found = truth()
    hu, _ = paint(lambda p: p + np.array(shift))
    scores = implant_scores(hu, found, SPACING)
    assert scores.recall == scores.precision == 1.0
    assert scores.tips == pytest.approx([np.linalg.norm(shift)] * 4, abs=0.7)
    assert scores.tip_mm == pytest.approx(np.linalg.norm(shift), abs=0.6)
    assert scores.axis_deg is not None
    assert scores.axis_deg < 1.0
    # Rods are nearly upright: they slide along themselves without an error.
    assert scores.rod_mm == pytest.approx(np.hypot(shift[0], shift[1]), abs=0.7)


@pytest.mark.parametrize("degrees", [3.0, 8.0])
def test_a_turn_is_the_error_of_every_axis(degrees):
    _, found = truth()
    move = turned(degrees)
    hu, _ = paint(move)
    scores = implant_scores(hu, found, SPACING)
    assert scores.recall == 1.0
    axes = [(head - tip) / np.linalg.norm(head - tip) for tip, head in SCREWS]
    expected = [np.degrees(np.arccos(axis @ move(axis))) for axis in axes]
    assert scores.axis_deg == pytest.approx(np.mean(expected), abs=0.8)
    assert scores.tip_mm == pytest.approx(np.mean([np.linalg.norm(move(t) - t) for t, _ in SCREWS]), abs=0.5)


def test_a_screw_less_lowers_recall_and_one_more_precision():
    _, found = truth()
    hu, _ = paint(screws=(0, 1, 3))
    scores = implant_scores(hu, found, SPACING)
    assert scores.recall == pytest.approx(5 / 6)
    assert scores.precision == 1.0
    assert len(scores.tips) == 3
    hu, _ = paint(extra=[(np.array([-40.0, -45.0, 40.0]), np.array([5.0, -45.0, 40.0]))])
    scores = implant_scores(hu, found, SPACING)
    assert scores.recall == 1.0
    assert scores.precision == pytest.approx(6 / 7)


def test_no_metal_or_far_off_is_nothing_found():
    hu, found = truth()
    scores = implant_scores(np.minimum(hu, 700), found, SPACING)
    assert (scores.recall, scores.precision, scores.tip_mm, scores.rod_mm) == (0.0, None, None, None)
    far, _ = paint(lambda p: p + np.array([0.0, -30.0, 0.0]), screws=(0,), extra=())
    missed = implant_scores(far, found, SPACING)
    assert missed.recall == 0.0
    assert missed.precision == 0.0


def test_blur_of_a_voxel_costs_less_than_a_voxel():
    hu, found = truth()
    scores = implant_scores(ndimage.gaussian_filter(hu, 0.75), found, SPACING)
    assert scores.precision == 1.0
    assert scores.recall is not None
    assert scores.recall >= 4 / 6
    assert scores.tip_mm is not None
    assert scores.tip_mm < 1.5


def test_without_labels_the_metal_tells():
    hu, _ = truth()
    found = true_implants(hu, None, SPACING)
    assert (len(found.screws), len(found.rods)) == (4, 2)
    for tip, _ in SCREWS:
        assert min(np.linalg.norm(s.start - MIDDLE - tip) for s in found.screws) < 1.6
    scores = implant_scores(paint(lambda p: p + np.array([0.0, 0.0, 4.0]))[0], found, SPACING)
    assert scores.recall == 1.0
    assert scores.tip_mm == pytest.approx(4.0, abs=0.4)
    # Dense bone does not saturate: it is not taken for metal in the truth.
    assert true_implants(np.minimum(hu, 1300), None, SPACING).screws == []


def test_nothing_is_measured_without_implants_or_in_coarse_voxels():
    hu, labels = paint()
    coarse = true_implants(hu, labels, (8.0, 8.0, 8.0))
    assert not coarse.screws
    assert not coarse.rods
    none = true_implants(np.full_like(hu, 60), np.zeros_like(labels), SPACING)
    for found in (coarse, none):
        row = implant_scores(hu, found, SPACING).as_row()
        assert set(row.values()) == {None}


def test_a_phantom_with_implants_finds_itself():
    phantom = make_phantom(0, 8, 128)
    hu = np.clip(phantom.hu, -1024, 1500)
    found = true_implants(hu, phantom.labels, phantom.spacing)
    assert (len(found.screws), len(found.rods), found.unseen) == (4, 2, 0)
    scores = implant_scores(np.roll(hu, 2, 0), found, phantom.spacing)
    assert scores.recall == scores.precision == 1.0
    assert scores.tips == pytest.approx([4.0] * 4, abs=0.2)


@pytest.mark.real
@pytest.mark.slow
def test_planned_screws_in_a_real_scan_are_found_where_planned(shared_data):
    import SimpleITK as sitk

    from diffux2ct.data.instrumentation import instrument
    from diffux2ct.data.io.ct_image import CtImage
    from diffux2ct.data.io.volume import read_labels

    folder = shared_data / "labelled_8bit"
    image = sitk.DICOMOrient(sitk.ReadImage(str(folder / "colonog_0532_ct.nii.gz")), "LPS")
    slope, offset = np.polyfit([52, 96, 103], [-990, -105, 55], 1)
    hu = (sitk.GetArrayFromImage(image) * slope + offset).clip(-1024, 3071).astype(np.int16)
    ct = CtImage(hu, tuple(map(float, image.GetSpacing())), tuple(map(float, image.GetOrigin())))
    labels = read_labels(folder / "colonog_0532_label.nii.gz")
    operated, drawn, record = instrument(ct, labels, seed=1, vertebrae=("L3", "L4"), bilateral=1)
    found = true_implants(np.clip(operated.hu, -1024, 1500), drawn.labels, ct.spacing)
    assert len(found.screws) == len(record["screws"]) == 4
    for screw in found.screws:
        planned = min(record["screws"], key=lambda s: np.linalg.norm(screw.start + ct.origin - s["tip"]))
        axis = np.array(planned["entry"]) - planned["tip"]
        assert np.linalg.norm(screw.start + ct.origin - planned["tip"]) < 2.5  # voxels of 2.4 mm
        assert np.degrees(np.arccos(screw.axis @ axis / np.linalg.norm(axis))) < 5.0
