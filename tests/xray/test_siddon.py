import numpy as np
import pytest
import torch

from diffux2ct.xray.camera import Camera, camera_preset
from diffux2ct.xray.pose import Pose
from diffux2ct.xray.rays import camera_rays
from diffux2ct.xray.siddon import project_siddon

VIEWS = ("frontal", "lateral")
OBLIQUE = Pose((12.0, -7.0, 35.0), (5.0, -3.0, 8.0))
SPACING = (2.5, 2.0, 3.0)


def sorted_planes(volume, spacing, starts, ends):
    """Siddon (1985) as published: sort a ray's crossings with all planes. [D, H, W], rays [n, 3]; float64."""
    ray = np.where(np.abs(ends - starts) < 1e-9, 1e-9, ends - starts)
    shape, spacing = np.array(volume.shape[::-1]), np.array(spacing)
    half = shape * spacing / 2
    planes = [np.arange(n + 1) * s - h for n, s, h in zip(shape, spacing, half, strict=True)]
    alpha = np.concatenate([(planes[i] - starts[:, i, None]) / ray[:, i, None] for i in range(3)], axis=1)
    alpha = np.sort(alpha.clip(0, 1), axis=1)
    middle = (alpha[:, 1:] + alpha[:, :-1]) / 2
    at = np.floor((starts[:, None] + middle[..., None] * ray[:, None] + half) / spacing).astype(int)
    inside = ((at >= 0) & (at < shape)).all(-1)
    at = at.clip(0, shape - 1)
    values = volume[at[..., 2], at[..., 1], at[..., 0]] * inside
    return (values * np.diff(alpha, axis=1)).sum(1) * np.linalg.norm(ray, axis=1)


@pytest.mark.parametrize("kind", ["cone", "slit", "parallel"])
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("pose", [None, OBLIQUE, Pose((0, 0, 45)), Pose((50, 60, 70))], ids=str)
def test_lengths_are_siddons_for_any_camera_and_pose(kind, view, pose):
    """Random voxels, so that each length counts; a wide cone, so that rays of one image run along different axes."""
    volume = torch.rand(14, 12, 17, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    camera = Camera(kind, 60.0, 120.0, 19, 23, (6.0, 7.0))
    starts, ends = camera_rays(camera, view, pose=pose, reach_mm=100.0)
    expected = sorted_planes(volume.numpy(), SPACING, starts.reshape(-1, 3), ends.reshape(-1, 3))
    image = project_siddon(volume[None, None], SPACING, camera, view, pose=pose)[0, 0].numpy()
    assert expected.max() > 10
    np.testing.assert_allclose(image, expected.reshape(19, 23), atol=1e-9)
    single = project_siddon(volume[None, None].float(), SPACING, camera, view, pose=pose)[0, 0].numpy()
    assert np.abs(single - image).mean() < 1e-5 * image.mean()


@pytest.mark.parametrize("voxel", [(0, 0, 0), (3, 7, 11), (15, 4, 0), (8, 15, 15)])
def test_a_voxel_s_integral_is_value_times_edge(voxel):
    volume = torch.zeros(1, 1, 16, 16, 16)
    z, y, x = voxel
    volume[0, 0, z, y, x] = 0.5
    camera = camera_preset("parallel", 16, 2.0)
    for view, pixel in (("frontal", (z, x)), ("lateral", (z, y))):
        expected = torch.zeros(1, 1, 16, 16)
        expected[0, 0, *pixel] = 0.5 * 2.0
        torch.testing.assert_close(project_siddon(volume, 2.0, camera, view), expected)


def test_a_turned_box_is_as_thick_as_its_diagonal():
    """A square column of water, 40 mm wide, seen edge on after a turn of 45 degrees about z."""
    volume = torch.zeros(1, 1, 4, 40, 40, dtype=torch.float64)
    volume[..., 10:30, 10:30] = 0.02
    camera = Camera("parallel", 0.0, 0.0, 3, 41, (1.0, 1.0))
    image = project_siddon(volume, 2.0, camera, "frontal", pose=Pose((0, 0, 45)))[0, 0]
    across = torch.arange(41, dtype=torch.float64) - 20
    expected = 0.02 * 2 * (20 * 2**0.5 - across.abs())
    torch.testing.assert_close(image, expected.clamp(min=0).expand(3, 41), rtol=0, atol=1e-9)


@pytest.mark.parametrize("shift", [0.0, 1.0, 2.0])
def test_a_ray_along_voxel_faces_counts_one_side_only(shift):
    volume = torch.ones(1, 1, 4, 4, 4, dtype=torch.float64)
    camera = Camera("parallel", 0.0, 0.0, 1, 1, (1.0, 1.0))
    image = project_siddon(volume, 2.0, camera, "frontal", pose=Pose((0, 0, 0), (shift, 0.0, 0.0)))
    torch.testing.assert_close(image, torch.full((1, 1, 1, 1), 8.0, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["cone", "parallel"])
def test_gradient_is_exact(kind):
    camera = Camera(kind, 60.0, 90.0, 4, 5, (4.0, 3.5))
    generator = torch.Generator().manual_seed(0)
    volume = torch.rand(1, 1, 4, 5, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda v: project_siddon(v, (1.5, 2.0, 3.0), camera, "lateral", pose=OBLIQUE), volume
    )


@pytest.mark.gpu
@pytest.mark.parametrize("view", VIEWS)
def test_gpu_equals_cpu(view):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    volume = torch.rand(2, 1, 32, 32, 32, generator=torch.Generator().manual_seed(7))
    camera = camera_preset("lumbar", 32, 4.0)
    here, there = volume.clone().requires_grad_(), volume.cuda().requires_grad_()
    a = project_siddon(here, 4.0, camera, view, pose=OBLIQUE)
    b = project_siddon(there, 4.0, camera, view, pose=OBLIQUE)
    torch.testing.assert_close(b.cpu(), a, rtol=1e-3, atol=1e-2)
    a.sum().backward()
    b.sum().backward()
    torch.testing.assert_close(there.grad.cpu().sum(), here.grad.sum(), rtol=1e-4, atol=0)
