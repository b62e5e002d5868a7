"""The same scan under two names, found by its content: no patient may stand in train and in test."""

from collections.abc import Mapping, Sequence

from diffux2ct.data.prepare_report import PrepareReport
from diffux2ct.data.scan_job import ScanJob


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
