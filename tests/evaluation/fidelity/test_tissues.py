import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from diffux2ct.evaluation.fidelity.distortion import TISSUES, mae_hu
from diffux2ct.evaluation.fidelity.protocols import score
from diffux2ct.intensity import denormalize_hu, normalize_hu


def volume(*values):
    return torch.tensor(values, dtype=torch.float64).reshape(1, 1, 1, -1)


def test_errors_by_the_truths_range_worked_by_hand():
    truth = volume(-1000, -901, -900, -501, -500, 225, 226, 1099, 1100, 1500)
    error = volume(10, 30, 5, 15, 100, 300, 40, 60, 7, 9)
    sign = volume(1, -1, 1, -1, 1, 1, -1, 1, -1, 1)
    scores = {name: value.item() for name, value in mae_hu(truth + sign * error, truth).items()}
    assert scores == {
        "mae": 57.6, "mae_air": 20.0, "mae_lung": 10.0, "mae_soft": 200.0, "mae_bone": 50.0, "mae_metal": 8.0
    }  # fmt: skip


def test_a_voxel_exactly_at_a_bound_counts_above_it_whatever_float32_makes_of_it():
    window = (-1024.0, 1500.0)
    bounds = np.array([-900, -500, 226, 1100], np.int16).repeat(3).reshape(1, 3, 4)
    truth = torch.from_numpy(normalize_hu(bounds, window).astype(np.float32))[None].expand(1, 3, 3, 4)
    above = denormalize_hu(truth[0, 0].double(), window) - torch.from_numpy(bounds[0]).double()
    assert (above < 0).any()  # so that the bounds alone would put some below
    (scores,) = score(torch.full_like(truth, -1.0), truth, window)
    assert scores["mae_air"] is None
    expected = {"lung": 124.0, "soft": 524.0, "bone": 1250.0, "metal": 2124.0}
    for name, error in expected.items():
        assert scores[f"mae_{name}"] == pytest.approx(error, abs=1e-3), name


def test_prediction_does_not_move_a_voxel_to_another_tissue():
    # Bone is missed altogether: that is an error of bone, and soft tissue is right.
    truth = volume(300, 300, 0, 0)
    scores = mae_hu(volume(0, 0, 0, 0), truth)
    assert scores["mae_bone"].item() == 300
    assert scores["mae_soft"].item() == 0


def test_absent_tissue_is_nan_and_only_in_the_volume_that_lacks_it():
    truth = torch.stack([volume(0, 10)[0], volume(0, 1200)[0]])
    metal = mae_hu(truth + 4, truth)["mae_metal"]
    assert math.isnan(metal[0])
    assert metal[1].item() == 4


def test_tissues_share_out_all_voxels_so_that_their_weighted_mean_is_the_whole():
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(2, 6, 7, 8, generator=generator, dtype=torch.float64) * 2600 - 1050
    prediction = truth + 100 * torch.randn(truth.shape, generator=generator, dtype=torch.float64)
    scores = mae_hu(prediction, truth)
    shares = {
        name: ((truth >= low) & (truth < high)).double().mean(dim=(1, 2, 3)) for name, (low, high) in TISSUES.items()
    }
    weighted = torch.stack([shares[name] * scores[f"mae_{name}"] for name in TISSUES]).sum(0)
    assert_close(weighted, scores["mae"], rtol=0, atol=1e-9)
