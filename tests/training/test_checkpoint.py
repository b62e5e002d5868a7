import pickle

import pytest
import torch

from diffux2ct.errors import UserError
from diffux2ct.training import checkpoint


def test_round_trip_is_exact_and_leaves_no_partial_file(tmp_path):
    state = {"model": {"w": torch.randn(3)}, "step": 7, "config": {"a": {"b": [1, 2]}}}
    checkpoint.save(tmp_path / "c.pt", state)
    loaded = checkpoint.load(tmp_path / "c.pt")
    torch.testing.assert_close(loaded["model"]["w"], state["model"]["w"], rtol=0, atol=0)
    assert (loaded["step"], loaded["config"]) == (7, {"a": {"b": [1, 2]}})
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_truncated_file_is_refused_by_name(tmp_path, keep):
    path = tmp_path / "c.pt"
    checkpoint.save(path, {"model": {"w": torch.randn(1000)}, "config": {}})
    data = path.read_bytes()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(len(data) * keep)])
    with pytest.raises(
        UserError, match=r"c\.pt: not a readable checkpoint, perhaps truncated; use another one$"
    ):
        checkpoint.load(path)


def test_missing_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such checkpoint"):
        checkpoint.load(tmp_path / "none.pt")
    torch.save({"weights": torch.zeros(2)}, tmp_path / "foreign.pt")
    with pytest.raises(UserError, match="not a diffux2ct checkpoint"):
        checkpoint.load(tmp_path / "foreign.pt")


def test_nothing_in_a_checkpoint_is_executed(tmp_path):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    with open(tmp_path / "evil.pt", "wb") as file:
        pickle.dump(Payload(), file)
    torch.save({"format": 1, "model": Payload()}, tmp_path / "evil2.pt")
    for name in ("evil.pt", "evil2.pt"):
        with pytest.raises(UserError, match="not a readable checkpoint"):
            checkpoint.load(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_failed_write_keeps_the_former_checkpoint(tmp_path):
    path = tmp_path / "c.pt"
    checkpoint.save(path, {"model": {}, "step": 1})
    with pytest.raises((UserError, AttributeError, pickle.PicklingError)):
        checkpoint.save(path, {"model": {}, "bad": lambda: 0})
    assert checkpoint.load(path)["step"] == 1


def test_full_disk_ends_in_one_line_and_keeps_the_former_checkpoint(tmp_path):
    import resource
    import subprocess
    import sys

    code = (
        "import resource, signal, sys, torch; from pathlib import Path\n"
        "from diffux2ct.training import checkpoint; from diffux2ct.cli import run_main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"p = Path({str(tmp_path / 'c.pt')!r})\n"
        "checkpoint.save(p, {'model': {}, 'step': 1})\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "run_main(lambda: checkpoint.save(p, {'model': {'w': torch.zeros(200_000)}, 'step': 2}))\n"
    )
    assert resource.RLIMIT_FSIZE is not None
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert "could not write the checkpoint" in done.stderr
    assert checkpoint.load(tmp_path / "c.pt")["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]


def test_only_what_shapes_the_result_counts_as_a_change():
    saved = {"trainer": {"max_steps": 1, "seed": 0}, "logger": {"wandb": None}, "optim": {"lr": 1.0}}
    free = {
        "trainer": {"max_steps": 9, "seed": 0},
        "logger": {"wandb": {"mode": "offline"}},
        "optim": {"lr": 1.0},
    }
    assert checkpoint.changed_keys(saved, free) == []
    changed = {"trainer": {"max_steps": 1, "seed": 1}, "optim": {"lr": 2.0, "eps": 1}, "logger": {}}
    assert checkpoint.changed_keys(saved, changed) == ["optim.eps", "optim.lr", "trainer.seed"]


def test_prune_keeps_the_newest(tmp_path):
    for step in (1, 20, 300):
        (tmp_path / f"step_{step:08d}.pt").touch()
    checkpoint.prune(tmp_path, keep_last=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000020.pt", "step_00000300.pt"]


def test_random_bytes_are_refused_whatever_they_are(tmp_path):
    generator = torch.Generator().manual_seed(0)
    for i in range(50):
        path = tmp_path / f"{i}.pt"
        path.write_bytes(bytes(torch.randint(0, 256, (i * 7,), generator=generator).tolist()))
        with pytest.raises(UserError, match="not a readable checkpoint"):
            checkpoint.load(path)


@pytest.mark.parametrize(
    "node",
    [
        {"_target_": "subprocess.check_output", "args": ["true"]},
        {"_target_": "diffux2ct.build.subprocess.run", "args": ["true"]},
        {"_target_": "diffux2ct.models.denoiser.UNet3d", "inner": [{"_target_": "os.system"}]},
        {"size": "${oc.env:HOME}"},
        None,
    ],
)
def test_a_config_that_names_foreign_code_is_refused_before_anything_is_built(tmp_path, node):
    from diffux2ct import load

    checkpoint.save(tmp_path / "c.pt", {"model": {}, "config": {"model": node}})
    with pytest.raises(UserError, match=r"c\.pt"):
        load(tmp_path / "c.pt")


def test_cosine_may_not_change_its_length_and_a_constant_rate_may(tmp_path):
    for schedule in ("constant", "cosine"):
        config = {"trainer": {"max_steps": 1, "lr_schedule": schedule}}
        checkpoint.save(tmp_path / schedule / "checkpoints" / "last.pt", {"model": {}, "config": config})
        longer = {"trainer": {"max_steps": 2, "lr_schedule": schedule}}
        assert checkpoint.find_resume(tmp_path / schedule, "auto", config)["config"] == config
        if schedule == "constant":
            assert checkpoint.find_resume(tmp_path / schedule, "auto", longer)["config"] == config
        else:
            with pytest.raises(UserError, match="max_steps"):
                checkpoint.find_resume(tmp_path / schedule, "auto", longer)


def test_how_the_raw_scans_were_prepared_does_not_concern_a_resumed_run(tmp_path):
    trainer = {"max_steps": 1, "lr_schedule": "constant"}
    saved = {"trainer": trainer, "dataset": {"size": 32, "prepare": {"crops": 0}}}
    checkpoint.save(tmp_path / "checkpoints" / "last.pt", {"model": {}, "config": saved})
    other = {"trainer": trainer, "dataset": {"size": 32, "prepare": {"grid": "centre"}}}
    assert checkpoint.find_resume(tmp_path, "auto", other)["config"] == saved
    with pytest.raises(UserError, match=r"dataset\.size"):
        checkpoint.find_resume(tmp_path, "auto", other | {"dataset": {"size": 64, "prepare": {}}})


def test_starting_over_forgets_the_later_checkpoints(tmp_path):
    for step in (100, 400, 500):
        (tmp_path / f"step_{step:08d}.pt").touch()
    checkpoint.forget_later(tmp_path, 100)
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000100.pt"]
