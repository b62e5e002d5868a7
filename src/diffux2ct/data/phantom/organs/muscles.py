"""Muscles that are painted into the fat of the cavity: along the spine, the psoas, and those of the iliac wings."""

import numpy as np

from diffux2ct.data.phantom.organs.pelvis import hip_box, wing_frame
from diffux2ct.data.phantom.organs.trunk import Body, column, fraction
from diffux2ct.data.phantom.shapes import super_ellipse, tube


def paint_muscles(body: Body) -> None:
    """Erector spinae, quadratus lumborum, psoas, iliacus and gluteal muscles."""
    _paint_back(body)
    for side in (-1, 1):
        _paint_psoas(body, side)
        _paint_wing(body, side)


def _paint_back(body: Body) -> None:
    canvas, a = body.canvas, body.anatomy
    l5, l4, l1, t12 = (a.spine[n].centre for n in ("L5", "L4", "L1", "T12"))
    box = canvas.box((-130, -400, l5[2] - 75), (130, 400, 2000))

    def fields(x, y, z):
        spine_x, spine_y = column(a, z, "spine_x", "spine_y")
        xa, behind = np.abs(x - spine_x), y - spine_y
        low = np.clip((l4[2] - z) / 60, 0, 1.5)
        high = np.clip((z - l1[2]) / 130, 0, 1)
        half_x, half_y = 31 - 7 * low - 6 * high, 25 - 7 * high
        erector = super_ellipse(xa - 31 + 8 * low + 6 * high, behind - 45 + 4 * high, half_x, half_y, 2.4)
        erector = np.maximum(np.maximum(erector, 3 - xa), 18 - behind)
        # Behind the chest they fill the space between the lungs and the spinous processes.
        chest = np.maximum(6 + 52 * fraction(xa, 20, 46) - behind, xa - 50)
        erector = np.where(z > t12[2], np.minimum(erector + 3 * high, chest), erector)
        quadratus = super_ellipse(xa - 58, behind - 22, 19.0, 10.0, 2)
        quadratus = np.maximum(quadratus, np.maximum(z - l1[2] - 20, l4[2] - 20 - z))
        return [erector, quadratus]

    erector, quadratus = canvas.smooth(box, fields)
    warp, inside = body.warp[box.slices], body.fascia[box.slices]
    muscle = body.muscle(box.slices)
    canvas.fill(box, np.maximum(erector + 0.8 * warp, inside), muscle)
    canvas.fill(box, np.maximum(quadratus + 0.8 * warp, inside), muscle)


def _paint_psoas(body: Body, side: int) -> None:
    a, radius = body.anatomy, body.anatomy["psoas_radius"]
    points, radii = [], []
    for name, share in (("L1", 0.4), ("L2", 0.65), ("L3", 0.9), ("L4", 1.0), ("L5", 1.0)):
        v = a.spine[name]
        r = radius * share
        forward = (-0.25 if name == "L5" else 0.1) * v.half[1]
        points.append(v.world((side * (v.half[0] + r * 0.8), forward, 0)))
        radii.append(r)
    last, goal = points[-1], a.socket(side) + np.array([side * 2, -30, 0])
    points += [last + 0.5 * (goal - last) + (side * 4, -8, 8), goal, goal + np.array([side * 14, 30, -60])]
    radii += [radius * 0.95, 15, 11]
    part, d = tube(body.canvas, np.array(points), np.array(radii))
    body.canvas.fill(part, d + 0.9 * body.warp[part.slices], body.muscle(part.slices))


def _paint_wing(body: Body, side: int) -> None:
    """Iliacus inside the wing, the gluteal muscles outside it, with fat between and inside them."""
    canvas, a = body.canvas, body.anatomy
    part = hip_box(body, side)
    sheet, rim, _, u = canvas.smooth(part, lambda x, y, z: wing_frame(a, x, y, z, side))
    inside = body.fascia[part.slices]
    floor = np.float32(a.socket(side)[2] + 20) - part.z
    inner = np.maximum(np.maximum(np.maximum(-sheet - 13, sheet), rim + 10), floor)
    outer = np.maximum(np.maximum(-sheet, sheet - 44 + 10 * u), rim + 4 - 40 * np.clip(0.4 - u, 0, 1))
    meat = np.minimum(inner, np.maximum(outer, inside)) + 0.7 * body.warp[part.slices]
    canvas.fill(part, meat, body.muscle(part.slices))
    # The fat plane between the middle and the great gluteal muscle.
    plane = np.abs(sheet - 17 - 9 * (1 - u) - 2.5 * body.warp[part.slices]) - (1.0 + 1.4 * a["adiposity"])
    canvas.fill(part, np.maximum(np.maximum(plane, inside + 3), rim), -65)
