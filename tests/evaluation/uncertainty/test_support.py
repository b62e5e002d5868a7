import numpy as np
import pytest
import torch

from diffux2ct.data.prepared.writer import read_case
from diffux2ct.evaluation.uncertainty.support import case_support, ray_support
from diffux2ct.xray.camera import Camera
from diffux2ct.xray.joseph import project_joseph
from diffux2ct.xray.pose import Pose

SIZE = 6
SMALL = {"rows": 4, "cols": 4, "pitch": (6.0, 6.0)}  # a panel that misses the cube's corners


@pytest.mark.parametrize(
    ("camera", "poses"),
    [
        (Camera("cone", 100.0, 150.0, **SMALL), {}),
        (Camera("slit", 100.0, 150.0, **SMALL, reverse=True), {}),
        (Camera("parallel", 0.0, 0.0, **SMALL | {"pitch": (3.0, 3.0)}), {}),
        (Camera("cone", 100.0, 150.0, **SMALL), {"frontal": Pose((0, 0, 20), (3, 0, 5)), "lateral": Pose()}),
    ],
    ids=["cone", "slit", "parallel", "moved"],
)
def test_a_voxel_is_outside_where_changing_it_changes_no_pixel(camera, poses):
    mask = ray_support(camera, (SIZE,) * 3, (5.0,) * 3, poses)
    # Each voxel alone, as a batch of volumes.
    each = torch.eye(SIZE**3, dtype=torch.float64).reshape(-1, 1, SIZE, SIZE, SIZE)
    changes = [
        project_joseph(each, 5.0, camera, view, pose=poses.get(view)).abs().amax((1, 2, 3))
        for view in ("frontal", "lateral")
    ]
    expected = (torch.stack(changes).amax(0) > 0).reshape(SIZE, SIZE, SIZE).numpy()
    np.testing.assert_array_equal(mask, expected)
    assert 0 < mask.sum() < mask.size


def test_the_mask_is_that_of_the_views_that_are_given():
    camera = Camera("cone", 100.0, 150.0, **SMALL)
    one, turned = (ray_support(camera, (SIZE,) * 3, (5.0,) * 3, views=[view]) for view in ("frontal", "angle_45"))
    both = ray_support(camera, (SIZE,) * 3, (5.0,) * 3, views=["frontal", "angle_45"])
    np.testing.assert_array_equal(both, one | turned)
    same = ray_support(camera, (SIZE,) * 3, (5.0,) * 3, {"frontal": Pose((0, 0, 45))}, ["frontal"])
    np.testing.assert_array_equal(turned, same)
    assert one.sum() < both.sum()


def test_a_case_has_the_mask_of_its_own_camera(phantoms):
    path = next((phantoms / "cases").iterdir())
    camera = Camera.from_dict(read_case(phantoms, path.name)["camera_geometry"])
    np.testing.assert_array_equal(case_support(path, 16), ray_support(camera, (16,) * 3, (16.0,) * 3))
    assert case_support(path, 8).shape == (8, 8, 8)
    assert case_support(None, 16) is None
    assert case_support(phantoms / "cases" / "none", 16) is None
    with torch.inference_mode():  # as in an evaluation
        ray_support(camera, (4,) * 3, (64.0,) * 3)
