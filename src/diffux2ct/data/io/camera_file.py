"""camera.json: the geometry of the X-rays beside it, which scripts/synthesize_drr.py computed from a CT."""

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffux2ct.data.io.ct_image import Triple, triple
from diffux2ct.errors import UserError
from diffux2ct.types import VIEWS
from diffux2ct.xray.camera import Camera

_SAME_MM = 0.01  # far below a voxel, far above what JSON rounds away


@dataclass(frozen=True)
class CameraFile:
    """camera.json as it concerns one of its X-rays.

    view: of that X-ray. camera: the preset's name. geometry: ``Camera.to_dict`` of the camera then (a preset may have
    changed since), as far as it is declared. output: unit of the pixels (``encode_output``).
    size, spacing, origin: of the cube that was X-rayed, voxels per side, (x, y, z) mm and LPS mm of its first voxel.
    moved: True if the patient was turned or shifted for either view. source: the CT. record: the whole file.
    """

    path: Path
    view: str
    camera: str
    geometry: Mapping[str, Any]
    output: str
    size: int
    spacing: Triple
    origin: Triple
    moved: bool
    source: str
    record: Mapping[str, Any]

    @property
    def extent(self) -> Triple:
        """The cube's sides (x, y, z) in mm."""
        return triple([self.size * step for step in self.spacing])

    @property
    def centre(self) -> Triple:
        """The cube's centre (x, y, z) in mm LPS: the isocentre."""
        half = (self.size - 1) / 2
        return triple([start + half * step for start, step in zip(self.origin, self.spacing, strict=True)])


def read_camera_file(xray: str | Path) -> CameraFile | None:
    """camera.json beside ``xray``; None if it is missing or does not name that file. UserError if it is damaged."""
    path = Path(xray).parent / "camera.json"
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        view = Path(xray).stem
        if view not in record["scale"]:  # its keys are the names of the files that were written
            return None
        poses = record.get("pose", {}).values()
        return CameraFile(
            path=path,
            view=view,
            camera=str(record["camera"]["name"]),
            geometry=dict(record["camera"]),
            output=str(record["output"]),
            size=int(record["size"]),
            spacing=triple(record["spacing"]),
            origin=triple(record["origin"]),
            moved=any(any(pose["rotation_deg"]) or any(pose["shift_mm"]) for pose in poses),
            source=str(record["source"]),
            record=record,
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path}: damaged, or not of synthesize_drr.py; write it again, or move the X-rays to a folder without it"
        ) from error


def read_camera_files(xrays: Mapping[str, Path]) -> dict[str, CameraFile]:
    """Read the camera.json of the given views, by view. UserError if it contradicts the views or their output."""
    cameras: dict[str, CameraFile] = {}
    for view, path in xrays.items():
        known = read_camera_file(path)
        if known is None:
            continue
        if known.view != view:
            raise UserError(
                f"{path}: given as {view}, but by {known.path} it is the {known.view} view; exchange the two"
            )
        if known.output == "transmission":
            raise UserError(
                f"{path}: transmission ({known.path}), not line integrals; write it again with output=line_integral"
            )
        cameras[view] = known
    for pair in itertools.pairwise(cameras.values()):
        if _same_cube(*pair):
            continue
        first, second = (
            f"{known.path}: {known.extent[0]:g} mm around ({', '.join(f'{c:g}' for c in known.centre)})"
            for known in pair
        )
        raise UserError(f"the two X-rays show different cubes ({first}; {second}); give two of one folder")
    return cameras


def check_extent(known: CameraFile, extent: Triple) -> None:
    """UserError unless the X-rays show the cube that a model reconstructs, ``extent`` (x, y, z) in mm."""
    if not np.allclose(known.extent, extent, rtol=0.01):
        shown, wanted = (" x ".join(f"{side:g}" for side in sides) for sides in (known.extent, extent))
        raise UserError(
            f"{known.path}: its X-rays show a cube of {shown} mm, this model makes one of {wanted} mm; "
            f"synthesize_drr.py needs size * spacing = {extent[0]:g}"
        )


def geometry_differs(known: CameraFile, trained: Mapping[str, Any] | None) -> str:
    """Differences between the camera of the training and that of the X-rays, as text; empty where there are none.

    The panels may have other pixels, if they are of one size.
    """
    given, wanted = _geometry(known.geometry), _geometry(trained)
    different = [key for key, value in wanted.items() if given and not _near(value, given[key])]
    return ", ".join(f"{key}={wanted[key]} (these: {given[key]})" for key in different)


def place(
    cameras: Mapping[str, CameraFile],
    size: int,
    spacing: list[float],
    given: list[float] | None,
    count: int = len(VIEWS),
) -> tuple[list[float], str]:
    """Origin (x, y, z) in mm LPS of the CT's first voxel, and the source of that position.

    With camera.json for all ``count`` views the CT has the centre of the cube that was X-rayed, so that it overlays the
    scan.
    """
    if given is not None:
        return given, "given"
    # The isocentre, which both X-rays look at, is the middle of the volume.
    centre, source = (0.0, 0.0, 0.0), "arbitrary: centred at 0"
    if len(cameras) == count:
        centre, source = next(iter(cameras.values())).centre, "camera.json"
    return [c - (size - 1) / 2 * step for c, step in zip(centre, spacing, strict=True)], source


def _geometry(camera: Mapping[str, Any] | None) -> dict[str, Any]:
    """The part of a camera that does not depend on its pixels; empty where the description is not complete."""
    try:
        described = Camera.from_dict(camera or {})
    except UserError:
        return {}
    panel = [round(n * pitch, 3) for n, pitch in zip((described.rows, described.cols), described.pitch, strict=True)]
    return {name: getattr(described, name) for name in ("kind", "sad", "sid", "reverse")} | {"panel": panel}


def _near(a: Any, b: Any) -> bool:
    return a == b if isinstance(a, str) else np.allclose(a, b, rtol=0.01, atol=0)


def _same_cube(a: CameraFile, b: CameraFile) -> bool:
    near = np.allclose([*a.extent, *a.centre], [*b.extent, *b.centre], rtol=0, atol=_SAME_MM)
    return a.source == b.source and near
