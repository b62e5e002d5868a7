"""Two X-rays in, a CT out: ``python example.py [RUN]``, after ``make demo`` has trained runs/demo.

The patient is a procedural phantom that the model was not trained on. Replace the two arrays by X-rays of your own
(files or arrays) and RUN by a run of your own.
"""

import sys
from pathlib import Path

import numpy as np

import diffux2ct
from diffux2ct.data.phantom import make_phantom
from diffux2ct.errors import UserError
from diffux2ct.xray.camera import camera_preset
from diffux2ct.xray.drr import render_pair

SIZE, VOXEL = 64, 4.0  # voxels a side, mm: a cube of 256 mm, the field of view that the demo is trained on


def main(run: Path) -> None:
    """Write ct.nii.gz and ct.png into RUN/example."""
    # 1. A patient: HU [D, H, W], z toward superior, y toward posterior, x toward left.
    patient = make_phantom(seed=0, index=2_000_000, size=SIZE, extent_mm=SIZE * VOXEL)

    # 2. Two X-rays: line integrals of attenuation, [rows, cols], row 0 lowest, as the demo's camera sees them.
    camera = camera_preset("lumbar", SIZE, VOXEL)
    xrays = render_pair(np.clip(patient.hu, -1024, 1500), patient.spacing, camera, SIZE)

    # 3. The CT. A model that is loaded once can be used for many patients; another seed draws another CT.
    model = diffux2ct.load_model(run)
    ct = diffux2ct.reconstruct(model, xrays["frontal"], xrays["lateral"], seed=0)

    # 4. Keep it: `ct.hu` is the array, `ct.affine` its place; in a notebook, `ct` alone shows the picture.
    out = run / "example"
    out.mkdir(exist_ok=True)
    ct.save(out / "ct.nii.gz")
    ct.show().save(out / "ct.png")
    low, high = int(ct.hu.min()), int(ct.hu.max())
    print(f"{out / 'ct.nii.gz'}: {ct.hu.shape} voxels of {ct.spacing} mm, {low} to {high} HU")
    print(f"{out / 'ct.png'}: both X-rays, and three planes of the CT")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo"))
    except UserError as error:
        sys.exit(f"error: {error}")
