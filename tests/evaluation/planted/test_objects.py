import numpy as np
import pytest
from tests.evaluation.planted.test_planted import STEP, trunk
from torch.testing import assert_close

from diffux2ct.evaluation.planted.objects import SCREW, choose_place, clearance, planted_objects
from diffux2ct.evaluation.planted.settings import Planting

OBJECTS = {each.key: each for each in planted_objects(Planting())}


def test_the_volume_and_the_added_hu_are_those_of_the_settings():
    for diameter in (10, 32):
        sphere, step = OBJECTS[f"{diameter}mm"], 4.0
        shares = sphere.shares(np.full(3, 40.0), (21, 21, 21), step)
        assert_close(float(shares.sum()) * step**3, np.pi / 6 * diameter**3, rtol=0.02, atol=0)
    put = sphere.put(np.full((21, 21, 21), 30, np.int16), shares, (-1024.0, 1500.0))
    assert (put[10, 10, 10], put[0, 0, 0], put.dtype) == (80, 30, np.int16)
    screw = OBJECTS[SCREW]
    assert screw.put(np.full((1, 1, 1), 40, np.int16), np.ones((1, 1, 1)), (-1024.0, 1500.0))[0, 0, 0] == 1500
    assert_close(screw.reach * 2, 45.0)


@pytest.mark.parametrize("key", OBJECTS)
def test_an_object_lies_inside_the_body_and_not_in_air(key):
    hu = trunk(0.1)
    clear = clearance(hu, STEP)
    for seed in range(5):
        place = choose_place(OBJECTS[key], hu, clear, STEP, 8.0, np.random.default_rng(seed))
        assert place is not None
        for at in (place.voxel[::-1] * STEP, place.voxel[::-1] * STEP + place.moved):
            shares = OBJECTS[key].shares(at, hu.shape, STEP)
            assert hu[shares > 0].min() >= 40
            if key != SCREW:
                break
        assert_close(float(np.linalg.norm(place.moved)), 8.0)
    again = choose_place(OBJECTS[key], hu, clear, STEP, 8.0, np.random.default_rng(seed))
    assert (again.voxel == place.voxel).all()
    assert key != SCREW or hu[tuple(place.voxel)] > 200
