"""The torso's outlines as curves over the height: skin, rib cage, course of the spine. One value per mm."""

from collections.abc import Mapping

import numpy as np

from diffux2ct.data.phantom.canvas import Real
from diffux2ct.data.phantom.spine import Vertebra

# From C4 down to L3. Of the rib cage: its half width as a fraction of the widest, how far its inner front and its
# back lie from the centres of the bodies (mm). Of the skin: muscle outside the ribs at the side, and how far the
# spinous processes reach behind the centres of the bodies.
LEVELS: dict[str, tuple[float, float, float, float, float]] = {
    "C4": (0.05, 8, 8, 0, 44),
    "C5": (0.06, 10, 8, 0, 47),
    "C6": (0.10, 16, 12, 0, 50),
    "C7": (0.26, 32, 22, 0, 54),
    "T1": (0.45, 56, 34, 0, 56),
    "T2": (0.58, 71, 42, 0, 55),
    "T3": (0.68, 83, 51, 27, 53),
    "T4": (0.77, 94, 55, 26, 52),
    "T5": (0.84, 104, 58, 23, 51),
    "T6": (0.89, 113, 59, 20, 51),
    "T7": (0.93, 120, 59, 17, 51),
    "T8": (0.97, 124, 59, 18, 51),
    "T9": (0.99, 127, 58, 15, 52),
    "T10": (1.00, 125, 57, 12, 53),
    "T11": (0.99, 123, 54, 11, 54),
    "T12": (0.96, 119, 51, 11, 56),
    "L1": (0.92, 102, 39, 11, 60),
    "L2": (0.88, 98, 36, 12, 61),
    "L3": (0.84, 92, 34, 14, 60.5),
}


HIP = (87.0, -38.0, -94.0)  # mm from the middle of the upper face of the sacrum to the left hip, at scale 1


def fat_layers(adiposity: float) -> tuple[float, float, float]:
    """Thickness of the subcutaneous fat in mm: front, side, back."""
    return 6 + 20 * adiposity, 6 + 16 * adiposity, 7 + 16 * adiposity


def smooth(heights: np.ndarray, knots_z, knots_v, width: int = 41) -> np.ndarray:
    """Linear interpolation through knots, rounded by a running mean of `width` mm."""
    order = np.argsort(knots_z)
    line = np.interp(heights, np.asarray(knots_z)[order], np.asarray(knots_v)[order])
    padded = np.pad(line, width // 2, mode="edge")
    return np.convolve(padded, np.ones(width) / width, mode="valid")


def torso_curves(
    values: Mapping[str, float], female: bool, spine: Mapping[str, Vertebra], sacral_top: np.ndarray
) -> dict[str, np.ndarray]:
    """Tables over z (mm): the spine's course and the outlines.

    spine_x, spine_y: centres of the bodies. half_width, front, back: the skin. cage_half, cage_front, cage_back:
    the outer surface of the ribs (front and back as y). thickness of fat follows from the adiposity.
    """
    z = np.arange(-520.0, 761.0)
    v, s = spine, sacral_top
    spine_z = [s[2] - 120, s[2] - 75, s[2] - 15, *(a.centre[2] for a in v.values())]
    spine_y = [s[1] + 52, s[1] + 42, s[1] + 10, *(a.centre[1] for a in v.values())]
    spine_x = [s[0], s[0], s[0], *(a.centre[0] for a in v.values())]
    course = smooth(z, spine_z, spine_y, 31)
    level_z = [v[name].centre[2] for name in LEVELS]
    table = np.array(list(LEVELS.values()))
    widest = 0.6 * values["cavity_half_width"] + 66 + values["chest_excess"] - 6 * female
    depth = values["chest_depth"] * (0.8 + 0.2 * values["cavity_front"] / 80)
    cage_front = course - smooth(z, level_z, depth * table[:, 1], 25)
    return {
        "z": z,
        "spine_x": smooth(z, spine_z, spine_x, 31),
        "spine_y": course,
        "cage_half": smooth(z, level_z, widest * table[:, 0], 25),
        "cage_front": cage_front,
        "cage_back": course + smooth(z, level_z, table[:, 2] * (0.9 + 0.1 * depth), 25),
        "half_width": _skin_width(z, values, spine, s, level_z, table, widest),
        "back": _skin_back(z, values, spine, s, level_z, table, course),
        "front": _skin_front(z, values, spine, s, course, cage_front),
    }


def _skin_width(z, values, spine, s, level_z, table: np.ndarray, widest: Real) -> np.ndarray:
    adiposity, scale = values["adiposity"], values["pelvis_half_width"] / 116
    _, side, _ = fat_layers(adiposity)
    waist = values["half_width"]
    hips = 87 * scale + 72 + 20 * adiposity
    crest = max(values["pelvis_half_width"] + 12 + side, waist)
    l3 = spine["L3"].centre[2]
    knots = [
        (s[2] - 300, hips * 0.93), (s[2] - 170, hips * 0.99), (s[2] - 105, hips), (s[2] - 40, 0.5 * (hips + crest)),
        (s[2] + 20, crest), (l3 - 8, waist * 1.01), (l3 + 20, waist),
    ]  # fmt: skip
    rows = {"C4": 56, "C5": 57, "C6": 60, "C7": 70, "T1": 92, "T2": 116}
    knots += [(spine[n].centre[2], w + 0.5 * side) for n, w in rows.items()]
    chest = slice(len(rows), len(rows) + 11)  # T3 to L1
    knots += [(at, widest * row[0] + row[3] + 0.9 * side) for at, row in zip(level_z[chest], table[chest], strict=True)]
    return smooth(z, *zip(*knots, strict=True), 45)  # type: ignore[call-arg]


def _skin_back(z, values, spine, s, level_z, table, course) -> np.ndarray:
    scale, (_, _, fat) = values["pelvis_half_width"] / 116, fat_layers(values["adiposity"])
    l3 = spine["L3"].centre
    # The back follows the hollow of the loins by half, and never lies in front of the spinous processes.
    loins = l3[1] + values["half_back"] + 0.5 * (smooth(z, z, course, 81) - l3[1])
    tips = smooth(z, level_z, table[:, 4], 25) * values["spine_scale"] + 0.8 * fat
    chest = np.maximum(loins, course + tips)
    low_chest, high_chest = spine["L1"].centre[2], spine["T9"].centre[2]
    up = np.clip((z - low_chest) / (high_chest - low_chest), 0, 1)
    chest = chest * (1 - up) + (course + tips + 5) * up
    hip_y = s[1] + HIP[1] * scale
    seat_z = [s[2] - 300, s[2] - 190, s[2] - 120, s[2] - 60, s[2] - 10]
    seat = smooth(z, seat_z, [hip_y + 84, hip_y + 92, hip_y + 100, s[1] + 70, s[1] + 60])
    low = np.clip((l3[2] - 25 - z) / 60, 0, 1)
    return smooth(z, z, chest * (1 - low) + (seat + (fat - 7) * 0.9 + 2 * scale) * low, 31)


def _skin_front(z, values, spine, s, course, cage_front) -> np.ndarray:
    adiposity, scale = values["adiposity"], values["pelvis_half_width"] / 116
    l3 = spine["L3"].centre
    belly = l3[1] - values["front_depth"]
    pubis = s[1] + (HIP[1] - 46) * scale
    knots = [
        (s[2] - 300, pubis - 12 - 6 * adiposity), (s[2] - 170, pubis - 16 - 10 * adiposity),
        (s[2] - 115, pubis - 20 - 24 * adiposity), (s[2] - 70, 0.55 * (pubis - 16 - 22 * adiposity) + 0.45 * belly),
        (s[2] - 25, belly * 0.9 + 0.1 * pubis - 2), (l3[2] - 25, belly - 2), (l3[2] + 15, belly),
        (l3[2] + 60, belly + 4),
    ]  # fmt: skip
    for name in ("T11", "T10", "T9", "T8", "T7", "T6", "T5", "T4", "T3", "T2"):
        at = spine[name].centre[2]
        knots.append((at, np.interp(at, z, cage_front) - 14 - 0.6 * fat_layers(adiposity)[0]))
    for name, forward in (("T1", 70), ("C7", 66), ("C6", 62), ("C5", 60), ("C4", 60)):
        at = spine[name].centre[2]
        knots.append((at, np.interp(at, z, course) - forward - 4 * adiposity))
    return smooth(z, *zip(*knots, strict=True), 51)  # type: ignore[call-arg]
