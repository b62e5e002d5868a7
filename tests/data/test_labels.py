from pathlib import Path

import numpy as np
import pytest

from diffux2ct.data.io.volume import read_labels
from diffux2ct.data.labels import (
    LABELS,
    REMAP,
    contradiction,
    hips_by_position,
    label_name,
    remap,
    rod_label,
    screw_label,
)


def test_vertebrae_are_numbered_as_in_verse():
    assert [LABELS[name] for name in ("C1", "C7", "T1", "T12", "L1", "L5", "L6")] == [1, 7, 8, 19, 20, 24, 25]


def test_every_value_has_one_name_and_implants_are_counted():
    assert len(set(LABELS.values())) == len(LABELS)
    assert all(label_name(value) == name for name, value in LABELS.items())
    assert (label_name(screw_label(0)), label_name(rod_label(1))) == ("screw_1", "rod_2")
    assert label_name(99) == "label_99"
    assert len({*map(screw_label, range(50)), *map(rod_label, range(50)), *LABELS.values()}) == 100 + len(LABELS)


def test_there_is_an_end_to_the_numbers():
    with pytest.raises(ValueError, match="screw 50"):
        screw_label(50)


def test_remap_drops_what_is_not_listed():
    labels = np.array([[0, 1, 2], [3, 4, 9]], np.uint8)
    assert remap(labels, REMAP["ctpelvic1k"]).tolist() == [[0, 26, 27], [28, 29, 0]]


def test_the_hip_at_the_patient_s_left_is_the_left_one():
    labels = np.zeros((2, 2, 8), np.uint8)
    labels[..., 0], labels[..., 4], labels[..., 7] = LABELS["right_hip"], LABELS["sacrum"], LABELS["left_hip"]
    kept, exchanged = hips_by_position(labels)
    assert not exchanged
    assert np.array_equal(kept, labels)
    mirrored = labels[..., ::-1].copy()
    mirrored[..., 3] = LABELS["sacrum"]
    mended, exchanged = hips_by_position(mirrored)
    assert exchanged
    assert (mended[0, 0, 0], mended[0, 0, 3], mended[0, 0, 7]) == (28, 26, 27)
    alone, exchanged = hips_by_position(np.where(labels == LABELS["sacrum"], 0, labels)[..., :4])
    assert not exchanged
    assert alone.max() == LABELS["right_hip"]


def test_totalsegmentator_s_numbers_become_ours():
    ours = REMAP["totalsegmentator"]
    theirs = {"sacrum": (25, 26), "L5": (27,), "L1": (31,), "T12": (32,), "T1": (43,), "C7": (44,), "C1": (50,)}
    theirs |= {"left_hip": (77,), "right_hip": (78,), "ribs": (92, 115), "sternum": (116,), "left_femur": (75,)}
    for name, numbers in theirs.items():
        assert {ours[number] for number in numbers} == {LABELS[name]}, name
    assert not {5, 51, 79, 91, 117} & set(ours)  # liver, heart, spinal cord, skull, cartilage


def spine(first: str, last: str, step: int = 12) -> np.ndarray:
    """Vertebrae from ``first`` down to ``last``, 2.5 mm voxels, ``step`` slices apart."""
    values = range(LABELS[first], LABELS[last] + 1)
    labels = np.zeros((step * len(values) + 30, 40, 60), np.uint8)
    for i, value in enumerate(values):
        z = labels.shape[0] - step * (i + 1)
        labels[z : z + max(step - 3, 1), 20:28, 26:34] = value
    return labels


def with_hips(labels: np.ndarray, z: int = 5) -> np.ndarray:
    for name, x in (("right_hip", 6), ("sacrum", 30), ("left_hip", 50)):
        labels[z : z + 15, 20:30, x : x + 6] = LABELS[name]
    return labels


@pytest.mark.parametrize(
    ("labels", "fault"),
    [
        (spine("T10", "L5"), None),
        (spine("C1", "T3", step=7), None),
        (with_hips(spine("T10", "L5")), None),
        (with_hips(spine("T10", "L5"), 60), "sacrum lies above L3"),
        (spine("C1", "C5"), "cervical vertebrae lie 30 mm apart"),
        (spine("T10", "L5")[::-1], "T11 lies above T10"),
        (np.roll(with_hips(spine("L1", "L5")), 34, 2), "sacrum does not lie between the hips"),
        (spine("L1", "L5", step=30), "L1 and L2 lie 75 mm apart"),
        (np.zeros((4, 4, 4), np.uint8), None),
    ],
)
def test_names_that_contradict_the_anatomy(labels: np.ndarray, fault: str | None):
    assert contradiction(np.ascontiguousarray(labels), (2.5,) * 3) == fault


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "scheme", "fault"),
    [
        ("colonog_0510", "ctspine1k", None),
        ("verse083", "ctspine1k", None),
        ("verse230", "ctspine1k", None),
        ("colonog_0243", "ctpelvic1k", None),
        ("colonog_0243", "ctspine1k", "C1 and C2 lie 88 mm apart"),
        ("verse230", "ctpelvic1k", "left_hip and right_hip lie 18 mm apart"),
        ("totalseg_s0308", "totalsegmentator", "C1 and C2 lie 183 mm apart"),
        ("totalseg_s0308", None, "right_hip lies above L3"),
        ("totalseg_s0561", None, "left_hip and right_hip lie 20 mm apart"),
    ],
)
def test_schemes_of_real_labels(shared_data: Path, name: str, scheme: str | None, fault: str | None):
    labels = read_labels(shared_data / "labelled_8bit" / f"{name}_label.nii.gz")
    values = labels.labels if scheme is None else remap(labels.labels, REMAP[scheme])
    assert contradiction(values, labels.spacing) == fault
