import json

import numpy as np
import pytest
import torch

from diffux2ct.errors import UserError
from diffux2ct.xray.camera import Camera, camera_preset, spacing_xyz


def grid_mm(size, spacing):
    """[size, size, size, 3] voxel centres (x, y, z), indexed [z, y, x]."""
    line = (np.arange(size) - (size - 1) / 2) * spacing
    z, y, x = np.meshgrid(line, line, line, indexing="ij")
    return np.stack((x, y, z), -1)


def test_parallel_pixels_are_voxels():
    camera = camera_preset("parallel", 16, 2.0)
    pixel = camera.voxel_to_pixel(grid_mm(16, 2.0), "frontal")
    rows, _, cols = np.indices((16, 16, 16))
    np.testing.assert_allclose(pixel[..., 0], rows, atol=1e-9)
    np.testing.assert_allclose(pixel[..., 1], cols, atol=1e-9)
    pixel = camera.voxel_to_pixel(grid_mm(16, 2.0), "lateral")
    rows, cols, _ = np.indices((16, 16, 16))
    np.testing.assert_allclose(pixel[..., 0], rows, atol=1e-9)
    np.testing.assert_allclose(pixel[..., 1], cols, atol=1e-9)


def test_lumbar_pixels_are_voxels_at_the_isocentre_plane():
    camera = camera_preset("lumbar", 128, 2.0)
    assert (camera.sad, camera.sid) == (1000, 1500)
    points = torch.tensor([[-127.0, 0.0, -127.0], [127.0, 0.0, 127.0]])
    torch.testing.assert_close(camera.voxel_to_pixel(points, "frontal"), torch.tensor([[0.0, 0.0], [127.0, 127.0]]))


def test_what_is_nearer_to_the_source_is_larger():
    camera = camera_preset("lumbar", 128, 2.0)
    columns = [camera.voxel_to_pixel(np.array([100.0, y, 0.0]), "frontal")[1] for y in (-100.0, 0.0, 100.0)]
    assert columns[0] > columns[1] > columns[2] > 63.5  # the frontal source stands in front (y < 0)
    columns = [camera.voxel_to_pixel(np.array([x, 100.0, 0.0]), "lateral")[1] for x in (-100.0, 0.0, 100.0)]
    assert columns[0] > columns[1] > columns[2] > 63.5  # the lateral source stands at the right (x < 0)


def test_a_slit_camera_magnifies_across_and_keeps_z():
    slit = Camera("slit", 541.0, 949.0, 11, 11, (2.0, 1.0))
    cone = Camera("cone", 541.0, 949.0, 11, 11, (2.0, 1.0))
    points = np.array([[3.0, -200.0, 8.0], [3.0, 0.0, 8.0], [3.0, 200.0, 8.0]])
    pixel = slit.voxel_to_pixel(points, "frontal")
    np.testing.assert_allclose(pixel[:, 0], 5 + 8 / 2)
    np.testing.assert_allclose(pixel[:, 1], cone.voxel_to_pixel(points, "frontal")[:, 1])
    assert pixel[0, 1] > pixel[1, 1] > pixel[2, 1]
    assert Camera.from_dict(json.loads(json.dumps(slit.to_dict()))) == slit


@pytest.mark.parametrize(
    ("name", "mean", "p95", "largest", "on_panel"),
    [("lumbar", 3.2, 7.5, 13.1, 0.939), ("x2ct", 6.5, 15.5, 24.5, 0.959), ("parallel", 0, 0, 0, 1)],
)
def test_misregistration_of_a_256_mm_cube_in_pixels_of_a_128_image(name, mean, p95, largest, on_panel):
    camera = camera_preset(name, 128, 2.0)
    pixel = camera.voxel_to_pixel(grid_mm(128, 2.0)[::2], "frontal")
    shrink = camera.rows / 128
    pixel = (pixel + 0.5) / shrink - 0.5  # on the 128 x 128 image that render_pair returns
    rows, _, cols = np.indices((128, 128, 128))[:, ::2]
    distance = np.hypot(pixel[..., 0] - rows, pixel[..., 1] - cols)
    assert distance.mean() == pytest.approx(mean, abs=0.06)
    assert np.percentile(distance, 95) == pytest.approx(p95, abs=0.1)
    assert distance.max() == pytest.approx(largest, abs=0.1)
    inside = ((pixel > -0.5) & (pixel < 127.5)).all(-1).mean()
    assert inside == pytest.approx(on_panel, abs=0.002)


@pytest.mark.parametrize(
    ("camera", "side", "expected"),
    [
        (camera_preset("x2ct", 128, 2.5), 320.0, 0.769),
        (camera_preset("x2ct", 128, 2.0), 256.0, 0.959),
        (camera_preset("lumbar", 128, 2.0), 256.0, 0.939),
        (Camera("cone", 1000.0, 1500.0, 440, 440, (1.0, 1.0)), 256.0, 1.0),
    ],
    ids=["x2ct-320", "x2ct-256", "lumbar-384", "lumbar-440"],
)
def test_share_of_a_cube_s_voxels_on_the_panel(camera, side, expected):
    pixel = camera.voxel_to_pixel(grid_mm(128, side / 128)[::2], "lateral")
    inside = (pixel > -0.5) & (pixel < np.array([camera.rows, camera.cols]) - 0.5)
    assert inside.all(-1).mean() == pytest.approx(expected, abs=0.001)


@pytest.mark.parametrize("name", ["lumbar", "x2ct", "parallel"])
def test_a_camera_survives_json(name):
    camera = camera_preset(name, 64, 4.0)
    assert Camera.from_dict(json.loads(json.dumps(camera.to_dict()))) == camera


def test_a_preset_follows_shape_and_spacing():
    camera = camera_preset("parallel", (96, 64, 64), (1.5, 1.5, 3.0))
    assert (camera.rows, camera.cols, camera.pitch) == (96, 64, (3.0, 1.5))
    assert spacing_xyz(2) == spacing_xyz([2.0, 2, 2.0]) == (2.0, 2.0, 2.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: camera_preset("lateral", 64, 2.0), "use lumbar, x2ct or parallel"),
        (lambda: camera_preset("lumbar", (64, 64, 32), 2.0), "resample to a square grid"),
        (lambda: camera_preset("lumbar", 64, (1.0, 2.0, 1.0)), "resample to a square grid"),
        (lambda: camera_preset("lumbar", 64, -2.0), "positive"),
        (lambda: Camera("fan", 1.0, 2.0, 4, 4, (1.0, 1.0)), "use cone, slit or parallel"),
        (lambda: Camera("slit", 0.0, 900.0, 4, 4, (1.0, 1.0)), "0 < sad <= sid"),
        (lambda: Camera("cone", 1000.0, 900.0, 4, 4, (1.0, 1.0)), "0 < sad <= sid"),
        (lambda: Camera("cone", 1000.0, 1500.0, 0, 4, (1.0, 1.0)), "must be positive"),
        (lambda: Camera("cone", 1000.0, float("inf"), 4, 4, (1.0, 1.0)), "0 < sad <= sid"),
        (lambda: spacing_xyz([1.0, 2.0, float("inf")]), "positive"),
        (lambda: Camera.from_dict({"kind": "cone", "SAD": 3}), r"unknown keys \['SAD'\]"),
    ],
)
def test_impossible_cameras_are_refused_in_one_line(make, message):
    with pytest.raises(UserError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_an_unknown_view_is_refused():
    with pytest.raises(ValueError, match="frontal or lateral"):
        camera_preset("lumbar", 8, 1.0).voxel_to_pixel(np.zeros(3), "axial")


@pytest.mark.parametrize("view", ["frontal", "lateral"])
@pytest.mark.parametrize(
    "camera",
    [
        camera_preset("x2ct", 16, 20.0),
        camera_preset("lumbar", 16, 20.0),
        Camera("slit", 541.0, 949.0, 20, 25, (3.0, 4.0)),
        camera_preset("parallel", 16, 20.0),
    ],
)
def test_the_map_of_a_cube_gives_the_same_pixels(camera, view):
    row_scale, row_slope, col_scale, col_slope = camera.panel_map(320.0)
    across, depth, z = np.random.default_rng(0).uniform(-1, 1, (3, 50))
    points = np.stack((across, depth, z) if view == "frontal" else (depth, across, z), -1) * 160
    expected = camera.voxel_to_pixel(points, view)
    row = ((z * row_scale / (1 + row_slope * depth)) + 1) * camera.rows / 2 - 0.5
    col = ((across * col_scale / (1 + col_slope * depth)) + 1) * camera.cols / 2 - 0.5
    np.testing.assert_allclose(np.stack((row, col), -1), expected, rtol=0, atol=1e-9)
