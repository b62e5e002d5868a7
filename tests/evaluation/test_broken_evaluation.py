import pytest
import torch
from tests.evaluation.blobs import SIZE, BackProjector, read, snapshot

from diffux2ct.errors import UserError
from diffux2ct.evaluation.runner import evaluate


class Failing:
    """Breaks on its second case in a chosen way."""

    def __init__(self, failure):
        self.failure, self.count = failure, 0

    def reconstruct(self, xrays, *, generator=None):
        self.count += 1
        volume = torch.zeros(1, 1, SIZE, SIZE, SIZE)
        return self.failure(volume) if self.count == 2 else volume


def interrupt(volume):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("failure", "error", "message"),
    [
        (interrupt, KeyboardInterrupt, None),
        (lambda volume: volume.index_fill(4, torch.tensor([3]), torch.nan), UserError, "case1: .*NaN or infinite"),
        (lambda volume: volume + torch.inf, UserError, "case1: .*NaN or infinite"),
        (lambda volume: volume[..., :8], UserError, r"case1: .*\(1, 16, 16, 8\).*\(1, 16, 16, 16\)"),
    ],
    ids=["interrupted", "nan", "infinite", "shape"],
)
def test_a_broken_evaluation_leaves_the_former_one(dataset, mean_volume, tmp_path, failure, error, message):
    out = tmp_path / "out"
    evaluate(BackProjector(), dataset, out, sampling={}, mean_volume=mean_volume)
    before = snapshot(tmp_path)
    with pytest.raises(error, match=message):
        evaluate(Failing(failure), dataset, out, sampling={}, mean_volume=mean_volume)
    assert snapshot(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    # And a whole one takes its place.
    evaluate(BackProjector(), dataset, out, sampling={}, seed=9, mean_volume=mean_volume)
    assert read(out)[0]["seed"] == 9
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_evaluation_lost_between_two_renames_comes_back(dataset, mean_volume, tmp_path):
    out = tmp_path / "out"
    evaluate(BackProjector(), dataset, out, sampling={}, mean_volume=mean_volume)
    before = snapshot(out)
    out.rename(tmp_path / ".former-out")
    with pytest.raises(KeyboardInterrupt):
        evaluate(Failing(interrupt), dataset, out, sampling={}, mean_volume=mean_volume)
    assert snapshot(out) == before
