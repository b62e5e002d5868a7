"""Whole data sets to and from X2CT-GAN's HDF5 layout: its cubes are cut already, so that nothing is resampled here.

``import_x2ct`` makes a prepared folder of ``LIDC-HDF5-256``; ``export_x2ct`` makes that layout, with its lists, of any
prepared folder.
"""

import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from diffux2ct.data.case_writer import SPLITS, finish_dataset, read_case, write_case
from diffux2ct.data.prepare_report import PrepareReport, summarize, write_summary
from diffux2ct.data.prepare_settings import PrepareSettings
from diffux2ct.data.sources import RawCase, discover
from diffux2ct.data.sources.x2ct import FILE, scan_name
from diffux2ct.data.split import split_patients, write_lists, write_split
from diffux2ct.data.x2ct_hdf5 import X2ctScan, need_h5py, read_x2ct, write_x2ct, x2ct_views
from diffux2ct.errors import UserError
from diffux2ct.types import VIEWS

SETTINGS = PrepareSettings(size=128, spacing=2.5, camera="x2ct", window=(-1024.0, 1476.0))
VIEWS_STORED = "X2CT-GAN's: 8 bit, from behind and from the patient's left"
_MARGIN = 0.05  # of correlation, by which another orientation must look more like the CT to be reported
_SPACING = 0.005  # how far off the settings' spacing a file may be: the data's 1 mm is 0.999 in some


def import_x2ct(
    raw: str | Path,
    out: str | Path,
    name: str,
    *,
    settings: PrepareSettings = SETTINGS,
    xrays: str = "stored",
    split: Mapping[str, Any] | str | None = None,
    progress: bool = True,
) -> PrepareReport:
    """Make a prepared folder of X2CT-GAN's files; finished cases are kept, so that a stopped run goes on.

    raw: the folder with ``<scan>/ct_xray_data.h5`` and, for split="official", train.txt and test.txt. settings: size
    (the stored 256 are averaged down), spacing (checked), window, camera, projector, attenuation and seed count.
    xrays: "stored" keeps the file's images: 8 bit, each by its own maximum; the lost scale is estimated by rendering
    the CT the same way, and case.json says so. "rendered" makes ours anew. split: see ``split_patients``.
    A file that cannot be used is listed and does not stop the others.
    Raises UserError: nothing to import, other settings before, h5py missing. OSError: a full disk.
    """
    if xrays not in ("stored", "rendered"):
        raise UserError(f"xrays={xrays}: choose stored or rendered")
    settings.check()
    start, out = time.monotonic(), Path(out)
    found = discover("x2ct", raw)
    need_h5py(found.cases[0].path)
    report = PrepareReport(not_used=found.left_out, notes=list(found.notes))
    patients = sorted({case.patient for case in found.cases})
    parts = split_patients(patients, split, settings.seed, official=found.split, notes=report.notes)
    part_of = {patient: part for part, members in parts.items() for patient in members}
    names = {case.path: _case_name(case) for case in found.cases}
    _refuse_changes(out, names.values(), settings.as_dict() | {"xrays": xrays})
    report.split = {part: [] for part in SPLITS}
    records: dict[str, dict[str, Any]] = {}
    for case in tqdm(found.cases, desc="importing", unit="scan", disable=not progress):
        case_id = names[case.path]
        try:
            records[case_id] = _import_case(case, case_id, Path(raw), out, settings, xrays, report)
        except UserError as error:
            report.bad.append((case.path.relative_to(raw).as_posix(), str(error)))
        else:
            report.split[part_of[case.patient]].append(case_id)
    if not records:
        raise UserError(f"{raw}: none of {len(names)} files could be used; the first: {report.bad[0][1]}")
    report.notes += _flipped(records)
    report.summary = summarize(name, report.split, records, report)
    write_summary(out, report.summary)
    write_split(out / "split_patients.json", name, settings.seed, parts)
    finish_dataset(out, name, report.split, settings.as_dict() | {"source": "x2ct", "xrays": xrays})
    report.seconds = time.monotonic() - start
    return report


def export_x2ct(
    root: str | Path, out: str | Path, *, views: str = "folder", progress: bool = True
) -> PrepareReport:
    """Write every case of a prepared folder as ``<out>/<case>/ct_xray_data.h5``, and train.txt, val.txt, test.txt.

    root: a folder that ``prepare`` made. views: "folder" writes its X-rays; "x2ct" renders the volume anew from behind
    and from the left, as X2CT-GAN's data are. Files that are there are written again.
    Raises UserError: root is no prepared folder, h5py is missing, or a file cannot be written.
    """
    if views not in ("folder", "x2ct"):
        raise UserError(
            f"views={views}: choose folder (the X-rays as prepared) or x2ct (rendered as X2CT-GAN's)"
        )
    start, root, out = time.monotonic(), Path(root), Path(out)
    try:
        parts = json.loads((root / "split.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{root}: no prepared folder (split.json is missing or damaged); prepare it first"
        ) from error
    if out.resolve() == root.resolve():
        raise UserError(f"{out}: is the prepared folder itself; give another out=")
    report = PrepareReport(split={part: list(parts.get(part, ())) for part in SPLITS})
    cases = [case_id for part in SPLITS for case_id in report.split[part]]
    for case_id in tqdm(cases, desc="exporting", unit="case", disable=not progress):
        _export_case(root, case_id, out, views)
        report.written += 1
    write_lists(out, report.split)
    report.seconds = time.monotonic() - start
    return report


def _import_case(
    case: RawCase,
    case_id: str,
    raw: Path,
    out: Path,
    settings: PrepareSettings,
    xrays: str,
    report: PrepareReport,
) -> dict[str, Any]:
    done = read_case(out, case_id)
    if done is not None:
        report.found += 1
        return done
    scan = read_x2ct(case.path, settings.size)
    if abs(scan.spacing[0] - settings.spacing) > _SPACING * settings.spacing:
        raise UserError(
            f"{case.path}: {settings.size} voxels of its cube are {scan.spacing[0]:g} mm each, not "
            f"{settings.spacing:g}; set spacing={scan.spacing[0]:g}"
        )
    report.notes += scan.notes
    images, told = _stored_xrays(scan, settings, xrays)
    meta = {
        "patient": scan.attrs.get("patient", case.patient),
        "source": case.path.relative_to(raw).as_posix(),
        "orig_spacing": list(scan.spacing),
        "crop": "as stored",
        "settings": settings.as_dict() | {"xrays": xrays},
        **told,
    }
    # Written aside first: the stored X-rays take the place of the rendered ones before the case appears.
    aside = out / ".importing"
    try:
        folder = write_case(
            aside,
            case_id,
            scan.hu,
            (settings.spacing,) * 3,
            scan.origin if "origin" in scan.attrs else (-(settings.size - 1) / 2 * settings.spacing,) * 3,
            settings.camera,
            labels=scan.labels,
            meta=meta,
            window=settings.window,
            projector=settings.projector,
            attenuation=settings.attenuation,
        )
        record: dict[str, Any] = json.loads((folder / "case.json").read_text(encoding="utf-8"))
        for view, image in images.items():
            np.save(folder / f"{view}.npy", image)
            record[f"{view}_scale"] = float(image.max())
        (folder / "case.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        (out / "cases").mkdir(parents=True, exist_ok=True)
        os.replace(folder, out / "cases" / case_id)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    report.written += 1
    return record


def _case_name(case: RawCase) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", scan_name(case.path) or case.patient).strip(".") or "case"


def _flipped(records: Mapping[str, Mapping[str, Any]]) -> list[str]:
    odd = [case_id for case_id, record in records.items() if record.get("xrays_look")]
    if not odd:
        return []
    return [
        f"{len(odd)} scans' X-rays look flipped against their CT, e.g. {odd[0]} (case.json: xrays_look); they are kept "
        "as stored: check these files"
    ]


def _refuse_changes(out: Path, names: Iterable[str], settings: dict[str, Any]) -> None:
    for name in names:
        record = read_case(out, name)
        if record is not None and record.get("settings") != settings:
            raise UserError(
                f"{out}: case {name} was imported with other settings, {record.get('settings')}; "
                f"give another out=, or delete {out}"
            )


def _stored_xrays(
    scan: X2ctScan, settings: PrepareSettings, xrays: str
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The file's X-rays as line integrals, and what case.json shall tell of them."""
    if scan.xrays is None or xrays == "rendered":
        return {}, {"xrays": "rendered"}
    if scan.scales is not None:  # our own file
        told = {"xrays": "stored", "xrays_scale": "stored", "views": scan.attrs.get("views", "ours")}
        return {view: image * np.float32(scan.scales[view]) for view, image in scan.xrays.items()}, told
    hu = np.clip(scan.hu, *settings.window)
    rendered = x2ct_views(hu, scan.spacing, scan.xrays["frontal"].shape[0])
    look = {view: orientation(scan.xrays[view], rendered[view]) for view in VIEWS}
    told: dict[str, Any] = {"xrays": "stored", "xrays_scale": "estimated", "views": VIEWS_STORED}
    if odd := {view: name for view, name in look.items() if name != "as the CT"}:
        told["xrays_look"] = odd
    return {view: image * np.float32(rendered[view].max()) for view, image in scan.xrays.items()}, told


def orientation(image: np.ndarray, rendered: np.ndarray) -> str:
    """Which flip of an X-ray looks most like the rendered one: "as the CT" unless another is clearly better."""
    flips = {
        "as the CT": image,
        "mirrored": image[:, ::-1],
        "upside down": image[::-1],
        "turned around": image[::-1, ::-1],
    }
    if image.shape != rendered.shape or image.std() == 0 or rendered.std() == 0:
        return "as the CT"
    like = {name: np.corrcoef(flip.ravel(), rendered.ravel())[0, 1] for name, flip in flips.items()}
    best = max(like, key=lambda name: like[name])
    return best if like[best] > like["as the CT"] + _MARGIN else "as the CT"


def _export_case(root: Path, case_id: str, out: Path, views: str) -> None:
    record = read_case(root, case_id)
    if record is None:
        raise UserError(f"{root / 'cases' / case_id}: listed in split.json, but not there; prepare it again")
    folder = root / "cases" / case_id
    try:
        hu = np.load(folder / "volume.npy")
        xrays = {view: np.load(folder / f"{view}.npy") for view in VIEWS}
        labels = np.load(folder / "labels.npy") if (folder / "labels.npy").is_file() else None
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: cannot be read ({error}); prepare it again") from error
    if views == "x2ct":
        xrays = x2ct_views(hu, record["spacing"], hu.shape[0])
    attrs = {
        "patient": record["patient"],
        "case": case_id,
        "camera": record["camera_geometry"],
        "window": record["window"],
        "views": VIEWS_STORED if views == "x2ct" else record.get("views", "ours"),
    }
    write_x2ct(
        out / case_id / f"{FILE}.h5",
        hu,
        record["spacing"],
        xrays,
        origin=record["origin"],
        labels=labels,
        attrs=attrs,
    )
