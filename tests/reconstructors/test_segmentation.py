from functools import partial

import pytest
import torch
from torch import nn

from diffux2ct.errors import UserError
from diffux2ct.models.baselines.vnet import VNet
from diffux2ct.reconstructors.base import Reconstructor
from diffux2ct.reconstructors.segmentation import SegmentationTrainable, soft_dice


class Constant(nn.Module):
    """Logits that are given."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, volume):
        return self.logits


def confident(labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    return 50.0 * nn.functional.one_hot(labels, num_classes).movedim(-1, 1).float()


def test_soft_dice_of_right_wrong_and_absent_structures():
    labels = torch.zeros(1, 4, 4, 4, dtype=torch.long)
    labels[:, :2] = 1  # 32 voxels; structure 2 is absent
    torch.testing.assert_close(soft_dice(confident(labels, 3), labels), torch.ones(1, 2))
    nothing = soft_dice(confident(torch.zeros_like(labels), 3), labels)
    torch.testing.assert_close(nothing, torch.tensor([[1 / 33, 1.0]]))
    moved = soft_dice(confident(labels.roll(1, 1), 3), labels)
    torch.testing.assert_close(moved, torch.tensor([[(2 * 16 + 1) / (64 + 1), 1.0]]))
    invented = soft_dice(confident(torch.full_like(labels, 2), 3), labels)
    torch.testing.assert_close(invented, torch.tensor([[1 / 33, 1 / 65]]))
    halves = soft_dice(torch.zeros(1, 2, 4, 4, 4), labels)  # p = 1/2 everywhere: 2 * 16 / (64 / 4 + 32)
    torch.testing.assert_close(halves, torch.tensor([[33 / 49]]))


def test_losses_are_named_after_the_structures():
    labels = torch.randint(0, 3, (2, 4, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    logits = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    batch = {"volume": torch.zeros(2, 1, 4, 4, 4), "labels": labels}
    make = lambda num_classes: Constant(logits[:, :num_classes])  # noqa: E731
    dice = SegmentationTrainable(make, ["sacrum", "left_hip"]).objectives()[0].loss(batch)
    scores = soft_dice(logits, labels)
    torch.testing.assert_close(dice["total"], 1 - scores.mean())
    torch.testing.assert_close(dice["dice_left_hip"], scores[:, 1].mean())
    both = SegmentationTrainable(make, ["sacrum", "left_hip"], cross_entropy_weight=2).objectives()[0].loss(batch)
    entropy = nn.functional.cross_entropy(logits, labels.long())
    torch.testing.assert_close(both["cross_entropy"], entropy)
    torch.testing.assert_close(both["total"], 1 - scores.mean() + 2 * entropy)


def test_a_network_learns_two_balls():
    torch.manual_seed(0)
    z, y, x = torch.meshgrid(*(torch.arange(12.0),) * 3, indexing="ij")
    labels = torch.zeros(1, 12, 12, 12, dtype=torch.uint8)
    for number, centre in enumerate((3, 8), start=1):
        labels[0][(z - centre) ** 2 + (y - centre) ** 2 + (x - centre) ** 2 < 8] = number
    volume = torch.tensor([-1.0, 0.2, 0.8])[labels.long()][:, None]
    make = partial(VNet, channels=(4, 8), num_convs=(1, 1))
    model = SegmentationTrainable(make, ["sacrum", "left_hip"], cross_entropy_weight=1)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        model("segmentation", {"volume": volume, "labels": labels})["total"].backward()
        optimizer.step()
    found = model.segment(volume)
    assert found.dtype == torch.uint8
    assert (found == labels).float().mean() > 0.99


def test_it_is_no_reconstructor_and_says_what_it_needs():
    model = SegmentationTrainable(partial(VNet, channels=(4,), num_convs=(1,)), ["sacrum"])
    assert not isinstance(model, Reconstructor)
    assert list(model.parts({"volume": torch.zeros(1, 1, 4, 4, 4)})) == ["network"]
    with pytest.raises(UserError, match=r"dataset.labels=\[sacrum"):
        model("segmentation", {"volume": torch.zeros(1, 1, 4, 4, 4)})
    with pytest.raises(UserError, match="no structure named"):
        SegmentationTrainable(partial(VNet), [])
