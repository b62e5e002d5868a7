"""Slices and X-rays as pictures, in radiological display orientation.

The only place where anything is flipped for the eye. Arrays stay ``[D, H, W]`` in LPS elsewhere. On screen
superior is up in coronal and sagittal slices and in X-rays, anterior is up in axial slices and to the left in
sagittal slices and lateral X-rays, and the patient's left is on the right of the picture.
"""

import base64
import io
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Num, UInt8
from PIL import Image, ImageDraw, ImageFont

from diffux2ct.files.atomic import replaced_file
from diffux2ct.xray.pose import view_angle

PLANES = ("axial", "coronal", "sagittal")

EDGES: dict[str, tuple[str, str]] = {
    **dict.fromkeys(("axial", "coronal", "frontal"), ("R", "L")),
    **dict.fromkeys(("sagittal", "lateral"), ("A", "P")),
}
"""Sides at the left and right edge of a picture: patient Right/Left, Anterior/Posterior."""

WINDOWS = {"soft": (-160.0, 240.0), "bone": (-450.0, 1050.0)}
"""HU shown as black and as white: soft tissue (level 40, width 400) and bone (level 300, width 1500)."""

ERROR_LIMIT = 500.0
"""Signed errors of this many HU and more get the full colour. Fixed, so that reports can be compared."""

# Blue (too low) - white (right) - red (too high). Lightness falls evenly on both sides, so that equal errors
# of either sign look equally strong, also to red-green blind readers.
_BLUES = ((5, 48, 97), (67, 147, 195), (209, 229, 240))
_REDS = ((253, 219, 199), (214, 96, 77), (103, 0, 31))
ERROR_COLOURS = (*_BLUES, (255, 255, 255), *_REDS)

BONE_HU = 200.0

_STRIP = 20  # pixels above a picture for its name
_GUTTER, _BETWEEN = 4, 96  # pixels from picture to picture, and their grey: air is black at a picture's edge


def edges(plane: str) -> tuple[str, str]:
    """Sides at the left and right edge of a picture of ``EDGES``, or of an X-ray at another angle: RA LP, say."""
    if plane in EDGES:
        return EDGES[plane]
    angle = math.radians(view_angle(plane))
    across = sorted(((math.cos(angle), "L", "R"), (-math.sin(angle), "P", "A")), key=lambda part: -abs(part[0]))
    # A direction has its larger part first, and a second one from 22.5 degrees on.
    parts = [part for part in across if abs(part[0]) > math.sin(math.pi / 8) - 1e-9]
    right = "".join(plus if part > 0 else minus for part, plus, minus in parts)
    return "".join(minus if part > 0 else plus for part, plus, minus in parts), right


def named(plane: str) -> str:
    """Name of a plane or view under a picture."""
    return plane.capitalize() if plane in EDGES else f"{view_angle(plane):g}°"


def bone_centre(hu: Num[np.ndarray, "d h w"]) -> tuple[int, int, int]:
    """Voxel (z, y, x) in the middle of everything above 200 HU; the middle of the volume if nothing is.

    Slices through this point show the spine; those through the geometric centre often pass in front of it.
    """
    bone = np.argwhere(hu > BONE_HU)
    centre = bone.mean(axis=0) if len(bone) else (np.array(hu.shape) - 1) / 2
    z, y, x = np.round(centre).astype(int).tolist()
    return z, y, x


def display_plane(volume: Num[np.ndarray, "d h w"], plane: str, index: int) -> Num[np.ndarray, "r c"]:
    """One slice of a [D, H, W] LPS volume, turned as a radiologist expects it.

    ``plane``: "axial" (index along z), "coronal" (along y) or "sagittal" (along x).

    Raises:
        ValueError: another plane.
    """
    if plane == "axial":
        return volume[index]
    if plane == "coronal":
        return volume[::-1, index, :]
    if plane == "sagittal":
        return volume[::-1, :, index]
    raise ValueError(f"plane must be one of {', '.join(PLANES)}, not {plane!r}")


def display_xray(image: Num[np.ndarray, "v u"]) -> Num[np.ndarray, "v u"]:
    """A frontal [D, W] or lateral [D, H] X-ray with superior up."""
    return image[::-1]


def orthoslices(volume: Num[np.ndarray, "d h w"], centre: tuple[int, int, int]) -> dict[str, Num[np.ndarray, "r c"]]:
    """The axial, coronal and sagittal slice through voxel ``centre`` (z, y, x), turned for display."""
    return {plane: display_plane(volume, plane, index) for plane, index in zip(PLANES, centre, strict=True)}


def grey(image: Num[np.ndarray, "r c"], window: tuple[float, float]) -> UInt8[np.ndarray, "r c"]:
    """Values (HU, or an X-ray in [-1, 1]) to 0..255; ``window`` is (black, white)."""
    low, high = window
    scaled = (np.asarray(image, np.float32) - low) / (high - low)
    return np.round(255 * np.clip(scaled, 0, 1)).astype(np.uint8)


def coloured(image: UInt8[np.ndarray, "r c"]) -> UInt8[np.ndarray, "r c 3"]:
    """A grey picture in three equal channels."""
    return np.repeat(image[..., None], 3, axis=-1)


def error_colours(error: Num[np.ndarray, "r c"], limit: float = ERROR_LIMIT) -> UInt8[np.ndarray, "r c 3"]:
    """Signed error in HU to colours: blue where it is too low, white at 0, red where it is too high."""
    position = np.clip(np.asarray(error, np.float32) / limit, -1, 1)
    stops = np.linspace(-1, 1, len(ERROR_COLOURS))
    channels = [np.interp(position, stops, channel) for channel in np.array(ERROR_COLOURS).T]
    return np.round(np.stack(channels, axis=-1)).astype(np.uint8)


def upscale(image: UInt8[np.ndarray, "..."], min_side: int = 192) -> UInt8[np.ndarray, "..."]:
    """Repeat pixels a whole number of times until the longer side has at least ``min_side`` of them.

    Nearest neighbour, because a smooth picture would show detail that the volume does not have.
    """
    factor = max(1, math.ceil(min_side / max(image.shape[:2])))
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def with_sides(image: UInt8[np.ndarray, "r c"], plane: str) -> UInt8[np.ndarray, "r2 c"]:
    """A picture under a strip that names it and the patient's sides at its edges: R Frontal L."""
    strip = Image.new("L", (image.shape[1], _STRIP), 0)
    draw, font = ImageDraw.Draw(strip), ImageFont.load_default(size=13)
    left, right = edges(plane)
    places = ((4, "lm"), (strip.width // 2, "mm"), (strip.width - 4, "rm"))
    for text, (x, anchor) in zip((left, named(plane), right), places, strict=True):
        draw.text((x, _STRIP // 2), text, fill=255, font=font, anchor=anchor)
    return np.concatenate([np.asarray(strip), image])


def strip(pictures: Mapping[str, UInt8[np.ndarray, "..."]]) -> UInt8[np.ndarray, "..."]:
    """Grey slices and X-rays of one shape side by side, each 256 pixels or larger, under its name and sides."""
    tiles = [with_sides(upscale(image, 256), name) for name, image in pictures.items()]
    gutter = np.full((len(tiles[0]), _GUTTER, *tiles[0].shape[2:]), _BETWEEN, np.uint8)
    return np.concatenate([part for tile in tiles for part in (gutter, tile)][1:], axis=1)


def png_bytes(image: UInt8[np.ndarray, "..."]) -> bytes:
    """A grey [r, c] or colour [r, c, 3] picture as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def png_data_uri(image: UInt8[np.ndarray, "..."]) -> str:
    """A picture as a ``data:`` URI that an HTML page can hold in itself."""
    return "data:image/png;base64," + base64.b64encode(png_bytes(image)).decode("ascii")


def comparison_grid(
    truth: Num[np.ndarray, "d h w"], reconstruction: Num[np.ndarray, "d h w"], window: str = "bone"
) -> UInt8[np.ndarray, "rows cols 3"]:
    """One picture: truth, reconstruction and signed error (columns) in three planes (rows). Volumes in HU.

    Slices pass through the middle of the true bone. For training previews and documentation.
    """
    centre = bone_centre(truth)
    true_planes, predicted_planes = orthoslices(truth, centre), orthoslices(reconstruction, centre)
    side = max(truth.shape)
    rows = []
    for plane in PLANES:
        true, predicted = (np.asarray(planes[plane], np.float32) for planes in (true_planes, predicted_planes))
        panels = [coloured(grey(image, WINDOWS[window])) for image in (true, predicted)]
        panels.append(error_colours(predicted - true))
        rows.append(np.concatenate([_framed(panel, side) for panel in panels], axis=1))
    return upscale(np.concatenate(rows, axis=0), min_side=3 * 192)


def save_png(path: Path, image: UInt8[np.ndarray, "..."]) -> None:
    """Write a picture; the file appears whole or not at all."""
    with replaced_file(path) as partial:
        partial.write_bytes(png_bytes(image))


def _framed(panel: np.ndarray, side: int) -> np.ndarray:
    """Pad a panel to a square of ``side`` and a one-pixel margin, so that panels of any shape form a grid."""
    frame = np.zeros((side + 2, side + 2, 3), np.uint8)
    frame[[0, -1]] = frame[:, [0, -1]] = _BETWEEN
    top, left = (side + 2 - panel.shape[0]) // 2, (side + 2 - panel.shape[1]) // 2
    frame[top : top + panel.shape[0], left : left + panel.shape[1]] = panel
    return frame
