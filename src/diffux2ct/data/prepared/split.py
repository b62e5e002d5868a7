"""Train, val and test by patient, so that no patient is on both sides, as a file that can be published.

A split is drawn (counts or fractions, with a seed) or read: from our own ``split_patients.json``, from text lists
(``train.txt``, ``val.txt``, ``test.txt``) or from CTSpine1K's ``data_split.txt``.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffux2ct.data.prepared.tables import plain_name, read_text
from diffux2ct.data.prepared.writer import SPLITS
from diffux2ct.errors import UserError
from diffux2ct.files.atomic import write_text

_KEYS = {"val", "test", "of", "file"}
_TAKES = "val, test (a count, a fraction or a list), of (the total that counts refer to) and file"
_HEADINGS = {part: part for part in SPLITS} | {  # plain words, and those of CTSpine1K's data_split.txt
    "trainset": "train", "validation": "val", "test_public": "val", "test_private": "test",
}  # fmt: skip


def split_patients(
    patients: Sequence[str],
    split: Mapping[str, Any] | str | None,
    seed: int,
    *,
    official: Mapping[str, Sequence[str]] | None = None,
    notes: list[str] | None = None,
) -> dict[str, list[str]]:
    """{"train", "val", "test"} -> sorted patients; train is what val and test leave.

    split: ``val`` and ``test``, each a count (int), a fraction of all patients (float: at least one patient, and never
    the last one; 1.0 = all), or a list of patients. Drawn with ``seed``; test first, so that val does not move it.
    ``of``: the total for which the counts were meant; with another number of patients they are scaled.
    ``file``: a published split (see ``read_split``), or ``official`` for the data set's own lists; a string alone is
    such a file. A val that is missing in it is drawn from its train by ``split["val"]``. Patients that no list names
    come to train. official: of ``Discovery.split``. notes: lines for the user are appended to it.
    Raises UserError for unknown patients, overlapping lists, and counts that leave nobody to train on.
    """
    notes = [] if notes is None else notes
    settings = {"file": split} if isinstance(split, str) else dict(split or {})
    if unknown := set(settings) - _KEYS:
        raise UserError(f"split has unknown keys {sorted(unknown)}; it takes {_TAKES}")
    if settings.get("file") is not None:
        settings = _from_file(sorted(patients), settings, official, notes)
    elif settings.get("of") is not None:
        settings = _scaled(settings, len(patients), notes)
    return _draw(patients, settings, seed)


def read_split(path: str | Path, patients: Sequence[str] | None = None) -> dict[str, list[str]]:
    """Lists of patients by part, from a published split.

    path: a JSON file with lists ``train``, ``val``, ``test``; a text file in parts headed ``trainset:``,
    ``test_public:`` (val), ``test_private:`` (test), as CTSpine1K's; or a folder with ``train.txt``, ``test.txt`` and
    perhaps ``val.txt``, one name a line, or one of these files. patients: known names; an entry such as
    ``LIDC-IDRI-0936.20000101.5169.2.1`` or ``liver_12.nii.gz`` is the known patient that it begins with. Entries are
    without repeats, in the file's order. Raises UserError if there is no such file or no split in it.
    """
    path = Path(path)
    try:
        if path.is_dir() or path.name.lower() in [f"{part}.txt" for part in SPLITS]:
            parts = _read_lists(path if path.is_dir() else path.parent)
        else:
            text = read_text(path)
            parts = _read_json(path, text) if path.suffix == ".json" else _read_headed(text)
    except OSError as error:
        raise UserError(f"{path}: the split cannot be read ({error}); check split.file=") from error
    if not any(parts.values()):
        raise UserError(
            f"{path}: no split found; give split_patients.json, a folder with train.txt and test.txt, or a text file "
            "with headings such as trainset: and test:"
        )
    known = set(patients or ())
    resolve = {name: _patient_of(name, known) for part in parts.values() for name in part}
    return {part: list(dict.fromkeys(resolve[name] for name in parts.get(part, []))) for part in SPLITS}


def resolve_conflicts(parts: Mapping[str, Sequence[str]]) -> tuple[dict[str, list[str]], list[str]]:
    """Lists without a patient in two of them, and a note a patient that was: test wins over val, val over train."""
    notes, owner = [], {}
    for part in reversed(SPLITS):
        for patient in dict.fromkeys(parts.get(part, ())):
            if owner.setdefault(patient, part) != part:
                notes.append(f"{patient} is in the lists of both {part} and {owner[patient]}; put to {owner[patient]}")
    kept = {part: [p for p in dict.fromkeys(parts.get(part, ())) if owner[p] == part] for part in SPLITS}
    return kept, sorted(notes)


def write_split(path: str | Path, name: str, seed: int, parts: Mapping[str, Sequence[str]]) -> None:
    """Write a split as ``dataset.prepare.split.file=`` reads it: {"name", "seed", "train", "val", "test"}, sorted."""
    value = {"name": name, "seed": int(seed)} | {part: sorted(parts.get(part, ())) for part in SPLITS}
    write_text(Path(path), json.dumps(value, indent=1) + "\n")


def write_lists(folder: str | Path, parts: Mapping[str, Sequence[str]]) -> None:
    """Write ``train.txt``, ``test.txt`` and, if there is anyone in it, ``val.txt``: one name a line, as X2CT-GAN's."""
    for part in SPLITS:
        if parts.get(part) or part != "val":
            write_text(Path(folder) / f"{part}.txt", "".join(f"{name}\n" for name in parts.get(part, ())))


def _from_file(
    patients: list[str], settings: dict[str, Any], official: Mapping[str, Sequence[str]] | None, notes: list[str]
) -> dict[str, Any]:
    """Settings with the lists of a file, or of the data set itself, in place of counts."""
    if settings["file"] == "official":
        if official is None:
            raise UserError(
                "split.file=official: no official lists lie in the raw folder; put the data set's own split file there "
                "(docs/data.md says which), or leave split.file out"
            )
        parts, what = {part: list(official.get(part, ())) for part in SPLITS}, "the official lists"
    else:
        parts, conflicts = resolve_conflicts(read_split(settings["file"], patients))
        notes += [f"{settings['file']}: {line}" for line in conflicts]
        what = str(settings["file"])
    known, listed = set(patients), [patient for names in parts.values() for patient in names]
    if absent := [patient for patient in listed if patient not in known]:
        notes.append(f"{what}: {len(absent)} of {len(listed)} patients are not here, e.g. {absent[0]}")
    parts = {part: [p for p in names if p in known] for part, names in parts.items()}
    if not any(parts.values()):
        raise UserError(f"{what}: names none of the {len(patients)} patients here, e.g. {patients[0]}")
    if extra := sorted(known - set(listed)):
        notes.append(f"{what}: does not name {len(extra)} patients here, e.g. {extra[0]}; put to train")
    val = parts["val"] or settings.get("val")
    return {"test": parts["test"], "val": 0 if val is None else val}


def _scaled(settings: dict[str, Any], total: int, notes: list[str]) -> dict[str, Any]:
    """Counts that were meant for ``of`` patients, for ``total``: at least one but never the last one; 0 stays 0."""
    of, scaled = settings["of"], dict(settings)
    if not isinstance(of, int) or isinstance(of, bool) or of < 1:
        raise UserError(f"split.of={of}: give the number of patients that the counts refer to, or null")
    left = total - sum(len(named) for named in settings.values() if isinstance(named, list | tuple))
    lines = []
    for part in ("test", "val"):  # in this order, as they are drawn
        count = settings.get(part)
        if of != total and isinstance(count, int) and not isinstance(count, bool) and count > 0:
            scaled[part] = min(max(1, round(count * total / of)), max(left - 1, 0))
            left -= scaled[part]
            lines.append(
                f"split: {part}={count} is meant for {of} patients and here are {total}: {scaled[part]} taken "
                "(dataset.prepare.split.of=null takes the count as it is)"
            )
    notes += lines[::-1]
    return scaled


def _draw(patients: Sequence[str], split: Mapping[str, Any], seed: int) -> dict[str, list[str]]:
    named = {part: _named(part, split.get(part), patients) for part in ("test", "val")}
    if both := set(named["test"]) & set(named["val"]):
        raise UserError(f"split: {sorted(both)} are in both test and val")
    rest = [p for p in sorted(patients) if p not in named["test"] and p not in named["val"]]
    rest = [rest[i] for i in np.random.default_rng(seed).permutation(len(rest))]
    result = {}
    for part in ("test", "val"):
        count = _count(part, split.get(part), len(patients), len(rest))
        result[part] = sorted([*named[part], *rest[:count]])
        rest = rest[count:]
    return {"train": sorted(rest), "val": result["val"], "test": result["test"]}


def _named(part: str, value: Any, patients: Sequence[str]) -> list[str]:
    if value is None or isinstance(value, int | float):
        return []
    if isinstance(value, str):
        raise UserError(f"split.{part}={value}: give a count, a fraction or a list [a,b] of patients")
    names = [plain_name(str(v)) for v in value]
    if missing := sorted(set(names) - set(patients)):
        some = ", ".join(sorted(patients)[:8]) + (", ..." if len(patients) > 8 else "")
        raise UserError(f"split.{part}: unknown patient {', '.join(missing)}; there are {some}")
    return names


def _count(part: str, value: Any, total: int, left: int) -> int:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return 0
    if value < 0 or (isinstance(value, float) and value > 1.0):
        raise UserError(f"split.{part}={value}: give a count, a fraction from 0 to 1, or a list of patients")
    if isinstance(value, float) and 0 < value < 1:
        return min(max(1, round(value * total)), max(left - 1, 0))
    if isinstance(value, float):
        return left if value else 0
    if value > 0 and value >= left:
        raise UserError(
            f"split.{part}={value} of {total} patients leaves nobody to train on; set dataset.prepare.split.{part}"
        )
    return value


def _read_json(path: Path, text: str) -> dict[str, list[str]]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); give split_patients.json or text lists") from error
    lists = {part: value.get(part, []) for part in SPLITS} if isinstance(value, dict) else {}
    if not all(isinstance(names, list) and all(isinstance(n, str | int) for n in names) for names in lists.values()):
        raise UserError(f"{path}: train, val and test must be lists of patients")
    return {part: [str(name) for name in names] for part, names in lists.items()}


def _read_headed(text: str) -> dict[str, list[str]]:
    parts: dict[str, list[str]] = {}
    part = None
    for line in _lines(text):
        heading = re.fullmatch(r"\[?(\w+)\]?:?", line.lower())
        if heading and heading[1] in _HEADINGS and (line.endswith((":", "]")) or part is None):
            part = _HEADINGS[heading[1]]
        elif part is not None:
            parts.setdefault(part, []).append(line)
    return parts


def _read_lists(folder: Path) -> dict[str, list[str]]:
    files = {part: folder / f"{part}.txt" for part in SPLITS}
    return {part: _lines(read_text(file)) for part, file in files.items() if file.is_file()}


def _lines(text: str) -> list[str]:
    return [line for line in map(str.strip, text.splitlines()) if line and not line.startswith("#")]


def _patient_of(name: str, patients: Collection[str]) -> str:
    """The known patient that an entry names, by itself or by a scan's or file's name; else without file suffix."""
    name = plain_name(name)
    stem = re.sub(r"\.(nii\.gz|nii|mha|mhd|nrrd|h5)$", "", name, flags=re.IGNORECASE)
    ends = [len(stem), *(match.start() for match in reversed(list(re.finditer(r"[._/-]", stem))))]
    return next((stem[:end] for end in ends if stem[:end] in patients), stem)
