import numpy as np
import pytest
import torch

from diffux2ct.evaluation.anatomy.bones import bone_scores, fixed_hu_bone, segment, segmented_scores, structure_scores

STRUCTURES = ("sacrum", "left_hip")
SPACING = (2.0, 2.0, 2.0)


def block(value: float, where, fill: float = 40.0) -> np.ndarray:
    hu = np.full((20, 20, 20), fill, np.float32)
    hu[where] = value
    return hu


BONE = (slice(4, 12), slice(4, 12), slice(4, 12))  # 4096 mm^3


def test_bone_is_dense_and_large():
    hu = block(300, BONE)
    hu[15:17, 15:17, 15:17] = 900  # 64 mm^3: a calcification
    mask = fixed_hu_bone(hu, SPACING)
    assert mask[BONE].all()
    assert mask.sum() == 512
    assert fixed_hu_bone(hu, SPACING, min_piece_mm3=60).sum() == 520
    assert fixed_hu_bone(hu, SPACING, threshold=301, min_piece_mm3=60).sum() == 8
    assert not fixed_hu_bone(block(225.9, BONE), SPACING).any()
    assert fixed_hu_bone(block(226, BONE), SPACING).sum() == 512


def test_bone_scores_of_a_shift():
    truth = block(300, BONE)
    assert bone_scores(truth, truth, SPACING) == {"dice_bone": 1.0, "hd95_bone": 0.0}
    scores = bone_scores(np.roll(truth, 2, 1), truth, SPACING)
    assert scores == {"dice_bone": pytest.approx(0.75), "hd95_bone": pytest.approx(4.0)}
    nothing = np.full_like(truth, 40)
    assert bone_scores(nothing, truth, SPACING) == {"dice_bone": 0.0, "hd95_bone": None}
    assert bone_scores(nothing, nothing, SPACING) == {"dice_bone": None, "hd95_bone": None}


def test_structures_absent_from_one_or_both():
    truth = np.zeros((10, 10, 10), np.uint8)
    truth[2:6, 2:8, 2:8] = 1
    prediction = np.roll(truth, 1, 0)
    scores = structure_scores(prediction, truth, STRUCTURES, SPACING)
    assert scores["dice_sacrum"] == pytest.approx(0.75)
    assert scores["hd95_sacrum"] == pytest.approx(2.0)
    assert scores["dice_left_hip"] is scores["hd95_left_hip"] is None
    assert scores["hd95_foreground"] == pytest.approx(2.0)
    prediction[8:, :3, :3] = 2
    scores = structure_scores(prediction, truth, STRUCTURES, SPACING)
    assert scores["dice_left_hip"] == 0.0
    assert scores["hd95_left_hip"] is None


def test_segmentations_against_each_other_and_labels():
    labels = np.zeros((10, 10, 10), np.uint8)
    labels[2:6, 2:8, 2:8] = 1
    of_truth, of_prediction = np.roll(labels, 1, 0), np.roll(labels, 2, 0)
    scores = segmented_scores(of_prediction, of_truth, labels, STRUCTURES, SPACING)
    assert scores["dice_sacrum"] == pytest.approx(0.75)
    assert scores["dice_ceiling_sacrum"] == pytest.approx(0.75)
    assert scores["dice_labels_sacrum"] == pytest.approx(0.5)
    assert [scores[f"hd95{kind}_sacrum"] for kind in ("", "_ceiling", "_labels")] == pytest.approx([2, 2, 4])
    plain = segmented_scores(of_prediction, of_truth, None, STRUCTURES, SPACING)
    assert set(plain) == {f"{m}_{s}" for m in ("dice", "hd95") for s in (*STRUCTURES, "foreground")}


class Bright:
    """All that is bright is the first structure."""

    structures = STRUCTURES

    def segment(self, volume):
        return (volume[:, 0] > 0).to(torch.uint8)


def test_segmenting_a_volume():
    volume = torch.linspace(-1, 1, 27).reshape(1, 3, 3, 3)
    classes = segment(Bright(), volume)
    assert classes.dtype == np.uint8
    assert np.array_equal(classes, (volume[0] > 0).numpy())
