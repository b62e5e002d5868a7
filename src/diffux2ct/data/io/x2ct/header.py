"""Declarations of an X2CT-GAN HDF5 file, checked before any voxel is read: a header can promise more than memory holds.

Only what lies in the file itself is read: an HDF5 link or an external dataset can name any file of the machine.
"""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from diffux2ct.data.io.ct_image import Triple, triple
from diffux2ct.errors import UserError
from diffux2ct.types import VIEWS
from diffux2ct.xray.camera import Camera

SIDE_MM = 320.0  # of the cube, where the file does not declare it
XRAY_KEYS: dict[str, str] = dict(zip(VIEWS, ("xray1", "xray2"), strict=True))
MAX_SIDE = 512  # voxels per side: twice the published ones, which is a quarter of a gigabyte
_MAX_PIXELS = 4096  # per side of an X-ray
_TEXTS = ("patient", "case", "views", "xrays_scale", "projector", "attenuation")
_SAME = 1e-6  # relative: the spacing that the file's numbers give, and the one that was written


@dataclass(frozen=True)
class X2ctHeader:
    """Declarations of a file, without its voxels.

    size: voxels per side. side: of the cube, mm. has_xrays: both of them. scales: the X-rays' maxima as line integrals;
    None unless ``write_x2ct`` wrote them. attrs: the text attributes that it has, of patient, case, views, xrays_scale,
    projector and attenuation. origin: mm LPS of the first voxel. camera, window (HU), poses (by view), labels_are_own:
    as the prepared folder had them. None: not declared, as in X2CT-GAN's own files. notes: lines for the user.
    """

    size: int
    side: float
    has_xrays: bool
    scales: dict[str, float] | None = None
    attrs: dict[str, str] = field(default_factory=dict)
    origin: Triple | None = None
    camera: Camera | None = None
    window: tuple[float, float] | None = None
    poses: dict[str, Any] | None = None
    labels_are_own: bool = False
    voxel_mm: float | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def ours(self) -> bool:
        """True if ``export_x2ct`` wrote it, so that it records how it was prepared."""
        whole = self.scales is not None or not self.has_xrays
        return whole and self.camera is not None and self.window is not None

    def spacing(self, size: int | None = None) -> float:
        """Voxel side in mm; size: of the same cube with that many voxels per side."""
        size = self.size if size is None else size
        # side / size need not give back the very number that was divided
        exact = self.voxel_mm is not None and abs(self.voxel_mm * self.size - self.side) <= _SAME * self.side
        if exact and size == self.size:
            return float(self.voxel_mm or 0)
        return self.side / size


def need_h5py(path: Path) -> Any:
    """The module h5py. Raises UserError if it is not installed."""
    try:
        import h5py
    except ImportError as error:
        raise UserError(f"{path}: HDF5 needs h5py: pip install -c constraints.txt '.[x2ct]'") from error
    return h5py


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The open ``h5py.File``; whatever the library raises while it is used becomes one line.

    Raises UserError: h5py is missing, or the file is damaged or too large for the memory.
    """
    h5py = need_h5py(path)
    try:
        with h5py.File(path, "r") as file:
            yield file
    except MemoryError as error:
        raise UserError(f"{path}: does not fit in memory; close other programs") from error
    except (OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: no readable HDF5 file, or a damaged one; download it again") from error


def read_x2ct_header(path: str | Path) -> X2ctHeader:
    """The header of a file. Raises UserError for one that ``read_x2ct`` would refuse by its header."""
    path = Path(path)
    with opened(path) as file:
        return header_of(file, path)


def header_of(file: Any, path: Path) -> X2ctHeader:
    """The header of an open file. Raises UserError, see ``read_x2ct_header``."""
    ct = dataset(file, "ct", path)
    if ct is None:
        held = ", ".join(sorted(file.keys())[:8]) or "nothing"
        raise UserError(f"{path}: no dataset 'ct' (it has {held}); give X2CT-GAN's ct_xray_data.h5")
    shape = ct.shape or ()
    if len(shape) != 3 or len(set(shape)) != 1 or shape[0] < 2:
        raise UserError(f"{path}: ct is {'x'.join(map(str, shape))}, not a cube; give X2CT-GAN's ct_xray_data.h5")
    if shape[0] > MAX_SIDE:
        raise UserError(f"{path}: ct has {shape[0]} voxels per side, at most {MAX_SIDE} are read; average it down")
    if ct.dtype.kind not in "iuf":
        raise UserError(f"{path}: ct holds values that are no numbers; download it again")
    side, notes = _side(file, path)
    has_xrays = _has_xrays(file, path)
    if not has_xrays:
        notes.append(f"{path}: no X-rays in it")
    counts = {"origin": 3, "voxel_mm": 1, "labels_are_own": 1}
    numbers = {name: _numbers(file.attrs, name, path, n) for name, n in counts.items() if name in file.attrs}
    return X2ctHeader(
        size=int(shape[0]),
        side=side,
        has_xrays=has_xrays,
        scales=_scales(file, path) if has_xrays else None,
        attrs={name: _text(file, name, path) for name in _TEXTS if name in file.attrs},
        origin=triple(numbers["origin"]) if "origin" in numbers else None,
        labels_are_own=bool(numbers.get("labels_are_own", [0])[0]),
        voxel_mm=numbers.get("voxel_mm", [None])[0],
        notes=notes,
        camera=_declared(file, "camera", path, _camera),
        window=_declared(file, "window", path, _window),
        poses=_declared(file, "poses", path, _poses),
    )


def dataset(file: Any, name: str, path: Path) -> Any:
    """The dataset of that name, None where there is none. Raises UserError if its values lie outside the file."""
    h5py = need_h5py(path)
    links = file.id.links
    if not links.exists(name.encode()):
        return None
    item: Any = file[name] if links.get_info(name.encode()).type == h5py.h5l.TYPE_HARD else None
    if not isinstance(item, h5py.Dataset) or item.external or item.is_virtual:
        raise UserError(
            f"{path}: {name} is a link, a group or another file's data, none of which is followed; "
            "write its values into the file"
        )
    return item


def _has_xrays(file: Any, path: Path) -> bool:
    images = {name: dataset(file, name, path) for name in XRAY_KEYS.values()}
    if any(image is None for image in images.values()):
        return False
    for name, image in images.items():
        sides = [side for side in image.shape or () if side != 1]
        if len(sides) != 2 or max(sides) > _MAX_PIXELS or image.dtype.kind not in "iuf":
            raise UserError(f"{path}: {name} is no grey image; download it again")
    return True


def _scales(file: Any, path: Path) -> dict[str, float] | None:
    if not all("scale" in file[name].attrs for name in XRAY_KEYS.values()):
        return None
    scales = {view: _numbers(file[name].attrs, "scale", path, 1)[0] for view, name in XRAY_KEYS.items()}
    if min(scales.values()) < 0:
        raise UserError(f"{path}: an X-ray's scale is {min(scales.values()):g}; export it again")
    return scales


def _side(file: Any, path: Path) -> tuple[float, list[str]]:
    """Side of the cube in mm."""
    stored = [dataset(file, name, path) for name in ("ori_size", "spacing")]
    if any(item is None for item in stored):
        return SIDE_MM, [f"{path}: its size in mm is missing; taken for a cube of {SIDE_MM:g} mm"]
    sizes, spacing = (_numbers(file, name, path, 1, 3) for name in ("ori_size", "spacing"))
    sides = np.asarray(sizes) * np.asarray(spacing)
    if sides.min() <= 0 or np.ptp(sides) > 0.02 * sides.mean():
        raise UserError(f"{path}: ori_size x spacing is {sides.tolist()} mm, not a cube; cannot be used")
    if np.ptp(sides) == 0:
        return float(sides[0]), []
    # X2CT-GAN's resampling to 1 mm rounds to whole voxels, which leaves spacings of 0.999 and the like.
    return float(np.round(sides.mean(), 1)), []


def _numbers(holder: Any, name: str, path: Path, *counts: int) -> list[float]:
    """The finite numbers that a dataset or an attribute holds, as many as one of ``counts``; else UserError."""
    stored = holder.get_id(name) if hasattr(holder, "get_id") else holder[name]
    few = math.prod(stored.shape or ()) in counts and stored.dtype.kind in "iufb"
    values = np.ravel(holder[name][()]) if few else np.array([])
    if values.size not in counts or not np.isfinite(values).all():
        raise UserError(f"{path}: {name} is not {' or '.join(map(str, counts))} numbers; write the file again")
    return [float(value) for value in values]


def _text(file: Any, name: str, path: Path) -> str:
    value = file.attrs[name] if file.attrs.get_id(name).shape == () else None
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{path}: attribute {name} is no text; write the file again")
    return value


def _declared(file: Any, name: str, path: Path, parse: Callable[[Any], Any]) -> Any:
    """The value of a JSON attribute, None where it is missing. ``parse`` raises UserError for an invalid one."""
    if name not in file.attrs:
        return None
    try:
        return parse(json.loads(_text(file, name, path)))
    except (UserError, TypeError, ValueError, KeyError, AttributeError) as error:
        fault = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: attribute {name} is damaged ({fault}); export it again") from error


def _camera(values: Any) -> Camera:
    camera = Camera.from_dict(dict(values))
    named = isinstance(camera.name, str) and isinstance(camera.reverse, bool)
    if not (named and np.isfinite([camera.sad, camera.sid, *camera.pitch]).all()):
        raise UserError("not a camera's values")
    return camera


def _window(values: Any) -> tuple[float, float]:
    if not _are_numbers(values, 2) or not values[0] < values[1]:
        raise UserError("not [lower, upper] in HU")
    return float(values[0]), float(values[1])


def _poses(values: Any) -> dict[str, Any]:
    numbers = [pose[key] for pose in values.values() for key in ("rotation_deg", "shift_mm")]
    sized = set(values) == set(VIEWS) and all(len(pose) == 2 for pose in values.values())
    if not sized or not all(_are_numbers(three, 3) for three in numbers):
        raise UserError("not a rotation and a shift for each view")
    return values


def _are_numbers(values: Any, count: int) -> bool:
    whole = isinstance(values, list) and len(values) == count
    return whole and all(type(value) in (int, float) and math.isfinite(value) for value in values)
