"""Tables and descriptions that people edit, or that come from somebody else."""

import csv
import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from diffux2ct.data.prepared.dataset import PreparedDataset
from diffux2ct.data.prepared.export_x2ct import export_x2ct
from diffux2ct.data.prepared.split import read_split
from diffux2ct.data.prepared.tables import read_rows
from diffux2ct.data.prepared.writer import finish_dataset, write_case
from diffux2ct.errors import UserError

Rows = list[dict[str, str]]
TABLE = "file{0}slope{0}intercept\nMüller.nii{0}2{0}-3\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A prepared folder: train a and b, test c."""
    root = tmp_path / "prepared"
    hu = np.linspace(-1000, 1000, 8**3).reshape((8,) * 3)
    for name in "abc":
        write_case(root, name, hu, (4.0,) * 3, (0.0,) * 3, "parallel", meta={"patient": f"p{name}"})
    settings = {"size": 8, "window": [-1024.0, 1500.0], "preset": "parallel"}
    finish_dataset(root, "mine", {"train": ["a", "b"], "test": ["c"]}, settings)
    return root


def edit(root: Path, change: Callable[[Rows], object]) -> None:
    """Change the manifest's rows as somebody with an editor does."""
    path = root / "manifest.csv"
    rows = list(csv.DictReader(path.open()))
    change(rows)
    table = io.StringIO()
    writer = csv.DictWriter(table, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    path.write_text(table.getvalue())


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
def test_any_common_encoding_and_separator_is_read(tmp_path: Path, encoding: str, separator: str) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(TABLE.format(separator).replace("\n", "\r\n").encode(encoding))
    expected = [{"file": "Müller.nii", "slope": "2", "intercept": "-3"}]
    assert read_rows(path, ("file", "slope", "intercept")) == expected


def test_half_a_character_is_no_patient(tmp_path: Path) -> None:
    (tmp_path / "split.json").write_text('{"train": ["a"], "test": ["\\ud800"]}')
    assert read_split(tmp_path / "split.json", ["a"]) == {"train": ["a"], "val": [], "test": ["\ud800"]}


def test_file_names_that_are_no_text_come_back(tmp_path: Path) -> None:
    name = os.fsdecode(b"M\xfcller")
    path = tmp_path / "lists"
    path.mkdir()
    (path / "train.txt").write_text(name + "\n", encoding="utf-8", errors="backslashreplace")
    (path / "test.txt").write_bytes("Jürgen\n".encode("utf-16"))
    assert read_split(path) == {"train": [name], "val": [], "test": ["Jürgen"]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: [row.pop("spacing") for row in rows], "no column spacing"),
        (lambda rows: [row.pop("split") for row in rows], "no column split"),
        (lambda rows: rows[0].update(spacing="abc"), "a: spacing is 'abc'"),
        (lambda rows: rows[0].update(spacing="4 4"), "3 numbers"),
        (lambda rows: rows[0].update(spacing="-4 -4 -4"), "above 0"),
        (lambda rows: rows[0].update(spacing="nan 4 4"), "3 numbers"),
        (lambda rows: rows[0].update(origin="0 0 inf"), "a: origin is"),
        (lambda rows: rows[2].update(spacing="0 0 0"), "c: spacing is"),  # of another part than is read
        (lambda rows: rows[0].update(spacing="4 4 5"), "a: spacing is '4 4 5'"),
        (lambda rows: rows[0].update(spacing="4_0 4 4"), "a: spacing is '4_0 4 4'"),
        (lambda rows: rows[0].update(split="Train"), "split is 'Train'"),
        (lambda rows: rows[0].update(patient=""), "row 2 has no patient"),
        (lambda rows: rows[0].update(case_id="../../victim/a"), "no name of a case"),
        (lambda rows: rows[0].update(case_id="..\\victim"), "no name of a case"),
        (lambda rows: rows[0].update(case_id="/etc"), "no name of a case"),
        (lambda rows: rows[0].update(case_id=".."), "no name of a case"),
        (lambda rows: rows.append(dict(rows[0])), "a is listed twice"),
        (lambda rows: rows[1].update(case_id="A"), "A is listed twice"),
        (lambda rows: rows[2].update(patient="pa"), "patient pa is in both train and test"),
        (lambda rows: rows[0].update(case_id="gone"), "missing or damaged"),
    ],
)
def test_a_manifest_that_was_edited_wrongly_is_one_line(root: Path, change: Callable, message: str) -> None:
    edit(root, change)
    with pytest.raises(UserError, match=message) as error:
        PreparedDataset(root, "train")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.splitlines(keepends=True)[0], "a header line alone"),
        (lambda data: b"", "no column case_id"),
        (lambda data: b"".join(data.splitlines(keepends=True)[1:]), "no column case_id"),
        (lambda data: data.replace(b",", b";"), "no column case_id"),
        (lambda data: b"\0\1\2" * 99, "no text file"),
    ],
)
def test_a_manifest_that_is_no_table_is_one_line(root: Path, change: Callable[[bytes], bytes], message: str) -> None:
    path = root / "manifest.csv"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(UserError, match=message):
        PreparedDataset(root, "train")


def test_a_manifest_with_a_mark_of_its_encoding_is_read(root: Path) -> None:
    path = root / "manifest.csv"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert [case.case_id for case in PreparedDataset(root, "train").cases] == ["a", "b"]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "not a prepared folder"),
        ({"size": None}, "size is None"),
        ({"size": "abc"}, "size is 'abc'"),
        ({"size": 0}, "size is 0"),
        ({"size": 8.5}, "size is 8.5"),
        ({"window": [1500, -1024]}, "window is"),
        ({"window": "wide"}, "window is 'wide'"),
        ({"spacing": -4}, "spacing is -4"),
        ({"spacing": 40.0}, "a: spacing is '4 4 4'; give the cubic voxels of dataset.json"),
        ({"camera": 3}, "camera is 3"),
        ({"label_names": {"one": "L1"}}, "label_names is"),
    ],
)
def test_a_description_that_was_edited_wrongly_is_one_line(root: Path, entries: dict | list, message: str) -> None:
    path = root / "dataset.json"
    value = json.loads(path.read_text())
    path.write_text(json.dumps(value | entries if isinstance(entries, dict) else entries))
    with pytest.raises(UserError, match=message):
        PreparedDataset(root, "train")


def test_an_export_writes_nothing_outside_its_folder(root: Path, tmp_path: Path) -> None:
    edit(root, lambda rows: rows[0].update(case_id="../../victim"))
    with pytest.raises(UserError, match="no name of a case"):
        export_x2ct(root, tmp_path / "deep/out", progress=False)
    assert not list(tmp_path.rglob("*.h5"))


def test_a_case_of_numbers_given_twice_is_refused(tmp_path: Path) -> None:
    from diffux2ct.data.preparation.scan_reader import GreyLevels

    path = tmp_path / "rescale.csv"
    path.write_text("file;slope;intercept\na.nii;1;-1024\na.nii;2;-1024\n")
    with pytest.raises(UserError, match="a.nii is listed twice"):
        GreyLevels(path)
    for slope in ("1,5", "1_5"):
        path.write_text(f"file;slope;intercept\na.nii;{slope};-1024\n")
        with pytest.raises(UserError, match=f"slope {slope}"):
            GreyLevels(path)
