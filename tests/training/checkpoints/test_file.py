import os
import pickle

import pytest
import torch

from diffux2ct.errors import UserError
from diffux2ct.training.checkpoints import checks as contents
from diffux2ct.training.checkpoints import file as checkpoint
from diffux2ct.training.checkpoints.resume import changed_keys, find_resume


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
    with pytest.raises(UserError, match=r"c\.pt: not a readable checkpoint, perhaps truncated; use another one$"):
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
    for name, message in (("evil.pt", "a pickle of another program"), ("evil2.pt", "it names code")):
        with pytest.raises(UserError, match=message):
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
        "from diffux2ct.training.checkpoints import file as checkpoint; from diffux2ct.cli import run_main\n"
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
    assert "could not write the checkpoint (File too large); the last one is intact" in done.stderr
    assert checkpoint.load(tmp_path / "c.pt")["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]


def test_only_what_shapes_the_result_counts_as_a_change():
    saved = {"trainer": {"max_steps": 1, "seed": 0}, "logger": {"wandb": None}, "optim": {"lr": 1.0}}
    free = {"trainer": {"max_steps": 9, "seed": 0}, "logger": {"wandb": {"mode": "offline"}}, "optim": {"lr": 1.0}}
    assert changed_keys(saved, free) == []
    recomputed = saved | {"model": {"flow": {"checkpoint_stages": [64]}}}
    assert changed_keys(saved | {"model": {"flow": {"checkpoint_stages": []}}}, recomputed) == []
    changed = {"trainer": {"max_steps": 1, "seed": 1}, "optim": {"lr": 2.0, "eps": 1}, "logger": {}}
    assert changed_keys(saved, changed) == ["optim.eps", "optim.lr", "trainer.seed"]


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
    from diffux2ct import load_model

    checkpoint.save(tmp_path / "c.pt", {"model": {}, "config": {"model": node}})
    with pytest.raises(UserError, match=r"c\.pt"):
        load_model(tmp_path / "c.pt")


def test_cosine_may_not_change_its_length_and_a_constant_rate_may(tmp_path):
    for schedule in ("constant", "cosine"):
        config = {"trainer": {"max_steps": 1, "lr_schedule": schedule}}
        checkpoint.save(tmp_path / schedule / "checkpoints" / "last.pt", {"model": {}, "config": config})
        longer = {"trainer": {"max_steps": 2, "lr_schedule": schedule}}
        assert find_resume(tmp_path / schedule, "auto", config).state["config"] == config
        if schedule == "constant":
            assert find_resume(tmp_path / schedule, "auto", longer).state["config"] == config
        else:
            with pytest.raises(UserError, match=r"max_steps.*; end it sooner by trainer\.max_minutes=\.\.\., give"):
                find_resume(tmp_path / schedule, "auto", longer)


def test_how_the_raw_scans_were_prepared_does_not_concern_a_resumed_run(tmp_path):
    trainer = {"max_steps": 1, "lr_schedule": "constant"}
    saved = {"trainer": trainer, "dataset": {"size": 32, "prepare": {"crops": 0}}}
    checkpoint.save(tmp_path / "checkpoints" / "last.pt", {"model": {}, "config": saved})
    other = {"trainer": trainer, "dataset": {"size": 32, "prepare": {"grid": "centre"}}}
    assert find_resume(tmp_path, "auto", other).state["config"] == saved
    with pytest.raises(UserError, match=r"dataset\.size"):
        find_resume(tmp_path, "auto", other | {"dataset": {"size": 64, "prepare": {}}})


def test_starting_over_forgets_the_later_checkpoints(tmp_path):
    for step in (100, 400, 500):
        (tmp_path / f"step_{step:08d}.pt").touch()
    checkpoint.forget_later(tmp_path, 100)
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000100.pt"]


def test_a_flipped_bit_anywhere_is_refused(tmp_path):
    path = tmp_path / "c.pt"
    checkpoint.save(path, {"model": {"w": torch.randn(300)}, "config": {}})
    data = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    for at in torch.randint(len(data), (60,), generator=generator).tolist():
        path.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        with pytest.raises(UserError, match=r"c\.pt: (damaged, its checksum|not a readable checkpoint)"):
            checkpoint.load(path)
    path.write_bytes(data)
    assert checkpoint.load(path)["model"]["w"].shape == (300,)


def test_a_file_without_its_checksum_is_refused_and_plain_torch_load_works(tmp_path):
    torch.save({"format": 1, "model": {"w": torch.ones(2)}, "step": 3}, tmp_path / "old.pt")
    with pytest.raises(UserError, match=r"old\.pt: not a readable checkpoint, perhaps truncated"):
        checkpoint.load(tmp_path / "old.pt")
    checkpoint.save(tmp_path / "new.pt", {"model": {"w": torch.ones(2)}, "step": 4})
    assert torch.load(tmp_path / "new.pt", weights_only=True)["step"] == 4


def test_a_payload_is_named_and_refused_in_one_line(tmp_path):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"format": 1, "model": Payload()}, tmp_path / "evil.pt")
    checkpoint.save(tmp_path / "sealed.pt", {"model": Payload()})
    for name in ("evil.pt", "sealed.pt"):
        with pytest.raises(UserError, match=r"it names code \(\w*\.?open\), which is not run") as error:
            checkpoint.load(tmp_path / name)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


def resumable(step: int) -> dict:
    config = {"trainer": {"max_steps": 9, "lr_schedule": "constant"}}
    return {"model": {"w": torch.full((2,), float(step))}, "config": config, "step": step}


def test_resuming_passes_over_damaged_checkpoints_and_says_so(tmp_path, capsys):
    folder = tmp_path / "checkpoints"
    for step in (2, 4, 6):
        checkpoint.save(folder / f"step_{step:08d}.pt", resumable(step))
    checkpoint.link(folder / "step_00000006.pt", "last.pt")
    config = resumable(0)["config"]
    assert find_resume(tmp_path, "auto", config).state["step"] == 6
    assert capsys.readouterr().err == ""
    for step, damage in (
        (6, lambda data: data[:-200]),
        (4, lambda data: data[:400] + bytes([data[400] ^ 1]) + data[401:]),
    ):
        path = folder / f"step_{step:08d}.pt"
        data = damage(path.read_bytes())
        path.unlink()  # its links stay as they were
        path.write_bytes(data)
    assert find_resume(tmp_path, "auto", config).state["step"] == 6  # last.pt is whole
    (folder / "last.pt").write_bytes(b"")
    assert find_resume(tmp_path, "auto", config).state["step"] == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {folder / 'step_00000006.pt'}: not a readable checkpoint")
    assert "step_00000004.pt" in line
    assert line.endswith(f"continuing from {folder / 'step_00000002.pt'}")
    (folder / "step_00000002.pt").write_bytes(b"no")
    with pytest.raises(UserError, match=r"no checkpoint in it can be read.*trainer\.resume=never"):
        find_resume(tmp_path, "auto", config)
    assert find_resume(tmp_path, "never", config) is None


def test_a_run_killed_before_its_first_last_pt_goes_on_from_the_numbered_one(tmp_path):
    checkpoint.save(tmp_path / "checkpoints" / "step_00000002.pt", resumable(2))
    assert find_resume(tmp_path, "auto", resumable(0)["config"]).state["step"] == 2


def test_last_and_best_are_the_same_file_and_outlive_pruning(tmp_path):
    for step in (2, 4):
        path = tmp_path / f"step_{step:08d}.pt"
        checkpoint.save(path, resumable(step))
        checkpoint.link(path, "last.pt")
        if step == 2:
            checkpoint.link(path, "best.pt")
            assert path.samefile(tmp_path / "best.pt")
        checkpoint.prune(tmp_path, keep_last=1)
    assert checkpoint.load(tmp_path / "best.pt")["step"] == 2
    assert checkpoint.load(tmp_path / "last.pt")["step"] == 4
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.pt", "last.pt", "step_00000004.pt"]
    (tmp_path / ".partial-step_00000006.pt").write_bytes(b"half")
    checkpoint.forget_later(tmp_path, 2)
    assert checkpoint.forget_later_best(tmp_path, 2)
    assert [p.name for p in tmp_path.glob("*.pt")] != []
    assert not (tmp_path / ".partial-step_00000006.pt").exists()
    assert (tmp_path / "best.pt").exists()
    assert not checkpoint.forget_later_best(tmp_path, 1)
    assert not (tmp_path / "best.pt").exists()


def test_a_newer_numbered_checkpoint_than_last_pt_is_taken(tmp_path):
    for step in (2, 4, 6):
        checkpoint.save(tmp_path / "checkpoints" / f"step_{step:08d}.pt", resumable(step))
    checkpoint.link(tmp_path / "checkpoints" / "step_00000004.pt", "last.pt")  # killed before the next link
    assert find_resume(tmp_path, "auto", resumable(0)["config"]).state["step"] == 6


def test_without_hard_links_last_pt_is_a_copy(tmp_path, monkeypatch):
    def no_links(*_):
        raise OSError("no hard links")

    monkeypatch.setattr(os, "link", no_links)
    checkpoint.save(tmp_path / "step_00000002.pt", resumable(2))
    checkpoint.link(tmp_path / "step_00000002.pt", "last.pt")
    assert checkpoint.load(tmp_path / "last.pt")["step"] == 2
    assert not (tmp_path / "last.pt").samefile(tmp_path / "step_00000002.pt")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weight": torch.zeros(3, 2)}, r"weight is float32 \[3, 2\], where the model has float32 \[2, 3\]"),
        ({"weight": torch.zeros(2, 3).half()}, r"weight is float16 \[2, 3\], where the model has float32 \[2, 3\]"),
        ({"other": torch.zeros(1)}, "the model has no other"),
        ({"bias": None}, "no bias"),
        ({"bias": "text"}, "no bias"),
    ],
)
def test_weights_that_do_not_fit_are_refused_in_one_line(change, words):
    model = torch.nn.Linear(3, 2)
    with pytest.raises(UserError, match=rf"^c\.pt: its weights do not fit the model \({words}\)") as error:
        contents.check_fits("c.pt", {**model.state_dict(), **change}, model.state_dict())
    assert "\n" not in str(error.value)
    contents.check_fits("c.pt", model.state_dict(), model.state_dict())
