"""One raw scan -> its cases: read, clear, instrument, cut, clip, project. The unit of work of ``prepare``."""

import hashlib
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.distance import cdist

from diffux2ct.data.body import remove_couch
from diffux2ct.data.io.ct_image import CtImage, LabelImage, content_hash
from diffux2ct.data.io.volume import read_ct, read_labels, sample_labels
from diffux2ct.data.labels import LABELS, REMAP, contradiction, hips_by_position, remap
from diffux2ct.data.preparation.cube import cube_centre, cut_cube, filled_share, random_centres, seed_of
from diffux2ct.data.preparation.settings import PrepareSettings
from diffux2ct.data.prepared.tables import plain_name
from diffux2ct.data.prepared.writer import read_case, write_case
from diffux2ct.data.sources import RawCase
from diffux2ct.errors import NO_ROOM, UserError
from diffux2ct.files.atomic import sha256_of

_OTHER_SCHEME = f"choose another of ours, {', '.join(REMAP)}, or labels=null"
_BODY_HU = -800  # at or below this nothing attenuates, so that an X-ray would be empty


@dataclass(frozen=True)
class ScanJob:
    """One scan and the cases to cut from it; ``num_crops`` 0 = one case, placed by the settings' grid.

    rescale: (slope, intercept) that make the file's grey levels HU; None: they are HU. scheme: of the label numbers,
    where the user chose it. xrays: "stored" or "rendered" X-rays, of a grid that is stored.
    """

    root: Path
    raw_root: Path
    raw: RawCase
    base: str
    num_crops: int
    settings: PrepareSettings
    rescale: tuple[float | int, float | int] | None = None
    scheme: str | None = None
    xrays: str = "stored"

    @property
    def case_ids(self) -> list[str]:
        """Names of the scan's case folders."""
        return [f"{self.base}_c{i:02d}" for i in range(self.num_crops)] if self.num_crops else [self.base]

    @property
    def needs_vertebrae(self) -> bool:
        """True where labelled vertebrae decide the content."""
        return self.settings.instrument is not None or (self.num_crops == 0 and self.settings.grid == "lumbar")

    @property
    def source(self) -> str:
        """The scan's path below the raw folder."""
        return plain_name(str(self.raw.path.relative_to(self.raw_root))) or "."

    @property
    def sha256(self) -> str:
        """SHA-256 of the scan's file, or of the files of its folders. Raises OSError where they cannot be read."""
        hashes = [sha256_of(path) for path in self.raw.folders or (self.raw.path,)]
        return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()

    def below_raw(self, text: str) -> str:
        """A line for the user with paths from the raw folder on."""
        root = re.escape(str(self.raw_root))
        text = re.sub(rf"(?<![\w./-]){root}[/\\](?=\S)", "", text)
        return re.sub(rf"(?<![\w./-]){root}(?=: )", lambda _: self.raw_root.resolve().name, text)


class _LeftOut(UserError):
    """A scan that a setting leaves out."""


@dataclass
class ScanResult:
    """Cases written, and why the scan is not used (by_choice: a setting leaves it out); found: entries of case.json."""

    written: int = 0
    reason: str | None = None
    by_choice: bool = False
    found: dict[str, Any] = field(default_factory=dict)


def prepare_scan(job: ScanJob) -> ScanResult:
    """Cut the missing cases of one scan. A fault of the scan comes back as a reason; a full disk is raised."""
    if job.settings.grid == "stored":
        from diffux2ct.data.preparation.stored import cut_stored

        return guarded(job, cut_stored)
    return guarded(job, _cut_cases)


def survey_scan(job: ScanJob) -> ScanResult:
    """Read one scan and its labels as ``prepare_scan`` does, implants included, for ``found``; write nothing."""
    if job.settings.grid == "stored":
        from diffux2ct.data.preparation.stored import look_at_stored

        return guarded(job, look_at_stored)
    return guarded(job, _look)


def guarded(job: ScanJob, work: Callable[[ScanJob, ScanResult], None]) -> ScanResult:
    """The result of ``work``; a fault of the scan becomes its reason, a full disk is raised."""
    result = ScanResult()
    try:
        work(job, result)
    except UserError as error:
        result.by_choice = isinstance(error, _LeftOut)
        result.reason = job.below_raw(str(error).removeprefix(f"{job.raw.path}: "))
    except OSError as error:
        if error.errno in NO_ROOM:
            raise
        result.reason = error.strerror or str(error)
    except Exception as error:  # one odd scan of a thousand must not end the night's run
        result.reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return result


def _read(job: ScanJob) -> tuple[CtImage, LabelImage | None, dict[str, Any]]:
    """The CT, its labels in our numbers, and the entries of case.json about both.

    Raises UserError where the settings need labelled vertebrae and there are none.
    """
    raw = job.raw
    ct = read_ct(raw.path, raw.series_uid, job.rescale, patient=raw.patient_id, folders=raw.folders)
    notes = list(ct.meta["notes"])
    labels, is_mask = _read_labels(job, ct, notes)
    meta = describe(job, ct, notes)
    meta["labels_are_own"] = labels is not None and (job.raw.remap is None or is_mask)
    if is_mask:
        meta["labels_are_mask"] = True
    if job.needs_vertebrae and labels is None:
        why = "no labels" if job.raw.labels is None else notes[-1]
        raise UserError(f"{why}, which grid=lumbar and instrument= need; use grid=centre and instrument=null")
    if job.needs_vertebrae and meta["labels_are_own"]:
        raise UserError(
            "the meaning of its label numbers is unknown; set dataset.prepare.labels=ours (L1 is 20) or ctspine1k"
        )
    return ct, labels, meta


def describe(job: ScanJob, ct: CtImage, notes: list[str]) -> dict[str, Any]:
    """Entries of case.json about a scan and its settings."""
    return {
        "patient": job.raw.patient,
        "source": job.source,
        "series_uid": job.raw.series_uid,
        "part_of": job.raw.origin,
        "content_sha256": content_hash(ct),
        "remap": job.raw.remap,
        "labels_are_own": False,
        "rescale": None if job.rescale is None else list(job.rescale),
        "orig_spacing": ct.meta["spacing"],
        "orig_orientation": ct.meta["orientation"],
        "orig_size": ct.meta["size"],
        "settings": job.settings.as_dict(),
        "settings_hash": job.settings.hash(),
        "notes": notes,
    }


def _read_labels(job: ScanJob, ct: CtImage, notes: list[str]) -> tuple[LabelImage | None, bool]:
    """The labels, in our numbers where their scheme is known, and whether they are a 0/1 mask.

    Raises UserError where the scheme that the user chose contradicts the anatomy.
    """
    path, numbers = job.raw.labels, REMAP.get(job.raw.remap or "")
    if path is None:
        return None, False
    try:
        labels = read_labels(path)
        _check_place(labels, ct, path, notes)
    except UserError as error:
        notes.append(f"labels left out: {error}")
        return None, False
    chosen = job.scheme is not None
    names_c1 = numbers is None or numbers.get(1) == LABELS["C1"]
    if labels.labels.max() == 1 and names_c1 and (chosen or job.raw.remap is None):
        if chosen:
            notes.append(f"{path}: holds 0 and 1 only: taken for a mask, not for vertebra C1")
        return labels, True
    if numbers is not None:
        sided, exchanged = hips_by_position(remap(labels.labels, numbers))
        if chosen and labels.labels.any() and not sided.any():
            raise UserError(f"labels={job.scheme} names none of the numbers in {path}; {_OTHER_SCHEME}")
        labels = replace(labels, labels=sided)
        if exchanged:
            notes.append(f"{path}: left and right hip exchanged, to where they lie in the patient")
    if chosen and (fault := contradiction(labels.labels, labels.spacing)):
        raise UserError(f"labels={job.scheme} contradicts the anatomy in {path}: {fault}; {_OTHER_SCHEME}")
    return labels, False


def _check_place(labels: LabelImage, ct: CtImage, path: Path, notes: list[str]) -> None:
    """UserError for labels with the CT's numbers of voxels and another place; a note where their axes run otherwise.

    They were drawn on the CT, and another affine (often the identity) moves them off what they name.
    """
    if sorted(labels.meta["size"]) != sorted(ct.meta["size"]):
        return
    apart = cdist(labels.meta["corners"], ct.meta["corners"]).min(1).max()
    if apart > 0.51 * min(ct.spacing):
        raise UserError(
            f"{path}: of its CT's size, yet its affine places it elsewhere (corners up to {apart:.0f} mm apart); "
            "save it with the CT's affine"
        )
    ways = [each["orientation"] for each in (labels.meta, ct.meta)]
    if ways[0] != ways[1]:
        notes.append(
            f"{path}: stored as {ways[0]}, its CT as {ways[1]}; labels are placed by their affine: look at the contact "
            "sheet"
        )


def _look(job: ScanJob, result: ScanResult) -> None:
    ct, labels, meta = _read(job)
    meta["filled"] = [filled for _, filled in _centres(ct, labels, job)]
    if job.settings.instrument is not None:
        _, labels = _altered(ct, labels, meta, job)
    meta["notes"] = [job.below_raw(note) for note in meta["notes"]]
    result.found = meta | {"has_labels": labels is not None}


def _cut_cases(job: ScanJob, result: ScanResult) -> None:
    settings = job.settings
    # Read the scan and place its cubes.
    ct, labels, meta = _read(job)
    meta["sha256"] = job.sha256
    meta["labels_sha256"] = "" if job.raw.labels else None
    with suppress(OSError):  # "" if they cannot be read
        meta["labels_sha256"] = job.raw.labels and sha256_of(job.raw.labels)
    centres = _centres(ct, labels, job)
    # Clear the couch and put in implants.
    ct, labels = _altered(ct, labels, meta, job)
    meta["notes"] = [job.below_raw(note) for note in meta["notes"]]
    # Cut, clip and project the cases that are missing.
    for case_id, (centre, filled) in zip(job.case_ids, centres, strict=True):
        if read_case(job.root, case_id) is not None:
            continue
        origin = (centre - (settings.size - 1) / 2 * settings.spacing).tolist()
        grid = (settings.spacing, (settings.size,) * 3, origin)
        hu = cut_cube(ct, settings.size, settings.spacing, centre)
        if hu.max() <= _BODY_HU:
            raise UserError("the crop holds only air; are spacing and HU right?")
        write_case(
            job.root,
            case_id,
            hu,
            (settings.spacing,) * 3,
            origin,
            settings.camera,
            labels=None if labels is None else sample_labels(labels, *grid),
            meta=meta | {"crop": np.round(centre, 3).tolist() if job.num_crops else settings.grid, "filled": filled},
            window=settings.window,
            projector=settings.projector,
            attenuation=settings.attenuation,
            pose_jitter=settings.pose_jitter,
            pose_seed=seed_of(case_id, settings.seed),
        )
        result.written += 1


def _centres(ct: CtImage, labels: LabelImage | None, job: ScanJob) -> list[tuple[np.ndarray, float]]:
    """The centre (mm LPS) of each of the scan's cubes, and the share of the cube that the scan fills.

    Raises UserError where ``min_filled`` leaves the scan out.
    """
    settings = job.settings
    side = settings.size * settings.spacing
    if job.num_crops:
        centres = list(random_centres(ct, side, job.num_crops, job.base, settings.seed))
    else:
        centres = [cube_centre(settings.grid, ct, labels, side)]
    filled = [round(filled_share(ct, side, centre), 4) for centre in centres]
    if min(filled) < settings.min_filled:
        extent = " x ".join(f"{length:.0f}" for length in ct.extent)
        raise _LeftOut(
            f"{extent} mm fill {100 * min(filled):.0f}% of the cube of {side:g} mm, less than "
            f"min_filled={settings.min_filled:g}"
        )
    return list(zip(centres, filled, strict=True))


def _altered(
    ct: CtImage, labels: LabelImage | None, meta: dict[str, Any], job: ScanJob
) -> tuple[CtImage, LabelImage | None]:
    """The scan without its couch and with implants, as the settings say; ``meta`` gets notes and implants."""
    if job.settings.remove_couch:
        cleared = remove_couch(ct.hu, ct.spacing)
        if np.array_equal(cleared, ct.hu):
            meta["notes"].append(f"{ct.meta['path']}: no couch found to remove")
        ct = replace(ct, hu=cleared)
    if job.settings.instrument is not None and labels is not None:
        from diffux2ct.data.instrumentation import instrument

        seed = int(np.random.SeedSequence(seed_of(job.base, job.settings.seed)).generate_state(1)[0])
        ct, labels, meta["implants"] = instrument(ct, labels, seed=seed, **job.settings.instrument)
    return ct, labels
