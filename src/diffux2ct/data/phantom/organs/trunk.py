"""The body as a whole: skin, subcutaneous fat, muscle with its fat planes, the fat of the cavities, the couch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffux2ct.data.phantom.anatomy import Anatomy
from diffux2ct.data.phantom.canvas import Canvas, Real
from diffux2ct.data.phantom.shapes import capsule, ellipsoid, shift, smooth_union, super_ellipse, tube
from diffux2ct.data.phantom.torso import fat_layers


@dataclass(frozen=True)
class Body:
    """The canvas, the patient, and fields over the whole canvas [D, H, W], for all painters.

    skin, fascia, cavity: distances in mm to the skin, to the muscles' surface below the subcutaneous fat and to the
    wall of the cavity of belly and chest (negative inside). warp, planes, texture: smooth noise, about unit normal.
    """

    canvas: Canvas
    anatomy: Anatomy
    skin: np.ndarray
    fascia: np.ndarray
    cavity: np.ndarray
    warp: np.ndarray
    planes: np.ndarray
    texture: np.ndarray

    def muscle(self, slices: Any = ...) -> np.ndarray:
        """HU of muscle with fat grown into it, more so with adiposity; over the whole canvas or a part of it."""
        t, a = self.texture[slices], self.anatomy
        marbling = np.clip(t - 0.4, 0, 2)
        marbling *= -(10 + 24 * a["adiposity"])
        marbling += 5 * t
        marbling += a["muscle"]
        return marbling

    def paint_tube(
        self, points: np.ndarray, radii: Real | np.ndarray, hu: Real, chalk: tuple[float, Real] | None = None
    ) -> None:
        """Paint a tube, see ``tube``. chalk: patches in its wall where the texture exceeds a value, and their HU."""
        part, d = tube(self.canvas, points, radii)
        self.canvas.fill(part, d, hu)
        if chalk is not None:
            patches = np.maximum(np.abs(d) - 0.8, 6 * (chalk[0] - self.texture[part.slices]))
            self.canvas.fill(part, patches, chalk[1])


def column(anatomy: Anatomy, z: np.ndarray, *names: str) -> list[np.ndarray]:
    """Curves of the anatomy at heights z [D, 1, 1]."""
    return [anatomy.along(name, z.ravel())[:, None, None] for name in names]


def levels(z: np.ndarray, heights, values) -> np.ndarray:
    """Values at z [D, 1, 1], linear between those at `heights`, which rise."""
    return np.interp(z.ravel(), heights, values).astype(np.float32)[:, None, None]


def fraction(value: np.ndarray, low: Real, high: Real) -> np.ndarray:
    """0 below `low`, 1 above `high`, smooth in between."""
    t = np.clip((value - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


SIDE = {1: "left", -1: "right"}


def shoulder_joint(anatomy: Anatomy, side: int) -> np.ndarray:
    """Centre of the humeral head."""
    t2 = anatomy.spine["T2"].centre
    out = 0.55 * anatomy.at("cage_half", float(anatomy.spine["T9"].centre[2])) + 90
    lift = 14 if anatomy.is_["arms_up"] else -6
    return np.array([anatomy["centre_x"] + side * out, t2[1] - 12, t2[2] + lift])


def _limbs(anatomy: Anatomy, x, y, z) -> np.ndarray:
    """Shoulders and upper arms, both sides at once."""
    joint = shoulder_joint(anatomy, 1) - np.array([anatomy["centre_x"], 0, 0])
    c7 = anatomy.spine["C7"].centre
    xa = np.abs(x - np.float32(anatomy["centre_x"]))
    if anatomy.is_["arms_up"]:
        elbow = joint + np.array([28, -30, 260])
        arm = capsule(xa, y, z, joint, elbow, 54, 42)
    else:
        elbow = joint + np.array([48, 14, -290])
        arm = capsule(xa, y, z, joint + np.array([4, 0, -10]), elbow, 47, 40)
        arm = smooth_union(arm, ellipsoid(xa, y, z, joint, (54, 50, 56)), 20)
    top = capsule(xa, y, z, (38, c7[1] + 18, c7[2] - 16), joint + np.array([-22, 8, -2]), 34, 44)
    return smooth_union(arm, top, 22)


def _outline(anatomy: Anatomy, x, y, z) -> tuple[np.ndarray, np.ndarray]:
    """Distance to the skin without the breasts, and the depth behind the middle (-1 front, 1 back)."""
    a = anatomy
    front, back, half = column(a, z, "front", "back", "half_width")
    (spine_x,), top = column(a, z, "spine_x"), a.sacral_top
    depth = (back - front) / 2
    px, py = x - np.float32(a["centre_x"]), y - (front + back) / 2
    lean = np.clip(py / depth, -1, 1)
    # A furrow over the spinous processes, the cleft between the buttocks.
    furrow = 5 * np.exp(-(((x - spine_x) / 16) ** 2))
    cleft = fraction(-z, 35 - top[2], 95 - top[2]) * 22 * np.exp(-((px / 8) ** 2))
    back = np.clip(lean, 0, 1)  # the back lies flat on the couch
    power = np.where(lean > 0, np.float32(a["outline_power"] + 0.7), np.float32(a["outline_power"]))
    d = super_ellipse(px, py + (furrow + cleft) * back, half, depth, power)
    if float(z.max()) > a.spine["T6"].centre[2] - 60:
        d = smooth_union(d, _limbs(a, x, y, z), 24)
    return d, lean


def _fields(anatomy: Anatomy, x, y, z) -> list[np.ndarray]:
    """Distances to skin, fascia and the wall of the cavity."""
    a = anatomy
    d, lean = _outline(a, x, y, z)
    v, top = a.spine, a.sacral_top
    heights = [top[2] - 110, top[2] - 20, v["L3"].centre[2], v["T10"].centre[2], v["T6"].centre[2]]
    heights += [v["T2"].centre[2], v["C6"].centre[2]]
    share = levels(z, heights, [1.1, 1.1, 1.0, 0.7, 0.55, 0.6, 0.5])
    front, side, back = fat_layers(a["adiposity"])
    seat = 1 + 0.5 * fraction(-z, -top[2], 60 - top[2]) * np.clip(lean, 0, 1)
    fat = (side + np.where(lean < 0, np.float32(front - side), np.float32(back - side)) * lean**2) * share * seat
    # The gap between the thighs, which touch.
    below = a.symphysis()[2] - 42 - z
    gap = np.where(below > 0, np.minimum(0.2 * below, 2.5), 1.5 * below) - np.abs(x - np.float32(a["centre_x"]))
    fascia = np.maximum(d + fat, gap + 6 * fraction(below, -8, 25))
    d = np.maximum(d, gap)
    # The wall: flat muscles at the sides, thin ones in front, none behind, where other muscles are painted.
    wall = np.where(lean < 0, 9 + 8 * np.exp(-((lean / 0.6) ** 2)), 1 + 16 * (1 - fraction(lean, 0.1, 0.6)))
    alba = np.exp(-(((x - a["centre_x"]) / 6) ** 2)) * fraction(-lean, 0.4, 0.6)
    ribs = fraction(z, v["L1"].centre[2], v["T11"].centre[2])
    cavity = fascia + (wall * (1 - 0.8 * alba) * (1 - ribs) + 2 * ribs)
    low = v["L2"].centre[2] - 20
    if float(z.max()) > low:
        # The wall passes gradually from the muscles of the belly to the ribs.
        ribbed = 7 - 60 * (1 - fraction(z, low, v["L1"].centre[2] + 20))
        cavity = np.maximum(cavity, chest_wall(a, x, y, z) + ribbed)
    if float(z.min()) < top[2] + 40:
        cavity = np.maximum(cavity, _pelvic_funnel(a, x, y, z))
    skin = d
    if a.is_["female"] and float(z.max()) > v["T9"].centre[2] - 60:
        skin = smooth_union(d, _breast(a, x, y, z), 14)
    return [skin, fascia, cavity]


def _breast(anatomy: Anatomy, x, y, z) -> np.ndarray:
    a = anatomy
    t7 = float(a.spine["T7"].centre[2])
    size = 0.8 + 0.4 * a["adiposity"]
    out = 0.6 * a.at("cage_half", t7)
    centre = (out, a.at("front", t7) + 10, t7 - 6)
    xa = np.abs(x - np.float32(a["centre_x"]))
    return ellipsoid(xa, y + 0.25 * (xa - np.float32(out)) * -1, z, centre, (60 * size, 36 * size, 58 * size))


def chest_wall(anatomy: Anatomy, x, y, z) -> np.ndarray:
    """Distance to the outer surface of the ribs."""
    front, back, half = column(anatomy, z, "cage_front", "cage_back", "cage_half")
    px, py = x - np.float32(anatomy["centre_x"]), y - (front + back) / 2
    return super_ellipse(px, py, half, (back - front) / 2, 2.35)


def _pelvic_funnel(anatomy: Anatomy, x, y, z) -> np.ndarray:
    """Distance to the muscles and bones that narrow the cavity from the iliac crests to the pelvic floor."""
    a, s, top = anatomy, anatomy.pelvic_scale, anatomy.sacral_top
    heights = top[2] + s * np.array([-164.0, -152, -138, -118, -98, -75, -45, 0, 38, 60])
    wide = (1.06 if a.is_["female"] else 1.0) * np.array([2.0, 16, 32, 48, 56, 61, 68, 96, 122, 170])
    ahead, behind = a.symphysis()[1], top[1]
    before = [ahead + 62, ahead + 44, ahead + 24, ahead + 11, ahead + 5, ahead - 10, ahead - 40, -400, -400, -400]
    behind = behind + np.array([-18.0, 2, 22, 42, 52, 54, 42, 32, 60, 100])
    half, front, back = (levels(z, heights, k) for k in (wide, before, behind))
    front = np.maximum(front, column(a, z, "front")[0])
    d = super_ellipse(x - np.float32(top[0]), y - (front + back) / 2, half, (back - front) / 2, 2.4)
    return np.maximum(d, np.float32(heights[0]) - z)


def make_body(canvas: Canvas, anatomy: Anatomy, noise: Sequence[np.ndarray]) -> Body:
    """The fields of a patient on a canvas."""
    skin, fascia, cavity = canvas.smooth(canvas.whole(), lambda x, y, z: _fields(anatomy, x, y, z))
    return Body(canvas, anatomy, skin, fascia, cavity, *noise)


def paint_trunk(body: Body) -> None:
    """Skin, subcutaneous fat with its septa, muscle with fat planes, fat in the cavities with small vessels."""
    canvas, a, box = body.canvas, body.anatomy, body.canvas.whole()
    canvas.fill(box, body.skin, 5)
    septa = np.clip(body.texture - 1.3, 0, 1) * 60 + a["fat"]
    canvas.fill(box, body.skin + 2.0, septa)
    muscle = body.muscle()
    # Fat planes between muscles lie where a smooth field is zero; the field is drawn out along the muscles.
    sheet = np.abs(body.warp)
    sheet *= -1 / (0.03 + 0.06 * a["adiposity"])
    sheet += 1.3
    np.clip(sheet, 0, 1, out=sheet)
    np.maximum(sheet, np.clip(1.3 - np.abs(body.planes) / (0.05 + 0.08 * a["adiposity"]), 0, 1), out=sheet)
    sheet *= np.clip(body.cavity * 0.1 - 1.2, 0, 1)  # not in the thin wall of the belly
    sheet *= muscle + 80
    muscle -= sheet
    # The three flat muscles at the sides of the belly have fat between them.
    depth = body.cavity - body.fascia
    layers = np.abs(np.abs(body.fascia + 0.52 * depth) - 0.17 * depth) - 0.3
    muscle -= 70 * canvas.coverage(np.maximum(layers, 11 - depth))
    canvas.fill(box, body.fascia, muscle)
    strands = np.clip(body.texture - 0.9, 0, 1.2)
    strands *= 85
    strands += a["fat"] + 4
    canvas.fill(box, body.cavity, strands)
    _paint_fossae(body)
    if a.is_["female"]:
        _paint_glands(body)


def _paint_fossae(body: Body) -> None:
    """The fat beside the anal canal, below the pelvic floor."""
    sym = body.anatomy.symphysis()
    for side in (-1, 1):
        at = shift(sym, side * 27, 84, -22)
        part = body.canvas.around(at, 45)
        d = ellipsoid(part.x, part.y, part.z, at, (17, 30, 34)) + 4 * body.warp[part.slices]
        body.canvas.fill(part, d, body.anatomy["fat"] + 8)


def _paint_glands(body: Body) -> None:
    a = body.anatomy
    t7 = float(a.spine["T7"].centre[2])
    out, y = 0.6 * a.at("cage_half", t7), a.at("front", t7) + 6
    for side in (-1, 1):
        at = (a["centre_x"] + side * out, y, t7 - 8)
        part = body.canvas.around(at, 50)
        d = ellipsoid(part.x, part.y, part.z, at, (38, 24, 36)) + 9 * body.texture[part.slices] + 4
        d = np.maximum(np.maximum(d, 9 - body.fascia[part.slices]), body.skin[part.slices] + 7)
        body.canvas.fill(part, d, 25)


def paint_couch(body: Body) -> None:
    """A thin curved shell with foam on it that the patient lies on; only air is replaced."""
    canvas, a = body.canvas, body.anatomy
    y0 = float(a.knots["back"][(a.knots["z"] > -60) & (a.knots["z"] < 260)].max()) + 5
    box = canvas.box((-230, y0 - 60, -2000), (230, y0 + 40, 2000))
    surface = (y0 - 0.0011 * (box.x - np.float32(a["centre_x"])) ** 2) + 0 * box.z
    outside = 1 - body.skin[box.slices]
    canvas.fill(box, np.maximum(np.maximum(surface - box.y, box.y - surface - 22), outside), -930)
    canvas.fill(box, np.maximum(np.abs(box.y - surface) - 1.2, outside), -250)
    canvas.fill(box, np.maximum(np.abs(box.y - surface - 22) - 1.2, outside), -300)
