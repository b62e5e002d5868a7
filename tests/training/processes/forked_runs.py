"""Train in several processes without starting Python for each: ``python forked_runs.py JOB.json``.

The job: ``{"float64": false, "runs": [{"world": 2, "overrides": [...]}, ...]}``. Each run's ranks are forked from this
process, which has imported everything and computed nothing, and find each other as torchrun's would. The runs follow
one another; the first that fails ends the job with its status.
"""

import json
import os
import socket
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a forked process must not count on its parent's threads

import torch
from hydra import compose, initialize_config_module
from torch.nn.modules.module import register_module_forward_pre_hook

import diffux2ct.reconstructors.cost
import diffux2ct.training.loop  # noqa: F401 - imported here so that no rank has to
from diffux2ct.cli import run_main
from diffux2ct.cli.train import run
from diffux2ct.reconstructors.base import Trainable


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def compute_in_float64() -> None:
    """Weights, batches and losses of this process in double precision, which no user needs: there is no setting."""
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign] - models end in fp32, also under autocast
    register_module_forward_pre_hook(widen)


def widen(module: torch.nn.Module, inputs: tuple) -> tuple | None:
    if not isinstance(module, Trainable):
        return None
    name, batch = inputs
    return name, {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}


def train(rank: int, world: int, port: int, overrides: list[str]) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": port}
    os.environ.update({key: str(value) for key, value in place.items()}, MASTER_ADDR="127.0.0.1")
    with initialize_config_module("diffux2ct.configs", version_base="1.3"):
        cfg = compose("train", overrides=overrides)
    run_main(lambda: run(cfg))


def fork(rank: int, world: int, port: int, overrides: list[str]) -> int:
    process = os.fork()
    if process:
        return process
    status = 0
    try:
        train(rank, world, port, overrides)
    except SystemExit as end:
        print(end.code, file=sys.stderr)
        status = 1
    except BaseException:
        import traceback

        traceback.print_exc()
        status = 2
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as file:
        job = json.load(file)
    if job.get("float64"):
        compute_in_float64()
    for run_ in job["runs"]:
        port = free_port()
        ranks = [fork(rank, run_["world"], port, run_["overrides"]) for rank in range(run_["world"])]
        statuses = [os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1]) for rank in ranks]
        if any(statuses):
            sys.exit(f"{run_}: {statuses}")


if __name__ == "__main__":
    main()
