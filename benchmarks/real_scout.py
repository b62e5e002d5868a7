"""A real localizer radiograph against the simulated view of the same patient's CT.

    python benchmarks/real_scout.py             # writes benchmarks/real_scout.csv and docs/images/scout.png

The localizer (scout) of ACRIN-NSCLC-FDG-PET-042, CC BY 3.0, lies with its CT in ../shared/data, beside the checkout.
It was scanned through a slit: source and detector row stood still while the table moved, so its rays fan out across
and stay perpendicular to z. Its detector's channels lie on an arc around the source, at equal angles. The scanner's
axis is x = y = 0 of the CT's own coordinates. Line integrals are compared as they are: the localizer's grey levels are
linear in them, not in the transmitted intensity.

Each simulated view is registered to the localizer by four numbers, a shift and a scale along rows and along columns,
which maximise the correlation where rays pass the patient; nothing else is fitted or warped. The localizer is blurred
to the CT's resolution first. Mirrored left to right, it gets a registration of its own.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage, optimize

from _common import HERE, ROOT, SHARED, skip, write_csv
from diffux2ct.data.io.volume import CtImage, read_ct
from diffux2ct.intensity import attenuation_from_hu
from diffux2ct.xray.camera import Camera
from diffux2ct.xray.joseph import project

SAD, SID = 541.0, 949.0
SCOUT_PITCH = (0.545, 0.597)  # mm: table movement between rows; columns at the axis
PITCH = 1.5  # mm between the simulated view's pixels at the axis: the CT's voxel
BODY = 0.5  # line integral from which a ray counts as passing the patient: 2 cm of water


@dataclass(frozen=True)
class Fit:
    """How a view lies on the localizer. shift, scale: (rows, columns); mm, and localizer mm per simulated mm."""

    correlation: float
    shift: tuple[float, float]
    scale: tuple[float, float]


def load(data: Path = SHARED) -> tuple[np.ndarray, CtImage]:
    """The localizer with rows to Superior and columns to Left, and the CT."""
    scout = np.load(data / "xray" / "acrin_nsclc042_ap_scout.npy").astype(np.float32)
    return scout[::-1].copy(), read_ct(data / "ct" / "acrin_nsclc042_chest.nii.gz")


def simulate(ct: CtImage) -> dict[str, np.ndarray]:
    """Line integrals of the CT around the scanner's axis, by way of looking: [rows, cols], PITCH mm at the axis."""
    hu = np.pad(ct.hu, [(0, 0), *(_about_axis(ct, axis) for axis in (1, 0))], constant_values=-1024)
    attenuation = attenuation_from_hu(torch.from_numpy(hu.astype(np.float32)))[None, None]
    rows, cols, magnified = hu.shape[0], 2 * (hu.shape[2] * 3 // 4), PITCH * SID / SAD
    cameras = {
        "parallel": Camera("parallel", 0.0, 0.0, rows, cols, (PITCH, PITCH)),
        "cone": Camera("cone", SAD, SID, rows, cols, (magnified, magnified)),
        "slit, flat panel": Camera("slit", SAD, SID, rows, cols, (PITCH, magnified)),
    }
    views = {
        name: project(attenuation, ct.spacing, camera, "frontal")[0, 0].numpy() for name, camera in cameras.items()
    }
    return views | {"slit, arc": _on_arc(views["slit, flat panel"], magnified)}


def _about_axis(ct: CtImage, axis: int) -> tuple[int, int]:
    """Voxels of air before and after, so that the scanner's axis is the volume's centre. axis: 0 for x, 1 for y."""
    missing = round(2 * ct.centre[axis] / ct.spacing[axis])
    return (missing, 0) if missing > 0 else (0, -missing)


def _on_arc(image: np.ndarray, pitch: float) -> np.ndarray:
    """Resample the columns of a flat panel to channels of equal angle."""
    count = image.shape[1]
    along_arc = (np.arange(count) - (count - 1) / 2) * pitch
    column = SID * np.tan(along_arc / SID) / pitch + (count - 1) / 2
    return np.stack([np.interp(column, np.arange(count), row) for row in image])


def onto(scout: np.ndarray, shape: tuple[int, int], fit: Fit, step: int = 1) -> np.ndarray:
    """The localizer at every ``step``-th pixel of a simulated view of that shape; NaN outside of it."""
    positions = []
    for axis in (0, 1):
        mm = (np.arange(0, shape[axis], step) - (shape[axis] - 1) / 2) * PITCH * fit.scale[axis]
        positions.append((mm + fit.shift[axis]) / SCOUT_PITCH[axis] + (scout.shape[axis] - 1) / 2)
    grid = np.meshgrid(*positions, indexing="ij")
    return ndimage.map_coordinates(scout, grid, order=1, cval=np.nan)


def correlate(a: np.ndarray, b: np.ndarray, where: np.ndarray) -> float:
    """Pearson correlation over ``where`` both are known."""
    where = where & np.isfinite(a) & np.isfinite(b)
    return float(np.corrcoef(a[where], b[where])[0, 1])


def register(scout: np.ndarray, view: np.ndarray) -> Fit:
    """The shift and scale of rows and columns under which the view correlates best with a (blurred) localizer."""
    starts = [np.array([row_shift, 0.0, 1.0, 1.0]) for row_shift in (-100.0, -50.0, 0.0, 50.0, 100.0)]
    coarse = [_climb(scout, view, start, 1.0, step=12) for start in starts]
    best = _climb(scout, view, min(coarse, key=lambda result: result.fun).x, 0.2, step=4)
    row, col, row_scale, col_scale = (float(value) for value in best.x)
    fit = Fit(0.0, (row, col), (row_scale, col_scale))
    there = onto(scout, view.shape, fit)
    return Fit(correlate(there, view, view > BODY), fit.shift, fit.scale)


def _climb(scout: np.ndarray, view: np.ndarray, start: np.ndarray, reach: float, step: int):
    """The local maximum of the correlation near ``start``, on every ``step``-th pixel."""
    thinned = view[::step, ::step]
    body = thinned > BODY

    def loss(parameters: np.ndarray) -> float:
        there = onto(scout, view.shape, Fit(0.0, tuple(parameters[:2]), tuple(parameters[2:])), step)
        # At least three quarters of the patient, or a small patch could win.
        if np.isfinite(there[body]).mean() < 0.75:
            return 1.0
        return -correlate(there, thinned, body)

    simplex = np.vstack([start, start + reach * np.diag([20.0, 10.0, 0.04, 0.04])])
    options = {"initial_simplex": simplex, "maxiter": 400, "xatol": 1e-3, "fatol": 1e-7}
    return optimize.minimize(loss, start, method="Nelder-Mead", options=options)


def blurred(scout: np.ndarray) -> np.ndarray:
    """The localizer at about the CT's resolution."""
    return ndimage.gaussian_filter(scout, [PITCH / pitch for pitch in SCOUT_PITCH])


def measure(scout: np.ndarray, views: dict[str, np.ndarray]) -> list[dict]:
    """A row for each way of looking, and each with the localizer mirrored."""
    scout, rows = blurred(scout), []
    for name, view in views.items():
        for mirrored in (False, True):
            shown = scout[:, ::-1] if mirrored else scout
            fit = register(shown, view)
            frame = correlate(onto(shown, view.shape, fit), view, np.ones(view.shape, bool))
            rows.append(
                {
                    "view": name,
                    "mirrored": mirrored,
                    "correlation": round(fit.correlation, 4),
                    "correlation_with_air": round(frame, 4),
                    "row_shift_mm": round(fit.shift[0], 1),
                    "column_shift_mm": round(fit.shift[1], 1),
                    "row_scale": round(fit.scale[0], 4),
                    "column_scale": round(fit.scale[1], 4),
                }
            )
    return rows


def draw(scout: np.ndarray, view: np.ndarray, path: Path) -> None:
    """Localizer, simulated view, checkerboard and difference; the same mirrored. Line integrals in grey, head up."""
    scout, tiles = blurred(scout), []
    for shown in (scout, scout[:, ::-1]):
        fit = register(shown, view)
        there = onto(shown, view.shape, fit)
        both = (view > BODY) & np.isfinite(there)
        slope, offset = np.polyfit(view[both], there[both], 1)
        real = (there - offset) / slope
        tile = np.add.outer(np.arange(view.shape[0]) // 36, np.arange(view.shape[1]) // 36) % 2 == 0
        grey = [image / 8 for image in (real, view, np.where(tile, real, view))]
        tiles.append([*grey, (real - view) / 3 + 0.5])
        caption = f"correlation {fit.correlation:.3f}"
        tiles[-1].append(caption)
        if shown is scout:
            known = np.isfinite(there)
    rows, cols = np.flatnonzero(known.any(1)), np.flatnonzero(known.any(0))
    crop = (slice(rows[0], rows[-1] + 1), slice(cols[0], cols[-1] + 1))
    (real, simulated, checker, difference, plain), (_, _, wrong, wrong_difference, mirrored) = tiles
    panels = [
        (real, "real localizer"),
        (simulated, "simulated from the CT"),
        (checker, f"checkerboard of both: {plain}"),
        (difference, "real minus simulated"),
        (wrong, f"real mirrored: {mirrored}"),
        (wrong_difference, "mirrored minus simulated"),
    ]
    _sheet([(image[crop], text) for image, text in panels], 3).save(path, optimize=True)


def _sheet(panels: list[tuple[np.ndarray, str]], columns: int) -> Image.Image:
    height, width = panels[0][0].shape
    gap, line = 8, 26
    rows = -(-len(panels) // columns)
    sheet = Image.new("L", (columns * (width + gap) - gap, rows * (height + line)), 255)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for at, (image, text) in enumerate(panels):
        left, top = at % columns * (width + gap), at // columns * (height + line)
        grey = np.nan_to_num(image, nan=0.0)[::-1].clip(0, 1) * 255
        sheet.paste(Image.fromarray(grey.round().astype(np.uint8)), (left, top + line))
        pen.text((left + 2, top + 4), text, fill=0, font=font)
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "real_scout.csv")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "images" / "scout.png")
    args = parser.parse_args()
    if not SHARED.is_dir():
        skip(f"no real data at {SHARED}")
    scout, ct = load()
    views = simulate(ct)
    rows = measure(scout, views)
    for row in rows:
        print(", ".join(f"{key} {value}" for key, value in row.items()))
    write_csv(args.out, rows)
    draw(scout, views["slit, arc"], args.picture)


if __name__ == "__main__":
    main()
