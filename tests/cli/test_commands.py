"""The commands as a user types them: bad input ends in one line and leaves nothing; good input leaves its results."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import pytest

from diffux2ct.data.prepared.dataset import read_description
from diffux2ct.errors import UserError
from diffux2ct.evaluation.results import score_table
from diffux2ct.training.checkpoints import file as checkpoint

ROOT = Path(__file__).parents[2]


def command(script: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    call = [sys.executable, str(ROOT / script), *arguments]
    return subprocess.run(call, cwd=cwd, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=300)


def assert_one_line(done: subprocess.CompletedProcess, *words: str) -> None:
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    for word in words:
        assert word in done.stderr


@pytest.mark.parametrize(
    ("script", "arguments", "words"),
    [
        ("train.py", ["trainer.max_stepps=3"], ["did you mean trainer.max_steps?", "--help"]),
        ("train.py", ["model=vnett"], ["did you mean vnet"]),
        ("train.py", ["trainer.max_steps="], ["error:"]),
        ("train.py", ["experiment=demo", "trainer.precision=fp8"], ["choose bf16 or fp32"]),
        ("evaluate.py", [], ["ckpt is not given"]),
        ("evaluate.py", ["ckpt=nowhere"], ["nowhere", "no such checkpoint"]),
    ],
)
def test_bad_input_is_one_line(script, arguments, words, tmp_path):
    assert_one_line(command(script, *arguments, cwd=tmp_path), *words)
    assert list(tmp_path.iterdir()) == []


def test_missing_dataset_is_explained_in_three_lines(tmp_path):
    done = command("train.py", "dataset=lumbarv", cwd=tmp_path)
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 1
    assert len(lines) == 3
    assert "data/lumbarv" in lines[0]
    assert "prepare_dataset.py dataset=lumbarv" in lines[2]


def test_a_folder_of_raw_scans_is_not_advised_as_its_own_output(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "raw" / "p1").mkdir(parents=True)
    (tmp_path / "raw" / "p1" / "IM0001").write_bytes(b"\0" * 128 + b"DICM" + b"\0" * 9)
    with pytest.raises(UserError) as error:
        read_description("raw")
    lines = str(error.value).splitlines()
    assert len(lines) == 3
    assert "raw scans" in lines[0]
    assert lines[1].endswith("prepare_dataset.py dataset=folder raw=raw out=OTHER")
    assert lines[2].endswith("train.py dataset=folder dataset.root=OTHER")


def test_a_signal_ends_training_on_a_checkpoint_and_not_as_a_success(phantoms, tmp_path):
    small = [
        "experiment=demo",
        "model=diffux2ct",
        "name=demo",
        "dataset.size=16",
        f"dataset.root={phantoms}",
        "dataset.generate=null",
    ]
    small += ["trainer.batch_size=2", "trainer.max_steps=100000", "trainer.log_every=1", "trainer.lr_schedule=constant"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    call = [sys.executable, str(ROOT / "train.py"), *small]
    running = subprocess.Popen(
        call, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
    )
    metrics = tmp_path / "runs/demo/metrics.csv"
    while running.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") > 1):
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=120)
    assert running.returncode == 130, err[-2000:]
    step = checkpoint.load(tmp_path / "runs/demo")["step"]
    last = err.strip().splitlines()[-1]
    assert last.startswith(f"stopped at step {step} of 100000; the same command goes on from there: python train.py ")
    assert "evaluate.py" not in out + err


def test_train_evaluate_and_controls_from_the_shell(phantoms, tmp_path):
    small = [
        "experiment=demo",
        "model=diffux2ct",
        "name=e2e",
        "dataset.size=16",
        f"dataset.root={phantoms}",
        "dataset.generate=null",
    ]
    done = command("train.py", *small, "trainer.max_steps=3", "trainer.batch_size=4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip().endswith("next: python evaluate.py ckpt=runs/e2e")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "runs/e2e/checkpoints/last.pt").read_bytes()[:5000])
    assert_one_line(command("evaluate.py", "ckpt=cut.pt", cwd=tmp_path), "cut.pt", "truncated")

    done = command("evaluate.py", "ckpt=runs/e2e", "sampler.num_inference_steps=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "last.pt: step 3 of 3\n" in done.stdout
    folder = tmp_path / "runs/e2e/evaluation/phantom-test-ddim2"
    metrics = json.loads((folder / "metrics.json").read_text())
    keys = {"psnr", "psnr3d", "ssim", "ssim3d", "ms_ssim3d", "mae", "dice_bone", "xray_residual_frontal"}
    assert keys <= metrics.keys()
    assert keys <= metrics["floor"].keys()
    assert {"lpips", "segmentation"} <= metrics["unavailable"].keys()  # 16 voxels; no network given
    assert metrics["protocol"] == "paper"
    assert metrics["num_cases"] == 3
    assert metrics["psnr"] >= metrics["psnr3d"]
    assert len(list((folder / "reconstructions").glob("*.nii.gz"))) == 3
    assert "<html" in (folder / "report.html").read_text()

    shuffled = ["xray_source=shuffled", "sampler.num_inference_steps=2", "max_cases=2", "weights=raw"]
    done = command("evaluate.py", "ckpt=runs/e2e/checkpoints/last.pt", *shuffled, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    metrics = json.loads((folder.parent / "phantom-test-ddim2-raw-shuffled-first2" / "metrics.json").read_text())
    assert (metrics["num_cases"], metrics["xray_source"]) == (2, "shuffled")
    few = ["metrics.families=[bones,distortion]", "precision=fp32", "sampler.num_inference_steps=2"]
    assert command("evaluate.py", "ckpt=runs/e2e", *few, cwd=tmp_path).returncode == 0
    assert (folder.parent / "phantom-test-ddim2-bones+distortion-fp32" / "metrics.json").is_file()

    # The README's quickstart, word for word, on this run and this dataset's X-rays.
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "runs/e2e").rename(tmp_path / "runs/demo")
    for view in ("frontal", "lateral"):
        (tmp_path / f"{view}.npy").symlink_to(next((phantoms / "cases").iterdir()) / f"{view}.npy")
    done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr[-2000:]
    assert nib.nifti1.load(tmp_path / "ct.nii.gz").shape == (16, 16, 16)


def test_training_needs_neither_simpleitk_nor_wandb(phantoms, tmp_path):
    code = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name.split('.')[0] in ('SimpleITK', 'wandb'): raise ImportError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        f"sys.argv = ['train.py', 'experiment=demo', 'dataset.size=16', 'dataset.root={phantoms}',\n"
        "    'dataset.generate=null', 'trainer.max_steps=1', 'trainer.batch_size=2',\n"
        "    'trainer.val_every=1', 'name=bare']\n"
        "from diffux2ct.cli.train import main; main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, encoding="utf-8", timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "runs/bare/checkpoints/last.pt").is_file()


def test_summary_counts_the_paper_s_model(tmp_path):
    done = command("scripts/summarize_model.py", "experiment=paper", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    parts = json.loads(done.stdout)["parts"]
    # docs/method.md: counted independently on a prototype.
    assert abs(parts["denoiser"]["parameters"] / 38.35e6 - 1) < 0.01
    assert abs(parts["conditioning"]["parameters"] / 7.49e6 - 1) < 0.01
    assert abs(parts["denoiser"]["forward_tflop"] / 11.22 - 1) < 0.01
    assert abs(parts["denoiser"]["saved_gib"] / 25.1 - 1) < 0.02


def test_a_score_no_better_than_the_floor_is_marked_by_its_direction():
    summary = {
        "psnr": 20.0,
        "ssim": 0.4,
        "mae": 90.0,
        "floor": {"psnr": 19.0, "ssim": 0.5, "mae": 80.0},
        "num_cases": 3,
        "num_scored": {"mae": 2},
        "unavailable": {"lpips": "no weights; get them"},
    }
    head, psnr, ssim, mae, lpips = score_table(summary).splitlines()
    assert "3 cases" in head
    assert psnr.split() == ["PSNR", "(dB)", "20.000", "19.000"]
    assert " ".join(ssim.split()) == "SSIM 0.400 0.500 no better than the floor"
    # Of fewer cases than the floor may be, so neither better nor worse.
    assert " ".join(mae.split()) == "MAE (HU) 90.000 80.000 2 of 3 cases (floor: 3)"
    assert lpips == "lpips: unavailable: no weights; get them"
