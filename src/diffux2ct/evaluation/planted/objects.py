"""Spheres and a screw, put at seeded places inside the body of a CT."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Num
from scipy import ndimage

from diffux2ct.data.body import body_mask
from diffux2ct.data.instrumentation.frame import Field, Points, distance_inside
from diffux2ct.data.instrumentation.shapes import Solid, coverage
from diffux2ct.evaluation.planted.settings import Planting

METAL_HU = 3000.0
"""Of a screw: more than any window shows, so that it is clipped as a real one is."""

SCREW = "screw"

_AIR_HU = -300.0  # at and below are lung, bowel gas and what surrounds the body
_BONE_HU = 200.0
_SCREW_LENGTH, _SCREW_RADIUS = 45.0, 3.0  # mm, of a lumbar pedicle screw
_SCREW_TILT = 15.0  # degrees from straight forward towards the midline


@dataclass(frozen=True)
class Planted:
    """A capsule: all points within ``radius`` mm of a line; a sphere where the line has no length.

    half: (x, y, z) mm from the line's middle to its end. contrast: HU that it adds; None: metal.
    """

    key: str
    radius: float
    half: Float[np.ndarray, "3"]
    contrast: float | None

    @property
    def reach(self) -> float:
        """mm from the middle to the farthest point."""
        return self.radius + float(np.linalg.norm(self.half))

    def shares(self, centre: Points, shape: tuple[int, ...], step: float) -> Float[np.ndarray, "d h w"]:
        """Share of each voxel that it fills. centre: (x, y, z) mm from the first voxel's. step: mm a voxel."""
        half, squared = self.half, max(float(self.half @ self.half), 1e-12)

        def distance(points: Points) -> Float[np.ndarray, "n"]:
            along = ((points - centre) @ half / squared).clip(-1, 1)
            return np.linalg.norm(points - centre - along[:, None] * half, axis=1) - self.radius

        solid = Solid(distance, centre - abs(half) - self.radius, centre + abs(half) + self.radius)
        filled = np.zeros(shape, np.float32)
        part = coverage(solid, Field(filled, np.zeros(3), np.full(3, step)))
        if part is not None:
            filled[part[0]] = part[1]
        return filled

    def put(
        self, hu: Num[np.ndarray, "d h w"], shares: Float[np.ndarray, "d h w"], window: tuple[float, float]
    ) -> Num[np.ndarray, "d h w"]:
        """The CT with it, in whole HU clipped to ``window`` as a preparation does."""
        added = self.contrast if self.contrast is not None else (METAL_HU - hu).clip(0)
        return np.round((hu + shares * added).clip(*window)).astype(hu.dtype)

    def places(self, clear: Float[np.ndarray, "d h w"], step: float, spare: float = 0.0) -> Int[np.ndarray, "n 3"]:
        """Voxels (z, y, x) that it can be centred on. clear: see `clearance`. spare: mm to leave around it."""
        need = self.radius + spare + step / 2
        found = np.argwhere(clear >= need)
        length = float(np.linalg.norm(self.half))
        for part in np.linspace(-1, 1, 2 * int(np.ceil(length / step)) + 1) if length else ():
            at = found + np.rint(part * self.half[::-1] / step).astype(int)
            within = ((at >= 0) & (at < clear.shape)).all(1)
            found, at = found[within], at[within]
            found = found[clear[tuple(at.T)] >= need]
        return found


def planted_objects(settings: Planting) -> list[Planted]:
    """The spheres, from the smallest on, and the screw."""
    spheres = [
        Planted(f"{diameter:g}mm", diameter / 2, np.zeros(3), settings.contrast)
        for diameter in sorted(set(settings.diameters))
    ]
    tilt = np.radians(_SCREW_TILT)
    forward = np.array([-np.sin(tilt), -np.cos(tilt), 0.0])
    return [*spheres, Planted(SCREW, _SCREW_RADIUS, (_SCREW_LENGTH / 2 - _SCREW_RADIUS) * forward, None)]


def clearance(hu: Num[np.ndarray, "d h w"], step: float) -> Float[np.ndarray, "d h w"]:
    """mm from each voxel inside the body to the nearest air, to the skin or out of the volume; 0 elsewhere."""
    inside: Bool[np.ndarray, "d h w"] = body_mask(hu, (step,) * 3) & (hu > _AIR_HU)
    return distance_inside(np.pad(inside, 1), step)[1:-1, 1:-1, 1:-1]


@dataclass(frozen=True)
class Place:
    """A voxel (z, y, x) to put an object at, and ``moved``, (x, y, z) mm to its second position."""

    voxel: Int[np.ndarray, "3"]
    moved: Float[np.ndarray, "3"]


def choose_place(
    planted: Planted,
    hu: Num[np.ndarray, "d h w"],
    clear: Float[np.ndarray, "d h w"],
    step: float,
    displacement: float,
    rng: np.random.Generator,
) -> Place | None:
    """A random place inside the body, of a screw in bone where it fits there; None where it fits nowhere."""
    metal = planted.contrast is None
    found = planted.places(clear, step, displacement if metal else 0.0)
    if metal:
        bone = ndimage.uniform_filter(hu.astype(np.float32), 3)[tuple(found.T)] > _BONE_HU
        found = found[bone] if bone.any() else found
    if not len(found):
        return None
    voxel, direction = found[rng.integers(len(found))], rng.standard_normal(3)
    return Place(voxel, displacement * direction / np.linalg.norm(direction))
