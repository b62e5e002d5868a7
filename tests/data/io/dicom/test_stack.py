"""Tilted, leaning and unevenly spaced stacks of slices."""

from pathlib import Path

import numpy as np
import pytest
from tests.data.io.dicom.dicom_files import hu_volume, refused, write_series

from diffux2ct.data.io.volume import read_ct


def ball_slices(axes: np.ndarray, move: np.ndarray, shape: tuple[int, int, int], start: np.ndarray, gap: float):
    """Slices [D, H, W] of a water ball and, beside it, a small bone ball, sampled where the header says."""
    d, h, w = shape
    k, j, i = np.meshgrid(np.arange(d), np.arange(h), np.arange(w), indexing="ij")
    places = (
        start
        + i[..., None] * 0.8 * axes[0]
        + j[..., None] * 0.9 * axes[1]
        + k[..., None] * gap * move[None, None, None]
    )
    hu = np.full(shape, -1000, np.int16)
    hu[np.linalg.norm(places - BALL, axis=-1) < 14.0] = 0
    hu[np.linalg.norm(places - BEAD, axis=-1) < 4.0] = 1000
    return hu


BALL, BEAD = np.array([15.0, 10.0, 60.0]), np.array([17.0, 4.0, 66.0])


@pytest.mark.parametrize(
    ("kind", "degrees"),
    [("tilted slices", 18.0), ("tilted slices", -18.0), ("tilted slices", 3.0), ("sheared stack", -18.0)],
)
def test_gantry_tilt_is_undone(tmp_path: Path, kind: str, degrees: float) -> None:
    """A table moves along z under a tilted gantry: the balls stand where they were, round, and are not mirrored."""
    angle = np.radians(degrees)
    gap = 1.0
    if kind == "tilted slices":  # what scanners write
        axes = np.array([[1.0, 0.0, 0.0], [0.0, np.cos(angle), -np.sin(angle)]])
        move = np.array([0.0, 0.0, 1.0])
    else:  # what some converters make of it: upright axes, positions that slide
        axes = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
        move = np.array([0.0, np.tan(angle), 1.0])
    start = np.array([-10.0, -20.0, 30.0]) - (20.0 * move * (kind != "tilted slices"))
    hu = ball_slices(axes, move, (90, 72, 64), start, gap)
    shift = start - np.array([-10.0, -20.0, 30.0])
    write_series(
        tmp_path,
        hu,
        along=[gap * k for k in range(len(hu))],
        orientation=axes.ravel(),
        move=move,
        change=lambda i, dataset: setattr(
            dataset,
            "ImagePositionPatient",
            [round(float(v), 6) for v in np.array(dataset.ImagePositionPatient, float) + shift],
        ),
    )
    ct = read_ct(tmp_path)
    assert f"tilted by {abs(degrees):.1f} degrees" in " ".join(ct.meta["notes"])
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in ct.hu.shape), indexing="ij"), -1)[..., ::-1]
    places = grid * np.array(ct.spacing) + ct.origin
    bone = ct.hu > 500
    np.testing.assert_allclose(places[bone].mean(axis=0), BEAD, atol=0.3)
    # Every voxel is what the balls are there, save within a voxel of a surface.
    distance = np.linalg.norm(places - BALL, axis=-1)
    bead = np.linalg.norm(places - BEAD, axis=-1)
    assert (ct.hu[(distance < 14.0 - 1.6) & (bead > 4.0 + 1.6)] == 0).all()
    assert (ct.hu[bead < 4.0 - 1.6] == 1000).all()
    assert ct.hu[(distance > 14.0 + 1.6) & (bead > 4.0 + 1.6)].max() < -990


def test_a_slight_lean_is_straight_and_a_wild_one_is_refused(tmp_path: Path) -> None:
    hu = hu_volume()
    write_series(tmp_path / "slight", hu, move=(0.01, 0.0, 1.0))
    np.testing.assert_array_equal(read_ct(tmp_path / "slight").hu, hu)
    write_series(tmp_path / "told", hu, GantryDetectorTilt=12)
    assert (
        "a gantry tilt of 12.0 degrees by the header, none by the positions"
        in read_ct(tmp_path / "told").meta["notes"][0]
    )
    write_series(tmp_path / "wild", hu, move=(0.0, 3.0, 1.0))
    refused(tmp_path / "wild", "72 degrees off the slices' normal")
    write_series(
        tmp_path / "beside",
        hu,
        change=lambda i, dataset: setattr(dataset, "ImagePositionPatient", [-10.0 + 5 * (i == 3), -20.0, 30 + 2.5 * i]),
    )
    refused(tmp_path / "beside", "beside the stack's line")


def test_uneven_slices_are_interpolated(tmp_path: Path) -> None:
    """A linear ramp along z is the same ramp after interpolation, whatever the distances."""
    along = np.array([0, 2, 4.2, 6, 8.5, 10, 12.1, 14])
    ramp = (40 * along - 300).round()
    hu = np.broadcast_to(ramp[:, None, None], (8, 6, 5)).astype(np.int16)
    write_series(tmp_path / "jitter", hu, along=along)
    ct = read_ct(tmp_path / "jitter")
    assert "interpolated to 8 at 2.00 mm" in ct.meta["notes"][0]
    np.testing.assert_allclose(ct.hu[:, 2, 2], 40 * 2.0 * np.arange(8) - 300, atol=0.51)
    # Two distances, told by two thicknesses: a head's base and vertex.
    along = np.array([0, 5, 10, 15, 20, 25, 35, 45, 55])
    hu = np.broadcast_to((10 * along - 300)[:, None, None], (9, 6, 5)).astype(np.int16)
    write_series(
        tmp_path / "head",
        hu,
        along=along,
        change=lambda i, dataset: setattr(dataset, "SliceThickness", 5 if i <= 5 else 10),
    )
    ct = read_ct(tmp_path / "head")
    assert ct.spacing[2] == 5.0
    np.testing.assert_allclose(ct.hu[:, 2, 2], 50 * np.arange(12) - 300, atol=0.01)


@pytest.mark.parametrize("thickness", [lambda i: 2.5 + 1e-9 * i, lambda i: 2.5 + 0.02 * (i % 7)])
def test_a_hole_shows_whatever_the_thicknesses_differ_by(tmp_path: Path, thickness) -> None:
    along = [*(2.5 * np.arange(6)), *(2.5 * np.arange(7, 13))]
    write_series(
        tmp_path,
        hu_volume((12, 6, 6)),
        along=along,
        change=lambda i, dataset: setattr(dataset, "SliceThickness", round(thickness(i), 12)),
    )
    refused(tmp_path, "slices are missing .a gap of 5.0 mm where slices lie 2.5")


def test_rounded_positions_are_even(tmp_path: Path) -> None:
    hu = hu_volume((20, 6, 6))
    write_series(tmp_path, hu, along=np.round(0.625 * np.arange(20), 2))
    ct = read_ct(tmp_path)
    np.testing.assert_array_equal(ct.hu, hu)
    assert ct.meta["notes"] == []
    assert ct.spacing[2] == pytest.approx(0.625, abs=1e-3)
