"""X2CT-GAN's files that cannot be used: one line each, and the others go on."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from tests.data.io.x2ct.x2ct_files import SIZE, STEP, body, import_x2ct, published, survey_x2ct

from diffux2ct.data.io.x2ct.file import read_x2ct, write_x2ct, x2ct_views
from diffux2ct.data.preparation.stored import SETTINGS
from diffux2ct.data.prepared.export_x2ct import export_x2ct
from diffux2ct.errors import UserError


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ct": None}, "no dataset 'ct'"),
        ({"ct": np.zeros((4, 4, 5))}, "not a cube"),
        ({"ct": np.full((4, 4, 4), np.nan)}, "no numbers"),
        ({"ct": np.full((4, 4, 4), -1000.0)}, "HU [+] 1024 is expected"),
        ({"ct": np.linspace(0, 1, 64).reshape(4, 4, 4)}, "HU [+] 1024 is expected"),
        ({"spacing": np.array([1.0, 2.0, 1.0])}, "not a cube"),
        ({"xray1": np.zeros((2, 2, 2))}, "xray1 is no grey image"),
    ],
)
def test_bad_files_end_in_one_line(tmp_path: Path, change: dict, message: str) -> None:
    path = published(tmp_path / "s/ct_xray_data.h5", body())
    with h5py.File(path, "a") as file:
        for name, value in change.items():
            del file[name]
            if value is not None:
                file[name] = value
    with pytest.raises(UserError, match=message) as error:
        read_x2ct(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def huge(file: h5py.File) -> None:
    del file["ct"]
    file.create_dataset("ct", (60000,) * 3, np.int16, chunks=(16,) * 3)


def text(name: str):
    def change(file: h5py.File) -> None:
        del file[name]
        file[name] = "much"

    return change


def attribute(name: str, value, of: str = "/"):
    return lambda file: file[of].attrs.__setitem__(name, value)


def elsewhere(link):
    def change(file: h5py.File) -> None:
        del file["ct"]
        file["ct"] = link

    return change


def external(file: h5py.File) -> None:
    values = np.asarray(file["ct"])
    del file["ct"]
    aside = Path(file.filename).with_name("values.bin")
    aside.write_bytes(values.tobytes())
    file.create_dataset("ct", values.shape, values.dtype, external=[(str(aside), 0, values.nbytes)])


def virtual(file: h5py.File) -> None:
    del file["ct"]
    layout = h5py.VirtualLayout((SIZE,) * 3, np.int16)
    layout[:] = h5py.VirtualSource(str(Path(file.filename).parents[1] / "a/ct_xray_data.h5"), "ct", (SIZE,) * 3)
    file.create_virtual_dataset("ct", layout)


def group(file: h5py.File) -> None:
    del file["xray1"]
    file.create_group("xray1")


MUTATIONS = [
    (huge, "60000 voxels per side"),
    (text("ori_size"), "ori_size is not 1 or 3 numbers"),
    (text("spacing"), "spacing is not"),
    (text("xray2"), "xray2 is no grey image"),
    (attribute("scale", "big", "xray1"), None),  # one scale alone is none
    (attribute("origin", [1.0, 2.0]), "origin is not 3 numbers"),
    (attribute("origin", [1.0, 2.0, np.nan]), "origin is not 3 numbers"),
    (attribute("origin", h5py.Empty("f")), "origin is not 3 numbers"),
    (attribute("patient", [1, 2]), "patient is no text"),
    (attribute("patient", np.arange(3.0)), "patient is no text"),
    (attribute("camera", "{"), "camera is damaged"),
    (attribute("camera", "[1]"), "camera is damaged"),
    (attribute("camera", '{"kind": "cone", "sad": "a", "sid": 1, "rows": 1, "cols": 1, "pitch": [1, 1]}'), "camera"),
    (attribute("window", "[1, 0]"), "window is damaged"),
    (attribute("poses", "{}"), "poses is damaged"),
    (attribute("unknown", np.arange(9)), None),
    (elsewhere(h5py.ExternalLink("../a/ct_xray_data.h5", "ct")), "ct is a link"),
    (elsewhere(h5py.SoftLink("/xray1")), "ct is a link"),
    (elsewhere(h5py.SoftLink("/nowhere")), "ct is a link"),
    (external, "another file's data"),
    (virtual, "another file's data"),
    (group, "xray1 is a link, a group"),
]


def test_files_that_cannot_be_used_do_not_stop_the_others(tmp_path: Path) -> None:
    raw, expected = tmp_path / "raw", {}
    published(raw / "a/ct_xray_data.h5", body())
    for number, (change, message) in enumerate(MUTATIONS, 1):
        path = published(raw / f"m{number:02d}/ct_xray_data.h5", body(number))
        with h5py.File(path, "a") as file:
            change(file)
        if message is not None:
            expected[str(path.relative_to(raw))] = message
            with pytest.raises(UserError, match=message):
                read_x2ct(path)
    options: dict[str, Any] = {
        "settings": replace(SETTINGS, size=SIZE, spacing=STEP),
        "split": {"test": 1},
        "progress": False,
    }
    report = import_x2ct(raw, tmp_path / "out", "x", **options)
    assert report.written == 1 + sum(message is None for _, message in MUTATIONS)
    assert {source for source, _ in report.bad} == set(expected)
    for source, reason in report.bad:
        assert expected[source] in reason
        assert "\n" not in reason
    assert survey_x2ct(raw, **options)[1].bad == report.bad


def test_damaged_bytes_end_in_one_line(tmp_path: Path) -> None:
    """Whatever bytes of the structure or the values are damaged, a file is a sound scan or refused in one line."""
    attrs = {"patient": "p", "window": [-1000, 1500]}
    views = x2ct_views(body(), (STEP,) * 3, SIZE)
    path = write_x2ct(tmp_path / "f/ct_xray_data.h5", body(), (STEP,) * 3, views, origin=(1, 2, 3), attrs=attrs)
    whole, lines = path.read_bytes(), []
    structure = np.r_[0:2500, 11000 : len(whole)]  # between lie the voxels
    generator = np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(whole[: generator.integers(1, len(whole))] if generator.random() < 0.2 else whole)
        for place in generator.choice(structure, generator.integers(1, 9)):
            damaged[place % len(damaged)] = generator.integers(256)
        path.write_bytes(damaged)
        try:
            scan = read_x2ct(path)
        except UserError as error:
            lines.append(str(error))
        else:
            assert scan.hu.shape[0] <= 512
            assert np.isfinite([*scan.origin, *scan.spacing]).all()
            assert min(scan.spacing) > 0
    assert 10 < len(lines) < 150
    assert not any("\n" in line for line in lines)


def test_other_errors(tmp_path: Path, phantoms: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = published(tmp_path / "s/ct_xray_data.h5", body())
    with pytest.raises(UserError, match="size=32 is more than the 16 stored"):
        read_x2ct(path, 32)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(UserError, match="damaged"):
        read_x2ct(path)
    with pytest.raises(UserError, match="no prepared folder"):
        export_x2ct(tmp_path, tmp_path / "out")
    with pytest.raises(UserError, match="is the prepared folder itself"):
        export_x2ct(phantoms, phantoms)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match=r"pip install -c constraints.txt '\.\[x2ct\]'"):
        read_x2ct(path)
