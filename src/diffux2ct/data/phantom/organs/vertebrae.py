"""Vertebrae, the discs between them and the spinal canal."""

from itertools import product

import numpy as np

from diffux2ct.data.labels import LABELS
from diffux2ct.data.phantom.canvas import FAR, Box, Canvas, Real
from diffux2ct.data.phantom.organs.trunk import Body
from diffux2ct.data.phantom.shapes import capsule, smooth_union, super_ellipse
from diffux2ct.data.phantom.spine import Vertebra


def _box(canvas: Canvas, v: Vertebra, low, high, within: Box | None = None) -> Box:
    """The part of the canvas that covers a box of the vertebra's own frame."""
    corners = np.array([v.world(corner) for corner in product(*zip(low, high, strict=True))])
    return canvas.box(corners.min(0), corners.max(0), within)


def local(box: Box, v: Vertebra) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The box's coordinates in the vertebra's own frame."""
    c, axes = v.centre, v.axes.astype(np.float32)
    d = (box.x - np.float32(c[0]), box.y - np.float32(c[1]), box.z - np.float32(c[2]))
    x, y, z = (axes[0, k] * d[0] + axes[1, k] * d[1] + axes[2, k] * d[2] for k in range(3))
    return x, y, z


def _body_distance(x, y, z, v: Vertebra, waist: Real, lip: Real) -> np.ndarray:
    ax, ay, az = (float(h) for h in v.half)
    edge = np.square(z * (1 / az))
    height = az * (1 - v.wedge / ay * y) - 0.06 * az * np.clip(1 - (x / ax) ** 2 - (y / ay) ** 2, 0, 1)
    narrow = 1 - waist * np.clip(1 - edge, 0, 1) + (lip / ax) * np.clip(edge - 0.55, 0, 0.5) ** 2 * 4
    side = super_ellipse(x, y, ax * narrow, ay * narrow, 2.5)
    return np.maximum(side, np.abs(z) - height)


def _arch_distance(x, y, z, v: Vertebra) -> np.ndarray:
    """Pedicles, laminae, spinous, transverse and articular processes; both sides at once through |x|."""
    ay, az = float(v.half[1]), float(v.half[2])
    px, pr = v.pedicle()
    k = float(np.clip(az / 13.8, 0.62, 1.1))  # thoracic arches are smaller
    up = 0.35 * az
    xa = np.abs(x)
    # A coordinate divided by s stretches a capsule s times along that axis.
    d = capsule(xa, y, (z - up) / 1.4, (px, ay - 5, 0), (px + 1, ay + 11 * k, 0), pr)
    lamina = capsule(xa, y, (z + 4 * k) / 2.4, (px - 1, ay + 15 * k, 1), (0, ay + 22 * k + 1, -1), 3.4 * k)
    d = smooth_union(d, lamina, 3.0)
    reach, drop = {"L": (40, -4), "T": (41, -10), "C": (45, -4)}[v.name[0]]
    if v.name in ("T1", "T2", "T11", "T12", "C7"):
        drop = -5
    spinous = capsule(x, y, (z + 6 * k) / 2.4, (0, ay + 23 * k, 0), (0, ay + reach * k, drop), 2.4, 3.2)
    d = smooth_union(d, spinous, 3.0)
    sweep = (14 if v.lumbar else 22) * k
    transverse = capsule(xa, y, z, (px, ay + 9 * k, 4 * k), (v.span, ay + sweep, 6 * k), 4.4 * k, 3.2 * k)
    d = smooth_union(d, transverse, 3.0)
    upper = capsule(xa, y, z, (px, ay + 12 * k, 3), (px + 1, ay + 13 * k, az + 6 * k), 4.8 * k, 4.0 * k)
    lower = capsule(xa, y, z, (px - 3, ay + 18 * k, -4), (px - 4, ay + 20 * k, -az - 8 * k), 4.8 * k, 3.8 * k)
    return smooth_union(np.minimum(d, upper), lower, 2.0)


def _paint_soft(body: Body, v: Vertebra) -> None:
    """The disc below and the canal's content, up to the next vertebra."""
    ax, ay, az = (float(h) for h in v.half)
    canal_y, canal_x, canal_half_y = v.canal()
    reach = canal_y + canal_half_y + 2
    part = _box(body.canvas, v, (-ax - 4, -ay - 4, -az - v.disc - 3), (ax + 4, reach, az + 2))
    x, y, z = local(part, v)
    ring = super_ellipse(x, y, ax + 0.5, ay + 0.5, 2.4)
    disc = np.maximum(ring, np.abs(z + az + v.disc / 2) - v.disc / 2 - 2.5)
    body.canvas.fill(part, disc, 74 + 20 * np.clip(1 + ring / 8, 0, 1))
    canal = super_ellipse(x, y - canal_y, canal_x, canal_half_y, 2)
    tunnel = np.maximum(canal, np.abs(z + v.disc / 2) - az - v.disc / 2 - 1)
    body.canvas.fill(part, tunnel, -40)
    body.canvas.fill(part, np.maximum(tunnel, canal + 2.5), 24)


def paint_vertebra(body: Body, v: Vertebra) -> None:
    """The disc below, the canal's content, then the bone with its cortical shell and end plates."""
    canvas, a = body.canvas, body.anatomy
    ax, ay, az = (float(h) for h in v.half)
    k = az / 13.8
    low, high = (-v.span - 6, -ay - 5, -az - 16 * k - 8), (v.span + 6, ay + 46 * k + 5, az + 12)
    whole = _box(canvas, v, low, high)
    _paint_soft(body, v)
    d = np.full(whole.shape, FAR, np.float32)
    shell = np.full(whole.shape, a["cortical_mm"] + 0.7, np.float32)
    core = np.full(whole.shape, a["cancellous"] + 105, np.float32)
    canal_y, canal_x, canal_half_y = v.canal()
    front = _box(canvas, v, (-ax - 6, -ay - 6, -az - 4), (ax + 6, ay + 6, az + 4), whole)
    x, y, z = local(front, v)
    at = front.within(whole)
    d[at] = _body_distance(x, y, z, v, a["waist"], a["osteophytes"])
    plate = np.clip((np.abs(z) - az + 4) * 0.25, 0, 1)
    shell[at] = a["cortical_mm"] * (1 + 0.5 * plate)
    core[at] = a["cancellous"] * (1 + 0.35 * plate)
    back = _box(canvas, v, (low[0], ay - 8, low[2]), high, whole)
    x, y, z = local(back, v)
    at = back.within(whole)
    arch = _arch_distance(x, y, z, v)
    mine = d[at] > arch
    shell[at][mine] = a["cortical_mm"] + 0.7
    core[at][mine] = a["cancellous"] + 105
    canal = super_ellipse(x, y - canal_y, canal_x, canal_half_y, 2)
    d[at] = np.maximum(smooth_union(d[at], arch, 2.5), -canal)
    core += (20 + 0.09 * a["cancellous"]) * body.texture[whole.slices]
    canvas.fill_bone(whole, d, shell, a["cortical"], core, LABELS[v.name])
