"""Raw CT scans -> the prepared folder that training reads (docs/data.md).

A scan is oriented to LPS, low-passed and resampled to cubic voxels, cut to a cube (border -1024 HU), clipped to the
HU window, and only then projected: the X-rays show exactly what the target volume holds.
"""

import json
import os
import re
import shutil
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from diffux2ct.data.case_writer import finish_dataset, read_case, write_case
from diffux2ct.data.scan_job import DISK_FULL, PrepareSettings, ScanJob, prepare_scan
from diffux2ct.data.sources import RawCase, discover
from diffux2ct.data.split import split_patients
from diffux2ct.errors import UserError
from diffux2ct.geometry.camera import camera_preset

__all__ = ["PrepareReport", "PrepareSettings", "finish_dataset", "prepare", "write_case"]


@dataclass
class PrepareReport:
    """What a preparation did: cases written now, cases found finished, scans left out with reasons, notes."""

    written: int = 0
    found: int = 0
    bad: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    split: dict[str, list[str]] = field(default_factory=dict)
    seconds: float = 0.0


def prepare(
    name: str,
    raw: str | Path,
    out: str | Path,
    *,
    source: str = "folder",
    settings: PrepareSettings | None = None,
    crops: int = 0,
    test_crops: int | None = None,
    split: Mapping[str, Any] | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> PrepareReport:
    """Prepare every scan under ``raw`` into ``out``; finished cases are kept, so that a stopped run goes on.

    crops: random crops a scan instead of its centre (0); test_crops: the same for val and test patients (None = crops).
    split: {"val": ..., "test": ...}, see ``split_patients``. workers: processes (None = all cores).
    A scan that cannot be used is listed in the report and does not stop the others. Raises UserError for a raw folder
    without scans, an ``out`` prepared with other settings, a full disk, and when no scan could be used.
    """
    start = time.monotonic()
    settings = settings or PrepareSettings()
    _check(settings, crops, test_crops)
    raw, out = Path(raw), Path(out)
    scans = discover(source, raw)
    patients = split_patients(sorted({scan.patient for scan in scans}), split or {}, settings.seed)
    part_of = {patient: part for part, members in patients.items() for patient in members}
    held_out = crops if test_crops is None else test_crops
    jobs = [
        ScanJob(out, raw, scan, base, crops if part_of[scan.patient] == "train" else held_out, settings)
        for scan, base in zip(scans, _case_names(scans), strict=True)
    ]
    report = PrepareReport()
    todo = _check_resume(out, jobs, report)
    _check_space(out, todo, settings)
    done = [job for job in jobs if job not in todo]
    for job, result in _run(todo, workers, progress):
        report.notes += result.notes
        report.written += result.written
        if result.reason:
            report.bad.append((job.source, result.reason))
        else:
            done.append(job)
    report.bad.sort()
    if not done:
        raise UserError(f"{raw}: none of {len(jobs)} scans could be used; the first: {report.bad[0][1]}")
    done.sort(key=lambda job: job.base)
    report.split = {
        part: [case_id for job in done if part_of[job.raw.patient] == part for case_id in job.case_ids]
        for part in ("train", "val", "test")
    }
    report.notes += _duplicates(out, done)
    told = {"source": source, "crops": crops, "test_crops": held_out, "settings_hash": settings.hash()}
    finish_dataset(out, name, report.split, settings.as_dict() | told)
    report.seconds = time.monotonic() - start
    return report


def _run(jobs: list[ScanJob], workers: int | None, progress: bool):
    """Yield (job, result) as scans finish; turns a full disk and a killed worker into one line."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = max(1, min(cores if workers is None else workers, len(jobs)))
    bar = tqdm(total=len(jobs), desc="preparing", unit="scan", disable=not progress or not jobs)
    with bar:
        try:
            for pair in _results(jobs, workers):
                bar.update()
                yield pair
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            raise UserError(
                f"{jobs[0].root}: the disk is full; free space and run the same command again, finished cases are kept"
            ) from error
        except BrokenProcessPool as error:
            raise UserError(
                f"{jobs[0].root}: a worker was killed (out of memory?); "
                f"run again with fewer, workers={workers // 2 or 1}"
            ) from error


def _results(jobs: list[ScanJob], workers: int):
    if workers == 1:
        for job in jobs:
            yield job, prepare_scan(job)
        return
    # spawn: a forked child of a process that has used torch's threads can hang.
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start_worker)
    try:
        futures = {pool.submit(prepare_scan, job): job for job in jobs}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    """One thread each: the processes already fill the cores."""
    from diffux2ct.data.volume_io import use_threads

    torch.set_num_threads(1)
    use_threads(1)


def _check(settings: PrepareSettings, crops: int, test_crops: int | None) -> None:
    if settings.size < 8:
        raise UserError(f"size={settings.size}: give the voxels per side, at least 8")
    if not settings.spacing > 0:
        raise UserError(f"spacing={settings.spacing}: give the voxel side in mm, above 0")
    if not settings.window[0] < settings.window[1]:
        raise UserError(f"window={list(settings.window)}: give [lower, upper] in HU")
    camera_preset(
        settings.camera, settings.size, float(settings.spacing)
    )  # its own UserError for an unknown name
    if crops < 0 or (test_crops or 0) < 0:
        raise UserError(
            f"crops={crops}, test_crops={test_crops}: give a count, or 0 for one crop at the centre"
        )


def _case_names(scans: list[RawCase]) -> list[str]:
    """A folder name a scan: the patient's, made safe, numbered where a patient has several scans."""
    names: list[str] = []
    for scan in scans:
        safe = re.sub(r"[^A-Za-z0-9._-]+", "_", scan.patient).strip("._") or "case"
        name, count = safe, 1
        while name in names:
            count += 1
            name = f"{safe}_s{count}"
        names.append(name)
    return names


def _check_resume(out: Path, jobs: list[ScanJob], report: PrepareReport) -> list[ScanJob]:
    """Jobs that still have cases to write; UserError if what is there was prepared differently."""
    if (out / "dataset.json").is_file():
        description = json.loads((out / "dataset.json").read_text(encoding="utf-8"))
        _refuse_changes(
            out, out.name, jobs[0].settings.as_dict(), {**description, "camera": description["preset"]}
        )
    todo = []
    for job in jobs:
        records = [read_case(out, case_id) for case_id in job.case_ids]
        for case_id, record in zip(job.case_ids, records, strict=True):
            if record is not None:
                before = {**record.get("settings", {}), "source": record.get("source")}
                _refuse_changes(
                    out, f"case {case_id}", job.settings.as_dict() | {"source": job.source}, before
                )
                report.found += 1
        if None in records:
            todo.append(job)
    return todo


def _refuse_changes(out: Path, what: str, now: dict[str, Any], before: dict[str, Any]) -> None:
    changed = [f"{key}={before.get(key)} (now {now[key]})" for key in now if before.get(key) != now[key]]
    if changed:
        raise UserError(
            f"{out}: {what} was prepared with other settings, {', '.join(changed)}; give another out=, or delete {out}"
        )


def _check_space(out: Path, jobs: list[ScanJob], settings: PrepareSettings) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be made ({error.strerror}); give another out=") from error
    n = settings.size
    need = sum(len(job.case_ids) for job in jobs) * (2 * n**3 + 8 * n**2)
    free = shutil.disk_usage(out).free
    if free < need:
        raise UserError(
            f"{out}: {need / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB free; free space or give another out="
        )


def _duplicates(out: Path, jobs: list[ScanJob]) -> list[str]:
    """Notes on the same scan under two patients' names: it could stand in train and test."""
    owners: dict[str, set[str]] = {}
    for job in jobs:
        record = read_case(out, job.case_ids[0]) or {}
        owners.setdefault(record.get("sha256", ""), set()).add(job.raw.patient)
    return [
        f"patients {', '.join(sorted(who))} have the same scan" for who in owners.values() if len(who) > 1
    ]
