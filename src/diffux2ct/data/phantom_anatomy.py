"""One random patient: the numbers from which the phantom is painted, and the curves that they give.

Points are (x, y, z) in mm about the centre of the volume: x to the Left, y to Posterior, z to Superior.
"""

from dataclasses import dataclass, field

import numpy as np

# Every patient draws each of these uniformly: mm, degrees or HU.
RANGES: dict[str, tuple[float, float]] = {
    "cavity_half_width": (74, 100),  # of the belly at L3, inside its muscles
    "cavity_front": (64, 97),  # from the centre of L3 to the inner face of the front wall
    "adiposity": (0, 1),  # scales the fat layers: front 7-29, side 7-24, back 8-22 mm
    "outline_power": (2.1, 2.6),  # 2 is an ellipse, more is boxier
    "centre_x": (-15, 15),
    "centre_y": (-15, 15),
    "centre_z": (-8, 38),  # height of the centre of L3
    "spine_scale": (0.88, 1.1),
    "lordosis": (26, 64),  # degrees from L1 to S1
    "disc_scale": (0.75, 1.1),
    "waist": (0.05, 0.14),  # how much narrower a vertebral body is at mid height
    "pelvis_half_width": (99, 118),
    "cancellous": (120, 250),
    "cortical": (700, 1100),
    "cortical_mm": (0.7, 1.4),
    "muscle": (42, 62),
    "fat": (-115, -92),
    "liver": (45, 68),
    "liver_low": (-22, 22),  # height above the centre of L3 of the lower edge of the liver
    "diaphragm": (80, 112),  # height above the centre of L3 of the right dome
    "kidney_z": (10, 40),  # height above the centre of L3 of the left kidney
    "aorta_radius": (7.5, 11),
    "psoas_radius": (14, 21),  # at L4
    "implant": (2500, 3000),
    "noise": (7, 16),  # standard deviation of the noise in 2 mm voxels
}
CONTRAST_PROBABILITY = 0.4
SCOLIOSIS_PROBABILITY = 0.5  # then a tilt of up to 12 degrees
IMPLANT_PROBABILITY = 0.5
COUCH_PROBABILITY = 0.6

# Per vertebra: half width, half depth, half height of the body, disc below it, half span of the transverse
# processes, tilt as a fraction of the lordosis (positive: leaning back on the way up). mm at spine_scale 1.
VERTEBRAE: dict[str, tuple[float, float, float, float, float, float]] = {
    "L5": (25.5, 17.0, 13.6, 10.0, 43, -0.42),
    "L4": (24.0, 17.0, 13.8, 10.5, 44, -0.20),
    "L3": (22.5, 16.5, 13.8, 9.5, 47, -0.05),
    "L2": (21.5, 16.2, 13.5, 9.0, 42, 0.08),
    "L1": (20.5, 15.8, 13.0, 8.0, 37, 0.16),
    "T12": (19.0, 15.4, 12.4, 6.5, 25, 0.18),
    "T11": (17.5, 15.0, 11.6, 5.5, 27, 0.15),
    "T10": (16.5, 14.6, 11.0, 5.0, 29, 0.08),
    "T9": (15.5, 14.2, 10.6, 4.8, 30, 0.0),
    "T8": (15.0, 14.0, 10.3, 4.6, 31, -0.08),
}
SACRAL_TILT = -0.72
LUMBAR = ("L1", "L2", "L3", "L4", "L5")


@dataclass(frozen=True)
class Vertebra:
    """One vertebra: where it is, how it is turned, how large it is."""

    name: str
    centre: np.ndarray  # [3]
    axes: np.ndarray  # [3, 3]; columns are its own Left, Posterior and Superior in world coordinates
    half: np.ndarray  # [3] half width, half depth, half height of the body
    disc: float  # thickness of the disc below
    span: float  # half span of the transverse processes
    wedge: float  # relative height gained from the back of the body to the front

    def world(self, point) -> np.ndarray:
        """A point of its own frame in world coordinates."""
        return self.centre + self.axes @ np.asarray(point, float)


@dataclass(frozen=True)
class Anatomy:
    """All that is random about one patient, except noise."""

    values: dict[str, float]
    contrast: bool
    couch: bool
    scoliosis: float  # degrees
    spine: dict[str, Vertebra]  # L5 first
    sacral_top: np.ndarray
    sacral_tilt: float  # radians
    implant_levels: tuple[str, ...]
    implant_sides: tuple[int, ...]  # +1 left, -1 right
    texture_seed: int
    knots: dict[str, np.ndarray] = field(default_factory=dict)

    def __getitem__(self, name: str) -> float:
        return self.values[name]

    def along(self, name: str, z) -> np.ndarray:
        """A smooth curve over the height: spine_x, spine_y (centres of bodies), front, back, half_width."""
        heights, values = self.knots["z"], self.knots[name]
        return np.asarray(np.interp(z, heights, values), np.float32)

    def fat_layers(self) -> tuple[float, float, float]:
        """Thickness of the subcutaneous fat in mm: front, side, back."""
        return fat_layers(self["adiposity"])


def _rotation(tilt: float, bend: float, twist: float) -> np.ndarray:
    """Axes turned about x (tilt back), then y (bend to the left), then z (twist); radians."""
    ct, st, cb, sb, cw, sw = (
        np.cos(tilt),
        np.sin(tilt),
        np.cos(bend),
        np.sin(bend),
        np.cos(twist),
        np.sin(twist),
    )
    about_x = np.array([[1, 0, 0], [0, ct, st], [0, -st, ct]])
    about_y = np.array([[cb, 0, sb], [0, 1, 0], [-sb, 0, cb]])
    about_z = np.array([[cw, -sw, 0], [sw, cw, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def fat_layers(adiposity: float) -> tuple[float, float, float]:
    """Thickness of the subcutaneous fat in mm: front, side, back."""
    return 7 + 22 * adiposity, 7 + 17 * adiposity, 8 + 14 * adiposity


def _grow_spine(values: dict[str, float], scoliosis: float, discs: np.ndarray):
    """Stack the vertebrae on the sacrum along their tilts, then move all so that L3 is where it belongs."""
    scale, lordosis = values["spine_scale"], np.radians(values["lordosis"])
    position = np.zeros(3)
    tilt_below = SACRAL_TILT * lordosis
    spine: dict[str, Vertebra] = {}
    for i, (name, (*half, disc, span, fraction)) in enumerate(VERTEBRAE.items()):
        tilt = fraction * lordosis
        phase = (i - 2.5) / 5 * np.pi  # apex between L2 and L3
        bend = np.radians(scoliosis) * np.sin(phase) * -1
        twist = np.radians(scoliosis) * 0.6 * np.cos(phase)
        axes = _rotation(tilt, bend, twist)
        half = np.array(half) * scale
        disc = disc * scale * values["disc_scale"] * float(discs[i])
        middle = _rotation((tilt + tilt_below) / 2, bend, 0.0)[:, 2]
        position = position + middle * disc + axes[:, 2] * half[2]
        wedge = {"L5": 0.12, "L4": 0.06}.get(name, 0.02)
        spine[name] = Vertebra(name, position, axes, half, disc, span * scale, wedge)
        position = position + axes[:, 2] * half[2]
        tilt_below = tilt
    back = values["half_back"]
    shift = np.array(
        [
            values["centre_x"],
            values["centre_y"] + (values["front_depth"] - back) / 2,
            values["centre_z"],
        ]
    )
    shift = shift - spine["L3"].centre
    moved = {
        n: Vertebra(n, v.centre + shift, v.axes, v.half, v.disc, v.span, v.wedge) for n, v in spine.items()
    }
    return moved, shift


def _smooth(heights: np.ndarray, knots_z, knots_v, width: int = 41) -> np.ndarray:
    """Linear interpolation through knots, rounded by a running mean of `width` mm."""
    order = np.argsort(knots_z)
    line = np.interp(heights, np.asarray(knots_z)[order], np.asarray(knots_v)[order])
    padded = np.pad(line, width // 2, mode="edge")
    return np.convolve(padded, np.ones(width) / width, mode="valid")


def _curves(
    values: dict[str, float], spine: dict[str, Vertebra], sacral_top: np.ndarray
) -> dict[str, np.ndarray]:
    """Tables, every mm of height, of the spine's course and the body's outline."""
    z = np.arange(-400.0, 401.0)
    vertebrae = list(spine.values())
    spine_z = [sacral_top[2] - 70, sacral_top[2] - 15, *(v.centre[2] for v in vertebrae)]
    spine_y = [sacral_top[1] + 34, sacral_top[1] + 10, *(v.centre[1] for v in vertebrae)]
    spine_x = [sacral_top[0], sacral_top[0], *(v.centre[0] for v in vertebrae)]
    l3 = spine["L3"].centre
    w, hips = values["half_width"], values["pelvis_half_width"] + 19 + 17 * values["adiposity"]
    top = l3[2]
    width_z = [top - 260, top - 170, top - 100, top - 40, top, top + 50, top + 110, top + 200]
    width = [hips + 14, hips + 14, max(hips, w), w * 1.02, w, w * 1.03, w * 1.08, w * 1.1]
    course_y = _smooth(z, spine_z, spine_y, 31)
    # The back follows the spine's hollow by half; the belly hangs a little below the navel.
    back = l3[1] + values["half_back"] + 0.5 * (_smooth(z, spine_z, spine_y, 81) - l3[1])
    belly_z = [top - 260, top - 150, top - 60, top, top + 90, top + 200]
    belly = np.array([0.88, 0.97, 1.03, 1.0, 0.96, 1.0]) * values["front_depth"]
    return {
        "z": z,
        "spine_x": _smooth(z, spine_z, spine_x, 31),
        "spine_y": course_y,
        "half_width": _smooth(z, width_z, width, 61),
        "back": back,
        "front": l3[1] - _smooth(z, belly_z, belly, 61),
    }


def draw_anatomy(rng: np.random.Generator) -> Anatomy:
    """Draw one patient. The order of the draws is fixed: a generator's state gives one patient for good."""
    values = {name: float(rng.uniform(low, high)) for name, (low, high) in RANGES.items()}
    contrast, scoliotic, implanted, couch = (
        bool(u < p)
        for u, p in zip(
            rng.random(4),
            (CONTRAST_PROBABILITY, SCOLIOSIS_PROBABILITY, IMPLANT_PROBABILITY, COUCH_PROBABILITY),
            strict=True,
        )
    )
    scoliosis = float(rng.uniform(-12, 12)) * scoliotic
    discs = rng.uniform(0.85, 1.1, len(VERTEBRAE))
    discs[rng.integers(0, 5)] *= rng.uniform(0.5, 1.0)  # one lumbar disc is more worn than the others
    # The outline at L3, from the centre of its body: cavity, muscle, fat; behind, the spinous process and fat.
    fat_front, fat_side, fat_back = fat_layers(values["adiposity"])
    values["half_width"] = values["cavity_half_width"] + 17 + fat_side
    values["front_depth"] = values["cavity_front"] + 11 + fat_front
    values["half_back"] = (16.5 + 44) * values["spine_scale"] + fat_back
    spine, sacral_top = _grow_spine(values, scoliosis, discs)
    levels: tuple[str, ...] = ()
    sides: tuple[int, ...] = ()
    count, first, unilateral = int(rng.integers(1, 4)), int(rng.integers(0, 5)), bool(rng.random() < 0.15)
    side = 1 if rng.random() < 0.5 else -1
    if implanted:
        first = min(first, 5 - count)
        levels = LUMBAR[first : first + count]
        sides = (side,) if unilateral and count > 1 else (-1, 1)
    return Anatomy(
        values=values,
        contrast=contrast,
        couch=couch,
        scoliosis=scoliosis,
        spine=spine,
        sacral_top=sacral_top,
        sacral_tilt=float(SACRAL_TILT * np.radians(values["lordosis"])),
        implant_levels=levels,
        implant_sides=sides,
        texture_seed=int(rng.integers(0, 2**31)),
        knots=_curves(values, spine, sacral_top),
    )
