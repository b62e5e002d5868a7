"""Carry out a plan of preparation: make the cases that are missing and write the tables, or only look.

The same for scans and for X2CT-GAN's files; what is done with one of them is the caller's.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from tqdm import tqdm

from diffux2ct.atomic import PARTIALS
from diffux2ct.data.preparation.plan import Plan
from diffux2ct.data.preparation.report import PrepareReport, summarize, write_summary
from diffux2ct.data.preparation.same_scan import find_same, holds, made_of_another, same_scan_note
from diffux2ct.data.preparation.scan_job import DISK_FULL, ScanJob, ScanResult
from diffux2ct.data.preparation.settings import PrepareSettings, camera_changed, changed
from diffux2ct.data.prepared.split import write_split
from diffux2ct.data.prepared.workers import num_cores, run_in_workers
from diffux2ct.data.prepared.writer import SPLITS, finish_dataset, read_case
from diffux2ct.errors import UserError

Work = Callable[[ScanJob], ScanResult]
Repeats = dict[str, dict[str, str]]
"""Scans that another patient has too, by name: {"same_as": the name that is used, "sha256": of the files left out}."""


def run_plan(
    name: str,
    raw: str | Path,
    out: Path,
    plan: Plan,
    work: Work,
    report: PrepareReport,
    *,
    workers: int | None,
    progress: bool,
) -> PrepareReport:
    """Do ``work`` for every job that still has cases to write, then write the tables; returns the report, filled.

    Raises UserError: ``out`` was prepared otherwise or of other scans, a full disk, no scan could be used.
    """
    start = time.monotonic()
    _refuse_inside(Path(raw), out)
    repeated = _known_repeats(out, plan.jobs)
    todo = _check_resume(out, [job for job in plan.jobs if job.base not in repeated])
    _check_space(out, todo, plan.jobs[0].settings)
    waiting = {job.base for job in todo} | set(repeated)
    done = [job for job in plan.jobs if job.base not in waiting]
    written: dict[str, int] = {}
    for job, result in run_jobs(work, todo, workers, progress):
        written[job.base] = result.written
        if result.reason:
            report.bad.append((job.source, result.reason))
        else:
            done.append(job)
    if not done:
        source, reason = min(report.bad)
        raise UserError(
            f"{raw}: none of {len(report.bad)} scans could be used; the first: {source}: {reason}"
        )
    done.sort(key=lambda job: job.base)
    kept = _finish(name, out, plan, done, repeated, report)
    # Only of what is in the split: not what a repeated scan or a scan with a bad crop had for a while.
    report.written = sum(written.get(job.base, 0) for job in kept)
    report.found = sum(len(job.case_ids) for job in kept) - report.written
    report.seconds = time.monotonic() - start
    return report


def survey_plan(
    plan: Plan, work: Work, report: PrepareReport, *, workers: int | None, progress: bool
) -> tuple[list[dict[str, Any]], PrepareReport]:
    """What ``run_plan`` would use: a row a scan, and the report; ``work`` looks and writes nothing."""
    found: dict[str, dict[str, Any]] = {}
    for job, result in run_jobs(work, plan.jobs, workers, progress):
        if result.reason:
            report.bad.append((job.source, result.reason))
        else:
            found[job.base] = result.found
    usable = [job for job in plan.jobs if job.base in found]
    repeats = find_same(usable, {base: what["content_sha256"] for base, what in found.items()}, report)
    kept = [job for job in usable if job.base not in repeats]
    report.bad.sort()
    report.not_used.sort()
    report.notes += [note for job in kept for note in found[job.base]["notes"]]
    report.split = _case_split(plan, kept)
    report.notes += _empty_parts(report)
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
) -> list[ScanJob]:
    """Drop scans that another patient has, then write the tables; dataset.json, which says finished, last.

    Returns the scans whose cases the tables name.
    """
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
    for partial in (out / "cases").glob(PARTIALS):  # of a killed run
        shutil.rmtree(partial, ignore_errors=True)
    report.bad.sort()
    report.not_used.sort()
    report.notes += [note for job in kept for note in first[job.base].get("notes", ())]
    report.split = _case_split(plan, kept)
    report.notes += _empty_parts(report)
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
    return kept


def _case_split(plan: Plan, jobs: Sequence[ScanJob]) -> dict[str, list[str]]:
    return {
        part: [case_id for job in jobs if plan.part_of(job) == part for case_id in job.case_ids]
        for part in SPLITS
    }


def _empty_parts(report: PrepareReport) -> list[str]:
    """A note a part without which nothing can be trained, or nothing scored."""
    needed_for = {"train": "train on", "test": "score a model on"}
    return [
        f"no case is in {part}: there is nothing to {use}; dataset.prepare.split.test says who is held out"
        for part, use in needed_for.items()
        if not report.split[part]
    ]


def _refuse_inside(raw: Path, out: Path) -> None:
    """UserError where the cases would be written among the scans: the next run would look through them for scans."""
    if out.resolve().is_relative_to(raw.resolve()):
        raise UserError(f"{out}: lies in the folder of the scans, raw={raw}; give an out= outside of it")


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


def _check_resume(out: Path, jobs: Sequence[ScanJob]) -> list[ScanJob]:
    """Jobs that still have cases to write; UserError if what is there was prepared differently, or of other scans."""
    if (out / "dataset.json").is_file() and jobs:
        before = json.loads((out / "dataset.json").read_text(encoding="utf-8"))
        settings, told = jobs[0].settings, {**before, "camera": before["preset"]}
        geometry = None if before.get("xrays") == "stored" else before["camera"]
        _refuse(out, out.name, changed(settings.as_dict(), told) or camera_changed(settings, geometry))
    todo = []
    for job in jobs:
        found = {i: record for i in job.case_ids if (record := read_case(out, i)) is not None}
        # First: labels that come or go also change how their numbers are taken, which says less.
        for what, others in made_of_another(job, found).items():
            raise UserError(
                f"{out}: case {', '.join(others)} was made {what}; give another out=, "
                f"or delete {'the case' if len(others) == 1 else 'these cases'} in {out / 'cases'}"
            )
        for case_id, record in found.items():
            now = job.settings.as_dict() | {"source": job.source}
            now |= {"rescale": job.rescale and list(job.rescale), "remap": job.raw.remap}
            before = {key: record.get(key) for key in ("source", "rescale", "remap")}
            before |= record.get("settings", {})
            # Stored X-rays were made by whatever camera they came with.
            geometry = None if record.get("xrays") == "stored" else record.get("camera_geometry")
            _refuse(out, f"case {case_id}", changed(now, before) or camera_changed(job.settings, geometry))
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


# Run jobs on scans, in this process or in several; what ends them all becomes one line.


def run_jobs(
    work: Work, jobs: Sequence[ScanJob], workers: int | None, progress: bool = True
) -> Iterator[tuple[ScanJob, ScanResult]]:
    """(job, result) as scans finish, in any order. workers: processes; None = all cores.

    Raises UserError for a full disk and for a killed worker.
    """
    workers = max(1, min(num_cores() if workers is None else workers, len(jobs)))
    with tqdm(total=len(jobs), desc="preparing", unit="scan", disable=not progress or not jobs) as bar:
        try:
            for pair in run_in_workers(work, jobs, workers, _use_one_thread):
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


def _use_one_thread() -> None:
    from diffux2ct.data.io.volume import use_threads

    use_threads(1)
