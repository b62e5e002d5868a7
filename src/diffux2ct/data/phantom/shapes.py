"""Signed distances in mm, negative inside; x, y, z are coordinate arrays that broadcast against each other."""

import numpy as np

from diffux2ct.data.phantom.canvas import FAR, Box, Canvas, Point, Real


def shift(point: Point, x: Real, y: Real, z: Real) -> np.ndarray:
    """A point moved by so many mm."""
    return np.asarray(point, np.float32) + np.array([x, y, z], np.float32)


def plane(x, y, z, origin: Point, normal: Point) -> np.ndarray:
    """Signed distance to the plane through a point, positive on the side that the unit vector `normal` points to."""
    terms = [(c - float(o)) * float(k) for c, o, k in zip((x, y, z), origin, normal, strict=True)]
    return terms[0] + terms[1] + terms[2]


def ellipsoid(x, y, z, centre: Point, radii: Point) -> np.ndarray:
    """Distance to an axis-aligned ellipsoid, exact at its surface to first order."""
    p = [(c - float(o)) * (1 / float(r)) for c, o, r in zip((x, y, z), centre, radii, strict=True)]
    squares = [c * c for c in p]
    k0 = np.sqrt(squares[0] + squares[1] + squares[2])
    scaled = [s * (1 / float(r) ** 2) for s, r in zip(squares, radii, strict=True)]
    k1 = np.sqrt(scaled[0] + scaled[1] + scaled[2])
    return k0 * (k0 - 1) / np.maximum(k1, 1e-6)


def ball(x, y, z, centre: Point, radius: Real) -> np.ndarray:
    """Distance to a sphere."""
    squares = [(c - float(o)) ** 2 for c, o in zip((x, y, z), centre, strict=True)]
    return np.sqrt(squares[0] + squares[1] + squares[2]) - radius


def capsule(x, y, z, start: Point, end: Point, radius: Real, end_radius: Real | None = None) -> np.ndarray:
    """Distance to a segment with round ends, its radius going linearly from `radius` to `end_radius`."""
    px, py, pz = x - float(start[0]), y - float(start[1]), z - float(start[2])
    vx, vy, vz = (float(b) - float(a) for a, b in zip(start, end, strict=True))
    k = 1 / (vx * vx + vy * vy + vz * vz + 1e-9)
    t = px * (vx * k) + py * (vy * k) + pz * (vz * k)
    np.clip(t, 0, 1, out=t)
    qx, qy, qz = t * vx, t * vy, t * vz
    np.subtract(px, qx, out=qx)
    np.subtract(py, qy, out=qy)
    np.subtract(pz, qz, out=qz)
    qx *= qx
    qx += np.square(qy, out=qy)
    qx += np.square(qz, out=qz)
    reach = np.sqrt(qx, out=qx)
    reach -= radius
    if end_radius is not None and end_radius != radius:
        t *= end_radius - radius
        reach -= t
    return reach


def super_ellipse(x, y, half_x, half_y, power) -> np.ndarray:
    """Radial distance to |x/half_x|^p + |y/half_y|^p = 1 in the plane."""
    # A hundredth of a mm2 more keeps the very centre from being 0/0.
    x2, y2 = x * x + 0.01, y * y + 0.01
    a, b = x2 * (1 / (half_x * half_x)), y2 * (1 / (half_y * half_y))
    rho = np.sqrt(a + b)
    if not (isinstance(power, int | float) and power == 2):
        # Between the powers 2 and 4, such that the diagonal is right: several times faster than powers.
        share = (2**0.5 - 2 ** (1 / power)) / (2**0.5 - 2**0.25)
        a *= a
        b *= b
        rho += share * (np.sqrt(np.sqrt(a + b)) - rho)
    reach = np.sqrt(x2 + y2)
    return reach - reach / rho


def smooth_union(a: np.ndarray, b: np.ndarray, blend: Real) -> np.ndarray:
    """Union of two distances with a fillet of about `blend` mm."""
    h = np.abs(a - b)
    np.subtract(blend, h, out=h)
    np.maximum(h, 0, out=h)
    h *= h
    h *= 1 / (4 * blend)
    return np.minimum(a, b) - h


def segments(
    canvas: Canvas, box: Box, points: np.ndarray, radii: Real | np.ndarray, margin: Real = 0.0, squash: Real = 1.0
) -> np.ndarray:
    """Distance in `box` to a polyline [N, 3] with one radius or one per point [N]; FAR beyond `margin` of it.

    One joint distance for all segments, so that a shell has no walls at the joints. squash: as in ``join``.
    """
    distance = np.full(box.shape, FAR, np.float32)
    p, r = points.tolist(), np.broadcast_to(radii, len(points)).tolist()
    for i in range(len(p) - 1):
        join(canvas, box, distance, p[i], p[i + 1], r[i], r[i + 1], margin=margin, squash=squash)
    return distance


def join(
    canvas: Canvas,
    box: Box,
    distance: np.ndarray,
    start: Point,
    end: Point,
    radius: Real,
    end_radius: Real | None = None,
    blend: Real = 0.0,
    margin: Real = 0.0,
    squash: Real = 1.0,
) -> None:
    """Add a capsule to a distance over `box`, in place; beyond `margin` and two voxels of it nothing changes.

    squash: how much taller than thick it is.
    """
    reach = max(float(radius), float(end_radius or radius)) * squash + max(2 * canvas.voxel, margin) + blend
    low = [min(a, b) - reach for a, b in zip(start, end, strict=True)]
    high = [max(a, b) + reach for a, b in zip(start, end, strict=True)]
    part = canvas.box(low, high, box)
    if part.empty:
        return
    view = distance[part.within(box)]
    if squash != 1:
        start, end = (start[0], start[1], start[2] / squash), (end[0], end[1], end[2] / squash)
    d = capsule(part.x, part.y, part.z / np.float32(squash), start, end, radius, end_radius)
    view[...] = smooth_union(view, d, blend) if blend else np.minimum(view, d)


def tube(canvas: Canvas, points: np.ndarray, radii: Real | np.ndarray, margin: Real = 0.0) -> tuple[Box, np.ndarray]:
    """The bounding box of a polyline [N, 3] with one radius or one per point [N], and the distance to it there."""
    reach = float(np.max(radii)) + max(2 * canvas.voxel, margin)
    box = canvas.box((points.min(0) - reach).tolist(), (points.max(0) + reach).tolist())
    return box, segments(canvas, box, points, radii, margin)


def spline(knots, step: Real = 6.0) -> np.ndarray:
    """Points about `step` mm apart on a smooth (Catmull-Rom) curve through knots [N, k]; first 3 columns are mm."""
    p = np.asarray(knots, float)
    p = np.concatenate([2 * p[:1] - p[1:2], p, 2 * p[-1:] - p[-2:-1]])
    out = []
    for a, b, c, d in zip(p[:-3], p[1:-2], p[2:-1], p[3:], strict=True):
        count = max(1, round(float(np.linalg.norm((c - b)[:3])) / step))
        t = (np.arange(count) / count)[:, None]
        out.append(0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3))
    return np.concatenate([*out, p[-2:-1]])
