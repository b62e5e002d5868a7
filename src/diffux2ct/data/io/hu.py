"""Padding, and the question whether the values of a scan are HU. No SimpleITK here.

Padding is no part of the scan: GE fills the corners outside its round field of view with -2000, and tools that resample
fill them with 0 HU, which is water. The values are judged without it.
"""

from pathlib import Path

import numpy as np
from jaxtyping import Bool, Num

from diffux2ct.data.body import label_parts
from diffux2ct.errors import UserError

AIR = -1024  # HU: the floor of what is read, and the border of every resampled or padded volume
_LIKE_AIR = (-1100.0, -900.0)  # HU: padding of this value can be air itself
_FLAT = 0.05  # of a scan: that many voxels of one value, corners included, were never measured
_LOOKED_AT = 1e6  # voxels that are judged, spread over the scan
_STORED_TISSUE = (900.0, 1200.0)  # soft tissue in stored values whose intercept, mostly -1024, is lost
_NORMALISED = 10.0  # the values of a scan span at least this in HU, and less where they were normalised
_FAT = -50.0  # HU: every patient has voxels below: fat, lung, air


def check_hu(values: Num[np.ndarray, "D H W"], path: Path) -> tuple[float, float]:
    """The least and the greatest value, if all can be HU: finite, and neither grey levels nor stored values.

    Raises UserError, which ``path`` begins, if they cannot. Values below -1024 and one other negative value alone are
    padding and are not judged.
    """
    low, high = float(values.min()), float(values.max())
    if not np.isfinite(low) or not np.isfinite(high):  # min and max pass NaN on
        count = int(np.count_nonzero(~np.isfinite(values)))
        raise UserError(f"{path}: {count} voxels are NaN or infinite; mend the file (set them to -1024)")
    if high > 100_000:
        raise UserError(f"{path}: values up to {high:g} cannot be HU; convert the scan to HU first")
    # Leave out the padding.
    step = max(1, int((values.size / _LOOKED_AT) ** (1 / 3)))
    sample = values[::step, ::step, ::step]
    judged = sample[sample >= AIR] if low < AIR else sample.ravel()
    inside = judged[judged >= 0]
    if inside.size < judged.size:
        others = judged[judged < 0]
        if others.min() < others.max():
            inside = judged
        elif not _LIKE_AIR[0] <= others[0] <= _LIKE_AIR[1]:
            judged = inside
    apart, (least, most) = "", (low, high)
    if judged.size < sample.size and _measured(judged):
        apart, least, most = " (without the padding)", float(judged.min()), float(judged.max())
    # Judge the rest. A scan that was resampled runs into its padding: a few of its voxels lie between.
    scan = inside[inside != values[0, 0, 0]]
    if _measured(scan) and np.ptp(scan) < _NORMALISED:
        apart, least, most = " (without the padding)", float(scan.min()), float(scan.max())
    if least < 0 and most - least < 100:
        raise UserError(
            f"{path}: values from {least:g} to {most:g}{apart} span too little for HU (normalised?); "
            "give the scan in HU"
        )
    if least >= 0 or _stored(scan):
        hint = "grey levels, not HU" if most <= 255 else "not HU (is the rescale intercept, often -1024, missing?)"
        raise UserError(
            f"{path}: values from {least:g} to {most:g}{apart} are {hint}; convert the scan to HU first, "
            "or prepare it with dataset.prepare.rescale"
        )
    return low, high


def padding_of(hu: Num[np.ndarray, "D H W"]) -> tuple[float, Bool[np.ndarray, "D H W"]] | None:
    """The value of padding that is not air's, in all corners, and its voxels, which hang together with a corner.

    None where there is none: noise never gives tissue one value, so that only a scan with much of one value has any.
    """
    corners = tuple(slice(None, None, max(side - 1, 1)) for side in hu.shape)
    value = hu[corners].flat[0]
    if value <= _LIKE_AIR[1] or np.any(hu[corners] != value) or np.count_nonzero(hu == value) < _FLAT * hu.size:
        return None
    names, _ = label_parts(hu == value)
    return float(value), np.isin(names, np.unique(names[corners]))


def _stored(scan: np.ndarray) -> bool:
    """True where hardly anything is fat, lung or air, and much lies where stored values have soft tissue."""
    tissue = scan[(scan >= _STORED_TISSUE[0]) & (scan <= _STORED_TISSUE[1])]
    enough = max(0.25 * scan.size, 2 * np.count_nonzero(scan < _FAT))
    return bool(tissue.size > enough) and _measured(tissue)


def _measured(values: np.ndarray) -> bool:
    """True for values with noise; those of a drawing are few."""
    return np.unique(values[:: max(1, values.size // 10_000)]).size > 8
