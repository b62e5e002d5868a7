"""The plan of a preparation: which scans of a raw folder, under which names, for which part of the split."""

import re
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from diffux2ct.arguments import check_choice
from diffux2ct.data.labels import REMAP
from diffux2ct.data.preparation.scan_job import ScanJob
from diffux2ct.data.preparation.scan_reader import GreyLevels
from diffux2ct.data.preparation.settings import PrepareSettings
from diffux2ct.data.prepared.split import split_patients
from diffux2ct.data.prepared.tables import plain_name
from diffux2ct.data.sources import RawCase, discover
from diffux2ct.errors import UserError

_LONGEST = 200  # characters of a case's name: file systems take 255, and files are written under longer names first
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


@dataclass(frozen=True)
class Request:
    """Arguments of ``prepare`` and ``survey`` beside the folders.

    source, origins: see ``discover``. settings: of every case. crops: random crops a scan instead of the settings'
    grid (0); test_crops: the same for val and test patients (None = crops). split: see ``split_patients``.
    rescale: (slope, intercept) or a CSV table, see ``GreyLevels``. labels: the scheme of a plain folder's label
    numbers, "ours" (``data.labels``) or a key of ``REMAP``.
    Of source x2ct alone: xrays: "stored" keeps the file's images, 8 bit, each by its own maximum (the lost scale is
    estimated by rendering the CT the same way, and case.json records it); "rendered" makes them anew. asked: names of
    settings that hold even where a file of ``export_x2ct`` declares its own.
    """

    source: str = "folder"
    origins: Sequence[str] | None = None
    settings: PrepareSettings | None = None
    crops: int = 0
    test_crops: int | None = None
    split: Mapping[str, Any] | str | None = None
    rescale: Sequence[float | int] | str | Path | None = None
    labels: str | None = None
    xrays: str = "stored"
    asked: Collection[str] = ()


def make_plan(raw: Path, out: Path, request: Request) -> Plan:
    """Find the scans and split their patients. Reads no scan and writes nothing.

    Raises UserError for invalid settings and for a raw folder without scans.
    """
    settings, labels, crops = request.settings or PrepareSettings(), request.labels, request.crops
    settings.check()
    held_out = crops if request.test_crops is None else request.test_crops
    if min(crops, held_out) < 0:
        raise UserError(f"crops={crops}, test_crops={held_out}: give a count, or 0 for the one cube that grid= sets")
    if labels is not None:  # null: their numbers have no names
        check_choice("labels", labels, (OURS, *REMAP, "null"))
    if settings.grid == "stored":
        raise UserError(f"grid=stored: source {request.source} has no cubes that are cut already; use grid=centre")
    if settings.grid != "centre" and (crops or held_out):
        raise UserError(
            f"grid={settings.grid} with crops={crops}: random crops lie anywhere; use crops=0 or grid=centre"
        )
    grey = GreyLevels(request.rescale)
    found = discover(request.source, raw, origins=request.origins)
    grey.check_used([_below(case, raw) for case in found.cases])
    cases = [_with_numbers(case, labels) for case in found.cases]
    notes = list(found.notes)
    everyone = sorted({case.patient for case in cases})
    patients = split_patients(everyone, request.split, settings.seed, official=found.split, notes=notes)
    jobs = []
    for case, base in zip(cases, case_names(cases), strict=True):
        num_crops = crops if case.patient in patients["train"] else held_out
        scheme = labels if case.remap == labels else None
        jobs.append(ScanJob(out, raw, case, base, num_crops, settings, grey.of(_below(case, raw)), scheme))
    recipe = {"source": request.source, "crops": crops, "test_crops": held_out}
    return Plan(sorted(jobs, key=lambda job: job.base), patients, list(found.left_out), notes, recipe)


def _with_numbers(case: RawCase, labels: str | None) -> RawCase:
    """The case with ``labels`` as the scheme of its label numbers where its source sets none."""
    if labels is None or case.labels is None or case.remap is not None:
        return case
    return replace(case, remap=labels)


def _below(case: RawCase, raw: Path) -> str:
    return plain_name(case.path.relative_to(raw).as_posix())


def case_names(scans: Sequence[RawCase]) -> list[str]:
    """A folder name a scan: the patient's, made safe and at most 200 long, numbered where a patient has several."""
    names: list[str] = []
    taken: set[str] = set()
    for scan in scans:
        safe = re.sub(r"[^A-Za-z0-9._-]+", "_", scan.patient).strip("._") or "case"
        if len(safe) > _LONGEST:
            safe = f"{safe[: _LONGEST - 9]}_{zlib.crc32(scan.patient.encode(errors='surrogatepass')):08x}"
        name, count = safe, 1
        while name.lower() in taken:  # in lower case, for file systems that ignore case
            count += 1
            name = f"{safe}_s{count}"
        taken.add(name.lower())
        names.append(name)
    return names
