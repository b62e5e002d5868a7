"""Draw docs/images/first.png: the X-rays of a test case, a run's mean and sample, and the true CT.

    python scripts/draw_readme.py [RUN]        # runs/demo, after `make demo`

Of the test cases it shows the one whose CT is nearest to the truth (mean absolute error in HU).
"""

import sys
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf
from PIL import Image, ImageDraw, ImageFont

import diffux2ct
from diffux2ct.build import as_window, build_dataset
from diffux2ct.errors import UserError
from diffux2ct.intensity import denormalize_hu
from diffux2ct.viz.slices import WINDOWS, bone_centre, display_xray, grey, orthoslices, save_png, strip

OUT = Path(__file__).resolve().parent.parent / "docs" / "images" / "first.png"
PLANES = ("coronal", "sagittal", "axial")
BAR = 30  # pixels above a row


def main(run: Path) -> None:
    """Reconstruct all test cases and draw the best."""
    model = diffux2ct.load_model(run)
    dataset_cfg = OmegaConf.load(run / "config.yaml").dataset
    dataset = build_dataset(dataset_cfg, "test")
    best: tuple[float, int, diffux2ct.Reconstruction, np.ndarray] | None = None
    views = [(case.path / "frontal.npy", case.path / "lateral.npy") for case in dataset.cases]
    for index, xrays in enumerate(views):
        ct = diffux2ct.reconstruct(model, *xrays, output="mean")
        truth = denormalize_hu(dataset[index]["volume"][0].numpy(), as_window(dataset_cfg))
        error = float(np.abs(ct.hu - truth).mean())
        if best is None or error < best[0]:
            best = error, index, ct, truth
    assert best is not None  # a split is never empty
    error, index, ct, truth = best
    sample = diffux2ct.reconstruct(model, *views[index], output="sample", seed=0)
    save_png(OUT, picture(ct, sample, truth))
    print(f"{OUT}: {dataset.cases[index].case_id}, mean absolute error {error:.0f} HU")


def picture(mean: "diffux2ct.Reconstruction", sample: "diffux2ct.Reconstruction", truth: np.ndarray) -> np.ndarray:
    """Three rows: frontal X-ray and mean, lateral X-ray and sample, and the truth."""
    centre = bone_centre(truth)
    xrays = {view: grey(display_xray(mean.xrays[view][0, 0].numpy()), (-1.0, 1.0)) for view in ("frontal", "lateral")}
    rows = []
    for view, name, volume in (("frontal", "CT out: mean", mean.hu), ("lateral", "CT out: a sample", sample.hu)):
        rows += _row({view: xrays[view]}, "X-ray in", name, orthoslices(volume, centre))
    rows += _row({}, "", "Truth", orthoslices(truth, centre))
    width = max(row.shape[1] for row in rows)
    return np.concatenate([np.pad(row, ((0, 0), (width - row.shape[1], 0))) for row in rows])


def _row(tiles: dict[str, np.ndarray], left: str, right: str, planes: dict[str, np.ndarray]) -> list[np.ndarray]:
    row = strip(tiles | {plane: grey(planes[plane], WINDOWS["bone"]) for plane in PLANES})
    return [_bar(row.shape[1], left, right, row.shape[1] // 4 if tiles else 0), row]


def _bar(width: int, left: str, right: str, edge: int) -> np.ndarray:
    """A black bar with a title over the X-ray and one over the planes."""
    bar = Image.new("L", (width, BAR), 0)
    draw, font = ImageDraw.Draw(bar), ImageFont.load_default(size=20)
    for text, start, end in ((left, 0, edge), (right, edge, width)):
        draw.text(((start + end) / 2, BAR / 2), text, fill=255, font=font, anchor="mm")
    return np.asarray(bar)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo"))
    except UserError as error:
        sys.exit(f"error: {error}")
