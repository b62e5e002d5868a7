"""Sampling along rays against ``grid_sample`` at the pixels that the camera itself gives."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from diffux2ct.models.plus.rays import along_rays, interpolation, turned
from diffux2ct.xray.camera import Camera, camera_preset
from diffux2ct.xray.pose import Pose, view_name

SIDE, SIZE = 320.0, 8
CAMERAS = {
    "lumbar": camera_preset("lumbar", SIZE, SIDE / SIZE),
    "x2ct": camera_preset("x2ct", SIZE, SIDE / SIZE),
    "slit": Camera("slit", 541.0, 949.0, 20, 25, (15.0, 20.0)),
    "oblong panel": Camera("cone", 700.0, 1000.0, 30, 18, (14.0, 31.0), reverse=True),
}


def camera_map(camera: Camera) -> torch.Tensor:
    return torch.tensor([camera.panel_map(SIDE)])


def by_grid_sample(planes: torch.Tensor, camera: Camera, view: str) -> torch.Tensor:
    centres = ((torch.arange(SIZE) * 2 + 1) / SIZE - 1) * SIDE / 2
    z, y, x = torch.meshgrid(centres, centres, centres, indexing="ij")
    pixel = camera.voxel_to_pixel(torch.stack((x, y, z), -1), view)
    at = torch.stack(((pixel[..., 1] * 2 + 1) / camera.cols - 1, (pixel[..., 0] * 2 + 1) / camera.rows - 1), -1)
    axis = 1 if view == "frontal" else 2
    slabs = [
        F.grid_sample(planes[:, :, k % planes.shape[2]], at.select(axis, k)[None].float(), align_corners=False)
        for k in range(SIZE)
    ]
    return torch.stack(slabs, axis + 2)


@pytest.mark.parametrize("depths", [1, SIZE])
@pytest.mark.parametrize("view", ["frontal", "lateral"])
@pytest.mark.parametrize("name", CAMERAS)
def test_products_of_matrices_equal_grid_sample(name, view, depths):
    planes = torch.randn(1, 3, depths, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    camera = CAMERAS[name]
    volume = along_rays(planes, camera_map(camera), view)
    torch.testing.assert_close(volume, by_grid_sample(planes, camera, view), rtol=0, atol=1e-5)


@pytest.mark.parametrize("view", ["frontal", "lateral"])
def test_parallel_rays_repeat_the_plane_without_computing(view):
    planes = torch.randn(2, 3, 1, SIZE, SIZE)
    parallel = torch.tensor([camera_preset("parallel", SIZE, SIDE / SIZE).panel_map(SIDE)] * 2)
    volume = along_rays(planes, parallel, view)
    seen = volume.mean(3 if view == "frontal" else 4)
    torch.testing.assert_close(seen, planes[:, :, 0])
    assert volume.untyped_storage().data_ptr() == planes.untyped_storage().data_ptr()
    assert torch.equal(volume, along_rays(planes, None, view))
    # The matrices of parallel rays are the identity, so that both ways agree.
    torch.testing.assert_close(interpolation(1.0, 0.0, 4, torch.device("cpu"), torch.float32)[2], torch.eye(4))


def test_each_sample_of_a_batch_has_its_own_camera():
    planes = torch.randn(2, 3, SIZE, SIZE, SIZE)
    maps = torch.cat([camera_map(CAMERAS["lumbar"]), camera_map(CAMERAS["x2ct"])])
    together = along_rays(planes, maps, "lateral")
    for i in range(2):
        torch.testing.assert_close(together[i : i + 1], along_rays(planes[i : i + 1], maps[i : i + 1], "lateral"))
    assert (together[1] - along_rays(planes, maps[:1].expand(2, -1), "lateral")[1]).abs().max() > 0.1


def test_gradients_reach_the_plane():
    planes = torch.randn(1, 1, SIZE, SIZE, SIZE, dtype=torch.float32, requires_grad=True)
    volume = along_rays(planes, camera_map(CAMERAS["lumbar"]), "frontal")
    (by_hand,) = torch.autograd.grad(by_grid_sample(planes, CAMERAS["lumbar"], "frontal").square().sum(), planes)
    (ours,) = torch.autograd.grad(volume.square().sum(), planes)
    torch.testing.assert_close(ours, by_hand, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("angle", [30.0, 135.0, 200.0])
@pytest.mark.parametrize("name", ["lumbar", "x2ct"])
def test_a_view_at_an_angle_is_lifted_along_the_rays_of_the_turned_patient(name, angle):
    """A smooth plane, at the pixels that the camera gives of points in the pose; within the inscribed cylinder."""
    size, camera, view = 32, CAMERAS[name], view_name(angle)
    ramp = (torch.arange(size) * 2 + 1) / size - 1
    plane = torch.sin(2 * ramp)[:, None] + torch.cos(1.5 * ramp + 0.4)
    lifted = turned(along_rays(plane[None, None, None], camera_map(camera), view), view)[0, 0]

    centres = ((torch.arange(size) * 2 + 1) / size - 1).double() * SIDE / 2
    z, y, x = torch.meshgrid(centres, centres, centres, indexing="ij")
    points = Pose((0, 0, angle)).to_room(torch.stack((x, y, z), -1).numpy())
    row, col = np.moveaxis(camera.voxel_to_pixel(points, "frontal"), -1, 0)
    v, u = (row * 2 + 1) / camera.rows - 1, (col * 2 + 1) / camera.cols - 1
    expected = torch.from_numpy(np.sin(2 * v) + np.cos(1.5 * u + 0.4)).float()
    seen = torch.from_numpy(np.maximum(abs(v), abs(u)) < 1 - 6 / size)
    inside = seen & ((x**2 + y**2).sqrt() < SIDE / 2 * (1 - 2 / size))
    assert inside.float().mean() > 0.4
    torch.testing.assert_close(lifted[inside], expected[inside], rtol=0, atol=0.02)


def test_depths_run_away_from_the_turned_source():
    planes = torch.arange(16.0).expand(1, 1, 1, 1, 16).movedim(-1, 2).expand(-1, -1, -1, 16, 16)
    lifted = turned(along_rays(planes, None, "angle_30"), "angle_30")[0, 0, 8]
    # The source stands at (-sin, -cos) in (x, y), which is at the low end of both.
    by_y, by_x = lifted[5:12, 8].diff().mean(), lifted[8, 5:12].diff().mean()
    torch.testing.assert_close(torch.stack((by_x, by_y)), torch.tensor([0.5, 3**0.5 / 2]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CAMERAS)
def test_a_view_turned_by_90_degrees_is_the_lateral_one_mirrored(name):
    planes = torch.randn(1, 3, SIZE, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    camera = camera_map(CAMERAS[name])
    frontal = along_rays(planes, camera, "frontal")
    quarter = torch.rot90(frontal, 1, (3, 4))
    torch.testing.assert_close(quarter, along_rays(planes.flip(-1), camera, "lateral"), rtol=0, atol=1e-5)
    # Opposite sides, exactly; and the bilinear turn next to them agrees.
    assert torch.equal(turned(frontal, "angle_180"), frontal.flip(3, 4))
    assert torch.equal(turned(frontal, "angle_270"), torch.rot90(frontal, 3, (3, 4)))
    near = turned(frontal, view_name(90.01))
    torch.testing.assert_close(near, quarter, rtol=0, atol=2e-2)


def test_the_turn_is_computed_in_single_precision_under_autocast():
    volume = torch.randn(1, 2, SIZE, SIZE, SIZE).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = turned(volume, "angle_30")
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half, turned(volume.float(), "angle_30").bfloat16(), rtol=0, atol=0)
