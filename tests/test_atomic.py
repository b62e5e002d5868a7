import hashlib
import os

import pytest

from diffux2ct.atomic import link, replaced_file, replaced_files, replaced_folder, sha256_of, write_text


def test_a_file_appears_whole_or_stays_as_it_was(tmp_path):
    path = tmp_path / "new" / "a.txt"
    write_text(path, "first")

    def interrupted():
        with replaced_file(path) as partial:
            partial.write_text("half")
            assert path.read_text() == "first"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "first"
    (path.parent / ".partial-a.txt").write_text("left by a kill")
    with replaced_file(path, sync=True) as partial:
        assert partial.suffix == ".txt"  # some writers choose the format by it
        assert not partial.exists()
        partial.write_text("second")
    assert path.read_text() == "second"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_a_linked_name_is_the_same_file(tmp_path, monkeypatch):
    write_text(tmp_path / "a", "first")
    link(tmp_path / "a", "last")
    assert (tmp_path / "last").samefile(tmp_path / "a")

    def refuse(*_):
        raise OSError("no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    write_text(tmp_path / "b", "second")
    link(tmp_path / "b", "last")
    assert (tmp_path / "last").read_text() == "second"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "last"]


def test_a_folder_left_by_a_kill_is_replaced(tmp_path):
    (tmp_path / ".partial-out").mkdir()
    (tmp_path / ".partial-out" / "half").write_text("left by a kill")
    with replaced_folder(tmp_path / "out") as partial:
        (partial / "a").write_text("a")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a"]


def test_a_record_never_stands_beside_files_of_another_run(tmp_path):
    out = tmp_path / "out"

    def write(text, fail=False):
        with replaced_files(out, record="a.json") as partial:
            (partial / "a.json").write_text(text)
            if fail:
                raise ZeroDivisionError
            (partial / "b.txt").write_text(text)

    write("1")
    (out / "mine").write_text("kept")
    with pytest.raises(ZeroDivisionError):
        write("2", fail=True)
    assert {p.name: p.read_text() for p in out.iterdir()} == {"a.json": "1", "b.txt": "1", "mine": "kept"}
    (out / "b.txt").unlink()
    (out / "b.txt").mkdir()  # so that moving stops halfway
    with pytest.raises(OSError, match="b.txt"):
        write("3")
    assert not (out / "a.json").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_the_hash_of_a_folder_is_that_of_its_files(tmp_path):
    for name, text in (("b", "2"), ("a", "1"), (".hidden", "3")):
        write_text(tmp_path / name, text)
    one, two = (hashlib.sha256(text).hexdigest() for text in (b"1", b"2"))
    assert sha256_of(tmp_path / "a") == one
    assert sha256_of(tmp_path) == hashlib.sha256((one + two).encode()).hexdigest()
