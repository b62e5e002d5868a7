"""A labelled vertebra in its own frame: depth below the bone's surface, the spinal canal, the pedicles.

All of it is computed from the label's voxels alone. The canal is the hole in the shadow that the vertebra throws along
its own axis; the axis is the tilt for which that hole is largest. A pedicle is the bottleneck of the bone beside it.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from diffux2ct.data.instrumentation.frame import Field, Frame, distance_inside, holes, unit

STEP = 1.0  # mm, of the planning grid
_SEARCH_STEP = 2.0  # mm, of the grid on which the axis is sought
_TILTS = range(-20, 21, 4)  # degrees about the patient's left-right axis: lordosis
_LEANS = range(-8, 9, 4)  # degrees about the front-back axis: scoliosis
_MIN_CANAL = 60.0  # mm^2; a lumbar canal has 150 to 400, less where the shadow is oblique
_MIN_VOLUME = 4000.0  # mm^3; less is a speck or a fragment (an infant's lumbar vertebra has more)
_AROUND = 12.0  # mm of the planning grid outside the bone: heads and neighbours
_REACH = 65.0  # mm from a vertebra's centre: contains all of it


@dataclass(frozen=True)
class Pedicle:
    """Narrowest place of a pedicle in the vertebra's frame: side +1 (left) or -1, centre and half width in mm."""

    side: int
    centre: Float[np.ndarray, "3"]
    radius: float


@dataclass(frozen=True)
class Vertebra:
    """A vertebra's geometry, mm. The frame's origin is the middle of the canal at the height of the body's centre.

    depth: below the bone's surface (negative outside). canal: 1 inside the spinal canal. canal_gap: distance to it.
    others: 1 in any other vertebra's bone.
    """

    value: int
    frame: Frame
    depth: Field
    canal: Field
    canal_gap: Field
    others: Field
    pedicles: tuple[Pedicle, ...]


def centroids(labels: Field, values: range) -> dict[int, Float[np.ndarray, "3"]]:
    """Centre (x, y, z) mm of each vertebra that lies whole within the volume."""
    centres = {}
    for value, box in enumerate(ndimage.find_objects(labels.values, max_label=max(values)), start=1):
        if box is None or value not in values:
            continue
        # A label that reaches the first or last slice is cut off there.
        if any(part.start == 0 or part.stop == size for part, size in zip(box, labels.values.shape, strict=True)):
            continue
        mask = labels.values[box] == value
        if mask.sum() * np.prod(labels.step) < _MIN_VOLUME:
            continue
        index = np.array([part.start for part in box]) + ndimage.center_of_mass(mask)
        centres[value] = labels.start + index[::-1] * labels.step
    return centres


def measure_vertebra(labels: Field, value: int, centres: dict[int, Float[np.ndarray, "3"]]) -> Vertebra | None:
    """Geometry of one vertebra; None where its label encloses no canal (a partial or broken mask).

    labels: uint8 in LPS mm. centres: of all vertebrae, see ``centroids``; neighbours give the first guess of the axis.
    """
    labels = _crop(labels, centres[value])
    mask = _soft_mask(labels, value)
    frame = _canal_frame(mask, _first_guess(value, centres))
    if frame is None:
        return None
    bone = _sample(mask, frame, STEP, _AROUND)
    hole = _canal_hole(np.any(bone.values, axis=0), STEP)
    if hole is None:
        return None
    # The surface lies half way between voxels.
    outside = STEP / 2 - distance_inside(~bone.values, STEP)
    depth = np.where(bone.values, distance_inside(bone.values, STEP) - STEP / 2, outside)
    canal = _canal(bone.values, hole)
    gap = distance_inside(~canal, STEP) - STEP / 2
    other = (labels.values > 0) & (labels.values <= 26) & (labels.values != value)
    high = bone.start + (np.array(bone.values.shape[::-1]) - 1) * STEP
    near = replace(labels, values=other.astype(np.uint8)).along(frame, bone.start, high, STEP, order=0)

    def field(values: np.ndarray) -> Field:
        return Field(values.astype(np.float32), bone.start, bone.step)

    pedicles = tuple(p for side in (1, -1) if (p := _pedicle(field(depth), hole, side)) is not None)
    return Vertebra(value, frame, field(depth), field(canal), field(gap), near, pedicles)


def _crop(labels: Field, centre: np.ndarray) -> Field:
    """The labels around a vertebra, with one empty voxel at the sides of the scan."""
    low = np.floor((centre - _REACH - labels.start) / labels.step).astype(int).clip(0)
    high = np.ceil((centre + _REACH - labels.start) / labels.step).astype(int).clip(0) + 1
    box = tuple(slice(low[i], high[i]) for i in (2, 1, 0))
    return Field(np.pad(labels.values[box], 1), labels.start + (low - 1) * labels.step, labels.step)


def _soft_mask(labels: Field, value: int) -> Field:
    """The label's share of each voxel's surroundings: its 0.5 level is the surface without the voxels' staircase."""
    mask = (labels.values == value).astype(np.float32)
    # Isotropic in mm, and half a voxel of the coarsest axis: more would close thin pedicles.
    sigma = 0.5 * labels.step.max() / labels.step[::-1]
    return replace(labels, values=ndimage.gaussian_filter(mask, np.minimum(sigma, 3.0), mode="constant"))


def _first_guess(value: int, centres: dict[int, np.ndarray]) -> Frame:
    """Upwards along the neighbours' centres, and the patient's back."""
    above, below = centres.get(value - 1, centres[value]), centres.get(value + 1, centres[value])
    up = unit(above - below) if np.any(above != below) else np.array([0.0, 0.0, 1.0])
    back = unit(np.array([0.0, 1.0, 0.0]) - up[1] * up)
    return Frame(centres[value], np.stack([np.cross(back, up), back, up]))


def _sample(mask: Field, frame: Frame, step: float, around: float) -> Field:
    """The mask as booleans on a grid along the frame, cropped to the bone with ``around`` mm of margin."""
    corner = np.array([_REACH, _REACH, 45.0])
    coarse = mask.along(frame, -corner, corner, 3.0)
    inside = np.argwhere(coarse.values > 0.25)[:, ::-1] * 3.0 + coarse.start
    inside = inside if len(inside) else np.zeros((1, 3))  # a speck of a label: no bone
    fine = mask.along(frame, inside.min(0) - around, inside.max(0) + around, step)
    return replace(fine, values=fine.values > 0.5)


def _canal_frame(mask: Field, guess: Frame) -> Frame | None:
    """The frame turned to the widest canal in the shadow, its back away from the body's centre."""
    frame, area, bone, hole = guess, 0, None, None
    for axis, angles in ((0, _TILTS), (1, _LEANS)):
        start = frame
        for angle in sorted(angles, key=abs):
            turned = start.turned(axis, angle)
            section = _sample(mask, turned, _SEARCH_STEP, 4.0)
            gap = _canal_hole(np.any(section.values, axis=0), _SEARCH_STEP)
            if gap is not None and gap.sum() > area * 1.02:  # of equals, the one nearest to the guess
                frame, area, bone, hole = turned, gap.sum(), section, gap
    if bone is None or hole is None:
        return None
    row, col = np.argwhere(hole).mean(0)
    canal = bone.start[:2] + np.array([col, row]) * _SEARCH_STEP
    body = np.argwhere(bone.values[:, : np.argwhere(hole)[:, 0].min()])
    if len(body) == 0:
        return None
    z, y, x = bone.start[::-1] + body.mean(0) * _SEARCH_STEP
    turn = np.degrees(np.arctan2(x - canal[0], canal[1] - y))
    return frame.moved(np.array([canal[0], canal[1], z])).turned(2, turn)


def _canal_hole(shadow: Bool[np.ndarray, "ny nx"], step: float) -> Bool[np.ndarray, "ny nx"] | None:
    """The largest hole of a section or shadow, if it is large enough for a canal."""
    numbered = holes(shadow)
    sizes = np.bincount(numbered.ravel(), minlength=2)[1:]
    return numbered == sizes.argmax() + 1 if sizes.max() * step**2 >= _MIN_CANAL else None


def _canal(bone: Bool[np.ndarray, "nz ny nx"], hole: Bool[np.ndarray, "ny nx"]) -> Bool[np.ndarray, "nz ny nx"]:
    """The canal section by section: the hole in the shadow of the thinnest slab around it whose ring is closed.

    Body, pedicles and laminae close the ring in few sections only; above and below them a slab is needed.
    """
    canal = np.zeros_like(bone)
    levels = np.flatnonzero(bone.any((1, 2)))
    enough = 0.6 * hole.sum()
    for k in range(levels[0], levels[-1] + 1):
        for half in range(0, levels[-1] - levels[0] + 1, 2):
            numbered = holes(np.any(bone[max(k - half, 0) : k + half + 1], axis=0))
            common = np.bincount(numbered[hole], minlength=2)
            common[0] = 0
            if common.max() >= enough:
                canal[k] = numbered == common.argmax()
                break
    return canal


def _pedicle(depth: Field, hole: Bool[np.ndarray, "ny nx"], side: int) -> Pedicle | None:
    """Follow the deepest point of the bone beside the canal from the body backwards; the isthmus is its minimum."""
    rows = np.flatnonzero(hole.any(1))
    x = depth.start[0] + np.arange(depth.values.shape[2]) * STEP
    best = None
    for row in range(rows[0], rows[0] + max(2, round(0.6 * len(rows)))):
        wall = np.abs(x[hole[row] & (x * side > 0)]).max(initial=4.0)
        beside = (x * side > wall) & (x * side < wall + 15.0)
        section = np.where(beside, depth.values[:, row], -np.inf)
        k, i = np.unravel_index(section.argmax(), section.shape)
        if best is None or section[k, i] < best[0]:
            best = (float(section[k, i]), np.array([x[i], depth.start[1] + row * STEP, depth.start[2] + k * STEP]))
    return None if best is None or best[0] <= 0 else Pedicle(side, best[1], best[0])
