import numpy as np
import pytest
from tests.evaluation.blobs import NAMES, ORIGINS, SIZE, SPACING

from diffux2ct.data.prepared.dataset import PreparedDataset
from diffux2ct.data.prepared.writer import finish_dataset, write_case


@pytest.fixture(scope="session")
def blobs_root(tmp_path_factory):
    """A prepared folder of blobs: three cases to test on and two to take the mean of."""
    root = tmp_path_factory.mktemp("prepared")
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(SIZE)] * 3, indexing="ij"), axis=-1)
    for name in [*NAMES, "train0", "train1"]:
        hu = np.full((SIZE,) * 3, -1024.0)
        for _ in range(3):
            centre, radius = rng.uniform(4, 12, 3), rng.uniform(2, 4)
            hu[np.linalg.norm(grid - centre, axis=-1) < radius] = rng.uniform(0, 900)
        origin = ORIGINS.get(name, (0.0, 0.0, 0.0))
        write_case(root, name, hu.astype(np.int16), SPACING, origin, "parallel", meta={"patient": f"p-{name}"})
    settings = {"spacing": SPACING[0], "size": SIZE, "window": [-1024.0, 1500.0], "preset": "parallel", "seed": 0}
    finish_dataset(root, "blobs", {"train": ["train0", "train1"], "val": [], "test": NAMES}, settings)
    return root


@pytest.fixture
def dataset(blobs_root):
    return PreparedDataset(blobs_root, "test")


@pytest.fixture
def mean_volume(blobs_root):
    return PreparedDataset(blobs_root, "train").mean_volume()
