import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from PIL import Image

from diffux2ct import build
from diffux2ct.cli.drr import run as synthesize
from diffux2ct.cli.reconstruct import check_cameras, model_grid, prepare_xrays, run
from diffux2ct.data.camera_file import read_camera_files
from diffux2ct.data.dataset import normalize_xray
from diffux2ct.data.xray_io import read_xray
from diffux2ct.errors import UserError
from diffux2ct.geometry.camera import camera_preset
from diffux2ct.training import checkpoint
from diffux2ct.types import VIEWS

ROOT = Path(__file__).resolve().parents[2]
SIZE = 16


def composed(name, *overrides):
    with initialize_config_module("diffux2ct.configs", version_base="1.3"):
        return compose(name, list(overrides))


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run with an untrained tiny model: enough to see what goes in and what comes out."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    cfg = composed(
        "train",
        "experiment=demo",
        f"dataset.size={SIZE}",
        f"dataset.root={folder / 'none'}",
        "sampler.num_inference_steps=2",
    )
    torch.manual_seed(0)
    model = build.build_reconstructor(cfg)
    with torch.no_grad():  # some layers start at zero, and would hide the X-rays
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    checkpoint.save(
        folder / "checkpoints" / "last.pt",
        {"model": model.state_dict(), "config": build.plain(cfg), "step": 7},
    )
    return folder


@pytest.fixture(scope="module")
def xrays(tmp_path_factory):
    folder = tmp_path_factory.mktemp("xrays")
    rows, cols = np.mgrid[: 2 * SIZE, : 2 * SIZE].astype(np.float32)
    np.save(folder / "frontal.npy", 6 * rows / rows.max())
    np.save(folder / "lateral.npy", 9 * cols / cols.max())
    for view in VIEWS:
        values = np.load(folder / f"{view}.npy")
        Image.fromarray(np.round(values[::-1] / values.max() * 65535).astype(np.uint16)).save(
            folder / f"{view}.png"
        )
    return folder


def reconstruct(run_folder, xrays, out, *overrides):
    files = [f"{view}={xrays / view}.npy" for view in VIEWS]
    run(
        composed(
            "reconstruct",
            f"ckpt={run_folder}",
            *files,
            f"out={out}",
            "device=cpu",
            "precision=fp32",
            *overrides,
        )
    )
    return sitk.ReadImage(str(out / "reconstruction.nii.gz"))


def test_a_ct_its_record_and_the_xrays_are_written(run_folder, xrays, tmp_path):
    out = tmp_path / "deep" / "out"
    image = reconstruct(run_folder, xrays, out, "seed=3")
    assert image.GetSize() == (SIZE,) * 3
    assert image.GetPixelID() == sitk.sitkInt16
    np.testing.assert_allclose(image.GetSpacing(), [256 / SIZE] * 3)
    centre = image.TransformContinuousIndexToPhysicalPoint([(SIZE - 1) / 2] * 3)
    np.testing.assert_allclose(centre, [0, 0, 0], atol=1e-4)
    values = sitk.GetArrayFromImage(image)
    assert values.min() >= -1024
    assert values.max() <= 1500
    record = json.loads((out / "reconstruct.json").read_text())
    last = run_folder / "checkpoints" / "last.pt"
    assert record["checkpoint"]["sha256"] == hashlib.sha256(last.read_bytes()).hexdigest()
    assert record["checkpoint"]["step"] == 7
    assert record["seed"] == 3
    assert record["sampler"]["num_inference_steps"] == 2
    assert record["xrays"]["lateral"]["path"] == str(xrays / "lateral.npy")
    assert record["xrays"]["lateral"]["shape"] == [2 * SIZE, 2 * SIZE]
    picture = np.asarray(Image.open(out / "xrays_used.png"))
    assert picture.shape == (20 + 256, 512)
    # A strip tells view and sides; then head up: the frontal ramp, which rises toward superior, is bright at the top.
    assert [bool((picture[:20, x : x + 16] > 200).any()) for x in (0, 64, 112, 240, 256, 368, 496)] == [
        True, False, True, True, True, True, True
    ]  # fmt: skip
    assert picture[20, 100] > 240
    assert picture[-1, 100] < 15
    assert sorted(p.name for p in out.iterdir()) == [
        "reconstruct.json",
        "reconstruction.nii.gz",
        "xrays_used.png",
    ]


def test_a_seed_gives_one_ct_and_xrays_steps_and_seed_each_change_it(run_folder, xrays, tmp_path):
    def volume(name, *overrides):
        return sitk.GetArrayFromImage(reconstruct(run_folder, xrays, tmp_path / name, *overrides))

    first = volume("a")
    np.testing.assert_array_equal(volume("b"), first)
    assert (volume("c", "seed=1") != first).mean() > 0.5
    assert (volume("d", "sampler.num_inference_steps=1") != first).mean() > 0.5
    assert (volume("e", "head_up=true") != first).mean() > 0.5


def test_pictures_of_line_integrals_meet_the_model_like_the_line_integrals(xrays):
    arrays, pictures = (
        prepare_xrays({view: read_xray(xrays / f"{view}.{suffix}") for view in VIEWS}, SIZE, "max")
        for suffix in ("npy", "png")
    )
    for view in VIEWS:
        # 16 bits over a range of 2.
        torch.testing.assert_close(pictures[view], arrays[view], rtol=0, atol=2 / 65535)


def test_xrays_meet_the_model_as_in_training(xrays):
    images = {view: read_xray(xrays / f"{view}.npy") for view in VIEWS}
    prepared = prepare_xrays(images, SIZE, "fixed")
    blocks = torch.from_numpy(images["lateral"].values.reshape(SIZE, 2, SIZE, 2).mean((1, 3)))
    torch.testing.assert_close(prepared["lateral"], normalize_xray(blocks, "fixed")[None, None])
    with pytest.raises(UserError, match="frontal.png: grey levels"):
        prepare_xrays({"frontal": read_xray(xrays / "frontal.png")}, SIZE, "fixed")


@pytest.mark.parametrize(
    ("dataset", "grid"),
    [
        ({"size": 32, "generate": {"extent_mm": 256.0}}, (32, [8.0] * 3)),
        ({"size": 64, "prepare": {"size": 128, "spacing": 2.5}}, (64, [5.0] * 3)),
        ({"size": None, "prepare": {"size": 128, "spacing": [1, 2, 3]}}, (128, [1.0, 2.0, 3.0])),
        ({"size": 32, "spacing": 3.0, "prepare": {"size": 128, "spacing": 2.5}}, (32, [3.0] * 3)),
    ],
)
def test_spacing_follows_the_training_data(tmp_path, dataset, grid):
    assert model_grid(OmegaConf.create({"root": str(tmp_path), **dataset})) == grid


def test_a_prepared_folder_knows_its_spacing_best(tmp_path):
    (tmp_path / "manifest.csv").touch()
    (tmp_path / "dataset.json").write_text(json.dumps({"format": 1, "size": 64, "spacing": [4.0, 4.0, 4.0]}))
    cfg = OmegaConf.create({"root": str(tmp_path), "size": 32, "prepare": {"size": 128, "spacing": 2.0}})
    assert model_grid(cfg) == (32, [8.0, 8.0, 8.0])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("ckpt=/nowhere/run", "/nowhere/run"),
        ("frontal=/nowhere/x.png", "no such file"),
        ("weights=best", "choose ema or raw"),
        ("device=cuda:99", "device"),
        ("spacing=-1", "positive"),
        ("sampler.name=magic", "magic"),
    ],
)
def test_bad_input_says_what_is_wrong_and_leaves_nothing(run_folder, xrays, tmp_path, override, message):
    with pytest.raises(UserError, match=message):
        reconstruct(run_folder, xrays, tmp_path / "out", override)
    assert not (tmp_path / "out").exists()


def test_one_view_given_twice_is_refused(run_folder, xrays, tmp_path):
    with pytest.raises(UserError, match="same image as frontal"):
        reconstruct(run_folder, xrays, tmp_path / "out", f"lateral={xrays / 'frontal.npy'}")


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """A CT that is not centred at 0, with a bright ball off its middle, and X-rays of it."""
    folder = tmp_path_factory.mktemp("scan")
    z, y, x = (np.indices((32, 32, 32)) - 15.5) * 8.0
    hu = np.where((z - 40) ** 2 + (y + 30) ** 2 + (x - 50) ** 2 < 30**2, 1000, -1000).astype(np.int16)
    image = sitk.GetImageFromArray(hu)
    image.SetSpacing((8.0, 8.0, 8.0))
    image.SetOrigin((-24.0, 76.0, 1000.0))
    sitk.WriteImage(image, str(folder / "ct.nii.gz"))
    for name, overrides in {
        "drr": ["size=32", "spacing=8"],
        "small": ["size=32", "spacing=2"],
        "x2ct": ["size=32", "spacing=8", "camera=x2ct", "output=max", "shift=[0,0,9]"],
    }.items():
        synthesize(composed("drr", f"ct={folder / 'ct.nii.gz'}", f"out={folder / name}", *overrides))
    return folder


def test_the_ct_lies_where_camera_json_says_that_the_scan_lay(run_folder, scan, tmp_path, capsys):
    """The model's voxels are twice as large as those that were X-rayed: the cube's centre counts."""
    ct = sitk.ReadImage(str(scan / "ct.nii.gz"))
    image = reconstruct(run_folder, scan / "drr", tmp_path / "out")
    middles = [
        volume.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in volume.GetSize()])
        for volume in (ct, image)
    ]
    np.testing.assert_allclose(middles[1], middles[0], atol=1e-3)
    np.testing.assert_allclose(middles[0], (100, 200, 1124), atol=1e-3)
    record = json.loads((tmp_path / "out" / "reconstruct.json").read_text())
    assert record["origin_source"] == "camera.json"
    np.testing.assert_allclose(record["origin"], [-20, 80, 1004], atol=1e-3)
    assert record["notes"] == []
    assert "(position: camera.json)" in capsys.readouterr().out


def test_a_given_origin_wins_and_an_unknown_one_is_said_to_be(run_folder, scan, xrays, tmp_path):
    image = reconstruct(run_folder, scan / "drr", tmp_path / "a", "origin=[1,2.5,-3]")
    # Files hold the origin as seen from RAS, in float32.
    np.testing.assert_allclose(image.GetOrigin(), (1, 2.5, -3), atol=1e-4)
    assert json.loads((tmp_path / "a" / "reconstruct.json").read_text())["origin_source"] == "given"
    reconstruct(run_folder, xrays, tmp_path / "b")
    record = json.loads((tmp_path / "b" / "reconstruct.json").read_text())
    assert record["origin_source"] == "arbitrary: centred at 0"
    assert record["origin"] == [-120.0] * 3
    with pytest.raises(UserError, match="origin=3: give three numbers"):
        reconstruct(run_folder, xrays, tmp_path / "c", "origin=3")


def test_xrays_that_camera_json_tells_to_be_wrong_are_refused(run_folder, scan, tmp_path):
    drr, small = scan / "drr", scan / "small"
    exchanged = [f"frontal={drr / 'lateral.npy'}", f"lateral={drr / 'frontal.npy'}"]
    with pytest.raises(UserError, match="given as frontal, but .* the lateral view"):
        reconstruct(run_folder, drr, tmp_path / "out", *exchanged)
    with pytest.raises(
        UserError, match="a cube of 64 x 64 x 64 mm, this model makes one of 256 x 256 x 256 mm"
    ):
        reconstruct(run_folder, small, tmp_path / "out")
    with pytest.raises(UserError, match="different cubes"):
        reconstruct(run_folder, drr, tmp_path / "out", f"lateral={small / 'lateral.npy'}")
    assert not (tmp_path / "out").exists()


def test_another_camera_and_a_moved_patient_are_warned_of(run_folder, scan, tmp_path, capsys):
    reconstruct(run_folder, scan / "x2ct", tmp_path / "out")
    notes = json.loads((tmp_path / "out" / "reconstruct.json").read_text())["notes"]
    assert [f"warning: {note}" for note in notes] == capsys.readouterr().out.splitlines()[-4:-2]
    assert "camera x2ct, but the model was trained on lumbar" in notes[0]
    assert "turned or shifted" in notes[1]


def test_a_camera_that_changed_behind_its_name_is_warned_of(scan, tmp_path):
    def notes(name, trained):
        described = {"format": 1, "size": 16, "preset": name, "camera": trained}
        (tmp_path / "dataset.json").write_text(json.dumps(described))
        (tmp_path / "manifest.csv").touch()
        dataset = OmegaConf.create({"root": str(tmp_path), "xray_normalization": "max"})
        folder = scan / ("drr" if name == "lumbar" else name)
        views = read_camera_files({view: folder / f"{view}.npy" for view in VIEWS})
        return [
            note
            for note in check_cameras(views, 16, [16.0] * 3, dataset)
            if "camera x2ct" in note or "lumbar" in note
        ]

    # Pixels of another size on the same panel are no other camera.
    assert notes("lumbar", camera_preset("lumbar", 16, 16.0).to_dict()) == []
    x2ct = camera_preset("x2ct", 16, 16.0).to_dict()
    assert notes("x2ct", x2ct) == []
    old = {key: value for key, value in x2ct.items() if key != "reverse"}
    (note,) = notes("x2ct", old)
    assert note.endswith("camera x2ct, but the model was trained on reverse=False (these: True)")
    (note,) = notes("x2ct", x2ct | {"sad": 600.0})
    assert note.endswith("sad=600.0 (these: 541.0)")
    assert notes("x2ct", None) == []


def test_relative_values_are_refused_where_absolute_ones_are_needed(scan):
    dataset = OmegaConf.create(
        {"root": "none", "xray_normalization": "fixed", "generate": {"camera": "x2ct"}}
    )
    views = read_camera_files({view: scan / "x2ct" / f"{view}.npy" for view in VIEWS})
    with pytest.raises(UserError, match="output=max"):
        check_cameras(views, 16, [16.0] * 3, dataset)


def test_the_command_ends_bad_input_in_one_line(xrays, tmp_path):
    """From another folder, as a user would; nothing is left there."""
    command = [
        sys.executable,
        str(ROOT / "scripts" / "reconstruct.py"),
        "ckpt=none",
        f"frontal={xrays / 'frontal.npy'}",
    ]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "lateral=nope.png", "out=out"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: nope.png: no such file; give a radiograph as .npy, PNG, TIFF, NIfTI or DICOM"
    ]
    assert list(tmp_path.iterdir()) == []
