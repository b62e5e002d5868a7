"""Organs, vessels and bowel of the belly and the true pelvis."""

from typing import NamedTuple

import numpy as np

from diffux2ct.data.phantom.anatomy import Anatomy
from diffux2ct.data.phantom.canvas import Real
from diffux2ct.data.phantom.organs.chest import aorta_line, diaphragm, landmarks
from diffux2ct.data.phantom.organs.trunk import Body
from diffux2ct.data.phantom.shapes import ball, ellipsoid, shift, smooth_union, spline, tube
from diffux2ct.data.phantom.torso import fat_layers


class Place(NamedTuple):
    """The cavity of the belly at L1: its middle, half width, front and spine, mm."""

    x: float
    width: float
    front: float
    spine: float


def place(a: Anatomy) -> Place:
    """The cavity of a patient at L1."""
    z = float(a.spine["L1"].centre[2])
    fat_front, fat_side, _ = fat_layers(a["adiposity"])
    width = min(a.at("half_width", z) - fat_side - 17, a.at("cage_half", z + 30) - 9)
    return Place(a["centre_x"], width, a.at("front", z) + fat_front + 11, a.at("spine_y", z))


def paint_abdomen(body: Body) -> None:
    """Liver (right), gall bladder, spleen and stomach (left), pancreas, kidneys, vessels, bladder, rectum."""
    _paint_upper(body)
    for side in (-1, 1):
        _paint_kidney(body, side)
    _paint_vessels(body)
    _paint_pelvic_organs(body)


def _paint_upper(body: Body) -> None:
    canvas, a, p = body.canvas, body.anatomy, place(body.anatomy)
    edge = float(a.l3[2]) + a["liver_low"]
    box = canvas.box((-300, -300, edge - 70), (300, 300, a.dome() + 20))
    mid = (p.front + p.spine) / 2

    def organs(x, y, z):
        roof = z - diaphragm(a, x, y) + 3
        liver = ellipsoid(x, y, z, (p.x - 0.52 * p.width, mid + 4, edge + 74), (0.72 * p.width, 88, 112))
        # Its lower face rises from the right flank to the left lobe, and towards the front.
        slant = edge + 0.6 * (x - p.x + p.width) + 0.1 * (p.spine - y) - z
        liver = np.maximum(liver, 0.8 * slant)
        notch = ellipsoid(x, y, z, (p.x - 12, p.spine - 22, edge + 84), (26, 24, 90))
        liver = np.maximum(liver, -notch)
        spleen = ellipsoid(x, y, z, (p.x + 0.86 * p.width, p.spine + 6, a.dome() - 52), (24, 44, 46))
        stomach = ellipsoid(x, y, z, (p.x + 0.48 * p.width, mid - 6, a.dome() - 52), (40, 36, 48))
        antrum = ellipsoid(x, y, z, (p.x + 0.12 * p.width, p.front + 42, a.dome() - 92), (52, 22, 20))
        stomach = smooth_union(stomach, antrum, 16)
        tail_y, tail_z = y - 0.2 * np.abs(x - p.x), z - 0.35 * (x - p.x)
        tail = ellipsoid(x, tail_y, tail_z, (p.x + 14, p.spine - 48, edge + 34), (58, 12, 13))
        gall = ellipsoid(x, y, z, (p.x - 0.5 * p.width, p.front + 40, edge + 26), (15, 18, 24))
        return [np.maximum(d, roof) for d in (liver, spleen, stomach, tail, gall)]

    liver, spleen, stomach, tail, gall = canvas.smooth(box, organs)
    cavity, warp, texture = body.cavity[box.slices] + 2, body.warp[box.slices], body.texture[box.slices]
    boost = 50 if a.is_["contrast"] else 0
    wobble = 2.5 * warp
    canvas.fill(box, np.maximum(tail + 3 * texture + wobble, cavity), 32 + boost + 6 * texture)
    veins = np.clip(np.abs(warp + 0.5 * texture) * -6 + 1, 0, 1) * (30 if boost else -14)
    canvas.fill(box, np.maximum(liver + wobble, cavity), a["liver"] + boost + 4 * texture + veins)
    canvas.fill(box, np.maximum(spleen + wobble, cavity), 48 + 1.3 * boost + 3 * texture)
    canvas.fill(box, gall + 0.5 * wobble, 8)
    wall = np.maximum(stomach + wobble, cavity)
    canvas.fill(box, wall, 45 + 0.6 * boost)
    canvas.fill(box, wall + 4, 24 + 22 * texture)
    # Gas gathers under the front wall of a patient who lies on the back.
    canvas.fill(box, np.maximum(wall + 4, box.y - np.float32(mid - 20)), -950)


def _paint_kidney(body: Body, side: int) -> None:
    canvas, a = body.canvas, body.anatomy
    z = float(a.l3[2]) + a["kidney_z"] - (12 if side < 0 else 0)  # the right one lies lower, under the liver
    y = a.at("spine_y", z) + 6
    x = a.at("spine_x", z) + side * 60
    part = canvas.around((x, y, z), (48, 46, 70))
    warp = body.warp[part.slices]
    px = part.x - np.float32(x) + np.float32(side * 0.22) * (part.z - np.float32(z))  # lower poles further apart
    py, pz = part.y - np.float32(y), part.z - np.float32(z)
    d = ellipsoid(px, py + 0.25 * side * px, pz, (0, 0, 0), (25, 26, 53)) + 1.6 * warp
    d = np.maximum(d, 8 - ellipsoid(px, py, pz, (-side * 30, -4, 0), (14, 16, 22)))
    canvas.fill(part, np.maximum(d - 8, body.cavity[part.slices]), a["fat"])
    canvas.fill(part, d, 165 if a.is_["contrast"] else 33)
    hilum = ellipsoid(px, py, pz, (-side * 11, -3, 0), (13, 9, 26)) + 1.6 * warp + 2.5 * body.texture[part.slices]
    canvas.fill(part, hilum, -50)


def _paint_vessels(body: Body) -> None:
    """Aorta left of the midline, vena cava right of it, both forking above L5; iliac vessels to the groins."""
    a, contrast = body.anatomy, body.anatomy.is_["contrast"]
    line = aorta_line(a, landmarks(a))
    aorta = spline(line[-6:], 8)
    names = ("L4", "L3", "L2", "L1", "T12", "T11")
    cava = np.array([shift(a.spine[n].centre, -17, -a.spine[n].half[1] - 9, 0) for n in names])
    cava[-2:] += ((-4, -12, 0), (-6, -26, 4))
    radius = a["aorta_radius"]
    runs = [(aorta[:, :3], aorta[:, 3], 230, True), (spline(cava, 8), 1.15 * radius, 150, False)]
    for start, offset, r, hu in ((aorta[-1, :3], 5, 0.62 * radius, 220), (cava[0], -6, 0.72 * radius, 140)):
        fork = start + np.array([-0.2 * offset, 0, -12])
        for side in (-1, 1):
            groin = a.socket(side) + np.array([-side * 12 + offset, -36, -8])
            middle = 0.5 * (fork + groin) + np.array([side * 14, 26 + offset, 0])
            run = spline([start, fork, middle, groin, shift(groin, 0, -4, -60)], 10)
            runs.append((run, r, hu, hu > 200))
    for points, radii, hu, artery in runs:
        body.paint_tube(points, radii, hu if contrast else 42, (1.15, 550) if artery else None)


def _paint_pelvic_organs(body: Body) -> None:
    """Bladder behind the pubis, prostate or uterus, rectum along the sacrum."""
    canvas, a = body.canvas, body.anatomy
    sym, full, female = a.symphysis(), a["bladder"], a.is_["female"]
    x0 = float(a.sacral_top[0])
    centre = np.array([x0, sym[1] + 16 + 26 * full, sym[2] + 14 + 22 * full])
    radii = np.array([48, 34, 34]) * full
    part = canvas.box(centre - radii - (30, 70, 50), centre + radii + np.array([30, 70, 40]))
    x, y, z = part.x, part.y, part.z
    warp, texture = 2.5 * body.warp[part.slices], body.texture[part.slices]
    behind = shift(centre, 0, radii[1], 0)
    if female:
        womb = ellipsoid(x, y, z + 0.35 * (y - np.float32(behind[1])), shift(behind, 6, 16, 8), (30, 22, 26))
        canvas.fill(part, womb + warp, (95 if a.is_["contrast"] else 48) + 6 * texture)
    else:
        gland = ellipsoid(x, y, z, (x0, sym[1] + 32, sym[2] - 18), (24, 17, 18))
        canvas.fill(part, gland + 0.5 * warp, 44)
        for side in (-1, 1):
            vesicle = ellipsoid(x, y, z, shift(behind, side * 20, 4, -6), (18, 7, 7))
            canvas.fill(part, vesicle + warp, 30)
    d = np.maximum(ellipsoid(x, y, z, centre, radii) + 0.8 * warp, body.cavity[part.slices] + 1)
    canvas.fill(part, d - 3, 42)
    canvas.fill(part, d, 5)


# Bowel: the colon as a frame with stool and gas, the rectum, the small bowel as loops inside the frame.

NUM_LOOPS = 18


def paint_bowel(body: Body, rng: np.random.Generator) -> None:
    """Paint the small bowel, then the colon over it. All draws come first, so that they do not depend on the view."""
    p, l3, top = place(body.anatomy), body.anatomy.l3, body.anatomy.sacral_top
    right, left, belly, deep, low = p.x - 0.84 * p.width, p.x + 0.88 * p.width, p.front + 20, p.spine - 12, top[2]
    frame = np.array(
        [
            (right + 16, deep - 30, low - 8), (right, deep - 6, l3[2] - 45), (right - 2, deep - 8, l3[2] - 5),
            (right + 14, deep - 36, l3[2] + 18), (right + 40, belly + 6, l3[2] + 6), (p.x, belly, l3[2] - 8),
            (left - 38, belly + 8, l3[2] + 16), (left - 6, deep - 36, l3[2] + 48), (left, deep, l3[2] + 26),
            (left + 1, deep + 4, l3[2] - 20), (left - 8, deep - 8, l3[2] - 62), (left - 34, deep - 26, low - 12),
            (p.x + 26, deep - 36, low - 30), (p.x - 14, top[1] + 4, low - 34), (p.x, top[1] + 6, low - 58),
            (p.x, top[1] + 6, low - 92), (p.x, top[1] + 16, low - 126),
        ]
    )  # fmt: skip
    jitter = rng.normal(0, 5, frame.shape)
    jitter[-3:] *= 0.3
    gas = rng.uniform(-0.6, 1.0, len(frame))
    gas[-3:] = gas[-3:] * 0.5 - 0.1
    width = rng.uniform(14, 20)
    loops = [_draw_loop(body, rng) for _ in range(NUM_LOOPS)]
    for points, radius, hu, pockets in loops:
        _paint_loop(body, points, radius, hu, pockets)
    _paint_colon(body, frame + jitter, gas, width)


def _draw_loop(body: Body, rng: np.random.Generator) -> tuple[np.ndarray, float, float, np.ndarray]:
    """A winding piece of small bowel: points, radius, HU of its content, gas along it."""
    a, p = body.anatomy, place(body.anatomy)
    low = float(a.sacral_top[2]) - 50
    x = p.x + rng.uniform(-0.6, 0.6) * p.width
    y = rng.uniform(p.front + 30, max(p.spine - 36, p.front + 32))
    z = rng.uniform(low, float(a.l3[2]) + 18)
    knots = np.array([x, y, z]) + np.cumsum(rng.normal(0, 1, (5, 3)) * (26, 13, 20), 0) * 0.8
    return spline(knots, 12), float(rng.uniform(9, 14)), float(rng.uniform(10, 55)), rng.uniform(-3, 1, 5)


def _paint_loop(body: Body, points: np.ndarray, radius: Real, hu: Real, pockets: np.ndarray) -> None:
    part, d = tube(body.canvas, points, radius)
    d = np.maximum(d + 1.1 * body.texture[part.slices], body.cavity[part.slices] + 2)
    body.canvas.fill(part, d, 75 if body.anatomy.is_["contrast"] else 42)
    body.canvas.fill(part, d + 2.8, hu)
    for point, gas in zip(points[:: max(1, len(points) // 5)], pockets, strict=False):
        _pocket(body, point, radius - 2.5, float(gas))


def _paint_colon(body: Body, frame: np.ndarray, gas: np.ndarray, width: Real) -> None:
    line = spline(np.concatenate([frame, gas[:, None]], 1), 7)
    taper = np.interp(np.linspace(0, 1, len(line)), [0, 0.3, 0.7, 1], [1.2, 1, 0.78, 0.95])
    radii = width * (1 + 0.16 * np.sin(np.arange(len(line)) * 1.9)) * taper
    half = len(line) // 2
    # In two pieces: their bounding boxes are smaller than that of the whole frame.
    for piece in (slice(0, half + 1), slice(half, None)):
        part, d = tube(body.canvas, line[piece, :3], radii[piece])
        d = np.maximum(d, body.cavity[part.slices] + 1)
        body.canvas.fill(part, d, 44)
        stool = 25 - 420 * np.clip(body.texture[part.slices] - 0.35, 0, 1.6)  # crumbs with gas between
        body.canvas.fill(part, d + 2.6, stool)
    for point, radius, level in zip(line[:, :3], radii, line[:, 3], strict=True):
        _pocket(body, point, float(radius) - 2.6, float(np.clip(level, 0, 1)))


def _pocket(body: Body, centre: np.ndarray, radius: Real, gas: Real) -> None:
    """Gas in the front share `gas` (0..1) of a round lumen."""
    if gas <= 0:
        return
    part = body.canvas.around(centre, radius)
    d = ball(part.x, part.y, part.z, centre, radius)
    surface = part.y - np.float32(centre[1] - radius + 2 * radius * gas)
    body.canvas.fill(part, np.maximum(np.maximum(d, surface), body.cavity[part.slices] + 3), -930)
