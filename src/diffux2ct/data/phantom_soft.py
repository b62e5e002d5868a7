"""Soft tissue, gas and couch of the phantom: skin, fat, muscle walls, organs, vessels, bowel, lung bases."""

import numpy as np

from diffux2ct.data.phantom_anatomy import Anatomy
from diffux2ct.data.phantom_bones import hip_box, hip_frame
from diffux2ct.data.phantom_canvas import Canvas, capsule, ellipsoid, super_ellipse, tube


class Trunk:
    """The body's outline on a canvas: depth below the skin and below the wall of the body cavity, in mm."""

    def __init__(self, canvas: Canvas, anatomy: Anatomy):
        z = canvas.coords
        self.front, self.back, self.half_width = (
            anatomy.along(k, z) for k in ("front", "back", "half_width")
        )
        self.spine_x, self.spine_y = anatomy.along("spine_x", z), anatomy.along("spine_y", z)
        box = canvas.whole()
        middle, half = (
            ((self.front + self.back) / 2)[:, None, None],
            ((self.back - self.front) / 2)[:, None, None],
        )
        x = box.x - np.float32(anatomy["centre_x"])
        y = box.y - middle
        # A furrow over the spinous processes.
        furrow = 5 * np.exp(-(((box.x - self.spine_x[:, None, None]) / 16) ** 2))
        behind = np.clip(y / half, 0, 1)
        self.skin_depth = -super_ellipse(
            x, y + furrow * behind, self.half_width[:, None, None], half, anatomy["outline_power"]
        )
        front, side, back = anatomy.fat_layers()
        lean = np.clip(y / half, -1, 1)
        fat = side + np.where(lean < 0, front - side, back - side) * lean**2
        self.fascia_depth = self.skin_depth - fat
        linea_alba = np.where(lean < -0.5, 1 - 0.8 * np.exp(-((x / 5) ** 2)), 1)
        wall = (10 + 7 * np.exp(-((lean / 0.55) ** 2))) * linea_alba
        self.cavity_depth = self.fascia_depth - wall


def paint_trunk(canvas: Canvas, anatomy: Anatomy, trunk: Trunk, texture: np.ndarray) -> None:
    """Skin, subcutaneous fat, muscle wall, and fat in the cavity."""
    box = canvas.whole()
    muscle = anatomy["muscle"] + 8 * texture
    canvas.fill(box, -trunk.skin_depth, 10)
    canvas.fill(box, 2.0 - trunk.skin_depth, anatomy["fat"])
    canvas.fill(box, -trunk.fascia_depth, muscle)
    canvas.fill(box, -trunk.cavity_depth, anatomy["fat"] + 6 + 8 * texture)


def paint_muscles(
    canvas: Canvas, anatomy: Anatomy, trunk: Trunk, warp: np.ndarray, texture: np.ndarray
) -> None:
    """Erector spinae, quadratus lumborum, psoas, and the muscles on both faces of the iliac wings."""
    box = canvas.whole()
    l4, l1 = anatomy.spine["L4"].centre, anatomy.spine["L1"].centre
    muscle = anatomy["muscle"] + 8 * texture
    x = np.abs(box.x - trunk.spine_x[:, None, None])
    behind = box.y - trunk.spine_y[:, None, None]  # mm behind the centres of the vertebral bodies
    low = np.clip((l4[2] - canvas.coords) / 60, 0, 1.5)[:, None, None]
    erector = super_ellipse(x - 31 + 8 * low, behind - 45, 31.0 - 7 * low, 25.0, 2.4)
    erector = np.maximum(np.maximum(erector + 0.6 * warp, 3 - x), 18 - behind)
    # Fat grows into these muscles, more so with adiposity.
    marbled = muscle - (12 + 30 * anatomy["adiposity"]) * np.clip(texture - 0.3, 0, 2)
    canvas.fill(box, np.maximum(erector, -trunk.fascia_depth), marbled)
    quadratus = super_ellipse(x - 58, behind - 20, 19.0, 9.0, 2.0) + 0.4 * warp
    between = np.maximum(box.z - l1[2] - 20, l4[2] - 20 - box.z)
    canvas.fill(box, np.maximum(quadratus, between), muscle)

    radius = anatomy["psoas_radius"]
    for side in (-1, 1):
        points, radii = [], []
        for name, share in (("L1", 0.4), ("L2", 0.65), ("L3", 0.9), ("L4", 1.0), ("L5", 1.0)):
            v = anatomy.spine[name]
            r = radius * share
            forward = -0.25 * v.half[1] if name == "L5" else 0.1 * v.half[1]
            points.append(v.world((side * (v.half[0] + r * 0.8), forward, 0)))
            radii.append(r)
        last = points[-1]
        for out, forth, down in ((12, -16, -45), (26, -42, -95), (36, -52, -140)):
            points.append(last + np.array([side * out, forth, down]))
            radii.append(radius * 0.9)
        found = tube(canvas, np.array(points), np.array(radii))
        if found is not None:
            part, d = found
            canvas.fill(part, d + 0.4 * warp[part.slices], muscle[part.slices])
        part = hip_box(canvas, anatomy, side)
        if part is None:
            continue
        sheet, rim, _, u = hip_frame(anatomy, part, side)
        inside = -trunk.fascia_depth[part.slices]
        inner = np.maximum(np.maximum(-sheet - 13, sheet), rim + 10)
        outer = np.maximum(np.maximum(-sheet, sheet - 38 + 8 * u), rim + 4 - 40 * np.clip(0.4 - u, 0, 1))
        meat = np.minimum(inner, np.maximum(outer, inside)) + 0.5 * warp[part.slices]
        canvas.fill(part, meat, marbled[part.slices])


def _place(anatomy: Anatomy) -> tuple[float, float, float, float]:
    """Sizes that the organs hang on: centre x, mean half width, front and back of the cavity at L1."""
    z = float(anatomy.spine["L1"].centre[2])
    front, back = float(anatomy.along("front", z)), float(anatomy.along("spine_y", z))
    fat_front, fat_side, _ = anatomy.fat_layers()
    width = float(anatomy.along("half_width", z)) - fat_side - 17
    return anatomy["centre_x"], width, front + fat_front + 11, back


def paint_organs(
    canvas: Canvas, anatomy: Anatomy, trunk: Trunk, warp: np.ndarray, texture: np.ndarray
) -> None:
    """Liver (right), spleen and stomach (left), kidneys, aorta and vena cava, bladder."""
    cx, width, front, spine = _place(anatomy)
    cavity = -trunk.cavity_depth - 2
    bright = anatomy.contrast
    box = canvas.whole()
    boost = 52 if bright else 0
    parts = []
    edge = anatomy["centre_z"] + anatomy["liver_low"]
    liver = ellipsoid(
        box.x, box.y, box.z, (cx - 0.5 * width, (front + spine) / 2 + 6, edge + 70), (0.66 * width, 76, 82)
    )
    # Its lower face rises from the right flank to the left lobe, and towards the front.
    slant = edge + 0.55 * (box.x - cx + width) + 0.12 * (spine - box.y) - box.z
    parts.append((np.maximum(liver, 0.8 * slant), anatomy["liver"] + boost, 5))
    spleen = ellipsoid(box.x, box.y, box.z, (cx + 0.84 * width, spine + 8, edge + 66), (26, 44, 42))
    parts.append((spleen, 48 + 1.3 * boost, 4))
    stomach = ellipsoid(
        box.x, box.y, box.z, (cx + 0.42 * width, (front + spine) / 2 - 18, edge + 64), (42, 34, 44)
    )
    parts.append((stomach, 30, 10))
    for d, hu, mottle in parts:
        canvas.fill(box, np.maximum(d + warp, cavity), hu + mottle * texture)
    # Gas gathers under the front wall of a patient who lies on the back.
    level = (front + spine) / 2 - 26 + box.y * 0
    canvas.fill(box, np.maximum(np.maximum(stomach + warp + 4, cavity + 4), box.y - level), -950)

    for side, drop in ((-1, 12), (1, 0)):  # the right kidney lies lower, under the liver
        z = anatomy["centre_z"] + anatomy["kidney_z"] - drop
        y = float(anatomy.along("spine_y", z)) + 6
        x = float(anatomy.along("spine_x", z)) + side * 60
        part = canvas.box((x - 45, y - 45, z - 68), (x + 45, y + 45, z + 68))
        if part is None:
            continue
        tilt = side * 0.22 * (part.z - z)  # lower poles further apart
        px = part.x - x + tilt
        d = ellipsoid(px, part.y - y, part.z - z, (0, 0, 0), (25, 26, 53)) + 0.5 * warp[part.slices]
        canvas.fill(part, d - 9, anatomy["fat"])
        canvas.fill(part, d, 165 if bright else 34)
        hilum = (
            ellipsoid(px + side * 12, part.y - y + 3, part.z - z, (0, 0, 0), (14, 9, 26))
            + 0.4 * warp[part.slices]
        )
        canvas.fill(part, hilum, -60)
    _paint_vessels(canvas, anatomy, bright, texture)
    bladder = anatomy.sacral_top + np.array([0, -58, -78])
    part = canvas.box(bladder - 50, bladder + 50)
    if part is not None:
        d = ellipsoid(part.x, part.y, part.z, bladder, (40, 32, 30)) + warp[part.slices]
        canvas.fill(part, d - 3, 40)
        canvas.fill(part, d, 6)


def _paint_vessels(canvas: Canvas, anatomy: Anatomy, bright: bool, texture: np.ndarray) -> None:
    """Aorta left of the midline, vena cava right of it, both forking above L5."""
    radius = anatomy["aorta_radius"]
    names = ("L4", "L3", "L2", "L1", "T12", "T11", "T10", "T9", "T8")
    for offset, r, hu, lime in ((7, radius, 230, True), (-17, radius * 1.15, 150, False)):
        course = [anatomy.spine[n] for n in names]
        points = np.array([v.centre + np.array([offset, -v.half[1] - r - 3, 0]) for v in course])
        fork = points[0] + np.array([-0.3 * offset, 0, -14])
        limbs = [
            np.array([fork, fork + np.array([s * 26, 12, -46]), fork + np.array([s * 52, -6, -110])])
            for s in (-1, 1)
        ]
        for line, rr in [(np.concatenate([[fork], points]), r), *((limb, 0.6 * r) for limb in limbs)]:
            found = tube(canvas, line, np.full(len(line), rr))
            if found is None:
                continue
            part, d = found
            canvas.fill(part, d, hu if bright else 42)
            if lime:  # patches of chalk in its wall
                patches = np.maximum(np.abs(d) - 0.8, 6 * (1.1 - texture[part.slices]))
                canvas.fill(part, patches, 550)


def paint_bowel(
    canvas: Canvas, anatomy: Anatomy, trunk: Trunk, rng: np.random.Generator, texture: np.ndarray
) -> None:
    """Colon as a frame with stool and gas, small bowel as loops inside it."""
    cx, width, front, spine = _place(anatomy)
    l3 = anatomy.spine["L3"].centre
    right, left, belly = cx - 0.84 * width, cx + 0.88 * width, front + 20
    deep = spine - 12
    frame = np.array(
        [
            (right + 12, deep - 30, l3[2] - 88), (right, deep - 6, l3[2] - 45),
            (right - 2, deep - 8, l3[2] - 5),
            (right + 14, deep - 36, l3[2] + 18), (right + 40, belly + 6, l3[2] + 6), (cx, belly, l3[2] - 8),
            (left - 38, belly + 8, l3[2] + 16), (left - 6, deep - 36, l3[2] + 48), (left, deep, l3[2] + 26),
            (left + 1, deep + 4, l3[2] - 20), (left - 6, deep - 8, l3[2] - 62),
            (left - 34, deep - 26, l3[2] - 92),
            (cx + 14, deep - 12, l3[2] - 112), (cx, deep + 30, l3[2] - 135),
        ]
    )  # fmt: skip
    frame = frame + rng.normal(0, 5, frame.shape)
    steps = np.arange(0, len(frame) - 0.99, 0.33)
    base = [np.interp(steps, np.arange(len(frame)), frame[:, k]) for k in range(3)]
    points = np.stack(base, 1) + rng.normal(0, 1.5, (len(steps), 3))
    radii = (
        rng.uniform(13, 20)
        * (1 + 0.18 * np.sin(steps * 7))
        * np.interp(steps, [0, 4, 9, 13], [1.2, 1, 0.8, 0.85])
    )
    gassy = np.clip(np.interp(steps, np.arange(len(frame)), rng.uniform(-0.5, 1.0, len(frame))), 0, 1)
    found = tube(canvas, points, radii)
    inside = -trunk.cavity_depth
    if found is not None:
        part, d = found
        d = np.maximum(d, inside[part.slices])
        canvas.fill(part, d, 35)
        stool = 20 + np.where(
            texture[part.slices] > 0.5, -260 * np.clip(texture[part.slices] - 0.5, 0, 1.6), 15
        )
        canvas.fill(part, d + 2.5, stool)
    for point, radius, gas in zip(points, radii, gassy, strict=True):
        _pocket(canvas, point, float(radius) - 3, float(gas), inside)

    for _ in range(34):
        at = np.array(
            [
                cx + rng.uniform(-0.62, 0.62) * width,
                rng.uniform(belly + 12, max(deep - 22, belly + 13)),
                l3[2] + rng.uniform(-105, 22),
            ]
        )
        way = rng.normal(0, 1, 3) * np.array([22, 12, 14])
        radius, hu, gas = float(rng.uniform(9, 14)), float(rng.uniform(8, 70)), float(rng.uniform(-2.2, 1))
        part = canvas.box(at - np.abs(way) - radius - 2, at + np.abs(way) + radius + 2)
        if part is None:
            continue
        d = np.maximum(capsule(part.x, part.y, part.z, at - way, at + way, radius), inside[part.slices])
        canvas.fill(part, d, 45)
        canvas.fill(part, d + 2.5, hu)
        _pocket(canvas, at, radius - 3, gas, inside)


def _pocket(canvas: Canvas, centre: np.ndarray, radius: float, gas: float, inside: np.ndarray) -> None:
    """Gas in the front share `gas` (0..1) of a round lumen."""
    if gas <= 0 or (part := canvas.box(centre - radius, centre + radius)) is None:
        return
    d = ellipsoid(part.x, part.y, part.z, centre, (radius,) * 3)
    surface = part.y - (float(centre[1]) - radius + 2 * radius * gas)
    canvas.fill(part, np.maximum(np.maximum(d, surface), inside[part.slices] + 2), -930)


def paint_lungs(
    canvas: Canvas, anatomy: Anatomy, trunk: Trunk, warp: np.ndarray, texture: np.ndarray
) -> None:
    """Lung bases over the domes of the diaphragm, deepest at the rim; the heart is out of view."""
    cx, width, front, spine = _place(anatomy)
    dome = anatomy["centre_z"] + anatomy["diaphragm"]
    box = canvas.box((-500, -500, dome - 75), (500, 500, 500))
    if box is None:
        return
    cavity = -trunk.cavity_depth[box.slices]
    spine_x, spine_y = (
        trunk.spine_x[box.slices[0]][:, None, None],
        trunk.spine_y[box.slices[0]][:, None, None],
    )
    for side, lower in ((-1, 0.0), (1, 9.0)):  # the liver holds the right dome higher
        away = ((box.x - cx - side * 0.5 * width) / (0.62 * width)) ** 2 + (
            (box.y - (front + spine) / 2 + 12) / 92
        ) ** 2
        diaphragm = (dome - lower - 40 * np.clip(away, 0, 1.5) ** 2 - box.z) * 0.75
        medial = 26 + 10 * np.clip((spine_y - 20 - box.y) / 40, 0, 1) - side * (box.x - spine_x)
        d = np.maximum(np.maximum(diaphragm + 0.5 * warp[box.slices], cavity + 1), medial)
        vessels = np.clip(texture[box.slices] - 1.2, 0, 1.5) * 420
        canvas.fill(box, d, -850 + 25 * texture[box.slices] + vessels)


def paint_couch(canvas: Canvas, anatomy: Anatomy, trunk: Trunk) -> None:
    """A thin curved shell that the patient lies on; only air is replaced."""
    y0 = float(trunk.back.max()) + 4
    box = canvas.box((-230, y0 - 60, -1000), (230, y0 + 20, 1000))
    if box is None:
        return
    d = np.abs(box.y - (y0 - 0.0011 * box.x**2) + 0 * box.z) - 1.5
    outside = trunk.skin_depth[box.slices] + 1
    canvas.fill(box, np.maximum(d, outside), -250)
