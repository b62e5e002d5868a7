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

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Num, UInt8

from diffux2ct.data.io.ct_image import CtImage, Triple
from diffux2ct.data.io.x2ct.header import XRAY_KEYS, X2ctHeader, dataset, header_of, need_h5py, opened
from diffux2ct.data.io.xray_file import resampling
from diffux2ct.errors import UserError
from diffux2ct.files.atomic import replaced_file
from diffux2ct.xray.camera import camera_preset
from diffux2ct.xray.drr import render_pair

OFFSET = 1024  # what is added to HU
VIEWS_STORED = "X2CT-GAN's: 8 bit, from behind and from the patient's left"  # in case.json
STORABLE = (-OFFSET, 32767 - OFFSET)  # HU


@dataclass(frozen=True)
class X2ctScan:
    """A scan read from such a file.

    hu: [D, H, W] int16, axes LPS. spacing: (x, y, z) mm. xrays: {"frontal": [rows, cols], "lateral": ...} in [0, 1] of
    each image's maximum, rows to Superior, columns to Left / Posterior; None if the file has none. origin: mm LPS of
    the first voxel, as written, or with the cube's centre at 0. labels: [D, H, W] or None.
    """

    hu: Num[np.ndarray, "D H W"]
    spacing: Triple
    xrays: dict[str, np.ndarray] | None
    origin: Triple
    labels: np.ndarray | None
    header: X2ctHeader


def read_x2ct(path: str | Path, size: int | None = None) -> X2ctScan:
    """Read a file; size: voxels and pixels per side to average it down to (None = as stored).

    Raises UserError: h5py is missing, the file cannot be read, has no ``ct``, one that is no cube of HU + 1024, or
    keeps data in another file.
    """
    path = Path(path)
    with opened(path) as file:
        header = header_of(file, path)
        ct = dataset(file, "ct", path)[()]
        images = {view: file[name][()] for view, name in XRAY_KEYS.items()} if header.has_xrays else None
        labels = _labels(file, ct.shape, path)
    hu, step = np.ascontiguousarray(_checked_hu(ct, path)[::-1]), header.spacing()
    xrays = None if images is None else {view: _xray(image, view, path) for view, image in images.items()}
    first = -(header.side - step) / 2
    stored = X2ctScan(hu, (step, step, step), xrays, header.origin or (first, first, first), labels, header)
    return stored if size is None else averaged(stored, size, path)


def averaged(scan: X2ctScan, size: int, path: Path) -> X2ctScan:
    """The scan with ``size`` voxels and pixels per side, averaged; labels, which have no average, are left out then.

    Raises UserError if that is more than is stored.
    """
    xrays = scan.xrays and {
        view: image if image.shape == (size, size) else average_to(image, size, path).astype(np.float32)
        for view, image in scan.xrays.items()
    }
    if size == scan.hu.shape[0]:
        return replace(scan, xrays=xrays)
    hu = np.round(average_to(scan.hu, size, path)).astype(np.int16)
    step = scan.header.spacing(size)
    shift = (step - scan.spacing[0]) / 2  # the cube stays, its first voxel's centre moves inward
    x, y, z = (start + shift for start in scan.origin)
    return replace(scan, hu=hu, spacing=(step, step, step), xrays=xrays, origin=(x, y, z), labels=None)


def ct_of(scan: X2ctScan, path: str | Path) -> CtImage:
    """The CT of a scan as it was stored in ``path``."""
    meta = {
        "path": str(path),
        "format": "x2ct",
        "orientation": "LPI",
        "spacing": list(scan.spacing),
        "size": list(scan.hu.shape[::-1]),
        "notes": list(scan.header.notes),
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

    hu: axes LPS, clipped to ``STORABLE``. spacing: (x, y, z) mm, all equal. xrays: line integrals, rows to Superior;
    they become 8 bit by their own maximum, which is kept as the attribute ``scale``. origin, labels, attrs (text and
    numbers): for ``read_x2ct`` alone; X2CT-GAN does not look at them.
    Raises UserError: h5py is missing, or the file cannot be written.
    """
    path = Path(path)
    h5py = need_h5py(path)
    side = float(spacing[0]) * hu.shape[0]
    try:
        content = io.BytesIO()  # HDF5 itself, where the disk is full, may end the process
        with h5py.File(content, "w") as file:
            ct = np.round(np.clip(hu, *STORABLE).astype(np.float32) + OFFSET).astype(np.int16)
            file["ct"] = np.ascontiguousarray(ct[::-1])
            ori_size = max(1, round(side))
            file["ori_size"] = np.int64(ori_size)
            file["spacing"] = np.full(3, side / ori_size)
            file.attrs["voxel_mm"] = float(spacing[0])
            for view, name in XRAY_KEYS.items():
                image, scale = to_8bit(xrays[view])
                file[name] = np.ascontiguousarray(image[::-1])
                file[name].attrs["scale"] = scale
            if labels is not None:
                file["labels"] = np.ascontiguousarray(labels[::-1])
            if origin is not None:
                file.attrs["origin"] = [float(value) for value in origin]
            for name, value in (attrs or {}).items():
                file.attrs[name] = value if isinstance(value, str | int | float) else json.dumps(value)
        with replaced_file(path) as partial:
            partial.write_bytes(content.getbuffer())
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error}); is the disk full?") from error
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
        array = np.moveaxis(np.tensordot(resampling(length, size), array, (1, axis)), 0, axis)
    return array


def _checked_hu(ct: np.ndarray, path: Path) -> np.ndarray:
    if not np.isfinite(ct).all():
        raise UserError(f"{path}: ct holds values that are no numbers; download it again")
    low, high = float(ct.min()), float(ct.max())
    if low < -OFFSET / 2 or high <= 2.0:
        raise UserError(
            f"{path}: ct runs from {low:g} to {high:g}, and HU + 1024 is expected (air 0, water 1024); "
            "was it saved as plain HU or normalised?"
        )
    return np.round(ct.clip(0, np.iinfo(np.int16).max)).astype(np.int16) - np.int16(OFFSET)


def _labels(file: Any, shape: tuple[int, ...], path: Path) -> np.ndarray | None:
    """Labels as ``write_x2ct`` wrote them; other programs' datasets of that name are left out."""
    item = dataset(file, "labels", path)
    if item is None or item.shape != shape or item.dtype != np.uint8:
        return None
    return np.ascontiguousarray(item[()][::-1])


def _xray(image: np.ndarray, view: str, path: Path) -> np.ndarray:
    image = image.squeeze()
    if image.ndim != 2 or not np.isfinite(image).all():
        raise UserError(f"{path}: {XRAY_KEYS[view]} is no grey image; download it again")
    return np.ascontiguousarray(image[::-1]).astype(np.float32) / np.float32(255)
