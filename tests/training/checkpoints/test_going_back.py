"""What a run's folder holds after going back, starting over, or beginning from another run's checkpoint."""

import json
import math

import pytest
import torch
from tests.training.test_divergence import at_step
from tests.training.toy import Cases, Toy, train_toy

from diffux2ct.errors import UserError
from diffux2ct.training.checkpoints import file as checkpoint
from diffux2ct.training.checkpoints.provenance import record_provenance
from diffux2ct.training.divergence import Diverged


def names(folder) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def step_file(folder, step: int) -> str:
    return str(folder / "checkpoints" / f"step_{step:08d}.pt")


def test_a_run_that_went_back_has_forgotten_what_it_gave_up(tmp_path):
    run = tmp_path / "run"
    train_toy(run, max_steps=8, checkpoint_every=2, keep_last=9)
    # It is stopped before its next checkpoint: the folder must already stand at step 4.
    with pytest.raises(Diverged):
        train_toy(run, at_step(4, math.nan), max_steps=8, resume=step_file(run, 4), keep_last=9)
    assert names(run) == ["last.pt", "step_00000002.pt", "step_00000004.pt"]
    assert checkpoint.load(run)["step"] == 4
    with pytest.raises(Diverged):
        train_toy(run, at_step(0, math.nan), max_steps=8, resume="never")
    assert not (run / "checkpoints").exists()
    assert checkpoint.load(tmp_path / "run.2")["step"] == 4


def test_a_run_begun_from_another_s_checkpoint_steps_back_to_that(tmp_path):
    train_toy(tmp_path / "first", max_steps=10)
    train_toy(
        tmp_path / "second",
        at_step(12, math.nan),
        max_steps=20,
        resume=step_file(tmp_path / "first", 10),
        on_divergence="step_back",
    )
    state = checkpoint.load(tmp_path / "second")
    assert (state["step"], state["step_backs"]) == (20, 1)
    rows = (tmp_path / "second" / "metrics.csv").read_text().splitlines()[1:]
    assert [int(row.split(",")[0]) for row in rows if ",toy/total," in row] == list(range(11, 21))


def test_the_second_step_back_passes_over_a_checkpoint_that_may_be_spoilt(tmp_path, capsys):
    """The weights are bad from step 8 on, and the loss shows it at step 9: the checkpoint of step 8 is no good."""
    spoilt = lambda seeds: math.nan if len(tries) < 2 and tries.append(1) is None else 1.0  # noqa: E731
    tries: list[int] = []
    train_toy(tmp_path, max_steps=8, checkpoint_every=4, on_divergence="step_back", keep_last=9)
    train_toy(tmp_path, spoilt, max_steps=12, checkpoint_every=4, on_divergence="step_back", keep_last=9)
    assert "continuing from step 4 of 12" in capsys.readouterr().err
    state = checkpoint.load(tmp_path)
    assert (state["step"], state["step_backs"]) == (12, 2)


def test_how_often_a_run_stepped_back_is_known_before_its_next_checkpoint(tmp_path):
    train_toy(tmp_path, max_steps=4)
    bad = lambda seeds: math.nan  # noqa: E731
    with pytest.raises(Diverged):
        train_toy(tmp_path, bad, max_steps=9, on_divergence="step_back", max_step_backs=2)
    assert checkpoint.load(tmp_path)["step_backs"] == 2
    # Going on, it has used up its tries: it stops at once.
    with pytest.raises(Diverged, match="2 steps back did not help"):
        train_toy(tmp_path, bad, max_steps=9, on_divergence="step_back", max_step_backs=2)


def test_best_pt_is_linked_before_last_pt(tmp_path, monkeypatch):
    from diffux2ct.training.divergence import LossWatch
    from diffux2ct.training.state import RunState

    order, link = [], checkpoint.link
    monkeypatch.setattr(checkpoint, "link", lambda path, name: (order.append(name), link(path, name)))
    RunState(Toy(), {}, None, {}, LossWatch(None, torch.device("cpu")), step=3, best_score=20.0).save(
        tmp_path, 2, best=True
    )
    assert order == ["best.pt", "last.pt"]


def test_a_best_score_without_its_file_is_forgotten(tmp_path):
    train_toy(tmp_path, max_steps=6, checkpoint_every=2, keep_last=9)
    for step, score in ((2, 10.0), (4, 10.0), (6, 30.0)):
        path = tmp_path / "checkpoints" / f"step_{step:08d}.pt"
        checkpoint.save(path, checkpoint.load(path) | {"best_score": score})
    checkpoint.link(path, "last.pt")
    checkpoint.link(path, "best.pt")
    train_toy(tmp_path, max_steps=7, keep_last=9)
    assert checkpoint.load(tmp_path)["best_score"] == 30.0
    train_toy(tmp_path, max_steps=5, resume=step_file(tmp_path, 4), keep_last=9)
    assert checkpoint.load(tmp_path)["best_score"] is None
    assert "best.pt" not in names(tmp_path)


def test_other_cases_are_refused_unless_the_checkpoint_is_named(tmp_path):
    train_toy(tmp_path, max_steps=2)
    with pytest.raises(UserError, match=r"last.pt|step_0.*: was trained on other cases .*trainer\.resume="):
        train_toy(tmp_path, cases=Cases(7), max_steps=4)
    assert checkpoint.load(tmp_path)["step"] == 2
    train_toy(tmp_path, cases=Cases(7), max_steps=4, resume=step_file(tmp_path, 2))
    train_toy(tmp_path, cases=Cases(7), max_steps=6)
    assert checkpoint.load(tmp_path)["step"] == 6


def test_time_spent_counts_over_all_parts_of_a_run(tmp_path):
    train_toy(tmp_path, max_steps=2)
    path = tmp_path / "checkpoints" / "step_00000002.pt"
    checkpoint.save(path, checkpoint.load(path) | {"elapsed": 59.0})
    checkpoint.link(path, "last.pt")
    train_toy(tmp_path, max_steps=10**6, max_minutes=1)
    assert 59.0 < checkpoint.load(tmp_path)["elapsed"] < 75.0


def test_a_finished_run_started_again_adds_no_row(tmp_path):
    train_toy(tmp_path, max_steps=3)
    before = (tmp_path / "metrics.csv").read_text()
    train_toy(tmp_path, max_steps=3)
    assert (tmp_path / "metrics.csv").read_text() == before


def test_provenance_keeps_what_earlier_parts_of_the_run_wrote(tmp_path):
    path = tmp_path / "provenance.json"
    record_provenance(path, tmp_path, num_threads=1)
    first = json.loads(path.read_text())
    assert first["versions"]["torch"] == torch.__version__
    assert first["earlier"] == []
    record_provenance(path, tmp_path, num_threads=1)
    assert json.loads(path.read_text()) == first
    record_provenance(path, tmp_path, num_threads=2)
    second = json.loads(path.read_text())
    assert (second["threads"], [entry["threads"] for entry in second["earlier"]]) == (2, [1])
    path.write_text("{")
    record_provenance(path, tmp_path)
    assert json.loads(path.read_text())["earlier"] == []


def steps(folder) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").glob("step_*.pt"))


@pytest.mark.parametrize("killed", [False, True], ids=["whole", "killed after the move"])
def test_starting_over_keeps_the_earlier_run(tmp_path, killed):
    run = tmp_path / "run"
    train_toy(run, max_steps=4)
    earlier = {path.name: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    if killed:  # before the first checkpoint of the new run
        with pytest.raises(Diverged):
            train_toy(run, at_step(0, math.nan), max_steps=6, resume="never")
        assert not (run / "checkpoints").exists()
    train_toy(run, max_steps=6, resume="never")
    kept = tmp_path / "run.1"
    assert {path.name: path.read_bytes() for path in kept.rglob("*") if path.is_file()} == earlier
    assert checkpoint.load(run)["step"] == 6
    train_toy(run, max_steps=2, resume="never")
    assert [checkpoint.load(tmp_path / name)["step"] for name in ("run", "run.1", "run.2")] == [2, 4, 6]


def test_going_back_within_a_run_keeps_it_as_it_was(tmp_path):
    run = tmp_path / "run"
    train_toy(run, max_steps=8, checkpoint_every=2, keep_last=9)
    rows = (run / "metrics.csv").read_text()
    train_toy(run, max_steps=6, resume=step_file(run, 4), keep_last=9)
    assert steps(run) == [f"step_{step:08d}.pt" for step in (2, 4, 6)]
    assert steps(tmp_path / "run.1") == [f"step_{step:08d}.pt" for step in (2, 4, 6, 8)]
    assert (tmp_path / "run.1" / "metrics.csv").read_text() == rows
    # The newest one named is what resuming takes anyway.
    train_toy(run, max_steps=7, resume=step_file(run, 6), keep_last=9)
    assert not (tmp_path / "run.2").exists()


def test_beginning_from_another_run_keeps_the_one_in_the_folder(tmp_path):
    train_toy(tmp_path / "a", max_steps=2)
    train_toy(tmp_path / "b", max_steps=5)
    train_toy(tmp_path / "b", max_steps=3, resume=str(tmp_path / "a"))
    assert checkpoint.load(tmp_path / "b")["step"] == 3
    assert checkpoint.load(tmp_path / "b.1")["step"] == 5
