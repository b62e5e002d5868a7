"""X-rays and what is known of them, as a trained model takes them."""

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from omegaconf import DictConfig
from torch import Tensor

from diffux2ct.arguments import Positive, convert
from diffux2ct.build import plain
from diffux2ct.data.io.camera_file import CameraFile, check_extent, geometry_differs, place, read_camera_files
from diffux2ct.data.io.ct_image import triple
from diffux2ct.data.io.xray_file import XrayImage, fit_xray, read_xray, xray_from_array
from diffux2ct.data.prepared.dataset import read_description
from diffux2ct.errors import UserError
from diffux2ct.files.atomic import sha256_of
from diffux2ct.intensity import normalize_xray
from diffux2ct.load import LoadedRun
from diffux2ct.types import VIEWS
from diffux2ct.xray.camera import Camera, camera_preset, spacing_xyz
from diffux2ct.xray.pose import at_angles

XrayInput = str | Path | np.ndarray | Tensor
_ONE_VIEW = "depth along its rays was not seen; it is what the training bodies suggest"


@dataclass(frozen=True)
class Views:
    """X-rays, the SHA-256 of their files or arrays, and the camera.json beside them, each by view."""

    images: dict[str, XrayImage]
    hashes: dict[str, str]
    cameras: dict[str, CameraFile]


def by_view(
    frontal: XrayInput | None, lateral: XrayInput | None, others: Mapping[float | int, XrayInput] | None
) -> dict[str, XrayInput]:
    """The X-rays by the names of their views. UserError for angles that are none."""
    named = {view: given for view, given in zip(VIEWS, (frontal, lateral), strict=True) if given is not None}
    return named | (at_angles(others, "others") if others else {})


def read_views(
    inputs: Mapping[str, XrayInput], line_integrals: bool, pitch: tuple[float, float] | None, head_up: bool | None
) -> Views:
    """Read the views. Raises UserError where two are one image."""
    images, hashes = {}, {}
    for view, given in inputs.items():
        if isinstance(given, str | Path):
            declared = view if view in VIEWS else None
            images[view], hashes[view] = read_xray(given, head_up, declared), sha256_of(Path(given))
            continue
        values = given.detach().cpu() if isinstance(given, Tensor) else given
        values = np.asarray(values.float() if isinstance(values, Tensor) and values.is_floating_point() else values)
        images[view] = xray_from_array(
            values, f"{view} X-ray", line_integrals=line_integrals, pixel_pitch=pitch, head_up=bool(head_up)
        )
        hashes[view] = hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()
    for (one, image), (_, same) in itertools.combinations(images.items(), 2):
        if np.array_equal(image.values, same.values):
            path = image.meta["path"]
            raise UserError(f"{same.meta['path']}: the same image as {one}={path}; give the other view")
    cameras = read_camera_files({view: Path(x) for view, x in inputs.items() if isinstance(x, str | Path)})
    return Views(images, hashes, cameras)


@dataclass(frozen=True)
class ModelInputs:
    """X-rays as a model sees them, and the CT's grid, see `_grid`. seen: ``xrays`` and, where known, their camera."""

    xrays: dict[str, Tensor]
    seen: dict[str, Tensor]
    camera: Camera | None
    grid: dict[str, Any]


def model_inputs(run: LoadedRun, views: Views, spacing: Any, origin: Sequence[float] | None) -> ModelInputs:
    """Prepare the X-rays for a model. UserError unless they are those that it takes."""
    run.reconstructor.check_views(views.images)
    dataset = run.cfg.dataset
    grid = _grid(dataset, views.cameras, spacing, None if origin is None else list(origin), len(views.images))
    grid["notes"] = [*(note for image in views.images.values() for note in image.meta.get("notes", ())), *grid["notes"]]
    if len(views.images) == 1:
        grid["notes"].append(f"from one X-ray ({next(iter(views.images))}): {_ONE_VIEW}")
    xrays = prepare_xrays(views.images, grid["size"], dataset.xray_normalization)
    camera = _camera(dataset, views.cameras, grid)
    side = grid["size"] * grid["spacing"][0]
    seen = xrays | ({} if camera is None else {"camera": torch.tensor([camera.panel_map(side)])})
    return ModelInputs(xrays, seen, camera, grid)


def prepare_xrays(
    images: Mapping[str, XrayImage], size: int, normalization: str
) -> dict[str, Float[Tensor, "1 1 rows cols"]]:
    """Radiographs as the model wants them: [1, 1, size, size] in [-1, 1].

    Raises UserError where a model that was trained on absolute line integrals gets grey levels.
    """
    for image in images.values():
        if normalization == "fixed" and not image.is_line_integral:
            raise UserError(
                f"{image.meta['path']}: grey levels, but this model was trained on absolute line integrals "
                "(xray_normalization=fixed); give a .npy of line integrals, or a model trained with max"
            )
    fitted = {view: torch.from_numpy(fit_xray(image, size, size).values) for view, image in images.items()}
    return {view: normalize_xray(values, normalization)[None, None] for view, values in fitted.items()}


def check_cameras(cameras: Mapping[str, CameraFile], size: int, spacing: list[float], dataset: DictConfig) -> list[str]:
    """Notes on cameras that differ from training; UserError where the X-rays show another cube than the model makes."""
    notes = []
    trained, geometry = _trained_camera(dataset)
    for known in cameras.values():
        check_extent(known, triple([size * step for step in spacing]))
        if known.output == "max" and dataset.xray_normalization == "fixed":
            raise UserError(
                f"{known.path}: output=max, but this model was trained on absolute line integrals; write the X-rays "
                "again with output=line_integral"
            )
        if trained and known.camera != trained:
            notes.append(f"{known.path}: camera {known.camera}, but the model was trained on {trained}")
        elif differences := geometry_differs(known, geometry):
            notes.append(f"{known.path}: camera {known.camera}, but the model was trained on {differences}")
        if known.moved:
            notes.append(f"{known.path}: the patient was turned or shifted, so the CT will not lie on the scan")
    return list(dict.fromkeys(notes))


def model_grid(dataset: DictConfig) -> tuple[int, list[float]]:
    """Voxels a side and spacing (x, y, z) in mm of the CTs of a model that was trained on ``dataset``.

    From the prepared folder where it is at hand, else from the settings that it was made with.
    """
    size = dataset.get("size")
    if dataset.get("spacing") is not None and size is not None:
        return int(size), list(spacing_xyz(dataset.spacing))
    made: Any = dataset.get("prepare")
    if (Path(dataset.root) / "dataset.json").is_file():
        made = read_description(dataset.root)
    elif dataset.get("generate") is not None and size is not None:
        return int(size), list(spacing_xyz(dataset.generate.extent_mm / size))
    if made is None:
        raise UserError(f"{dataset.root}: not there, so the voxel spacing is unknown; add spacing=MM")
    size = int(made["size"] if size is None else size)
    return size, [s * made["size"] / size for s in spacing_xyz(made["spacing"])]


def _grid(
    dataset: DictConfig, cameras: Mapping[str, CameraFile], spacing: Any, given: list[float] | None, count: int
) -> dict[str, Any]:
    """Size, spacing and position of the CT of ``count`` X-rays, and notes on cameras, for ``reconstruct.json``."""
    size, steps = model_grid(dataset) if spacing is None else (int(dataset.size), list(spacing_xyz(spacing)))
    notes = check_cameras(cameras, size, steps, dataset)
    origin, source = place(cameras, size, steps, given, count)
    return {"size": size, "spacing": steps, "origin": origin, "origin_source": source, "notes": notes}


def _trained_camera(dataset: DictConfig) -> tuple[str | None, Mapping[str, Any] | None]:
    """Preset and geometry of the camera that a model was trained on; the geometry is None where neither the prepared
    folder nor a model folder gives it."""
    if dataset.get("camera"):  # of a model folder
        camera = plain(dataset.camera)
        return camera.get("preset"), camera.get("geometry")
    if (Path(dataset.root) / "dataset.json").is_file():
        description = read_description(dataset.root)
        return description.get("preset"), description.get("camera")
    made = dataset.get("generate") or dataset.get("prepare") or {}
    return made.get("camera"), None


def _camera(dataset: DictConfig, cameras: Mapping[str, CameraFile], grid: Mapping[str, Any]) -> Camera | None:
    """The X-rays' camera: of camera.json, else that of the training; None where unknown."""
    preset, trained = _trained_camera(dataset)
    for geometry in (*(known.geometry for known in cameras.values()), trained or {}):
        with suppress(UserError):  # an older file may declare a part of it
            return Camera.from_dict(geometry)
    with suppress(UserError):
        return camera_preset(preset or "", grid["size"], grid["spacing"][0])
    return None


def pitch_of(given: Any) -> tuple[float, float] | None:
    """mm between pixels as (row, col), from one number or two."""
    pitch = convert(Positive | tuple[Positive, Positive] | None, plain_numbers(given), "pixel_pitch")
    return (pitch, pitch) if isinstance(pitch, float) else pitch


def plain_numbers(value: Any) -> Any:
    """An array or a sequence of numbers as plain floats; anything else as it is."""
    try:
        return value if value is None else np.asarray(value, dtype=float).tolist()
    except (TypeError, ValueError):
        return value
