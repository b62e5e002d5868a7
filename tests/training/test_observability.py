import csv
import json
import struct
import time
from collections.abc import Iterator

import pytest
import torch
from tests.training.toy import THIN, Cases, train_toy
from torch import nn

from diffux2ct import build
from diffux2ct.cli.train import run
from diffux2ct.data.prepared.dataset import PreparedDataset
from diffux2ct.reconstructors.base import Objective, Trainable
from diffux2ct.reconstructors.cost import matmul_rate, step_flops
from diffux2ct.training.progress import profiled


class Convolution(Trainable):
    """One objective, one convolution whose FLOP are known."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(1, 4, 3, padding=1, bias=False)

    def objectives(self):
        return (Objective("o", list(self.parameters()), lambda batch: {"total": self.conv(batch["volume"]).sum()}),)


def test_flops_are_those_of_forward_and_backward():
    forward = 2 * 8**3 * 4 * 27
    sample = {"volume": torch.empty(1, 1, 8, 8, 8), "seed": torch.zeros(1, dtype=torch.long)}
    assert step_flops(Convolution, sample) == 2 * forward  # none for the volume's own gradient


def test_counting_leaves_the_random_state_alone_and_runs_every_model(compose, phantoms):
    item = PreparedDataset(phantoms)[0]
    sample = {key: item[key][None] for key in ("volume", "frontal", "lateral")} | {"seed": torch.zeros(1).long()}
    counts = {}
    for model in ("diffux2ct", "x2ct_gan"):
        cfg = compose(f"model={model}")
        before = torch.get_rng_state()
        counts[model] = step_flops(lambda cfg=cfg: build.build_reconstructor(cfg), sample)
        assert torch.equal(before, torch.get_rng_state())
    assert all(1e8 < count < 1e11 for count in counts.values())


def test_the_matrix_rate_is_measured_once():
    cpu = torch.device("cpu")
    rate = matmul_rate(cpu, torch.float32)
    assert 1e8 < rate < 1e14
    assert matmul_rate(cpu, torch.float32) == rate


def read_csv(folder) -> dict[tuple[int, str], float]:
    with open(folder / "metrics.csv", newline="") as file:
        return {(int(row["step"]), row["name"]): float(row["value"]) for row in csv.DictReader(file)}


def read_tensorboard(folder) -> dict[tuple[int, str], float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {(e.step, name): e.value for name in events.Tags()["scalars"] for e in events.Scalars(name)}


def records(data: bytes) -> Iterator[bytes]:
    """Of a .wandb file: LevelDB's log format, seven bytes of its own before; records are parted at 32 KiB blocks."""
    position, whole = 7, b""
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        whole += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield whole
            whole = b""


def read_wandb(folder) -> dict[tuple[int, str], float]:
    from wandb.proto import wandb_internal_pb2

    (path,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    parse, found, end = wandb_internal_pb2.Record.FromString, {}, time.monotonic() + 60
    # W&B's own process may still be writing.
    while not any(parse(data).HasField("exit") for data in records(path.read_bytes())) and time.monotonic() < end:
        time.sleep(0.1)
    for record in map(parse, records(path.read_bytes())):
        if record.WhichOneof("record_type") == "history":
            items = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
            step = items.pop("step")
            numbers = {k: v for k, v in items.items() if isinstance(v, int | float) and not k.startswith("_")}
            # A picture comes with its width, height and size.
            found |= {(step, k): v for k, v in numbers.items() if not k.startswith("validation/")}
    return found


def test_csv_tensorboard_and_offline_wandb_show_the_same(compose, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder = tmp_path / "logs"
    run(
        compose(
            f"run_dir={folder}",
            "name=logs",
            *THIN,
            "trainer.max_steps=10",
            "trainer.batch_size=2",
            "trainer.log_every=5",
            "trainer.val_every=5",
            "trainer.num_val_cases=1",
            "logger.wandb.mode=offline",
            "logger.tensorboard=true",
            "trainer.profile=1",
        )
    )
    rows = read_csv(folder)
    assert {step for step, _ in rows} == {5, 10}
    cost = {"samples_per_second", "data_wait_share", "peak_memory_gib", "tflops", "share_of_peak"}
    assert cost | {"diffusion/grad_norm", "diffusion/total", "val/psnr3d"} <= {name for _, name in rows}
    assert 0 <= rows[5, "data_wait_share"] < 1
    assert 0.05 < rows[5, "peak_memory_gib"] < 100
    # The same FLOP a sample at each report, and one rate.
    for name, other in (("tflops", "samples_per_second"), ("share_of_peak", "tflops")):
        ratios = [rows[step, name] / rows[step, other] for step in (5, 10)]
        assert ratios[0] == pytest.approx(ratios[1], rel=1e-6)
    for read in (read_tensorboard, read_wandb):
        assert read(folder) == pytest.approx(rows, rel=1e-6), read.__name__
    trace = json.loads((folder / "profile" / "rank0.json").read_text())
    assert any("conv" in event.get("name", "") for event in trace["traceEvents"])


def test_no_profile_is_made_unasked(tmp_path):
    train_toy(tmp_path, max_steps=3)
    assert not (tmp_path / "profile").exists()
    with profiled(2, tmp_path, rank=0) as step:
        for _ in range(5):
            torch.ones(4) @ torch.ones(4)
            step()
    assert (tmp_path / "profile" / "rank0.json").stat().st_size > 100


def test_waiting_for_data_is_told(tmp_path):
    class Slow(Cases):
        def __getitem__(self, index):
            time.sleep(0.05)
            return super().__getitem__(index)

    for name, cases, low, high in (("slow", Slow(), 0.7, 1.0), ("fast", Cases(), 0.0, 0.7)):
        train_toy(tmp_path / name, cases=cases, max_steps=4, log_every=4)
        share = read_csv(tmp_path / name)[4, "data_wait_share"]
        assert low <= share <= high, name


def test_wandb_without_a_network_records_offline_and_says_so(tmp_path, monkeypatch, capsys):
    pytest.importorskip("wandb")
    from diffux2ct.training.loggers import WandbLogger

    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(tmp_path, {}, project="p", name="n", mode="online")
    logger.scalars(1, {"loss": 0.5, "val/psnr3d": 20.25})
    logger.scalars(2, {"loss": 0.25})
    logger.close()
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert "logger.wandb.mode=online: http://127.0.0.1:9 cannot be reached" in warnings[0]
    assert read_wandb(tmp_path) == {(1, "loss"): 0.5, (1, "val/psnr3d"): 20.25, (2, "loss"): 0.25}
