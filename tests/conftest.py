"""Shared fixtures: the real-data folder, and runtime shape checks on every public signature."""

import shutil
from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook

# Shapes on public signatures are checked here only, so that users pay nothing for them.
install_import_hook("diffux2ct", "beartype.beartype")

torch.set_num_threads(2)

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real CT and X-rays that may lie beside the checkout; skips where it does not."""
    root = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not root.is_dir():
        pytest.skip(f"real data not found at {root}")
    return root


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-goldens", action="store_true", help="rewrite tests/goldens/*.json")


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder of phantoms at 16^3: 6 to train on, 1 to validate, 3 to test."""
    from diffux2ct.data.phantom import generate_dataset

    root = tmp_path_factory.mktemp("phantoms") / "phantom-16"
    generate_dataset(root, num_train=6, num_val=1, num_test=3, size=16, extent_mm=256.0, seed=0, workers=1)
    return root


@pytest.fixture(scope="session")
def compared_runs(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders of three runs, as train.py and evaluate.py leave them, that were scored on the same three phantoms."""
    import torch

    from diffux2ct.data.prepared.dataset import PreparedDataset
    from diffux2ct.evaluation.runner import evaluate

    class BackProjector:
        def __init__(self, scale: float) -> None:
            self.scale = scale

        def reconstruct(self, xrays, *, generator=None):
            smeared = (xrays["frontal"][:, :, :, None, :] + xrays["lateral"][:, :, :, :, None]) / 2
            return self.scale * smeared - 0.1

    mean = PreparedDataset(phantoms, "train").mean_volume()
    runs = []
    for name, scale in (("half", 0.5), ("whole & <b>", 1.0), ("inverted", -0.5)):
        run = tmp_path_factory.mktemp("runs") / name.split()[0]
        run.mkdir()
        dataset = f"{{name: phantom, root: {phantoms}, size: 16, window: [-1024, 1500]}}"
        (run / "config.yaml").write_text(f"name: x\ndataset: {dataset}\n", encoding="utf-8")
        context = {"run": name, "dataset": "phantom", "split": "test"}
        with torch.inference_mode():
            evaluate(
                BackProjector(scale),
                PreparedDataset(phantoms, "test"),
                run / "evaluation" / "phantom-test",
                sampling={},
                mean_volume=mean,
                metrics=["psnr3d", "ssim3d"],
                context=context,
                num_report_cases=0,
            )
        runs.append(run)
    return runs


@pytest.fixture
def compose(phantoms: Path):
    """Composes configs/train.yaml as the demo with the paper's model, small enough for a test, plus overrides."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module

    def make(*overrides: str, experiment: str = "demo", config: str = "train"):
        small = [
            f"experiment={experiment}",
            *([] if any(word.startswith("model=") for word in overrides) else ["model=diffux2ct"]),
            "dataset.size=16",
            f"dataset.root={phantoms}",
            "++dataset.generate=null",
            "trainer.batch_size=4",
            "trainer.checkpoint_every=0",
            "trainer.warmup_steps=2",
            "trainer.lr_schedule=constant",
            "trainer.device=cpu",
            "sampler.num_inference_steps=3",
        ]
        with initialize_config_module("diffux2ct.configs", version_base="1.3"):
            return hydra_compose(config, overrides=[*small, *overrides])

    return make


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    with playwright.sync_playwright() as driver:
        # Without a sandbox, because containers and root have none; the page is our own.
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()
