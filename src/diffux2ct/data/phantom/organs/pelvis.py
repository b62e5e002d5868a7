"""Hip bones, sacrum, coccyx and the upper ends of the femora."""

import numpy as np

from diffux2ct.data.labels import LABELS
from diffux2ct.data.phantom.anatomy import Anatomy
from diffux2ct.data.phantom.canvas import Box, Real
from diffux2ct.data.phantom.organs.trunk import SIDE, Body, fraction
from diffux2ct.data.phantom.shapes import ball, join, segments, shift, smooth_union


def wing_frame(anatomy: Anatomy, x, y, z, side: int) -> tuple[np.ndarray, ...]:
    """Coordinates of the iliac wing of one side: mm outside its mid surface, the distance to its rim, the place on it.

    The place: from 0 at the crest to 1 above the socket, and from 0 behind to 1 in front.
    """
    scale, top = anatomy.pelvic_scale, anatomy.sacral_top
    crest_z = float(top[2]) + 38 * scale
    behind, before = float(top[1]) + 47, float(top[1]) - 66 * scale
    u = np.clip((behind - y) / (behind - before), -0.3, 1.5)
    low = np.clip((crest_z - z) / (95 * scale), -0.3, 1.2)
    # From beside the sacrum outwards to the front, flaring towards the crest.
    inward = np.clip(u, 0, 1)
    upper = 44 + (122 * scale - 44) * inward**0.9
    lower = 48 + (100 * scale - 48) * inward
    middle = upper + (lower - upper) * np.clip(low, 0, 1) ** 0.8
    slope = np.sqrt(1 + ((116 * scale - 49) / (behind - before)) ** 2 + 0.15)
    sheet = ((x - np.float32(top[0])) * side - middle) / slope
    crest = z - crest_z + 42 * np.abs(u - 0.55) ** 2.2 / 0.45**2
    ends = np.maximum(
        y - behind + 26 * np.clip(low - 0.5, 0, 1),
        before - y + 16 * np.clip(0.35 - low, 0, 1) + 34 * np.clip(low - 0.3, 0, 0.7),
    )
    rim = np.maximum(crest, ends)
    return tuple(f.astype(np.float32) + 0 * x + 0 * z for f in (sheet, rim, low + 0 * y, u))


def hip_box(body: Body, side: int) -> Box:
    """The box of one hip bone and its muscles."""
    top, s = body.anatomy.sacral_top, body.anatomy.pelvic_scale
    x = np.array([0, 175]) if side > 0 else np.array([-175, 0])
    low, high = np.array([x[0], -112 * s, -195 * s]), np.array([x[1], 95, 60])
    return body.canvas.box(top + low, top + high)


def paint_hip(body: Body, side: int) -> None:
    """Iliac wing, socket, and the ring of pubis and ischium."""
    canvas, a = body.canvas, body.anatomy
    box = hip_box(body, side)
    s, top = a.pelvic_scale, a.sacral_top
    sheet, rim, low, u = canvas.smooth(box, lambda x, y, z: wing_frame(a, x, y, z, side))
    thick = 2.4 + 3.4 * np.exp(-(((rim + 4) / 7) ** 2)) + 5.5 * np.clip(1 - u / 0.35, 0, 1)
    thick = thick + 10 * np.clip(low - 0.6, 0, 1)
    notch = np.float32(top[2] - 76 * s) + 44 * fraction(0.62 - u, 0, 0.5) - box.z  # the greater sciatic notch
    d = np.maximum(np.maximum(np.abs(sheet) - thick, rim), notch)
    socket, sym, head = a.socket(side), a.symphysis(), a["femoral_head"]
    wide, spread = (58, 14) if a.is_["female"] else (52, 6)
    tuber = socket * (0, 1, 1) + np.array([top[0] + side * wide * s, 30, -72 * s])  # of the ischium
    pubis = sym + np.array([side * 12, 3, 0])
    for p, q, r, t in (
        (shift(socket, -side * 12, 4, 12), shift(socket, -side * 15, 3, -8), 22, 20),  # the wall of the socket
        (shift(socket, -side * 8, -14, 3), shift(pubis, side * 12, 3, 9), 12, 7),
        (shift(pubis, 0, 0, 10), shift(pubis, side * 2, 3, -14), 8.5, 7.5),
        (shift(pubis, side * 3, 6, -16), shift(tuber, -side * spread, -14, 0), 6, 7),
        (shift(tuber, -side * spread, -14, 0), tuber, 7, 10),
        (tuber, shift(socket, -side * 8, 24, -14), 13, 15),
        (shift(socket, -side * 8, 24, -14), shift(socket, -side * 10, 20, 20), 15, 12),
    ):
        join(canvas, box, d, p, q, r, t, blend=6)
    cup = canvas.around(socket, 48, box)
    at = cup.within(box)
    centre = shift(socket, side * 3.5, -2, -2)  # the socket opens outwards
    bowl = ball(cup.x, cup.y, cup.z, socket, head + 8.5)
    open_side = (cup.x - np.float32(centre[0])) * side * 0.8 - (cup.z - np.float32(centre[2])) * 0.5
    bowl = np.maximum(bowl, open_side - 8)
    d[at] = np.maximum(smooth_union(d[at], bowl, 6), (head + 2.5) - (bowl + head + 8.5))
    d[at] = np.maximum(d[at], (head + 2.5) - ball(cup.x, cup.y, cup.z, socket, 0))
    d = np.maximum(d, 2.4 - np.abs(box.x - np.float32(sym[0])))
    core = a["cancellous"] * 0.85 + 24 * body.texture[box.slices]
    shell = (1.3 + 0.8 * np.clip(low, 0, 1)).astype(np.float32)
    canvas.fill_bone(box, d, shell, a["cortical"], core, LABELS[f"{SIDE[side]}_hip"])


def femur_points(anatomy: Anatomy, side: int) -> dict[str, np.ndarray]:
    """Head, base of the neck, greater and lesser trochanter, and a point far down the shaft."""
    a = anatomy
    head = a.socket(side)
    incline, twist = np.radians(a["neck_shaft"] - 90), np.radians(a["anteversion"])
    way = np.array([side * np.cos(incline) * np.cos(twist), np.cos(incline) * np.sin(twist), -np.sin(incline)])
    base = head + 50 * way
    return {
        "head": head,
        "base": base,
        "greater": base + np.array([side * 11, 9, 15]),
        "lesser": base + np.array([-side * 12, 13, -32]),
        "shaft": base + np.array([-side * 18, -8, -230]),
        "way": way,
    }


def paint_femur(body: Body, side: int) -> None:
    """Head, neck, trochanters and the upper shaft."""
    canvas, a = body.canvas, body.anatomy
    p, radius = femur_points(a, side), a["femoral_head"]
    low = np.minimum(p["head"], p["greater"]) - (35, 40, 260)
    box = canvas.box(low, shift(np.maximum(p["head"], p["greater"]), 35, 40, 35))
    d = ball(box.x, box.y, box.z, p["head"], radius)
    gap = canvas.around(p["head"], radius + 8, box)
    canvas.fill(gap, d[gap.within(box)] - 2.5, 65)
    base = p["base"]
    join(canvas, box, d, p["head"], base, 0.66 * radius, 0.72 * radius, blend=8)
    join(canvas, box, d, shift(base, 0, 0, -4), shift(base, -side * 5, 0, -42), 18, 15, blend=8)
    join(canvas, box, d, shift(base, side * 3, 3, -6), p["greater"], 15, 11, blend=8)
    join(canvas, box, d, shift(base, -side * 5, 3, -30), p["lesser"], 9, 6, blend=6)
    join(canvas, box, d, shift(base, -side * 5, 0, -42), p["shaft"], 15, 14, blend=6)
    down = fraction(base[2] - box.z, 5, 70)
    shell = (1.2 + 4.6 * down).astype(np.float32)
    core = (a["cancellous"] + 80 * np.exp(-np.maximum(d + radius, 0) / 30)) * (1 - down) - 40 * down
    core = core + 26 * body.texture[box.slices]
    canvas.fill_bone(box, d, shell, a["cortical"], core, LABELS[f"{SIDE[side]}_femur"])


def paint_sacrum(body: Body) -> None:
    """A tapering plate bent along an arc, concave to the front, with canal, foramina and median crest; then coccyx."""
    canvas, a = body.canvas, body.anatomy
    top, tilt, scale = a.sacral_top, a.sacral_tilt, a["spine_scale"]
    box = canvas.box(top - (64, 30, 125), shift(top, 64, 85, 18))
    bend = 122.0 * scale  # radius of the arc
    down = np.array([-np.sin(tilt), -np.cos(tilt)])  # (y, z) along the bone, away from L5
    front = np.array([-np.cos(tilt), np.sin(tilt)])  # (y, z) towards the belly
    centre = top[1:] + front * bend
    dy, dz = box.y - np.float32(centre[0]), box.z - np.float32(centre[1])
    along = bend * np.arctan2(dy * down[0] + dz * down[1], -(dy * front[0] + dz * front[1]))
    off = np.sqrt(dy * dy + dz * dz) - bend  # mm behind the arc; [D, H, 1] like `along`
    xa = np.abs(box.x - np.float32(top[0]))
    d = _sacrum_distance(xa, along / scale, off / scale, scale)
    core = a["cancellous"] * 0.8 + 26 * body.texture[box.slices]
    canvas.fill(box, np.maximum(d - 2.2, 6 - xa), 55)  # joints with the hip bones
    canvas.fill_bone(box, d, 1.3, a["cortical"], core, LABELS["sacrum"])

    angles = np.array([104.0, 116, 127, 137]) * scale / bend
    points = np.array([(top[0], *(centre + bend * (np.sin(t) * down - np.cos(t) * front))) for t in angles])
    tail = segments(canvas, box, points, np.array([6.0, 5.0, 4.0, 3.0]))
    canvas.fill_bone(box, tail, 1.1, a["cortical"], core, LABELS["coccyx"])


def _sacrum_distance(xa, along, off, scale: Real) -> np.ndarray:
    """Distance at |x|, at a length along the arc and at a depth behind it; the last two at scale 1."""
    width = np.interp(along, [0, 12, 35, 60, 85, 100], [42, 56, 50, 34, 24, 9]).astype(np.float32)
    thick = np.interp(along, [0, 30, 60, 100], [16.5, 13, 9, 4.5]).astype(np.float32)
    x = xa / np.float32(scale)
    half = thick * (1 - 0.3 * np.clip(x / 50, 0, 1))
    swept = 11 * np.square(np.clip(x / 50, 0, 1.2))  # and lie further back than the body
    wing_drop = 14 * np.clip((x - 22) / 28, 0, 1)  # the alae fall away from the end plate
    d = np.maximum(np.maximum(x - width, np.abs(off - swept) - half), np.maximum(wing_drop - along, along - 100))
    crest = np.maximum(np.maximum(x - 2.8, off - thick - 11 + along * 0.09), np.maximum(8 - along, along - 75))
    d = smooth_union(d, np.maximum(crest, -off), 3.0)
    canal = np.sqrt((x / 2.0) ** 2 + (off - 0.75 * thick - 2) ** 2) - (5.5 - 0.04 * along)
    d = np.maximum(d, -canal)
    for s in (22.0, 42.0, 60.0, 76.0):
        hole = np.sqrt((x - (25 - 0.13 * s)) ** 2 + (along - s) ** 2) - (4.4 - 0.015 * s)
        d = np.maximum(d, -hole)
    return (d * scale).astype(np.float32)
