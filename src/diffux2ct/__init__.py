"""diffux2ct: train, compare and use models that reconstruct a CT from two X-rays."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from diffux2ct.reconstructors.base import Reconstructor

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(ckpt: "str | Path", device: str = "auto") -> "Reconstructor":
    """The trained model of a run folder or checkpoint file, ready for ``reconstruct``.

    Nothing that the file contains is executed. Raises ``diffux2ct.errors.UserError`` for a missing, truncated or
    foreign file.
    """
    from diffux2ct.build import load_reconstructor  # imported late: reading the version must not load torch

    return load_reconstructor(ckpt, device)[0]
