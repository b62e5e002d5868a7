import numpy as np
import pytest

from diffux2ct.data.scan_job import random_centres
from diffux2ct.data.split import split_patients
from diffux2ct.errors import UserError


def test_split_by_patient() -> None:
    patients = [f"p{i:02d}" for i in range(20)]
    split = split_patients(patients, {"val": 0.1, "test": 5}, seed=3)
    assert {k: len(v) for k, v in split.items()} == {"train": 13, "val": 2, "test": 5}
    assert sorted(split["train"] + split["val"] + split["test"]) == patients
    assert split == split_patients(patients[::-1], {"val": 0.1, "test": 5}, seed=3)
    assert split["test"] != split_patients(patients, {"val": 0.1, "test": 5}, seed=4)["test"]
    assert split["test"] == split_patients(patients, {"val": 4, "test": 5}, seed=3)["test"]
    assert split_patients(patients, {"test": ["p03", "p01"], "val": 0}, 0)["test"] == ["p01", "p03"]
    assert split_patients(["a", "b"], {"val": 0.1, "test": 0.2}, 0)["val"] == []
    assert split_patients(["a"], {"val": 0.1, "test": 0.2}, 0)["train"] == ["a"]
    assert split_patients(["a", "b"], {"test": 1.0}, 0)["test"] == ["a", "b"]
    for bad, message in [
        ({"test": 20}, "leaves nobody to train on"),
        ({"test": 1.5}, "fraction from 0 to 1"),
        ({"test": ["p99"]}, "unknown patient p99"),
        ({"test": ["p01"], "val": ["p01"]}, "in both"),
        ({"test": "p01"}, "list"),
        ({"tset": 1}, "unknown keys"),
    ]:
        with pytest.raises(UserError, match=message):
            split_patients(patients, bad, 0)


def test_random_crops_stay_inside_and_depend_on_the_patient_alone() -> None:
    arguments = ((0.0, 0.0, 0.0), (2.0, 2.0, 2.0), (100, 80, 30), 100.0)
    centres = random_centres(*arguments, 200, "p1", 0)
    np.testing.assert_array_equal(centres[:5], random_centres(*arguments, 5, "p1", 0))
    assert not np.allclose(centres[:5], random_centres(*arguments, 5, "p2", 0))
    assert not np.allclose(centres[:5], random_centres(*arguments, 5, "p1", 1))
    # x: 200 mm of scan (-1 to 199), y: 160 mm: the cube of 100 mm lies within, and reaches near both ends.
    assert centres[:, 0].min() - 50 >= -1.0
    assert centres[:, 0].max() + 50 <= 199.0
    assert np.ptp(centres[:, 0]) > 90.0
    assert centres[:, 1].max() + 50 <= 159.0
    # z: 60 mm of scan in a cube of 100 mm: at most a tenth of the cube off centre.
    assert 8.0 < np.abs(centres[:, 2] - 29.0).max() <= 10.0
