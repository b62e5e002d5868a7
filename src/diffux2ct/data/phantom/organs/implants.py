"""Metal: pedicle screws and rods, a hip prosthesis, a plate on the pelvic ring. Every screw and rod has its label."""

import numpy as np

from diffux2ct.data.labels import LABELS, rod_label, screw_label
from diffux2ct.data.phantom.organs.pelvis import femur_points
from diffux2ct.data.phantom.organs.trunk import SIDE, Body
from diffux2ct.data.phantom.shapes import ball, capsule, plane, segments, shift, spline, tube


def paint_pedicle_screws(body: Body) -> int:
    """Screws at the chosen levels, a rod per side through their heads. Returns the number of screws."""
    canvas, a, count = body.canvas, body.anatomy, 0
    for rod, side in enumerate(a.screw_sides):
        heads = []
        for name in a.screw_levels:
            v = a.spine[name]
            px, pr = v.pedicle()
            ay, up = float(v.half[1]), 0.35 * float(v.half[2])
            entry = v.world((side * (px + 4), ay + 18, up))
            tip = v.world((side * (px - 7), -0.45 * ay, up - 1))
            head = entry + (entry - tip) / np.linalg.norm(entry - tip) * 11
            radius = min(3.25, 0.8 * pr)
            for start, end, r in ((tip, entry, radius), (entry, head, 5.8)):
                canvas.fill(*tube(canvas, np.stack([start, end]), r), a["implant"], screw_label(count))
            heads.append(head)
            count += 1
        heads = np.array(heads)
        # The rod sticks out past the last heads; over one level it is a stub.
        way = heads[0] - heads[-1] if len(heads) > 1 else np.array([0.0, 0.0, 12.0])
        way = way / np.linalg.norm(way) * 9
        points = np.concatenate([heads[:1] + way, heads, heads[-1:] - way])
        canvas.fill(*tube(canvas, points, 2.9), a["implant"], rod_label(rod))
    return count


def paint_hip_implant(body: Body, first_screw: int) -> None:
    """The hip implant of this patient, if any. first_screw: number of a plate's first screw."""
    if body.anatomy.hip_implant == "prosthesis":
        _paint_prosthesis(body)
    elif body.anatomy.hip_implant == "plate":
        _paint_plate(body, first_screw)


def _paint_prosthesis(body: Body) -> None:
    """Cup, head, neck, and a tapering stem in the shaft, in place of the bone's own head and neck."""
    canvas, a, side = body.canvas, body.anatomy, body.anatomy.hip_side
    p, radius = femur_points(a, side), a["femoral_head"]
    label = LABELS[f"{SIDE[side]}_hip_prosthesis"]
    near = canvas.around(p["head"], radius + 40)
    x, y, z = near.x, near.y, near.z
    neck = capsule(x, y, z, p["head"], p["base"] - 12 * p["way"], 20)
    canvas.fill(near, np.minimum(ball(x, y, z, p["head"], radius + 2.5), neck), body.muscle(near.slices), 0)
    opening = plane(x, y, z, p["head"], p["way"])
    outer, inner = ball(x, y, z, p["head"], radius + 4), ball(x, y, z, p["head"], radius - 1)
    canvas.fill(near, np.maximum(np.maximum(outer, -inner), opening - 4), a["implant"], label)
    canvas.fill(near, np.maximum(np.maximum(inner, opening - 3), 17 - ball(x, y, z, p["head"], 0)), 150)  # plastic
    canvas.fill(near, ball(x, y, z, p["head"], 15), a["implant"], label)
    shaft = p["base"] + np.array([-side * 5, 0, -42])
    end = shaft + 0.45 * (p["shaft"] - shaft)
    points = np.array([p["head"], shift(p["base"], -side * 4, 0, -6), shaft, end])
    for part, radii in ((points[:2], (6.5, 8.0)), (points[1:3], (11.0, 9.0)), (points[2:], (9.0, 5.0))):
        canvas.fill(*tube(canvas, part, np.array(radii)), a["implant"], label)


def _paint_plate(body: Body, first_screw: int) -> None:
    """A curved plate over the front of one side of the pelvic ring, with five screws."""
    canvas, a, side = body.canvas, body.anatomy, body.anatomy.hip_side
    socket, sym, s = a.socket(side), a.symphysis(), a.pelvic_scale
    knots = [
        shift(sym, -side * 14, -3, 16), shift(sym, side * 18, 2, 19), shift(socket, -side * 22, -24, 26),
        shift(socket, -side * 26, 0, 44 * s), shift(socket, -side * 26, 22, 62 * s),
    ]  # fmt: skip
    points = spline(knots, 6)
    box = canvas.box(points.min(0) - 12, points.max(0) + 12)
    canvas.fill(box, segments(canvas, box, points, 2.2, squash=2.2), a["implant"], LABELS["bone_plate"])
    for i in np.linspace(1, len(points) - 2, 5).astype(int):
        way = np.array([side * 6, 14, -24] if i < len(points) / 2 else [side * 16, 10, -14])
        part, d = tube(canvas, np.stack([points[i], points[i] + way]), np.array([2.2, 1.8]))
        if d.size:
            canvas.fill(part, d, a["implant"], screw_label(first_screw))
            first_screw += 1
