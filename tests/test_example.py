"""README's quickstart runs as it stands."""

import shutil
import subprocess
import sys
from pathlib import Path

import SimpleITK as sitk
from PIL import Image
from tests.cli import conftest as cli
from tests.cli.tiny_run import SIZE

ROOT = Path(__file__).resolve().parents[1]
run_folder = cli.run_folder


def example(*arguments, cwd):
    command = [sys.executable, str(ROOT / "example.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, encoding="utf-8")


def test_the_example_writes_a_ct_and_a_picture(run_folder, tmp_path):
    run = shutil.copytree(run_folder, tmp_path / "runs" / "demo")
    done = example(cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    image = sitk.ReadImage(str(run / "example" / "ct.nii.gz"))
    assert image.GetSize() == (SIZE,) * 3
    assert image.GetSpacing() == (256 / SIZE,) * 3
    assert Image.open(run / "example" / "ct.png").size == (5 * 256 + 4 * 4, 276)  # four gutters
    assert len(done.stdout.splitlines()) == 2


def test_without_a_run_the_example_ends_in_one_line(tmp_path):
    done = example("runs/none", cwd=tmp_path)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "runs/none" in done.stderr


def test_the_example_stays_short():
    assert len((ROOT / "example.py").read_text(encoding="utf-8").splitlines()) <= 60
