"""The package as a stranger gets it: versions, pins, the wheel's contents, and a README whose commands exist."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import diffux2ct

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
README = (ROOT / "README.md").read_text()


def test_versions_agree():
    assert metadata.version("diffux2ct") == diffux2ct.__version__
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == diffux2ct.__version__
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert re.findall(r"^## \[(\d\S*)\]", changelog, re.MULTILINE)[0] == diffux2ct.__version__


def test_every_room_is_packaged():
    found = {p.parent.relative_to(ROOT / "src").as_posix() for p in (ROOT / "src").rglob("__init__.py")}
    expected = {name.replace("/", ".") for name in found} | {"diffux2ct.configs"}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == expected


def test_no_function_is_longer_than_sixty_lines():
    functions = (
        (path, node)
        for path in (ROOT / "src").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    assert [f"{path.name}: {f.name}" for path, f in functions if (f.end_lineno or 0) - f.lineno >= 60] == []


def pins():
    lines = (line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines())
    return {canonicalize_name(r.name): r for r in map(Requirement, filter(None, lines))}


def test_every_dependency_is_pinned_within_its_bounds():
    extras = PROJECT["project"]["optional-dependencies"].values()
    for text in PROJECT["project"]["dependencies"] + [r for extra in extras for r in extra]:
        wanted = Requirement(text)
        pin = pins()[canonicalize_name(wanted.name)]
        (specifier,) = pin.specifier
        assert specifier.operator == "=="
        assert wanted.specifier.contains(specifier.version), text


def test_the_environment_is_the_pinned_one():
    """What the tests ran with is what the constraints promise; only packages that are installed count."""
    for name in ("torch", "numpy", "hydra-core", "omegaconf", "scikit-image", "simpleitk", "jaxtyping"):
        (specifier,) = pins()[name].specifier
        assert metadata.version(name).split("+")[0] == specifier.version, name


def test_every_command_has_its_module():
    for name, target in PROJECT["project"]["scripts"].items():
        module, function = target.split(":")
        source = ROOT / "src" / (module.replace(".", "/") + ".py")
        assert re.search(rf"^def {function}\(\)", source.read_text(), re.MULTILINE), name


def test_the_wheel_carries_code_and_configs(tmp_path):
    # From a copy: a build writes into its source tree.
    source = tmp_path / "source"
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    shutil.copytree(ROOT / "configs", source / "configs", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    configs = {p.relative_to(ROOT).as_posix() for p in (ROOT / "configs").rglob("*.yaml")}
    assert {f"diffux2ct/{path}" for path in configs} <= names
    sources = {p.relative_to(ROOT / "src").as_posix() for p in (ROOT / "src" / "diffux2ct").rglob("*.py")}
    assert sources <= names
    templates = {p.relative_to(ROOT / "src").as_posix() for p in (ROOT / "src").rglob("templates/*")}
    assert {Path(name).suffix for name in templates} == {".html", ".css", ".js"}
    assert templates <= names
    assert {"diffux2ct/py.typed", "diffux2ct/configs/__init__.py"} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not any(name.startswith(("tests", "data", "configs/")) for name in names)


def shell_lines():
    blocks = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    return [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]


def test_the_commands_of_the_readme_exist():
    scripts = re.findall(r"(?:python|torchrun \S+) (\S+\.py)", "\n".join(shell_lines()))
    assert len(scripts) >= 8
    assert [s for s in scripts if not (ROOT / s).is_file()] == []
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^make (\w+)", "\n".join(shell_lines()), re.MULTILINE)
    assert {"demo", "test"} <= set(targets)
    assert [t for t in targets if not re.search(rf"^{t}:", makefile, re.MULTILINE)] == []
    assert set(PROJECT["project"]["scripts"]) == set(re.findall(r"diffux2ct-[a-z0-9-]+", README))


def test_group_choices_of_the_readme_exist():
    configs = ROOT / "configs"
    lines = "\n".join(shell_lines())
    for group, option in re.findall(r"\b(\w+)=(\w+)\b(?![./(])", lines):
        if (configs / group).is_dir():
            assert (configs / group / f"{option}.yaml").is_file(), f"{group}={option}"
    for group, pattern in re.findall(r"\b(\w+)=glob\(([^)]+)\)", lines):
        assert len(list((configs / group).glob(f"{pattern}.yaml"))) > 1, f"{group}=glob({pattern})"


def test_the_readme_begins_with_a_picture_and_stays_narrow():
    lines = README.splitlines()
    assert max(map(len, lines)) <= 120
    first_screen = lines[:16]
    assert any(line.startswith("![") for line in first_screen)
    assert [line.split()[:2] for line in first_screen if line.startswith("make")] == [
        ["make", "demo"],
        ["make", "test"],
    ]


def test_the_files_that_the_readme_links_to_exist():
    linked = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert len(linked) >= 4
    assert [link for link in linked if not (ROOT / link).exists()] == []
