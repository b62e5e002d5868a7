from dataclasses import replace

import numpy as np
import pytest
import torch

from diffux2ct.errors import UserError
from diffux2ct.xray import rays
from diffux2ct.xray.camera import Camera
from diffux2ct.xray.pose import Pose
from diffux2ct.xray.rays import Grid, camera_rays, check_clearance
from diffux2ct.xray.siddon import project_siddon
from diffux2ct.xray.trilinear import project_trilinear

VIEWS = ("frontal", "lateral")
CAMERAS = [Camera(kind, 300.0, 500.0, 5, 7, (4.0, 3.0)) for kind in ("cone", "slit", "parallel")]
REVERSED = [replace(camera, reverse=True) for camera in CAMERAS]
OBLIQUE = Pose((12.0, -7.0, 25.0), (5.0, -3.0, 8.0))


@pytest.mark.parametrize(
    "camera", CAMERAS + REVERSED, ids=lambda camera: camera.kind + (" reversed" if camera.reverse else "")
)
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("pose", [None, OBLIQUE], ids=["straight", "oblique"])
def test_every_point_of_a_ray_is_seen_by_its_pixel(camera, view, pose):
    starts, ends = camera_rays(camera, view, pose=pose, reach_mm=50.0)
    assert starts.shape == ends.shape == (5, 7, 3)
    rows, cols = np.indices((5, 7))
    for share in (0.2, 0.6, 1.0):
        points = starts + share * (ends - starts)
        points = points if pose is None else pose.to_room(points)
        pixel = camera.voxel_to_pixel(points, view)
        np.testing.assert_allclose(pixel[..., 0], rows, atol=1e-9)
        np.testing.assert_allclose(pixel[..., 1], cols, atol=1e-9)


def test_rays_start_where_the_beam_does():
    cone, slit, parallel = (camera_rays(camera, "frontal", reach_mm=50.0) for camera in CAMERAS)
    np.testing.assert_allclose(cone[0], np.broadcast_to((0.0, -300.0, 0.0), (5, 7, 3)))
    assert np.ptp(slit[0][..., 2]) == 16.0  # the source moves with the table
    np.testing.assert_allclose(slit[0][..., :2], np.broadcast_to((0.0, -300.0), (5, 7, 2)))
    np.testing.assert_allclose(parallel[1] - parallel[0], np.broadcast_to((0.0, 100.0, 0.0), (5, 7, 3)))
    np.testing.assert_allclose(cone[1][..., 1], 200.0)
    # Reversed, source and panel change sides, in the lateral view too.
    cone, slit, parallel = (camera_rays(camera, "lateral", reach_mm=50.0) for camera in REVERSED)
    np.testing.assert_allclose(cone[0], np.broadcast_to((300.0, 0.0, 0.0), (5, 7, 3)))
    np.testing.assert_allclose(cone[1][..., 0], -200.0)
    np.testing.assert_allclose(slit[0][..., 0], 300.0)
    np.testing.assert_allclose(parallel[1] - parallel[0], np.broadcast_to((-100.0, 0.0, 0.0), (5, 7, 3)))


def test_a_volume_is_measured_as_it_lies_before_it_is_let_in():
    camera = Camera("cone", 150.0, 300.0, 4, 4, (1.0, 1.0))
    grid = Grid((100, 20, 20), (2.0, 2.0, 2.0))  # 200 mm wide, 40 mm deep
    check_clearance(grid, camera, "frontal")
    check_clearance(grid, camera, "lateral")
    check_clearance(grid, camera, "frontal", Pose((0, 0, 90)))
    for pose in (Pose((0, 0, 0), (0, 140, 0)), Pose((0, 0, 90), (0, 60, 0))):
        with pytest.raises(UserError, match="crop it or move the camera"):
            check_clearance(grid, camera, "frontal", pose)
    # A panel 50 mm behind the isocentre, seen from the front or from the back.
    near = Camera("cone", 150.0, 200.0, 4, 4, (1.0, 1.0))
    for camera, side in ((near, 1), (replace(near, reverse=True), -1)):
        check_clearance(grid, camera, "frontal", Pose((0, 0, 0), (0, -40 * side, 0)))
        with pytest.raises(UserError, match="its panel at 50 mm"):
            check_clearance(grid, camera, "frontal", Pose((0, 0, 0), (0, 40 * side, 0)))
    check_clearance(grid, Camera("parallel", 0.0, 0.0, 4, 4, (1.0, 1.0)), "frontal", Pose((0, 0, 0), (0, 140, 0)))


@pytest.mark.parametrize("project", [project_siddon, project_trilinear])
def test_blocks_and_batches_do_not_show(project, monkeypatch):
    volume = torch.rand(3, 1, 6, 8, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    camera = Camera("cone", 100.0, 150.0, 9, 8, (3.0, 3.0))

    def image_and_gradient(volume):
        volume = volume.clone().requires_grad_()
        image = project(volume, 2.0, camera, "lateral", pose=OBLIQUE)
        image.square().sum().backward()
        return image.detach(), volume.grad

    image, gradient = image_and_gradient(volume)
    singles = [image_and_gradient(item[None]) for item in volume]
    torch.testing.assert_close(torch.cat([a for a, _ in singles]), image)
    torch.testing.assert_close(torch.cat([g for _, g in singles]), gradient)
    monkeypatch.setitem(rays.BLOCK_ELEMENTS, "cpu", 1)
    for one_by_one, whole in zip(image_and_gradient(volume), (image, gradient), strict=True):
        torch.testing.assert_close(one_by_one, whole)


def test_half_precision_and_autocast_compute_in_float32():
    volume = torch.rand(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    rounded, camera = volume.bfloat16(), Camera("cone", 100.0, 150.0, 8, 8, (3.0, 3.0))
    expected = project_siddon(rounded.float(), 2.0, camera, "frontal")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        image = project_siddon(rounded, 2.0, camera, "frontal")
    assert image.dtype == torch.float32
    torch.testing.assert_close(image, expected, rtol=0, atol=0)
