"""The patient's pose in front of the camera: turned about the isocentre, then shifted. Views at any angle are poses.

A view has an azimuth a in degrees: its source stands at (-SAD sin a, -SAD cos a) in (x, y), that of a reversed camera
opposite. "frontal" is 0, "lateral" 90; a view at another angle is called after it, as "angle_45", and is the frontal
view of the patient turned by a about z: its columns run along (cos a, -sin a), where the lateral's run along +y.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffux2ct.errors import UserError
from diffux2ct.types import VIEWS
from diffux2ct.xray.camera import Real, finite

MAX_VIEWS = 8
_PREFIX = "angle_"


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


def random_poses(
    generator: np.random.Generator, degrees: Real, mm: Real, views: Sequence[str] = VIEWS
) -> dict[str, Pose]:
    """A random pose for each view: between two exposures the patient, or the C-arm, has moved a little."""
    return {view: random_pose(generator, degrees, mm) for view in views}


def view_name(angle: Real) -> str:
    """Name of the view at an azimuth in degrees, to a hundredth."""
    angle = round(float(angle), 2)
    # A dot would part the names of a module's parameters.
    return {0.0: VIEWS[0], 90.0: VIEWS[1]}.get(angle) or f"{_PREFIX}{angle:g}".replace(".", "p")


def drawing_order(views: Iterable[str]) -> list[str]:
    """Frontal and lateral first: what is drawn for them then depends on no other view, nor on its place."""
    given = list(views)
    return [*(view for view in VIEWS if view in given), *(view for view in given if view not in VIEWS)]


def view_angle(view: str) -> float:
    """Azimuth in degrees of a view by its name."""
    return 90.0 * VIEWS.index(view) if view in VIEWS else float(view.removeprefix(_PREFIX).replace("p", "."))


def is_view(key: str) -> bool:
    """True of names of views, among the keys of a batch."""
    return key in VIEWS or key.startswith(_PREFIX)


def view_names(angles: Any, key: str = "dataset.views") -> tuple[str, ...]:
    """Names of views at these azimuths. UserError unless they are 1 to 8 different numbers from 0 to below 360."""
    given = list(angles) if isinstance(angles, Sequence) and not isinstance(angles, str) else []
    names = tuple(view_name(angle) for angle in given if finite(angle) and 0 <= round(angle, 2) < 360)
    if not len(given) == len(names) == len(set(names)) or not 1 <= len(names) <= MAX_VIEWS:
        raise UserError(f"{key}={angles}: give 1 to {MAX_VIEWS} different angles in degrees, from 0 to below 360")
    return names


def at_angles(by_angle: Mapping[Any, Any], key: str) -> dict[str, Any]:
    """Values by azimuth in degrees, keyed by the names of the views. UserError for 0 and 90, and for no angle."""
    names = view_names(list(by_angle), key)
    if named := [view for view in names if view in VIEWS]:
        raise UserError(f"{key}={list(by_angle)}: 0 and 90 are frontal and lateral; give {' and '.join(named)}=")
    return dict(zip(names, by_angle.values(), strict=True))


def in_named_view(view: str, pose: Pose | None) -> tuple[str, Pose | None]:
    """A view at any angle as a named one, and the patient's pose in it. pose: of the patient before the turn."""
    if view in VIEWS:
        return view, pose
    turn, pose = Pose((0.0, 0.0, view_angle(view))), pose or Pose()
    shift = turn.to_room(np.asarray(pose.shift_mm, dtype=np.float64)).tolist()
    rx, ry, rz = pose.rotation_deg
    return VIEWS[0], Pose((rx, ry, rz + view_angle(view)), tuple(shift))
