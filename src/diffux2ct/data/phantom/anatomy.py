"""One random patient: the numbers from which the phantom is painted, and the curves computed from them.

Points are (x, y, z) in mm: x to the Left, y to Posterior, z to Superior. The origin is the centre of the lumbar
volume; the pelvis and the thorax of a patient lie in the same frame.
"""

from dataclasses import dataclass, field

import numpy as np

from diffux2ct.data.phantom.canvas import Real
from diffux2ct.data.phantom.ranges import PROBABILITIES, RANGES, SCOLIOSIS_DEG
from diffux2ct.data.phantom.spine import LUMBAR, VERTEBRAE, Vertebra, grow_spine, sacral_tilt
from diffux2ct.data.phantom.torso import HIP, fat_layers, torso_curves

REGIONS = ("lumbar", "pelvis", "thorax")


@dataclass(frozen=True)
class Anatomy:
    """The random values of one patient, except noise and the paths of bowel and lung vessels."""

    values: dict[str, float]
    is_: dict[str, bool]  # female, contrast, scoliosis, screws, couch, arms_up, hip_implant
    scoliosis: float  # degrees
    spine: dict[str, Vertebra]  # L5 first
    sacral_top: np.ndarray
    sacral_tilt: float  # radians
    screw_levels: tuple[str, ...]
    screw_sides: tuple[int, ...]  # +1 left, -1 right
    hip_implant: str  # "", prosthesis or plate
    hip_side: int
    knots: dict[str, np.ndarray] = field(default_factory=dict)

    def __getitem__(self, name: str) -> float:
        return self.values[name]

    def along(self, name: str, z) -> np.ndarray:
        """A smooth curve over the height, see ``torso_curves``."""
        return np.asarray(np.interp(z, self.knots["z"], self.knots[name]), np.float32)

    def at(self, name: str, z: Real) -> float:
        """The same at one height."""
        return float(np.interp(z, self.knots["z"], self.knots[name]))

    @property
    def l3(self) -> np.ndarray:
        return self.spine["L3"].centre

    @property
    def pelvic_scale(self) -> float:
        return self["pelvis_half_width"] / 116

    def socket(self, side: int) -> np.ndarray:
        """Centre of the femoral head of one side."""
        s = self.pelvic_scale
        return self.sacral_top + np.array([side * HIP[0] * s, HIP[1] * s, HIP[2] * s], np.float32)

    def symphysis(self) -> np.ndarray:
        """Middle of the pubic symphysis."""
        s = self.pelvic_scale
        return self.sacral_top + np.array([0, (HIP[1] - 46) * s, -118 * s], np.float32)

    def dome(self) -> float:
        """Height of the right dome of the diaphragm."""
        return float(self.l3[2]) + self["diaphragm"]

    def region_centre(self, region: str) -> np.ndarray:
        """Centre of the volume of a region."""
        jitter = self["region_jitter"]
        if region == "lumbar":
            return np.zeros(3)
        if region == "pelvis":
            z = float(self.socket(1)[2]) + 28 + jitter
        else:
            z = float(self.spine["T7"].centre[2]) - 14 + jitter
        # The table's height puts the trunk in the middle of the scan.
        y = (self.at("front", z) + self.at("back", z)) / 2 + self["centre_y"] / 2
        return np.array([self["centre_x"] / 2, y, z])


def draw_anatomy(rng: np.random.Generator) -> Anatomy:
    """Draw one patient. The order of the draws is fixed, so that a seed keeps its patient."""
    values = {name: float(rng.uniform(r.low, r.high)) for name, r in RANGES.items()}
    is_ = {
        name: bool(u < p) for u, (name, p) in zip(rng.random(len(PROBABILITIES)), PROBABILITIES.items(), strict=True)
    }
    scoliosis = float(rng.uniform(-SCOLIOSIS_DEG, SCOLIOSIS_DEG)) * is_["scoliosis"]
    discs = rng.uniform(0.85, 1.1, len(VERTEBRAE))
    discs[rng.integers(0, 5)] *= rng.uniform(0.5, 1.0)  # one lumbar disc is more worn than the others
    count, first, unilateral = int(rng.integers(1, 4)), int(rng.integers(0, 5)), bool(rng.random() < 0.15)
    side = 1 if rng.random() < 0.5 else -1
    plate, hip_side = bool(rng.random() < 1 / 3), 1 if rng.random() < 0.5 else -1

    # The outline at L3, from the centre of its body: cavity, muscle, fat; behind, the spinous process and fat.
    fat_front, fat_side, fat_back = fat_layers(values["adiposity"])
    values["half_width"] = values["cavity_half_width"] + 17 + fat_side
    values["front_depth"] = values["cavity_front"] + 11 + fat_front
    values["half_back"] = (16.5 + 44) * values["spine_scale"] + fat_back
    middle = (values["front_depth"] - values["half_back"]) / 2
    l3 = np.array([values["centre_x"], values["centre_y"] + middle, values["centre_z"]])
    spine, sacral_top = grow_spine(values, scoliosis, discs, l3)
    first = min(first, 5 - count)
    sides = (side,) if unilateral and count > 1 else (-1, 1)
    return Anatomy(
        values=values,
        is_=is_,
        scoliosis=scoliosis,
        spine=spine,
        sacral_top=sacral_top,
        sacral_tilt=sacral_tilt(values["lordosis"]),
        screw_levels=LUMBAR[first : first + count] if is_["screws"] else (),
        screw_sides=sides if is_["screws"] else (),
        hip_implant=("plate" if plate else "prosthesis") if is_["hip_implant"] else "",
        hip_side=hip_side,
        knots=torso_curves(values, is_["female"], spine, sacral_top),
    )
