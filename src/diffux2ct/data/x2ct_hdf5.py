"""X2CT-GAN's HDF5 file of a scan, ``ct_xray_data.h5``, in and out.

It holds ``ct`` (HU + 1024, air 0, an isotropic cube), ``xray1`` and ``xray2`` (8 bit, each by its own maximum), and,
as published, ``ori_size`` and ``spacing``: ori_size x spacing mm is the cube's side, whatever the number of voxels.

Axes, from the code of kylekma/X2CT and from plastimatch's ``drr`` under its options: ``ct`` is [z, y, x] with z from
Superior down (its viewer turns the slices around before it saves them), y to Posterior, x to Left. ``xray1`` is
[z, x]: plastimatch draws it from behind with x to the Right, and its script flips it left to right. ``xray2`` is
[z, y]. Rows of both run from Superior down, so that row i of an image is slice i of the volume. Ours differ from that
only in the direction of z: all three are reversed along their first axis.

Its views are taken from behind (source at +y) and from the patient's left (+x), ours from the front and the right: the
same rays' directions, but what is near the source, and so larger, differs. ``x2ct_views`` renders its way.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Num, UInt8

from diffux2ct.data.ct_image import CtImage
from diffux2ct.errors import UserError
from diffux2ct.geometry.camera import camera_preset
from diffux2ct.geometry.drr import render_pair
from diffux2ct.types import VIEWS

OFFSET = 1024  # what is added to HU
SIDE_MM = 320.0  # of the cube, where the file does not tell
_KEYS = dict(zip(VIEWS, ("xray1", "xray2"), strict=True))


@dataclass(frozen=True)
class X2ctScan:
    """A scan read from such a file.

    hu: [D, H, W] int16, axes LPS. spacing: (x, y, z) mm. xrays: {"frontal": [rows, cols], "lateral": ...} in [0, 1] of
    each image's maximum, rows to Superior, columns to Left / Posterior; None if the file has none. scales: their
    maxima as line integrals; None unless the file was written by ``write_x2ct``. origin: mm LPS of the first voxel, as
    written, or with the cube's centre at 0. labels: [D, H, W] or None. attrs: what else the file tells. notes: lines
    for the user.
    """

    hu: Num[np.ndarray, "D H W"]
    spacing: tuple[float, float, float]
    xrays: dict[str, np.ndarray] | None
    scales: dict[str, float] | None
    origin: tuple[float, float, float]
    labels: np.ndarray | None = None
    attrs: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_x2ct(path: str | Path, size: int | None = None) -> X2ctScan:
    """Read a file; size: voxels and pixels per side to average it down to (None = as stored).

    Raises UserError: h5py is missing, the file cannot be read, has no ``ct``, or one that is no cube of HU + 1024.
    """
    path = Path(path)
    h5py = need_h5py(path)
    try:
        with h5py.File(path, "r") as file:
            arrays = {name: np.asarray(item) for name, item in file.items() if isinstance(item, h5py.Dataset)}
            attrs = dict(file.attrs)
            stored = {view: file[name].attrs.get("scale") for view, name in _KEYS.items() if name in file}
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise UserError(f"{path}: no readable HDF5 file, or a damaged one; download it again") from error
    if "ct" not in arrays:
        held = ", ".join(sorted(arrays)) or "nothing"
        raise UserError(f"{path}: no dataset 'ct' (it has {held}); give X2CT-GAN's ct_xray_data.h5")
    hu = _checked_hu(arrays["ct"], path)
    side, notes = _side(arrays, path)
    if size is not None and size != hu.shape[0]:
        hu = np.round(average_to(hu, size, path)).astype(np.int16)
    step = side / hu.shape[0]
    xrays = _xrays(arrays, size, path)
    if xrays is None:
        notes.append(f"{path}: no X-rays in it")
    told = all(stored.get(view) is not None for view in VIEWS)
    x, y, z = attrs.get("origin", [-(side - step) / 2] * 3)
    labels = arrays.get("labels")
    return X2ctScan(
        np.ascontiguousarray(hu[::-1]),
        (step, step, step),
        xrays,
        {view: float(stored[view]) for view in VIEWS} if told else None,
        (float(x), float(y), float(z)),
        np.ascontiguousarray(labels[::-1]) if labels is not None and labels.shape == hu.shape else None,
        {name: value.item() if isinstance(value, np.generic) else value for name, value in attrs.items()},
        notes,
    )


def read_x2ct_ct(path: str | Path) -> CtImage:
    """The CT of a file alone, as ``volume_io.read_ct`` would give it."""
    scan = read_x2ct(path)
    meta = {
        "path": str(path),
        "format": "h5",
        "orientation": "LPI",
        "spacing": list(scan.spacing),
        "size": list(scan.hu.shape[::-1]),
        "notes": scan.notes,
    }
    return CtImage(scan.hu, scan.spacing, scan.origin, meta)


def write_x2ct(
    path: str | Path,
    hu: Num[np.ndarray, "N N N"],
    spacing: Sequence[float | int],
    xrays: Mapping[str, Num[np.ndarray, "rows cols"]],
    *,
    origin: Sequence[float | int] | None = None,
    labels: UInt8[np.ndarray, "N N N"] | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> Path:
    """Write a file that X2CT-GAN's code reads, whole or not at all.

    hu: axes LPS, clipped below at -1024 HU. spacing: (x, y, z) mm, all equal. xrays: line integrals, rows to Superior;
    they become 8 bit by their own maximum, which is kept as the attribute ``scale``. origin, labels, attrs (text and
    numbers): for ``read_x2ct`` alone; X2CT-GAN does not look at them.
    Raises UserError: h5py is missing, or the file cannot be written.
    """
    path = Path(path)
    h5py = need_h5py(path)
    side = float(spacing[0]) * hu.shape[0]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with h5py.File(partial, "w") as file:
            ct = np.round(np.maximum(hu, -OFFSET) + OFFSET).astype(np.int16)
            file["ct"] = np.ascontiguousarray(ct[::-1])
            ori_size = max(1, round(side))
            file["ori_size"] = np.int64(ori_size)
            file["spacing"] = np.full(3, side / ori_size)
            for view, name in _KEYS.items():
                image, scale = to_8bit(xrays[view])
                file[name] = np.ascontiguousarray(image[::-1])
                file[name].attrs["scale"] = scale
            if labels is not None:
                file["labels"] = np.ascontiguousarray(labels[::-1])
            if origin is not None:
                file.attrs["origin"] = [float(value) for value in origin]
            for name, value in (attrs or {}).items():
                file.attrs[name] = value if isinstance(value, str | int | float) else json.dumps(value)
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error}); is the disk full?") from error
    finally:
        partial.unlink(missing_ok=True)
    return path


def x2ct_views(
    hu: Num[np.ndarray, "D H W"], spacing: Sequence[float | int], size: int, projector: str = "joseph"
) -> dict[str, Float[np.ndarray, "rows cols"]]:
    """Line integrals {"frontal", "lateral"} as X2CT-GAN renders them: 541/949 mm, from behind and from the left.

    hu: axes LPS. Rows to Superior, columns to Left / Posterior, like ours.
    """
    step = float(spacing[0])
    pair = render_pair(hu, (step, step, step), camera_preset("x2ct", size, step), size, projector=projector)
    return {view: np.asarray(image, np.float32) for view, image in pair.items()}


def to_8bit(image: Num[np.ndarray, "rows cols"]) -> tuple[UInt8[np.ndarray, "rows cols"], float]:
    """An image as X2CT-GAN stores it, 255 its maximum, and that maximum."""
    scale = float(image.max())
    if scale <= 0:
        return np.zeros(image.shape, np.uint8), 0.0
    return np.round(np.clip(image / scale, 0, 1) * 255).astype(np.uint8), scale


def average_to(array: Num[np.ndarray, "..."], size: int, path: Path) -> Float[np.ndarray, "..."]:
    """Average an array down to ``size`` cells along each axis; the field of view stays what it was.

    X2CT-GAN's code instead takes linear samples whose corner voxels coincide, which scales by (n-1)/n.
    """
    if size > min(array.shape):
        raise UserError(f"{path}: size={size} is more than the {min(array.shape)} stored; give at most that")
    for axis, length in enumerate(array.shape):
        edges = np.arange(length + 1) * (size / length)
        cell = np.arange(size)[:, None]
        overlap = np.minimum(edges[1:], cell + 1) - np.maximum(edges[:-1], cell)
        weights = np.maximum(overlap, 0.0)
        array = np.moveaxis(np.tensordot(weights / weights.sum(1, keepdims=True), array, (1, axis)), 0, axis)
    return array


def need_h5py(path: Path) -> Any:
    """The module h5py. Raises UserError if it is not installed."""
    try:
        import h5py
    except ImportError as error:
        raise UserError(f"{path}: HDF5 needs h5py; pip install 'diffux2ct[x2ct]'") from error
    return h5py


def _checked_hu(ct: np.ndarray, path: Path) -> np.ndarray:
    if ct.ndim != 3 or len(set(ct.shape)) != 1 or ct.shape[0] < 2:
        raise UserError(
            f"{path}: ct is {'x'.join(map(str, ct.shape))}, not a cube; give X2CT-GAN's ct_xray_data.h5"
        )
    if ct.dtype.kind not in "iuf" or not np.isfinite(ct).all():
        raise UserError(f"{path}: ct holds values that are no numbers; download it again")
    low, high = float(ct.min()), float(ct.max())
    if low < -OFFSET / 2 or high <= 2.0:
        raise UserError(
            f"{path}: ct runs from {low:g} to {high:g}, and HU + 1024 is expected (air 0, water 1024); "
            "was it saved as plain HU or normalised?"
        )
    return np.round(ct).astype(np.int32).clip(0, np.iinfo(np.int16).max).astype(np.int16) - np.int16(OFFSET)


def _side(arrays: Mapping[str, np.ndarray], path: Path) -> tuple[float, list[str]]:
    """Side of the cube in mm."""
    if "ori_size" not in arrays or "spacing" not in arrays:
        return SIDE_MM, [f"{path}: does not tell its size in mm; taken for a cube of {SIDE_MM:g} mm"]
    sides = np.ravel(arrays["ori_size"]).astype(float) * np.ravel(arrays["spacing"]).astype(float)
    if not np.isfinite(sides).all() or sides.min() <= 0 or np.ptp(sides) > 0.02 * sides.mean():
        raise UserError(f"{path}: ori_size x spacing is {sides.tolist()} mm, not a cube; cannot be used")
    if np.ptp(sides) == 0:
        return float(sides[0]), []
    # X2CT-GAN's resampling to 1 mm rounds to whole voxels, which leaves spacings of 0.999 and the like.
    return float(np.round(sides.mean(), 1)), []


def _xrays(arrays: Mapping[str, np.ndarray], size: int | None, path: Path) -> dict[str, np.ndarray] | None:
    if not all(name in arrays for name in _KEYS.values()):
        return None
    images = {}
    for view, name in _KEYS.items():
        image = arrays[name].squeeze()
        if image.ndim != 2 or image.dtype.kind not in "iuf" or not np.isfinite(image).all():
            raise UserError(f"{path}: {name} is no grey image; download it again")
        if size is not None and image.shape != (size, size):
            image = average_to(image, size, path)
        images[view] = np.ascontiguousarray(image[::-1]).astype(np.float32) / np.float32(255)
    return images
