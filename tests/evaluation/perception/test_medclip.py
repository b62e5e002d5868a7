import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from diffux2ct.errors import UserError
from diffux2ct.evaluation.perception import MedClipEncoder, medclip
from diffux2ct.evaluation.perception.swin2d import SwinTiny
from diffux2ct.evaluation.perception.weights import WEIGHTS_VARIABLE


def medclip_vision_model():
    """Names and shapes of MedCLIPVisionModelViT's tensors: transformers 4.24's SwinModel (tiny) and the projection."""
    shapes = {
        "model.embeddings.patch_embeddings.projection.weight": (96, 3, 4, 4),
        "model.embeddings.patch_embeddings.projection.bias": (96,),
        "model.embeddings.norm.weight": (96,),
        "model.embeddings.norm.bias": (96,),
        "model.layernorm.weight": (768,),
        "model.layernorm.bias": (768,),
        "projection_head.weight": (512, 768),
    }
    for stage, (depth, heads) in enumerate(((2, 3), (2, 6), (6, 12), (2, 24))):
        c = 96 * 2**stage
        for block in range(depth):
            name = f"model.encoder.layers.{stage}.blocks.{block}"
            shapes[f"{name}.attention.self.relative_position_bias_table"] = (169, heads)
            shapes[f"{name}.attention.self.relative_position_index"] = (49, 49)
            for part in ("layernorm_before", "layernorm_after"):
                shapes |= {f"{name}.{part}.weight": (c,), f"{name}.{part}.bias": (c,)}
            for part, (out, into) in {
                "attention.self.query": (c, c),
                "attention.self.key": (c, c),
                "attention.self.value": (c, c),
                "attention.output.dense": (c, c),
                "intermediate.dense": (4 * c, c),
                "output.dense": (c, 4 * c),
            }.items():
                shapes |= {f"{name}.{part}.weight": (out, into), f"{name}.{part}.bias": (out,)}
        if stage < 3:
            name = f"model.encoder.layers.{stage}.downsample"
            shapes |= {
                f"{name}.reduction.weight": (2 * c, 4 * c),
                f"{name}.norm.weight": (4 * c,),
                f"{name}.norm.bias": (4 * c,),
            }
    return shapes


@cache
def medclip_state(seed=0, scale=0.05):
    generator = torch.Generator().manual_seed(seed)
    state = {name: scale * torch.randn(s, generator=generator) for name, s in medclip_vision_model().items()}
    offsets = torch.arange(7).repeat_interleave(7), torch.arange(7).repeat(7)
    index = sum(f * (o[:, None] - o[None] + 6) for f, o in zip((13, 1), offsets, strict=True))
    return {name: index if name.endswith("position_index") else value for name, value in state.items()}


def test_medclip_loads_the_whole_models_file(tmp_path, monkeypatch):
    """Of the published names and shapes, with made-up values: the official ones were not at hand."""
    whole = {f"vision_model.{name}": value for name, value in medclip_state().items()}
    whole |= {"text_model.projection_head.weight": torch.zeros(512, 768), "logit_scale": torch.tensor(2.6)}
    (tmp_path / "medclip-vit").mkdir()
    file = tmp_path / "medclip-vit" / "pytorch_model.bin"
    torch.save(whole, file)
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(tmp_path))
    encoder = MedClipEncoder.load()
    for name, value in medclip_state().items():
        assert torch.equal(encoder.state_dict()[name], value), name
    # The image encoder alone, saved by a newer version that keeps no index.
    torch.save({k: v for k, v in medclip_state().items() if not k.endswith("position_index")}, file)
    again = MedClipEncoder.load(file)
    image = torch.rand(1, 60, 50, generator=torch.Generator().manual_seed(1)) * 2 - 1
    features = encoder.features(image)
    assert features.shape == (1, 512)
    assert torch.equal(features, again.features(image))
    assert encoder.features(image[:0]).shape == (0, 512)


def test_other_weights_than_medclips_are_refused(tmp_path):
    file = tmp_path / "pytorch_model.bin"
    state = medclip_state()
    torch.save({k: v for k, v in state.items() if k != "model.encoder.layers.2.blocks.5.output.dense.bias"}, file)
    with pytest.raises(UserError, match=r"model.encoder.layers.2.blocks.5.output.dense.bias is missing; get"):
        MedClipEncoder.load(file)
    name = "model.encoder.layers.0.blocks.0.attention.self.relative_position_index"
    torch.save(state | {name: state[name].T.contiguous()}, file)
    with pytest.raises(UserError, match="another order of window positions"):
        MedClipEncoder.load(file)


@cache
def lively_state():
    """Weights with which features depend on the image, and on the bias by position, the mask, the neighbours' order.

    Plain noise of one scale does not do: its biases outweigh the image, and all images get the same features.
    """
    state = {}
    for name, value in medclip_state(0, 1.0).items():
        if name.endswith("position_index"):
            state[name] = value
        elif name.endswith("norm.weight") or ("layernorm" in name and name.endswith(".weight")):
            state[name] = 1 + 0.2 * value
        elif name.endswith("bias_table"):
            state[name] = 2 * value
        elif name.endswith("bias"):
            state[name] = 0.1 * value
        else:
            state[name] = 1.5 * value / value[0].numel() ** 0.5
    return state


def goldens():
    return json.loads((Path(__file__).parents[2] / "goldens" / "medclip_features.json").read_text())


def swin_part(state):
    return {k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")}


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


def slice_with_a_top():
    """[60, 50] in [-1, 1]: brighter at the top and to the left."""
    image = 0.3 * noise(60, 50) + torch.linspace(0.8, -0.8, 60)[:, None] + torch.linspace(0.3, -0.3, 50)
    return image.clamp(-1, 1)


def transformers_swin(state):
    """transformers' Swin with our weights; skips where it is not installed."""
    transformers = pytest.importorskip("transformers")
    other = transformers.SwinModel(transformers.SwinConfig()).eval()
    # Version 5 renamed what the weights file calls by its old names.
    renamed = {
        "attention.output.dense": "attention.o_proj",
        "attention.self.query": "attention.q_proj",
        "attention.self.key": "attention.k_proj",
        "attention.self.value": "attention.v_proj",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
        "attention.self.relative_position_bias": "attention.relative_position_bias.relative_position_bias",
    }
    names = set(other.state_dict())
    for name, value in swin_part(state).items():
        new = name
        for old, current in renamed.items() if name not in names else ():
            new = new.replace(old, current)
        if new in names:
            names.remove(new)
            other.state_dict()[new].copy_(value)
    assert not names
    return other


def test_swin_has_the_features_that_transformers_computed():
    """Every 32nd number of transformers 4.57.6's features, of weights and an image drawn here with fixed seeds."""
    network = SwinTiny().eval()
    network.load_state_dict(swin_part(lively_state()))
    with torch.no_grad():
        found = network(noise(1, 3, 224, 224))[0, ::32]
    expected = torch.tensor(goldens()["swin"])
    assert expected.shape == (24,)
    assert expected.std() > 0.3  # far above the tolerance
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_medclip_has_the_features_of_an_image_that_transformers_computed():
    """The same through the whole encoder: the slice the right way up in the middle of black, and the projection."""
    encoder = MedClipEncoder()
    encoder.load_state_dict(lively_state())
    found = encoder.features(slice_with_a_top()[None])[0, ::32]
    expected = torch.tensor(goldens()["medclip"])
    assert expected.shape == (16,)
    assert expected.std() > 1
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("state", [medclip_state, lambda: medclip_state(0, 0.5), lively_state])
def test_swin_equals_transformers(state):
    """Against an independent implementation, where it is installed."""
    other = transformers_swin(state())
    network = SwinTiny().eval()
    network.load_state_dict(swin_part(state()))
    images = noise(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(network(images), other(images).pooler_output, rtol=1e-4, atol=1e-5)


def test_the_goldens_are_transformers():
    """How they were made; the image is prepared here anew."""
    other, head = transformers_swin(lively_state()), lively_state()["projection_head.weight"]
    square = np.zeros((224, 224), np.float32)
    square[82:142, 87:137] = ((slice_with_a_top().numpy() + 1) * 127.5).round() / 255
    image = torch.from_numpy((square - 0.5862785803043838) / 0.27950088968644304).expand(1, 3, -1, -1)
    with torch.no_grad():
        swin = other(noise(1, 3, 224, 224)).pooler_output[0, ::32]
        features = (other(image).pooler_output @ head.T)[0, ::32]
    torch.testing.assert_close(swin, torch.tensor(goldens()["swin"]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features, torch.tensor(goldens()["medclip"]), rtol=1e-4, atol=1e-3)


def bicubic_weights(old, new):
    """Pillow's antialiased bicubic (a = -1/2), as a matrix [new, old]: written from its definition."""
    scale, matrix = old / new, np.zeros((new, old))
    for i in range(new):
        centre = (i + 0.5) * scale
        x = np.abs((np.arange(old) + 0.5 - centre) / scale)
        near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
        weights = np.where(x < 1, near, np.where(x < 2, far, 0))
        matrix[i] = weights / weights.sum()
    return matrix


def test_medclip_input_of_small_slices_lies_in_black_at_its_own_size():
    image = torch.rand(128, 101, generator=torch.Generator().manual_seed(0)) * 2.2 - 1.1
    grey = np.round((image.numpy().clip(-1, 1) + 1) / 2 * 255)
    expected = np.zeros((224, 224))
    expected[48 : 48 + 128, 61 : 61 + 101] = grey  # (224 - 128) / 2, and (224 - 101) / 2 rounded down
    expected = (expected / 255 - 0.5862785803043838) / 0.27950088968644304
    np.testing.assert_allclose(medclip.encoder_input(image).numpy(), expected, atol=1e-5)


def test_medclip_input_of_large_slices_is_bicubic():
    image = torch.rand(256, 300, generator=torch.Generator().manual_seed(0)) * 2 - 1
    square = np.zeros((300, 300))
    square[22 : 22 + 256] = np.round((image.numpy() + 1) / 2 * 255)
    matrix = bicubic_weights(300, 224)
    across = np.round((square @ matrix.T).clip(0, 255))  # Pillow rounds to 8 bits after each direction
    expected = np.round((matrix @ across).clip(0, 255))
    seen = medclip.encoder_input(image).numpy() * 0.27950088968644304 + 0.5862785803043838
    assert np.abs(seen * 255 - expected).max() < 1.01  # its weights are of 22 bits, so a tie may round otherwise
    assert np.abs(seen * 255 - expected).mean() < 0.01
