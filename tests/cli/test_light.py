"""Help, typos and --cfg need none of the libraries that take seconds to import."""

import pkgutil
import subprocess
import sys

import pytest

from diffux2ct import cli

HEAVY = ("torch", "SimpleITK", "scipy", "pydicom", "skimage", "nibabel", "matplotlib", "wandb", "pandas", "jinja2")
COMMANDS = sorted(module.name for module in pkgutil.iter_modules(cli.__path__) if module.name != "hydra_app")

SCRIPT = f"""
import importlib, sys
for name in {COMMANDS}:
    module = importlib.import_module(f"diffux2ct.cli.{{name}}")
    heavy = [library for library in {HEAVY} if library in sys.modules]
    assert not heavy, f"importing cli.{{name}} imports {{heavy}}"
module = importlib.import_module("diffux2ct.cli." + sys.argv[1])
sys.argv[:] = sys.argv[1:]
try:
    module.main()
except SystemExit as end:
    print(end.code)
heavy = [library for library in {HEAVY} if library in sys.modules]
assert not heavy, f"{{sys.argv}} imports {{heavy}}"
"""


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["train", "--help"], "  dataset=ctspine1k                          CTSpine1K: 1005 public CTs of the spine"),
        (["train", "experiment=demo", "--cfg", "job"], "max_steps: 480"),
        (["train", "trainer.lr=1"], "optim.lr"),
        (["evaluate", "ckpt=x", "sed=1"], "did you mean seed?"),
        (["compare", "--help"], "--merge-seeds"),
    ],
)
def test_nothing_heavy_is_imported(words, shown, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout
