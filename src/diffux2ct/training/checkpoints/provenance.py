"""Provenance of a run, which repeats it together with its config: versions, commit, hardware, manifest hash."""

import json
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from diffux2ct.files.atomic import sha256_of, write_text


def provenance(dataset_root: str | Path, num_threads: int | None = None) -> dict[str, Any]:
    """Commit, packages, hardware, and the SHA-256 of the data set's manifest; None where unknown.

    ``num_threads``: the number that this process will set; None: PyTorch's own.
    """
    versions: dict[str, str | None] = {each.metadata["Name"]: each.version for each in metadata.distributions()}
    versions.setdefault("diffux2ct", None)  # a source tree on a path, not installed
    manifest = Path(dataset_root) / "manifest.csv"
    return {
        "commit": _commit(),
        "versions": dict(sorted(versions.items())),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "python": platform.python_version(),
        "machine": platform.platform(),
        "processor": processor(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        "gpus": torch.cuda.device_count(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "threads": num_threads or torch.get_num_threads(),
        "manifest_sha256": sha256_of(manifest) if manifest.is_file() else None,
    }


def record_provenance(path: Path, dataset_root: str | Path, num_threads: int | None = None) -> None:
    """Write `provenance` to ``path``; the entries of the run's earlier parts stay under ``earlier``."""
    facts, earlier = provenance(dataset_root, num_threads), []
    if path.is_file():
        try:
            former = json.loads(path.read_text(encoding="utf-8"))
            earlier = [*former.pop("earlier", []), former]
        except (ValueError, AttributeError):
            pass  # cut short by a kill
    earlier = [entry for entry in earlier if entry != facts]
    write_text(path, json.dumps(facts | {"earlier": earlier}, indent=2) + "\n")


def _commit() -> str | None:
    """The checkout's commit, ``-dirty`` with uncommitted changes; None for an installed package."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        # An environment inside somebody else's repository is not a checkout of ours.
        subprocess.run([*git, "ls-files", "--error-unmatch", Path(__file__).name], capture_output=True, check=True)
        described = [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(described, capture_output=True, text=True, encoding="utf-8", check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def processor(device: torch.device) -> str:
    """The name of the GPU or CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
