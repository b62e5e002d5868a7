"""Raw CT scans -> the prepared folder that training reads (docs/data.md).

A scan is oriented to LPS, low-passed and resampled to cubic voxels, cut to a cube (border -1024 HU), clipped to the
HU window, and only then projected: the X-rays show exactly what the target volume holds.
"""

from pathlib import Path
from typing import Any, Unpack

from diffux2ct.data.preparation.plan import Request, make_plan
from diffux2ct.data.preparation.report import PrepareReport
from diffux2ct.data.preparation.runner import run_plan, survey_plan
from diffux2ct.data.preparation.scan_job import prepare_scan, survey_scan
from diffux2ct.data.preparation.settings import PrepareSettings
from diffux2ct.data.prepared.writer import finish_dataset, write_case

__all__ = ["PrepareReport", "PrepareSettings", "finish_dataset", "prepare", "survey", "write_case"]


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
    out = Path(out)
    plan = make_plan(raw, out, **request)
    report = PrepareReport(not_used=plan.not_used, notes=plan.notes)
    return run_plan(name, raw, out, plan, prepare_scan, report, workers=workers, progress=progress)


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
    return survey_plan(plan, survey_scan, report, workers=workers, progress=progress)
