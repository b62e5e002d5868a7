"""Lungs with fissures and vessels, heart, great vessels, airways. The diaphragm bounds both chest and belly."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from diffux2ct.data.phantom.anatomy import Anatomy
from diffux2ct.data.phantom.canvas import Box, Real
from diffux2ct.data.phantom.organs.trunk import Body, chest_wall, column, fraction, levels
from diffux2ct.data.phantom.shapes import capsule, ellipsoid, shift, smooth_union, spline, tube

AORTA = 225  # HU of its blood with contrast agent


class Chest(NamedTuple):
    """Landmarks inside the chest: middle of the heart, the fork of the trachea, the hila, the top of the arch."""

    heart: np.ndarray
    carina: np.ndarray
    hila: dict[int, np.ndarray]
    arch: np.ndarray


def landmarks(anatomy: Anatomy) -> Chest:
    """Landmarks of a patient's chest."""
    a, t4, t5 = anatomy, anatomy.spine["T4"].centre, anatomy.spine["T5"]
    carina = t5.world((0, -t5.half[1] - 17, 4))
    z = a.dome() + 0.33 * (float(carina[2]) - a.dome())
    y = 0.52 * a.at("cage_front", z) + 0.48 * (a.at("spine_y", z) - 16)
    heart = np.array([a["centre_x"] + 15, y, z], np.float32)
    hila = {s: carina + np.array([s * 38, 6, -22.0 + (5 if s > 0 else 0)], np.float32) for s in (-1, 1)}
    return Chest(heart, carina, hila, np.array([a["centre_x"] + 10, carina[1] - 10, t4[2] + 6], np.float32))


def diaphragm(anatomy: Anatomy, x, y) -> np.ndarray:
    """Height of the diaphragm: two domes, the right one higher, falling to the rim."""
    a, z = anatomy, anatomy.dome()
    front, back, half = (a.at(f"cage_{k}", z - 20) for k in ("front", "back", "half"))
    px = (x - np.float32(a["centre_x"])) / half
    py = (y - ((front + back) / 2 - 10)) / ((back - front) / 2)
    # Towards the middle, below the heart, the domes hardly fall.
    flat, steep = np.float32(0.5), np.float32(2.0)
    right = (np.where(px > -0.47, flat, steep) * (px + 0.47)) ** 2 + py * py
    left = (np.where(px < 0.5, flat, steep) * (px - 0.5)) ** 2 + py * py
    # Behind it falls further than in front.
    drop = 56 + 22 * np.clip(py, -0.6, 1)
    domes = [z - low - drop * np.clip(away, 0, 1.7) ** 1.15 for away, low in ((right, 0.0), (left, 11.0))]
    return -smooth_union(-domes[0], -domes[1], 10)


def _lung_fields(anatomy: Anatomy, x, y, z) -> list[np.ndarray]:
    """Distance to the pleura of both lungs together, and the signed distance to the oblique fissures."""
    a, v = anatomy, anatomy.spine
    spine_x, spine_y, front = column(a, z, "spine_x", "spine_y", "cage_front")
    xa = np.abs(x - spine_x)
    inside = chest_wall(a, x, y, z) + 8.5
    gutter = (y - spine_y) - (4 + 52 * fraction(xa, 20, 46))
    apex = (z - v["T1"].centre[2] - 4) * 0.8
    floor = (diaphragm(a, x, y) - z) * 0.8
    # The space between the lungs: spine behind, vessels and airways, a thin septum behind the sternum.
    ahead = np.clip((spine_y - y) / np.maximum(spine_y - front, 1), 0, 1)
    heights = [float(v[name].centre[2]) for name in ("T11", "T9", "T7", "T5", "T4", "T2", "T1")]
    middle = levels(z, heights, [13, 14, 23, 30, 27, 33, 36])
    sternal = levels(z, heights, [10, 10, 10, 7, 7, 22, 32])
    back = np.float32(21)
    width = np.where(ahead < 0.45, back + (middle - back) * fraction(ahead, 0.02, 0.3), middle)
    width = width + (sternal - width) * fraction(ahead, 0.5, 0.85)
    lungs = np.maximum(np.maximum(inside, gutter), np.maximum(np.maximum(apex, floor), width - xa))
    t4, dome = v["T4"].centre, a.dome()
    slope = (t4[2] - dome + 25) / max(t4[1] + 40 - a.at("cage_front", dome), 60.0)
    oblique = (z - t4[2] + slope * (t4[1] + 40 - y)) / np.sqrt(1 + slope * slope) + 0.0 * xa
    return [lungs, oblique + 8 * np.sin(xa / 40)]


def paint_chest(body: Body, rng: np.random.Generator) -> None:
    """The organs between the neck and the diaphragm, without bones."""
    canvas, a = body.canvas, body.anatomy
    box = canvas.box((-400, -400, a.dome() - 105), (400, 400, a.spine["T1"].centre[2] + 20))
    if box.empty:
        return
    chest = landmarks(a)
    lungs, oblique = canvas.smooth(box, lambda x, y, z: _lung_fields(a, x, y, z))
    lungs = lungs + 0.8 * body.warp[box.slices]
    _paint_lungs(body, box, lungs, oblique, chest)
    _paint_lung_vessels(body, box, lungs, chest.hila, rng)
    vessels = _great_vessels(a, chest)
    for points, radii, _ in vessels:  # the fat round them
        part, d = tube(canvas, points, radii + 2)
        below = (diaphragm(a, part.x, part.y) - part.z).astype(np.float32)
        canvas.fill(part, np.maximum(np.maximum(d, body.cavity[part.slices]), below), a["fat"] + 20)
    _paint_heart(body, chest)
    for points, radii, hu in vessels:
        body.paint_tube(points, radii, hu if a.is_["contrast"] else 42, (1.25, 500) if hu == AORTA else None)
    _paint_airways(body, chest)


def _paint_lungs(body: Body, box: Box, lungs: np.ndarray, oblique: np.ndarray, chest: Chest) -> None:
    canvas, a = body.canvas, body.anatomy
    texture = body.texture[box.slices]
    # Blood sinks to the back: the lung is denser there.
    middle = np.float32(chest.carina[1])
    hu = a["lung"] + 0.35 * np.clip(box.y - middle, -70, 70) + (16 + 0.4 * a["emphysema"]) * texture
    hu += 330 * np.clip(texture - 1.2, 0, 1.2)  # vessels too small to draw one by one
    # The horizontal fissure runs from the oblique one forwards, in the right lung only.
    right = (oblique > 0) & (box.x < chest.carina[0]) & (box.y < middle + 20)
    for field, where in ((oblique, 1), (box.z - np.float32(chest.hila[-1][2]), right)):
        fissure = 1 - np.abs(field + body.warp[box.slices]) * np.float32(1 / canvas.voxel)
        hu = hu + np.clip(fissure, 0, 1) * np.float32(260 / max(canvas.voxel, 1.0)) * where
    canvas.fill(box, lungs, hu)


# Pulmonary vessels: binary trees that grow from each hilum until they are thinner than a voxel.

STEMS = 14  # from one hilum
GENERATIONS = 6
SHRINK = 0.76  # of the radius at a fork, near Murray's law for equal branches


def _grow_tree(rng: np.random.Generator, hilum: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Segments [N, 2, 3] and radii [N] of one lung's vessels."""
    turn = (np.arange(STEMS) + rng.uniform(0, 0.5)) / STEMS * 2 * np.pi
    spread = rng.uniform(0.55, 1.25, STEMS)
    across, up = 0.85 * np.sin(spread) * np.cos(turn) + 0.12, 1.15 * np.sin(spread) * np.sin(turn) - 0.1
    way = np.stack([side * np.cos(spread), across, up], 1)
    at = np.repeat(hilum[None], STEMS, 0) + rng.normal(0, 5, (STEMS, 3))
    radius = rng.uniform(2.2, 4.4, STEMS)
    segments, radii = [], []
    for generation in range(GENERATIONS):
        way = way / np.linalg.norm(way, axis=1, keepdims=True)
        length = rng.uniform(15, 27, len(at)) * 0.93**generation
        end = at + way * length[:, None]
        segments.append(np.stack([at, end], 1))
        radii.append(radius)
        at, radius = np.repeat(end, 2, 0), np.repeat(radius, 2) * SHRINK * rng.uniform(0.85, 1.1, 2 * len(at))
        bend = rng.normal(0, 0.42, (len(way), 3))
        # The two branches bend to opposite sides; all tend outwards.
        way = np.repeat(way, 2, 0) + np.stack([bend, -bend], 1).reshape(-1, 3) + (side * 0.06, 0.02, 0)
    return np.concatenate(segments), np.concatenate(radii)


def _paint_lung_vessels(
    body: Body, box: Box, lungs: np.ndarray, hila: Mapping[int, np.ndarray], rng: np.random.Generator
) -> None:
    """Paint both trees, cut off at the pleura. lungs: distance to the pleura over `box`."""
    canvas, cover = body.canvas, np.zeros(box.shape, np.float32)
    for side in (-1, 1):
        segments, radii = _grow_tree(rng, hila[side], side)
        # A vessel thinner than this is painted this thick and fainter in proportion.
        thick = np.maximum(radii, 0.5 * canvas.voxel)
        margin = (thick + canvas.voxel)[:, None]
        low, high = segments.min(1) - margin, segments.max(1) + margin
        for i in np.flatnonzero(radii > 0.25 * canvas.voxel):
            part = canvas.box(low[i].tolist(), high[i].tolist(), box)
            if part.empty:
                continue
            faint = canvas.coverage(capsule(part.x, part.y, part.z, *segments[i].tolist(), float(thick[i])))  # type: ignore[call-arg]
            faint *= np.float32((radii[i] / thick[i]) ** 2)
            view = cover[part.within(box)]
            np.maximum(view, faint, out=view)
    cover *= canvas.coverage(lungs + 1.5)
    canvas.blend(box, cover, 190 if body.anatomy.is_["contrast"] else 40)


def _paint_heart(body: Body, chest: Chest) -> None:
    canvas, a, c = body.canvas, body.anatomy, chest.heart
    s = a["heart_scale"] * (0.94 if a.is_["female"] else 1.0)
    tall = np.clip((chest.carina[2] - a.dome()) / 115, 0.95, 1.25)
    box = canvas.box(c - 105, c + 105)
    long = np.array([0.68, -0.52, -0.52])
    long = long / np.linalg.norm(long)
    across = np.cross(long, [0, 0, 1.0])
    across = across / np.linalg.norm(across)
    up = np.cross(across, long)

    def chambers(x, y, z):
        px, py, pz = x - np.float32(c[0]), y - np.float32(c[1]), (z - np.float32(c[2])) / np.float32(tall)
        p, q, r = (px * np.float32(k[0]) + py * np.float32(k[1]) + pz * np.float32(k[2]) for k in (long, across, up))
        left = ellipsoid(p, q, r, np.array([16, -2, 4]) * s, np.array([50, 38, 36]) * s)
        right = ellipsoid(px, py, pz, np.array([2, -20, -10]) * s, np.array([46, 30, 36]) * s)
        right_atrium = ellipsoid(px, py, pz, np.array([-34, 4, 2]) * s, np.array([24, 30, 34]) * s)
        left_atrium = ellipsoid(px, py, pz, np.array([-2, 34, 18]) * s, np.array([36, 21, 26]) * s)
        whole = smooth_union(smooth_union(smooth_union(left, right, 14), right_atrium, 10), left_atrium, 10)
        blood = np.minimum(left + 11 * s, right + 6)
        blood = np.minimum(np.minimum(blood, right_atrium + 3), left_atrium + 3)
        return [whole, blood, (z - diaphragm(a, x, y)) * -0.8]

    whole, blood, below = canvas.smooth(box, chambers)
    warp = body.warp[box.slices]
    limit = np.maximum(below, body.cavity[box.slices] + 2)
    canvas.fill(box, np.maximum(whole - 4 - 2 * a["adiposity"] + warp, limit), a["fat"] + 8)
    muscle, blood_hu = (105, 235) if a.is_["contrast"] else (47, 42)
    canvas.fill(box, np.maximum(whole + 0.6 * warp, limit + 2), muscle + 4 * body.texture[box.slices])
    canvas.fill(box, np.maximum(blood, limit + 4), blood_hu)


def aorta_line(anatomy: Anatomy, chest: Chest) -> np.ndarray:
    """Knots (x, y, z, radius) from the heart over the arch down to L4."""
    v, r, x0 = anatomy.spine, anatomy["aorta_radius"], anatomy["centre_x"]
    top, c, t5 = chest.arch, chest.heart, v["T5"]
    back = t5.centre + np.array([t5.half[0] + 6, -0.35 * t5.half[1] - 4, 0])
    knots = [
        (*(c + np.array([-4, -2, 28])), 1.5 * r), (x0 - 15, top[1] - 14, top[2] - 32, 1.5 * r),
        (x0 - 7, top[1] - 10, top[2] - 6, 1.4 * r), (x0 + 10, top[1], top[2], 1.35 * r),
        (back[0] - 3, back[1] - 16, top[2] - 4, 1.3 * r), (*back, 1.2 * r),
    ]  # fmt: skip
    for i, name in enumerate(("T7", "T9", "T11", "T12", "L1", "L2", "L3", "L4")):
        b = v[name]
        share = (i + 1) / 8
        aside = (1 - share) * (b.half[0] + 4) + share * 7
        ahead = (1 - share) * 0.9 * b.half[1] + share * (b.half[1] + r + 3)
        knots.append((*(b.centre + np.array([aside, -ahead, 0])), r * (1.2 - 0.2 * share)))
    return np.array(knots)


def _great_vessels(anatomy: Anatomy, chest: Chest) -> list[tuple[np.ndarray, np.ndarray, Real]]:
    """Points, radii and HU with contrast agent of the veins and arteries of the mediastinum."""
    a, c, top, x0 = anatomy, chest.heart, chest.arch, anatomy["centre_x"]
    t2, t1 = a.spine["T2"].centre, a.spine["T1"].centre
    cava_x, cava_y = x0 - 34, top[1] - 6
    right, left = chest.hila[-1], chest.hila[1]
    lines = [
        # Upper vena cava, and the veins of both arms that meet in it
        ([(cava_x, cava_y, t2[2] - 6), (cava_x, cava_y + 4, top[2] - 20), shift(c, -34, 2, 26)], 9, 9, 260),
        ([(cava_x, cava_y, t2[2] - 6), (x0 - 34, t2[1] - 42, t1[2] + 14), (x0 - 42, t1[1] - 44, t1[2] + 50)],
         8, 6, 170),
        ([(cava_x, cava_y, t2[2] - 8), (x0, cava_y - 5, t2[2] + 1), (x0 + 32, t2[1] - 44, t1[2] + 8),
          (x0 + 42, t1[1] - 44, t1[2] + 50)], 8, 6, 170),
        # Lower vena cava
        ([shift(a.spine["T11"].centre, -24, -50, 0), shift(c, -30, 14, -40), shift(c, -33, 6, -8)], 11, 11, 170),
        # Pulmonary trunk and left artery, right artery, a vein of each side
        ([shift(c, 10, -24, 24), (x0 + 15, top[1] - 12, top[2] - 34), shift(left, -18, -6, 12),
          shift(left, 2, 4, 8)], 14, 9, 250),
        ([(x0 + 10, top[1] - 12, top[2] - 34), (x0 - 12, right[1] - 14, right[2] + 6), shift(right, 0, -4, 0)],
         11, 8, 250),
        ([shift(right, 4, 4, -14), shift(c, -24, 34, 18)], 7, 9, 220),
        ([shift(left, -4, 4, -14), shift(c, 22, 34, 18)], 7, 9, 220),
        # The three branches of the arch
        ([(x0 - 4, top[1] - 5, top[2]), (x0 - 14, t2[1] - 34, t2[2] + 12), (x0 - 32, t1[1] - 30, t1[2] + 44)],
         7, 5, 215),
        ([(x0 + 8, top[1], top[2] + 2), (x0 + 17, t2[1] - 32, t2[2] + 8), (x0 + 32, t1[1] - 28, t1[2] + 48)],
         5, 4, 215),
        ([(x0 + 18, top[1] + 8, top[2] + 2), (x0 + 26, t2[1] - 18, t2[2] + 14), (x0 + 60, t1[1] - 24, t1[2] + 14)],
         6, 5, 215),
    ]  # fmt: skip
    vessels = []
    for knots, r0, r1, hu in lines:
        points = spline(np.array([np.asarray(k, float) for k in knots]), 8)
        vessels.append((points, np.linspace(r0, r1, len(points)), hu))
    line = spline(aorta_line(a, chest), 8)
    keep = line[:, 2] > a.spine["L1"].centre[2]  # further down it belongs to the belly
    keep[: len(keep) // 2] = True
    vessels.append((line[keep, :3], line[keep, 3], AORTA))
    return vessels


def _paint_airways(body: Body, chest: Chest) -> None:
    """Oesophagus, trachea, main and lobar bronchi."""
    v, fork, canvas = body.anatomy.spine, chest.carina, body.canvas
    gullet = np.array([v[n].world((4, -v[n].half[1] - 7, 0)) for n in ("C5", "C7", "T2", "T4", "T6", "T8", "T10")])
    gullet[-1] += (8, -6, 0)
    body.paint_tube(spline(gullet, 10), 6.5, 38)
    neck = [v[n].world((0, -v[n].half[1] - 21, 0)) for n in ("C4", "C6", "T1", "T3")]
    paths = [([*neck, fork], 8.6, 8.0)]
    for side in (-1, 1):
        hilum = chest.hila[side]
        steep = 0 if side > 0 else 3  # the right main bronchus falls more steeply
        end = shift(hilum, 0, 3, 4 - steep)
        paths += [
            ([fork, shift((fork + hilum) / 2, 0, 0, 2 - steep), end], 7.0, 5.5),
            ([end, shift(hilum, side * 12, 18, -30), shift(hilum, side * 18, 26, -62)], 4.8, 2.5),
            ([end, shift(hilum, side * 16, -4, 22), shift(hilum, side * 24, -4, 44)], 4.2, 2.2),
        ]
    for wall in (True, False):  # the walls of all before the air of any
        for knots, r0, r1 in paths:
            points = spline(knots, 8)
            part, d = tube(canvas, points, np.linspace(r0, r1, len(points)), margin=4)
            thickness = (1.6 if r0 > 6 else 0.9) if wall else 0.0
            canvas.fill(part, d - thickness, 20 if wall else -985)
