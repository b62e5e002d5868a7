"""Colon as a frame with stool and gas, the rectum, small bowel as loops inside the frame."""

import numpy as np

from diffux2ct.data.phantom.abdomen import place
from diffux2ct.data.phantom.canvas import Real
from diffux2ct.data.phantom.shapes import ball, spline, tube
from diffux2ct.data.phantom.trunk import Body

NUM_LOOPS = 18


def paint_bowel(body: Body, rng: np.random.Generator) -> None:
    """Small bowel first, the colon over it."""
    # All draws come first: what is in view must not change what follows.
    p, l3 = place(body.anatomy), body.anatomy.l3
    right, left, belly, deep = p.x - 0.84 * p.width, p.x + 0.88 * p.width, p.front + 20, p.spine - 12
    low = body.anatomy.sacral_top[2]
    top = body.anatomy.sacral_top
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
    """A winding piece of small bowel: points, radius, HU of what it holds, gas along it."""
    a, p = body.anatomy, place(body.anatomy)
    low = float(a.sacral_top[2]) - 50
    start = np.array(
        [
            p.x + rng.uniform(-0.6, 0.6) * p.width,
            rng.uniform(p.front + 30, max(p.spine - 36, p.front + 32)),
            rng.uniform(low, float(a.l3[2]) + 18),
        ]
    )
    steps = rng.normal(0, 1, (5, 3)) * (26, 13, 20)
    knots = start + np.cumsum(steps, 0) * 0.8
    return spline(knots, 12), float(rng.uniform(9, 14)), float(rng.uniform(10, 55)), rng.uniform(-3, 1, 5)


def _paint_loop(body: Body, points: np.ndarray, radius: Real, hu: Real, pockets: np.ndarray) -> None:
    found = tube(body.canvas, points, np.full(len(points), radius))
    if found is None:
        return
    part, d = found
    folds = 1.1 * body.texture[part.slices]
    d = np.maximum(d + folds, body.cavity[part.slices] + 2)
    body.canvas.fill(part, d, 75 if body.anatomy.is_["contrast"] else 42)
    body.canvas.fill(part, d + 2.8, hu)
    for point, gas in zip(points[:: max(1, len(points) // 5)], pockets, strict=False):
        _pocket(body, point, radius - 2.5, float(gas))


def _paint_colon(body: Body, frame: np.ndarray, gas: np.ndarray, width: Real) -> None:
    knots = np.concatenate([frame, gas[:, None]], 1)
    line = spline(knots, 7)
    share = np.linspace(0, 1, len(line))
    radii = (
        width
        * (1 + 0.16 * np.sin(np.arange(len(line)) * 1.9))
        * np.interp(share, [0, 0.3, 0.7, 1], [1.2, 1, 0.78, 0.95])
    )
    half = len(line) // 2
    # In two pieces: their bounding boxes are smaller than that of the whole frame.
    for piece in (slice(0, half + 1), slice(half, None)):
        found = tube(body.canvas, line[piece, :3], radii[piece])
        if found is None:
            continue
        part, d = found
        texture = body.texture[part.slices]
        d = np.maximum(d, body.cavity[part.slices] + 1)
        body.canvas.fill(part, d, 44)
        stool = 25 - 420 * np.clip(texture - 0.35, 0, 1.6)  # crumbs with gas between
        body.canvas.fill(part, d + 2.6, stool)
    for point, radius, level in zip(line[:, :3], radii, line[:, 3], strict=True):
        _pocket(body, point, float(radius) - 2.6, float(np.clip(level, 0, 1)))


def _pocket(body: Body, centre: np.ndarray, radius: Real, gas: Real) -> None:
    """Gas in the front share `gas` (0..1) of a round lumen."""
    if gas <= 0 or (part := body.canvas.around(centre, radius)) is None:
        return
    d = ball(part.x, part.y, part.z, centre, radius)
    surface = part.y - np.float32(centre[1] - radius + 2 * radius * gas)
    body.canvas.fill(part, np.maximum(np.maximum(d, surface), body.cavity[part.slices] + 3), -930)
