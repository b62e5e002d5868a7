import os
from pathlib import Path

import pytest

from diffux2ct.data.io.dicom.kind import has_dicom_magic, is_dicom, is_image, named_dicom


@pytest.mark.parametrize(
    ("name", "content", "magic", "dicom"),
    [
        ("IM0001", bytes(128) + b"DICM" + bytes(9), True, True),
        ("a.DCM", b"old files lack the word", False, True),
        ("a.dcm", b"", False, False),
        ("a.nii", bytes(128) + b"DICOM", False, False),
        ("b", b"DICM", False, False),
        ("c", bytes(127) + b"DICM", False, False),
    ],
)
def test_the_magic_word_stands_behind_the_preamble(tmp_path: Path, name, content, magic, dicom):
    path = tmp_path / name
    path.write_bytes(content)
    assert (has_dicom_magic(path), is_dicom(path)) == (magic, dicom)
    assert named_dicom(path) == name.lower().endswith(".dcm")


def test_what_is_no_file_is_not_opened(tmp_path: Path):
    assert not has_dicom_magic(tmp_path / "nothing.dcm")
    assert not is_dicom(tmp_path / "nothing.dcm")
    assert not is_dicom(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.dcm")
        assert not is_dicom(tmp_path / "pipe.dcm")  # to open it would wait for ever
        assert not is_image(tmp_path / "pipe.dcm")
