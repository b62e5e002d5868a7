"""Bones and implants of the phantom: discs, vertebrae, ribs, sacrum, hips, pedicle screws and rods."""

import numpy as np

from diffux2ct.data.phantom_anatomy import Anatomy, Vertebra
from diffux2ct.data.phantom_canvas import (
    Box,
    Canvas,
    capsule,
    ellipsoid,
    smooth_union,
    super_ellipse,
    tube,
)

LABELS = {
    "L1": 1, "L2": 2, "L3": 3, "L4": 4, "L5": 5, "sacrum": 6, "left_hip": 7, "right_hip": 8, "ribs": 9,
    "screw": 10, "rod": 11, "T12": 12, "T11": 13, "T10": 14, "T9": 15, "T8": 16,
}  # fmt: skip
"""Label values; 0 is everything else. Discs and soft tissue carry no label."""

# Ribs by vertebra: how far round the body they reach (degrees from the back), how far they fall on the way (mm).
RIBS = {"T12": (68, 38), "T11": (100, 72), "T10": (142, 104), "T9": (152, 118), "T8": (158, 124)}


def _local(box: Box, vertebra: Vertebra):
    """The box's coordinates in the vertebra's own frame."""
    c, axes = vertebra.centre, vertebra.axes.astype(np.float32)
    d = (box.x - np.float32(c[0]), box.y - np.float32(c[1]), box.z - np.float32(c[2]))
    return tuple(axes[0, k] * d[0] + axes[1, k] * d[1] + axes[2, k] * d[2] for k in range(3))


def _canal(vertebra: Vertebra) -> tuple[float, float, float]:
    """Centre (own y) and half axes (x, y) of the spinal canal."""
    half_x = 0.52 * vertebra.half[0]
    half_y = 0.5 * vertebra.half[1]
    return float(vertebra.half[1] + half_y), float(half_x), float(half_y)


def _pedicle(vertebra: Vertebra) -> tuple[float, float]:
    """Distance of the pedicle's axis from the midline, and its half width."""
    radius = 0.26 * vertebra.half[0] if vertebra.name != "L5" else 0.31 * vertebra.half[0]
    return float(0.5 * vertebra.half[0] + radius + 0.5), float(radius)


def _body_distance(x, y, z, v: Vertebra, waist: float):
    ax, ay, az = (float(h) for h in v.half)
    height = az * (1 - v.wedge * y / ay)
    narrow = 1 - waist * np.clip(1 - (z / az) ** 2, 0, 1)
    side = super_ellipse(x, y, ax * narrow, ay * narrow, 2.5)
    return np.maximum(side, np.abs(z) - height)


def _arch_distance(x, xa, y, z, v: Vertebra):
    """Pedicles, laminae, spinous, transverse and articular processes; both sides at once through xa = |x|."""
    _, ay, az = (float(h) for h in v.half)
    px, pr = _pedicle(v)
    k = az / 13.8  # thoracic arches are smaller
    lumbar = v.name.startswith("L")
    up = 0.35 * az
    # A coordinate divided by s stretches a capsule s times along that axis.
    d = capsule(xa, y, (z - up) / 1.4, (px, ay - 5, 0), (px + 1, ay + 11, 0), pr)
    lamina = capsule(xa, y, (z + 4 * k) / 2.4, (px - 1, ay + 15 * k, 1), (0, ay + 22 * k, -1), 3.6 * k)
    d = smooth_union(d, lamina, 3.0)
    tip_z = -10.0 if lumbar else -24.0
    spinous = capsule(
        x, y, (z + 6 * k) / 2.6, (0, ay + 23 * k, 0), (0, ay + 41 * k, tip_z / 2.6 / 2), 2.8, 3.5
    )
    d = smooth_union(d, spinous, 3.0)
    span, sweep = (v.span, 14 * k) if lumbar else (v.span, 22 * k)
    transverse = capsule(xa, y, z, (px, ay + 9 * k, 4 * k), (span, ay + sweep, 6 * k), 4.8 * k, 3.4 * k)
    d = smooth_union(d, transverse, 3.0)
    upper = capsule(xa, y, z, (px, ay + 12 * k, 3), (px + 1, ay + 13 * k, az + 6 * k), 5.0 * k, 4.2 * k)
    lower = capsule(xa, y, z, (px - 3, ay + 18 * k, -4), (px - 4, ay + 20 * k, -az - 8 * k), 5.0 * k, 4.0 * k)
    return smooth_union(np.minimum(d, upper), lower, 2.0)


def paint_vertebra(canvas: Canvas, anatomy: Anatomy, v: Vertebra, texture: np.ndarray) -> None:
    """The disc below, the canal's content, then the bone with its cortical shell."""
    reach = np.array([v.span + 8, v.half[1] + 54, v.half[2] + 34])
    box = canvas.box(v.centre - reach, v.centre + reach)
    if box is None:
        return
    x, y, z = _local(box, v)
    ax, ay, az = (float(h) for h in v.half)
    middle = -az - v.disc / 2
    ring = super_ellipse(x, y, ax * 1.0, ay * 1.0, 2.4)
    disc = np.maximum(ring, np.abs(z - middle) - v.disc / 2 - 2.5)
    canvas.fill(box, disc, 72 + 20 * np.clip(1 + ring / 8, 0, 1))
    canal_y, canal_x, canal_half_y = _canal(v)
    canal = super_ellipse(x, y - canal_y, canal_x, canal_half_y, 2.0)
    tunnel = np.maximum(canal, np.abs(z + v.disc / 2) - az - v.disc / 2)
    canvas.fill(box, tunnel, -50)
    canvas.fill(box, np.maximum(tunnel, canal + 2.5), 24)

    body = _body_distance(x, y, z, v, anatomy["waist"])
    arch = _arch_distance(x, np.abs(x), y, z, v)
    bone = np.maximum(smooth_union(body, arch, 2.5), -canal)
    in_body = body < arch
    shell = anatomy["cortical_mm"]
    core = np.where(in_body, anatomy["cancellous"], anatomy["cancellous"] + 100) + 28 * texture[box.slices]
    thickness = np.where(in_body, shell, shell + 0.6).astype(np.float32)
    canvas.fill_bone(box, bone, thickness, anatomy["cortical"], core, LABELS[v.name])


def rib_path(anatomy: Anatomy, v: Vertebra, side: int) -> np.ndarray:
    """Points [N, 3] of the rib of `v`, from the joint at its body round the wall of the body."""
    reach, fall = RIBS[v.name]
    fat_front, fat_side, fat_back = anatomy.fat_layers()
    head = v.world((side * (v.half[0] + 1), v.half[1] * 0.7, v.half[2] * 0.6))
    neck = v.world((side * (v.span + 4), v.half[1] + 17, v.half[2] * 0.3))
    points = [head, neck]
    for degrees in np.arange(24.0, reach + 1, 11.0):
        angle = np.radians(degrees)
        z = neck[2] - fall * (degrees - 20) / (reach - 20)
        front, back, width = (float(anatomy.along(k, z)) for k in ("front", "back", "half_width"))
        share = np.sin(angle) ** 2
        wall = fat_side * share + (fat_back if degrees < 90 else fat_front) * (1 - share) + 9
        power = 2 / anatomy["outline_power"]
        px = anatomy["centre_x"] + side * (width - wall) * np.sin(angle) ** power
        cos = np.cos(angle)
        py = (front + back) / 2 + ((back - front) / 2 - wall) * np.sign(cos) * np.abs(cos) ** power
        points.append(np.array([px, py, z]))
    return np.array(points)


def paint_ribs(canvas: Canvas, anatomy: Anatomy) -> None:
    """Both ribs of every thoracic vertebra in RIBS."""
    for name in RIBS:
        for side in (-1, 1):
            points = rib_path(anatomy, anatomy.spine[name], side)
            radii = np.interp(np.arange(len(points)), [0, 1, len(points) - 1], [4.0, 4.4, 4.8])
            found = tube(canvas, points, radii)
            if found is not None:
                box, d = found
                canvas.fill_bone(
                    box, d, 1.3, anatomy["cortical"] * 0.9, anatomy["cancellous"] * 0.9, LABELS["ribs"]
                )


def paint_sacrum(canvas: Canvas, anatomy: Anatomy, texture: np.ndarray) -> None:
    """A tapering plate bent along an arc, concave to the front, with canal, foramina and median crest."""
    top, tilt, scale = anatomy.sacral_top, anatomy.sacral_tilt, anatomy["spine_scale"]
    box = canvas.box(top - np.array([62, 30, 115]), top + np.array([62, 85, 16]))
    if box is None:
        return
    bend = 95.0 * scale  # radius of the arc
    down = np.array([-np.sin(tilt), -np.cos(tilt)])  # (y, z) along the bone, away from L5
    front = np.array([-np.cos(tilt), np.sin(tilt)])  # (y, z) towards the belly
    centre = top[1:] + front * bend
    dy, dz = box.y - np.float32(centre[0]), box.z - np.float32(centre[1])
    along = bend * np.arctan2(dy * down[0] + dz * down[1], -(dy * front[0] + dz * front[1]))
    off = np.sqrt(dy * dy + dz * dz) - bend  # mm behind the arc
    xa = np.abs(box.x - np.float32(top[0]))
    length = 100 * scale
    width = np.interp(
        along, np.array([0, 12, 35, 60, 85, 100]) * scale, np.array([42, 57, 51, 34, 24, 9]) * scale
    )
    thick = np.interp(along, np.array([0, 30, 60, 100]) * scale, np.array([16.5, 13, 9, 4.5]) * scale)
    thick = (thick + 0.0 * xa) * (1 - 0.25 * np.clip(xa / 50, 0, 1))
    wing_drop = 14 * np.clip((xa - 22 * scale) / 28, 0, 1)  # the alae fall away from the endplate
    d = np.maximum(np.maximum(xa - width, np.abs(off) - thick), np.maximum(wing_drop - along, along - length))
    crest = np.maximum(
        np.maximum(xa - 3.5, off - thick - 12 + along * 0.09), np.maximum(8 - along, along - 75)
    )
    d = smooth_union(d, np.maximum(crest, -off), 3.0)
    canal = np.sqrt((xa / 2.0) ** 2 + (off - 0.75 * thick - 2) ** 2) - (5.5 - 0.04 * along)
    d = np.maximum(d, -canal)
    for s in (22.0, 42.0, 60.0, 76.0):
        hole = np.sqrt((xa - (25 - 0.13 * s) * scale) ** 2 + (along - s * scale) ** 2) - (5.2 - 0.02 * s)
        d = np.maximum(d, -hole)
    core = anatomy["cancellous"] * 0.85 + 28 * texture[box.slices]
    canvas.fill_bone(box, d.astype(np.float32), 1.5, anatomy["cortical"], core, LABELS["sacrum"])


def hip_frame(anatomy: Anatomy, box: Box, side: int):
    """The iliac wing of one side: its sheet (mm outside the mid surface) and the distance to its rim."""
    scale, top = anatomy["pelvis_half_width"] / 116, anatomy.sacral_top
    crest_z = float(top[2]) + 38 * scale
    behind, before = float(top[1]) + 47, float(top[1]) - 58 * scale
    u = np.clip((behind - box.y) / (behind - before), -0.3, 1.5)  # 0 at the back, 1 at the front spine
    low = np.clip((crest_z - box.z) / (95 * scale), -0.3, 1.2)  # 0 at the crest, 1 above the acetabulum
    # From beside the sacrum outwards to the front, flaring towards the crest.
    upper = 52 + (118 * scale - 52) * np.sin(np.clip(u, 0, 1) * np.pi / 2)
    lower = 54 + (88 * scale - 54) * np.clip(u, 0, 1)
    middle = upper + (lower - upper) * np.clip(low, 0, 1) ** 0.8
    slope = np.sqrt(1 + ((116 * scale - 49) / (behind - before)) ** 2 + 0.15)
    sheet = ((box.x - np.float32(top[0])) * side - middle) / slope
    rim = np.maximum(
        box.z - crest_z + 42 * np.abs(u - 0.55) ** 2.2 / 0.45**2,
        np.maximum(
            box.y - behind + 24 * np.clip(low - 0.55, 0, 1), before - box.y + 14 * np.clip(0.35 - low, 0, 1)
        ),
    )
    return sheet.astype(np.float32), rim.astype(np.float32), low, u


def hip_box(canvas: Canvas, anatomy: Anatomy, side: int) -> Box | None:
    """Where one hip bone and its muscles can be."""
    top = anatomy.sacral_top
    low, high = top + np.array([0, -110, -190]), top + np.array([175, 95, 60])
    if side < 0:
        low, high = top + np.array([-175, -110, -190]), top + np.array([0, 95, 60])
    return canvas.box(low, high)


def paint_hip(canvas: Canvas, anatomy: Anatomy, side: int, texture: np.ndarray) -> None:
    """Iliac wing, and below it the socket with the head of the femur."""
    box = hip_box(canvas, anatomy, side)
    if box is None:
        return
    sheet, rim, low, u = hip_frame(anatomy, box, side)
    scale, top = anatomy["pelvis_half_width"] / 116, anatomy.sacral_top
    thick = (
        2.6
        + 3.2 * np.exp(-(((rim + 4) / 7) ** 2))
        + 5.0 * np.clip(1 - u / 0.35, 0, 1)
        + 9 * np.clip(low - 0.62, 0, 1)
    )
    bottom = float(top[2]) - 74 * scale
    d = np.maximum(np.maximum(np.abs(sheet) - thick, rim), bottom - box.z)
    socket = top + np.array([side * 88 * scale, -22, -92 * scale])
    ball = ellipsoid(box.x, box.y, box.z, socket, (30, 30, 31))
    d = np.maximum(smooth_union(d, ball, 8.0), -ellipsoid(box.x, box.y, box.z, socket, (24.5, 24.5, 24.5)))
    core = anatomy["cancellous"] * 0.9 + 28 * texture[box.slices]
    label = LABELS["left_hip" if side > 0 else "right_hip"]
    canvas.fill_bone(box, d, 1.6, anatomy["cortical"], core, label)
    head = ellipsoid(box.x, box.y, box.z, socket, (22.5, 22.5, 22.5))
    canvas.fill(box, head, anatomy["cortical"] * 0.6)
    canvas.fill(box, head + 1.5, anatomy["cancellous"] + 60)


def paint_implants(canvas: Canvas, anatomy: Anatomy) -> int:
    """Pedicle screws at the chosen levels, a rod per side through their heads. Returns the number of screws."""
    count = 0
    for side in anatomy.implant_sides:
        heads = []
        for name in anatomy.implant_levels:
            v = anatomy.spine[name]
            px, _ = _pedicle(v)
            ay, up = float(v.half[1]), 0.35 * float(v.half[2])
            entry = v.world((side * (px + 4), ay + 18, up))
            tip = v.world((side * (px - 7), -0.45 * ay, up - 1))
            head = entry + (entry - tip) / np.linalg.norm(entry - tip) * 11
            for start, end, radius in ((tip, entry, 3.0), (entry, head, 5.8)):
                found = tube(canvas, np.stack([start, end]), np.array([radius, radius]))
                if found is not None:
                    canvas.fill(*found, anatomy["implant"], LABELS["screw"])
            heads.append(head)
            count += 1
        heads = np.array(heads)
        # The rod sticks out past the last heads; over one level it is a stub.
        way = heads[0] - heads[-1] if len(heads) > 1 else np.array([0.0, 0.0, 12.0])
        way = way / np.linalg.norm(way) * 9
        points = np.concatenate([heads[:1] + way, heads, heads[-1:] - way])
        found = tube(canvas, points, np.full(len(points), 2.9))
        if found is not None:
            canvas.fill(*found, anatomy["implant"], LABELS["rod"])
    return count
