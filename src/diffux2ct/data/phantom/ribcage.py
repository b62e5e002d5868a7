"""Ribs, their cartilage and the sternum."""

import numpy as np

from diffux2ct.data.label_scheme import LABELS
from diffux2ct.data.phantom.anatomy import Anatomy
from diffux2ct.data.phantom.canvas import FAR
from diffux2ct.data.phantom.shapes import join, super_ellipse
from diffux2ct.data.phantom.spine import Vertebra
from diffux2ct.data.phantom.trunk import Body

# Ribs by vertebra: how far round the body they reach (degrees from the back), how far they fall on the way (mm).
RIBS: dict[str, tuple[float, float]] = {
    "T1": (150, 30), "T2": (152, 44), "T3": (154, 56), "T4": (154, 68), "T5": (154, 78), "T6": (152, 88),
    "T7": (148, 97), "T8": (142, 102), "T9": (134, 102), "T10": (124, 98), "T11": (100, 70), "T12": (66, 36),
}  # fmt: skip
SQUASH = 1.55  # a rib is that much taller than thick


def rib_path(anatomy: Anatomy, v: Vertebra, side: int) -> np.ndarray:
    """Points [N, 3] of the rib of `v`, from the joint at its body round the chest."""
    a = anatomy
    reach, fall = RIBS[v.name]
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
    if box is None:
        return
    gristle = np.full(box.shape, FAR, np.float32)
    line = sternum_line(a)
    for (name, side), path in paths.items():
        number = int(name[1:])
        if number > 10:
            continue
        # The upper seven join the sternum, the next three lean on the cartilage above.
        goal = line[round(1 + 1.5 * (number - 1))] if number < 8 else line[10]
        goal = goal + np.array(
            [side * (11 if number < 8 else 20 + 14 * (number - 7)), 2, -10 * max(0, number - 7)]
        )
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
        if name == "T1":
            radii = radii * 1.15
        p, r = path.tolist(), radii.tolist()
        for i in range(len(p) - 1):
            join(canvas, box, bone, p[i], p[i + 1], r[i], r[i + 1], squash=SQUASH)
    core = a["cancellous"] * 0.7 + 20 * body.texture[box.slices]
    canvas.fill_bone(box, bone, 1.0, a["cortical"], core, LABELS["ribs"])


def paint_sternum(body: Body) -> None:
    """Manubrium and body of the sternum, with the joint between them."""
    canvas, a = body.canvas, body.anatomy
    line = sternum_line(a)
    box = canvas.box(line.min(0) - (34, 16, 8), line.max(0) + np.array([34, 16, 8]))
    if box is None:
        return
    z = box.z.ravel()
    heights = line[::-1, 2]
    middle = np.interp(z, heights, line[::-1, 1])[:, None, None].astype(np.float32)
    down = np.interp(z, heights, np.linspace(1, 0, len(line)))
    wide, thick = (
        np.interp(down, *table).astype(np.float32)[:, None, None]
        for table in (
            ([0, 0.12, 0.24, 0.28, 0.7, 0.88, 1], [25, 25, 15, 15, 18, 13, 6]),
            ([0, 0.2, 0.9, 1], [6.2, 5.2, 5.0, 3.5]),
        )
    )
    d = super_ellipse(box.x - np.float32(a["centre_x"]), box.y - middle, wide, thick, 2.6)
    d = np.maximum(d, np.maximum(box.z - heights[-1], heights[0] - box.z))
    joint = heights[-1] - 0.26 * (heights[-1] - heights[0])
    d = np.maximum(d, 1.5 - np.abs(box.z - joint))
    core = a["cancellous"] * 0.75 + 20 * body.texture[box.slices]
    canvas.fill_bone(box, d.astype(np.float32), 0.9, a["cortical"] * 0.9, core, LABELS["sternum"])
