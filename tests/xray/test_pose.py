import json

import numpy as np
import pytest

from diffux2ct.errors import UserError
from diffux2ct.xray.pose import Pose, random_pose, random_poses

LEFT, BACK, HEAD = np.eye(3)


@pytest.mark.parametrize(
    ("rotation", "goes", "to"), [((0, 0, 90), LEFT, BACK), ((0, 90, 0), HEAD, LEFT), ((90, 0, 0), BACK, HEAD)]
)
def test_turns_are_right_handed_about_fixed_axes(rotation, goes, to):
    np.testing.assert_allclose(Pose(rotation).to_room(goes), to, atol=1e-12)


def test_x_is_turned_first_then_z():
    # By x, back goes to head; the turn about z then leaves it there. The other order would end at -x.
    np.testing.assert_allclose(Pose((90, 0, 90)).to_room(BACK), HEAD, atol=1e-12)


def test_the_shift_comes_after_the_turn_and_to_volume_undoes_both():
    pose = Pose((10.0, -20.0, 30.0), (1.0, 2.0, 3.0))
    np.testing.assert_allclose(pose.to_room(np.zeros(3)), (1, 2, 3))
    points = np.random.default_rng(0).normal(size=(4, 5, 3))
    np.testing.assert_allclose(pose.to_volume(pose.to_room(points)), points, atol=1e-12)
    np.testing.assert_allclose(
        np.linalg.norm(pose.to_room(points) - (1, 2, 3), axis=-1), np.linalg.norm(points, axis=-1)
    )
    assert np.linalg.det(pose.rotation()) == pytest.approx(1.0)


def test_identity_plain_values_and_addition():
    assert Pose().is_identity
    pose = Pose((1.0, 0.0, 0.0), (0.0, 2.0, 0.0))
    assert not pose.is_identity
    assert Pose.from_dict(json.loads(json.dumps(pose.to_dict()))) == pose
    assert pose.moved(Pose((1, 1, 1), (1, 1, 1))) == Pose((2, 1, 1), (1, 3, 1))


def test_random_poses_fill_their_range_and_repeat_with_the_seed():
    generator = np.random.default_rng(3)
    poses = [random_pose(generator, 4, 10) for _ in range(200)]
    angles, shifts = (np.array([getattr(p, key) for p in poses]) for key in ("rotation_deg", "shift_mm"))
    for values, bound in ((angles, 4), (shifts, 10)):
        assert 0.9 * bound < values.max() <= bound
        assert -bound <= values.min() < -0.9 * bound
        assert abs(values.mean()) < bound / 8
    pair = random_poses(np.random.default_rng(5), 4, 10)
    assert pair == random_poses(np.random.default_rng(5), 4, 10)
    assert pair["frontal"] != pair["lateral"]
    assert random_pose(np.random.default_rng(0), 0, 0).is_identity


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Pose((0.0, 0.0, float("nan"))), "three finite numbers"),
        (lambda: random_pose(np.random.default_rng(0), -1, 0), "from 0 up"),
        (lambda: Pose.from_dict({"rotation": [0, 0, 0]}), "it needs rotation_deg, shift_mm"),
    ],
)
def test_impossible_poses_are_refused(make, message):
    with pytest.raises(UserError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
