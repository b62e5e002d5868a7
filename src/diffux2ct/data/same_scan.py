"""The same scan under two names, and another scan under the same name, found by their content.

No patient may stand in train and in test, and no case may stand for a scan that it was not made of.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffux2ct.data.prepare_report import PrepareReport
from diffux2ct.data.scan_job import ScanJob, sha256_of, survey_scan


def find_same(jobs: Sequence[ScanJob], hashes: Mapping[str, str], report: PrepareReport) -> dict[str, str]:
    """Scans to leave out because another patient has them too: {name: the name that is kept}.

    hashes: content by job name. The patient whose scan's name sorts first keeps it; the report tells of the others.
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
                report.notes.append(
                    f"{job.source} and {first.source} of patient {first.raw.patient} are the same scan"
                )
            else:
                left_out[job.base] = first.base
                report.not_used.append((job.source, same_scan_note(first)))
    return left_out


def same_scan_note(kept: ScanJob) -> str:
    """Why a scan is left out whose content another patient's scan has."""
    return f"same scan as {kept.source} of patient {kept.raw.patient}, which is used"


def holds(job: ScanJob, sha256: str) -> bool:
    """Whether the scan's files still have this SHA-256."""
    try:
        return sha256_of(job.raw.path) == sha256
    except OSError:  # whoever reads the scan will say what is wrong with it
        return False


def made_of_another(job: ScanJob, records: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Which finished cases of a scan (case.json by case id) were made when its files held another scan.

    The files are read only where a time stamp is not older than the cases: to read a thousand scans takes long.
    """
    told = {case_id: record for case_id, record in records.items() if record.get("sha256")}
    try:
        cases = [job.root / "cases" / case_id / "case.json" for case_id in told]
        if not cases or _last_change(job) < min(path.stat().st_mtime_ns for path in cases):
            return []
        now = sha256_of(job.raw.path)
    except OSError:  # what cannot be read does not speak against a finished case
        return []
    others = [case_id for case_id, record in told.items() if record["sha256"] != now]
    if others and job.raw.path.is_dir():
        # The folder's other files may have changed, and this series not.
        content = survey_scan(job).found.get("content_sha256")
        others = [case_id for case_id in others if told[case_id].get("content_sha256") != content]
    return others


def _last_change(job: ScanJob) -> int:
    """When the scan's files, links to them, or the folders that they lie in last changed, in ns.

    The time of change counts too: what is copied or moved to its place keeps its time of modification.
    """
    path, above = job.raw.path, len(job.raw.path.relative_to(job.raw_root).parts) - 1
    touched: list[Path] = [path, *path.parents[: max(above, 0)]]
    if path.is_dir():
        touched += path.iterdir()
    stats = [stat for each in touched for stat in (each.stat(), each.lstat())]
    return max(max(stat.st_mtime_ns, stat.st_ctime_ns) for stat in stats)
