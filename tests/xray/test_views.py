"""Views at any angle: names, and projections against a point on the panel that plain geometry gives."""

import numpy as np
import pytest
import torch

from diffux2ct.errors import UserError
from diffux2ct.xray.camera import Camera, camera_preset
from diffux2ct.xray.drr import render_pair
from diffux2ct.xray.pose import Pose, in_named_view, is_view, view_angle, view_name, view_names

SIZE, STEP = 16, 10.0


def test_names_and_angles_are_each_others_inverse():
    angles = [0, 90, 45, 22.5, 359.5, 180]
    names = view_names(angles)
    assert names == ("frontal", "lateral", "angle_45", "angle_22p5", "angle_359p5", "angle_180")
    assert [view_angle(name) for name in names] == angles
    assert all(map(is_view, names))
    assert not any(map(is_view, ("volume", "camera", "index", "seed", "labels")))


@pytest.mark.parametrize(
    "angles",
    [[], [0, 0.0], [90, 90.0000001], [360], [359.9999], [-1], list(range(9)), ["a"], "90", 0, [True], [float("nan")]],
)
def test_other_angles_are_refused_in_one_line(angles):
    with pytest.raises(UserError, match="dataset.views=.*give 1 to 8 different angles"):
        view_names(angles)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("angle", [0, 30, 90, 135, 300])
def test_a_bright_voxel_casts_its_shadow_where_a_line_from_the_source_ends(angle, reverse):
    camera = Camera("cone", 500.0, 800.0, 64, 64, (5.0, 5.0), reverse=reverse)
    hu = np.full((SIZE,) * 3, -1000.0)
    z, y, x = 11, 4, 12
    hu[z, y, x] = 3000.0
    image = render_pair(hu, STEP, camera, 64, views=(view_name(angle),))[view_name(angle)]
    rows, cols = np.indices(image.shape)
    seen = [(image * at).sum() / image.sum() for at in (rows, cols)]

    point = (np.array((x, y, z)) - (SIZE - 1) / 2) * STEP
    turn = np.deg2rad(angle)
    toward = np.array((np.sin(turn), np.cos(turn), 0)) * (-1 if reverse else 1)
    across = np.array((0.0, 1, 0)) if angle == 90 else np.array((np.cos(turn), -np.sin(turn), 0))
    source = -500 * toward
    end = source + (point - source) * 800 / ((point - source) @ toward)
    expected = [end[2] / 5 + 31.5, end @ across / 5 + 31.5]
    np.testing.assert_allclose(seen, expected, atol=0.25)


def test_the_lateral_view_is_the_frontal_one_of_the_turned_patient_mirrored():
    """Whatever the patient's own pose: the pose comes first."""
    pose = Pose((4.0, -3.0, 5.0), (6.0, -9.0, 3.0))
    turn = Pose((0, 0, 90)).rotation()
    turned = Pose((4.0, -3.0, 95.0), tuple((turn @ pose.shift_mm).tolist()))
    hu = np.random.default_rng(0).uniform(-900, 900, (SIZE,) * 3)
    camera = camera_preset("lumbar", SIZE, STEP)
    pair = render_pair(hu, STEP, camera, SIZE, jitter={"lateral": pose, "frontal": turned})
    np.testing.assert_allclose(pair["lateral"], pair["frontal"][:, ::-1], atol=1e-4)
    assert in_named_view("lateral", pose) == ("lateral", pose)
    view, placed = in_named_view("angle_30", pose)
    assert view == "frontal"
    points = np.random.default_rng(1).normal(size=(5, 3))
    np.testing.assert_allclose(placed.to_room(points), Pose((0, 0, 30)).to_room(pose.to_room(points)), atol=1e-12)


def test_gradients_pass_through_a_view_at_an_angle():
    hu = torch.zeros(8, 8, 8, requires_grad=True)
    render_pair(hu, 20.0, camera_preset("lumbar", 8, 20.0), 8, views=("angle_45",))["angle_45"].sum().backward()
    assert (hu.grad[:, 2:6, 2:6] > 0).all()
