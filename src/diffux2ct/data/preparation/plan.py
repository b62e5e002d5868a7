"""The plan of a preparation: which scans of a raw folder, under which names, for which part of the split."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypedDict

from diffux2ct.data.labels import REMAP
from diffux2ct.data.preparation.scan_job import ScanJob
from diffux2ct.data.preparation.scan_reader import GreyLevels
from diffux2ct.data.preparation.settings import PrepareSettings
from diffux2ct.data.prepared.split import split_patients
from diffux2ct.data.sources import RawCase, discover
from diffux2ct.errors import UserError

OURS = "ours"  # labels that are numbered as in ``data.labels``


@dataclass(frozen=True)
class Plan:
    """Jobs in the order of their names, the patients of each part, and the files of the raw folder that are not used.

    bad: (path below raw, reason) of scans whose header rules them out. recipe: for dataset.json, beside the settings.
    """

    jobs: list[ScanJob]
    patients: dict[str, list[str]]
    not_used: list[tuple[str, str]]
    notes: list[str]
    recipe: dict[str, Any]
    bad: list[tuple[str, str]] = field(default_factory=list)

    def part_of(self, job: ScanJob) -> str:
        """train, val or test."""
        return next(part for part, members in self.patients.items() if job.raw.patient in members)


class Request(TypedDict, total=False):
    """Arguments of ``prepare`` and ``survey`` beside the folders; the defaults are ``make_plan``'s.

    source, origins: see ``discover``. settings: of every case. crops: random crops a scan instead of the settings'
    grid (0); test_crops: the same for val and test patients (None = crops). split: see ``split_patients``.
    rescale: (slope, intercept) or a CSV table, see ``GreyLevels``. labels: the scheme of a plain folder's label
    numbers, "ours" (``data.labels``) or a key of ``REMAP``.
    Of source x2ct alone: xrays: "stored" keeps the file's images, 8 bit, each by its own maximum (the lost scale is
    estimated by rendering the CT the same way, and case.json says so); "rendered" makes them anew. asked: names of
    settings that hold even where a file of ``export_x2ct`` declares its own.
    """

    source: str
    origins: Sequence[str] | None
    settings: PrepareSettings | None
    crops: int
    test_crops: int | None
    split: Mapping[str, Any] | str | None
    rescale: Sequence[float | int] | str | Path | None
    labels: str | None
    xrays: str
    asked: Collection[str]


def make_plan(
    raw: str | Path,
    out: str | Path,
    *,
    source: str = "folder",
    origins: Sequence[str] | None = None,
    settings: PrepareSettings | None = None,
    crops: int = 0,
    test_crops: int | None = None,
    split: Mapping[str, Any] | str | None = None,
    rescale: Sequence[float | int] | str | Path | None = None,
    labels: str | None = None,
) -> Plan:
    """Find the scans and split their patients; arguments as in ``Request``. Reads no scan and writes nothing.

    Raises UserError for invalid settings and for a raw folder without scans.
    """
    settings = settings or PrepareSettings()
    settings.check()
    if crops < 0 or (test_crops or 0) < 0:
        raise UserError(f"crops={crops}, test_crops={test_crops}: give a count, or 0 for the one cube that grid= says")
    if labels is not None and labels not in (OURS, *REMAP):
        raise UserError(
            f"labels={labels}: choose {', '.join((OURS, *REMAP))}, or null where their numbers have no names"
        )
    held_out = crops if test_crops is None else test_crops
    if settings.grid != "centre" and (crops or held_out):
        raise UserError(
            f"grid={settings.grid} with crops={crops}: random crops lie anywhere; use crops=0 or grid=centre"
        )
    raw, grey = Path(raw), GreyLevels(rescale)
    if settings.grid == "stored":
        raise UserError(f"grid=stored: source {source} has no cubes that are cut already; use grid=centre")
    found = discover(source, raw, origins=origins)
    grey.check_used([_below(case, raw) for case in found.cases])
    cases = [_with_numbers(case, labels) for case in found.cases]
    notes = list(found.notes)
    everyone = sorted({case.patient for case in found.cases})
    patients = split_patients(everyone, split, settings.seed, official=found.split, notes=notes)
    train = set(patients["train"])
    jobs = [
        ScanJob(
            Path(out),
            raw,
            case,
            base,
            crops if case.patient in train else held_out,
            settings,
            grey.of(_below(case, raw)),
            labels if case.remap == labels else None,
        )
        for case, base in zip(cases, case_names(cases), strict=True)
    ]
    recipe = {"source": source, "crops": crops, "test_crops": held_out}
    return Plan(sorted(jobs, key=lambda job: job.base), patients, list(found.left_out), notes, recipe)


def _with_numbers(case: RawCase, labels: str | None) -> RawCase:
    """The case with ``labels`` as the scheme of its label numbers where its source sets none."""
    if labels is None or case.labels is None or case.remap is not None:
        return case
    return replace(case, remap=labels)


def _below(case: RawCase, raw: Path) -> str:
    return case.path.relative_to(raw).as_posix()


def case_names(scans: Sequence[RawCase]) -> list[str]:
    """A folder name a scan: the patient's, made safe, numbered where a patient has several scans."""
    names: list[str] = []
    taken: set[str] = set()
    for scan in scans:
        safe = re.sub(r"[^A-Za-z0-9._-]+", "_", scan.patient).strip("._") or "case"
        name, count = safe, 1
        while name.lower() in taken:  # in lower case, for file systems that ignore case
            count += 1
            name = f"{safe}_s{count}"
        taken.add(name.lower())
        names.append(name)
    return names
