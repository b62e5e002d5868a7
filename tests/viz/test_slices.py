import base64
import io

import numpy as np
import pytest
from PIL import Image

from diffux2ct.viz.slices import (
    EDGES,
    ERROR_LIMIT,
    WINDOWS,
    bone_centre,
    comparison_grid,
    display_plane,
    display_xray,
    error_colours,
    grey,
    orthoslices,
    png_data_uri,
    save_png,
    upscale,
    with_sides,
)


def bright(z, y, x):
    """An LPS volume with one bright voxel."""
    volume = np.zeros((8, 10, 12), np.int16)
    volume[z, y, x] = 1000
    return volume


def place(image):
    (row,), (column,) = np.nonzero(image)
    vertical = "top" if row < image.shape[0] / 2 else "bottom"
    return vertical, "left" if column < image.shape[1] / 2 else "right"


# A voxel that lies superior (high z), anterior (low y) and to the patient's left (high x).
@pytest.mark.parametrize(
    ("plane", "expected"), [("axial", ("top", "right")), ("coronal", ("top", "right")), ("sagittal", ("top", "left"))]
)
def test_radiological_orientation(plane, expected):
    z, y, x = 6, 1, 10
    planes = orthoslices(bright(z, y, x), (z, y, x))
    assert place(planes[plane]) == expected


def test_the_opposite_voxel_lands_in_the_opposite_corners():
    planes = orthoslices(bright(1, 8, 2), (1, 8, 2))
    assert {plane: place(image) for plane, image in planes.items()} == {
        "axial": ("bottom", "left"), "coronal": ("bottom", "left"), "sagittal": ("bottom", "right")
    }  # fmt: skip
    assert EDGES["axial"] == EDGES["coronal"] == EDGES["frontal"] == ("R", "L")
    assert EDGES["sagittal"] == EDGES["lateral"] == ("A", "P")


def test_xrays_have_superior_up():
    frontal = bright(6, 1, 10).max(axis=1)
    lateral = bright(6, 1, 10).max(axis=2)
    assert place(display_xray(frontal)) == ("top", "right")
    assert place(display_xray(lateral)) == ("top", "left")


def test_unknown_plane_is_refused():
    with pytest.raises(ValueError, match="axial, coronal, sagittal"):
        display_plane(bright(0, 0, 0), "oblique", 0)


def test_window_is_linear_and_saturates():
    image = np.array([[-2000.0, -160.0, 40.0, 240.0, 3000.0]])
    assert grey(image, WINDOWS["soft"]).tolist() == [[0, 0, 128, 255, 255]]


def test_errors_are_blue_white_red_and_symmetric_in_lightness():
    colours = error_colours(np.array([[-ERROR_LIMIT, -100, 0, 100, ERROR_LIMIT, 9 * ERROR_LIMIT]])).astype(int)[0]
    assert colours[2].tolist() == [255, 255, 255]
    assert (colours[:2, 2] > colours[:2, 0]).all()  # too low: more blue than red
    assert (colours[3:, 0] > colours[3:, 2]).all()  # too high: more red than blue
    assert colours[5].tolist() == colours[4].tolist()
    luma = colours @ np.array([0.2126, 0.7152, 0.0722])
    assert luma[0] < luma[1] < luma[2] > luma[3] > luma[4]
    assert abs(luma[1] - luma[3]) < 20


def test_upscaling_repeats_pixels():
    image = np.arange(32 * 32, dtype=np.uint8).reshape(32, 32)
    large = upscale(image)
    assert large.shape == (192, 192)
    assert (large[::6, ::6] == image).all()
    assert (large[5::6, 5::6] == image).all()
    assert upscale(np.zeros((256, 256), np.uint8)).shape == (256, 256)


def test_png_data_uri_holds_the_picture():
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    kind, payload = png_data_uri(image).split(",")
    assert kind == "data:image/png;base64"
    assert (np.asarray(Image.open(io.BytesIO(base64.b64decode(payload)))) == image).all()


def test_bone_centre_finds_bone_and_falls_back_to_the_middle():
    volume = np.full((8, 10, 12), -1000, np.int16)
    assert bone_centre(volume) == (4, 4, 6)
    volume[2:5, 6:9, 1:4] = 700
    assert bone_centre(volume) == (3, 7, 2)


def test_comparison_grid_shows_truth_reconstruction_and_error(tmp_path):
    truth = np.full((8, 8, 8), -1000, np.int16)
    truth[4, 4, 4] = 700
    grid = comparison_grid(truth, np.full_like(truth, -1000))
    factor = grid.shape[0] // 30
    cells = grid[::factor, ::factor].reshape(3, 10, 3, 10, 3)
    assert (cells[:, [0, -1]] == 96).all()  # a grey frame, as air is black
    assert (cells[:, :, :, [0, -1]] == 96).all()
    cells = cells[:, 1:-1, :, 1:-1]
    assert [int((cells[0, :, column] > 0).any(axis=-1).sum()) for column in (0, 1)] == [1, 0]
    assert (cells[0, 4, 2, 4] < 130).all()  # the missing bone is darkest blue
    assert cells[0, 4, 2, 4].argmax() == 2
    save_png(tmp_path / "grid.png", grid)
    assert (np.asarray(Image.open(tmp_path / "grid.png")) == grid).all()
    assert [path.name for path in tmp_path.iterdir()] == ["grid.png"]


def test_a_strip_names_a_picture_and_its_sides_and_hides_nothing():
    image = np.random.default_rng(0).integers(0, 255, (40, 200)).astype(np.uint8)
    frontal, lateral = (with_sides(image, view) for view in ("frontal", "lateral"))
    for picture in (frontal, lateral):
        np.testing.assert_array_equal(picture[-40:], image)
        assert picture[:-40, :16].max() > 200
        assert picture[:-40, -16:].max() > 200
        assert picture[:-40, 20:50].max() == 0
    assert (frontal != lateral).any()
