"""Raw CT scans -> the prepared folder that training reads (docs/data.md).

A scan is oriented to LPS, low-passed and resampled to cubic voxels, cut to a cube (border -1024 HU), clipped to the
HU window, and only then projected: the X-rays show exactly what the target volume holds.
"""

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from diffux2ct.data.case_writer import SPLITS, finish_dataset, read_case, write_case
from diffux2ct.data.prepare_plan import Plan, Request, make_plan
from diffux2ct.data.prepare_report import PrepareReport, summarize, write_summary
from diffux2ct.data.prepare_settings import PrepareSettings, camera_changed, changed
from diffux2ct.data.same_scan import find_same, holds, made_of_another, same_scan_note
from diffux2ct.data.scan_job import ScanJob, prepare_scan, survey_scan
from diffux2ct.data.scan_pool import run_jobs
from diffux2ct.data.split import write_split
from diffux2ct.errors import UserError

__all__ = ["PrepareReport", "PrepareSettings", "finish_dataset", "prepare", "survey", "write_case"]

Repeats = dict[str, dict[str, str]]
"""Scans that another patient has too, by name: {"same_as": the name that is used, "sha256": of the files left out}."""


def prepare(
    name: str,
    raw: str | Path,
    out: str | Path,
    *,
    workers: int | None = None,
    progress: bool = True,
    **request: Unpack[Request],
) -> PrepareReport:
    """Prepare every scan under ``raw`` into ``out``; finished cases are kept, so that a stopped run goes on.

    request: see ``Request``. workers: processes (None = all cores).
    A scan that cannot be used is listed in the report and does not stop the others; one that two patients have is used
    once. Raises UserError for a raw folder without scans, an ``out`` prepared with other settings, a full disk, and
    when no scan could be used.
    """
    start = time.monotonic()
    out = Path(out)
    plan = make_plan(raw, out, **request)
    report = PrepareReport(not_used=plan.not_used, notes=plan.notes)
    repeated = _known_repeats(out, plan.jobs)
    todo = _check_resume(out, [job for job in plan.jobs if job.base not in repeated], report)
    _check_space(out, todo, plan.jobs[0].settings)
    waiting = {job.base for job in todo} | set(repeated)
    done = [job for job in plan.jobs if job.base not in waiting]
    for job, result in run_jobs(prepare_scan, todo, workers, progress):
        report.written += result.written
        if result.reason:
            report.bad.append((job.source, result.reason))
        else:
            done.append(job)
    if not done:
        source, reason = min(report.bad)
        raise UserError(f"{raw}: none of {len(plan.jobs)} scans could be used; the first: {source}: {reason}")
    done.sort(key=lambda job: job.base)
    _finish(name, out, plan, done, repeated, report)
    report.seconds = time.monotonic() - start
    return report


def survey(
    raw: str | Path,
    *,
    workers: int | None = None,
    progress: bool = True,
    **request: Unpack[Request],
) -> tuple[list[dict[str, Any]], PrepareReport]:
    """What ``prepare`` with these arguments would use, and why it would leave out the rest; nothing is written.

    Returns a row a scan (case, patient, split, source, size, spacing, orientation, labels, num_cases) and a report with
    bad, not_used and notes. Reads every scan, which is the slow half of reading, filtering and projecting: a header
    tells neither whether values are HU nor whether a file is whole or the same scan as another.
    """
    plan = make_plan(raw, "", **request)
    report = PrepareReport(not_used=plan.not_used, notes=plan.notes)
    found: dict[str, dict[str, Any]] = {}
    for job, result in run_jobs(survey_scan, plan.jobs, workers, progress):
        if result.reason:
            report.bad.append((job.source, result.reason))
        else:
            found[job.base] = result.found
    usable = [job for job in plan.jobs if job.base in found]
    repeats = find_same(usable, {base: what["content_sha256"] for base, what in found.items()}, report)
    report.bad.sort()
    report.notes += [note for job in usable for note in found[job.base]["notes"]]
    kept = [job for job in usable if job.base not in repeats]
    report.split = _case_split(plan, kept)
    return [_row(plan, job, found[job.base]) for job in kept], report


def _row(plan: Plan, job: ScanJob, found: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "case": job.base,
        "patient": job.raw.patient,
        "split": plan.part_of(job),
        "source": job.source,
        "size": found["orig_size"],
        "spacing": found["orig_spacing"],
        "orientation": found["orig_orientation"],
        "labels": found["has_labels"],
        "num_cases": len(job.case_ids),
    }


def _finish(
    name: str, out: Path, plan: Plan, done: list[ScanJob], repeated: Repeats, report: PrepareReport
) -> None:
    """Drop scans that another patient has, then write the tables; dataset.json, which says finished, last."""
    first = {job.base: read_case(out, job.case_ids[0]) or {} for job in done}
    hashes = {
        base: record.get("content_sha256") or record.get("sha256", "") for base, record in first.items()
    }
    repeats = find_same(done, hashes, report)
    by_base = {job.base: job for job in plan.jobs}
    for base in repeats:
        for case_id in by_base[base].case_ids:
            shutil.rmtree(out / "cases" / case_id, ignore_errors=True)
    for base, known in repeated.items():
        report.not_used.append((by_base[base].source, same_scan_note(by_base[known["same_as"]])))
    kept = [job for job in done if job.base not in repeats]
    for partial in (out / "cases").glob(".*.partial"):  # of a killed run
        shutil.rmtree(partial, ignore_errors=True)
    report.bad.sort()
    report.not_used.sort()
    report.notes += [note for job in kept for note in first[job.base].get("notes", ())]
    report.split = _case_split(plan, kept)
    records = {i: read_case(out, i) or {} for ids in report.split.values() for i in ids}
    report.summary = summarize(name, report.split, records, report)
    found = {
        base: {"same_as": same, "sha256": first[base].get("sha256", "")} for base, same in repeats.items()
    }
    report.summary["repeats"] = dict(sorted((repeated | found).items()))
    settings = plan.jobs[0].settings
    write_summary(out, report.summary)
    write_split(out / "split_patients.json", name, settings.seed, plan.patients)
    told = plan.told | {"settings_hash": settings.hash()}
    finish_dataset(out, name, report.split, settings.as_dict() | told)


def _case_split(plan: Plan, jobs: Sequence[ScanJob]) -> dict[str, list[str]]:
    return {
        part: [case_id for job in jobs if plan.part_of(job) == part for case_id in job.case_ids]
        for part in SPLITS
    }


def _known_repeats(out: Path, jobs: Sequence[ScanJob]) -> Repeats:
    """Scans that an earlier run found to be another patient's too: they need no second look while they are the same."""
    try:
        known = json.loads((out / "summary.json").read_text(encoding="utf-8")).get("repeats", {})
    except (OSError, ValueError):
        return {}
    whole = {job.base for job in jobs if all(read_case(out, case_id) for case_id in job.case_ids)}
    repeats = {}
    for job in jobs:
        told = known.get(job.base)
        # An older summary tells only the other's name.
        if isinstance(told, dict) and told["same_as"] in whole and holds(job, told["sha256"]):
            repeats[job.base] = told
    return repeats


def _check_resume(out: Path, jobs: Sequence[ScanJob], report: PrepareReport) -> list[ScanJob]:
    """Jobs that still have cases to write; UserError if what is there was prepared differently, or of other scans."""
    if (out / "dataset.json").is_file() and jobs:
        before = json.loads((out / "dataset.json").read_text(encoding="utf-8"))
        settings, told = jobs[0].settings, {**before, "camera": before["preset"]}
        geometry = None if before.get("xrays") == "stored" else before["camera"]
        _refuse(out, out.name, changed(settings.as_dict(), told) or camera_changed(settings, geometry))
    todo = []
    for job in jobs:
        found = {i: record for i in job.case_ids if (record := read_case(out, i)) is not None}
        for case_id, record in found.items():
            now = job.settings.as_dict() | {"source": job.source}
            now |= {"rescale": job.rescale and list(job.rescale), "remap": job.raw.remap}
            before = {key: record.get(key) for key in ("source", "rescale", "remap")}
            before |= record.get("settings", {})
            # Stored X-rays were made by whatever camera they came with.
            geometry = None if record.get("xrays") == "stored" else record.get("camera_geometry")
            _refuse(out, f"case {case_id}", changed(now, before) or camera_changed(job.settings, geometry))
        if others := made_of_another(job, found):
            raise UserError(
                f"{out}: case {', '.join(others)} was made from another content of {job.raw.path}; give another out=, "
                f"or delete {'the case' if len(others) == 1 else 'these cases'} in {out / 'cases'}"
            )
        report.found += len(found)
        if len(found) < len(job.case_ids):
            todo.append(job)
    return todo


def _refuse(out: Path, what: str, differences: Sequence[str]) -> None:
    if differences:
        raise UserError(
            f"{out}: {what} was prepared with other settings, {', '.join(differences)}; "
            f"give another out=, or delete {out}"
        )


def _check_space(out: Path, jobs: Sequence[ScanJob], settings: PrepareSettings) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be made ({error.strerror}); give another out=") from error
    n = settings.size
    need = sum(len(job.case_ids) * ((3 if job.raw.labels else 2) * n**3 + 8 * n**2) for job in jobs)
    free = shutil.disk_usage(out).free
    if free < need:
        raise UserError(
            f"{out}: {need / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB free; free space or give another out="
        )
