"""Segmentation, trained by the same loop as every reconstructor: the V-Net that scores bones in Table 2."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn
from torch.nn import functional as F

from diffux2ct.errors import UserError
from diffux2ct.reconstructors.base import Batch, Losses, Objective, Trainable
from diffux2ct.types import Volume

_SMOOTH = 1.0  # voxels: an absent structure pulls its probability to zero, and nothing is divided by zero


class SegmentationTrainable(Trainable):
    """Any network ``network(volume) -> logits [b, K + 1, D, H, W]``, class 0 the background, trained on labels.

    The loss is 1 - soft Dice, the mean over structures (Milletari et al. 2016, for each structure of its own), plus
    ``cross_entropy_weight`` times the cross entropy of all classes.

    structures: their names, in the order of the classes 1..K: what the dataset was asked for as ``labels``.
    network: what makes it from ``num_classes``, which is K + 1.
    """

    def __init__(
        self, network: Callable[..., nn.Module], structures: Sequence[str], cross_entropy_weight: float | int = 0.0
    ) -> None:
        super().__init__()
        self.structures = tuple(structures)
        if not self.structures:
            raise UserError("dataset.labels: no structure named; give for instance dataset.labels=[sacrum,left_hip]")
        self.network = network(num_classes=len(self.structures) + 1)
        self.cross_entropy_weight = float(cross_entropy_weight)

    def objectives(self) -> tuple[Objective, ...]:
        return (Objective("segmentation", list(self.parameters()), self._loss),)

    def _loss(self, batch: Batch) -> Losses:
        """Losses of a batch with ``volume`` and ``labels`` [b, D, H, W], classes 0..K."""
        if "labels" not in batch:
            raise UserError(
                "dataset.labels: a segmentation network learns from labels; name the structures, for instance "
                "dataset.labels=[sacrum,left_hip]"
            )
        logits, labels = self.network(batch["volume"]).float(), batch["labels"].long()
        scores = soft_dice(logits, labels).mean(0)
        total = 1.0 - scores.mean()
        losses = {f"dice_{name}": score.detach() for name, score in zip(self.structures, scores, strict=True)}
        losses["dice"] = scores.mean().detach()
        if self.cross_entropy_weight:
            cross_entropy = F.cross_entropy(logits, labels)
            total = total + self.cross_entropy_weight * cross_entropy
            losses["cross_entropy"] = cross_entropy.detach()
        return {"total": total, **losses}

    def segment(self, volume: Volume) -> Integer[Tensor, "b d h w"]:
        """The likeliest class of each voxel, uint8, of volumes in [-1, 1]."""
        return self.network(volume).argmax(1).to(torch.uint8)

    def parts(self, batch: Batch) -> dict[str, tuple[nn.Module, Callable[[], Any]]]:
        return {"network": (self.network, lambda: self.network(batch["volume"]))}


def soft_dice(logits: Float[Tensor, "b _ d h w"], labels: Integer[Tensor, "b d h w"]) -> Float[Tensor, "b _"]:
    """2 sum(p g) / (sum p^2 + sum g^2) of each sample and structure (class 0 left out), p from a softmax.

    Milletari et al. 2016, Sec. 3, with one voxel added above and below the line.
    """
    p = logits.softmax(1)[:, 1:]
    g = F.one_hot(labels.long(), logits.shape[1]).movedim(-1, 1)[:, 1:].to(p.dtype)
    space = (2, 3, 4)
    return (2 * (p * g).sum(space) + _SMOOTH) / (p.square().sum(space) + g.sum(space) + _SMOOTH)
