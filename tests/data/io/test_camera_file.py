import json
from pathlib import Path

import pytest

from diffux2ct.data.io.camera_file import check_extent, read_camera_file, read_camera_files
from diffux2ct.errors import UserError
from diffux2ct.xray.camera import Camera, camera_preset

STILL, TURNED = ({"rotation_deg": [0, 0, degrees], "shift_mm": [0, 0, 0]} for degrees in (0, 5))


def write(folder: Path, **changes) -> Path:
    """camera.json of a 2 mm cube of 32 voxels, as synthesize_drr.py writes it."""
    record = {
        "camera": camera_preset("lumbar", 32, 2.0).to_dict(),
        "source": "scan.nii.gz",
        "size": 32,
        "spacing": [2.0, 2.0, 2.0],
        "origin": [-31.0, 69.0, 0.0],
        "pose": {"frontal": STILL, "lateral": STILL},
        "output": "line_integral",
        "scale": {"frontal": 1.0, "lateral": 1.0},
    }
    folder.mkdir(exist_ok=True)
    (folder / "camera.json").write_text(json.dumps(record | changes))
    return folder


def pair(frontal: Path, lateral: Path) -> dict[str, Path]:
    return {"frontal": frontal / "frontal.npy", "lateral": lateral / "lateral.png"}


def test_it_tells_the_view_and_the_cube(tmp_path):
    known = read_camera_file(write(tmp_path / "a") / "lateral.png")
    assert known is not None
    assert (known.view, known.camera, known.output, known.moved) == ("lateral", "lumbar", "line_integral", False)
    assert Camera.from_dict(known.geometry) == camera_preset("lumbar", 32, 2.0)
    assert known.extent == (64.0, 64.0, 64.0)
    assert known.centre == (0.0, 100.0, 31.0)
    turned = write(tmp_path / "b", pose={"frontal": STILL, "lateral": TURNED})
    assert read_camera_file(turned / "frontal.npy").moved


def test_it_speaks_only_of_the_files_it_names(tmp_path):
    assert read_camera_file(tmp_path / "frontal.npy") is None
    assert read_camera_file(write(tmp_path / "a") / "patient7.npy") is None


@pytest.mark.parametrize(
    "text", ["{", "[]", "3", '{"scale": {"frontal": 1}}', '{"scale": {"frontal": 1}, "size": "x"}']
)
def test_a_damaged_one_is_named(tmp_path, text):
    (tmp_path / "camera.json").write_text(text)
    with pytest.raises(UserError, match=r"camera\.json: damaged"):
        read_camera_file(tmp_path / "frontal.npy")


def test_the_same_cube_at_another_spacing_is_the_same_cube(tmp_path):
    finer = {"size": 64, "spacing": [1.0, 1.0, 1.0], "origin": [-31.5, 68.5, -0.5]}
    a, b = write(tmp_path / "a"), write(tmp_path / "b", **finer)
    assert set(read_camera_files(pair(a, b))) == {"frontal", "lateral"}
    assert set(read_camera_files(pair(a, tmp_path))) == {"frontal"}


@pytest.mark.parametrize(
    "changes", [{"origin": [-31.0, 70.0, 0.0]}, {"size": 30}, {"source": "other.nii.gz"}, {"spacing": [2.0, 2.0, 2.5]}]
)
def test_views_of_different_cubes_are_refused(tmp_path, changes):
    a, b = write(tmp_path / "a"), write(tmp_path / "b", **changes)
    with pytest.raises(UserError, match="different cubes"):
        read_camera_files(pair(a, b))


def test_exchanged_views_and_transmission_are_refused(tmp_path):
    a = write(tmp_path / "a")
    with pytest.raises(UserError, match=r"frontal\.npy: given as lateral, .* is the frontal view"):
        read_camera_files({"lateral": a / "frontal.npy"})
    with pytest.raises(UserError, match="output=line_integral"):
        read_camera_files(pair(write(a, output="transmission"), a))


def test_the_field_of_view_must_be_the_model_s(tmp_path):
    known = read_camera_file(write(tmp_path / "a") / "frontal.npy")
    check_extent(known, (64.0, 64.0, 64.2))
    with pytest.raises(UserError, match=r"64 x 64 x 64 mm, this model makes one of 128 x 128 x 64 mm"):
        check_extent(known, (128.0, 128.0, 64.0))
