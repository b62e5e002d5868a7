import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image
from tests.cli.tiny_run import SIZE, reconstruct

from diffux2ct.errors import UserError

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
    assert picture.shape == (20 + 256, 256 + 4 + 256)
    assert (picture[:, 256:260] == 96).all()  # a gutter
    # A strip tells view and sides; then head up: the frontal ramp, which rises toward superior, is bright at the top.
    assert [bool((picture[:20, x : x + 16] > 200).any()) for x in (0, 64, 112, 240, 260, 372, 500)] == [
        True, False, True, True, True, True, True
    ]  # fmt: skip
    assert picture[20, 100] > 240
    assert picture[-1, 100] < 15
    assert sorted(p.name for p in out.iterdir()) == ["reconstruct.json", "reconstruction.nii.gz", "xrays_used.png"]


def test_a_seed_gives_one_ct_and_xrays_steps_and_seed_each_change_it(run_folder, xrays, tmp_path):
    def volume(name, *overrides):
        return sitk.GetArrayFromImage(reconstruct(run_folder, xrays, tmp_path / name, *overrides))

    first = volume("a")
    np.testing.assert_array_equal(volume("b"), first)
    assert (volume("c", "seed=1") != first).mean() > 0.5
    assert (volume("d", "sampler.num_inference_steps=1") != first).mean() > 0.5
    assert (volume("e", "head_up=true") != first).mean() > 0.5


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("ckpt=/nowhere/run", "/nowhere/run"),
        ("frontal=/nowhere/x.png", "no such file"),
        ("weights=best", "choose ema or raw"),
        ("device=cuda:99", "device"),
        ("spacing=-1", "spacing=-1: out of range; give a number above 0"),
        ("head_up=maybe", "head_up=maybe: not true or false"),
        ("seed=1.5", "seed=1.5: not a whole number"),
        ("sampler.name=ddpm", "Ddim has no such setting; it has num_inference_steps, eta"),
        ("sampler._target_=os.system", "is no sampler|no such class"),
        ("perturbation=zeros", "choose random or zero"),
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
