"""The commands as a user types them: bad input ends in one line and leaves nothing; good input leaves its results."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def command(script: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    call = [sys.executable, str(ROOT / script), *arguments]
    return subprocess.run(
        call, cwd=cwd, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=300
    )


def assert_one_line(done: subprocess.CompletedProcess, *words: str) -> None:
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    for word in words:
        assert word in done.stderr


@pytest.mark.parametrize(
    ("script", "arguments", "words"),
    [
        ("train.py", ["trainer.max_stepps=3"], ["trainer.max_stepps", "--help"]),
        ("train.py", ["model=papper"], ["did you mean paper"]),
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


def test_train_evaluate_and_controls_from_the_shell(phantoms, tmp_path):
    small = ["experiment=demo", "dataset.size=16", f"dataset.root={phantoms}", "dataset.generate=null"]
    done = command(
        "train.py", *small, "trainer.max_steps=3", "trainer.batch_size=4", "name=e2e", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (tmp_path / "cut.pt").write_bytes((tmp_path / "runs/e2e/checkpoints/last.pt").read_bytes()[:5000])
    assert_one_line(command("evaluate.py", "ckpt=cut.pt", cwd=tmp_path), "cut.pt", "truncated")

    done = command("evaluate.py", "ckpt=runs/e2e", "sampler.num_inference_steps=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    folder = tmp_path / "runs/e2e/evaluation/phantom-test-ddim2"
    metrics = json.loads((folder / "metrics.json").read_text())
    keys = {"psnr", "psnr3d", "ssim", "ssim3d"}
    assert keys <= metrics.keys()
    assert keys == metrics["floor"].keys()
    assert metrics["num_cases"] == 3
    assert metrics["psnr"] >= metrics["psnr3d"]
    assert len(list((folder / "reconstructions").glob("*.nii.gz"))) == 3
    assert "<html" in (folder / "report.html").read_text()

    shuffled = ["xray_source=shuffled", "sampler.num_inference_steps=2", "max_cases=2", "weights=raw"]
    done = command("evaluate.py", "ckpt=runs/e2e/checkpoints/last.pt", *shuffled, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    metrics = json.loads(
        (folder.parent / "phantom-test-ddim2-shuffled-raw-first2" / "metrics.json").read_text()
    )
    assert (metrics["num_cases"], metrics["xray_source"]) == (2, "shuffled")

    # The README's quickstart, word for word, on this run and this dataset's X-rays.
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "runs/e2e").rename(tmp_path / "runs/demo")
    (tmp_path / "drr").symlink_to(next((phantoms / "cases").iterdir()))
    done = subprocess.run(
        [sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, encoding="utf-8"
    )
    assert done.stdout.strip() == "torch.Size([1, 1, 16, 16, 16])", done.stderr[-2000:]


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
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
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
    assert abs(parts["denoiser"]["saved_gib"] / 33.0 - 1) < 0.1
