"""CT volumes in and out: the only place that knows orientation, direction cosines and DICOM.

Whatever a scanner or a converter wrote, a volume leaves here as an array [D, H, W] (z to Superior, y to Posterior,
x to Left) in HU with an identity direction. ``spacing`` and ``origin`` are (x, y, z) in mm, LPS, SimpleITK's order.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from diffux2ct.data.dicom import is_dicom, read_series
from diffux2ct.data.image_file import AIR, as_volume, clip_to_hu, read_image
from diffux2ct.errors import UserError

Triple = tuple[float, float, float]
Spacing = float | int | Sequence[float | int]

# Full width at half maximum of a Gaussian of standard deviation 1.
_FWHM = 2.0 * np.sqrt(2.0 * np.log(2.0))
_OBLIQUE = 1e-4  # largest direction cosine error that is taken for rounding; below 0.03 mm over half a metre


@dataclass(frozen=True)
class CtImage:
    """A CT in HU, int16 or float32 [D, H, W], axes LPS; ``spacing`` and ``origin`` (x, y, z) in mm.

    ``meta``: path, format, orientation, spacing and size as stored, and ``notes`` (lines for the user).
    """

    hu: np.ndarray
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
    """Labels uint8 [D, H, W], axes LPS; ``spacing`` and ``origin`` (x, y, z) in mm."""

    labels: np.ndarray
    spacing: Triple
    origin: Triple


def read_ct(path: str | Path) -> CtImage:
    """Read a CT in HU, in any orientation, as an LPS volume with an identity direction.

    path: NIfTI, MHA/MHD or NRRD file; a folder with a DICOM series (of several, the CT series with most slices is
    taken and the others are named in ``meta["notes"]``); or one file of a DICOM series.
    An oblique scan is resampled (linear, border -1024 HU) onto the LPS axes. Values below -1024 HU (padding) become
    -1024. Raises UserError, one line, for whatever is not a CT volume in HU.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; give a CT file or a folder with a DICOM series")
    if path.is_dir() or is_dicom(path):
        image, notes = read_series(path)
        kind = "dicom"
    else:
        image, notes = read_image(path), []
        kind = (
            "".join(path.suffixes[-2:]).lower().lstrip(".") if path.name.endswith(".gz") else path.suffix[1:]
        )
    image = as_volume(image, path)
    meta = {
        "path": str(path),
        "format": kind,
        "orientation": sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(image.GetDirection()),
        "spacing": [float(s) for s in image.GetSpacing()],
        "size": list(image.GetSize()),
        "notes": notes,
    }
    image = clip_to_hu(image, path)
    image = _to_lps(image, sitk.sitkLinear, AIR)
    return _from_sitk(image, meta)


def read_labels(path: str | Path) -> LabelImage:
    """Read a label volume (integers 0..255) in any orientation, as LPS with an identity direction.

    Extent, spacing and direction may differ from the CT's: ``sample_labels`` brings it onto the CT's grid by position.
    Raises UserError for an unreadable file or for values that are no such labels.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such label file")
    image = as_volume(read_image(path), path, min_slices=1)
    values = sitk.GetArrayViewFromImage(image)
    if (
        values.min() < 0
        or values.max() > 255
        or (values.dtype.kind == "f" and np.any(values != np.round(values)))
    ):
        raise UserError(
            f"{path}: labels must be whole numbers from 0 to 255; found {values.min()} to {values.max()}"
        )
    image = _to_lps(sitk.Cast(image, sitk.sitkUInt8), sitk.sitkNearestNeighbor, 0)
    return LabelImage(sitk.GetArrayFromImage(image), _triple(image.GetSpacing()), _triple(image.GetOrigin()))


def blur_for(ct: CtImage, spacing: Spacing) -> CtImage:
    """Low-pass a CT along the axes that sampling at ``spacing`` mm makes coarser; others stay as they are.

    The Gaussian turns a voxel's point spread (FWHM = one voxel) into that of the coarser voxel:
    sigma = sqrt(new^2 - old^2) / 2.355 mm (Cardoso et al. 2015, as in TorchIO).
    """
    new = _spacing(spacing)
    sigma = [np.sqrt(max(n * n - o * o, 0.0)) / _FWHM for n, o in zip(new, ct.spacing, strict=True)]
    if max(sigma) == 0.0:
        return ct
    image = sitk.Cast(_to_sitk(ct), sitk.sitkFloat32)
    for axis, width in enumerate(sigma):
        # The recursive filter is off for kernels well under a voxel, and needs four samples.
        if width > 0.1 * ct.spacing[axis] and image.GetSize()[axis] >= 4:
            image = sitk.RecursiveGaussian(image, sigma=width, direction=axis)
    # The recursive filter overshoots by a few HU beside a sharp edge.
    return replace(ct, hu=np.maximum(sitk.GetArrayFromImage(image), np.float32(ct.hu.min())))


def sample_grid(ct: CtImage, spacing: Spacing, size: Sequence[int], origin: Sequence[float | int]) -> CtImage:
    """Linear samples of a CT on a grid: ``size`` voxels (x, y, z) at ``spacing`` from ``origin``; -1024 HU outside."""
    step = _spacing(spacing)
    # Only the voxels under the grid (and their neighbours) are handed over: a crop out of a large scan stays cheap.
    parts, start = [], []
    for i in range(3):
        first = (origin[i] - ct.origin[i]) / ct.spacing[i]
        last = first + (size[i] - 1) * step[i] / ct.spacing[i]
        low = min(max(int(np.floor(first)) - 1, 0), ct.hu.shape[2 - i] - 1)
        parts.append(slice(low, max(int(np.ceil(last)) + 2, low + 1)))
        start.append(ct.origin[i] + low * ct.spacing[i])
    image = sitk.Cast(_array_to_sitk(ct.hu[tuple(parts[::-1])], ct.spacing, start), sitk.sitkFloat32)
    return _from_sitk(_sample(image, step, size, origin, sitk.sitkLinear, AIR), ct.meta)


def sample_labels(
    labels: LabelImage, spacing: Spacing, size: Sequence[int], origin: Sequence[float]
) -> np.ndarray:
    """Nearest labels, uint8 [D, H, W], on a grid given as in ``sample_grid``; 0 outside."""
    image = _array_to_sitk(labels.labels, labels.spacing, labels.origin)
    image = _sample(image, _spacing(spacing), size, origin, sitk.sitkNearestNeighbor, 0)
    return sitk.GetArrayFromImage(image)


def resample(ct: CtImage, spacing: Spacing, anti_alias: bool = True) -> CtImage:
    """Resample a CT (linear) to ``spacing`` mm (one number, or x, y, z), keeping its centre; float32 HU.

    anti_alias: low-pass first along the axes that become coarser (``blur_for``).
    """
    new = _spacing(spacing)
    size = [max(1, round(e / n)) for e, n in zip(ct.extent, new, strict=True)]
    origin = [c - (s - 1) / 2 * n for c, s, n in zip(ct.centre, size, new, strict=True)]
    return sample_grid(blur_for(ct, new) if anti_alias else ct, new, size, origin)


def crop_or_pad(
    ct: CtImage,
    size: int | Sequence[int],
    centre: Sequence[float | int] | None = None,
    pad: int | float = AIR,
) -> CtImage:
    """Cut ``size`` voxels (one number, or x, y, z) around ``centre``, in whole voxels; what is missing becomes ``pad``.

    centre: mm LPS (x, y, z); None = the centre of the volume. The origin moves along, so that a written file still
    overlays the scan.
    """
    sizes = (size,) * 3 if isinstance(size, int) else tuple(size)
    middle = ct.centre if centre is None else centre
    shape = ct.hu.shape[::-1]
    out = np.full(sizes[::-1], pad, dtype=ct.hu.dtype)
    source, target, origin = [], [], []
    for i in range(3):
        start = int(np.floor((middle[i] - ct.origin[i]) / ct.spacing[i] - (sizes[i] - 1) / 2 + 0.5))
        low, high = max(start, 0), max(min(start + sizes[i], shape[i]), max(start, 0))
        source.append(slice(low, high))
        target.append(slice(low - start, high - start))
        origin.append(ct.origin[i] + start * ct.spacing[i])
    out[tuple(target[::-1])] = ct.hu[tuple(source[::-1])]
    return replace(ct, hu=out, origin=_triple(origin))


def write_nifti(
    path: str | Path, volume: np.ndarray, spacing: Sequence[float | int], origin: Sequence[float]
) -> None:
    """Write an array [D, H, W] as NIfTI with its true affine (spacing, origin: x, y, z in mm, LPS), atomically."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix chooses the format, so the temporary name keeps it.
    partial = path.with_name(f".partial-{os.getpid()}-{path.name}")
    try:
        sitk.WriteImage(_array_to_sitk(volume, spacing, origin), str(partial))
        os.replace(partial, path)
    except RuntimeError as error:
        raise UserError(f"{path}: could not be written ({_last_line(error)}); is the disk full?") from error
    finally:
        partial.unlink(missing_ok=True)


def use_threads(count: int) -> None:
    """Threads that SimpleITK may use in this process; worker processes take one each."""
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(count)


def _to_lps(image: sitk.Image, interpolator: int, outside: int) -> sitk.Image:
    """Permute and flip to LPS; what is left of a rotation is resampled onto the axes, on the box that holds it all."""
    image = sitk.DICOMOrient(image, "LPS")
    direction = np.array(image.GetDirection()).reshape(3, 3)
    if np.abs(direction - np.eye(3)).max() <= _OBLIQUE:
        image.SetDirection(np.eye(3).ravel().tolist())
        return image
    spacing, shape = np.array(image.GetSpacing()), np.array(image.GetSize())
    corners = np.array([(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)]) * (shape - 1)
    points = np.array(
        [image.TransformContinuousIndexToPhysicalPoint(c.astype(float).tolist()) for c in corners]
    )
    size = np.ceil(np.ptp(points, axis=0) / spacing - 1e-6).astype(int) + 1
    return _sample(image, spacing, size, points.min(axis=0), interpolator, outside)


def _sample(image: sitk.Image, spacing, size, origin, interpolator: int, outside: int) -> sitk.Image:
    resampler = sitk.ResampleImageFilter()
    resampler.SetSize([int(s) for s in size])
    resampler.SetOutputSpacing([float(s) for s in spacing])
    resampler.SetOutputOrigin([float(o) for o in origin])
    resampler.SetInterpolator(interpolator)
    resampler.SetDefaultPixelValue(outside)
    return resampler.Execute(image)


def _to_sitk(ct: CtImage) -> sitk.Image:
    return _array_to_sitk(ct.hu, ct.spacing, ct.origin)


def _array_to_sitk(
    array: np.ndarray, spacing: Sequence[float | int], origin: Sequence[float | int]
) -> sitk.Image:
    image = sitk.GetImageFromArray(np.ascontiguousarray(array))
    image.SetSpacing([float(s) for s in spacing])
    image.SetOrigin([float(o) for o in origin])
    return image


def _from_sitk(image: sitk.Image, meta: dict[str, Any]) -> CtImage:
    return CtImage(
        sitk.GetArrayFromImage(image), _triple(image.GetSpacing()), _triple(image.GetOrigin()), dict(meta)
    )


def _spacing(spacing: Spacing) -> Triple:
    values = [float(spacing)] * 3 if isinstance(spacing, float | int) else [float(s) for s in spacing]
    if len(values) != 3 or min(values) <= 0:
        raise UserError(f"spacing={spacing}: give one positive number of mm, or three (x, y, z)")
    return _triple(values)


def _triple(values: Sequence[float]) -> Triple:
    x, y, z = (float(v) for v in values)
    return (x, y, z)


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].strip()
