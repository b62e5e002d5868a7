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
from omegaconf import OmegaConf
from PIL import Image
from tests.cli.tiny_run import SIZE, reconstruct

from diffux2ct.cli.reconstruct import model_grid, prepare_xrays
from diffux2ct.data.io.xray_file import read_xray
from diffux2ct.data.prepared.dataset import normalize_xray
from diffux2ct.errors import UserError
from diffux2ct.types import VIEWS

ROOT = Path(__file__).resolve().parents[2]


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
