"""compare.py on real runs, trained and evaluated for a moment by the commands' own functions."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose as hydra_compose
from hydra import initialize_config_module
from omegaconf import OmegaConf

from diffux2ct import build
from diffux2ct.cli import compare, evaluate, train
from diffux2ct.cli.summarize import summarize
from diffux2ct.comparison.find_runs import count_cost, find_evaluations, read_runs
from diffux2ct.errors import UserError
from diffux2ct.reconstructors.cost import reconstruction_cost

ROOT = Path(__file__).parents[2]


def evaluated(run_dir: Path, *overrides: str) -> None:
    with initialize_config_module("diffux2ct.configs", version_base="1.3"):
        evaluate.run(
            hydra_compose(
                "evaluate", overrides=[f"ckpt={run_dir}", "device=cpu", "metrics.families=[distortion]", *overrides]
            )
        )


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("compare")


@pytest.fixture
def runs(compose, made: Path) -> dict[str, Path]:
    """A diffusion model, a regressor by two seeds, and one that was never evaluated."""
    folders = {name: made / name for name in ("diffusion", "regressor", "regressor-s1", "raw")}
    if not folders["raw"].exists():
        regressor = ["model=x_ctrsnet_like", "name=regressor"]
        recipes = {"diffusion": ["name=diffusion"], "regressor": regressor}
        recipes["regressor-s1"] = [*regressor, "trainer.seed=1"]
        for key, overrides in recipes.items():
            train.run(compose(f"run_dir={folders[key]}", "trainer.max_steps=2", *overrides))
        shutil.copytree(folders["diffusion"], folders["raw"])
        for key in recipes:
            evaluated(folders[key])
        evaluated(folders["diffusion"], "xray_source=shuffled")
        evaluated(folders["diffusion"], "sampler.num_inference_steps=2")
        # The newest is by time, which must not hang on how coarse a file system's clock is.
        newest = folders["diffusion"] / "evaluation" / "phantom-test-ddim2-distortion" / "metrics.json"
        os.utime(newest, (2e9, 2e9))
    return folders


def table(capsys, *arguments: object) -> list[dict[str, str]]:
    capsys.readouterr()
    compare.run([str(argument) for argument in arguments] + ["--format", "csv"])
    return list(csv.DictReader(capsys.readouterr().out.splitlines()))


def test_a_table_of_real_runs(runs, capsys):
    rows = table(capsys, runs["diffusion"], runs["regressor"])
    assert [row["run"] for row in rows] == ["diffusion", "regressor", "Floor: mean training volume"]
    for row, name in zip(
        rows, ("diffusion/evaluation/phantom-test-ddim2", "regressor/evaluation/phantom-test-direct"), strict=False
    ):
        path = runs["raw"].parent / f"{name}-distortion" / "metrics.json"
        metrics = json.loads(path.read_text())
        assert float(row["psnr3d"]) == metrics["psnr3d"]
        assert float(row["seconds"]) == metrics["seconds_per_volume"]
        assert float(rows[2]["ssim"]) == pytest.approx(metrics["floor"]["ssim"])
        assert (int(row["steps"]), int(row["volumes"]), row["seeds"]) == (2, 8, "0")
    assert all(row["method"] for row in rows[:2])
    assert rows[0]["method"] != rows[1]["method"]
    compare.run([str(runs["diffusion"]), str(runs["regressor"])])
    shown = capsys.readouterr().out
    for note in ("phantom test, 3 cases of 3 patients, protocol paper.", "Volumes seen in training: 8 in every row.",
                 "ddim, 2 steps (diffusion); one pass (regressor).", "3 patients", "are too few"):  # fmt: skip
        assert note in shown, note


def test_the_fullest_evaluation_counts_and_of_equals_the_newest(tmp_path):
    def written(name, time, **summary):
        folder = tmp_path / "evaluation" / name
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text(json.dumps(summary), encoding="utf-8")
        os.utime(folder / "metrics.json", (time, time))

    def chosen():
        return find_evaluations(tmp_path, None)[0].name

    written("full", 1, num_cases=12, psnr3d=20.0, ssim=0.5)
    written("fewer-metrics", 2, num_cases=12, psnr3d=20.0)
    written("fewer-cases", 3, num_cases=2, psnr3d=20.0, ssim=0.5)
    written("control", 4, num_cases=12, psnr3d=20.0, ssim=0.5, mae=9.0, xray_source="shuffled")
    assert chosen() == "full"
    written("again", 5, num_cases=12, psnr3d=20.0, ssim=0.5)
    assert chosen() == "again"


def test_curves_of_losses_instead_of_a_table(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    for parent in "ab":
        (tmp_path / parent / "run").mkdir(parents=True)
        (tmp_path / parent / "run" / "metrics.csv").write_text("step,name,value\n1,g/mse,0.5\n2,g/mse,0.25\n")
    runs = [str(tmp_path / parent / "run") for parent in "ab"]
    compare.run([*runs, "--losses", str(tmp_path / "x" / "losses.svg"), "--smooth", "2"])
    assert capsys.readouterr().out == f"wrote {tmp_path / 'x' / 'losses.svg'}\n"
    assert (tmp_path / "x" / "losses.svg").stat().st_size > 1000
    with pytest.raises(UserError, match="--smooth=0: out of range; give a whole number of at least 1"):
        compare.run([*runs, "--losses", str(tmp_path / "y.png"), "--smooth", "0"])
    with pytest.raises(UserError, match=r"c: no metrics.csv here"):
        compare.run([str(tmp_path / "c"), "--losses", str(tmp_path / "y.png")])


@pytest.mark.parametrize("model", ["diffux2ct", "x_ctrsnet_like", "icm_reg", "x2ct_gan"])
def test_costs_agree_with_summarize_model(compose, model):
    cfg = compose(f"model={model}", "dataset.size=32")
    parts = summarize(cfg)["parts"]
    with torch.device("meta"):
        model = build.build_reconstructor(cfg)
    cost = reconstruction_cost(model, cfg.dataset.size, 50)
    times = {"conditioning": 1, "denoiser": 50, "generator": 1, "network": 1}
    used = {name: part for name, part in parts.items() if name in times}
    assert cost.parameters == sum(part["parameters"] for part in used.values())
    assert cost.tflop == pytest.approx(sum(times[n] * part["forward_tflop"] for n, part in used.items()), rel=1e-9)
    assert cost.iterative == ("denoiser" in used)
    assert cost.parameters + cost.training_only == parts["total"]["parameters"]
    assert (cost.training_only > 0) == ("discriminator" in parts)
    assert model.training


def test_every_run_of_the_network_is_counted_not_every_step(compose):
    config = build.plain(build.resolved(compose()))
    steps = {"num_inference_steps": 4}
    heun, ddim_7, ddim_4 = (
        count_cost(config, sampling, None)[0]
        for sampling in (steps | {"num_evaluations": 7}, {"num_inference_steps": 7}, steps)
    )
    assert heun == ddim_7
    assert heun.tflop > ddim_4.tflop


def test_counting_allocates_nothing(compose):
    """The paper's model and its 1000 steps; every tensor that is made must be on the meta device."""
    cfg = compose(experiment="paper").model
    with torch.device("meta"):
        model = build.build_reconstructor(compose("dataset.size=128", experiment="paper"))
    assert all(p.is_meta for p in model.parameters()), cfg._target_
    made: list[torch.device] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            made.extend(t.device for t in (result if isinstance(result, (list, tuple)) else [result])
                        if isinstance(t, torch.Tensor) and t.numel() > 4096)  # fmt: skip
            return result

    with Watch():
        cost = reconstruction_cost(model, 128, 1000)
    assert len(made) > 100
    assert {device.type for device in made} == {"meta"}
    assert cost.tflop == pytest.approx(11216.9, rel=1e-4)


def test_evaluations_are_chosen(runs, capsys):
    folder = runs["diffusion"]
    notes = " ".join(read_runs([folder, runs["regressor"]])[1])
    chosen = "Of several evaluations the fullest, of equals the newest: diffusion/phantom-test-ddim2-distortion; --eval"
    assert chosen in notes
    assert read_runs([folder / "evaluation" / "phantom-test-ddim2-distortion"])[1] == []
    (newest,) = find_evaluations(folder, None)
    assert newest.name == "phantom-test-ddim2-distortion"
    assert [p.name for p in find_evaluations(folder, "*ddim3*")] == [
        "phantom-test-ddim3-distortion",
        "phantom-test-ddim3-distortion-shuffled",
    ]
    with pytest.raises(UserError, match=r"holds no evaluation x\*; choose from phantom-test-ddim2-distortion, phantom"):
        find_evaluations(folder, "x*")
    # A run and one of its evaluations; the same twice counts once.
    rows = table(capsys, folder, newest, folder / "evaluation" / "phantom-test-ddim3-distortion", "--sort", "run")
    assert [row["run"] for row in rows[:2]] == [
        "diffusion/phantom-test-ddim2-distortion",
        "diffusion/phantom-test-ddim3-distortion",
    ]
    two, three = (float(row["tflop"]) for row in rows[:2])
    assert 1.3 < three / two < 1.5
    # Shuffled X-rays are another test, with a floor of its own.
    rows = table(capsys, folder, "--evaluation", "*ddim3*")
    assert [row["test_set"] for row in rows] == ["A", "A", "B", "B"]
    shutil.copytree(folder, folder.parent / "control", dirs_exist_ok=True)
    for name in ("phantom-test-ddim2-distortion", "phantom-test-ddim3-distortion"):
        shutil.rmtree(folder.parent / "control" / "evaluation" / name)
    with pytest.raises(UserError, match=r"wrong X-rays only.*--evaluation phantom-test-ddim3-distortion-shuffled"):
        find_evaluations(folder.parent / "control", None)


def test_seeds_merge(runs, capsys):
    both = runs["regressor"], runs["regressor-s1"]
    first, second, _ = table(capsys, *both)
    assert [first["run"], second["run"]] == ["regressor", "regressor-s1"]
    merged, floor = table(capsys, *both, "--merge-seeds", "--reference", both[1])
    a, b = float(first["psnr3d"]), float(second["psnr3d"])
    assert a != b
    assert float(merged["psnr3d"]) == pytest.approx((a + b) / 2)
    assert float(merged["psnr3d_sd"]) == pytest.approx(abs(a - b) / 2**0.5, abs=0.006)
    assert (merged["run"], merged["seeds"], floor["seeds"]) == ("regressor", "0, 1", "")
    assert len(table(capsys, runs["diffusion"], both[0], "--merge-seeds")) == 3


def test_seeds_merge_wherever_their_cases_lie(runs, tmp_path, capsys):
    elsewhere = tmp_path / "other-machine"
    shutil.copytree(runs["regressor-s1"], elsewhere)
    config = OmegaConf.load(elsewhere / "config.yaml")
    config.dataset.root = "/scratch/phantoms"
    OmegaConf.save(config, elsewhere / "config.yaml")
    assert table(capsys, runs["regressor"], elsewhere, "--merge-seeds")[0]["seeds"] == "0, 1"
    # Other cases, and cases that are not known, are no repetition.
    for manifest in ("0" * 64, None):
        record = json.loads((elsewhere / "provenance.json").read_text())
        (elsewhere / "provenance.json").write_text(json.dumps(record | {"manifest_sha256": manifest}))
        assert table(capsys, runs["regressor"], elsewhere, "--merge-seeds")[0]["seeds"] == "0"


def test_files_are_written_by_their_suffix(runs, tmp_path, capsys):
    files = [tmp_path / "deep" / f"t{suffix}" for suffix in (".md", ".tex", ".html", ".csv")]
    options = [word for path in files for word in ("--out", str(path))]
    compare.run([str(runs["diffusion"]), str(runs["regressor"]), "--names", "Ours,X & Y", "--title", "T", *options])
    assert capsys.readouterr().out.splitlines() == [f"wrote {path}" for path in files]
    md, tex, html, text = (path.read_text(encoding="utf-8") for path in files)
    assert md.startswith("| Run | Method | Steps |")
    assert r"X \& Y & x\_ctrsnet\_like & 2 & 8" in tex
    assert "<h1>T</h1>" in html
    assert "X &amp; Y" in html
    assert text.splitlines()[2].startswith("X & Y,x_ctrsnet_like,2,8")
    assert sorted(path.name for path in files[0].parent.iterdir()) == sorted(path.name for path in files)


def mistakes(runs: dict[str, Path], tmp: Path) -> list[tuple[list, str]]:
    good, raw = runs["diffusion"], runs["raw"]
    return [
        ([], "required: RUN; --help explains"),
        ([tmp / "gone"], "gone: no such run folder"),
        ([tmp], "is no run folder; give folders that train.py wrote"),
        ([raw], f"was never evaluated; first: python evaluate.py ckpt={raw}"),
        ([good, "--metrics", "psnr3"], "did you mean psnr3d?"),
        ([good, "--sort", "size"], "--sort size: choose from run, method, steps, volumes"),
        ([good, "--names", "a,b"], "--names: needs 1 different names, in this order: diffusion"),
        ([good, "--reference", "x"], "--reference x: is not among the runs; choose from diffusion"),
        ([good, "--out", tmp / "t.pdf"], "unknown suffix; choose one of .md, .tex, .html, .csv"),
        ([good, "--format", "pdf"], "invalid choice"),
        ([good, "--cases", "abc"], "--cases=abc: not a whole number; give a whole number of at least 1"),
        ([good, "--cases", "-1"], "--cases=-1: out of range"),
        ([good, "--smooth", "1.5"], "--smooth=1.5: not a whole number"),
        ([good, "--out", ""], "--out=: not a path"),
        ([good, "--names", ""], "--names=: not a name"),
        ([""], "RUN=: not a name"),
        ([good, "--test", "t"], "invalid choice"),
    ]


def test_every_mistake_is_one_line(runs, tmp_path):
    for arguments, message in mistakes(runs, tmp_path):
        with pytest.raises(UserError) as error:
            compare.run([str(argument) for argument in arguments])
        assert message in str(error.value)
        assert "\n" not in str(error.value)


def test_damaged_and_old_configs(runs, tmp_path):
    folder = tmp_path / "old"
    shutil.copytree(runs["diffusion"], folder)
    newest = "phantom-test-ddim2-distortion"
    config = folder / "config.yaml"
    text = config.read_text()
    (run,), notes = read_runs([folder], newest)
    assert run.cost is not None
    assert notes == []
    # A key that this program no longer knows, a class of another package, no trainer: a dash and a note, no more.
    for changed, reason in ((text.replace("num_train_timesteps", "num_timesteps"), "num_timesteps"),
                            (text.replace("diffux2ct.reconstructors", "os"), "no part of diffux2ct"),
                            ("name: x\n", "holds no model config")):  # fmt: skip
        config.write_text(changed)
        (run,), (note,) = read_runs([folder], newest)
        assert run.cost is None
        assert reason in note
    assert (run.batch_size, run.seeds, run.volumes_seen) == (None, (), None)
    for bad in ("a: [", "- 1\n"):
        config.write_text(bad)
        with pytest.raises(UserError, match=r"config.yaml: (not readable as YAML|holds no config)"):
            read_runs([folder], newest)
    config.unlink()
    (run,), notes = read_runs([folder], newest)
    assert (run.cost, run.seeds, notes) == (None, (), [])
    shutil.copy(runs["diffusion"] / "config.yaml", config)
    (folder / "provenance.json").write_text("{")
    with pytest.raises(UserError, match="provenance.json: not readable as JSON"):
        read_runs([folder], newest)
    assert count_cost({"model": {"_target_": "os.system"}}, {}, folder)[0] is None


def test_the_script(runs):
    def call(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, str(ROOT / "scripts" / "compare.py"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=300)

    done = call("--help")
    assert done.returncode == 0
    assert "examples:" in done.stdout
    done = call(str(runs["raw"]))
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: ")
