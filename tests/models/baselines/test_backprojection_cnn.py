import torch

from diffux2ct.models.baselines.backprojection_cnn import BackprojectionCnn, backproject


def test_a_bright_pixel_smears_along_its_own_ray():
    frontal, lateral = torch.zeros(1, 1, 6, 5), torch.zeros(1, 1, 6, 4)  # D=6, W=5; D=6, H=4
    frontal[0, 0, 2, 3] = 1.0
    lateral[0, 0, 1, 2] = 1.0
    views = backproject({"frontal": frontal, "lateral": lateral})
    assert views.shape == (1, 2, 6, 4, 5)
    assert torch.nonzero(views[0, 0]).tolist() == [[2, y, 3] for y in range(4)]
    assert torch.nonzero(views[0, 1]).tolist() == [[1, 2, x] for x in range(5)]


def test_both_xrays_reach_the_volume():
    torch.manual_seed(0)
    network = BackprojectionCnn(channels=8, num_layers=2)
    xrays = {view: torch.rand(2, 1, 8, 8) for view in ("frontal", "lateral")}
    base = network(xrays)
    assert base.shape == (2, 1, 8, 8, 8)
    for view in xrays:
        assert (network(xrays | {view: torch.rand(2, 1, 8, 8)}) - base).abs().max() > 1e-3
