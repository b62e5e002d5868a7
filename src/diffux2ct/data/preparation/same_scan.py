"""The same scan under two names, and another scan under the same name, found by their content.

No patient may be in train and in test, and no case may carry the name of a scan that it was not cut from.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffux2ct.data.preparation.report import PrepareReport
from diffux2ct.data.preparation.scan_job import ScanJob, survey_scan
from diffux2ct.files.atomic import sha256_of


def find_same(jobs: Sequence[ScanJob], hashes: Mapping[str, str], report: PrepareReport) -> dict[str, str]:
    """Scans to leave out because another patient has them too: {name: the name that is kept}.

    hashes: content by job name. The patient whose scan's name sorts first keeps it; the report lists the others.
    A patient's own scan twice is kept twice, with a note.
    """
    groups: dict[str, list[ScanJob]] = {}
    for job in sorted(jobs, key=lambda job: job.base):
        if hashes[job.base]:
            groups.setdefault(hashes[job.base], []).append(job)
    left_out = {}
    for first, *others in groups.values():
        for job in others:
            if job.raw.patient == first.raw.patient:
                report.notes.append(f"{job.source} and {first.source} of patient {first.raw.patient} are the same scan")
            else:
                left_out[job.base] = first.base
                report.not_used.append((job.source, same_scan_note(first)))
    return left_out


def same_scan_note(kept: ScanJob) -> str:
    """Why a scan is left out whose content another patient's scan has."""
    return f"same scan as {kept.source} of patient {kept.raw.patient}, which is used"


def holds(job: ScanJob, sha256: str) -> bool:
    """True while the scan's files have this SHA-256."""
    try:
        return job.sha256 == sha256
    except OSError:  # the reader names the fault
        return False


def made_of_another(job: ScanJob, records: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Finished cases of a scan (records: their case.json by case id) that were cut from other files or labels.

    By how they were made: ``from another content of p1.nii.gz``. Only files whose time stamp is not older than the
    cases are read: a thousand scans take long.
    """
    others = _of_another_scan(job, {i: record for i, record in records.items() if record.get("sha256")})
    found = {f"from another content of {job.raw.path}": others}
    # Older cases have no entry for their label files, and X2CT-GAN's have theirs inside.
    labelled = {i: record["labels_sha256"] for i, record in records.items() if "labels_sha256" in record}
    if (path := job.raw.labels) is None:
        found[f"with labels of {job.raw.path} that are not here"] = [
            i for i, then in labelled.items() if then is not None
        ]
    else:
        now = _hash_since(job, (path,), lambda: sha256_of(path), labelled)
        found[f"without the labels {path}"] = [i for i, then in labelled.items() if then is None]
        found[f"from another content of {path}"] = [
            i for i, then in labelled.items() if now and then not in (None, now)
        ]
    return {how: others for how, others in found.items() if others}


def _of_another_scan(job: ScanJob, records: Mapping[str, Mapping[str, Any]]) -> list[str]:
    now = _hash_since(job, job.raw.folders or (job.raw.path,), lambda: job.sha256, records)
    others = [case_id for case_id, record in records.items() if now and record["sha256"] != now]
    if others and job.raw.path.is_dir():
        # The folder's other files may have changed, and this series not.
        content = survey_scan(job).found.get("content_sha256")
        others = [case_id for case_id in others if records[case_id].get("content_sha256") != content]
    return others


def _hash_since(job: ScanJob, paths: Sequence[Path], sha256: Callable[[], str], cases: Iterable[str]) -> str | None:
    """``sha256`` of a scan's files or folders if they may have changed since the cases were made; else None."""
    made = [job.root / "cases" / case_id / "case.json" for case_id in cases]
    try:
        last = max(_last_change(path, job.raw_root) for path in paths)
        return sha256() if made and last >= min(case.stat().st_mtime_ns for case in made) else None
    except OSError:  # an unreadable file does not invalidate a finished case
        return None


def _last_change(path: Path, raw: Path) -> int:
    """When a scan's files, links to them, or the folders that they lie in last changed, in ns.

    The time of change counts too: what is copied or moved to its place keeps its time of modification.
    """
    above = len(path.relative_to(raw).parts) - 1
    touched: list[Path] = [path, *path.parents[: max(above, 0)]]
    if path.is_dir():
        touched += path.iterdir()
    stats = [stat for each in touched for stat in (each.stat(), each.lstat())]
    return max(max(stat.st_mtime_ns, stat.st_ctime_ns) for stat in stats)
