"""The spine as numbers: one table of vertebrae, stacked on the sacrum along the curves of one patient."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from diffux2ct.data.phantom.canvas import Real

# Per vertebra, from below: half width, half depth, half height of the body, disc below it, half span of the
# transverse processes; then its tilt: the fraction of the lumbar lordosis and of the thoracic kyphosis (positive:
# leaning back on the way up). mm at spine_scale 1, after Panjabi (Spine 1991, 1992) and Gilad (Spine 1986).
VERTEBRAE: dict[str, tuple[float, float, float, float, float, float, float]] = {
    "L5": (25.5, 17.0, 13.6, 10.0, 43, -0.58, 0.0),
    "L4": (24.0, 17.0, 13.8, 10.5, 44, -0.28, 0.0),
    "L3": (22.5, 16.5, 13.8, 9.5, 47, -0.07, 0.0),
    "L2": (21.5, 16.2, 13.5, 9.0, 42, 0.08, 0.0),
    "L1": (20.5, 15.8, 13.0, 8.0, 37, 0.16, 0.0),
    "T12": (19.0, 15.4, 12.4, 6.5, 25, 0.18, 0.0),
    "T11": (17.7, 15.0, 11.7, 5.2, 27, 0.18, -0.03),
    "T10": (16.6, 14.6, 11.2, 4.6, 29, 0.18, -0.09),
    "T9": (15.7, 14.2, 10.8, 4.3, 30, 0.18, -0.18),
    "T8": (15.0, 13.8, 10.5, 4.1, 31, 0.18, -0.29),
    "T7": (14.4, 13.3, 10.2, 4.0, 32, 0.18, -0.42),
    "T6": (13.9, 12.6, 9.9, 3.9, 32, 0.18, -0.54),
    "T5": (13.4, 11.8, 9.6, 3.8, 32, 0.18, -0.66),
    "T4": (13.1, 11.0, 9.3, 3.7, 32, 0.18, -0.77),
    "T3": (13.2, 10.3, 9.0, 3.7, 33, 0.18, -0.87),
    "T2": (13.9, 9.6, 8.7, 3.8, 34, 0.18, -0.95),
    "T1": (14.8, 9.1, 8.3, 4.4, 36, 0.18, -1.0),
    "C7": (14.2, 8.7, 7.3, 5.0, 33, 0.18, -0.98),
    "C6": (13.2, 8.4, 6.9, 5.0, 27, 0.18, -0.86),
    "C5": (12.4, 8.2, 6.8, 4.8, 25, 0.18, -0.66),
    "C4": (11.9, 8.0, 6.8, 4.6, 24, 0.18, -0.45),
}
LUMBAR = ("L1", "L2", "L3", "L4", "L5")


def sacral_tilt(lordosis: float) -> float:
    """Tilt of the upper face of the sacrum, radians; negative, as for L5."""
    return -float(np.radians(18 + 0.6 * lordosis))


@dataclass(frozen=True)
class Vertebra:
    """Place, orientation and size of one vertebra, mm."""

    name: str
    centre: np.ndarray  # [3] (x, y, z)
    axes: np.ndarray  # [3, 3]; columns are its own Left, Posterior and Superior in world coordinates
    half: np.ndarray  # [3] half width, half depth, half height of the body
    disc: float  # thickness of the disc below
    span: float  # half span of the transverse processes
    wedge: float  # relative height gained from the back of the body to the front

    @property
    def lumbar(self) -> bool:
        return self.name[0] == "L"

    def world(self, point) -> np.ndarray:
        """A point of its own frame in world coordinates."""
        return (self.centre + self.axes @ np.asarray(point, float)).astype(np.float32)

    def canal(self) -> tuple[float, float, float]:
        """Centre (own y) and half axes (x, y) of the spinal canal."""
        half_x = float(np.clip(0.52 * self.half[0], 9.0, 14.0))
        half_y = float(np.clip(0.5 * self.half[1], 6.8, 9.0))
        return float(self.half[1]) + half_y, half_x, half_y

    def pedicle(self) -> tuple[float, float]:
        """Distance of the pedicle's axis from the midline, and its half width."""
        radius = {"L5": 0.31, "L4": 0.28}.get(self.name, 0.26 if self.lumbar else 0.21) * self.half[0]
        return self.canal()[1] + float(radius) + 0.3, float(radius)


def rotation(tilt: Real, bend: Real, twist: Real) -> np.ndarray:
    """Axes turned about x (tilt back), then y (bend to the left), then z (twist); radians."""
    ct, st, cb, sb, cw, sw = (f(a) for a in (tilt, bend, twist) for f in (np.cos, np.sin))
    about_x = np.array([[1, 0, 0], [0, ct, st], [0, -st, ct]])
    about_y = np.array([[cb, 0, sb], [0, 1, 0], [-sb, 0, cb]])
    about_z = np.array([[cw, -sw, 0], [sw, cw, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def grow_spine(
    values: Mapping[str, float], scoliosis: Real, discs: np.ndarray, l3: np.ndarray
) -> tuple[dict[str, Vertebra], np.ndarray]:
    """Stack the vertebrae on the sacrum along their tilts, then move all so that L3 is at `l3`.

    scoliosis: degrees. discs: a factor per vertebra. Returns the vertebrae, L5 first, and the middle of the upper
    face of the sacrum.
    """
    scale, lordosis, kyphosis = (values["spine_scale"], *np.radians([values["lordosis"], values["kyphosis"]]))
    position = np.zeros(3)
    tilt_below = sacral_tilt(values["lordosis"])
    spine: dict[str, Vertebra] = {}
    for i, (name, (*half, disc, span, lordotic, kyphotic)) in enumerate(VERTEBRAE.items()):
        tilt = lordotic * lordosis + kyphotic * kyphosis
        phase = (i - 2.5) / 5 * np.pi  # apex between L2 and L3; the thoracic curve balances it
        fade = 1.0 if i < 8 else max(0.0, 1 - (i - 8) / 6)
        bend = -np.radians(scoliosis) * np.sin(phase) * fade
        twist = np.radians(scoliosis) * 0.6 * np.cos(phase) * fade
        axes = rotation(tilt, bend, twist)
        half = np.array(half) * scale
        disc = disc * scale * values["disc_scale"] * float(discs[i])
        middle = rotation((tilt + tilt_below) / 2, bend, 0.0)[:, 2]
        position = position + middle * disc + axes[:, 2] * half[2]
        wedge = {"L5": 0.12, "L4": 0.06}.get(name, 0.02 if name[0] == "L" else -0.03)
        spine[name] = Vertebra(name, position, axes, half, disc, span * scale, wedge)
        position = position + axes[:, 2] * half[2]
        tilt_below = tilt
    shift = l3 - spine["L3"].centre
    # Single precision, so that later computations over voxels stay in it.
    for name, v in spine.items():
        spine[name] = replace(v, centre=(v.centre + shift).astype(np.float32), half=v.half.astype(np.float32))
    return spine, shift.astype(np.float32)
