"""One training step beside those of other 3D diffusion U-Nets, at equal size, batch and number of parameters.

    pip install --no-deps --target PEERS monai video-diffusion-pytorch einops-exts rotary-embedding-torch
    python benchmarks/peers_unet.py --peers PEERS        # writes benchmarks/peers_unet_cpu.csv

Peers: MONAI's DiffusionModelUNet (Apache-2.0) and video-diffusion-pytorch's Unet3D (MIT), which medicaldiffusion took
over; each as shipped (fp32, contiguous) and in our precision and layout (bf16 autocast, channels_last_3d). Theirs get a
noisy volume and the step. Ours gets X-rays too: its time and memory include the conditioning and the projection loss.
Their widths are chosen, near the shape that they are shipped in, for our number of parameters, or nearly so.

Each configuration has a process of its own; they step in turn, round after round, so that a busy machine slows all of
them alike. Times are medians, wall and processor; memory is the process's peak, less what it held before its model.
"""

import argparse
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import MagicMock

import torch
from hydra import compose, initialize_config_module
from torch import Tensor, nn

from _common import HERE, cpu_model, skip, write_csv
from diffux2ct import build
from diffux2ct.training.state import prepare_model

BF16, FP32 = "bf16 channels_last_3d", "fp32 contiguous"
CONFIGURATIONS = [
    ("diffux2ct", BF16),
    ("diffux2ct", FP32),
    ("monai", FP32),
    ("monai", BF16),
    ("video-diffusion", FP32),
    ("video-diffusion", BF16),
]


def make_ours(size: int, batch: int, widths: str) -> tuple[nn.Module, Callable[[], Tensor]]:
    """DiffuX2CT with conditioning and losses."""
    with initialize_config_module("diffux2ct.configs", version_base="1.3"):
        cfg = compose("train", ["experiment=demo", "model=diffux2ct", f"size={widths}", f"dataset.size={size}"])
    model = build.build_reconstructor(cfg)
    views = {view: torch.rand(batch, 1, size, size) for view in ("frontal", "lateral")}
    data = {"volume": torch.rand(batch, 1, size, size, size), **views, "seed": torch.arange(batch)}
    return model, lambda: model("diffusion", data)["total"]


def make_peer(name: str, size: int, batch: int, shape: tuple[int, ...]) -> tuple[nn.Module, Callable[[], Tensor]]:
    """A peer's U-Net with the loss of its noise prediction."""
    model = peer_unet(name, shape)
    x, noise = torch.rand(2, batch, 1, size, size, size)
    t = torch.arange(batch)
    return model, lambda: nn.functional.l1_loss(model(x, t).float(), noise)


def peer_unet(name: str, shape: tuple[int, ...]) -> nn.Module:
    """A peer's network; MONAI's in the shape of its 3D tutorial: three levels, attention at the coarsest.

    shape: MONAI's channels of the levels; the other's first width, and what the levels multiply it with.
    """
    if name == "monai":
        from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet

        return DiffusionModelUNet(
            spatial_dims=3,
            in_channels=1,
            out_channels=1,
            num_res_blocks=2,
            channels=shape,
            attention_levels=(False, False, True),
            num_head_channels=(0, 0, shape[-1]),
            norm_num_groups=4,  # divides every width that is tried
        )
    stand_in_for_torchvision()
    from video_diffusion_pytorch import Unet3D

    return Unet3D(dim=shape[0], channels=1, dim_mults=shape[1:])


def stand_in_for_torchvision() -> None:
    """An empty one where it is not installed: the peer imports it for its GIFs, and its U-Net needs none of it."""
    if "torchvision" not in sys.modules and importlib.util.find_spec("torchvision") is None:
        sys.modules["torchvision"] = MagicMock()


def shape_for(name: str, parameters: int) -> tuple[int, ...]:
    """The shape whose number of parameters is nearest."""
    shapes = (
        [(w, w + more, 2 * w) for w in range(16, 129, 4) for more in (0, 4)]
        if name == "monai"
        else [(w, 1, 2, k, m) for w in range(16, 65, 8) for k in (3, 4) for m in (6, 7, 8, 9)]
    )
    with torch.device("meta"):
        counts = {shape: count(peer_unet(name, shape)) for shape in shapes}
    return min(counts, key=lambda shape: abs(counts[shape] - parameters))


def count(model: nn.Module) -> int:
    """Its parameters."""
    return sum(p.numel() for p in model.parameters())


def peak_mib() -> float:
    """This process's largest resident set so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def worker(name: str, way: str, size: int, batch: int, widths: str, threads: int) -> None:
    """Takes a step for every line on stdin, and answers with its seconds and the peak so far."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    with torch.device("meta"):
        ours = count(make_ours(size, 1, widths)[0])
    shape = None if name == "diffux2ct" else shape_for(name, ours)
    before = peak_mib()
    model, loss = make_ours(size, batch, widths) if shape is None else make_peer(name, size, batch, shape)
    bf16 = way == BF16
    prepare_model(model, torch.device("cpu"), channels_last=bf16).train()  # type: ignore[arg-type]
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)
    print(json.dumps({"parameters": count(model), "shape": shape}), flush=True)
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            total = loss()
        total.backward()
        optimizer.step()
        optimizer.zero_grad()
        answer = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        print(json.dumps(answer | {"peak_mib": peak_mib() - before, "loss": float(total.detach())}), flush=True)


def run_all(args: argparse.Namespace) -> list[dict]:
    """All configurations side by side; a row for each."""
    environment = os.environ | {"OMP_NUM_THREADS": str(args.threads)}
    if args.peers:
        # Behind our own packages, so that nothing installed with the peers takes the place of ours.
        environment["DIFFUX2CT_PEERS"] = str(args.peers)
    workers = []
    for name, way in CONFIGURATIONS:
        numbers = [name, way, str(args.size), str(args.batch), args.widths, str(args.threads)]
        command = [sys.executable, __file__, "--worker", *numbers]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "encoding": "utf-8"}
        workers.append(subprocess.Popen(command, env=environment, **pipes))
    about = [read(process) for process in workers]
    steps: list[list[dict]] = [[] for _ in workers]
    for _ in range(args.rounds + 1):
        for process, taken in zip(workers, steps, strict=True):
            print(file=process.stdin, flush=True)
            taken.append(read(process))
    for process in workers:
        process.stdin.close()
        process.wait()
    rows = []
    for (name, way), facts, taken in zip(CONFIGURATIONS, about, steps, strict=True):
        later = taken[1:]  # the first step sets things up
        rows.append(
            {
                "model": name,
                "way": way,
                "parameters": facts["parameters"],
                "shape": " ".join(map(str, facts["shape"] or [args.widths])),
                "size": args.size,
                "batch": args.batch,
                "seconds": round(statistics.median(s["wall"] for s in later), 4),
                "cpu_seconds": round(statistics.median(s["cpu"] for s in later), 4),
                "peak_mib": round(taken[-1]["peak_mib"], 1),
            }
        )
    return rows


def read(process: subprocess.Popen) -> dict:
    """A worker's next answer."""
    line = process.stdout.readline()
    if not line:
        skip("a worker ended; see its message above (are the peers installed, and is --peers right?)")
    return json.loads(line)


def compare(rows: list[dict], args: argparse.Namespace) -> list[dict]:
    """Adds how we, as shipped, stand beside each row: above 1 in speed and below 1 in memory is for us."""
    ours = rows[0]
    for row in rows:
        row["our_speed"] = round(row["seconds"] / ours["seconds"], 2)
        row["our_speed_cpu"] = round(row["cpu_seconds"] / ours["cpu_seconds"], 2)
        row["our_memory"] = round(ours["peak_mib"] / row["peak_mib"], 2)
        row |= {"rounds": args.rounds, "threads": args.threads, "torch": torch.__version__, "cpu": cpu_model()}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--peers", type=Path, help="folder that the peers were installed in")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--widths", default="small", help="ours; the peers follow its parameters")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=HERE / "peers_unet_cpu.csv")
    parser.add_argument("--worker", nargs=6, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        if "DIFFUX2CT_PEERS" in os.environ:
            sys.path.append(os.environ["DIFFUX2CT_PEERS"])
        name, way, size, batch, widths, threads = args.worker
        return worker(name, way, int(size), int(batch), widths, int(threads))
    rows = compare(run_all(args), args)
    write_csv(args.out, rows)
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
