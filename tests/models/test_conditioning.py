import pytest
import torch
from torch import Tensor

from diffux2ct.models.conditioning import Conditioning, ExpandConditioning, ImplicitConditioning, NoConditioning

SMALL = {"channels": (8, 12, 16), "plane_channels": 16, "encoder_channels": (16, 24, 32, 32), "num_blocks": 1}


def make_xrays(depth: int, height: int, width: int, batch: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    frontal = torch.rand(batch, 1, depth, width, generator=generator) * 2 - 1
    return {"frontal": frontal, "lateral": torch.rand(batch, 1, depth, height, generator=generator) * 2 - 1}


def make(kind: str, size: tuple[int, int, int]) -> Conditioning:
    torch.manual_seed(0)
    if kind == "implicit":
        return ImplicitConditioning(size, uv_fusion="axis", **SMALL).eval()
    return (ExpandConditioning(**SMALL) if kind == "expand" else NoConditioning()).eval()


@pytest.mark.parametrize("kind", ["implicit", "expand", "none"])
@pytest.mark.parametrize("size", [(16, 16, 16), (16, 24, 32)])
def test_one_volume_per_scale(kind: str, size: tuple[int, int, int]):
    model = make(kind, size)
    h = model(make_xrays(*size))
    assert model.channels == (0, 0, 0) if kind == "none" else (8, 12, 16)
    for i, (volume, channels) in enumerate(zip(h, model.channels, strict=True)):
        assert volume.shape == (2, channels, *(side // 2**i for side in size))


@pytest.mark.parametrize("kind", ["implicit", "expand"])
def test_evaluation_is_deterministic_and_independent_of_the_batch(kind: str):
    model, xrays = make(kind, (16, 16, 16)), make_xrays(16, 16, 16)
    both = model(xrays)
    torch.testing.assert_close(model(xrays), both, atol=0, rtol=0)
    alone = model({name: xray[1:] for name, xray in xrays.items()})
    torch.testing.assert_close(alone, [h[1:] for h in both], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["implicit", "expand"])
def test_swapping_the_views_changes_the_conditions(kind: str):
    model, xrays = make(kind, (16, 16, 16)), make_xrays(16, 16, 16)
    swapped = {"frontal": xrays["lateral"], "lateral": xrays["frontal"]}
    for a, b in zip(model(xrays), model(swapped), strict=True):
        assert (a - b).abs().mean() > 1e-2 * a.abs().mean()


def test_expanding_repeats_each_view_along_its_ray():
    """h(z, y, x) = f1(z, x) + f2(z, y): a mixed difference over x and y vanishes; the implicit one does not."""
    for kind, additive in (("expand", True), ("implicit", False)):
        h = make(kind, (16, 16, 16))(make_xrays(16, 16, 16))[0]
        mixed = h[..., 3, 5] - h[..., 9, 5] - h[..., 3, 11] + h[..., 9, 11]
        assert bool(mixed.abs().max() < 1e-5) is additive


@pytest.mark.parametrize("kind", ["implicit", "expand"])
def test_gradients_reach_every_parameter(kind: str):
    model = make(kind, (16, 16, 16)).train()
    sum(h.square().mean() for h in model(make_xrays(16, 16, 16))).backward()
    dead = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not dead


def test_perturbation():
    model = make("implicit", (16, 24, 32))
    z = model.sample_perturbation(3, torch.Generator().manual_seed(3))
    assert z.shape == (3, 32, 3, 4)
    torch.testing.assert_close(model.sample_perturbation(3, torch.Generator().manual_seed(3)), z)
    xrays = make_xrays(16, 24, 32, batch=3)
    assert (model(xrays, z)[0] - model(xrays)[0]).abs().mean() > 1e-4
    torch.testing.assert_close(model(xrays, z), model(xrays, z.clone()), atol=0, rtol=0)
    assert make("expand", (16, 16, 16)).sample_perturbation(3) is None
    assert NoConditioning().sample_perturbation(3) is None
    assert ImplicitConditioning(16, learnable_embedding=False, **SMALL).sample_perturbation(3) is None


def test_checkpointing_the_decoder_changes_no_gradient():
    grads = []
    for checkpoint_decoder in (False, True):
        torch.manual_seed(0)
        model = ImplicitConditioning(16, checkpoint_decoder=checkpoint_decoder, **SMALL).eval()
        sum(h.square().mean() for h in model(make_xrays(16, 16, 16))).backward()
        grads.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("kind", ["implicit", "expand"])
def test_bf16_is_close_to_fp32(kind: str):
    model, xrays = make(kind, (16, 16, 16)), make_xrays(16, 16, 16)
    exact = model(xrays)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(xrays)
    for a, b in zip(exact, rounded, strict=True):
        assert b.dtype == torch.bfloat16
        assert (a - b.float()).norm() < 0.03 * a.norm()


def test_implicit_conditions_are_channels_last_as_the_denoiser_is():
    """So that to concatenate them takes no copy to another layout."""
    model = ImplicitConditioning(16, channels=(4, 6), plane_channels=8, encoder_channels=(8, 8, 12), num_blocks=1)
    with torch.autocast("cpu", torch.bfloat16):
        conditions = model({view: torch.randn(1, 1, 16, 16) for view in ("frontal", "lateral")})
    for h in conditions:
        assert h.dtype == torch.bfloat16
        assert h.is_contiguous(memory_format=torch.channels_last_3d)
        assert not h.is_contiguous()


DROPOUTS = {"paper": 0.2, "small": 0.1, "tiny": 0.0}
# Blocks at the paper's size: U-Net 14, plane encoder 8 (each view's own in X-CTRSNet), plane decoder 4, fusions 4,
# stages of X-CTRSNet 4, decoder of the regressors 4.
BLOCKS = {
    "model=diffux2ct": 14 + 8 + 4,
    "model=diffux2ct conditioning=expand": 14 + 8 + 4,
    "model=diffux2ct conditioning.fusion=resnet": 14 + 8 + 4 + 4,
    "model=icm_reg": 8 + 4 + 4,
    "model=x_ctrsnet_like": 2 * 8 + 4 + 4,
}


@pytest.mark.parametrize("model", BLOCKS)
@pytest.mark.parametrize("size", DROPOUTS)
def test_every_block_of_the_paper_s_models_has_its_dropout(model, size):
    """The paper: 0.2 "for all experiments"; also in the plane encoder and decoder and in the regressors."""
    from hydra import compose, initialize_config_module

    from diffux2ct import build

    with initialize_config_module("diffux2ct.configs", version_base="1.3"):
        cfg = compose("train", ["dataset=phantom", "dataset.size=32", f"size={size}", *model.split()])
    with torch.device("meta"):
        network = build.build_reconstructor(build.resolved(cfg))
    rates = [module.p for module in network.modules() if isinstance(module, torch.nn.Dropout)]
    assert set(rates) == {DROPOUTS[size]}
    assert size != "paper" or len(rates) == BLOCKS[model]
