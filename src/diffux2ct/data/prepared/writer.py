"""Write the prepared folder: one folder a case, then manifest, split and description. No SimpleITK here.

Everything appears whole or not at all: a case is written as ``cases/.<case_id>.partial`` and renamed, a table as a
temporary sibling and replaced. docs/data.md describes every file.
"""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffux2ct.data.labels import label_name
from diffux2ct.errors import UserError
from diffux2ct.files.atomic import replaced_folder, write_text
from diffux2ct.intensity import HU_WINDOW
from diffux2ct.xray.camera import Camera, camera_preset
from diffux2ct.xray.drr import render_pair
from diffux2ct.xray.pose import random_poses

FORMAT = 1
MASK = "mask"  # the name of the 1 in labels of 0 and 1
SPLITS = ("train", "val", "test")
MANIFEST_FIELDS = (
    "case_id", "patient", "split", "source", "sha256", "content_sha256", "orig_spacing", "orig_orientation",
    "orig_size", "spacing", "size", "origin", "crop", "window", "camera", "projector", "attenuation",
    "frontal_scale", "lateral_scale", "has_labels",
)  # fmt: skip
_READ = {  # entries of case.json that are read, and their types
    "patient": str, "source": str, "orig_spacing": list, "camera": str, "camera_geometry": dict, "has_labels": bool,
    "settings": dict,
}  # fmt: skip
_UNKNOWN = {"source": "", "sha256": "", "orig_orientation": "LPS", "crop": "none"}  # where ``meta`` says no more


def write_case(
    root: str | Path,
    case_id: str,
    hu: np.ndarray,
    spacing: Sequence[float | int],
    origin: Sequence[float | int],
    camera_name: str,
    *,
    labels: np.ndarray | None = None,
    meta: Mapping[str, Any] | None = None,
    window: Sequence[float | int] = HU_WINDOW,
    projector: str = "joseph",
    attenuation: str = "plastimatch",
    pose_jitter: Mapping[str, float | int] | None = None,
    pose_seed: int | Sequence[int] = 0,
    xrays: Mapping[str, np.ndarray] | None = None,
    camera: Camera | None = None,
    poses: Mapping[str, Any] | None = None,
) -> Path:
    """Write one case, whole or not at all: volume, its X-ray pair, labels if any, and case.json. Returns its folder.

    hu: a cube [N, N, N] in HU, axes LPS; it is clipped to ``window`` and rounded to int16 before the X-rays are made.
    spacing, origin: (x, y, z) in mm; spacing is the same along all three. camera_name: a ``camera_preset``.
    labels: [N, N, N], numbers of ``data/labels``. meta: what else case.json shall hold (patient, source, ...).
    projector, attenuation: see ``render_pair``. pose_jitter: {"degrees", "mm"}, drawn from ``pose_seed`` for each view.
    xrays: line integrals {"frontal", "lateral"} to store instead of rendered ones, taken with ``camera`` (None: the
    preset) in ``poses`` (plain values of case.json; None: straight).
    An older case of this name is replaced.
    """
    size, step = hu.shape[0], float(spacing[0])
    if hu.shape != (size,) * 3 or max(spacing) - min(spacing) > 1e-6 * max(spacing):
        raise ValueError(f"{case_id}: a case is a cube of cubic voxels, got {hu.shape} at {tuple(spacing)} mm")
    if labels is not None and labels.shape != hu.shape:
        raise ValueError(f"{case_id}: labels {labels.shape} do not match the volume {hu.shape}")
    arrays = {"volume": np.round(np.clip(hu, window[0], window[1])).astype(np.int16)}
    camera = camera or camera_preset(camera_name, size, step)
    if xrays is None:
        xrays, poses = _rendered(arrays["volume"], step, camera, projector, attenuation, pose_jitter, pose_seed)
    arrays |= {view: np.asarray(image, dtype=np.float32) for view, image in xrays.items()}
    if labels is not None:
        arrays["labels"] = labels.astype(np.uint8)  # type: ignore[assignment]
    record = {
        **_UNKNOWN | {"case_id": case_id, "patient": case_id, "orig_spacing": list(spacing)},
        **(meta or {}),
        "spacing": [float(s) for s in spacing],
        "size": size,
        "origin": [float(o) for o in origin],
        "window": [float(w) for w in window],
        "camera": camera_name,
        "camera_geometry": camera.to_dict(),
        "projector": projector,
        "attenuation": attenuation,
        "poses": poses,
        **_measured(arrays),
    }
    return _write_folder(Path(root) / "cases" / case_id, arrays, record)


def _rendered(
    volume: np.ndarray,
    step: float,
    camera: Camera,
    projector: str,
    attenuation: str,
    jitter: Mapping[str, float | int] | None,
    seed: int | Sequence[int],
) -> tuple[Mapping[str, np.ndarray], dict[str, Any] | None]:
    """The X-ray pair of a cube of ``step`` mm a voxel, and the drawn poses (None: straight)."""
    poses = None if jitter is None else random_poses(np.random.default_rng(seed), jitter["degrees"], jitter["mm"])
    size = len(volume)
    xrays = render_pair(volume, (step,) * 3, camera, size, projector=projector, attenuation=attenuation, jitter=poses)
    return xrays, poses and {view: pose.to_dict() for view, pose in poses.items()}


def finish_dataset(
    root: str | Path, name: str, split: Mapping[str, Sequence[str]], settings: Mapping[str, Any]
) -> None:
    """Write manifest.csv, split.json and dataset.json (last) over the cases that ``split`` names.

    split: {"train": [case ids], "val": [...], "test": [...]}. settings: spacing, size, window, preset (the camera's
    name), seed and further entries of dataset.json; it also gets the names of the labels that occur.
    Raises UserError if a patient is in two splits.
    """
    root = Path(root)
    rows, camera, seen = [], None, {}
    for part in SPLITS:
        for case_id in split.get(part, ()):
            record = read_case(root, case_id)
            if record is None:
                raise UserError(f"{root / 'cases' / case_id}: listed in the split, but not prepared; prepare it again")
            if seen.setdefault(record["patient"], part) != part:
                raise UserError(f"{root}: patient {record['patient']} is in both {seen[record['patient']]} and {part}")
            camera = camera or record["camera_geometry"]
            rows.append({**record, "split": part})
    settings = dict(settings)
    name_of_camera = settings.pop("camera", None)
    preset = settings.pop("preset", None) or name_of_camera or (rows[0]["camera"] if rows else None)
    description = {"format": FORMAT, "name": name, **settings, "preset": preset, "camera": camera}
    description["label_names"] = dict(sorted(label_names(rows).items(), key=lambda pair: int(pair[0])))
    description["num_cases"] = {part: len(split.get(part, ())) for part in SPLITS}
    table = io.StringIO()
    writer = csv.DictWriter(table, MANIFEST_FIELDS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
    write_text(root / "manifest.csv", table.getvalue())
    write_text(root / "split.json", _json({part: list(split.get(part, ())) for part in SPLITS}))
    write_text(root / "dataset.json", _json(description))


def label_names(records: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Names of the label values in cases' records.

    ``label_<value>`` where a source's numbers are its own, and ``mask`` for the 1 of a 0/1 mask.
    """
    names = {}
    for record in records:
        for value in record.get("label_values", ()):
            own = MASK if record.get("labels_are_mask") else f"label_{value}"
            names[str(value)] = own if record.get("labels_are_own") else label_name(value)
    return names


def read_case(root: str | Path, case_id: str) -> dict[str, Any] | None:
    """case.json of a finished case; None where there is none."""
    path = Path(root) / "cases" / case_id / "case.json"
    try:
        record = {"settings": {}, **json.loads(path.read_text(encoding="utf-8"))}
        if all(isinstance(record[key], kind) for key, kind in _READ.items()):
            return record
        fault = None
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        fault = error
    raise UserError(f"{path}: damaged; delete the folder {path.parent} and prepare it again") from fault


def _measured(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Entries of case.json about the arrays themselves."""
    volume, labels = arrays["volume"], arrays.get("labels")
    values = [] if labels is None else np.flatnonzero(np.bincount(labels.ravel())).tolist()
    return {
        "hu_range": [int(volume.min()), int(volume.max())],
        "frontal_scale": float(arrays["frontal"].max()),
        "lateral_scale": float(arrays["lateral"].max()),
        "has_labels": labels is not None,
        "label_values": [value for value in values if value],
    }


def _write_folder(folder: Path, arrays: Mapping[str, np.ndarray], record: Mapping[str, Any]) -> Path:
    with replaced_folder(folder) as partial:
        for stem, values in arrays.items():
            array = np.ascontiguousarray(values)  # the header must not promise another order
            with (partial / f"{stem}.npy").open("wb") as file:
                # write() and not numpy's tofile(): a full disk must be an OSError with its number, not a short count
                np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
                file.write(array.data)
        write_text(partial / "case.json", _json(record))
    return folder


def _json(value: Any) -> str:
    return json.dumps(value, indent=1) + "\n"


def _cell(value: Any) -> str:
    """A manifest cell: numbers of a tuple stand with spaces between."""
    if isinstance(value, list | tuple):
        return " ".join(_cell(v) for v in value)
    return f"{value:.10g}" if isinstance(value, float) else str(value)
