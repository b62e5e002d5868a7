"""docs/extending.md, carried out: its files are added to a copy of the package, and its commands run there."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import SimpleITK as sitk
from tests.cli import conftest as cli
from tests.cli.tiny_run import SIZE

from diffux2ct.data.phantom import make_phantom
from diffux2ct.training.checkpoints import file as checkpoint

ROOT = Path(__file__).resolve().parents[1]
GUIDE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^`([\w/.]+)`:\n\n```(?:python|yaml)\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE))
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL) for line in block.splitlines()]
run_folder = cli.run_folder


@pytest.fixture(scope="module")
def project(tmp_path_factory, run_folder, phantoms):
    """A folder to work in: the package with the guide's files, and the runs that it names."""
    root = tmp_path_factory.mktemp("project")
    package = root / "src" / "diffux2ct"
    shutil.copytree(ROOT / "src" / "diffux2ct", package, ignore=shutil.ignore_patterns("__pycache__", "configs"))
    shutil.copytree(ROOT / "configs", root / "configs", ignore=shutil.ignore_patterns("__pycache__"))
    (package / "configs").symlink_to(root / "configs")
    for name, text in FILES.items():
        path = root / name
        assert not path.exists(), f"{name} is in the package already"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    state = checkpoint.load(run_folder)
    state["config"]["dataset"]["root"] = str(phantoms)
    for name in ("demo", "demo-diffux2ct"):
        checkpoint.save(root / "runs" / name / "checkpoints" / "last.pt", state)
    return root


def python(project, code, *arguments):
    """Run Python code with the project's package in place of the installed one; its standard output."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(project / 'src')!r})\n{code}", *arguments],
        cwd=project,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def run(project, command, *overrides):
    """One of the guide's commands, with overrides that make it small."""
    assert command in COMMANDS
    _, script, *arguments = command.split()
    replaced = {override.split("=")[0] for override in map(str, overrides)}
    given = [argument for argument in arguments if argument.split("=")[0] not in replaced]
    code = f"import runpy; sys.argv[0] = {script!r}; runpy.run_path({str(ROOT / script)!r}, run_name='__main__')"
    return python(project, code, *given, *map(str, overrides))


def test_the_guide_has_all_four_extension_points():
    folders = [Path(name).parent.name for name in FILES]
    assert folders == ["baselines", "model", "baselines", "samplers", "sampler", "fidelity", "sources", "dataset"]


def test_a_method_is_trained_by_its_own_recipe_and_size(project, phantoms):
    small = [f"dataset.root={phantoms}", "dataset.size=16", "++dataset.generate=null", "trainer.max_steps=2"]
    command = "python train.py model=shallow_cnn dataset=phantom size=tiny"
    run(project, command, *small, "trainer.device=cpu", "trainer.num_workers=0", "run_dir=runs/shallow")
    config = (project / "runs" / "shallow" / "config.yaml").read_text(encoding="utf-8")
    assert "diffux2ct.models.baselines.shallow_cnn.ShallowCnn" in config
    assert re.search(r"^ +channels: 16$", config, re.MULTILINE)
    assert re.search(r"^ +warmup_steps: 100$", config, re.MULTILINE)
    assert (project / "runs" / "shallow" / "checkpoints" / "last.pt").is_file()


def test_the_methods_own_test_passes(project):
    test = FILES["tests/models/baselines/test_shallow_cnn.py"]
    (name,) = re.findall(r"def (test_\w+)", test)
    python(project, f"{test}\n{name}()")


def test_a_sampler_with_its_setting_and_a_metric_score_a_run(project):
    small = ["max_cases=1", "device=cpu", "sampler.num_inference_steps=2", "out=scored"]
    sampler, metric = COMMANDS[2:4]
    names = metric.split()[-1]
    run(project, sampler, *small, names, "metrics.families=[distortion]", "num_report_cases=0")
    summary = json.loads((project / "scored" / "metrics.json").read_text(encoding="utf-8"))
    assert summary["sampling"] | {"name": "tempered", "temperature": 0.5} == summary["sampling"]
    with (project / "scored" / "per_case.csv").open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert 0 < float(row["nrmse"]) < 10


def test_a_data_set_of_ones_own_is_prepared(project):
    raw = project / "raw"
    for index, name in enumerate(["anna/2024_ct", "anna/1999_old", "bert/2023_ct", "cleo/2025_ct"]):
        path = raw / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        phantom = make_phantom(0, index, size=SIZE)
        image = sitk.GetImageFromArray(phantom.hu)
        image.SetSpacing(phantom.spacing)
        sitk.WriteImage(image, str(path))
    small = [f"raw={raw}", "size=16", "spacing=16"]
    run(project, "python scripts/prepare_dataset.py dataset=hospital raw=DIR", *small)
    with (project / "data" / "hospital" / "manifest.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["patient"] for row in rows) == ["anna", "bert", "cleo"]
    assert sorted(row["split"] for row in rows) == ["test", "train", "val"]
