"""What is to be imported of a folder of X2CT-GAN's files: which, whose, for which part, with which settings.

Only headers are read. Everything that would end the import is found here, before a case is written.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from diffux2ct.data.io.x2ct.header import X2ctHeader, need_h5py, read_x2ct_header
from diffux2ct.data.preparation.plan import Plan, case_names
from diffux2ct.data.preparation.report import PrepareReport
from diffux2ct.data.preparation.scan_job import ScanJob, ScanResult, guarded
from diffux2ct.data.preparation.settings import PrepareSettings
from diffux2ct.data.preparation.x2ct.case import settings_of
from diffux2ct.data.prepared.split import resolve_conflicts, split_patients
from diffux2ct.data.sources import discover
from diffux2ct.data.sources.x2ct import scan_name
from diffux2ct.errors import UserError

# configs/dataset/x2ct.yaml
SETTINGS = PrepareSettings(
    size=128, spacing=2.5, camera="x2ct", window=(-1024.0, 1476.0), grid="x2ct", projector="siddon"
)
SPLIT = {"val": 8, "test": 101, "of": 1010, "file": None}
_IDLE = ("grid", "remove_couch", "instrument", "pose_jitter")  # settings that stored cubes leave nothing to
_IDLE_STORED = ("projector", "attenuation")  # and stored X-rays


def plan_x2ct(
    raw: str | Path,
    out: Path,
    settings: PrepareSettings,
    asked: Collection[str],
    xrays: str,
    split: Mapping[str, Any] | str | None,
) -> tuple[Plan, PrepareReport]:
    """The jobs, and a report of what is left out already; arguments as in ``import_x2ct``. Writes nothing.

    Raises UserError for settings that cannot be or have no effect, and where no file can be used.
    """
    if xrays not in ("stored", "rendered"):
        raise UserError(f"xrays={xrays}: choose stored or rendered")
    settings.check()
    asked = {*asked, *_changed(settings)}
    refuse_idle({key: getattr(settings, key) for key in asked}, xrays)
    raw = Path(raw)
    found = discover("x2ct", raw)
    need_h5py(found.cases[0].path)
    report = PrepareReport(not_used=list(found.left_out), notes=list(found.notes))
    names = case_names([replace(case, patient=scan_name(case.path) or case.patient) for case in found.cases])
    jobs, headers = [], {}
    patients = {case.patient: case.patient for case in found.cases}
    for case, base in zip(found.cases, names, strict=True):
        job = ScanJob(out, raw, case, base, 0, settings)
        header = _header(job, report)
        if header is None:
            continue
        patients[case.patient] = header.attrs.get("patient", case.patient)
        try:
            chosen = settings_of(header, settings, asked, xrays, case.path)
        except UserError as error:
            report.bad.append((job.source, job.below_raw(str(error).removeprefix(f"{case.path}: "))))
            continue
        owned = replace(case, patient=patients[case.patient])
        jobs.append(replace(job, raw=owned, settings=chosen))
        headers[base] = header
    jobs = _alike(jobs, report)
    if not jobs:
        source, reason = min(report.bad)
        raise UserError(f"{raw}: none of {len(names)} files could be used; the first: {source}: {reason}")
    ours = any(headers[job.base].ours for job in jobs)
    if ours:
        report.notes.append(_taken(jobs[0].settings))
    everyone = sorted({*patients.values(), *(job.raw.patient for job in jobs)})
    lists = None if found.split is None else _by_patient(found.split, patients, report.notes)
    parts = _parts(everyone, lists, split, settings.seed, ours, report.notes)
    told = {"source": "x2ct", "xrays": xrays}
    jobs.sort(key=lambda job: job.base)
    return Plan(jobs, parts, report.not_used, report.notes, told), report


def refuse_idle(values: Mapping[str, Any], xrays: str) -> None:
    """Raises UserError for the first of the given settings, changed by the user, that has no effect on such files."""
    idle = [*_IDLE, *(_IDLE_STORED if xrays == "stored" else ())]
    for key, value in values.items():
        if key in idle:
            what = "X-rays, which are kept" if key in _IDLE_STORED else "cubes, which are cut already"
            raise UserError(
                f"{key}={value} has no effect on X2CT-GAN's {what}; leave it out"
                + ("" if key in _IDLE else ", or give dataset.prepare.xrays=rendered")
            )


def _changed(settings: PrepareSettings) -> list[str]:
    now, usual = settings.as_dict(), SETTINGS.as_dict()
    return [field.name for field in fields(settings) if now[field.name] != usual[field.name]]


def _header(job: ScanJob, report: PrepareReport) -> X2ctHeader | None:
    """The header of a file; None, and a line in the report, if it cannot be used."""

    def read(job: ScanJob, result: ScanResult) -> None:
        result.found["header"] = read_x2ct_header(job.raw.path)

    result = guarded(job, read)
    if result.reason:
        report.bad.append((job.source, result.reason))
    return result.found.get("header")


def _alike(jobs: Sequence[ScanJob], report: PrepareReport) -> list[ScanJob]:
    """The jobs with the settings that most have: a data set has one camera, window and grid."""
    if not jobs:
        return []
    common = Counter(job.settings.hash() for job in jobs).most_common(1)[0][0]
    kept = [job for job in jobs if job.settings.hash() == common]
    now, odd = kept[0].settings.as_dict(), [job for job in jobs if job.settings.hash() != common]
    for job in odd:
        other = job.settings.as_dict()
        ways = ", ".join(
            f"{key}={other[key]} (most have {now[key]})" for key in now if other[key] != now[key]
        )
        report.bad.append((job.source, f"prepared in another way than most here, {ways}; import it apart"))
    return kept


def _taken(settings: PrepareSettings) -> str:
    low, high = settings.window
    return (
        f"as export_x2ct wrote it: size={settings.size} spacing={settings.spacing:g} camera={settings.camera} "
        f"window=[{low:g},{high:g}]; to train on it: dataset.size={settings.size} dataset.window=[{low:g},{high:g}]"
    )


def _by_patient(
    lists: Mapping[str, Sequence[str]], patients: Mapping[str, str], notes: list[str]
) -> dict[str, list[str]]:
    """The lists that lie in raw, of patients. patients: by the names there, which for our files are cases."""
    named = {part: [patients.get(name, name) for name in names] for part, names in lists.items()}
    resolved, conflicts = resolve_conflicts(named)
    notes += conflicts
    return resolved


def _parts(
    everyone: Sequence[str],
    lists: Mapping[str, Sequence[str]] | None,
    split: Mapping[str, Any] | str | None,
    seed: int,
    ours: bool,
    notes: list[str],
) -> dict[str, list[str]]:
    """Patients by part; where no split was asked for, by the lists that lie in raw."""
    if split is None or (isinstance(split, Mapping) and dict(split) == SPLIT):
        split = SPLIT
        if lists is not None:
            notes.append(
                "split: by the lists that lie in raw; dataset.prepare.split.test=0.1, say, draws another"
            )
            # A val of none in our own lists is meant; X2CT-GAN's have no such list.
            split = {"file": "official", "val": 0 if ours else SPLIT["val"]}
    return split_patients(everyone, split, seed, official=lists, notes=notes)
