"""A CT and its labels in memory, and a name for their content. No SimpleITK here."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Num, UInt8

Triple = tuple[float, float, float]

# Spacings count as equal within about this many mm. The step is prime to the values that scanners use (decimal or
# dyadic fractions of a mm), so that none lies on the edge between two steps and rounding in a file cannot move it over.
_SPACING_STEP = 0.0073


@dataclass(frozen=True)
class CtImage:
    """A CT in HU, int16 or float32 [D, H, W], axes LPS; ``spacing`` and ``origin`` (x, y, z) in mm.

    ``meta``: path, format, ``notes`` (lines for the user) and, as stored, orientation, spacing, size and corners (the
    centres of the corner voxels, mm LPS [8, 3]).
    """

    hu: Num[np.ndarray, "D H W"]
    spacing: Triple
    origin: Triple
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def extent(self) -> Triple:
        """Size of the box of voxels in mm (x, y, z)."""
        d, h, w = self.hu.shape
        return (w * self.spacing[0], h * self.spacing[1], d * self.spacing[2])

    @property
    def centre(self) -> Triple:
        """Centre of the box of voxels, mm LPS (x, y, z)."""
        shape = self.hu.shape[::-1]
        x, y, z = (self.origin[i] + (shape[i] - 1) / 2 * self.spacing[i] for i in range(3))
        return (x, y, z)


@dataclass(frozen=True)
class LabelImage:
    """Labels uint8 [D, H, W], axes LPS; ``spacing`` and ``origin`` (x, y, z) in mm.

    ``meta``: orientation, spacing, size and corners as stored.
    """

    labels: UInt8[np.ndarray, "D H W"]
    spacing: Triple
    origin: Triple
    meta: dict[str, Any] = field(default_factory=dict)


def content_hash(ct: CtImage) -> str:
    """SHA-256 (hexadecimal) of what a scan shows: voxels in whole HU [D, H, W] LPS, and the spacing.

    The same scan read from a DICOM series, a NIfTI file or another stored orientation has the same hash; file names,
    the header's other fields and the position in the room do not enter. Oblique and gantry-tilted scans are resampled
    on reading, so for them this holds only between files of one orientation.
    """
    digest = hashlib.sha256()
    digest.update(repr((ct.hu.shape, [round(s / _SPACING_STEP) for s in ct.spacing])).encode())
    for plane in ct.hu:  # one at a time: a scan of a gigabyte needs no second one
        digest.update(np.clip(np.rint(plane), -32768, 32767).astype("<i2").tobytes())
    return digest.hexdigest()


def triple(values: Sequence[float]) -> Triple:
    """Three plain floats."""
    x, y, z = (float(v) for v in values)
    return (x, y, z)
