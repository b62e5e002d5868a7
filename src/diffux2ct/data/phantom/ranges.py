"""Ranges of the values that vary from patient to patient: the table that docs/data.md shows.

Every patient draws each value uniformly and independently, in the order of the table. Lengths are in mm and for a
patient on the table (supine); the ranges are those of adults, a little narrower than in textbooks.
"""

from typing import NamedTuple


class Range(NamedTuple):
    """Lowest and highest value, their unit and their meaning."""

    low: float
    high: float
    unit: str
    meaning: str


RANGES: dict[str, Range] = {
    # Body
    "cavity_half_width": Range(76, 100, "mm", "half width of the belly at L3, inside its muscles"),
    "cavity_front": Range(68, 110, "mm", "from the centre of L3 to the inner face of the front wall"),
    "adiposity": Range(0, 1, "", "subcutaneous fat: front 6-26, side 6-22, back 7-23 mm; also visceral"),
    "outline_power": Range(2.1, 2.6, "", "power of the super-ellipse of the skin: 2 is an ellipse"),
    "centre_x": Range(-20, 20, "mm", "patient off the centre of the volume, to the left"),
    "centre_y": Range(-20, 20, "mm", "the same, to posterior"),
    "centre_z": Range(-8, 38, "mm", "height of the centre of L3 in the lumbar volume"),
    # Spine
    "spine_scale": Range(0.9, 1.1, "", "size of vertebrae and sacrum"),
    "lordosis": Range(26, 64, "degrees", "L1 to S1"),
    "kyphosis": Range(20, 46, "degrees", "T1 to T12"),
    "disc_scale": Range(0.75, 1.1, "", "height of the discs; one lumbar disc is 0-50 % lower still"),
    "waist": Range(0.06, 0.16, "", "how much narrower a vertebral body is at mid height"),
    "osteophytes": Range(0, 3.5, "mm", "lipping of the end plates"),
    # Chest
    "chest_excess": Range(-7, 7, "mm", "half width of the rib cage beyond what the belly's width gives"),
    "chest_depth": Range(0.9, 1.1, "", "depth of the rib cage in front of the spine"),
    "rib_slope": Range(0.85, 1.15, "", "how far the ribs fall on their way to the front"),
    "diaphragm": Range(132, 160, "mm", "height above the centre of L3 of the right dome"),
    "heart_scale": Range(0.88, 1.14, "", "size of the heart"),
    "lung": Range(-905, -845, "HU", "lung tissue half way from front to back"),
    "emphysema": Range(0, 60, "HU", "strength of the lung's mottle"),
    # Pelvis and hips
    "pelvis_half_width": Range(100, 118, "mm", "between the mid line and the front iliac spine"),
    "neck_shaft": Range(121, 137, "degrees", "angle of the femoral neck with the shaft"),
    "anteversion": Range(6, 24, "degrees", "of the femoral neck"),
    "femoral_head": Range(21.5, 25.5, "mm", "radius of the femoral head"),
    "bladder": Range(0.55, 1.2, "", "filling of the bladder"),
    # Tissue
    "cancellous": Range(110, 230, "HU", "spongy bone of the vertebrae"),
    "cortical": Range(680, 1080, "HU", "compact bone"),
    "cortical_mm": Range(0.6, 1.2, "mm", "shell of the vertebral bodies"),
    "muscle": Range(42, 62, "HU", "muscle"),
    "fat": Range(-115, -95, "HU", "fat"),
    "liver": Range(45, 68, "HU", "liver without contrast agent"),
    # Organs
    "liver_low": Range(-22, 22, "mm", "height above the centre of L3 of the lower edge of the liver"),
    "kidney_z": Range(10, 40, "mm", "height above the centre of L3 of the left kidney"),
    "aorta_radius": Range(8, 11.5, "mm", "of the abdominal aorta; the arch is a third wider"),
    "psoas_radius": Range(14, 21, "mm", "at L4"),
    # Scan
    "implant": Range(2900, 3050, "HU", "metal: above every window that preparation clips to"),
    "noise": Range(8, 18, "HU", "standard deviation of the noise in 2 mm voxels of the trunk"),
    "region_jitter": Range(-12, 12, "mm", "height of the pelvis or thorax volume off its landmark"),
}

PROBABILITIES: dict[str, float] = {
    "female": 0.5,
    "contrast": 0.4,  # agent in vessels, heart and kidneys
    "scoliosis": 0.5,  # then a tilt of up to 12 degrees
    "screws": 0.5,  # pedicle screws and rods at 1 to 3 lumbar levels
    "couch": 0.6,
    "arms_up": 0.7,
    "hip_implant": 0.3,  # a total hip prosthesis (2 of 3) or a plate on the front of the pelvic ring
}
SCOLIOSIS_DEG = 12.0


def ranges_table() -> str:
    """The ranges as a Markdown table."""
    rows = ["| value | range | unit | what |", "|---|---|---|---|"]
    rows += [f"| `{k}` | {r.low:g} to {r.high:g} | {r.unit} | {r.meaning} |" for k, r in RANGES.items()]
    return "\n".join(rows)
