"""Shared fixtures: the real-data folder, and runtime shape checks on every public signature."""

from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook

# Shapes on public signatures are checked here only, so that users pay nothing for them.
install_import_hook("diffux2ct", "beartype.beartype")

torch.set_num_threads(2)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real CT and X-rays that may lie beside the checkout; skips where it does not."""
    root = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not root.is_dir():
        pytest.skip(f"real data not found at {root}")
    return root
