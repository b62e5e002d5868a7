"""Contact sheets of a prepared folder, on which upside-down, empty and cut-off cases show at a glance.

Each case shows its axial, coronal and sagittal middle slice and both X-rays, turned for display as in ``slices``, with
the patient's sides at the edges.
"""

from pathlib import Path

import numpy as np
from jaxtyping import Num, UInt8
from PIL import Image, ImageDraw, ImageFont

from diffux2ct.data.prepared.dataset import read_manifest
from diffux2ct.errors import UserError
from diffux2ct.types import VIEWS
from diffux2ct.viz.slices import EDGES, PLANES, coloured, display_plane, display_xray, grey, save_png

_TILE = 128  # pixels of a picture's side
_CAPTION = 16
_COLUMNS, _ROWS = 2, 12  # cases on a page
_WINDOW = (-300.0, 800.0)  # HU shown black and white: separates fat, muscle and bone
_MARK = (255, 214, 10)


def write_contact_sheets(root: str | Path) -> list[Path]:
    """Write ``contact_sheet.png`` into a prepared folder, and ``contact_sheet_2.png``, ... for many cases.

    Returns the files. Older sheets are replaced. Raises UserError where the folder is unfinished or a case damaged.
    """
    root = Path(root)
    if not (root / "manifest.csv").is_file():
        raise UserError(f"{root}: no manifest.csv; finish its preparation first")
    rows = sorted(read_manifest(root), key=lambda row: row["case_id"])
    per_page = _COLUMNS * _ROWS
    pages = [rows[i : i + per_page] for i in range(0, len(rows), per_page)]
    paths = [root / f"contact_sheet{f'_{i}' if i > 1 else ''}.png" for i in range(1, len(pages) + 1)]
    for path, page in zip(paths, pages, strict=True):
        save_png(path, _page([_case_strip(root, row) for row in page]))
    for old in set(root.glob("contact_sheet*.png")) - set(paths):
        old.unlink()
    return paths


def case_strip(
    volume: Num[np.ndarray, "d h w"],
    frontal: Num[np.ndarray, "v u"],
    lateral: Num[np.ndarray, "v u"],
    caption: str,
    labels: UInt8[np.ndarray, "d h w"] | None = None,
) -> UInt8[np.ndarray, "r c 3"]:
    """One case as a strip: three middle slices (HU), both X-rays (line integrals), a caption and side letters.

    labels: tint the slices, a colour a value.
    """
    pictures = []
    for plane, size in zip(PLANES, volume.shape, strict=True):
        picture = coloured(grey(display_plane(volume, plane, size // 2), _WINDOW))
        if labels is not None:
            picture = _tinted(picture, display_plane(labels, plane, size // 2))
        pictures.append((picture, EDGES[plane]))
    for view, image in zip(VIEWS, (frontal, lateral), strict=True):
        window = (0.0, max(float(image.max()), 1e-6))
        pictures.append((coloured(grey(display_xray(image), window)), EDGES[view]))
    pitch = _TILE + 2
    strip = Image.new("RGB", (pitch * len(pictures) - 2, _TILE + _CAPTION), (60, 60, 60))
    draw, font = ImageDraw.Draw(strip), ImageFont.load_default(size=11)
    draw.rectangle((0, 0, strip.width, _CAPTION - 1), fill=(0, 0, 0))
    draw.text((2, 1), caption, fill=(255, 255, 255), font=font)
    for i, (picture, (left, right)) in enumerate(pictures):
        tile = Image.fromarray(picture).resize((_TILE, _TILE), Image.Resampling.BILINEAR)
        strip.paste(tile, (i * pitch, _CAPTION))
        middle = _CAPTION + _TILE // 2
        draw.text((i * pitch + 2, middle), left, fill=_MARK, font=font, anchor="lm")
        draw.text((i * pitch + _TILE - 2, middle), right, fill=_MARK, font=font, anchor="rm")
    return np.asarray(strip)


def _tinted(picture: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """A picture [r, c, 3] with a colour for every label value; neighbouring values differ in hue."""
    hue = (np.arange(256)[:, None] * 0.382 + np.array([0.0, 1 / 3, 2 / 3])) * 2 * np.pi
    colours = 127.5 + 127.5 * np.cos(hue)
    return np.where(labels[..., None] > 0, 0.55 * picture + 0.45 * colours[labels], picture).astype(np.uint8)


def _case_strip(root: Path, row: dict[str, str]) -> np.ndarray:
    folder = root / "cases" / row["case_id"]
    names = ["volume", *VIEWS, *(["labels"] if row["has_labels"] == "True" else [])]
    try:
        arrays = [np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in names]
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: missing or damaged; delete it and prepare it again") from error
    spacing = float(row["spacing"].split()[0])
    caption = f"{row['case_id'][:48]}   {row['split']}   {row['size']}^3 x {spacing:g} mm"
    volume, frontal, lateral, *labels = arrays
    return case_strip(volume, frontal, lateral, caption, labels[0] if labels else None)


def _titles(width: int) -> np.ndarray:
    """A line with the name of each picture of a strip, to stand above a column of strips."""
    line = Image.new("RGB", (width, _CAPTION), (60, 60, 60))
    draw, font = ImageDraw.Draw(line), ImageFont.load_default(size=11)
    for i, name in enumerate((*PLANES, *(f"{view} X-ray" for view in VIEWS))):
        draw.text((i * (_TILE + 2) + _TILE // 2, _CAPTION // 2), name, fill=(255, 255, 255), font=font, anchor="mm")
    return np.asarray(line)


def _page(strips: list[np.ndarray]) -> np.ndarray:
    """Strips in titled columns, read from top to bottom, with a thin gap."""
    rows = min(len(strips), _ROWS)
    columns = -(-len(strips) // rows)
    height, width, _ = strips[0].shape
    gap = 4
    page = np.full((_CAPTION + rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 60, np.uint8)
    for i, strip in enumerate(strips):
        top, left = _CAPTION + i % rows * (height + gap), i // rows * (width + gap)
        page[:_CAPTION, left : left + width] = _titles(width)
        page[top : top + height, left : left + width] = strip
    return page
