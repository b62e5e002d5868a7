"""Raw CT scans -> the prepared folder that training reads (docs/data.md).

A scan is oriented to LPS, low-passed and resampled to cubic voxels, cut to a cube (border -1024 HU), clipped to the
HU window, and only then projected: the X-rays show exactly what the target volume holds. X2CT-GAN's files are cubes
that are cut already (``stored``).
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from diffux2ct.data.io.volume import use_threads
from diffux2ct.data.preparation.plan import Plan, Request, make_plan
from diffux2ct.data.preparation.report import PrepareReport, summarize, write_summary
from diffux2ct.data.preparation.same_scan import find_same, holds, made_of_another, same_scan_note
from diffux2ct.data.preparation.scan_job import ScanJob, ScanResult, prepare_scan, survey_scan
from diffux2ct.data.preparation.settings import PrepareSettings, camera_changed, changed
from diffux2ct.data.prepared.dataset import read_description
from diffux2ct.data.prepared.split import read_split, write_split
from diffux2ct.data.prepared.workers import num_cores, run_in_workers
from diffux2ct.data.prepared.writer import SPLITS, finish_dataset, read_case
from diffux2ct.errors import NO_ROOM, UserError
from diffux2ct.files.atomic import PARTIALS
from diffux2ct.files.folder_lock import LOCKS, only_writer

_PADDED = 0.5  # of a cube, that the scan fills at least where nothing is said

# Scans that another patient has too, by name: {"same_as": the name that is used, "sha256": of the files left out}.
Repeats = dict[str, dict[str, str]]


def prepare(
    name: str, raw: str | Path, out: str | Path, *, workers: int | None = None, progress: bool = True, **request: Any
) -> PrepareReport:
    """Prepare every scan under ``raw`` into ``out``; finished cases are kept, so that a stopped run goes on.

    request: see ``Request``. workers: processes (None = all cores).
    A scan that cannot be used is listed in the report and does not stop the others; one that two patients have is used
    once. Raises UserError for a raw folder without scans, an ``out`` prepared with other settings or in use by another
    process, a full disk, and when no scan could be used.
    """
    start = time.monotonic()
    raw, out = Path(raw), Path(out)
    plan = _plan(raw, out, Request(**request))
    report = PrepareReport(bad=plan.bad, not_used=plan.not_used, notes=plan.notes)
    if out.resolve().is_relative_to(raw.resolve()):  # the next run would look through the cases for scans
        raise UserError(f"{out}: lies in the folder of the scans, raw={raw}; give an out= outside of it")
    with only_writer(out):
        _write_missing(name, raw, out, plan, report, workers, progress)
    report.seconds = time.monotonic() - start
    return report


def _write_missing(
    name: str, raw: Path, out: Path, plan: Plan, report: PrepareReport, workers: int | None, progress: bool
) -> None:
    """Cut the cases that are missing, write the tables and fill the report."""
    # Find the cases that an earlier run finished.
    repeated = _known_repeats(out, plan.jobs)
    todo = _check_resume(out, [job for job in plan.jobs if job.base not in repeated], plan.recipe)
    _check_space(out, todo, plan.jobs[0].settings)
    waiting = {job.base for job in todo} | set(repeated)
    done = [job for job in plan.jobs if job.base not in waiting]
    # Cut what is missing.
    written: dict[str, int] = {}
    for job, result in run_jobs(prepare_scan, todo, workers, progress):
        written[job.base] = result.written
        if not _left_out(job, result, report):
            done.append(job)
    if not done:
        source, reason = min([*report.bad, *report.not_used])
        raise UserError(f"{raw}: none of {len(todo)} scans could be used; the first: {source}: {reason}")
    # Drop scans that two patients have, and write the tables.
    done.sort(key=lambda job: job.base)
    kept = _finish(name, out, plan, done, repeated, report)
    # Only cases in the split count: a repeated scan, or one with a bad crop, had some for a while.
    report.written = sum(written.get(job.base, 0) for job in kept)
    report.found = sum(len(job.case_ids) for job in kept) - report.written


def survey(
    raw: str | Path, *, workers: int | None = None, progress: bool = True, **request: Any
) -> tuple[list[dict[str, Any]], PrepareReport]:
    """A dry run: the scans that ``prepare`` with these arguments would use, and why it would leave out the rest.

    Returns a row a scan (case, patient, split, source, size, spacing, orientation, labels, num_cases) and a report with
    bad, not_used and notes. Reads every scan, the slow half of the work: a header shows neither whether values are HU
    nor whether a file is whole or the same scan as another. Writes nothing.
    """
    # Read every scan.
    plan = _plan(Path(raw), Path(), Request(**request))
    report = PrepareReport(bad=plan.bad, not_used=plan.not_used, notes=plan.notes)
    found: dict[str, dict[str, Any]] = {}
    for job, result in run_jobs(survey_scan, plan.jobs, workers, progress):
        if not _left_out(job, result, report):
            found[job.base] = result.found
    # Leave out scans that two patients have.
    usable = [job for job in plan.jobs if job.base in found]
    repeats = find_same(usable, {base: record["content_sha256"] for base, record in found.items()}, report)
    kept = [job for job in usable if job.base not in repeats]
    # Report the rest as ``prepare`` does.
    _conclude(plan, kept, {job.base: found[job.base]["notes"] for job in kept}, report)
    shares = {i: s for job in kept for i, s in zip(job.case_ids, found[job.base]["filled"], strict=True)}
    report.notes += _mostly_padding(shares)
    rows = []
    for job in kept:
        scan = {key: found[job.base][f"orig_{key}"] for key in ("size", "spacing", "orientation")}
        row = {"case": job.base, "patient": job.raw.patient, "split": plan.part_of(job), "source": job.source, **scan}
        rows.append(row | {"labels": found[job.base]["has_labels"], "num_cases": len(job.case_ids)})
    return rows, report


def _plan(raw: Path, out: Path, request: Request) -> Plan:
    if request.source != "x2ct":
        return make_plan(raw, out, request)
    from diffux2ct.data.preparation.stored import plan_stored  # needs h5py

    return plan_stored(raw, out, request)


def _left_out(job: ScanJob, result: ScanResult, report: PrepareReport) -> bool:
    """True, and a line in the report, for a scan that is not used."""
    if result.reason:
        (report.not_used if result.by_choice else report.bad).append((job.source, result.reason))
    return result.reason is not None


def _finish(
    name: str, out: Path, plan: Plan, done: list[ScanJob], repeated: Repeats, report: PrepareReport
) -> list[ScanJob]:
    """Drop scans that another patient has, then write the tables, dataset.json last; returns the other scans."""
    first = {job.base: read_case(out, job.case_ids[0]) or {} for job in done}
    hashes = {base: record.get("content_sha256") or record.get("sha256", "") for base, record in first.items()}
    repeats = find_same(done, hashes, report)
    by_base = {job.base: job for job in plan.jobs}
    for base in repeats:
        for case_id in by_base[base].case_ids:
            shutil.rmtree(out / "cases" / case_id, ignore_errors=True)
    for base, known in repeated.items():
        report.not_used.append((by_base[base].source, same_scan_note(by_base[known["same_as"]])))
    kept = [job for job in done if job.base not in repeats]
    for unfinished in (out / "cases").glob(PARTIALS):  # of a killed run
        shutil.rmtree(unfinished, ignore_errors=True)
    for lock in (out / "cases").glob(LOCKS):
        lock.unlink()
    _conclude(plan, kept, {job.base: first[job.base].get("notes", ()) for job in kept}, report)
    records = {i: read_case(out, i) or {} for ids in report.split.values() for i in ids}
    report.notes += _mostly_padding({i: record.get("filled", 1.0) for i, record in records.items()})
    report.summary = summarize(name, report.split, records, report)
    found = {base: {"same_as": same, "sha256": first[base].get("sha256", "")} for base, same in repeats.items()}
    report.summary["repeats"] = dict(sorted((repeated | found).items()))
    settings = plan.jobs[0].settings
    report.notes += _moved(out / "split_patients.json", plan)
    write_summary(out, report.summary)
    write_split(out / "split_patients.json", name, settings.seed, plan.patients)
    recipe = plan.recipe | {"settings_hash": settings.hash()}
    finish_dataset(out, name, report.split, settings.as_dict() | recipe)
    return kept


def _conclude(plan: Plan, kept: Sequence[ScanJob], notes: Mapping[str, Sequence[str]], report: PrepareReport) -> None:
    """Sort the report's lists, add the scans' notes, and split the cases; a note for each part that is empty."""
    report.bad.sort()
    report.not_used.sort()
    report.notes += [note for job in kept for note in notes[job.base]]
    report.split = {part: [i for job in kept if plan.part_of(job) == part for i in job.case_ids] for part in SPLITS}
    for part, use in {"train": "train on", "val": "validate training on", "test": "score a model on"}.items():
        if not report.split[part]:
            sets = f"dataset.prepare.split.{'val' if part == 'val' else 'test'} sets who is held out"
            report.notes.append(f"no case is in {part}: there is nothing to {use}; {sets}")
    trained = {job.raw.patient for job in kept if plan.part_of(job) == "train"}
    if len(trained) == 1:
        report.notes.append(f"{min(trained)} alone is in train: a model learns this patient by heart; add scans")


def _moved(path: Path, plan: Plan) -> list[str]:
    """A note on patients that the split of an earlier preparation of this folder put into another part."""
    before = read_split(path) if path.is_file() else {}
    moved = [name for part in before for name in before[part] if name not in plan.patients[part]]
    moved = sorted(set(moved) & {name for names in plan.patients.values() for name in names})
    if not moved:
        return []
    return [
        f"{len(moved)} patients changed their part of the split, e.g. {moved[0]}: models that were trained on this "
        "folder before may have seen those that are held out now"
    ]


def _mostly_padding(filled: Mapping[str, float]) -> list[str]:
    """A note where scans fill less than half of their cubes; filled: the share that is scan, by case."""
    padded = {case_id: share for case_id, share in filled.items() if share < _PADDED}
    if not padded:
        return []
    least = min(padded, key=lambda case_id: padded[case_id])
    return [
        f"{len(padded)} of {len(filled)} cubes are mostly padding: the scan fills {100 * padded[least]:.0f}% of "
        f"{least}; dataset.prepare.min_filled={_PADDED:g} leaves them out, a smaller size or spacing cuts smaller ones"
    ]


def _known_repeats(out: Path, jobs: Sequence[ScanJob]) -> Repeats:
    """Scans that an earlier run left out as another patient's, and whose files are unchanged since."""
    try:
        known = dict(json.loads((out / "summary.json").read_text(encoding="utf-8"))["repeats"])
    except (OSError, ValueError, TypeError, KeyError):
        return {}
    whole = {job.base for job in jobs if all(read_case(out, case_id) for case_id in job.case_ids)}
    repeats = {}
    for job in jobs:
        entry = known.get(job.base)
        if isinstance(entry, dict) and entry.get("same_as") in whole and holds(job, entry.get("sha256", "")):
            repeats[job.base] = entry
    return repeats


def _check_resume(out: Path, jobs: Sequence[ScanJob], recipe: Mapping[str, Any]) -> list[ScanJob]:
    """Jobs that still have cases to write; UserError if what is there was prepared differently, or of other scans."""
    before = None
    with suppress(UserError):  # missing or damaged, it is written anew; each case has its settings
        before = read_description(out)
    if before is not None and jobs:
        settings, then = jobs[0].settings, {**before, "camera": before.get("preset")}
        geometry = None if before.get("xrays") == "stored" else before.get("camera")
        now = settings.as_dict() | {key: value for key, value in recipe.items() if key in before}
        _refuse(out, out.name, changed(now, then) or camera_changed(settings, geometry))
    todo = []
    for job in jobs:
        found = {i: record for i in job.case_ids if (record := read_case(out, i)) is not None}
        # First: labels that come or go also change how their numbers are taken, which says less.
        for what, others in made_of_another(job, found).items():
            raise UserError(
                f"{out}: case {', '.join(others)} was made {what}; give another out=, "
                f"or delete {'the case' if len(others) == 1 else 'these cases'} in {out / 'cases'}"
            )
        now = job.settings.as_dict() | {"source": job.source, "remap": job.raw.remap}
        now |= {"rescale": job.rescale and list(job.rescale)}
        now |= {"xrays": job.xrays} if job.settings.grid == "stored" else {}
        for case_id, record in found.items():
            before = {key: record.get(key) for key in ("source", "rescale", "remap")} | record.get("settings", {})
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
    n = settings.size
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be created ({error.strerror}); give another out=") from error
    need = sum(len(job.case_ids) * ((3 if job.raw.labels else 2) * n**3 + 8 * n**2) for job in jobs)
    free = shutil.disk_usage(out).free
    if free < need:
        raise UserError(
            f"{out}: {need / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB free; free space or give another out="
        )


def run_jobs(
    work: Callable[[ScanJob], ScanResult], jobs: Sequence[ScanJob], workers: int | None, progress: bool = True
) -> Iterator[tuple[ScanJob, ScanResult]]:
    """(job, result) as scans finish, in any order; workers: processes (None = all cores).

    Raises UserError for a full disk and for a killed worker.
    """
    workers = max(1, min(num_cores() if workers is None else workers, len(jobs)))
    with tqdm(total=len(jobs), desc="preparing", unit="scan", disable=not progress or not jobs) as bar:
        try:
            for pair in run_in_workers(work, jobs, workers, partial(use_threads, 1)):
                bar.update()
                yield pair
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            raise UserError(
                f"{jobs[0].root}: the disk is full; free space and run the same command again, finished cases are kept"
            ) from error
        except BrokenProcessPool as error:
            raise UserError(
                f"{jobs[0].root}: a worker was killed (out of memory?); run again with fewer, "
                f"workers={workers // 2 or 1}"
            ) from error
