import json
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
import SimpleITK as sitk
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from PIL import Image

from diffux2ct.arguments import read
from diffux2ct.cli.drr import Radiograph, idle_settings, run
from diffux2ct.errors import UserError
from diffux2ct.xray.attenuation import ATTENUATIONS
from diffux2ct.xray.drr import OUTPUTS, PROJECTORS, decode_output

ROOT = Path(__file__).resolve().parents[2]
DEFAULTS = OmegaConf.to_container(OmegaConf.load(ROOT / "configs" / "drr.yaml"))
DEFAULTS = {key: value for key, value in DEFAULTS.items() if key not in ("defaults", "hydra")}


def configure(**overrides):
    return OmegaConf.create({**DEFAULTS, **overrides})


@pytest.fixture(scope="module")
def scan(tmp_path_factory) -> Path:
    """64 mm of air with a bone ball to the patient's left, front and head, and 3000 HU metal in its middle."""
    grid = (np.indices((32, 32, 32)) - 15.5) * 2.0
    z, y, x = grid
    distance = np.sqrt((z - 14) ** 2 + (y + 16) ** 2 + (x - 18) ** 2)
    hu = np.where(distance < 8, 1000, -1000)
    hu[distance < 3] = 3000
    image = sitk.GetImageFromArray(hu.astype(np.int16))
    image.SetSpacing((2.0, 2.0, 2.0))
    path = tmp_path_factory.mktemp("ct") / "ball.nii.gz"
    sitk.WriteImage(image, str(path))
    return path


def test_the_folder_holds_both_views_and_how_to_read_them(scan, tmp_path):
    out = tmp_path / "new" / "drr"
    run(configure(ct=str(scan), out=str(out), size=32, camera="parallel"))
    names = {"frontal.npy", "lateral.npy", "frontal.png", "lateral.png", "camera.json"}
    assert {path.name for path in out.parent.rglob("*") if path.is_file()} == names
    record = json.loads((out / "camera.json").read_text())
    assert record["camera"]["name"] == "parallel"
    assert (record["size"], record["spacing"], record["source"]) == (32, [2.0, 2.0, 2.0], str(scan))
    centre = {"frontal": (14, 18), "lateral": (14, -16)}  # mm along rows and columns
    for view, (row_mm, col_mm) in centre.items():
        image = np.load(out / f"{view}.npy")
        assert image.dtype == np.float32
        assert image.shape == (32, 32)
        # 1500 HU after clipping for 6 mm of the 16 mm through the ball's middle
        assert image.max() == pytest.approx(0.022 * (2.0 * 10 + 2.5 * 6), rel=0.15)
        rows, cols = np.indices(image.shape)
        at = np.array([(image * rows).sum(), (image * cols).sum()]) / image.sum()
        np.testing.assert_allclose((at - 15.5) * 2.0, (row_mm, col_mm), atol=0.5)
        grey = np.asarray(Image.open(out / f"{view}.png"))
        assert grey.dtype == np.uint16
        assert grey.max() == 65535
        undone = grey[::-1] * record["png_scale"][view]  # a PNG has the head up
        np.testing.assert_allclose(undone, image, atol=record["png_scale"][view])


def test_other_angles_are_written_under_their_names_and_change_no_named_view(scan, tmp_path):
    jitter = {"pose_jitter": {"degrees": 2.0, "mm": 3.0}}
    for name, more in (("two", {}), ("three", {"views": [45, 0, 90, 180]}), ("one", {"views": [180]})):
        run(configure(ct=str(scan), out=str(tmp_path / name), size=32, **jitter, **more))
    assert {path.name for path in (tmp_path / "one").iterdir()} == {"angle_180.npy", "angle_180.png", "camera.json"}
    for view in ("frontal", "lateral"):
        two, three = (np.load(tmp_path / name / f"{view}.npy") for name in ("two", "three"))
        np.testing.assert_array_equal(two, three)
    # The ball is at the left, in front: from behind, at the left of the picture; between both views, in front.
    from_behind = np.load(tmp_path / "one" / "angle_180.npy").sum(0)
    assert from_behind[:16].sum() > 5 * from_behind[16:].sum()
    turned = np.load(tmp_path / "three" / "angle_45.npy").sum(0)
    assert turned[24:].sum() > 5 * turned[:24].sum()  # 18 cos 45 + 16 sin 45 = 24 mm across
    assert set(json.loads((tmp_path / "three" / "camera.json").read_text())["pose"]) == {
        "frontal", "lateral", "angle_45", "angle_180"
    }  # fmt: skip
    with pytest.raises(UserError, match=r"views=\[0.0, 0.0\]: give 1 to 8 different angles"):
        run(configure(ct=str(scan), out=str(tmp_path / "no"), size=32, views=[0, 0]))


@pytest.mark.parametrize("padding", [None, 0], ids=["whole", "padded with water"])
def test_the_same_scan_gives_the_same_xrays_as_preparation(tmp_path, padding):
    """An odd number of voxels, and a cube of another spacing: a cube in whole voxels would lie half a voxel off."""
    from diffux2ct.cli.prepare import run as prepare

    hu = np.random.default_rng(0).normal(0, 300, (33, 31, 29)).clip(-1000, 1400)
    if padding is not None:
        hu[:, :, [0, 1, -2, -1]] = padding
    image = sitk.GetImageFromArray(hu.astype(np.int16))
    image.SetSpacing((2.0, 2.2, 2.5))
    image.SetOrigin((-20.0, 7.0, 300.0))
    (tmp_path / "raw").mkdir()
    sitk.WriteImage(image, str(tmp_path / "raw" / "p1.nii.gz"))
    with initialize_config_module("diffux2ct.configs", version_base="1.3"):
        words = [f"raw={tmp_path / 'raw'}", f"out={tmp_path / 'set'}", "size=16", "spacing=3", "workers=1"]
        split = ["dataset.prepare.split.val=0", "dataset.prepare.split.test=0", "contact_sheet=false"]
        prepare(compose("prepare", ["dataset=folder", *words, *split]))
    run(configure(ct=str(tmp_path / "raw" / "p1.nii.gz"), out=str(tmp_path / "drr"), size=16, spacing=3.0))
    (case,) = (tmp_path / "set" / "cases").iterdir()
    prepared, record = (json.loads(path.read_text()) for path in (case / "case.json", tmp_path / "drr/camera.json"))
    np.testing.assert_allclose(record["origin"], prepared["origin"], atol=1e-3)
    for view in ("frontal", "lateral"):
        rendered = np.load(tmp_path / "drr" / f"{view}.npy")
        np.testing.assert_array_equal(rendered, np.load(case / f"{view}.npy"))


def test_settings_change_what_they_say(scan, tmp_path):
    def frontal(**overrides):
        run(configure(**{"ct": str(scan), "out": str(tmp_path), "size": 32, **overrides}))
        return np.load(tmp_path / "frontal.npy")

    default = frontal()
    assert frontal(window=None).max() > default.max() * 1.1  # metal at its full HU
    fine = frontal(spacing=1.0, size=64)
    assert fine.shape == (64, 64)
    assert fine.max() == pytest.approx(default.max(), rel=0.1)
    wide = frontal(camera="x2ct")
    assert wide.shape == (32, 32)
    assert (wide > 0.05).sum() < (default > 0.05).sum() / 4  # 64 mm on a panel that covers 285 mm


@pytest.mark.parametrize("output", ["line_integral", "transmission", "max"])
def test_every_output_leads_back_to_the_line_integrals(scan, tmp_path, output):
    run(configure(ct=str(scan), out=str(tmp_path / "plain"), size=32))
    run(configure(ct=str(scan), out=str(tmp_path / output), size=32, output=output))
    record = json.loads((tmp_path / output / "camera.json").read_text())
    assert record["output"] == output
    for view in ("frontal", "lateral"):
        plain, image = (np.load(tmp_path / folder / f"{view}.npy") for folder in ("plain", output))
        assert (record["scale"][view] == 1.0) == (output != "max")
        assert (image.max() == pytest.approx(1.0)) == (output != "line_integral")
        np.testing.assert_allclose(decode_output(image, output, record["scale"][view]), plain, atol=1e-5)
        grey = np.asarray(Image.open(tmp_path / output / f"{view}.png"))[::-1]
        np.testing.assert_allclose(grey * record["png_scale"][view], image, atol=record["png_scale"][view])


def test_projector_attenuation_and_pose_are_told_and_taken(scan, tmp_path):
    def frontal(**overrides):
        run(configure(**{"ct": str(scan), "out": str(tmp_path), "size": 32, **overrides}))
        record = json.loads((tmp_path / "camera.json").read_text())
        return np.load(tmp_path / "frontal.npy"), record

    joseph, record = frontal()
    assert record["projector"] == "joseph"
    assert record["attenuation"] == {"name": "plastimatch"}
    assert record["pose"]["frontal"] == {"rotation_deg": [0, 0, 0], "shift_mm": [0, 0, 0]}
    siddon, _ = frontal(projector="siddon")
    assert 0 < np.abs(siddon - joseph).mean() < 0.15 * joseph.mean()
    hard, record = frontal(attenuation="two_material", window=None, kvp=120)
    assert record["attenuation"]["kvp"] == 120
    soft, _ = frontal(attenuation="two_material", window=None)
    assert soft.max() > 1.2 * hard.max() > 1.2 * joseph.max()  # metal is titanium, not a little more bone
    water, record = frontal(attenuation="water", kev=80)
    assert record["attenuation"] == {"kev": 80.0, "name": "water"}
    assert water.max() == pytest.approx(joseph.max() * 0.01837 / 0.022, rel=1e-3)
    moved, _ = frontal(camera="parallel", shift=[-10, 0, 4])
    still, _ = frontal(camera="parallel")
    np.testing.assert_allclose(moved[2:, :-5], still[:-2, 5:], atol=1e-4)


def test_jitter_and_noise_follow_the_seed(scan, tmp_path):
    def images(**overrides):
        run(configure(**{"ct": str(scan), "out": str(tmp_path), "size": 32, **overrides}))
        return {view: np.load(tmp_path / f"{view}.npy") for view in ("frontal", "lateral")}

    jitter = {"pose_jitter": {"degrees": 5, "mm": 8}}
    noise = {"effects": {**DEFAULTS["effects"], "photons": 1000, "electronic_noise": 3}}
    still = images()
    for setting in (jitter, noise):
        first = images(seed=1, **setting)
        again, other = images(seed=1, **setting), images(seed=2, **setting)
        for view in first:
            np.testing.assert_array_equal(again[view], first[view])
            assert np.abs(other[view] - first[view]).mean() > 1e-3
            assert np.abs(still[view] - first[view]).mean() > 1e-3
    dark = images(window=None, attenuation="two_material", effects={**DEFAULTS["effects"], "saturation": 1.0})
    assert dark["frontal"].max() == pytest.approx(1.0)  # the metal saturates
    assert (dark["frontal"] == dark["frontal"].max()).sum() >= 4


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"ct": "nowhere.nii.gz"}, "nowhere.nii.gz: no such file"),
        ({"ct": "???"}, "ct is not given"),
        ({"camera": "lumber"}, "choose lumbar, x2ct or parallel .did you mean lumbar"),
        ({"size": "big"}, "size=big: not a whole number; give a whole number from 1 to 2048"),
        ({"spacing": 0}, "spacing=0: out of range; give a number above 0"),
        ({"window": [100, 0]}, "give two rising numbers"),
        ({"projector": "fast"}, "projector=fast: no such choice; choose joseph, siddon or trilinear"),
        ({"attenuation": "lead"}, "choose plastimatch, water or two_material"),
        ({"attenuation": "two_material", "kvp": 90}, "kvp=90: no such choice; choose 80, 100 or 120"),
        ({"attenuation": "water", "kev": 1}, "kev=1: out of range; give a number from 10 to 150"),
        ({"output": "log"}, "output=log: no such choice; choose line_integral, transmission or max"),
        ({"rotation": [0, 90]}, "rotation=.*give three numbers"),
        ({"shift": 3}, "shift=3: not three numbers"),
        ({"pose_jitter": {"degrees": 3}}, "pose_jitter.mm is not given"),
        (
            {"pose_jitter": {"degrees": -3, "mm": 1}},
            "pose_jitter.degrees=-3: out of range; give a number of at least 0",
        ),
        ({"pose_jitter": 3}, "pose_jitter=3: not a group of settings"),
        ({"effects": {"gamma": "abc"}}, "effects.gamma=abc: not a number; give a number above 0"),
        ({"effects": None}, "effects=null: a value is needed"),
        ({"seed": -1}, "seed=-1"),
        ({"effects": {"gamma": 0}}, "gamma=0"),
        ({"effects": {"blur": 1}}, "blur"),
        ({"spacing": 20.0}, "crop it or move the camera"),
    ],
)
def test_a_failure_is_one_line_and_leaves_nothing(scan, tmp_path, overrides, message):
    out = tmp_path / "drr"
    with pytest.raises(UserError, match=message) as error:
        run(configure(**{"ct": str(scan), "out": str(out), **overrides}))
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_out_must_not_be_a_file(scan, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        run(configure(ct=str(scan), out=str(tmp_path / "file")))
    assert (tmp_path / "file").read_text() == "mine"


def test_a_failed_write_keeps_the_earlier_result(scan, tmp_path):
    out = tmp_path / "drr"
    run(configure(ct=str(scan), out=str(out), size=32))
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    out.with_name(".partial-drr").write_text("in the way")  # so that staging fails
    with pytest.raises(OSError, match="exists"):
        run(configure(ct=str(scan), out=str(out), size=16))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_camera_json_never_stands_beside_images_of_another_run(scan, tmp_path):
    out = tmp_path / "drr"
    run(configure(ct=str(scan), out=str(out), size=32))
    before = (out / "frontal.npy").read_bytes()
    (out / "lateral.npy").unlink()
    (out / "lateral.npy").mkdir()  # so that moving the results in stops halfway
    with pytest.raises(OSError, match="lateral.npy"):
        run(configure(ct=str(scan), out=str(out), size=16, spacing=4.0))
    assert (out / "frontal.npy").read_bytes() != before
    assert not (out / "camera.json").exists()
    (out / "lateral.npy").rmdir()
    run(configure(ct=str(scan), out=str(out), size=16, spacing=4.0))
    assert json.loads((out / "camera.json").read_text())["size"] == 16


def test_the_command_reports_a_user_error_in_one_line(tmp_path):
    command = [sys.executable, str(ROOT / "scripts" / "synthesize_drr.py"), "ct=nowhere.nii.gz", "out=drr"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8", timeout=120)
    assert done.returncode == 1
    assert done.stderr == (
        "error: nowhere.nii.gz: no such file or folder; give a CT file or a folder with a DICOM series\n"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.real
def test_a_real_chest_has_its_heart_on_the_images_right_and_its_spine_behind(shared_data, tmp_path):
    run(configure(ct=str(shared_data / "ct" / "lidc0314_chest.nii.gz"), out=str(tmp_path / "drr")))
    frontal, lateral = (np.load(tmp_path / "drr" / f"{view}.npy") for view in ("frontal", "lateral"))
    assert 3 < frontal.max() < 10  # 20 to 40 cm of a chest
    assert 3 < lateral.max() < 12
    middle = frontal[30:100]
    assert 54 <= middle.mean(0).argmax() <= 74  # spine and mediastinum in the middle column
    heart = frontal[28:42]  # rows just above the diaphragm: the heart's shadow bulges to the patient's left
    assert heart[:, 72:88].mean() > heart[:, 88:104].mean()
    assert lateral[:, 96:].mean() > lateral[:, :32].mean()  # spine and back behind, air in front


@pytest.mark.parametrize(
    ("output", "told"),
    [
        ("line_integral", ": line integrals of 16x16,"),
        ("transmission", ": transmission, between 0 and 1, of 16x16,"),
        ("max", ": line integrals over each image's largest of 16x16,"),
    ],
)
def test_it_says_what_the_files_hold(scan, tmp_path, capsys, output, told):
    run(configure(ct=str(scan), out=str(tmp_path / "drr"), size=16, spacing=4.0, output=output))
    line = capsys.readouterr().out.splitlines()[-1]
    assert told in line
    peak = float(line.split("frontal up to ")[1].split(",")[0])
    assert 0.2 < peak < 1.0  # 16 mm of bone with metal in it, through voxels of 4 mm


def test_the_choices_are_those_of_the_renderer():
    kinds = get_type_hints(Radiograph)
    assert set(get_args(kinds["projector"])) == set(PROJECTORS)
    assert set(get_args(kinds["attenuation"])) == set(ATTENUATIONS)
    assert set(get_args(kinds["output"])) == set(OUTPUTS)


@pytest.mark.parametrize(
    ("words", "idle"),
    [
        ("", {"kev", "kvp", "effects.electronic_noise", "effects.scatter_width", "effects.sharpen_width", "seed"}),
        ("attenuation=water effects.photons=1e5 effects.sharpen=1", {"kvp", "effects.scatter_width"}),
        (
            "attenuation=two_material effects.scatter_to_primary=1",
            {"kev", "effects.electronic_noise", "effects.sharpen_width", "seed"},
        ),
    ],
)
def test_settings_without_effect_are_named(words, idle):
    with initialize_config_module("diffux2ct.configs", version_base="1.3"):
        cfg = compose("drr", ["ct=a", "out=b", *words.split()])
    assert idle_settings(read(Radiograph, cfg)).keys() == idle
