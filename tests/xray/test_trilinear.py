import pytest
import torch

from diffux2ct.errors import UserError
from diffux2ct.xray.camera import Camera, camera_preset
from diffux2ct.xray.joseph import project, project_joseph
from diffux2ct.xray.pose import Pose
from diffux2ct.xray.trilinear import project_trilinear

VIEWS = ("frontal", "lateral")
OBLIQUE = Pose((12.0, -7.0, 35.0), (5.0, -3.0, 8.0))
TINY = Pose((0.0, 0.0, 1e-9))  # not the identity, so that the rays are summed one by one


def random_volume(*shape, seed=0):
    return torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("voxel", [(0, 0, 0), (3, 7, 11), (15, 4, 0), (8, 15, 15)])
@pytest.mark.parametrize("method", [project_trilinear, project_joseph])
def test_an_impulse_integrates_to_value_times_edge_wherever_it_stands(voxel, method):
    volume = torch.zeros(1, 1, 16, 16, 16)
    z, y, x = voxel
    volume[0, 0, z, y, x] = 0.5
    camera = camera_preset("parallel", 16, 2.0)
    for view, pixel in (("frontal", (z, x)), ("lateral", (z, y))):
        expected = torch.zeros(1, 1, 16, 16)
        expected[0, 0, *pixel] = 0.5 * 2.0
        image = method(volume, 2.0, camera, view, pose=TINY)
        # Midpoints on a triangle: its area to 1 % (34 samples over 17 voxels).
        torch.testing.assert_close(image, expected, rtol=1e-2, atol=1e-6)


def test_all_rays_together_see_the_whole_impulse_from_any_side():
    """Over a fine panel an oblique view of one voxel sums to its mass: value times volume over pixel area."""
    volume = torch.zeros(1, 1, 9, 9, 9, dtype=torch.float64)
    volume[0, 0, 6, 2, 5] = 1.0
    camera = Camera("parallel", 0.0, 0.0, 61, 61, (0.5, 0.5))
    for view in VIEWS:
        image = project_trilinear(volume, 2.0, camera, view, pose=OBLIQUE, step_mm=0.25)
        torch.testing.assert_close(image.sum() * 0.25, volume.new_tensor(8.0), rtol=1e-3, atol=0)


@pytest.mark.parametrize("kind", ["cone", "slit", "parallel"])
@pytest.mark.parametrize("view", VIEWS)
def test_joseph_ray_by_ray_is_the_separable_projector(kind, view):
    volume = random_volume(14, 12, 17)
    camera = Camera(kind, 200.0, 300.0, 19, 23, (3.0, 4.0))
    expected = project(volume, (2.5, 2.0, 3.0), camera, view)
    image = project_joseph(volume, (2.5, 2.0, 3.0), camera, view, pose=TINY)
    assert expected.max() > 8
    torch.testing.assert_close(image, expected, rtol=0, atol=1e-7)
    straight = project_joseph(volume, (2.5, 2.0, 3.0), camera, view)
    torch.testing.assert_close(straight, expected, rtol=0, atol=0)


def test_a_quarter_turn_is_the_volume_turned():
    volume = random_volume(10, 12, 12, seed=2)
    camera = Camera("cone", 200.0, 300.0, 14, 15, (3.0, 3.0))
    for method in (project_trilinear, project_joseph):
        # About z by 90 degrees: what lay to the left (x) lies to the back (y), what lay behind to the right.
        turned = volume.transpose(3, 4).flip(4)
        image = method(volume, 2.0, camera, "frontal", pose=Pose((0, 0, 90)))
        torch.testing.assert_close(image, method(turned, 2.0, camera, "frontal"), rtol=0, atol=1e-9)


def test_smaller_steps_converge():
    volume = random_volume(12, 12, 12, seed=3)
    camera = Camera("cone", 200.0, 300.0, 12, 12, (3.0, 3.0))
    exact = project_trilinear(volume, 2.0, camera, "frontal", pose=OBLIQUE, step_mm=0.02)
    errors = [
        float((project_trilinear(volume, 2.0, camera, "frontal", pose=OBLIQUE, step_mm=s) - exact).abs().mean())
        for s in (4.0, 1.0, 0.25)
    ]
    assert errors[0] > 5 * errors[1] > 25 * errors[2] > 0
    assert errors[1] / float(exact.mean()) < 1e-2


@pytest.mark.parametrize("step", [0.0, -1.0, float("nan")])
def test_a_step_must_be_positive(step):
    with pytest.raises(UserError, match="give a positive length"):
        project_trilinear(random_volume(4, 4, 4), 2.0, camera_preset("parallel", 4, 2.0), "frontal", step_mm=step)


def test_rays_that_miss_see_air():
    volume = torch.ones(1, 1, 4, 4, 4)
    camera = Camera("parallel", 0.0, 0.0, 9, 9, (4.0, 4.0))
    for method in (project_trilinear, project_joseph):
        image = method(volume, 2.0, camera, "lateral", pose=Pose((0, 0, 20)))[0, 0]
        assert image[4, 4] > 8
        assert image[0].max() == image[:, 0].max() == 0
    assert project_trilinear(volume, 2.0, camera, "frontal", pose=Pose((0, 0, 0), (900, 0, 0))).max() == 0


@pytest.mark.parametrize("method", [project_trilinear, project_joseph])
def test_gradient_is_exact(method):
    camera = Camera("cone", 60.0, 90.0, 4, 5, (4.0, 3.5))
    volume = random_volume(4, 5, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: method(v, (1.5, 2.0, 3.0), camera, "frontal", pose=OBLIQUE), volume)


@pytest.mark.gpu
@pytest.mark.parametrize("method", [project_trilinear, project_joseph])
def test_gpu_equals_cpu(method):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    volume, camera = random_volume(32, 32, 32).float(), camera_preset("lumbar", 32, 4.0)
    here, there = volume.clone().requires_grad_(), volume.cuda().requires_grad_()
    a = method(here, 4.0, camera, "lateral", pose=OBLIQUE)
    b = method(there, 4.0, camera, "lateral", pose=OBLIQUE)
    torch.testing.assert_close(b.cpu(), a, rtol=1e-4, atol=1e-3)
    a.sum().backward()
    b.sum().backward()
    torch.testing.assert_close(there.grad.cpu(), here.grad, rtol=1e-3, atol=1e-2)
