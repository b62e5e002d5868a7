import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch.testing import assert_close

from diffux2ct.evaluation.fidelity.distortion import decibel, psnr, psnr3d, slice_errors, ssim, ssim3d, unit_range

FUNCTIONS = {"psnr": psnr, "psnr3d": psnr3d, "ssim": ssim, "ssim3d": ssim3d}


def pair(seed, shape=(9, 10, 11), noise=0.2):
    generator = torch.Generator().manual_seed(seed)
    target = torch.rand(shape, generator=generator) * 2 - 1
    return (target + noise * torch.randn(shape, generator=generator)).clamp(-1, 1), target


def unit(volume):
    return (volume.double().numpy() + 1) / 2


def test_constant_error_is_the_value_worked_by_hand():
    # 0.2 off in [-1, 1] is 0.1 in [0, 1]: -10 log10(0.01) = 20 dB, in every slice as in the volume.
    target = torch.zeros(8, 8, 8)
    prediction = torch.full((8, 8, 8), 0.2)
    assert_close(psnr3d(prediction, target), 20.0, rtol=0, atol=1e-6)
    assert_close(psnr(prediction, target), 20.0, rtol=0, atol=1e-6)


def test_psnr_follows_skimage():
    prediction, target = pair(0)
    a, b = unit(target), unit(prediction)
    assert_close(psnr3d(prediction, target), float(peak_signal_noise_ratio(a, b, data_range=1)), rtol=1e-9, atol=0)
    slices = [
        np.mean(
            [
                peak_signal_noise_ratio(x, y, data_range=1)
                for x, y in zip(np.moveaxis(a, axis, 0), np.moveaxis(b, axis, 0), strict=True)
            ]
        )
        for axis in range(3)
    ]
    # A mean over slices and then axes, which on unequal sides differs from a mean over all slices.
    assert_close(psnr(prediction, target), float(np.mean(slices)), rtol=1e-9, atol=0)


def test_ssim_follows_skimage_slice_by_slice():
    prediction, target = pair(1)
    a, b = unit(target), unit(prediction)
    expected = np.mean(
        [
            np.mean(
                [
                    structural_similarity(x, y, win_size=7, data_range=1)
                    for x, y in zip(np.moveaxis(a, axis, 0), np.moveaxis(b, axis, 0), strict=True)
                ]
            )
            for axis in range(3)
        ]
    )
    assert_close(ssim(prediction, target), float(expected), rtol=1e-9, atol=0)
    assert_close(
        ssim3d(prediction, target), float(structural_similarity(a, b, win_size=7, data_range=1)), rtol=1e-9, atol=0
    )
    assert 0.05 < ssim3d(prediction, target) < 0.98


def test_ssim_window_shrinks_to_what_fits_and_no_further():
    prediction, target = pair(2, shape=(6, 9, 9))
    expected = structural_similarity(unit(target), unit(prediction), win_size=5, data_range=1)
    assert_close(ssim3d(prediction, target), float(expected), rtol=1e-9, atol=0)
    with pytest.raises(ValueError, match="at least 3 voxels"):
        ssim(*pair(2, shape=(2, 9, 9)))


@pytest.mark.parametrize("seed", range(20))
def test_slice_psnr_is_never_below_volume_psnr(seed):
    # Jensen's inequality. The error varies from slice to slice, so that the two differ by more than rounding.
    prediction, target = pair(seed, noise=0.1)
    prediction = target + (prediction - target) * torch.linspace(0.1, 2, 9)[:, None, None]
    assert psnr(prediction, target) > psnr3d(prediction, target) + 0.1


def test_exact_slices_score_100_db():
    # 3 of 8 axial slices exact, the others 20 dB. Every coronal and sagittal slice has 5/8 of the error.
    target = torch.full((8, 8, 8), -1.0)
    prediction = target.clone()
    prediction[3:] += 0.2
    partly = 20 - 10 * math.log10(5 / 8)
    axial = decibel(slice_errors(unit_range(prediction)[None], unit_range(target)[None])[0])
    assert_close(axial[0], torch.tensor([100.0] * 3 + [20.0] * 5, dtype=torch.float64), rtol=0, atol=1e-5)
    assert_close(psnr(prediction, target), ((3 * 100 + 5 * 20) / 8 + 2 * partly) / 3, rtol=0, atol=1e-5)
    assert_close(psnr3d(prediction, target), partly, rtol=0, atol=1e-5)


def test_perfect_answers_are_finite():
    _, target = pair(3)
    assert {name: metric(target, target) for name, metric in FUNCTIONS.items()} == {
        "psnr": 100.0, "psnr3d": 100.0, "ssim": 1.0, "ssim3d": 1.0
    }  # fmt: skip


@pytest.mark.parametrize("metric", FUNCTIONS.values(), ids=FUNCTIONS.keys())
def test_predictions_are_clipped_to_the_window(metric):
    prediction, target = pair(4)
    beyond = torch.where(prediction == 1, 3.0, torch.where(prediction == -1, -3.0, prediction))
    assert (beyond != prediction).any()
    assert_close(metric(beyond, target), metric(prediction, target), rtol=0, atol=0)
