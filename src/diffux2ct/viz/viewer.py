"""A slice viewer inside an HTML page: truth and reconstructions scroll in step, by wheel, drag, slider and keyboard.

Volumes travel in the page itself, so that it opens from disk: HU become 8 bits on a scale that is fine where the eye
needs it, neighbouring slices are subtracted, and what remains is deflated; browsers undo it (``DecompressionStream``).
"""

import base64
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from jaxtyping import Float, Num, UInt8

from diffux2ct.viz.slices import EDGES, ERROR_COLOURS, ERROR_LIMIT, WINDOWS, bone_centre

_CODES = (0, 40, 165, 255)
_KNOTS = (-1024.0, -200.0, 300.0, 1500.0)

HU_OF_CODE: Float[np.ndarray, "256"] = np.interp(np.arange(256), _CODES, _KNOTS)
"""HU that each 8-bit value stands for: steps of 21 HU in lung, 4 HU in soft tissue and 13 HU in bone."""

VIEWER_WINDOWS = {**WINDOWS, "lung": (-1350.0, 150.0), "full": (-1024.0, 1500.0)}
"""HU shown as black and as white; the keys 1 to 4 choose them in this order."""

MAX_SHRINK = 8
_BYTES_PER_VOXEL = (
    0.65  # of a noisy scan after deflating, a little above what was measured; only to plan ahead
)


@dataclass(frozen=True)
class Pane:
    """A picture of the viewer: ``title`` above it, and which of a case's volumes it shows, or that one's error.

    key: its own, of letters and digits. is_error: shows volume - truth.
    """

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
    """A case as the page holds it: its volumes as base64 text by name, and what the script must know of them.

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
        """Bytes that it takes in the page."""
        return sum(map(len, self.volumes.values()))


def encode_hu(hu: Num[np.ndarray, "d h w"]) -> UInt8[np.ndarray, "d h w"]:
    """HU to the nearest 8-bit value of `HU_OF_CODE`; what lies outside -1024 to 1500 becomes its end."""
    lowest, highest = int(_KNOTS[0]), int(_KNOTS[-1])
    table = np.round(np.interp(np.arange(lowest, highest + 1), _KNOTS, _CODES)).astype(np.uint8)
    return table[np.clip(np.rint(hu), lowest, highest).astype(np.intp) - lowest]


def pack_volume(hu: Num[np.ndarray, "d h w"]) -> str:
    """A volume as base64 of deflated differences between neighbouring slices, 8 bits a voxel."""
    codes = encode_hu(hu)
    differences = np.diff(codes, axis=0, prepend=np.uint8(0))  # modulo 256, which the script undoes
    return base64.b64encode(zlib.compress(differences.tobytes(), 6)).decode("ascii")


def unpack_volume(text: str, shape: tuple[int, int, int]) -> Float[np.ndarray, "d h w"]:
    """What a browser makes of `pack_volume`: HU of the 8-bit values."""
    differences = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8).reshape(shape)
    return HU_OF_CODE[np.cumsum(differences, axis=0, dtype=np.uint8)]


def shrink_volume(hu: Num[np.ndarray, "d h w"], factor: int) -> Float[np.ndarray, "d2 h2 w2"]:
    """Means of blocks of ``factor`` voxels a side; the last block of an axis may reach past it (edge repeated)."""
    pad = [(0, -length % factor) for length in hu.shape]
    padded = np.pad(hu, pad, mode="edge")
    d, h, w = (length // factor for length in padded.shape)
    return padded.reshape(d, factor, h, factor, w, factor).mean(axis=(1, 3, 5), dtype=np.float32)


def pack_case(
    case_id: str,
    label: str,
    volumes: Mapping[str, Num[np.ndarray, "d h w"]],
    spacing: tuple[float, float, float],
    allowance: float | int,
) -> PackedCase:
    """Pack the volumes (HU, of one shape) of a case into at most ``allowance`` bytes, shrunken no more than needed.

    volumes: by name, "truth" among them. All are shrunken alike, so that they scroll in step. spacing: (x, y, z) mm.
    Beyond a shrink of 8 nothing could be seen any more, so there the allowance yields.
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
    """Bytes of page that a noisy case of ``num_volumes`` volumes of so many voxels each takes."""
    return num_volumes * _BYTES_PER_VOXEL * 4 / 3 * voxels


def next_allowance(
    budget: float | int, used: int, remaining: int, voxels: int, num_volumes: int = 2
) -> float:
    """What the next case may take so that those after it fit too.

    budget, used: bytes of page for all cases, and spent. remaining: cases left, this one included. voxels: of each of
    the ``num_volumes`` volumes that a case has. Each later case is reserved what it takes at the smallest shrink at
    which all would fit, and the rest is for this one: the first cases, which a report puts first for a reason, are the
    sharpest. Never less than an equal share.
    """
    left = budget - used
    sizes = [expected_size(voxels // shrink**3, num_volumes) for shrink in range(1, MAX_SHRINK + 1)]
    reserved = next((size for size in sizes if remaining * size <= left), sizes[-1])
    return max(left / remaining, left - (remaining - 1) * reserved)


def viewer_html(
    cases: Sequence[PackedCase], panes: Sequence[Pane] = REPORT_PANES, *, errors_on_demand: bool = False
) -> str:
    """The viewer with these cases in it; the page needs `viewer_page`'s VIEWER_STYLE and VIEWER_SCRIPT beside it.

    panes: in the order in which they stand. errors_on_demand: a button and a key turn every pane but the truth's into
    its error, for where there is no room for panes of errors beside the others.
    """
    told = json.dumps(_meta(cases, panes, errors_on_demand)).replace(
        "<", "\\u003c"
    )  # a name must not end the element
    options = "".join(
        f"<option value={index}>{escape(case.case_id)} ({escape(case.label)})</option>"
        for index, case in enumerate(cases)
    )
    data = "".join(
        f'<script type="text/plain" id="volume-{index}-{name}">{text}</script>'
        for index, case in enumerate(cases)
        for name, text in case.volumes.items()
    )
    columns = stage_columns(len(panes))
    controls = _CONTROLS.format(
        options=options,
        panes="".join(map(_pane, panes)),
        buttons=_buttons(errors_on_demand),
        columns=columns,
        names=escape(", ".join(pane.title for pane in panes), quote=True),
        error_key=_ERROR_KEY.format(limit=ERROR_LIMIT) if errors_on_demand else "",
    )
    return controls + f'<script type="application/json" id="viewer-meta">{told}</script>{data}</div>'


def _meta(cases: Sequence[PackedCase], panes: Sequence[Pane], errors_on_demand: bool) -> dict:
    """What the script is told."""
    return {
        "hu": [round(float(value), 1) for value in HU_OF_CODE],
        "windows": {name: list(limits) for name, limits in VIEWER_WINDOWS.items()},
        "errorColours": [list(colour) for colour in ERROR_COLOURS],
        "errorLimit": ERROR_LIMIT,
        "edges": {plane: list(EDGES[plane]) for plane in _PLANES},
        "panes": [
            {"key": pane.key, "title": pane.title, "volume": pane.volume, "error": pane.is_error}
            for pane in panes
        ],
        "errorsOnDemand": errors_on_demand,
        "rows": math.ceil(len(panes) / stage_columns(len(panes))),
        "cases": [
            {"id": case.case_id, "label": case.label, "shape": case.shape, "spacing": case.spacing}
            | {"shrink": case.shrink, "centre": case.centre}
            for case in cases
        ],
    }


def stage_columns(num_panes: int) -> int:
    """How many panes stand side by side: all of up to five, else half of them, six at most."""
    return num_panes if num_panes <= 5 else min(6, math.ceil(num_panes / 2))


_CONTROLS = """
<div id="viewer" class="viewer" role="group" aria-label="Slice viewer" aria-describedby="viewer-help">
<div class="viewer-bar"><label>Case <select id="viewer-case">{options}</select></label>{buttons}</div>
<div id="viewer-stage" class="viewer-stage" style="--columns:{columns}" tabindex="0" role="group"
 aria-label="Slices of {names}; arrow keys scroll">{panes}</div>
<label class="viewer-slider"><span>Slice</span><input type="range" id="viewer-slice" min="1" value="1"></label>
<p class="viewer-read"><output id="viewer-where" aria-live="polite"></output><span id="viewer-point"></span></p>
<p class="note" id="viewer-help">Wheel, drag up and down, slider or
<kbd>↑</kbd> <kbd>↓</kbd>: one slice; <kbd>PgUp</kbd> <kbd>PgDn</kbd>: ten; <kbd>Home</kbd> <kbd>End</kbd>: first, last;
<kbd>A</kbd> <kbd>C</kbd> <kbd>S</kbd>: plane; <kbd>1</kbd> to <kbd>4</kbd>, <kbd>W</kbd>: window;
<kbd>N</kbd> <kbd>P</kbd>: next, previous case{error_key}. <span id="viewer-note"></span></p>
<noscript><p class="control">The viewer needs JavaScript; the pictures below do not.</p></noscript>
"""

_ERROR_KEY = "; <kbd>E</kbd>: errors (blue too low, red too high, full colour at {limit:g} HU), images"


def _pane(pane: Pane) -> str:
    title = escape(pane.title, quote=True)
    return (
        f'<div class="viewer-pane"><h3 title="{title}">{title}</h3><div class="viewer-frame">'
        f'<canvas id="viewer-{pane.key}" role="img" aria-label="{title}"></canvas><i></i><i></i><b></b><u></u>'
        "</div></div>"
    )


def _buttons(errors_on_demand: bool) -> str:
    groups = [
        ("plane", {plane: f"{plane.capitalize()} <kbd>{plane[0].upper()}</kbd>" for plane in _PLANES}),
        ("window", {n: f"{n.capitalize()} <kbd>{k}</kbd>" for k, n in enumerate(VIEWER_WINDOWS, start=1)}),
    ]
    if errors_on_demand:
        groups.append(("shown", {"images": "Images", "errors": "Errors <kbd>E</kbd>"}))
    return "".join(
        f'<span class="viewer-group" role="group" aria-label="{kind.capitalize()}">'
        + "".join(
            f'<button type="button" data-{kind}="{name}" aria-pressed="false">{text}</button>'
            for name, text in choices.items()
        )
        + "</span>"
        for kind, choices in groups
    )


_PLANES = ("axial", "coronal", "sagittal")
