"""Loggers of a run's numbers and pictures: CSV always, TensorBoard and Weights & Biases on request."""

import csv
import os
import secrets
import sys
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable
from urllib.error import HTTPError
from urllib.request import urlopen

import numpy as np

from diffux2ct.files.atomic import replaced_file, write_text


@runtime_checkable
class Logger(Protocol):
    """Takes scalars and pictures by step."""

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Log numbers."""

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Log a picture, uint8 [rows, columns] or [rows, columns, 3]."""

    def close(self) -> None:
        """Flush and end."""


class CsvLogger:
    """``metrics.csv`` with rows (step, name, value): any metric may join at any step; pictures as PNG."""

    def __init__(self, run_dir: Path, resume_step: int = 0) -> None:
        self.folder = run_dir
        path = run_dir / "metrics.csv"
        kept = []
        if path.exists() and resume_step > 0:
            # Rows past the checkpoint will be written again.
            with open(path, newline="") as file:
                kept = [row for row in csv.DictReader(file) if row["value"] and int(row["step"]) <= resume_step]
        with replaced_file(path) as partial, open(partial, "w", newline="") as file:
            writer = csv.DictWriter(file, ["step", "name", "value"])
            writer.writeheader()
            writer.writerows(kept)
        self.file = open(path, "a", newline="")  # noqa: SIM115 - closed in close()
        self.writer = csv.writer(self.file)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self.writer.writerows([step, name, f"{value:.8g}"] for name, value in values.items())
        self.file.flush()

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Write ``previews/<name>_<step>.png``."""
        from PIL import Image

        folder = self.folder / "previews"
        folder.mkdir(exist_ok=True)
        Image.fromarray(image).save(folder / f"{name}_{step:08d}.png")

    def close(self) -> None:
        self.file.close()


class TensorBoardLogger:
    """Event files under ``<run>/tensorboard`` (``pip install 'diffux2ct[tensorboard]'``)."""

    def __init__(self, run_dir: Path, resume_step: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Steps past the checkpoint will be logged again; TensorBoard then shows the newer values alone.
        self.writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=resume_step + 1)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        self.writer.add_image(name, image, step, dataformats="HWC" if image.ndim == 3 else "HW")

    def close(self) -> None:
        self.writer.close()


class WandbLogger:
    """A Weights & Biases run; ``mode="offline"`` needs no account and no network."""

    def __init__(
        self,
        run_dir: Path,
        config: dict[str, Any],
        project: str,
        name: str,
        mode: Literal["online", "offline", "disabled"],
        resume_step: int = 0,
    ) -> None:
        # Imported here: training must not need it.
        import wandb

        self.wandb = wandb
        # A resumed run continues its record; one that begins anew gets a new one.
        note = run_dir / "wandb_id.txt"
        known = resume_step > 0 and note.exists()
        run_id = note.read_text(encoding="utf-8").strip() if known else secrets.token_hex(4)
        write_text(note, run_id + "\n")
        if mode == "online" and (fault := _unreachable(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))):
            warning = f"warning: logger.wandb.mode=online: {fault}; recording offline (wandb sync uploads it later)"
            print(warning, file=sys.stderr)
            mode = "offline"
        self.run = wandb.init(
            dir=str(run_dir), config=config, project=project, name=name, id=run_id, resume="allow", mode=mode
        )
        # W&B's own step only grows, and drops the values of a run that went back; our steps keep them.
        self.run.define_metric("*", step_metric="step")

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self.run.log({"step": step, **values})

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        self.run.log({"step": step, name: self.wandb.Image(image)})

    def close(self) -> None:
        self.run.finish()


def _unreachable(url: str) -> str | None:
    """Why a server does not respond, by way of a proxy where one is set; None where it does, if only to refuse."""
    try:
        urlopen(url, timeout=10).close()
    except HTTPError:
        return None
    except (OSError, ValueError) as error:
        return f"{url} cannot be reached ({getattr(error, 'reason', error)})"
    return None


class Loggers:
    """Several loggers as one."""

    def __init__(self, loggers: list[Logger]) -> None:
        self.loggers = loggers

    def scalars(self, step: int, values: dict[str, float]) -> None:
        for logger in self.loggers:
            logger.scalars(step, values)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        for logger in self.loggers:
            logger.image(step, name, image)

    def close(self) -> None:
        for logger in self.loggers:
            logger.close()
