"""Separate the patient from the couch, the mattress and the wires, by the CT alone; no supplied mask, no training.

A couch is wide and thin in axial slices (its shell) or thin and the same from slice to slice (its rails); tubes and
wires are thinner than any limb. Thick pieces are the patient: trunk, arms beside it, legs.
"""

from collections.abc import Sequence
from typing import cast

import numpy as np
from jaxtyping import Bool, Int, Num
from scipy import ndimage

AIR = -1024  # HU of what is removed
_SOLID_HU = -400.0  # between fat and air; a mattress's foam lies below
_STEP = 2.0  # mm: the patient is looked for on a grid of about this
_OPEN = 4.0  # mm: the disc of this radius fits into what is thick
_SHEET = 6.0  # what is this many times longer than thick in a slice is a couch
_LIMB = 15.0  # mm: half of a forearm; what is thinner and the same in all slices is a rail
_THREAD = 5.0  # mm: half of a finger; loose pieces that are thinner are no part of a patient
_LOOSE = 5000.0  # mm^3: nor are smaller ones
_FLAP = 60.0  # mm: a thin piece of a patient (ear, finger, wall before a gas bubble) is no longer
_LUNG_HU = -930.0  # an open gap with a median above this is lung cut by the field of view, not air


def remove_couch(hu: Num[np.ndarray, "d h w"], spacing: Sequence[float | int]) -> Num[np.ndarray, "d h w"]:
    """The CT with everything but the patient set to -1024 HU; a copy of the same type.

    hu: [D, H, W] in HU, axes LPS, not low-passed. spacing: (x, y, z) mm. Where no patient is found (only thin parts, or
    air) the CT is returned as it is.
    """
    mask = body_mask(hu, spacing)
    return np.where(mask, hu, hu.dtype.type(AIR)) if mask.any() else hu.copy()


def body_mask(hu: Num[np.ndarray, "d h w"], spacing: Sequence[float | int]) -> Bool[np.ndarray, "d h w"]:
    """Where the patient is, lungs and bowel gas included, with about 2 mm of margin; all False if nobody is found.

    hu: [D, H, W] in HU, axes LPS. spacing: (x, y, z) mm. Prone and lateral patients, arms beside the trunk and separate
    legs are found; the couch may be on any side.
    """
    factors = [max(1, round(_STEP / s)) for s in (spacing[2], spacing[1], spacing[0])]
    coarse = _block_means(hu, factors)
    step = (spacing[1] * factors[1] + spacing[0] * factors[0]) / 2
    cell = float(np.prod([s * f for s, f in zip(spacing[::-1], factors, strict=True)]))
    solid = coarse > _SOLID_HU
    thick = _opened(solid, _OPEN / step)
    patient, couch = _sort_thick(thick, step, cell)
    if not patient.any():
        return np.zeros(hu.shape, bool)
    patient = _with_thin_parts(patient, couch, solid, step)
    patient = _without_gaps(patient, coarse)
    # One voxel more keeps the skin's partial volume; it must not reach into the couch.
    mask = patient | (_grown(patient, np.ones((1, 3, 3), bool)) & ~solid)
    for axis, factor in enumerate(factors):
        mask = mask.repeat(factor, axis)
    return mask[: hu.shape[0], : hu.shape[1], : hu.shape[2]]


def label_parts(
    mask: Bool[np.ndarray, "*n"], structure: Bool[np.ndarray, "*s"] | None = None
) -> tuple[Int[np.ndarray, "*n"], int]:
    """Number the connected parts of a mask from 1 (0 elsewhere), and how many there are; scipy's ``label``."""
    names, count = cast(tuple[np.ndarray, int], ndimage.label(mask, structure))
    return names, count


def _sort_thick(thick: np.ndarray, step: float, cell: float) -> tuple[np.ndarray, np.ndarray]:
    """Pieces that two disc's widths fit into: those of the patient, and the couch's."""
    names, _ = label_parts(thick, _ALL)
    counts = np.bincount(names.ravel())
    is_patient = np.zeros(len(counts), bool)
    biggest = counts[1:].max(initial=0)
    for name, box in enumerate(ndimage.find_objects(names), start=1):
        if counts[name] * cell < _LOOSE:
            continue
        piece = names[box] == name
        half = step * _inscribed(piece)
        length = step * float(np.hypot(piece.shape[1], piece.shape[2]))
        if half >= 2 * _LIMB or (counts[name] == biggest and half >= _LIMB):
            is_patient[name] = True
        elif half >= _THREAD:
            is_patient[name] = length < _SHEET * 2 * half and (half >= _LIMB or not _same_in_all_slices(piece))
    patient = is_patient[names]
    return patient, thick & ~patient


def _with_thin_parts(patient: np.ndarray, couch: np.ndarray, solid: np.ndarray, step: float) -> np.ndarray:
    """Add what the opening took from the patient: a rim, and short thin pieces attached to it."""
    rim = _grown(patient, _disc(1.0)) & solid & ~couch
    patient = patient | rim
    names, count = label_parts(solid & ~patient & ~couch, _ALL)
    touching = np.zeros(count + 1, bool)
    touching[np.unique(names[_grown(patient, _ALL)])] = True
    touching[0] = False
    for name, box in enumerate(ndimage.find_objects(names), start=1):
        if touching[name]:
            touching[name] = step * np.hypot(*names[box].shape[1:]) < _FLAP
    return patient | touching[names]


def _without_gaps(patient: np.ndarray, coarse: np.ndarray) -> np.ndarray:
    """Fill what a slice of the patient encloses: lungs, bowel gas; also lung that the field of view cuts open."""
    filled = np.empty_like(patient)
    for index, section in enumerate(patient):
        gaps, _ = label_parts(~section)
        edge = np.unique(np.concatenate([gaps[0], gaps[-1], gaps[:, 0], gaps[:, -1]]))
        filled[index] = ~np.isin(gaps, edge[edge > 0])
        for name in edge[edge > 0]:
            gap = gaps == name
            if np.median(coarse[index][gap]) > _LUNG_HU:
                filled[index] |= gap
    return filled


def _same_in_all_slices(piece: np.ndarray) -> bool:
    """True if a piece's section keeps its place and area over the slices, as a rail's does (couches sag a little)."""
    areas = piece.sum((1, 2))
    common = piece[areas > 0].mean(0) > 0.5
    shared = (piece & common).sum((1, 2)) / np.maximum(np.maximum(areas, common.sum()), 1)
    return bool(shared[areas > 0].mean() > 0.6)


def _inscribed(piece: np.ndarray) -> float:
    """Radius of the largest disc that fits into a slice of the piece, in voxels."""
    padded = np.pad(piece, ((0, 0), (1, 1), (1, 1)))
    return max(float(np.max(ndimage.distance_transform_edt(section))) for section in padded)  # pyright: ignore


def _opened(mask: np.ndarray, radius: float) -> np.ndarray:
    """Opening with a disc in axial slices; the volume's edge cuts no corner off what it cuts through."""
    disc = _disc(radius)
    r = disc.shape[1] // 2
    padded = np.pad(mask, ((0, 0), (r, r), (r, r)), mode="edge")
    return ndimage.binary_opening(padded, disc)[:, r:-r, r:-r]


def _grown(mask: np.ndarray, structure: np.ndarray) -> np.ndarray:
    return np.asarray(ndimage.binary_dilation(mask, structure), bool)


def _disc(radius: float) -> np.ndarray:
    """A flat disc [1, n, n] of at least one voxel around its centre."""
    r = max(1, round(radius))
    y, x = np.ogrid[-r : r + 1, -r : r + 1]
    return (y * y + x * x <= (r + 0.3) ** 2)[None]


def _block_means(hu: np.ndarray, factors: Sequence[int]) -> np.ndarray:
    """float32 means over blocks; the last block of an axis may be cut."""
    for axis, factor in enumerate(factors):
        if factor > 1:
            # Unlike ``intensity.block_mean``, since a cut block has no reshape; sums are rounded axis by axis.
            starts = np.arange(0, hu.shape[axis], factor)
            counts = np.diff(np.append(starts, hu.shape[axis]))
            sums = np.add.reduceat(hu, starts, axis=axis, dtype=np.float32)
            hu = sums / counts.reshape([-1 if i == axis else 1 for i in range(3)]).astype(np.float32)
    return hu


_ALL = np.ones((3, 3, 3), bool)
