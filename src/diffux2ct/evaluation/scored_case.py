"""A case as metrics take it: the true volume, labels, implants and X-rays of its prepared folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int16, UInt8
from torch import Tensor

from diffux2ct.evaluation.anatomy.implants import Implants, true_implants
from diffux2ct.evaluation.fidelity.xray_consistency import CaseXrays
from diffux2ct.evaluation.perception.weights import Unavailable
from diffux2ct.intensity import Window, to_hu
from diffux2ct.types import VIEWS


@dataclass(frozen=True)
class ScoredCase:
    """A case to score reconstructions against. Costly properties are computed once, on first use.

    volume: the truth in [-1, 1] of ``window`` (HU). spacing: (x, y, z) mm of its voxels. path: the prepared case's
    folder, None where the data come from elsewhere: metrics that need labels or X-rays then have no value. views:
    names of the X-rays that the method is given.
    """

    case_id: str
    volume: Float[Tensor, "1 d h w"]
    window: Window
    spacing: tuple[float, float, float]
    path: Path | None = None
    views: tuple[str, ...] = VIEWS

    @classmethod
    def of(cls, record: Any, volume: Tensor, window: Window, views: Sequence[str] = VIEWS) -> "ScoredCase":
        """From a dataset's case record and its volume."""
        return cls(record.case_id, volume, window, record.spacing, getattr(record, "path", None), tuple(views))

    @cached_property
    def hu(self) -> Int16[np.ndarray, "d h w"]:
        """The truth in whole HU."""
        return to_hu(self.volume, self.window)

    @cached_property
    def labels(self) -> "UInt8[np.ndarray, 'd h w'] | None":
        """Label of each voxel (``data/labels``); None without labels, and where they are of another size."""
        stored = self._stored_labels
        # Screws are thinner than the blocks that voxels of a smaller size stand for.
        return None if stored is None or stored.shape != self.volume.shape[1:] else np.array(stored)

    @property
    def _stored_labels(self) -> "UInt8[np.ndarray, 'd2 h2 w2'] | None":
        path = None if self.path is None else self.path / "labels.npy"
        return np.load(path, "r", allow_pickle=False) if path is not None and path.is_file() else None

    def check_labels_fit(self, metric: str) -> None:
        """Raises `Unavailable` of ``metric`` where the case has labels, but of another size than the volume."""
        if self.labels is None and (stored := self._stored_labels) is not None:
            side = stored.shape[0]
            reason = f"the labels are of {side} voxels a side, the volumes of {self.volume.shape[1]}"
            raise Unavailable(metric, reason, f"evaluate a run of the stored size (trained with dataset.size={side})")

    @cached_property
    def implants(self) -> Implants:
        """True screws and rods, as far as the true volume shows them; without labels, from its metal.

        Raises `Unavailable` where there are labels of another size: to go by the metal then would take dense bone for
        screws in cases that are known to have none.
        """
        self.check_labels_fit("implants")
        return true_implants(self.hu, self.labels, self.spacing)

    @cached_property
    def xrays(self) -> CaseXrays | None:
        """The case's X-rays and cameras. UserError where it cannot be projected again; None without a folder."""
        return None if self.path is None else CaseXrays(self.path, self.volume.shape[1])
