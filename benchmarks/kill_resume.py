"""Kill short training runs at random moments, resume them, and compare the end with an undisturbed run, bit for bit.

    python benchmarks/kill_resume.py                      # 200 x kill -9, 50 x SIGTERM; writes kill_resume.csv
    python benchmarks/kill_resume.py --kills 40 --terms 10

A run is the demo's model on phantoms at 16^3 with a checkpoint every second step. Each attempt is a process of its own,
forked from one that has imported PyTorch and computed nothing, so that most of its time is training and saving. After
each kill all checkpoints of the run are read, half-written ones apart. Exits with status 1 where one cannot be read, or
an end differs.
"""

import argparse
import csv
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a forked process must not count on its parent's threads

import torch
from hydra import compose, initialize_config_module
from tqdm import tqdm

from diffux2ct.cli import run_main
from diffux2ct.cli.train import run
from diffux2ct.data.phantom import generate_dataset
from diffux2ct.errors import UserError
from diffux2ct.training.checkpoints import file as checkpoint

HERE = Path(__file__).resolve().parent


def config(root: Path, name: str, steps: int):
    overrides = [
        "experiment=demo",
        "model=diffux2ct",
        "dataset.size=16",
        f"dataset.root={root / 'phantoms'}",
        "dataset.generate=null",
        f"name={name}",
        f"run_dir={root / name}",
        f"trainer.max_steps={steps}",
        "trainer.batch_size=2",
        "trainer.checkpoint_every=2",
        "trainer.log_every=1",
        "trainer.device=cpu",
        "trainer.num_threads=1",
        "trainer.lr_schedule=constant",
        "sizes.tiny.dropout=0.1",
    ]
    with initialize_config_module("diffux2ct.configs", version_base="1.3"):
        return compose("train", overrides=overrides)


def fork(command: Callable[[], object], log: Path) -> int:
    """Start ``command`` in a process of its own; returns its id."""
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    # tqdm's lock is shared between forked processes: one that was killed while it held it would stop all later ones.
    tqdm.set_lock(threading.RLock())
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    status = 0
    try:
        run_main(command)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        status = end.code if isinstance(end.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def wait(process: int, seconds: float) -> int | None:
    """The exit status within so many seconds, negative for a signal; None where it still runs."""
    end = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= end:
            return None
        time.sleep(min(0.01, max(0.0, end - time.monotonic())))


def unreadable(folder: Path) -> list[str]:
    """The reasons why checkpoints of a run cannot be read; hidden files are half-written."""
    refused = []
    for path in sorted((folder / "checkpoints").glob("[!.]*.pt")):
        try:
            checkpoint.load(path)
        except UserError as error:
            refused.append(str(error))
    return refused


def flat(tree, prefix: str = "") -> dict[str, object]:
    if isinstance(tree, dict):
        return {k: v for key, value in tree.items() for k, v in flat(value, f"{prefix}/{key}").items()}
    return {prefix: tree}


def difference(folder: Path, reference: Path) -> str | None:
    """Where two runs' ends differ: weights, averages, optimisers or logged losses; None where they are equal."""
    a, b = (checkpoint.load(path) for path in (folder, reference))
    for part in ("step", "model", "ema", "optimizers", "watch"):
        left, right = flat(a[part], part), flat(b[part], part)
        if left.keys() != right.keys():
            return f"{part}: other entries"
        for name, value in left.items():
            same = torch.equal(value, right[name]) if isinstance(value, torch.Tensor) else value == right[name]
            if not same:
                return name
    return None if losses(folder) == losses(reference) else "metrics.csv"


def losses(folder: Path) -> list[tuple[str, str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return [(row["step"], row["name"], row["value"]) for row in csv.DictReader(file) if "/" in row["name"]]


def disturb(root: Path, number: signal.Signals, count: int, steps: int, seconds: float, draw: random.Random):
    """Disturb runs ``count`` times and let each end; returns a row of figures and what was wrong."""
    wrong: list[str] = []
    sent = runs = attempts = during_training = 0
    while sent < count or attempts:
        name = f"{number.name}-{runs}"
        folder = root / name
        process = fork(lambda name=name: run(config(root, name, steps)), root / f"{name}.log")
        attempts += 1
        status = wait(process, draw.uniform(0, 0.7 * seconds)) if sent < count else wait(process, 600)
        if status is None:
            started = (folder / "metrics.csv").is_file()
            os.kill(process, number)
            status = wait(process, 120)
            sent += 1
            during_training += started
            print(f"{number.name} {sent} of {count}: {len(wrong)} wrong", *wrong[-1:], file=sys.stderr, flush=True)
            if status is None:
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)
                wrong.append(f"{name}: did not end within 120 s of {number.name}")
            wrong += unreadable(folder)
        if status == 0:
            found = difference(folder, root / "reference")
            wrong += [f"{name}: differs at {found}"] if found else []
            shutil.rmtree(folder)
            runs, attempts = runs + 1, 0
        elif status is not None and status not in (-number, 128 + number):
            wrong.append(f"{name}: ended with {status}: {(root / f'{name}.log').read_text()[-300:]}")
            shutil.rmtree(folder, ignore_errors=True)
            runs, attempts = runs + 1, 0
    return {
        "signal": number.name,
        "sent": sent,
        "after_first_step": during_training,
        "runs": runs,
        "steps": steps,
        "wrong": len(wrong),
        "torch": torch.__version__,
        "machine": platform.machine(),
    }, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--terms", type=int, default=50)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, default=HERE / "kill_resume.csv")
    args = parser.parse_args()
    draw, rows, wrong = random.Random(args.seed), [], []
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        generate_dataset(
            root / "phantoms", num_train=6, num_val=1, num_test=1, size=16, extent_mm=256.0, seed=0, workers=1
        )
        start = time.monotonic()
        if wait(fork(lambda: run(config(root, "reference", args.steps)), root / "reference.log"), 600) != 0:
            sys.exit((root / "reference.log").read_text())
        seconds = time.monotonic() - start
        for number, count in ((signal.SIGKILL, args.kills), (signal.SIGTERM, args.terms)):
            if count:
                row, found = disturb(root, number, count, args.steps, seconds, draw)
                rows.append(row)
                wrong += found
                print(", ".join(f"{key}={value}" for key, value in row.items()), flush=True)
    with open(args.out, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
