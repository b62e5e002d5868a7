"""The patient's pose in front of the camera: turned about the isocentre, then shifted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffux2ct.errors import UserError
from diffux2ct.types import VIEWS
from diffux2ct.xray.camera import Real, finite


@dataclass(frozen=True)
class Pose:
    """A rigid motion of the patient; the camera stays where it is.

    A point p of the volume (LPS mm about its centre) comes to R p + shift, with R = Rz Ry Rx: turned about the
    fixed axes x, then y, then z through the isocentre, right-handed. So ``rotation_deg=(0, 0, 10)`` turns the
    patient's left side toward the back, and ``shift_mm=(5, 0, 0)`` moves the patient 5 mm to the patient's left.

    rotation_deg: degrees about (x, y, z). shift_mm: mm along (x, y, z). UserError unless each is three finite numbers.
    """

    rotation_deg: tuple[Real, Real, Real] = (0.0, 0.0, 0.0)
    shift_mm: tuple[Real, Real, Real] = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        for name, values in (("rotation_deg", self.rotation_deg), ("shift_mm", self.shift_mm)):
            if not isinstance(values, Sequence) or len(values) != 3 or not finite(*values):
                raise UserError(f"pose {name}={values}; give three finite numbers (x, y, z)")

    @property
    def is_identity(self) -> bool:
        """True if all angles and shifts are 0."""
        return not any(self.rotation_deg) and not any(self.shift_mm)

    def rotation(self) -> np.ndarray:
        """R = Rz Ry Rx: [3, 3], float64, acting on (x, y, z)."""
        matrix = np.eye(3)
        for axis, degrees in enumerate(self.rotation_deg):
            cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
            turn = np.eye(3)
            i, j = (axis + 1) % 3, (axis + 2) % 3
            turn[i, i], turn[i, j], turn[j, i], turn[j, j] = cosine, -sine, sine, cosine
            matrix = turn @ matrix
        return matrix

    def to_volume(self, points_mm: np.ndarray) -> np.ndarray:
        """Points [..., 3] of the camera's room in the volume's own coordinates: R^T (p - shift)."""
        return (points_mm - np.asarray(self.shift_mm, dtype=np.float64)) @ self.rotation()

    def to_room(self, points_mm: np.ndarray) -> np.ndarray:
        """Points [..., 3] of the volume in the camera's room: R p + shift."""
        return points_mm @ self.rotation().T + np.asarray(self.shift_mm, dtype=np.float64)

    def moved(self, other: "Pose") -> "Pose":
        """This pose with the angles and shifts of another added: a small disturbance of it."""
        (rx, ry, rz), (ox, oy, oz) = self.rotation_deg, other.rotation_deg
        (x, y, z), (dx, dy, dz) = self.shift_mm, other.shift_mm
        return Pose((rx + ox, ry + oy, rz + oz), (x + dx, y + dy, z + dz))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {"rotation_deg": list(self.rotation_deg), "shift_mm": list(self.shift_mm)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Pose":
        """The inverse of ``to_dict``; UserError for a missing or unknown key."""
        if set(values) != {"rotation_deg", "shift_mm"}:
            raise UserError(f"pose description has keys {sorted(values)}; it needs rotation_deg, shift_mm")
        return cls(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})


def random_pose(generator: np.random.Generator, degrees: Real, mm: Real) -> Pose:
    """A small random pose: each angle uniform in [-degrees, degrees], each shift in [-mm, mm].

    generator: advanced by six numbers, whatever ``degrees`` and ``mm`` are. UserError for a negative or infinite bound.
    """
    if not finite(degrees, mm) or min(degrees, mm) < 0:
        raise UserError(f"pose jitter degrees={degrees}, mm={mm}; give two numbers from 0 up")
    draw = generator.uniform(-1.0, 1.0, size=6)
    return Pose(tuple((draw[:3] * degrees).tolist()), tuple((draw[3:] * mm).tolist()))


def random_poses(generator: np.random.Generator, degrees: Real, mm: Real) -> dict[str, Pose]:
    """A random pose for each view: between two exposures the patient, or the C-arm, has moved a little."""
    return {view: random_pose(generator, degrees, mm) for view in VIEWS}
