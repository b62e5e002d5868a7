import json
from pathlib import Path

import pytest

from diffux2ct.data.prepared.split import read_split, resolve_conflicts, split_patients, write_lists, write_split
from diffux2ct.errors import UserError


def test_split_by_patient() -> None:
    patients = [f"p{i:02d}" for i in range(20)]
    split = split_patients(patients, {"val": 0.1, "test": 5}, seed=3)
    assert {k: len(v) for k, v in split.items()} == {"train": 13, "val": 2, "test": 5}
    assert sorted(split["train"] + split["val"] + split["test"]) == patients
    assert split == split_patients(patients[::-1], {"val": 0.1, "test": 5}, seed=3)
    assert split["test"] != split_patients(patients, {"val": 0.1, "test": 5}, seed=4)["test"]
    assert split["test"] == split_patients(patients, {"val": 4, "test": 5}, seed=3)["test"]
    assert split_patients(patients, {"test": ["p03", "p01"], "val": 0}, 0)["test"] == ["p01", "p03"]
    assert split_patients(["a", "b"], {"val": 0.1, "test": 0.2}, 0)["val"] == []
    assert split_patients(["a"], {"val": 0.1, "test": 0.2}, 0)["train"] == ["a"]
    assert split_patients(["a", "b"], {"test": 1.0}, 0)["test"] == ["a", "b"]
    for bad, message in [
        ({"test": 20}, "leaves nobody to train on"),
        ({"test": 1.5}, "fraction from 0 to 1"),
        ({"test": ["p99"]}, "unknown patient p99"),
        ({"test": ["p01"], "val": ["p01"]}, "in both"),
        ({"test": "p01"}, "list"),
        ({"tset": 1}, "unknown keys"),
    ]:
        with pytest.raises(UserError, match=message):
            split_patients(patients, bad, 0)


SCALED = {"val": 8, "test": 102, "of": 1014}


def test_counts_are_scaled_to_the_patients_that_are_there() -> None:
    """The paper splits 1014 scans of CTSpine1K; there are 1005, and a beginner has ten."""
    notes: list[str] = []
    split = split_patients([f"p{i:04d}" for i in range(1005)], SCALED, 0, notes=notes)
    assert {part: len(names) for part, names in split.items()} == {"train": 896, "val": 8, "test": 101}
    assert notes[1] == (
        "split: test=102 is meant for 1014 patients and here are 1005: 101 taken "
        "(dataset.prepare.split.of=null takes the count as it is)"
    )
    split = split_patients([f"p{i}" for i in range(10)], SCALED, 0)
    assert {part: len(names) for part, names in split.items()} == {"train": 8, "val": 1, "test": 1}
    notes = []
    exact = split_patients([f"p{i:04d}" for i in range(1014)], SCALED, 0, notes=notes)
    assert (len(exact["train"]), len(exact["test"]), notes) == (904, 102, [])
    assert len(split_patients([f"p{i}" for i in range(300)], SCALED | {"of": None}, 0)["test"]) == 102
    # However few there are, somebody is left to train on.
    few = {1: (1, 0, 0), 2: (1, 0, 1), 3: (1, 1, 1)}
    for count, parts in few.items():
        split = split_patients([f"p{i}" for i in range(count)], SCALED, 0)
        assert tuple(len(split[part]) for part in ("train", "val", "test")) == parts
    named = split_patients(["a", "b"], {"test": ["a"], "val": 8, "of": 1014}, 0)
    assert named == {"train": ["b"], "val": [], "test": ["a"]}
    with pytest.raises(UserError, match="split.of=0"):
        split_patients(["a", "b"], {"test": 1, "of": 0}, 0)


def test_a_split_is_written_published_and_read_again(tmp_path: Path) -> None:
    patients = [f"p{i:02d}" for i in range(20)]
    drawn = split_patients(patients, {"val": 2, "test": 5}, seed=3)
    write_split(tmp_path / "split_patients.json", "lumbarv", 3, drawn)
    told = json.loads((tmp_path / "split_patients.json").read_text())
    assert (told["name"], told["seed"], told["test"]) == ("lumbarv", 3, drawn["test"])
    # Whatever counts and seed the reader has.
    again = {"val": 0.5, "test": 0.5, "file": tmp_path / "split_patients.json"}
    assert split_patients(patients, again, seed=9) == drawn
    write_lists(tmp_path / "lists", drawn)
    for where in ("lists", "lists/test.txt"):
        assert split_patients(patients, {"file": str(tmp_path / where)}, 0) == drawn
    write_lists(tmp_path / "two", drawn | {"val": []})
    assert not (tmp_path / "two/val.txt").exists()
    both = split_patients(patients, {"file": tmp_path / "two", "val": 4}, 0)
    assert (both["test"], len(both["val"]), len(both["train"])) == (drawn["test"], 4, 11)


def test_lists_that_do_not_fit_are_reported(tmp_path: Path) -> None:
    write_split(tmp_path / "s.json", "x", 0, {"train": ["a", "b", "gone"], "val": [], "test": ["b", "c"]})
    notes: list[str] = []
    split = split_patients(["a", "b", "c", "new"], {"file": tmp_path / "s.json"}, 0, notes=notes)
    assert split == {"train": ["a", "new"], "val": [], "test": ["b", "c"]}
    file = tmp_path / "s.json"
    assert notes == [
        f"{file}: b is in the lists of both train and test; put to test",
        f"{file}: 1 of 4 patients are not here, e.g. gone",
        f"{file}: does not name 1 patients here, e.g. new; put to train",
    ]
    official = {"train": ["a"], "val": [], "test": ["b"]}
    assert split_patients(["a", "b"], "official", 0, official=official) == official
    assert split_patients(["a", "b"], {"file": "official"}, 0, official=official) == official
    for bad, message in [
        ("official", "no official lists lie in the raw folder"),
        ({"file": tmp_path / "gone.json"}, "cannot be read"),
        ({"file": tmp_path / "s.json", "tset": 1}, "unknown keys"),
    ]:
        with pytest.raises(UserError, match=message):
            split_patients(["a", "b"], bad, 0)
    with pytest.raises(UserError, match="names none of the 1 patients here, e.g. z"):
        split_patients(["z"], {"file": tmp_path / "s.json"}, 0)
    for text, message in [("{", "not JSON"), ('{"train": 3}', "must be lists"), ("[1]", "no split found")]:
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(UserError, match=message):
            read_split(tmp_path / "bad.json")
    (tmp_path / "bad.txt").write_text("just a line\n")
    with pytest.raises(UserError, match="no split found"):
        read_split(tmp_path / "bad.txt")


def test_published_formats(tmp_path: Path) -> None:
    """CTSpine1K's headed list with its line ends, and X2CT-GAN's names of scans."""
    (tmp_path / "data_split.txt").write_bytes(
        b"trainset:\r\nliver_1.nii.gz\r\nliver_12.nii.gz\r\n\r\ntest_public:\r\nHN_P001.nii.gz\r\n"
        b"test_private:\r\n1.3.6.1.4.1.9328.50.4.0001.nii.gz\r\n"
    )
    assert read_split(tmp_path / "data_split.txt") == {
        "train": ["liver_1", "liver_12"],
        "val": ["HN_P001"],
        "test": ["1.3.6.1.4.1.9328.50.4.0001"],
    }
    (tmp_path / "train.txt").write_text("LIDC-IDRI-0936.20000101.5169.2.1\nLIDC-IDRI-0001.20000101.3000566.1\n")
    (tmp_path / "test.txt").write_text("# comment\nLIDC-IDRI-0256.20000101.8658.4.1\n\n")
    known = ["LIDC-IDRI-0001", "LIDC-IDRI-0256", "LIDC-IDRI-0936", "LIDC"]
    assert read_split(tmp_path, known) == {
        "train": ["LIDC-IDRI-0936", "LIDC-IDRI-0001"],
        "val": [],
        "test": ["LIDC-IDRI-0256"],
    }


def test_conflicts_go_to_the_part_that_is_held_out() -> None:
    parts, notes = resolve_conflicts({"train": ["a", "b", "c", "a"], "val": ["b", "c"], "test": ["c", "d"]})
    assert parts == {"train": ["a"], "val": ["b"], "test": ["c", "d"]}
    assert len(notes) == 3
