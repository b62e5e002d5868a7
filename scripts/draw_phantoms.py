"""Draw docs/images/phantom_<region>.png: sections and X-rays of three patients of each region.

    python scripts/draw_phantoms.py

A row a patient: axial, coronal and sagittal section, frontal and lateral X-ray (camera ``lumbar``).
"""

from pathlib import Path

import numpy as np

from diffux2ct.data.phantom import REGIONS, make_phantom
from diffux2ct.intensity import HU_WINDOW
from diffux2ct.viz.slices import WINDOWS, display_plane, display_xray, grey, save_png, upscale
from diffux2ct.xray.camera import camera_preset
from diffux2ct.xray.drr import render_pair

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
# Patients of seed 0, and where to cut them: a share of the height, y and x in mm from the middle of the spine.
PATIENTS = {"lumbar": (1, 2, 5), "pelvis": (1, 3, 4), "thorax": (1, 3, 5)}
CUTS = {"lumbar": (0.45, 0, 0), "pelvis": (0.33, -34, 0), "thorax": (0.5, -30, 0)}


def row(region: str, index: int) -> np.ndarray:
    """The five pictures of one patient, side by side."""
    phantom = make_phantom(0, index, region=region)
    hu, voxel = phantom.hu, phantom.spacing[0]
    size = hu.shape[0]
    share, dy, dx = CUTS[region]
    _, y, x = np.argwhere((phantom.labels > 0) & (phantom.labels < 27)).mean(0)
    at = {"axial": int(share * size), "coronal": int(y + dy / voxel), "sagittal": int(x + dx / voxel)}
    pictures = [grey(display_plane(hu, plane, index), WINDOWS["soft"]) for plane, index in at.items()]
    xrays = render_pair(np.clip(hu, *HU_WINDOW), phantom.spacing, camera_preset("lumbar", size, voxel), size)
    for image in xrays.values():
        image = np.asarray(image)
        pictures.append(grey(display_xray(image), (0.0, float(np.percentile(image, 99.8)))))
    return np.concatenate([upscale(picture, 256) for picture in pictures], axis=1)


def main() -> None:
    """Draw all regions."""
    for region in REGIONS:
        save_png(IMAGES / f"phantom_{region}.png", np.concatenate([row(region, i) for i in PATIENTS[region]], axis=0))


if __name__ == "__main__":
    main()
