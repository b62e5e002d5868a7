import errno
import gzip
import hashlib
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from PIL import Image
from safetensors.torch import save_file

from diffux2ct.errors import UserError
from diffux2ct.files.atomic import is_whole, link, replaced_file, replaced_files, replaced_folder, sha256_of, write_text


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


def test_a_link_to_a_folder_stays_one(tmp_path):
    (tmp_path / "disk/run").mkdir(parents=True)
    (tmp_path / "run").symlink_to("disk/run")
    with replaced_folder(tmp_path / "run") as partial:
        (partial / "a").write_text("1")
    with replaced_files(tmp_path / "run", "b") as partial:
        (partial / "b").write_text("2")
    assert (tmp_path / "run").is_symlink()
    assert sorted(path.name for path in (tmp_path / "disk").rglob("*")) == ["a", "b", "run"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "run"]


def test_the_hash_of_a_folder_is_that_of_its_files(tmp_path):
    for name, text in (("b", "2"), ("a", "1"), (".hidden", "3")):
        write_text(tmp_path / name, text)
    one, two = (hashlib.sha256(text).hexdigest() for text in (b"1", b"2"))
    assert sha256_of(tmp_path / "a") == one
    assert sha256_of(tmp_path) == hashlib.sha256((one + two).encode()).hexdigest()


def write(path: Path) -> None:
    """A small file in the format of its suffix, by the library that writes it."""
    values = np.arange(8 * 9 * 10, dtype=np.int16).reshape(8, 9, 10)
    if path.name.endswith((".nii", ".nii.gz", ".mha", ".nrrd")):
        sitk.WriteImage(sitk.GetImageFromArray(values), str(path))
    elif path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix == ".png":
        Image.fromarray(values[0].astype(np.uint8)).save(path)
    elif path.suffix == ".safetensors":
        save_file({"a": torch.from_numpy(values), "b": torch.zeros(3)}, path)
    elif path.suffix == ".h5":
        content = io.BytesIO()  # HDF5 itself, where the disk is full, may end the process
        pytest.importorskip("h5py").File(content, "w").create_dataset("ct", data=values).file.close()
        path.write_bytes(content.getvalue())
    else:
        path.write_text("text")


FORMATS = ["a.nii", "a.nii.gz", "a.mha", "a.nrrd", "a.npy", "a.png", "a.safetensors", "a.h5"]


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_cut_short_without_an_error_does_not_replace_the_former(tmp_path, name):
    """As a library leaves it that drops the error of a full disk."""
    with replaced_file(tmp_path / name) as partial:
        write(partial)
    former = (tmp_path / name).read_bytes()
    for missing in (1, len(former) // 3, len(former)):

        def cut_short(missing=missing):
            with replaced_file(tmp_path / name) as partial:
                write(partial)
                os.truncate(partial, len(former) - missing)

        with pytest.raises(OSError, match="could not be read back") as error:
            cut_short()
        assert error.value.filename == str(tmp_path / name)
    assert (tmp_path / name).read_bytes() == former
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_changed_byte_in_a_compressed_file_is_noticed(tmp_path):
    path = tmp_path / "a.nii.gz"
    write(path)
    data = bytearray(path.read_bytes())
    assert is_whole(path)
    data[-6] ^= 1  # of gzip's checksum
    path.write_bytes(data)
    assert not is_whole(path)
    path.write_bytes(gzip.compress(gzip.decompress(bytes(former_bytes(tmp_path)))[:-2]))
    assert not is_whole(path)  # a whole stream of a NIfTI cut short


def former_bytes(folder: Path) -> bytes:
    write(folder / "b.nii.gz")
    return (folder / "b.nii.gz").read_bytes()


def test_a_compressed_nrrd_and_text_pass(tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((4, 4, 4), np.int16)), str(tmp_path / "a.nrrd"), True)
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((4, 4, 4), np.int16)), str(tmp_path / "a.mha"), True)
    write(tmp_path / "a.txt")
    assert all(is_whole(path) for path in tmp_path.iterdir())


def test_a_folder_with_an_array_cut_short_does_not_replace_the_former(tmp_path):
    def write_folder(cut: int):
        with replaced_folder(tmp_path / "case") as partial:
            write(partial / "volume.npy")
            os.truncate(partial / "volume.npy", (partial / "volume.npy").stat().st_size - cut)

    write_folder(0)
    with pytest.raises(OSError, match="could not be read back"):
        write_folder(1)
    assert is_whole(tmp_path / "case" / "volume.npy")
    assert [path.name for path in tmp_path.iterdir()] == ["case"]


FULL = """
import resource, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from diffux2ct.files.atomic import replaced_file, replaced_folder
from diffux2ct.cli import run_main
from test_atomic import write
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path, inside = Path(sys.argv[1]), sys.argv[2] == "folder"
def task():
    with replaced_folder(path.parent / "new") if inside else replaced_file(path) as partial:
        resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))
        write(partial / path.name if inside else partial)
run_main(task)
"""


@pytest.mark.parametrize("place", ["file", "folder"])
@pytest.mark.parametrize("name", [name for name in FORMATS if name not in ("a.png", "a.nii.gz")])
def test_a_full_disk_ends_in_one_true_line(tmp_path, name, place):
    """Whatever its library makes of it: ITK raises nothing, safetensors an error without a number."""
    command = [sys.executable, "-c", FULL, str(tmp_path / name), place, str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    line = done.stderr.strip().splitlines()[-1]
    reason = os.strerror(errno.EFBIG)
    shown = tmp_path / ("new" if place == "folder" else name)
    assert line == f"error: {shown}: {reason}; free space, then run again"
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_known_by_what_a_library_says_of_it(tmp_path):
    """safetensors deletes what it wrote before it raises."""
    with pytest.raises(OSError, match="No space left on device") as error, replaced_file(tmp_path / "a"):
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(tmp_path / "a"))


def test_bad_input_on_a_full_disk_is_no_matter_of_the_disk(tmp_path):
    def refuse():
        with replaced_folder(tmp_path / "a"):
            raise UserError("x.npy: not finite; give another")

    with pytest.raises(UserError, match="not finite"):
        refuse()


def test_two_processes_do_not_write_one_folder(tmp_path):
    def again():
        with replaced_files(tmp_path / "out", record="a.json"):
            pass

    with replaced_folder(tmp_path / "out") as partial, pytest.raises(UserError, match="out: in use by another process"):
        again()
    assert not partial.exists()
