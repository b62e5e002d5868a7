"""A slice viewer inside an HTML page: truth and reconstructions scroll in step, by wheel, drag, slider and keyboard.

The page holds the volumes, so that it opens from disk: HU become 8 bits on a scale that is fine in soft tissue,
neighbouring slices are subtracted and the differences deflated; browsers undo it (``DecompressionStream``).
"""

import base64
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Num, UInt8
from markupsafe import Markup

from diffux2ct.intensity import block_mean
from diffux2ct.viz.pages import templates
from diffux2ct.viz.slices import EDGES, ERROR_COLOURS, ERROR_LIMIT, PLANES, WINDOWS, bone_centre

_CODES = (0, 40, 165, 255)
_KNOTS = (-1024.0, -200.0, 300.0, 1500.0)

HU_OF_CODE: Float[np.ndarray, "256"] = np.interp(np.arange(256), _CODES, _KNOTS)
"""HU of each 8-bit value: steps of 21 HU in lung, 4 HU in soft tissue and 13 HU in bone."""

VIEWER_WINDOWS = {**WINDOWS, "lung": (-1350.0, 150.0), "full": (-1024.0, 1500.0)}
"""HU shown as black and as white; the keys 1 to 4 choose them in this order."""

MAX_SHRINK = 8
_BYTES_PER_VOXEL = 0.65  # of a noisy scan after deflating, a little above the measured size; only to plan ahead


@dataclass(frozen=True)
class Pane:
    """A picture of the viewer. key: letters and digits, unique. volume: of the case. is_error: shows volume - truth."""

    key: str
    title: str
    volume: str
    is_error: bool = False


REPORT_PANES = (
    Pane("truth", "Truth", "truth"),
    Pane("reconstruction", "Reconstruction", "reconstruction"),
    Pane("error", "Error", "reconstruction", is_error=True),
)
"""Truth, one reconstruction and its error, side by side."""


@dataclass(frozen=True)
class PackedCase:
    """A case in the page: its volumes as base64 text by name, and their geometry.

    shape: [D, H, W] as packed. spacing: (x, y, z) mm of a packed voxel. shrink: how many stored voxels became one
    along each axis. centre: the voxel [z, y, x] to show first.
    """

    case_id: str
    label: str
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    shrink: int
    centre: tuple[int, int, int]
    volumes: Mapping[str, str]

    @property
    def size(self) -> int:
        """Bytes in the page."""
        return sum(map(len, self.volumes.values()))


def encode_hu(hu: Num[np.ndarray, "d h w"]) -> UInt8[np.ndarray, "d h w"]:
    """HU to the nearest 8-bit value of `HU_OF_CODE`, clipped to -1024 to 1500."""
    lowest, highest = int(_KNOTS[0]), int(_KNOTS[-1])
    table = np.round(np.interp(np.arange(lowest, highest + 1), _KNOTS, _CODES)).astype(np.uint8)
    return table[np.clip(np.rint(hu), lowest, highest).astype(np.intp) - lowest]


def pack_volume(hu: Num[np.ndarray, "d h w"]) -> str:
    """A volume as base64 of deflated differences between neighbouring slices, 8 bits a voxel."""
    codes = encode_hu(hu)
    differences = np.diff(codes, axis=0, prepend=np.uint8(0))  # modulo 256, which the script undoes
    return base64.b64encode(zlib.compress(differences.tobytes(), 6)).decode("ascii")


def shrink_volume(hu: Num[np.ndarray, "d h w"], factor: int) -> Float[np.ndarray, "d2 h2 w2"]:
    """Means of blocks of ``factor`` voxels a side; the last block of an axis may reach past it (edge repeated)."""
    pad = [(0, -length % factor) for length in hu.shape]
    return block_mean(np.pad(hu, pad, mode="edge"), factor, np.float32)


def pack_case(
    case_id: str,
    label: str,
    volumes: Mapping[str, Num[np.ndarray, "d h w"]],
    spacing: tuple[float, float, float],
    allowance: float | int,
) -> PackedCase:
    """Pack the volumes (HU, of one shape) of a case into at most ``allowance`` bytes, shrunken no more than needed.

    volumes: by name, "truth" among them. All are shrunken alike, so that they scroll in step, and 8 times at the most,
    whatever the allowance. spacing: (x, y, z) mm.
    """
    voxels = volumes["truth"].size
    for shrink in range(1, MAX_SHRINK + 1):
        if shrink < MAX_SHRINK and 0.2 * expected_size(voxels // shrink**3, len(volumes)) > allowance:
            continue  # not even smooth volumes would fit
        small = {name: shrink_volume(hu, shrink) if shrink > 1 else hu for name, hu in volumes.items()}
        texts = {name: pack_volume(hu) for name, hu in small.items()}
        if sum(map(len, texts.values())) <= allowance or shrink == MAX_SHRINK:
            break
    d, h, w = small["truth"].shape
    x, y, z = (step * shrink for step in spacing)
    return PackedCase(case_id, label, (d, h, w), (x, y, z), shrink, bone_centre(small["truth"]), texts)


def expected_size(voxels: int, num_volumes: int = 2) -> float:
    """Bytes in the page of a noisy case of ``num_volumes`` volumes of so many voxels each."""
    return num_volumes * _BYTES_PER_VOXEL * 4 / 3 * voxels


def next_allowance(budget: float | int, used: int, remaining: int, voxels: int, num_volumes: int = 2) -> float:
    """Bytes for the next case, so that those after it fit too.

    budget, used: bytes of page for all cases, and spent. remaining: cases left, this one included. voxels: of each of
    the ``num_volumes`` volumes of a case. Each later case keeps its size at the smallest shrink at which all fit, and
    this one gets the rest, at least an equal share: the first cases are the sharpest.
    """
    left = budget - used
    sizes = [expected_size(voxels // shrink**3, num_volumes) for shrink in range(1, MAX_SHRINK + 1)]
    reserved = next((size for size in sizes if remaining * size <= left), sizes[-1])
    return max(left / remaining, left - (remaining - 1) * reserved)


def viewer_html(
    cases: Sequence[PackedCase], panes: Sequence[Pane] = REPORT_PANES, *, errors_on_demand: bool = False
) -> Markup:
    """The viewer with these cases in it; the page needs viewer.css and viewer.js beside it.

    panes: in order. errors_on_demand: a button and a key turn every pane but the truth's into its error, for pages
    without room for panes of errors.
    """
    buttons = {
        "plane": [(plane, plane.capitalize(), plane[0].upper()) for plane in PLANES],
        "window": [(name, name.capitalize(), key) for key, name in enumerate(VIEWER_WINDOWS, start=1)],
    }
    if errors_on_demand:
        buttons["shown"] = [("images", "Images", ""), ("errors", "Errors", "E")]
    columns = stage_columns(len(panes))
    meta = {
        "hu": [round(float(value), 1) for value in HU_OF_CODE],
        "windows": VIEWER_WINDOWS,
        "errorColours": ERROR_COLOURS,
        "errorLimit": ERROR_LIMIT,
        "edges": {plane: EDGES[plane] for plane in PLANES},
        "panes": [{"key": p.key, "title": p.title, "volume": p.volume, "error": p.is_error} for p in panes],
        "errorsOnDemand": errors_on_demand,
        "rows": math.ceil(len(panes) / columns),
        "cases": [
            {"id": case.case_id, "label": case.label, "shape": case.shape, "spacing": case.spacing}
            | {"shrink": case.shrink, "centre": case.centre}
            for case in cases
        ],
    }
    shown = {"cases": cases, "panes": panes, "buttons": buttons, "columns": columns, "meta": meta}
    page = templates("diffux2ct.viz").get_template("viewer.html")
    return Markup(page.render(**shown, errors_on_demand=errors_on_demand))


def stage_columns(num_panes: int) -> int:
    """Number of panes side by side: all of up to five, else half of them, six at most."""
    return num_panes if num_panes <= 5 else min(6, math.ceil(num_panes / 2))
