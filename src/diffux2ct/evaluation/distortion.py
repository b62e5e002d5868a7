"""Distortion metrics between a reconstructed and a true volume, as the DiffuX2CT paper tables use them.

Every metric takes two volumes ``[D, H, W]`` in [-1, 1] (the clipped HU window), maps both to [0, 1] and uses
peak 1, so decibels here are relative to the width of the HU window. Numbers from other papers compare only
if their peak is the same: X2CT's released code takes 4095 as the peak of data that end at 2500, which adds
4.29 dB.
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Float64
from skimage.metrics import structural_similarity
from torch import Tensor

EXACT_DB = 100.0
"""What a slice (or volume) without any error scores in dB, where the formula gives infinity. X2CT's rule."""

SSIM_WINDOW = 7
"""Side of the uniform SSIM window in voxels: skimage's default, which X2CT uses."""


def psnr3d(prediction: Float[Tensor, "d h w"], target: Float[Tensor, "d h w"]) -> float:
    """Peak signal-to-noise ratio from one mean squared error over the whole volume, in dB.

    The headline number: unlike `psnr` it cannot be raised by getting empty slices exactly right.
    A volume without error scores 100 dB.
    """
    error = _unit_range(prediction) - _unit_range(target)
    return float(_decibel(np.mean(error**2, keepdims=True)).item())


def slice_psnr(
    prediction: Float[Tensor, "d h w"], target: Float[Tensor, "d h w"], axis: int
) -> Float64[np.ndarray, " slices"]:
    """PSNR of every slice across one array axis (0 axial, 1 coronal, 2 sagittal), in dB.

    A slice whose error is exactly zero scores 100 dB. Volumes in [-1, 1].
    """
    error = _unit_range(prediction) - _unit_range(target)
    others = tuple(other for other in range(3) if other != axis)
    return _decibel(np.mean(error**2, axis=others))


def psnr(prediction: Float[Tensor, "d h w"], target: Float[Tensor, "d h w"]) -> float:
    """Slice-wise PSNR in dB: mean over the slices of each axis, then over the three axes.

    X2CT's "PSNR-avg" and the paper's PSNR. Two peculiarities to know before comparing:
    a slice reproduced exactly scores 100 dB, so a fraction f of empty padded slices lifts the mean by
    roughly 100 f dB for a method that clamps its output and by nothing for one that does not;
    and by Jensen's inequality it is never below `psnr3d` as long as no slice exceeds 100 dB.
    """
    return float(np.mean([slice_psnr(prediction, target, axis).mean() for axis in range(3)]))


def ssim(prediction: Float[Tensor, "d h w"], target: Float[Tensor, "d h w"]) -> float:
    """Slice-wise structural similarity: 2D windows of 7x7, mean over slices, then over the three axes.

    X2CT's protocol: skimage with the slices as channels, a uniform window, data range 1 and sample
    covariance. Where a side is shorter than 7 the window shrinks to the largest odd size that fits.

    Raises:
        ValueError: a side is shorter than 3 voxels.
    """
    a, b = _unit_range(prediction), _unit_range(target)
    return float(np.mean([_similarity(a, b, channel_axis=axis) for axis in range(3)]))


def ssim3d(prediction: Float[Tensor, "d h w"], target: Float[Tensor, "d h w"]) -> float:
    """Structural similarity of the volume with one uniform window of 7x7x7 (skimage, data range 1).

    The paper does not say how its SSIM3D was computed; this is our choice. The window shrinks as in `ssim`.

    Raises:
        ValueError: a side is shorter than 3 voxels.
    """
    return _similarity(_unit_range(prediction), _unit_range(target), channel_axis=None)


Metric = Callable[[Tensor, Tensor], float]

METRICS: dict[str, Metric] = {"psnr": psnr, "psnr3d": psnr3d, "ssim": ssim, "ssim3d": ssim3d}
"""Metrics by name: ``metric(prediction, target)`` on volumes [D, H, W] in [-1, 1]. Larger is better."""


def _unit_range(volume: Tensor) -> np.ndarray:
    """[-1, 1] -> [0, 1], clipped, in float64 so that only equal voxels give a zero error."""
    array = volume.detach().to("cpu", torch.float64).numpy()
    return np.clip((array + 1.0) / 2.0, 0.0, 1.0)


def _decibel(mean_squared_error: np.ndarray) -> np.ndarray:
    exact = mean_squared_error == 0
    return np.where(exact, EXACT_DB, -10.0 * np.log10(np.where(exact, 1.0, mean_squared_error)))


def _similarity(a: np.ndarray, b: np.ndarray, channel_axis: int | None) -> float:
    smallest = min(a.shape)
    if smallest < 3:
        raise ValueError(f"SSIM needs at least 3 voxels per side, this volume has {a.shape}")
    window = min(SSIM_WINDOW, smallest if smallest % 2 else smallest - 1)
    score = structural_similarity(a, b, win_size=window, data_range=1.0, channel_axis=channel_axis)
    return float(np.asarray(score))
