import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from diffux2ct.errors import UserError
from diffux2ct.training.processes.failures import explain, known_failures_in_one_line, of_worker
from diffux2ct.training.settings import TrainerSettings
from diffux2ct.training.steps import endless_batches


class Dies(torch.utils.data.Dataset):
    """Its third case ends the process that reads it, or cannot be read."""

    def __init__(self, how):
        self.how = how

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if index == 2 and torch.utils.data.get_worker_info():
            self.how()
        return {"x": torch.zeros(1)}


def read_all(how) -> None:
    settings = TrainerSettings(max_steps=4, batch_size=1, num_workers=1)
    batches = endless_batches(Dies(how), settings, 0, 0, 1, torch.device("cpu"))
    with known_failures_in_one_line():
        for _ in range(4):
            next(batches)


def test_the_death_of_a_data_worker_is_one_line():
    # In a process of its own: PyTorch goes on to report a dead worker to whatever its process does next.
    code = (
        "import os, signal, sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parents[3])!r})\n"
        "from tests.training.processes.test_failures import read_all\n"
        "from diffux2ct.cli import run_main\n"
        "run_main(lambda: read_all(lambda: os.kill(os.getpid(), signal.SIGKILL)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", timeout=300)
    assert done.returncode == 1
    expected = r"error: (a data worker|data worker \d+) died( \(Killed\))?, perhaps .*num_workers if it happens again\n"
    assert re.fullmatch(expected, done.stderr), done.stderr[-2000:]


def test_a_connection_that_ends_is_a_worker_s_death_only_where_there_are_workers():
    lost = ConnectionResetError(104, "Connection reset by peer")
    assert str(of_worker(lost, num_workers=1)).startswith("a data worker died, perhaps")
    assert of_worker(lost, num_workers=0) is lost
    own = ConnectionError("Caught ConnectionError in DataLoader worker process 0.")
    assert of_worker(own, num_workers=1) is own


def refuse() -> None:
    raise UserError("cases/7/volume.npy: missing or damaged; delete cases/7 and prepare it again")


def test_what_a_data_worker_says_of_a_case_stays_one_line():
    with pytest.raises(UserError, match=r"^cases/7/volume\.npy: missing or damaged; delete .* again$"):
        read_all(refuse)


def break_down() -> None:
    raise ZeroDivisionError("a fault of ours")


def test_our_own_faults_keep_their_traceback():
    with pytest.raises(ZeroDivisionError, match="Traceback"):
        read_all(break_down)


def test_known_failures_are_told_and_others_are_not():
    lost = "[../gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:1234"
    assert "another process of this run ended" in explain(lost, distributed=True)
    assert explain(lost, distributed=False) is None
    assert "trainer.accumulate" in explain("CUDA out of memory. Tried to allocate 2.00 GiB", distributed=False)
    bilinear = "upsample_bilinear2d_backward_out_cuda does not have a deterministic implementation, but you set"
    assert "trainer.deterministic" in explain(bilinear, distributed=False)
    assert explain("shape mismatch", distributed=True) is None
