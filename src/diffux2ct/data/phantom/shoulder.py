"""Clavicles, scapulae and humeri, with the muscles that lie on them."""

import numpy as np

from diffux2ct.data.label_scheme import LABELS
from diffux2ct.data.phantom.canvas import FAR, Real
from diffux2ct.data.phantom.ribcage import sternum_line
from diffux2ct.data.phantom.shapes import ball, capsule, join, plane, shift, smooth_union, spline
from diffux2ct.data.phantom.trunk import Body, shoulder_joint

SIDE = {1: "left", -1: "right"}


def paint_shoulder(body: Body, side: int) -> None:
    """Clavicle, scapula and humerus of one side."""
    if float(body.canvas.coords[2][-1]) < body.anatomy.spine["T8"].centre[2]:
        return
    glenoid = _paint_humerus(body, side)
    acromion = _paint_scapula(body, side, glenoid)
    _paint_clavicle(body, side, acromion)


def _paint_humerus(body: Body, side: int) -> np.ndarray:
    canvas, a = body.canvas, body.anatomy
    joint = shoulder_joint(a, side)
    way = np.array([side * 28, -30, 260.0]) if a.is_["arms_up"] else np.array([side * 42, 10, -280.0])
    glenoid = joint + np.array([-side * 25, 9, 3])
    box = canvas.box(np.minimum(joint, joint + way) - 40, np.maximum(joint, joint + way) + 40)
    if box is None:
        return glenoid
    head = ball(box.x, box.y, box.z, joint, 23)
    shaft = capsule(box.x, box.y, box.z, joint + 0.06 * way, joint + way, 14, 10.5)
    d = smooth_union(head, shaft, 8)
    shell = 1.4 + 3.4 * np.clip((head - 6) / 25, 0, 1)
    core = np.where(head < 12, a["cancellous"] * 0.9, 20) + 18 * body.texture[box.slices]
    canvas.fill_bone(box, d, shell, a["cortical"], core, LABELS[f"{SIDE[side]}_humerus"])
    return glenoid


def _paint_scapula(body: Body, side: int, glenoid: np.ndarray) -> np.ndarray:
    """A thin triangular plate over the back of the ribs, its spine, the acromion and the coracoid."""
    canvas, a = body.canvas, body.anatomy
    raised = a.is_["arms_up"]
    t2, t7 = a.spine["T2"].centre, a.spine["T7"].centre

    def on_ribs(out: Real, z: Real, off: Real) -> np.ndarray:
        half, front, back = (a.at(f"cage_{k}", z) for k in ("half", "front", "back"))
        sin = np.clip(out / half, -0.99, 0.99)
        y = (front + back) / 2 + (back - front) / 2 * (1 - abs(sin) ** 2.35) ** (1 / 2.35)
        return np.array([a["centre_x"] + side * out, y + off, z])

    top = on_ribs(70 if raised else 58, float(t2[2]) + 4, 20)
    tip = on_ribs(
        a.at("cage_half", float(t7[2])) * (0.93 if raised else 0.72), float(t7[2]) + (26 if raised else 8), 13
    )
    acromion = glenoid + np.array([side * 22, 18, 26])
    corners = np.array([top, tip, glenoid])
    box = canvas.box(np.minimum(corners.min(0), acromion) - 16, np.maximum(corners.max(0), acromion) + 16)
    if box is None:
        return acromion
    normal = np.cross(tip - top, glenoid - top)
    normal = normal / np.linalg.norm(normal) * -side
    n = plane(box.x, box.y, box.z, top, normal)
    centroid, rim = corners.mean(0), np.full(box.shape, -FAR, np.float32)
    for i in range(3):
        p, q = corners[i], corners[(i + 1) % 3]
        edge = np.cross(q - p, normal)
        edge = edge / np.linalg.norm(edge)
        edge = edge if np.dot(centroid - p, edge) < 0 else -edge
        out = plane(box.x, box.y, box.z, p, edge)
        np.maximum(rim, out, out=rim)
    bulge = 7 * np.clip(-rim / 28, 0, 1)  # the blade follows the ribs
    d = np.maximum(np.abs(n - bulge) - (1.4 + 2.2 * np.exp(-(((rim + 2) / 5) ** 2))), rim)
    medial = top + 0.22 * (tip - top)
    base = medial + 0.75 * (glenoid - medial) + np.array([0, 14, 6])
    for p, q, r, s in (
        (medial, base, 3, 5), (base, acromion, 5, 6), (acromion, shift(acromion, side * 4, -22, -1), 7, 6),
        (glenoid, shift(glenoid, -side * 9, 2, 0), 13, 9),
        (shift(glenoid, 0, -6, 8), shift(glenoid, side * 4, -34, 15), 7, 5), (glenoid, tip, 5, 3.5),
    ):  # fmt: skip
        join(canvas, box, d, p, q, r, s, blend=3)
    canvas.fill_bone(box, d, 1.3, a["cortical"], a["cancellous"] * 0.7, LABELS[f"{SIDE[side]}_scapula"])
    return acromion


def _paint_clavicle(body: Body, side: int, acromion: np.ndarray) -> None:
    canvas, a = body.canvas, body.anatomy
    inner = sternum_line(a)[0] + np.array([side * 20, 4, 5])
    outer = acromion + np.array([-side * 6, -20, 2])
    way = outer - inner
    points = spline([inner, inner + 0.35 * way + (0, -9, 4), inner + 0.75 * way + (0, 9, 2), outer], 10)
    radii = np.interp(np.arange(len(points)), [0, 3, len(points) - 1], [9.5, 5.8, 6.4])
    box = canvas.box(points.min(0) - 16, points.max(0) + 16)
    if box is None:
        return
    d = np.full(box.shape, FAR, np.float32)
    for i in range(len(points) - 1):
        join(canvas, box, d, points[i], points[i + 1], radii[i], radii[i + 1])
    canvas.fill_bone(box, d, 1.7, a["cortical"], a["cancellous"], LABELS[f"{SIDE[side]}_clavicle"])
