"""Paint one patient: its parts, in the order in which they lie over each other."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int16, UInt8

from diffux2ct.arguments import check_choice
from diffux2ct.data.labels import FIRST_ROD, FIRST_SCREW, reduce_classes
from diffux2ct.data.phantom.anatomy import REGIONS, Anatomy, draw_anatomy
from diffux2ct.data.phantom.canvas import Canvas
from diffux2ct.data.phantom.organs.abdomen import paint_abdomen, paint_bowel
from diffux2ct.data.phantom.organs.chest import paint_chest
from diffux2ct.data.phantom.organs.implants import paint_hip_implant, paint_pedicle_screws
from diffux2ct.data.phantom.organs.muscles import paint_muscles
from diffux2ct.data.phantom.organs.pelvis import paint_femur, paint_hip, paint_sacrum
from diffux2ct.data.phantom.organs.thorax_bones import paint_ribs, paint_shoulder, paint_sternum
from diffux2ct.data.phantom.organs.trunk import Body, make_body, paint_couch, paint_trunk
from diffux2ct.data.phantom.organs.vertebrae import paint_vertebra
from diffux2ct.data.phantom.textures import add_scan_noise, lattice_noise
from diffux2ct.errors import UserError
from diffux2ct.intensity import block_mean

MIN_PAINTED_SIZE = 64  # smaller volumes are painted at least this fine and block-averaged


@dataclass(frozen=True)
class Phantom:
    """One phantom: HU and labels [D, H, W] in LPS, spacing and origin (x, y, z) in mm."""

    hu: Int16[np.ndarray, "d h w"]
    labels: UInt8[np.ndarray, "d h w"]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    meta: dict


def make_phantom(
    seed: int, index: int, size: int = 128, extent_mm: float | int = 256.0, region: str = "lumbar"
) -> Phantom:
    """One patient, a function of (seed, index) only, in one region.

    size: voxels per side. extent_mm: side of the cube. region: lumbar (L3 near the centre; 256 mm reach from T10 to
    the sacrum), pelvis (iliac crests to below the hips) or thorax (C7 to the domes of the diaphragm). Sizes below 64
    are painted finer and block-averaged, so the same patient at 32 looks like the block average of itself at 128.
    Labels are those of ``data/labels``. UserError on a size that is not positive and on another region.
    """
    if size < 1 or extent_mm <= 0:
        raise UserError(
            f"phantom: size={size} and extent_mm={extent_mm} must be positive; correct the dataset's settings"
        )
    check_choice("region", region, REGIONS)
    factor = max(1, -(-MIN_PAINTED_SIZE // size))
    seeds = np.random.SeedSequence([seed, index])
    # Streams of their own keep the anatomy independent of the size and of the view.
    anatomy_seed, *streams = (np.random.default_rng(s) for s in seeds.spawn(6))
    anatomy = draw_anatomy(anatomy_seed)
    centre = anatomy.region_centre(region)
    canvas = Canvas(size * factor, extent_mm, centre)
    _paint(canvas, anatomy, streams)
    hu, labels = canvas.hu, canvas.labels
    if factor > 1:
        hu, labels = block_mean(hu, factor), reduce_classes(labels, factor)
    voxel = float(extent_mm / size)
    x, y, z = (float(c + voxel / 2 - extent_mm / 2) for c in centre)
    np.rint(hu, out=hu)
    return Phantom(
        hu=np.clip(hu, -1024, 3071, out=hu).astype(np.int16),
        labels=labels,
        spacing=(voxel, voxel, voxel),
        origin=(x, y, z),
        meta={"seed": seed, "index": index, "region": region, **_describe(anatomy, canvas.labels)},
    )


def _paint(canvas: Canvas, anatomy: Anatomy, streams: list[np.random.Generator]) -> None:
    """Paint from the outside in: soft tissue, bones over it, metal over bones, noise over all."""
    smooth, fine, bowel, vessels, noise = streams
    fields = [lattice_noise(smooth, canvas, pitch) for pitch in ((30.0, 30.0, 48.0), (24.0, 24.0, 70.0))]
    texture = 0.75 * lattice_noise(fine, canvas, (10.0, 10.0, 10.0))
    texture += 0.65 * lattice_noise(fine, canvas, (5.0, 5.0, 5.0), 56)
    body = make_body(canvas, anatomy, (*fields, texture))
    paint_trunk(body)
    paint_abdomen(body)
    paint_bowel(body, bowel)
    paint_chest(body, vessels)
    paint_muscles(body)
    for side in (-1, 1):
        paint_hip(body, side)
        paint_femur(body, side)
    paint_sacrum(body)
    paint_ribs(body)
    paint_sternum(body)
    for vertebra in anatomy.spine.values():
        paint_vertebra(body, vertebra)
    for side in (-1, 1):
        paint_shoulder(body, side)
    screws = paint_pedicle_screws(body)
    paint_hip_implant(body, screws)
    if anatomy.is_["couch"]:
        paint_couch(body)
    add_scan_noise(canvas, noise, anatomy["noise"], _beam_hardness(body))


def _beam_hardness(body: Body) -> np.ndarray:
    """Noise relative to that of the belly, per slice: fewer photons pass a thicker body."""
    a, z = body.anatomy, body.canvas.coords[2]
    across = 2 * np.sqrt(a.along("half_width", z) * (a.along("back", z) - a.along("front", z)) / 2)
    heights = [a.dome() - 40, a.dome() + 20, a.spine["T4"].centre[2], a.spine["T2"].centre[2]]
    lungs = np.interp(z, heights, [1, 0.75, 0.8, 1.2])
    return np.clip(np.exp(0.005 * (across - 270)) * lungs, 0.5, 1.6).astype(np.float32)


def _describe(anatomy: Anatomy, labels: np.ndarray) -> dict:
    """Entries of case.json about a patient."""
    in_view = np.bincount(labels.ravel(), minlength=256) > 0
    return {
        "num_screws": int(in_view[FIRST_SCREW:FIRST_ROD].sum()),
        "implant_levels": list(anatomy.screw_levels),
        "hip_implant": anatomy.hip_implant,
        "scoliosis_deg": anatomy.scoliosis,
        **{name: anatomy.is_[name] for name in ("female", "contrast", "arms_up", "couch")},
        "anatomy": {name: round(value, 4) for name, value in anatomy.values.items()},
    }
