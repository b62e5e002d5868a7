"""Distortion metrics between a reconstructed and a true volume, as the DiffuX2CT paper tables use them.

`psnr`, `psnr3d`, `ssim` and `ssim3d` take two volumes ``[D, H, W]`` in [-1, 1] (the clipped HU window), map both to
[0, 1] and use peak 1, so decibels here are relative to the width of the HU window. Numbers from other papers compare
only if their peak is the same: ``protocols.py`` has those of the field, and scores batches by all metrics at once.
"""

import math

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from diffux2ct.evaluation.fidelity.ssim import structural_similarity
from diffux2ct.evaluation.metric import Metric, computes, metric

EXACT_DB = 100.0
"""Score in dB of a slice (or volume) without any error, where the formula gives infinity. X2CT-GAN's rule."""


def unit_range(volume: Float[Tensor, "..."]) -> Float64[Tensor, "..."]:
    """[-1, 1] -> [0, 1], clipped, in double precision so that only equal voxels give a zero error.

    On the volume's device, see `in_double`.
    """
    return in_double(volume).add(1.0).div_(2.0).clamp_(0.0, 1.0)


def in_double(volume: Float[Tensor, "..."]) -> Float64[Tensor, "..."]:
    """Double precision on the volume's device, or on the CPU where that has none (Apple's)."""
    return volume.detach().to("cpu" if volume.device.type == "mps" else volume.device).to(torch.float64)


def slice_errors(
    a: Float64[Tensor, "b d h w"], b: Float64[Tensor, "b d h w"]
) -> tuple[Float64[Tensor, "b d"], Float64[Tensor, "b h"], Float64[Tensor, "b w"]]:
    """Mean squared error of every slice across each axis: axial, coronal, sagittal, in the volumes' unit squared.

    The volume's own is the mean of any of the three.
    """
    squared = (a - b).square_()
    rows = squared.mean(dim=3)
    return rows.mean(dim=2), rows.mean(dim=1), squared.mean(dim=(1, 2))


def decibel(mean_squared_error: Float64[Tensor, "..."], peak: float | int = 1.0) -> Float64[Tensor, "..."]:
    """PSNR in dB, 10 log10(peak^2 / error), and `EXACT_DB` where the error is 0; ``peak`` in the volumes' unit."""
    value = 20 * np.log10(peak) - 10 * torch.log10(mean_squared_error)
    return torch.where(mean_squared_error == 0, EXACT_DB, value)


@metric(
    "psnr3d",
    title="PSNR3D",
    unit="dB",
    larger_is_better=True,
    about="one mean squared error per volume; the number to compare methods by",
)
def psnr3d(prediction: Float[Tensor, "d h w"], target: Float[Tensor, "d h w"]) -> float:
    """Peak signal-to-noise ratio from one mean squared error over the whole volume, in dB.

    The headline number: unlike `psnr` it cannot be raised by getting empty slices exactly right.
    A volume without error scores 100 dB.
    """
    axial, _, _ = slice_errors(*_pair(prediction, target))
    return float(decibel(axial.mean()))


@metric(
    "psnr",
    title="PSNR",
    unit="dB",
    larger_is_better=True,
    about="per slice, mean over three axes; a slice without any error counts as 100 dB",
)
def psnr(prediction: Float[Tensor, "d h w"], target: Float[Tensor, "d h w"]) -> float:
    """Slice-wise PSNR in dB: mean over the slices of each axis, then over the three axes.

    X2CT's "PSNR-avg" and the paper's PSNR. Two peculiarities to know before comparing:
    a slice reproduced exactly scores 100 dB, so a fraction f of empty padded slices lifts the mean by
    roughly 100 f dB for a method that clamps its output and by nothing for one that does not;
    and by Jensen's inequality it is never below `psnr3d` as long as no slice exceeds 100 dB.
    """
    errors = slice_errors(*_pair(prediction, target))
    return float(torch.stack([decibel(error).mean() for error in errors]).mean())


@metric("ssim", title="SSIM", larger_is_better=True, about="per slice, 7×7 window, mean over three axes")
def ssim(prediction: Float[Tensor, "d h w"], target: Float[Tensor, "d h w"]) -> float:
    """Slice-wise structural similarity: 2D windows of 7x7, mean over slices, then over the three axes.

    X2CT's protocol: skimage with the slices as channels, a uniform window, data range 1 and sample
    covariance. Where a side is shorter than 7 the window shrinks to the largest odd size that fits; ValueError below 3.
    """
    scores = structural_similarity(*_pair(prediction, target), volume=False)
    return float(torch.stack([slices.mean() for slices in scores[:3]]).mean())


@metric("ssim3d", title="SSIM3D", larger_is_better=True, about="7×7×7 window")
def ssim3d(prediction: Float[Tensor, "d h w"], target: Float[Tensor, "d h w"]) -> float:
    """Structural similarity of the volume with one uniform window of 7x7x7 (skimage, data range 1).

    The paper does not say how its SSIM3D was computed; this is our choice. The window shrinks as in `ssim`.
    """
    volume = structural_similarity(*_pair(prediction, target)).volume
    assert volume is not None
    return float(volume)


def _pair(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    return unit_range(prediction)[None], unit_range(target)[None]


# Mean absolute error in HU, over all voxels and by what the true voxel is: air, lung, soft tissue, bone, metal.

TISSUES: dict[str, tuple[float, float]] = {
    "air": (-math.inf, -900.0),
    "lung": (-900.0, -500.0),
    "soft": (-500.0, 226.0),
    "bone": (226.0, 1100.0),
    "metal": (1100.0, math.inf),
}
"""From (inclusive) and to (exclusive) in HU.

-900 and -500 bound normally aerated lung (Gattinoni et al., Am J Respir Crit Care Med 164, 2001; what lies below is
air, in the body or around it). 226 is where the preset "Bone (CT)" of Mimics (Materialise) begins, as for
``dice_bone``: spongy bone is mostly below it, so "soft" holds fat, muscle, organs, marrow, poorly aerated lung and the
skin's partial volume. 1100 is where the search for implants sees metal: below the usual window's end (1500 HU), above
which a prepared volume is clipped. The densest cortical bone may exceed it.
"""


def _span(low: float, high: float) -> str:
    if low == -math.inf:
        return f"below {high:g} HU"
    return f"from {low:g} HU" if high == math.inf else f"{low:g} to {high:g} HU"


def _error(key: str, name: str, about: str) -> Metric:
    return Metric(key, f"MAE{name}", "HU", False, f"mean absolute error {about}", "Error in HU")


@computes(
    _error("mae", "", "over all voxels"),
    *(
        _error(f"mae_{name}", " soft tissue" if name == "soft" else f" {name}", f"where the truth is {_span(*span)}")
        for name, span in TISSUES.items()
    ),
)
def mae_hu(
    prediction: Float64[Tensor, "b d h w"], target: Float64[Tensor, "b d h w"]
) -> dict[str, Float64[Tensor, " b"]]:
    """{"mae", "mae_air", "mae_lung", "mae_soft", "mae_bone", "mae_metal"} in HU, one value a volume.

    Volumes in HU. NaN where a volume has no true voxel of a tissue. A voxel's class is that of its true HU rounded: a
    whole number that came through float32 in [-1, 1] is off by up to 2e-4.
    """
    error = (prediction - target).abs()
    dims = (1, 2, 3)
    scores = {"mae": error.mean(dim=dims)}
    whole = target.round()
    for name, (low, high) in TISSUES.items():
        inside = (whole >= low).logical_and_(whole < high)
        scores[f"mae_{name}"] = (error * inside).sum(dim=dims) / inside.sum(dim=dims)  # 0 / 0 is NaN
    return scores
