import json

import numpy as np
import pytest
import torch

from diffux2ct.data.io.volume import write_nifti
from diffux2ct.data.prepared.dataset import PreparedDataset
from diffux2ct.errors import UserError
from diffux2ct.evaluation.anatomy.segmentation import (
    dice_scores,
    dice_table,
    evaluate_segmentation,
    mean_scores,
    read_reconstruction,
)
from diffux2ct.intensity import denormalize_hu

STRUCTURES = ("sacrum", "lumbar_spine")


class Threshold:
    """Bone by its brightness, all of it sacrum."""

    structures = STRUCTURES

    def segment(self, volume):
        return (volume[:, 0] > -0.05).to(torch.uint8)


def test_dice_of_overlapping_boxes():
    truth, prediction = np.zeros((2, 4, 4, 4), np.uint8)
    truth[:2], prediction[1:3] = 1, 1
    scores = dice_scores(prediction, truth, STRUCTURES)
    assert scores == {"sacrum": 0.5, "lumbar_spine": None, "foreground": 0.5}
    prediction[:2] = 2
    # Found as another structure: nothing of its own, something of the foreground.
    assert dice_scores(prediction, truth, STRUCTURES) == {
        "sacrum": 0.0,
        "lumbar_spine": 0.0,
        "foreground": pytest.approx(2 * 32 / (48 + 32)),
    }
    assert dice_scores(truth, truth, STRUCTURES)["sacrum"] == 1.0


def test_means_leave_out_what_has_no_score():
    rows = [
        {"sacrum": 1.0, "lumbar_spine": None, "foreground": 0.4},
        {"sacrum": 0.5, "lumbar_spine": 0.25, "foreground": 0.6},
    ]
    means = mean_scores(rows, STRUCTURES)
    assert means == {"sacrum": 0.75, "lumbar_spine": 0.25, "average": 0.5, "foreground": 0.5}
    nothing = mean_scores([dict.fromkeys(("sacrum", "lumbar_spine", "foreground"))], STRUCTURES)
    assert set(nothing.values()) == {None}


@pytest.fixture
def data(phantoms):
    return PreparedDataset(phantoms, "test", labels=STRUCTURES)


def write(data, folder, index: int, volume, shift: float = 0.0) -> None:
    case = data.cases[index]
    hu = np.round(denormalize_hu(np.asarray(volume[0]), data.window)).astype(np.int16)
    origin = [o + shift for o in case.origin]
    write_nifti(folder / f"{case.case_id}.nii.gz", hu, case.spacing, origin)


def test_true_volumes_and_reconstructions_are_scored_alike(data, tmp_path):
    plain = evaluate_segmentation(Threshold(), data)
    assert plain["num_cases"] == len(data) == 3
    assert "reconstructed" not in plain
    assert 0.05 < plain["true"]["foreground"] < 0.95
    write(data, tmp_path, 0, data[0]["volume"])
    write(data, tmp_path, 2, torch.where(data[2]["volume"] > -0.1, -0.1, data[2]["volume"]))
    result = evaluate_segmentation(Threshold(), data, tmp_path)
    assert [row["case_id"] for row in result["cases"]] == [data.cases[0].case_id, data.cases[2].case_id]
    perfect, empty = result["cases"]
    assert perfect["reconstructed"] == pytest.approx(perfect["true"])
    assert perfect["true"] == plain["cases"][0]["true"]
    assert empty["reconstructed"]["foreground"] == 0.0
    assert result["reconstructed"]["foreground"] == pytest.approx(perfect["true"]["foreground"] / 2)
    table = dice_table(result)
    assert [line.split()[0] for line in table.splitlines()[1:5]] == [*STRUCTURES, "average", "foreground"]
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_another_grid_or_case_is_refused(data, tmp_path):
    with pytest.raises(UserError, match="no reconstructions"):
        evaluate_segmentation(Threshold(), data, tmp_path)
    write(data, tmp_path, 1, data[1]["volume"], shift=8.0)
    with pytest.raises(UserError, match=r"give the data set that was evaluated as root=") as caught:
        read_reconstruction(tmp_path, data, 1)
    assert len(str(caught.value).splitlines()) == 1
    write(data, tmp_path, 1, data[1]["volume"][:, :8])
    with pytest.raises(UserError, match=r"\(8, 16, 16\) voxels"):
        read_reconstruction(tmp_path, data, 1)
    (tmp_path / "stranger.nii.gz").touch()
    with pytest.raises(UserError, match="stranger is no labelled case"):
        evaluate_segmentation(Threshold(), data, tmp_path)
