import numpy as np
import pytest

from diffux2ct.data.labels import (
    LABELS,
    REMAP,
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
    assert len({*map(screw_label, range(50)), *map(rod_label, range(50)), *LABELS.values()}) == 100 + len(
        LABELS
    )


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
