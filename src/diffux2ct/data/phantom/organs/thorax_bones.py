"""Ribs with their cartilage, sternum, clavicles, scapulae and humeri."""

import numpy as np

from diffux2ct.data.labels import LABELS
from diffux2ct.data.phantom.anatomy import Anatomy
from diffux2ct.data.phantom.canvas import FAR, Real
from diffux2ct.data.phantom.organs.trunk import SIDE, Body, shoulder_joint
from diffux2ct.data.phantom.shapes import ball, capsule, join, plane, shift, smooth_union, spline, super_ellipse
from diffux2ct.data.phantom.spine import Vertebra

# Ribs by vertebra: how far round the body they reach (degrees from the back), how far they fall on the way (mm).
RIBS: dict[str, tuple[float, float]] = {
    "T1": (150, 30), "T2": (152, 44), "T3": (154, 56), "T4": (154, 68), "T5": (154, 78), "T6": (152, 88),
    "T7": (148, 97), "T8": (142, 102), "T9": (134, 102), "T10": (124, 98), "T11": (100, 70), "T12": (66, 36),
}  # fmt: skip
SQUASH = 1.55  # a rib is that much taller than thick


def rib_path(anatomy: Anatomy, v: Vertebra, side: int) -> np.ndarray:
    """Points [N, 3] of the rib of `v`, from the joint at its body round the chest."""
    a, (reach, fall) = anatomy, RIBS[v.name]
    fall *= a["rib_slope"]
    head = v.world((side * (v.half[0] + 1), v.half[1] * 0.8, v.half[2] * 0.7))
    neck = v.world((side * (v.span + 1), v.half[1] + 13, v.half[2] * 0.4))
    points = [head, neck]
    start = 26.0
    for degrees in np.arange(start, reach + 0.1, (reach - start) / round((reach - start) / 9)):
        angle, share = np.radians(degrees), (degrees - start) / (reach - start)
        z = neck[2] - 3 - fall * (0.75 * share + 0.25 * share**2)
        half, front, back = (a.at(f"cage_{k}", z) for k in ("half", "front", "back"))
        sin, cos = np.sin(angle), np.cos(angle)
        px = a["centre_x"] + side * (half - 4.5) * sin**0.85
        py = (front + back) / 2 + ((back - front) / 2 - 4.5) * np.sign(cos) * np.abs(cos) ** 0.85
        points.append(np.array([px, py, z]))
    return np.array(points)


def sternum_line(anatomy: Anatomy) -> np.ndarray:
    """Points from the notch of the manubrium to the xiphoid."""
    a = anatomy
    top, low = a.spine["T2"].centre[2] - 6, a.spine["T9"].centre[2] + 2
    return np.array([(a["centre_x"], a.at("cage_front", z) - 1.5, z) for z in np.linspace(top, low, 12)])


def paint_ribs(body: Body) -> None:
    """Every rib in view, all with one distance, then the cartilage that ties them to the sternum."""
    canvas, a = body.canvas, body.anatomy
    paths = {(name, side): rib_path(a, a.spine[name], side) for name in RIBS for side in (-1, 1)}
    low = min(float(p[:, 2].min()) for p in paths.values()) - 60
    box = canvas.box((-400, -400, low), (400, 400, a.spine["T1"].centre[2] + 30))
    gristle = np.full(box.shape, FAR, np.float32)
    line = sternum_line(a)
    for (name, side), path in paths.items():
        number = int(name[1:])
        if number > 10:
            continue
        # The upper seven join the sternum, the next three lean on the cartilage above.
        goal = line[round(1 + 1.5 * (number - 1))] if number < 8 else line[10]
        goal = goal + np.array([side * (11 if number < 8 else 20 + 14 * (number - 7)), 2, -10 * max(0, number - 7)])
        end = path[-1]
        middle = (end + goal) / 2 + np.array([side * 6, -3, -8 if number > 3 else 0])
        for start, stop in ((end, middle), (middle, goal)):
            join(canvas, box, gristle, start, stop, 4.6, squash=1.3)
    canvas.fill(box, gristle, 100 + 12 * body.texture[box.slices])
    chalk = np.maximum(np.abs(gristle + 0.5) - 1, 5 * (1.15 - body.texture[box.slices]))
    canvas.fill(box, chalk, 330)
    bone = np.full(box.shape, FAR, np.float32)
    for (name, _), path in paths.items():
        radii = np.interp(np.arange(len(path)), [0, 2, len(path) - 1], [3.4, 3.7, 4.0])
        p, r = path.tolist(), (radii * (1.15 if name == "T1" else 1.0)).tolist()
        for i in range(len(p) - 1):
            join(canvas, box, bone, p[i], p[i + 1], r[i], r[i + 1], squash=SQUASH)
    core = a["cancellous"] * 0.7 + 20 * body.texture[box.slices]
    canvas.fill_bone(box, bone, 1.0, a["cortical"], core, LABELS["ribs"])


def paint_sternum(body: Body) -> None:
    """Manubrium and body of the sternum, with the joint between them."""
    canvas, a, line = body.canvas, body.anatomy, sternum_line(body.anatomy)
    box = canvas.box(line.min(0) - (34, 16, 8), line.max(0) + np.array([34, 16, 8]))
    z, heights = box.z.ravel(), line[::-1, 2]
    middle = np.interp(z, heights, line[::-1, 1])[:, None, None].astype(np.float32)
    down = np.interp(z, heights, np.linspace(1, 0, len(line)))
    wide = np.interp(down, [0, 0.12, 0.24, 0.28, 0.7, 0.88, 1], [25, 25, 15, 15, 18, 13, 6])
    thick = np.interp(down, [0, 0.2, 0.9, 1], [6.2, 5.2, 5.0, 3.5])
    wide, thick = (values.astype(np.float32)[:, None, None] for values in (wide, thick))
    d = super_ellipse(box.x - np.float32(a["centre_x"]), box.y - middle, wide, thick, 2.6)
    joint = heights[-1] - 0.26 * (heights[-1] - heights[0])
    d = np.maximum(d, np.maximum(box.z - heights[-1], heights[0] - box.z))
    d = np.maximum(d, 1.5 - np.abs(box.z - joint))
    core = a["cancellous"] * 0.75 + 20 * body.texture[box.slices]
    canvas.fill_bone(box, d.astype(np.float32), 0.9, a["cortical"] * 0.9, core, LABELS["sternum"])


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
    out, above = (0.93, 26) if raised else (0.72, 8)
    tip = on_ribs(a.at("cage_half", float(t7[2])) * out, float(t7[2]) + above, 13)
    acromion = glenoid + np.array([side * 22, 18, 26])
    corners = np.array([top, tip, glenoid])
    box = canvas.box(np.minimum(corners.min(0), acromion) - 16, np.maximum(corners.max(0), acromion) + 16)
    normal = np.cross(tip - top, glenoid - top)
    normal = normal / np.linalg.norm(normal) * -side
    n = plane(box.x, box.y, box.z, top, normal)
    centroid, rim = corners.mean(0), np.full(box.shape, -FAR, np.float32)
    for p, q in zip(corners, np.roll(corners, -1, 0), strict=True):
        edge = np.cross(q - p, normal)
        edge = edge / np.linalg.norm(edge)
        edge = edge if np.dot(centroid - p, edge) < 0 else -edge
        np.maximum(rim, plane(box.x, box.y, box.z, p, edge), out=rim)
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
    d = np.full(box.shape, FAR, np.float32)
    for i in range(len(points) - 1):
        join(canvas, box, d, points[i], points[i + 1], radii[i], radii[i + 1])
    canvas.fill_bone(box, d, 1.7, a["cortical"], a["cancellous"], LABELS[f"{SIDE[side]}_clavicle"])
