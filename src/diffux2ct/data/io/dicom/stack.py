"""Frames of one series -> the volume that they form: missing slices, gantry tilt, uneven gaps."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from jaxtyping import Float, Num

from diffux2ct.data.io.dicom.frames import Frame
from diffux2ct.data.io.dicom.one_scan import one_scan
from diffux2ct.data.io.dicom.pixels import read_planes
from diffux2ct.errors import UserError

_EVEN = 0.05  # of the gap between slices: positions off an even grid by less are rounding of the header
_SAME_THICKNESS = 0.1  # of the thickest: slices whose SliceThickness differs by less have the same gaps
_HOLE = 1.5  # gaps larger than this many usual gaps are missing slices
_MAX_TILT = 45.0  # degrees; no gantry tilts further


@dataclass(frozen=True)
class Stack:
    """Frames in the order of their normal, and where they lie.

    along: distance of each from the first, mm along the normal. step: mm that the stack moves (x, y, z LPS) for each
    mm along the normal: the normal itself, unless the gantry was tilted.
    """

    frames: list[Frame]
    along: Float[np.ndarray, "D"]
    normal: Float[np.ndarray, "3"]
    step: Float[np.ndarray, "3"]


def read_stack(frames: Sequence[Frame], path: Path) -> tuple[sitk.Image, list[str]]:
    """The volume of a series' frames in HU, its direction cosines as stored, and notes on what was done.

    A tilted gantry gives an image whose third direction is not normal to the slices: resampling it onto upright axes
    undoes the shear. Unevenly spaced slices are interpolated (linear) to an even grid. Raises UserError: slices
    without place, missing slices, slices that lie beside each other.
    """
    notes: list[str] = []
    stack = arrange(_one_geometry(frames, path, notes), path, notes)
    first = stack.frames[0]
    planes = read_planes(stack.frames)
    if len(stack.frames) > 1:
        planes, gap = _to_even_grid(planes, stack.along, path, notes)
    else:
        gap = first.thickness or 1.0  # one slice: the caller refuses it by its size
    image = sitk.GetImageFromArray(planes)
    length = float(np.linalg.norm(stack.step))
    direction = np.column_stack([*first.axes, stack.step / length])
    image.SetSpacing([*first.pixel_spacing, gap * length])
    image.SetOrigin(first.position.tolist())
    image.SetDirection(direction.ravel().tolist())
    return image, notes


def arrange(frames: Sequence[Frame], path: Path, notes: list[str]) -> Stack:
    """Order frames of one geometry along their normal, drop repeated ones, find tilt; UserError where slices miss."""
    axes = frames[0].axes
    normal = np.cross(axes[0], axes[1])
    frames = one_scan(frames, normal, path, notes)
    positions = np.array([frame.position for frame in frames])
    along = positions @ normal
    along = along - along[0]
    if len(frames) == 1:
        return Stack(frames, along, normal, normal)
    _refuse_holes(frames, along, path)
    step = (positions[-1] - positions[0]) / along[-1]
    pixel = min(frames[0].pixel_spacing)
    drift = np.linalg.norm(positions - positions[0] - np.outer(along, step), axis=1).max()
    if drift > max(0.5 * pixel, 0.1):
        raise UserError(f"{path}: slices lie up to {drift:.1f} mm beside the stack's line; give one straight series")
    tilt = float(np.degrees(np.arctan(np.linalg.norm(step - normal))))
    if tilt > _MAX_TILT:
        raise UserError(
            f"{path}: positions run {tilt:.0f} degrees off the slices' normal; their header is wrong, export it again"
        )
    if np.linalg.norm(step - normal) * along[-1] < 0.5 * pixel:  # nowhere half a pixel off: straight
        tilt = abs(frames[0].gantry_tilt)
        if tilt > 1.0 and abs(axes[0, 2]) + abs(axes[1, 2]) < 1e-3:
            notes.append(
                f"{path}: a gantry tilt of {tilt:.1f} degrees by the header, none by the positions, which are used"
            )
        step = normal
    else:
        notes.append(f"{path}: gantry tilted by {tilt:.1f} degrees; sheared back onto upright axes")
    return Stack(frames, along, normal, step)


def _one_geometry(frames: Sequence[Frame], path: Path, notes: list[str]) -> list[Frame]:
    """The largest set of axial frames with one size and orientation; notes name the others."""
    axial = [frame for frame in frames if frame.is_axial]
    if len(axial) < len(frames):
        notes.append(f"{path}: {len(frames) - len(axial)} localizers or screen pictures of the series left out")
    placed = [frame for frame in axial if frame.is_placed]
    if not axial:
        raise UserError(f"{path}: only localizers or screen pictures, no slices; give a CT series")
    if not placed:
        raise UserError(
            f"{path}: slices without position, orientation or PixelSpacing cannot be stacked; export the series again"
        )
    if len(placed) < len(axial):
        notes.append(f"{path}: {len(axial) - len(placed)} slices without a position left out")
    groups: list[list[Frame]] = []
    for frame in placed:
        group = next((g for g in groups if _alike(g[0], frame)), None)
        if group is None:
            groups.append([frame])
        else:
            group.append(frame)
    groups.sort(key=len, reverse=True)
    others = sum(len(group) for group in groups[1:])
    if others:
        notes.append(f"{path}: {others} slices of another size or orientation left out")
    _check_geometry(groups[0], path)
    return groups[0]


def _alike(a: Frame, b: Frame) -> bool:
    return (
        a.shape == b.shape
        and bool(np.allclose(a.axes, b.axes, atol=1e-3))
        and bool(np.allclose(a.pixel_spacing, b.pixel_spacing, rtol=1e-3))
    )


def _check_geometry(frames: list[Frame], path: Path) -> None:
    axes, spacing = frames[0].axes, frames[0].pixel_spacing
    if not np.allclose(axes @ axes.T, np.eye(2), atol=1e-2):
        raise UserError(
            f"{frames[0].file}: ImageOrientationPatient is no pair of perpendicular unit vectors; export it again"
        )
    if min(spacing) <= 0:
        raise UserError(
            f"{frames[0].file}: PixelSpacing {spacing[1]:g}\\{spacing[0]:g} is not positive; export it again"
        )
    scaled = [frame.rescale is not None for frame in frames]
    if any(scaled) and not all(scaled):
        raise UserError(
            f"{frames[scaled.index(False)].file}: no RescaleSlope and RescaleIntercept, which other slices have; "
            "export the series again"
        )
    units = {frame.rescale_type for frame in frames} - {"", "HU", "US", "HU_MOD", "UNSPECIFIED"}
    if units:
        raise UserError(f"{path}: values in {', '.join(sorted(units))} (RescaleType), not HU; give the HU series")


def _refuse_holes(frames: list[Frame], along: np.ndarray, path: Path) -> None:
    gaps = np.diff(along)
    # Some protocols have two distances (a head's base and vertex), marked by two thicknesses: each has its usual gap.
    thick = np.array([frame.thickness for frame in frames])
    values, back = np.unique(thick, return_inverse=True)
    kind = np.cumsum(np.diff(values, prepend=values[0]) > _SAME_THICKNESS * thick.max())[back]
    usual = np.zeros(len(gaps))
    for value in range(kind.max() + 1):
        own = (kind[1:] == value) | (kind[:-1] == value)
        usual[own] = np.maximum(usual[own], np.median(gaps[own]))
    worst = int(np.argmax(gaps / usual))
    if gaps[worst] > _HOLE * usual[worst]:
        raise UserError(
            f"{path}: slices are missing (a gap of {gaps[worst]:.1f} mm where slices lie {usual[worst]:.1f} mm apart); "
            "fetch the whole series"
        )


def _to_even_grid(
    planes: Num[np.ndarray, "D H W"], along: np.ndarray, path: Path, notes: list[str]
) -> tuple[np.ndarray, float]:
    """Planes at even distances, and that distance; interpolated only where the slices are not even already."""
    even = np.linspace(0.0, along[-1], len(along))
    gap = float(along[-1] / (len(along) - 1))
    if np.abs(along - even).max() <= _EVEN * gap:
        return planes, gap
    gaps = np.diff(along)
    # The usual distance; of two distances (a fine part and a coarse one) the finer, so that nothing is lost.
    low, usual = np.percentile(gaps, (25, 50))
    count = max(round(along[-1] / float(low if low < 0.75 * usual else usual)), 1) + 1
    even = np.linspace(0.0, along[-1], count)
    gap = float(along[-1] / (count - 1))
    notes.append(
        f"{path}: slices {gaps.min():.2f} to {gaps.max():.2f} mm apart; interpolated to {count} at {gap:.2f} mm"
    )
    below = np.clip(np.searchsorted(along, even, side="right") - 1, 0, len(along) - 2)
    out = np.empty((count, *planes.shape[1:]), np.float32)
    for i, (low, place) in enumerate(zip(below, even, strict=True)):
        weight = np.float32((place - along[low]) / gaps[low])
        out[i] = (1 - weight) * planes[low] + weight * planes[low + 1]
    return out, gap
