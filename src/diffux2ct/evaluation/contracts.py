"""The interfaces of a method and of a data set that an evaluation uses."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class SupportsReconstruct(Protocol):
    """Anything that maps X-rays to a volume; see `diffux2ct.reconstructors.base.Reconstructor`."""

    def reconstruct(
        self, xrays: Mapping[str, Tensor], *, generator: torch.Generator | None = None, **settings: Any
    ) -> Tensor:
        """X-rays [B, 1, D, W] and [B, 1, D, H] to a volume [B, 1, D, H, W], all in [-1, 1]."""
        ...


@runtime_checkable
class EvaluationDataset(Protocol):
    """A data set of cases, such as `diffux2ct.data.prepared.dataset.PreparedDataset`."""

    @property
    def cases(self) -> Sequence[Any]:
        """With case_id, patient, spacing and origin (x, y, z) in mm."""
        ...

    @property
    def window(self) -> tuple[float, float]:
        """HU of -1 and 1."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...
