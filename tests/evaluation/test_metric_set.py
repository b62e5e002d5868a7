import numpy as np
import pytest
import torch
from torch.testing import assert_close

from diffux2ct.data.labels import FIRST_SCREW
from diffux2ct.data.prepared.dataset import PreparedDataset
from diffux2ct.errors import UserError
from diffux2ct.evaluation.anatomy.bones import bone_scores
from diffux2ct.evaluation.case_metrics import Family
from diffux2ct.evaluation.fidelity.distortion import psnr3d
from diffux2ct.evaluation.fidelity.protocols import PROTOCOLS, score
from diffux2ct.evaluation.metric import CASE_COUNTS, find_metric
from diffux2ct.evaluation.metric_set import FAMILIES, MetricSet
from diffux2ct.evaluation.perception.weights import Unavailable
from diffux2ct.evaluation.scored_case import ScoredCase
from diffux2ct.evaluation.set_metrics import CtDistribution
from diffux2ct.reconstructors.precision import effective

HERE = ["distortion", "bones", "implants", "vertebrae", "xrays"]


@pytest.fixture
def scored(phantoms):
    """The first test phantom, a blurred reconstruction of it, and another phantom in the mean volume's place."""
    dataset = PreparedDataset(phantoms, "test")
    case = ScoredCase.of(dataset.cases[0], dataset[0]["volume"], dataset.window)
    blurred = torch.lerp(case.volume, torch.nn.functional.avg_pool3d(case.volume, 3, stride=1, padding=1), 0.3)
    return case, blurred, dataset[1]["volume"]


def test_a_row_holds_what_each_family_says_of_reconstruction_and_floor(scored):
    case, volume, mean = scored
    row = MetricSet.make(HERE).score(case, volume, mean)
    assert_close(row["psnr3d"], psnr3d(volume[0], case.volume[0]), rtol=0, atol=1e-5)
    assert_close(row["floor_psnr3d"], psnr3d(mean[0], case.volume[0]), rtol=0, atol=1e-5)
    assert (
        row["dice_bone"]
        == bone_scores(np.round((volume[0].numpy() + 1) * 1262 - 1024), case.hu, case.spacing)["dice_bone"]
    )
    assert 0 < row["xray_residual_frontal"] < row["floor_xray_residual_frontal"]
    assert row["implant_recall"] is None  # voxels of 16 mm
    assert row["implant_unseen"] is None
    own = {key for key in row if not key.startswith("floor_") and key not in CASE_COUNTS}
    assert {f"floor_{key}" for key in own} | own | set(CASE_COUNTS) == set(row)
    assert all(find_metric(key) for key in own)


def test_what_even_the_truth_does_not_show_is_counted_apart(scored):
    """A labelled screw of soft tissue is left out of the scores, and counted; a real one is not."""
    case = scored[0]
    labels, hu = np.zeros((48, 48, 48), np.uint8), np.full((48, 48, 48), 40, np.int16)
    for value, row, shown in ((FIRST_SCREW, 12, True), (FIRST_SCREW + 1, 32, False)):
        labels[22:25, 6:34, row : row + 3] = value
        hu[22:25, 6:34, row : row + 3] = 1500 if shown else 60
    made = ScoredCase("a", torch.from_numpy(hu[None] / 1262 + 1024 / 1262 - 1).float(), case.window, (1.5,) * 3)
    family = MetricSet.make(["implants"]).families[0]
    assert family.counts(made) == {"implant_unseen": None}  # nobody knows without labels
    made.__dict__["labels"] = labels
    made.__dict__.pop("implants", None)
    assert family.counts(made) == {"implant_unseen": 1}
    assert len(made.implants.screws) == 1


def test_the_protocol_reaches_the_numbers(scored):
    case, volume, mean = scored
    row = MetricSet.make(["distortion"], "x2ct").score(case, volume, mean)
    assert row["psnr"] == score(volume, case.volume, case.window, PROTOCOLS["x2ct"])[0]["psnr"]
    assert abs(row["psnr"] - MetricSet.make(["distortion"]).score(case, volume, mean)["psnr"]) > 3


def test_what_is_not_here_is_told_and_the_rest_goes_on(scored, monkeypatch, tmp_path):
    monkeypatch.setenv("DIFFUX2CT_WEIGHTS", str(tmp_path))
    metrics = MetricSet.make(["fid_medclip", "segmentation", "bones"])
    assert set(metrics.unavailable) == {"fid_medclip", "segmentation"}
    assert "metrics.segmenter=" in metrics.unavailable["segmentation"]
    assert set(metrics.score(*scored)) == {"dice_bone", "hd95_bone", "floor_dice_bone", "floor_hd95_bone"}


class Refusing(Family):
    name = "refusing"

    def score(self, case, volumes):
        raise Unavailable("refusing", "too small", "use larger ones")


def test_a_family_that_finds_it_cannot_is_left_out_and_told(scored):
    metrics = MetricSet.make(["bones"])
    metrics.families.insert(0, Refusing())
    assert "dice_bone" in metrics.score(*scored)
    metrics.finish()
    assert metrics.unavailable == {"refusing": "too small; use larger ones"}


def test_a_family_that_fails_on_one_case_goes_on_with_the_next(scored):
    case, volume, mean = scored
    alone = ScoredCase(case.case_id, case.volume, case.window, case.spacing)
    metrics = MetricSet.make(["xrays"])
    rows = [metrics.score(c, volume, mean) for c in (case, alone, case)]
    assert rows[0] == rows[2] != {}
    assert rows[1] == {}
    metrics.finish()
    assert metrics.unavailable["xrays"].startswith("for 1 of 3 cases: the data have no cameras")


def test_a_case_without_its_folder_has_no_x_rays_to_compare_with(scored):
    case, volume, mean = scored
    alone = ScoredCase(case.case_id, case.volume, case.window, case.spacing)
    metrics = MetricSet.make(["xrays", "vertebrae", "bones"])
    assert set(metrics.score(alone, volume, mean)) == {"dice_bone", "hd95_bone", "floor_dice_bone", "floor_hd95_bone"}
    metrics.finish()
    assert "cameras" in metrics.unavailable["xrays"]
    assert metrics.unavailable["vertebrae"].startswith("the cases have no labels; prepare")


def test_below_the_stored_size_nothing_is_made_up_of_labels_that_do_not_fit(phantoms):
    """Metal in place of the labels would give screws to cases that have none; and the reason must be told."""
    small = PreparedDataset(phantoms, "test", size=8)
    metrics = MetricSet.make(["implants", "vertebrae", "bones"])
    for index in range(len(small)):
        case = ScoredCase.of(small.cases[index], small[index]["volume"], small.window)
        assert set(metrics.score(case, case.volume, case.volume)) == {
            "dice_bone",
            "hd95_bone",
            "floor_dice_bone",
            "floor_hd95_bone",
        }
        with pytest.raises(Unavailable, match="labels are of 16 voxels a side, the volumes of 8"):
            _ = case.implants
    metrics.finish()
    reason = (
        "the labels are of 16 voxels a side, the volumes of 8; evaluate a run of the stored size"
        " (trained with dataset.size=16)"
    )
    assert metrics.unavailable == {"implants": reason, "vertebrae": reason}


def test_without_any_labels_metal_still_tells_of_implants(scored):
    case, volume, mean = scored
    alone = ScoredCase(case.case_id, case.volume, case.window, (2.0,) * 3)
    row = MetricSet.make(["implants"]).score(alone, volume, mean)
    assert "implant_recall" in row
    assert row["implant_unseen"] is None


class GreyHistogram(torch.nn.Module):
    """A small encoder of the CT encoder's kind: shares of voxels by HU."""

    name = "grey histogram"

    def features(self, volumes_hu, spacing):
        edges = torch.linspace(-1024, 1500, 9)
        return torch.stack([torch.histogram(v.float(), edges)[0] / v.numel() for v in volumes_hu])


def test_distances_of_the_set_come_with_their_floor_and_counts(phantoms):
    dataset = PreparedDataset(phantoms, "test")
    metrics = MetricSet([], [CtDistribution(GreyHistogram(), "cpu")])
    for index in range(len(dataset)):
        case = ScoredCase.of(dataset.cases[index], dataset[index]["volume"], dataset.window)
        metrics.score(case, case.volume, torch.zeros_like(case.volume))
    values, floor, about = metrics.finish()
    assert_close(values, {"fd_ct": 0.0, "kd_ct": 0.0}, rtol=0, atol=1e-9)
    assert floor["fd_ct"] > 0.1
    assert floor["kd_ct"] > 0.01
    assert (about["distribution"]["num_volumes"], about["distribution"]["seed"]) == (len(dataset), 0)


def test_one_case_has_no_distribution(scored):
    metrics = MetricSet([], [CtDistribution(GreyHistogram(), "cpu")])
    metrics.score(*scored)
    assert metrics.finish()[0] == {}
    assert "two" in metrics.unavailable["distribution"]


@pytest.mark.parametrize("names", [[], ["psnr"], ["bones", "boness"], None, "bones"])
def test_unknown_families_get_one_line(names):
    with pytest.raises(UserError, match=f"choose from {', '.join(FAMILIES)}"):
        MetricSet.make(names)


class Counting:
    """A segmenter that finds what is dense, and tells how often and in which precision it was asked."""

    structures = ("ribs",)

    def __init__(self):
        self.types = []

    def segment(self, volume):
        sharpened = torch.nn.functional.conv3d(volume, torch.full((1, 1, 1, 1, 1), 2.0))
        self.types.append(sharpened.dtype)
        return (sharpened[:, 0] > 0).to(torch.uint8)


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_the_mean_volume_is_segmented_once(scored, precision, dtype):
    case, volume, mean = scored
    segmenter = Counting()
    dtype = dtype if effective(precision, "cpu") == precision else torch.float32  # a CPU without bf16 arithmetic
    metrics = MetricSet.make(["segmentation"], segmenter=segmenter, precision=precision)
    first, second = (metrics.score(case, volume, mean) for _ in range(2))
    assert segmenter.types == [dtype] * 5  # truth, reconstruction, mean; truth, reconstruction
    assert first == second
    assert first["floor_dice_ribs"] < first["dice_ribs"]
    assert [key for key in first if "_ceiling_" in key and key.startswith("dice")] == [
        "dice_ceiling_ribs",
        "dice_ceiling_foreground",
    ]
    assert not any(key.startswith("floor_") and "_ceiling_" in key for key in first)
    other = metrics.score(case, volume, volume)
    assert other["floor_dice_ribs"] == other["dice_ribs"] == first["dice_ribs"]
