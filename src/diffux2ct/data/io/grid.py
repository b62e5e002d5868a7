"""Scans onto other grids: low-pass, resample, crop. Grids are LPS, (x, y, z) in mm."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import SimpleITK as sitk
from jaxtyping import Num, UInt8

from diffux2ct.data.io.ct_image import CtImage, LabelImage, Triple, triple
from diffux2ct.data.io.image_file import AIR
from diffux2ct.errors import UserError

Spacing = float | int | Sequence[float | int]

# Full width at half maximum of a Gaussian of standard deviation 1.
_FWHM = 2.0 * np.sqrt(2.0 * np.log(2.0))


def blur_for(ct: CtImage, spacing: Spacing) -> CtImage:
    """Low-pass a CT along the axes that sampling at ``spacing`` mm makes coarser; others stay as they are.

    The Gaussian turns a voxel's point spread (FWHM = one voxel) into that of the coarser voxel:
    sigma = sqrt(new^2 - old^2) / 2.355 mm (Cardoso et al. 2015, as in TorchIO).
    """
    new = _spacing(spacing)
    sigma = [np.sqrt(max(n * n - o * o, 0.0)) / _FWHM for n, o in zip(new, ct.spacing, strict=True)]
    if max(sigma) == 0.0:
        return ct
    image = sitk.Cast(array_to_sitk(ct.hu, ct.spacing, ct.origin), sitk.sitkFloat32)
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
    image = sitk.Cast(array_to_sitk(ct.hu[tuple(parts[::-1])], ct.spacing, start), sitk.sitkFloat32)
    return from_sitk(sample_image(image, step, size, origin, sitk.sitkLinear, AIR), ct.meta)


def sample_labels(
    labels: LabelImage, spacing: Spacing, size: Sequence[int], origin: Sequence[float]
) -> UInt8[np.ndarray, "D H W"]:
    """Nearest labels, uint8 [D, H, W], on a grid given as in ``sample_grid``; 0 outside."""
    image = array_to_sitk(labels.labels, labels.spacing, labels.origin)
    image = sample_image(image, _spacing(spacing), size, origin, sitk.sitkNearestNeighbor, 0)
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
    return replace(ct, hu=out, origin=triple(origin))


def sample_image(
    image: sitk.Image,
    spacing: Sequence[float],
    size: Sequence[int],
    origin: Sequence[float | int],
    interpolator: int,
    outside: int,
) -> sitk.Image:
    """An image's samples on an LPS grid of ``size`` voxels (x, y, z); ``outside`` where there is none."""
    resampler = sitk.ResampleImageFilter()
    resampler.SetSize([int(s) for s in size])
    resampler.SetOutputSpacing([float(s) for s in spacing])
    resampler.SetOutputOrigin([float(o) for o in origin])
    resampler.SetInterpolator(interpolator)
    resampler.SetDefaultPixelValue(outside)
    return resampler.Execute(image)


def array_to_sitk(
    array: Num[np.ndarray, "D H W"], spacing: Sequence[float | int], origin: Sequence[float | int]
) -> sitk.Image:
    """An array in LPS as a SimpleITK image with an identity direction."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(array))
    image.SetSpacing([float(s) for s in spacing])
    image.SetOrigin([float(o) for o in origin])
    return image


def from_sitk(image: sitk.Image, meta: dict[str, Any]) -> CtImage:
    """A SimpleITK image of identity direction as a CT."""
    return CtImage(
        sitk.GetArrayFromImage(image), triple(image.GetSpacing()), triple(image.GetOrigin()), dict(meta)
    )


def _spacing(spacing: Spacing) -> Triple:
    values = [float(spacing)] * 3 if isinstance(spacing, float | int) else [float(s) for s in spacing]
    if len(values) != 3 or min(values) <= 0:
        raise UserError(f"spacing={spacing}: give one positive number of mm, or three (x, y, z)")
    return triple(values)
