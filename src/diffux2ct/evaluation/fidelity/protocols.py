"""Named protocols: how a reconstruction is compared with the truth, down to peak, rounding and empty slices.

In this field the protocol decides the number. X2CT-GAN's script alone adds 4.29 dB by its peak (4095 for data that end
at 2500) and lets an exactly reproduced slice count as 100 dB. Never compare across protocols.

Their sources (no code is taken over):

- ``paper``: the DiffuX2CT paper: PSNR, PSNR3D, SSIM, SSIM3D; peak and window are unstated there. Data in
  [0, 1] of the HU window, peak 1, exact slices at 100 dB. Ours, and the default.
- ``x2ct``: kylekma/X2CT at a9f0473, 3DGAN/test.py and 3DGAN/lib/utils/metrics_np.py. Stored values are HU + 1024,
  limited to [0, 2500]. SSIM on [0, 1]; then values are truncated to int32, and PSNR, PSNR3D and MAE are computed from
  these with PIXEL_MAX 4095. Zero-error slices and volumes: 100 dB.
- ``psct``: DYDevelop/PSCT-Net at b174d1c, test.py and lib/utils/metrics_np.py. As x2ct with PIXEL_MAX 2500, SSIM from
  the truncated values too. Its port to the current scikit-image passes ``channel_axis=True``, which means axis 1: its
  "SSIM-avg" is the mean of the sagittal score twice and the coronal once, and the axial one never counts. Kept as it
  is, since that is what the script prints. (Its LPIPS, of axial slices only, is no part of this.)
- ``strict``: slices where the truth is constant (padding, air) say nothing about a method beyond whether it clamps its
  output, so they are left out of PSNR and SSIM. The number to quote is PSNR3D.

SSIM3D, MS-SSIM and the errors by tissue are ours; under another protocol they are computed from its data.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from diffux2ct.arguments import check_choice
from diffux2ct.evaluation.fidelity.distortion import decibel, in_double, mae_hu, slice_errors
from diffux2ct.evaluation.fidelity.ssim import ms_ssim3d, structural_similarity
from diffux2ct.intensity import Window

AXES = ("axial", "coronal", "sagittal")
"""Names of slices across array axis 0, 1, 2."""


@dataclass(frozen=True)
class Protocol:
    """Rules by which two volumes are compared.

    about: one line for a report. value_range: HU that become 0 and 1, clipping beyond; None: the data set's window.
    psnr_peak: peak in HU; None: the width of value_range. truncate: where values are cut to whole HU above the range's
    lower end: nowhere, for PSNR and MAE, or for all. constant_slices: slices in which the TRUTH is constant count in
    the slice-wise means, or not. ssim_axes: array axes over which SSIM is averaged. headline: the metric to quote.
    """

    name: str
    about: str
    value_range: tuple[float, float] | None = None
    psnr_peak: float | None = None
    truncate: Literal["never", "psnr", "all"] = "never"
    constant_slices: Literal["count", "skip"] = "count"
    ssim_axes: tuple[int, ...] = (0, 1, 2)
    headline: str = "psnr"


PROTOCOLS: Mapping[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol("paper", "peak = width of the HU window; an exact slice counts as 100 dB"),
        Protocol(
            "x2ct",
            "X2CT-GAN's script: whole numbers in [0, 2500], peak 4095 (4.29 dB more), an exact slice counts as 100 dB",
            value_range=(-1024.0, 1476.0),
            psnr_peak=4095.0,
            truncate="psnr",
        ),
        Protocol(
            "psct",
            "PSCT-Net's script: whole numbers in [0, 2500], peak 2500, SSIM of sagittal (twice) and coronal slices",
            value_range=(-1024.0, 1476.0),
            psnr_peak=2500.0,
            truncate="all",
            ssim_axes=(2, 2, 1),
        ),
        Protocol(
            "strict",
            "slices where the truth is constant are left out; quote PSNR3D",
            constant_slices="skip",
            headline="psnr3d",
        ),
    )
}

Score = dict[str, float | None]


def protocol_named(name: str) -> Protocol:
    """One of `PROTOCOLS`. UserError for another name."""
    check_choice("metrics.protocol", name, PROTOCOLS)
    return PROTOCOLS[name]


def score(
    prediction: Float[Tensor, "b d h w"],
    target: Float[Tensor, "b d h w"],
    window: Window,
    protocol: Protocol | None = None,
) -> list[Score]:
    """All distortion metrics of each volume of a batch under a protocol (None: ``paper``).

    Volumes in [-1, 1] of ``window`` (HU that -1 and 1 stand for), on any device; the prediction is clipped.

    Returns one dict a volume, always with the same keys: psnr, psnr3d (dB), ssim, ssim_axial, ssim_coronal,
    ssim_sagittal, ssim3d, ms_ssim3d, mae and mae_<tissue> (HU). None: the truth has no such tissue, or, where constant
    slices are skipped, no other slice. ValueError: a side below 3 voxels, NaN in a volume, or an empty window.
    """
    protocol = protocol or PROTOCOLS["paper"]
    low, high = protocol.value_range or (float(window[0]), float(window[1]))
    a, b = (_above(volume, window, low, high) for volume in (prediction, target))
    cut_a, cut_b = (a, b) if protocol.truncate == "never" else (_truncated(a), _truncated(b))
    kept = _kept_slices(b if protocol.truncate == "never" else cut_b, protocol)
    errors = slice_errors(cut_a, cut_b)
    peak = protocol.psnr_peak or high - low
    slice_db = [_mean(decibel(error, peak), keep) for error, keep in zip(errors, kept, strict=True)]
    scores = {"psnr": torch.stack(slice_db).nanmean(dim=0), "psnr3d": decibel(errors[0].mean(dim=1), peak)}
    if protocol.truncate == "all":
        a, b = cut_a, cut_b
    scores |= _similarities(a, b, high - low, kept, protocol)
    scores |= mae_hu(cut_a + low, cut_b + low)
    if not torch.isfinite(scores["mae"]).all():
        raise ValueError("a volume to compare holds NaN")
    return _rows(scores)


def _above(volume: Tensor, window: Window, low: float, high: float) -> Float64[Tensor, "b d h w"]:
    """[-1, 1] of ``window`` -> HU above ``low``, clipped to [low, high], in double precision."""
    if not window[0] < window[1]:
        raise ValueError(f"HU window must rise, got {tuple(window)}")
    # The first operation makes a copy, so that a caller's double-precision volume stays as it is.
    values = in_double(volume).clamp(-1, 1).add_(1).mul_((window[1] - window[0]) / 2)
    return values.add_(window[0] - low).clamp_(0, high - low)


def _truncated(values: Tensor) -> Tensor:
    """Whole numbers, towards zero (values are not negative).

    A whole HU that came through float32 in [-1, 1] is off by up to 2e-4, half of the time downwards: 1e-3 more keeps
    it from losing a whole unit.
    """
    return torch.floor(values + 1e-3)


def _kept_slices(target: Tensor, protocol: Protocol) -> list[Bool[Tensor, "b n"] | None]:
    """For each axis the slices that count; None: all."""
    if protocol.constant_slices == "count":
        return [None, None, None]
    others = ((2, 3), (1, 3), (1, 2))
    return [target.amax(dim=dims) > target.amin(dim=dims) for dims in others]


def _mean(values: Float64[Tensor, "b n"], keep: Bool[Tensor, "b n"] | None) -> Float64[Tensor, " b"]:
    """Mean over slices; NaN where none counts."""
    return values.mean(dim=1) if keep is None else torch.where(keep, values, math.nan).nanmean(dim=1)


def _similarities(
    a: Tensor, b: Tensor, data_range: float, kept: list[Tensor | None], protocol: Protocol
) -> dict[str, Tensor]:
    similarity = structural_similarity(a, b, data_range=data_range)
    assert similarity.volume is not None
    axes = [_mean(slices, keep) for slices, keep in zip(similarity[:3], kept, strict=True)]
    return {
        "ssim": torch.stack([axes[axis] for axis in protocol.ssim_axes]).nanmean(dim=0),
        **{f"ssim_{name}": value for name, value in zip(AXES, axes, strict=True)},
        "ssim3d": similarity.volume,
        "ms_ssim3d": ms_ssim3d(a, b, data_range=data_range),
    }


def _rows(scores: Mapping[str, Tensor]) -> list[Score]:
    rows = zip(*(values.tolist() for values in scores.values()), strict=True)
    return [
        {name: None if math.isnan(value) else value for name, value in zip(scores, row, strict=True)} for row in rows
    ]
