"""A trunk with two painted vertebrae, whose canals are known exactly, and where recorded screws lie in it."""

import hashlib
from functools import cache

import numpy as np

from diffux2ct.data.instrumentation.frame import Frame
from diffux2ct.data.io.ct_image import CtImage, LabelImage
from diffux2ct.data.labels import LABELS

CANAL = (11.0, 8.0)  # mm, half axes of every painted canal


def tilted(origin, degrees: float) -> Frame:
    return Frame(np.array(origin, float), np.eye(3)).turned(0, degrees)


# Lordosis: L3 leans forward, L4 lies level.


FRAMES = {22: tilted((0.0, 0.0, 34.0), 8.0), 23: tilted((1.0, 3.0, 0.0), 0.0)}


def paint_vertebra(p: np.ndarray, pedicle: float = 9.0) -> np.ndarray:
    """A lumbar vertebra around the middle of its canal; p [..., 3] mm in its frame; pedicle: width, mm."""
    x, y, z = np.abs(p[..., 0]), p[..., 1], p[..., 2]
    canal = (x / CANAL[0]) ** 2 + (y / CANAL[1]) ** 2 <= 1
    body = ((x / 24) ** 2 + ((y + 24) / 16) ** 2 <= 1) & (np.abs(z) <= 13)
    pedicles = (np.abs(x - CANAL[0] - pedicle / 2) <= pedicle / 2) & (y > -18) & (y < 8) & (np.abs(z - 4) <= 7)
    ring = ((x / 17) ** 2 + (y / 15) ** 2 <= 1) & (y > 2) & (z > -10) & (z < 8)
    facets = (np.abs(x - 17) <= 5) & (y > 4) & (y < 14) & (z > -10) & (z < 12)
    transverse = (x < 38) & (np.abs(y - 7) <= 3) & (np.abs(z - 4) <= 4)
    spinous = (x <= 3) & (y > 10) & (y < 34) & (np.abs(z + 4) <= 6)
    return (body | pedicles | ring | facets | transverse | spinous) & ~canal


@cache
def patient(pedicle: float = 9.0, spacing=(1.0, 1.0, 1.5), skin_behind: float = 75.0):
    """A trunk of muscle with L3 and L4 in it, and their labels."""
    shape = [round(e / s) for e, s in zip((130, 150, 100), spacing, strict=True)]
    origin = (-65.0, -60.0, -40.0)
    axes = [o + np.arange(n) * s for o, n, s in zip(origin, shape, spacing, strict=True)]
    z, y, x = np.meshgrid(*axes[::-1], indexing="ij")
    points = np.stack((x, y, z), -1)
    hu = np.where((y < skin_behind) & (y > -55) & (np.abs(x) < 60), 50, -1000).astype(np.int16)
    labels = np.zeros(hu.shape, np.uint8)
    for value, frame in FRAMES.items():
        bone = paint_vertebra(frame.to_local(points), pedicle)
        hu[bone], labels[bone] = 300, value
    return CtImage(hu, spacing, origin), LabelImage(labels, spacing, origin)


def shaft_of(screw: dict, step: float = 0.4) -> np.ndarray:
    """Points that fill a recorded screw's shaft, mm LPS."""
    entry, tip = np.array(screw["entry"]), np.array(screw["tip"])
    axis = (tip - entry) / np.linalg.norm(tip - entry)
    across = np.linalg.svd(axis[None])[2][1:]
    disc = np.stack(np.meshgrid(*[np.arange(-4, 4, step)] * 2), -1).reshape(-1, 2)
    disc = disc[np.linalg.norm(disc, axis=1) <= screw["diameter"] / 2]
    along = np.arange(0, np.linalg.norm(tip - entry), step)
    return (entry + along[:, None, None] * axis + disc @ across).reshape(-1, 3)


def share_inside(screw: dict, labels: LabelImage) -> float:
    """Share of the shaft's points whose nearest voxel has the screw's vertebra as its label."""
    index = np.rint((shaft_of(screw) - labels.origin) / labels.spacing).astype(int)
    found = labels.labels[index[:, 2], index[:, 1], index[:, 0]]
    return float((found == LABELS[screw["vertebra"]]).mean())


def digest(result) -> str:
    ct, labels, record = result
    return hashlib.sha256(ct.hu.tobytes() + labels.labels.tobytes() + repr(record).encode()).hexdigest()
