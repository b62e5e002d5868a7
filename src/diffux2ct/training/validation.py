"""Validation: reconstruct held-out cases from their X-rays as users do, score them, and show one."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from diffux2ct.intensity import denormalize_hu
from diffux2ct.reconstructors.base import Reconstructor, Trainable, on_device, xrays_of
from diffux2ct.reconstructors.precision import autocast
from diffux2ct.seeding import CPU, seeded_generator
from diffux2ct.training.loggers import Loggers
from diffux2ct.training.settings import TrainerSettings
from diffux2ct.training.state import Ema
from diffux2ct.viz.slices import comparison_grid


@dataclass(frozen=True)
class Validator:
    """Samples the first ``settings.num_val_cases`` held-out cases with the averaged weights and logs the metrics.

    ``metrics``: functions of (prediction, truth) volumes [D, H, W] in [-1, 1]. The noise of a case depends on the
    seed and the case alone, so curves over steps compare like with like.
    """

    dataset: Dataset
    metrics: Mapping[str, Callable[[Tensor, Tensor], float]]
    sampling: Mapping[str, Any]
    window: tuple[float, float]

    # Not inference_mode: sharded weights that are first gathered there could not be trained on afterwards.
    @torch.no_grad()
    def __call__(
        self,
        model: Trainable,
        ema: Ema | None,
        device: torch.device,
        settings: TrainerSettings,
        loggers: Loggers,
        step: int,
        stoppable: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> dict[str, float]:
        """Reconstruct, score, log ``val/<metric>`` and one preview; the model is left in training mode.

        ``stoppable``: opened around each reconstruction; what it raises passes on, and nothing is logged.
        """
        assert isinstance(model, Reconstructor), "build_validator makes none for other models"
        count = min(settings.num_val_cases, len(self.dataset))  # type: ignore[arg-type]
        scores: dict[str, list[float]] = {name: [] for name in self.metrics}
        with _evaluating(model), ema.applied_to(model) if ema else nullcontext():
            for index in range(count):
                case = {key: v[None] for key, v in self.dataset[index].items() if isinstance(v, Tensor)}
                case = on_device(case, device)
                generator = seeded_generator(CPU, settings.seed, index)
                with stoppable(), autocast(settings.precision, device):
                    volume = model.reconstruct(xrays_of(case), generator=generator, **self.sampling)
                prediction, truth = volume[0, 0].float().cpu(), case["volume"][0, 0].cpu()
                for name, metric in self.metrics.items():
                    scores[name].append(float(metric(prediction, truth)))
                if index == 0:
                    true, made = (denormalize_hu(volume.numpy(), self.window) for volume in (truth, prediction))
                    loggers.image(step, "validation", comparison_grid(true, made))
        means = {f"val/{name}": sum(values) / len(values) for name, values in scores.items()}
        loggers.scalars(step, means)
        return means


@contextmanager
def _evaluating(model: Trainable) -> Iterator[None]:
    model.eval()
    try:
        yield
    finally:
        model.train()
