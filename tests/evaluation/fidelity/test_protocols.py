import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch.testing import assert_close

from diffux2ct.errors import UserError
from diffux2ct.evaluation.fidelity import distortion
from diffux2ct.evaluation.fidelity.protocols import PROTOCOLS, protocol_named, score
from diffux2ct.evaluation.metric import find_metric
from diffux2ct.evaluation.metric_set import DEFAULT_NAMES
from diffux2ct.intensity import normalize_hu

WINDOW = (-1024.0, 1500.0)
KEYS = [
    "psnr", "psnr3d", "ssim", "ssim_axial", "ssim_coronal", "ssim_sagittal", "ssim3d", "ms_ssim3d",
    "mae", "mae_air", "mae_lung", "mae_soft", "mae_bone", "mae_metal",
]  # fmt: skip


def pair(seed, shape, noise=0.2, batch=1):
    generator = torch.Generator().manual_seed(seed)
    target = torch.rand((batch, *shape), generator=generator) * 2 - 1
    return (target + noise * torch.randn(target.shape, generator=generator)).clamp(-1, 1), target


def from_hu(array):
    return torch.from_numpy(normalize_hu(np.asarray(array, np.float32), WINDOW))[None]


def scored(prediction, target, protocol) -> dict[str, Any]:
    (row,) = score(prediction, target, WINDOW, PROTOCOLS[protocol])
    return dict(row)


def slice_loop(metric, a, b):
    """Of every slice across every axis, mean over an axis's slices: what scikit-image's users write."""
    return [
        np.mean([metric(x, y) for x, y in zip(np.moveaxis(a, k, 0), np.moveaxis(b, k, 0), strict=True)])
        for k in range(3)
    ]


@pytest.mark.parametrize(("shape", "batch"), [((16, 16, 16), 1), ((9, 17, 12), 3), ((7, 7, 30), 2), ((40, 21, 8), 2)])
def test_paper_protocol_is_scikit_images(shape, batch):
    prediction, target = pair(sum(shape), shape, batch=batch)
    rows = score(prediction, target, WINDOW)
    assert len(rows) == batch
    for row, x, y in zip(rows, prediction, target, strict=True):
        a, b = ((v.double().numpy() + 1) / 2 for v in (y, x))
        expected = {
            "psnr": np.mean(slice_loop(lambda u, v: peak_signal_noise_ratio(u, v, data_range=1), a, b)),
            "psnr3d": peak_signal_noise_ratio(a, b, data_range=1),
            "ssim3d": structural_similarity(a, b, data_range=1),
            "mae": 2524 * np.abs(a - b).mean(),
        }
        axes = slice_loop(lambda u, v: structural_similarity(u, v, data_range=1), a, b)
        expected |= dict(zip(("ssim_axial", "ssim_coronal", "ssim_sagittal"), axes, strict=True))
        expected["ssim"] = np.mean(axes)
        for name, value in expected.items():
            assert_close(row[name], float(value), rtol=0, atol=1e-8, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("level", [0.02, 0.999], ids=["dark", "bright"])
def test_flat_volumes_far_from_zero_keep_their_precision(level):
    # Variances of 1e-8 and of exactly 0 beside squares near 1: what single precision would lose.
    rng = np.random.default_rng(0)
    target = np.full((12, 12, 12), level)
    target[6:] += 1e-4 * rng.standard_normal((6, 12, 12))
    prediction = np.clip(target + 0.02 * (rng.random(target.shape) > 0.5) - 0.02, 0, 1)
    target = np.clip(target, 0, 1)
    row = scored(*(torch.from_numpy(v * 2 - 1)[None] for v in (prediction, target)), "paper")
    axes = slice_loop(lambda u, v: structural_similarity(u, v, data_range=1), target, prediction)
    assert_close(row["ssim"], float(np.mean(axes)), rtol=0, atol=1e-7)
    expected = structural_similarity(target, prediction, data_range=1)
    assert_close(row["ssim3d"], float(expected), rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", DEFAULT_NAMES)
def test_paper_protocol_and_scalar_functions_agree(name):
    prediction, target = pair(3, (13, 12, 11))
    assert_close(
        scored(prediction, target, "paper")[name],
        getattr(distortion, name)(prediction[0], target[0]),
        rtol=0,
        atol=1e-9,
    )


def test_x2ct_protocol_worked_by_hand():
    # Stored values (HU + 1024) of 4x4x4 voxels. Truth: 1000 everywhere. Prediction: 1000 in slices 0 and 1, 1100.7 in
    # slice 2, which int32 cuts to 1100, and -50 in slice 3, which is clipped to 0.
    truth = np.full((4, 4, 4), 1000.0)
    prediction = truth.copy()
    prediction[2] = 1100.7
    prediction[3] = -50.0
    row = scored(from_hu(prediction - 1024), from_hu(truth - 1024), "x2ct")
    # Errors 0, 0, 100, 1000. Axial slices: 100 dB twice, 20 log10(4095 / 100) and 20 log10(4095 / 1000). Every coronal
    # and sagittal slice, and the volume: mean squared error (100^2 + 1000^2) / 4 = 252500.
    hundred, thousand = 32.245078, 12.245078
    whole = 72.245078 - 54.022614
    assert_close(row["psnr"], ((200 + hundred + thousand) / 4 + 2 * whole) / 3, rtol=0, atol=1e-4)
    assert_close(row["psnr3d"], whole, rtol=0, atol=1e-4)
    assert_close(row["mae"], 275.0, rtol=0, atol=1e-4)
    # SSIM of constant 3x3 windows is their luminance term: 1, 1, and with 0.4 in the truth against 0.44028 and 0.
    # It is computed before the cut, so 1100.7 / 2500 counts.
    third = (2 * 0.4 * 0.44028 + 1e-4) / (0.4**2 + 0.44028**2 + 1e-4)
    last = 1e-4 / (0.4**2 + 1e-4)
    assert_close(row["ssim_axial"], (2 + third + last) / 4, rtol=0, atol=1e-6)


def by_x2ct_script(prediction, truth, peak):
    """PSNR-avg and psnr-3d on stored numbers as the script defines them, in plain loops."""
    error = (prediction.astype(np.int32) - truth.astype(np.int32)).astype(float) ** 2

    def db(values):
        return 100.0 if values.mean() == 0 else 20 * math.log10(peak / math.sqrt(values.mean()))

    axes = [np.mean([db(s) for s in np.moveaxis(error, axis, 0)]) for axis in range(3)]
    return float(np.mean(axes)), db(error)


@pytest.mark.parametrize(("name", "peak"), [("x2ct", 4095.0), ("psct", 2500.0)])
def test_scripts_of_the_field_are_reproduced_on_stored_numbers(name, peak):
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 2501, (8, 9, 10)).astype(float)
    prediction = np.clip(truth + rng.normal(0, 200, truth.shape), 0, 2500)
    prediction[:2] = truth[:2]  # exact slices
    row = scored(from_hu(prediction - 1024), from_hu(truth - 1024), name)
    expected = by_x2ct_script(from_stored(prediction), truth, peak)
    # A fraction that float32 in [-1, 1] moves over a whole number changes one voxel by one unit of 2500.
    assert_close((row["psnr"], row["psnr3d"]), expected, rtol=0, atol=1e-3)


def from_stored(values):
    # The tolerance that keeps whole numbers from losing a unit, as documented.
    return np.floor(values + 1e-3)


def test_peak_of_x2ct_adds_4_29_db():
    prediction, target = pair(4, (10, 10, 10))
    x2ct, psct = (scored(prediction, target, name) for name in ("x2ct", "psct"))
    assert_close(x2ct["psnr3d"] - psct["psnr3d"], 20 * math.log10(4095 / 2500), rtol=0, atol=1e-9)
    assert_close(20 * math.log10(4095 / 2500), 4.29, rtol=0, atol=0.005)


@pytest.mark.parametrize("name", ["x2ct", "psct"])
def test_whole_numbers_lose_no_unit_on_their_way_through_float32(name):
    # 2501 whole HU, half of which come back a little too small; a truth that is off by one would not be exact.
    truth = np.resize(np.arange(-1024, 1477), (14, 14, 14))
    shifted = truth + 1
    row = scored(from_hu(np.minimum(shifted, 1476)), from_hu(truth), name)
    assert_close(row["mae"], float(np.mean(truth < 1476)), rtol=0, atol=1e-9)


def test_psct_ssim_counts_sagittal_slices_twice_and_axial_ones_never():
    # scikit-image reads channel_axis=True as axis 1. The arrays as handed over: [H, W, D], [D, W, H], [D, H, W].
    rng = np.random.default_rng(2)
    truth = rng.integers(0, 2501, (12, 14, 16)).astype(float)
    prediction = np.round(np.clip(truth + rng.normal(0, 400, truth.shape), 0, 2500))
    expected = [
        structural_similarity(truth.transpose(order), prediction.transpose(order), data_range=2500, channel_axis=True)
        for order in ((1, 2, 0), (0, 2, 1), (0, 1, 2))
    ]
    row = scored(from_hu(prediction - 1024), from_hu(truth - 1024), "psct")
    assert_close(row["ssim"], float(np.mean(expected)), rtol=0, atol=1e-6)
    assert_close(row["ssim"], (2 * row["ssim_sagittal"] + row["ssim_coronal"]) / 3, rtol=0, atol=1e-12)
    assert abs(row["ssim"] - row["ssim_axial"]) > 1e-4


def test_strict_leaves_out_slices_in_which_the_truth_is_constant():
    prediction, target = pair(5, (12, 9, 10))
    inner = scored(prediction[:, 4:], target[:, 4:], "paper")
    target[:, :2], prediction[:, :2] = -1.0, -1.0  # padding, reproduced
    target[:, 2:4], prediction[:, 2:4] = -1.0, -0.99  # padding, missed by a little
    strict, paper = (scored(prediction, target, name) for name in ("strict", "paper"))
    assert_close(strict["ssim_axial"], inner["ssim_axial"], rtol=0, atol=1e-12)
    axial_strict = 3 * strict["psnr"] - (3 * paper["psnr"] - axial_mean_db(prediction, target, range(12)))
    assert_close(axial_strict, axial_mean_db(prediction, target, range(4, 12)), rtol=0, atol=1e-9)
    assert strict["psnr"] < paper["psnr"] - 3  # 2 of 12 slices at 100 dB
    assert strict["psnr3d"] == paper["psnr3d"]


def axial_mean_db(prediction, target, indices):
    error = ((prediction - target).double() / 2)[0] ** 2
    return float(np.mean([100.0 if error[k].max() == 0 else -10 * math.log10(error[k].mean()) for k in indices]))


def test_strict_counts_what_is_wrong_in_a_constant_prediction():
    # Only the truth decides: a method cannot have slices left out by answering with a constant.
    _, target = pair(6, (8, 8, 8))
    flat = torch.zeros_like(target)
    assert_close(scored(flat, target, "strict")["psnr"], scored(flat, target, "paper")["psnr"], rtol=0, atol=1e-12)


def test_strict_has_no_slice_score_for_an_empty_truth():
    empty = torch.full((1, 8, 8, 8), -1.0)
    row = scored(empty + 0.1, empty, "strict")
    absent = {name for name, value in row.items() if value is None}
    slices = {"psnr", "ssim", "ssim_axial", "ssim_coronal", "ssim_sagittal"}
    assert absent == slices | {"mae_lung", "mae_soft", "mae_bone", "mae_metal"}
    assert_close(row["mae_air"], 126.2, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_perfect_volume(name):
    _, target = pair(7, (12, 13, 14))
    row = scored(target, target, name)
    assert list(row) == KEYS
    assert all(find_metric(key) for key in KEYS)
    perfect = {key: 100.0 if "psnr" in key else 0.0 if "mae" in key else 1.0 for key in KEYS}
    assert row == perfect


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    shape=st.tuples(*[st.integers(3, 9)] * 3),
    noise=st.floats(0.01, 1.0),
    name=st.sampled_from(["paper", "psct", "x2ct", "strict"]),
)
def test_slice_psnr_is_never_below_volume_psnr(seed, shape, noise, name):
    # Jensen's inequality; -log is convex. All slices of random volumes vary, so strict keeps them all.
    prediction, target = pair(seed, shape, noise=noise)
    row = scored(prediction, target, name)
    assert row["psnr"] >= row["psnr3d"] - 1e-9


def test_batch_is_scored_volume_by_volume():
    prediction, target = pair(8, (9, 8, 10), batch=3)
    target[1, :3] = prediction[1, :3] = -1
    for name in PROTOCOLS:
        rows = score(prediction, target, WINDOW, PROTOCOLS[name])
        for k, row in enumerate(rows):
            (alone,) = score(prediction[k : k + 1], target[k : k + 1], WINDOW, PROTOCOLS[name])
            assert_close(list(row.values()), list(alone.values()), rtol=0, atol=1e-9)


def test_window_decides_what_a_decibel_is_relative_to_and_inputs_stay_as_they_are():
    prediction, target = pair(9, (8, 8, 8))
    prediction = prediction.double() * 1.5
    before = prediction.clone()
    wide, narrow = (dict[str, Any](score(prediction, target, (-1000, top))[0]) for top in (3000, 1000))
    assert_close(wide["psnr3d"], narrow["psnr3d"], rtol=0, atol=1e-9)
    assert_close(wide["mae"], 2 * narrow["mae"], rtol=1e-9, atol=0)
    assert torch.equal(prediction, before)
    assert wide["psnr3d"] == score(prediction.clamp(-1, 1), target, (-1000, 3000))[0]["psnr3d"]


def test_bad_inputs_are_refused():
    prediction, target = pair(10, (8, 8, 8))
    with pytest.raises(UserError, match="metrics.protocol=fair: no such choice; choose from paper, x2ct, psct, strict"):
        protocol_named("fair")
    assert protocol_named("strict").headline == "psnr3d"
    with pytest.raises(ValueError, match="must rise"):
        score(prediction, target, (100, 100))
    with pytest.raises(ValueError, match="at least 3 voxels"):
        score(prediction[:, :2], target[:, :2], WINDOW)
    prediction[0, 0, 0, 0] = math.nan
    with pytest.raises(ValueError, match="NaN"):
        score(prediction, target, WINDOW)
