"""Heights of vertebral bodies and their spacing, from label maps with a value for each vertebra.

A body's height is the mean distance of its end plates over the middle of the body: what morphometry calls the middle
height (Genant et al., J Bone Miner Res 8 (1993) 1137), over a disc instead of along a line. The spacing of neighbours
is the distance between the centres of their bodies: half of each height and the disc between them (its parts as in
Frobin et al., Clin Biomech 12 (1997) S1). Arches and processes take no part.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from jaxtyping import Float, UInt8
from scipy import ndimage

from diffux2ct.data.labels import FIRST_OTHER, FIRST_SCREW, VERTEBRAE
from diffux2ct.evaluation.anatomy.surfaces import Spacing, corner_of, points_of
from diffux2ct.evaluation.metric import Metric, computes

RADIUS = 8.0  # mm around the body's axis: inside every thoracic and lumbar body, in front of the canal
_MIN_VOLUME = 1500.0  # mm^3 of a whole vertebra: less is a fragment
_SCREW = 4.0  # mm, radius of the thickest
_TURNS = 4  # times that the axis is set upright on the end plates found with the former axis


@dataclass(frozen=True, eq=False)
class VertebralBody:
    """The middle of a vertebral body; mm (x, y, z) from the centre of voxel (0, 0, 0), axes LPS.

    centre: of what lies within 8 mm of the axis. axis: unit vector upwards, normal to the end plates on average.
    height: mean distance of the end plates within those 8 mm, mm.
    """

    centre: Float[np.ndarray, "3"]
    axis: Float[np.ndarray, "3"]
    height: float


def measure_bodies(labels: UInt8[np.ndarray, "d h w"], spacing: Spacing) -> dict[int, VertebralBody]:
    """Bodies of all vertebrae (labels C3 to L6) that lie whole within the volume, by label value.

    labels: ``data/labels``; screws in a body count as the body. spacing: (x, y, z) mm. C1 and C2 have no such body.
    """
    first, last = VERTEBRAE.index("C3") + 1, len(VERTEBRAE)
    implants = (labels >= FIRST_SCREW) & (labels < FIRST_OTHER)
    step = np.asarray(spacing, dtype=np.float64)
    found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for value, box in enumerate(ndimage.find_objects(labels, max_label=last), start=1):
        if box is None or value < first or _is_cut(box, labels.shape):
            continue
        own = labels[box] == value
        if own.sum() * step.prod() < _MIN_VOLUME:
            continue
        mask = own | (implants[box] & _closed(own, step)) if implants[box].any() else own
        corner = corner_of(box, spacing)
        found[value] = points_of(mask, spacing) + corner, _thickest(mask, step) + corner
    bodies = {}
    for value, (points, centre) in found.items():
        above, below = (found[v][1] if v in found else centre for v in (value - 1, value + 1))
        up = above - below
        axis = up / np.linalg.norm(up) if np.any(up) else np.array([0.0, 0.0, 1.0])
        body = _body(points, centre, axis, step)
        if body is not None:
            bodies[value] = body
    return bodies


def spacings(bodies: Mapping[int, VertebralBody]) -> dict[tuple[int, int], float]:
    """Distances between the centres of neighbouring bodies, mm, by their label values (upper, lower)."""
    return {
        (value, value + 1): float(np.linalg.norm(body.centre - bodies[value + 1].centre))
        for value, body in bodies.items()
        if value + 1 in bodies
    }


_metric = partial(Metric, group="Vertebrae")
_HEIGHT = "absolute error of the height of vertebrae"
_SPACING = "absolute error of the distance between neighbouring vertebrae"
_METRICS = (
    _metric("vertebra_height_mm", "Vertebral height error", "mm", False, _HEIGHT, beside="vertebra_found"),
    _metric("vertebra_spacing_mm", "Vertebral spacing error", "mm", False, _SPACING, beside="vertebra_found"),
    _metric("vertebra_found", "Vertebrae found", "", True, "share of the true vertebrae that are found"),
)


def _segmented(metric: Metric) -> Metric:
    beside = metric.beside and f"segmented_{metric.beside}"
    return replace(metric, key=f"segmented_{metric.key}", title=f"{metric.title}, segmented", beside=beside)


@dataclass(frozen=True)
class VertebraErrors:
    """Mean absolute errors of one case, mm: of heights and of spacings; None where nothing can be compared.

    heights, spacings: each error with its sign (reconstruction less truth). share: of the true vertebrae, those found.
    """

    height_mm: float | None
    spacing_mm: float | None
    share: float | None
    heights: Mapping[int, float]
    spacings: Mapping[tuple[int, int], float]

    @computes(*_METRICS, *map(_segmented, _METRICS))
    def as_row(self) -> dict[str, float | None]:
        """By the keys of per_case.csv."""
        return dict(zip((m.key for m in _METRICS), (self.height_mm, self.spacing_mm, self.share), strict=True))


def vertebra_errors(prediction: Mapping[int, VertebralBody], truth: Mapping[int, VertebralBody]) -> VertebraErrors:
    """Errors of the vertebrae that both have. A vertebra that is missed lowers ``share``, not the errors."""
    heights = {v: prediction[v].height - body.height for v, body in truth.items() if v in prediction}
    there, wanted = spacings(prediction), spacings(truth)
    gaps = {pair: there[pair] - gap for pair, gap in wanted.items() if pair in there}
    share = len(heights) / len(truth) if truth else None
    return VertebraErrors(_mean_absolute(heights), _mean_absolute(gaps), share, heights, gaps)


def _mean_absolute(errors: Mapping) -> float | None:
    return float(np.mean(np.abs(list(errors.values())))) if errors else None


def _is_cut(box: tuple[slice, ...], shape: tuple[int, ...]) -> bool:
    return any(part.start == 0 or part.stop == size for part, size in zip(box, shape, strict=True))


def _closed(mask: np.ndarray, step: np.ndarray) -> np.ndarray:
    """The mask with the channels of its screws closed: neighbours' screws are in its box too, but not in it."""
    times = int(np.ceil(_SCREW / step.min()))
    return np.asarray(ndimage.binary_closing(np.pad(mask, times), iterations=times))[(slice(times, -times),) * 3]


def _thickest(mask: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Middle of where a vertebra is thickest: in its body, since arch and processes are thin; mm from the box."""
    depth = np.asarray(ndimage.distance_transform_edt(np.pad(mask, 1), step[::-1]))[1:-1, 1:-1, 1:-1]
    return np.argwhere(depth >= 0.7 * depth.max()).mean(0)[::-1] * step


def perpendicular(axis: Float[np.ndarray, "3"]) -> Float[np.ndarray, "2 3"]:
    """Two unit vectors across an axis and each other."""
    return np.linalg.svd(axis[None])[2][1:]


def _body(points: np.ndarray, centre: np.ndarray, axis: np.ndarray, step: np.ndarray) -> VertebralBody | None:
    for _ in range(_TURNS):
        along, across = _split(points, centre, axis)
        off = np.linalg.norm(across, axis=1)
        near = off <= RADIUS + step.max()
        plates = [_plate(along[near], across[near], axis, end, step.max()) for end in (1, -1)]
        normals = [plate for plate in plates if plate is not None]
        if len(normals) < 2:
            return None
        axis = normals[0] + normals[1]
        axis = axis / np.linalg.norm(axis)
        inside = _split(points, centre, axis)
        weight = _weights(inside[1], step)
        if not weight.sum():
            return None
        centre = (points * weight[:, None]).sum(0) / weight.sum()
    _, across = _split(points, centre, axis)
    height = _weights(across, step).sum() * step.prod() / (np.pi * RADIUS**2)
    return VertebralBody(centre, axis, float(height))


def _split(points: np.ndarray, centre: np.ndarray, axis: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions along an axis, and the rest of the offset from ``centre``, across it."""
    offset = points - centre
    along = offset @ axis
    return along, offset - along[:, None] * axis


def _weights(across: np.ndarray, step: np.ndarray) -> np.ndarray:
    """1 within the cylinder and 0 outside, with a soft edge one voxel wide: sums do not jump with the grid."""
    off = np.linalg.norm(across, axis=1)
    return np.clip((RADIUS - off) / step.max() + 0.5, 0.0, 1.0)


def _plate(along: np.ndarray, across: np.ndarray, axis: np.ndarray, end: int, step: float) -> np.ndarray | None:
    """Normal of the end plate (end 1: upper, -1: lower), upwards: of a plane through each column's outermost voxel."""
    basis = perpendicular(axis)
    u, v = basis @ across.T
    columns = np.stack([np.rint(u / (1.5 * step)), np.rint(v / (1.5 * step))], 1).astype(int)
    _, index = np.unique(columns, axis=0, return_inverse=True)
    index = index.ravel()
    top = np.full(index.max(initial=-1) + 1, -np.inf)
    np.maximum.at(top, index, end * along)
    outer = np.flatnonzero(end * along == top[index])
    if len(outer) < 6:
        return None
    design = np.stack([u[outer], v[outer], np.ones(len(outer))], 1)
    slope = np.linalg.lstsq(design, along[outer], rcond=None)[0]
    for _ in range(2):  # without lips at the rim and roots of pedicles
        good = np.abs(along[outer] - design @ slope) <= step
        if good.sum() < 6:
            break
        slope = np.linalg.lstsq(design[good], along[outer][good], rcond=None)[0]
    normal = axis - slope[0] * basis[0] - slope[1] * basis[1]
    return normal / np.linalg.norm(normal)
