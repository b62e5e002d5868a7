"""Whole data sets to and from X2CT-GAN's HDF5 layout: its cubes are cut already, so that nothing is resampled here.

``import_x2ct`` makes a prepared folder of ``LIDC-HDF5-256``; ``export_x2ct`` makes that layout, with its lists, of any
prepared folder. What was exported comes back as it was: its files tell camera, window and patient.
"""

import json
import shutil
import time
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from diffux2ct.data.io.x2ct.file import STORABLE, write_x2ct, x2ct_views
from diffux2ct.data.preparation.plan import Plan
from diffux2ct.data.preparation.report import PrepareReport
from diffux2ct.data.preparation.runner import run_plan, survey_plan
from diffux2ct.data.preparation.settings import PrepareSettings
from diffux2ct.data.preparation.x2ct.case import VIEWS_STORED, import_file, survey_file
from diffux2ct.data.preparation.x2ct.plan import SETTINGS, plan_x2ct
from diffux2ct.data.prepared.split import write_lists
from diffux2ct.data.prepared.writer import SPLITS, read_case
from diffux2ct.data.sources.x2ct import FILE
from diffux2ct.errors import UserError
from diffux2ct.types import VIEWS
from diffux2ct.xray.camera import camera_preset


def import_x2ct(
    raw: str | Path,
    out: str | Path,
    name: str,
    *,
    settings: PrepareSettings = SETTINGS,
    asked: Collection[str] = (),
    xrays: str = "stored",
    split: Mapping[str, Any] | str | None = None,
    workers: int | None = 1,
    progress: bool = True,
) -> PrepareReport:
    """Make a prepared folder of X2CT-GAN's files; finished cases are kept, so that a stopped run goes on.

    raw: the folder with ``<scan>/ct_xray_data.h5`` and, perhaps, train.txt, val.txt and test.txt. settings: size (the
    stored 256 are averaged down), spacing (checked), window, camera, projector, attenuation and seed count; files that
    ``export_x2ct`` wrote tell theirs, which hold but for those that differ from ``SETTINGS`` or are named in ``asked``.
    xrays: "stored" keeps the file's images: 8 bit, each by its own maximum; the lost scale is estimated by rendering
    the CT the same way, and case.json says so. "rendered" makes ours anew. split: see ``split_patients``; None: the
    lists that lie in raw, or ``SPLIT``. workers: processes (None = all cores).
    A file that cannot be used is listed and does not stop the others; a scan that two patients have is used once.
    Raises UserError: nothing to import, settings without effect, other settings before, h5py missing, a full disk.
    """
    out = Path(out)
    plan, report = plan_x2ct(raw, out, settings, asked, xrays, split)
    _refuse_other_xrays(out, plan, xrays)
    for left in out.glob(".*.importing"):  # of a killed run
        shutil.rmtree(left, ignore_errors=True)
    work = partial(import_file, xrays=xrays)
    return run_plan(name, raw, out, plan, work, report, workers=workers, progress=progress)


def survey_x2ct(
    raw: str | Path,
    *,
    settings: PrepareSettings = SETTINGS,
    asked: Collection[str] = (),
    xrays: str = "stored",
    split: Mapping[str, Any] | str | None = None,
    workers: int | None = 1,
    progress: bool = True,
) -> tuple[list[dict[str, Any]], PrepareReport]:
    """What ``import_x2ct`` with these arguments would use, as ``prepare.survey`` tells it; nothing is written."""
    plan, report = plan_x2ct(raw, Path(), settings, asked, xrays, split)
    return survey_plan(plan, survey_file, report, workers=workers, progress=progress)


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
        report.notes += _export_case(root, case_id, out, views)
        report.written += 1
    write_lists(out, report.split)
    report.seconds = time.monotonic() - start
    return report


def _refuse_other_xrays(out: Path, plan: Plan, xrays: str) -> None:
    for job in plan.jobs:
        before = ((read_case(out, job.base) or {}).get("settings") or {}).get("xrays", xrays)
        if before != xrays:
            raise UserError(
                f"{out}: case {job.base} was prepared with other settings, xrays={before} (now {xrays}); "
                f"give another out=, or delete {out}"
            )


def _export_case(root: Path, case_id: str, out: Path, views: str) -> list[str]:
    """Write one case; returns notes."""
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
    attrs = {"patient": record["patient"], "case": case_id, "window": record["window"]}
    attrs["labels_are_own"] = int(record.get("labels_are_own", False))
    if views == "x2ct":
        xrays = x2ct_views(hu, record["spacing"], hu.shape[0])
        camera = camera_preset("x2ct", hu.shape[0], record["spacing"]).to_dict()
        attrs |= {
            "camera": camera,
            "views": VIEWS_STORED,
            "projector": "joseph",
            "attenuation": "plastimatch",
        }
    else:
        attrs |= {"camera": record["camera_geometry"], "views": record.get("views", "ours")}
        attrs |= {key: record[key] for key in ("projector", "attenuation") if key in record}
        attrs |= {key: record[key] for key in ("poses", "xrays_scale") if record.get(key)}
    write_x2ct(
        out / case_id / f"{FILE}.h5",
        hu,
        record["spacing"],
        xrays,
        origin=record["origin"],
        labels=labels,
        attrs=attrs,
    )
    if hu.min() < STORABLE[0] or hu.max() > STORABLE[1]:
        return [
            f"{folder}: HU {hu.min()} to {hu.max()} clipped to the {STORABLE[0]} to {STORABLE[1]} that it holds"
        ]
    return []
