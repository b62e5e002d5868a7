"""The tri-plane decoupling generator, Eq. 3-5."""

import pytest
import torch
from torch import Tensor

from diffux2ct.errors import UserError
from diffux2ct.models.triplane import (
    InterleavedConv,
    LearnableEmbedding,
    TriplaneGenerator,
    ViewModulators,
    lay_out_axial,
    sine_encoding_2d,
)

SMALL = {"plane_channels": 16, "encoder_channels": (16, 24, 32, 32), "num_blocks": 1}


def make_xrays(size: tuple[int, int, int], batch: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    depth, height, width = size
    frontal = torch.rand(batch, 1, depth, width, generator=generator) * 2 - 1
    return frontal, torch.rand(batch, 1, depth, height, generator=generator) * 2 - 1


def make_generator(size, **options) -> TriplaneGenerator:
    torch.manual_seed(0)
    return TriplaneGenerator(size, **SMALL, **options).eval()


@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((16, 16, 16), {}),
        ((24, 24, 24), {"uv_fusion": "transpose"}),
        ((16, 16, 16), {"uv_fusion": "axis", "fusion": "mean"}),
        ((16, 16, 16), {"fusion": "resnet", "learnable_embedding": False}),
        ((16, 24, 32), {"uv_fusion": "axis"}),
        ((16, 24, 32), {"uv_fusion": "axis", "fusion": "resnet"}),
    ],
)
def test_shapes(size: tuple[int, int, int], options: dict):
    planes = make_generator(size, **options)(*make_xrays(size))
    assert len(planes) == 3
    for i, (zx, zy, yx) in enumerate(planes):
        d, h, w = (side // 2**i for side in size)
        assert zx.shape == (2, 16, d, w)
        assert zy.shape == (2, 16, d, h)
        assert yx.shape == (2, 16, h, w)


def test_fourth_scale_is_the_bottleneck():
    *_, (zx, zy, yx) = make_generator(16, num_scales=4)(*make_xrays((16, 16, 16)))
    assert zx.shape == zy.shape == yx.shape == (2, 16, 2, 2)


@pytest.mark.parametrize("uv_fusion", ["literal", "axis"])
def test_batching_the_views_changes_nothing(uv_fusion: str):
    """On a cube the shared networks see all views in one batch; elsewhere one after the other."""
    model, xrays = make_generator(16, uv_fusion=uv_fusion), make_xrays((16, 16, 16))
    zx, zy = (model.encoder(view) for view in model.interleave(*(model.stem(xray) for xray in xrays)))
    yx = [model._fuse(i, a, b) for i, (a, b) in enumerate(zip(zx, zy, strict=True))]
    yx[-1] = yx[-1] + model.embedding(torch.zeros(2, *model.perturbation_shape))
    expected = list(zip(*(model.decoder(plane)[:3] for plane in (zx, zy, yx)), strict=True))
    torch.testing.assert_close(model(*xrays), expected, atol=1e-5, rtol=1e-4)


def test_interleaving_shows_each_view_the_others_profile_along_z():
    torch.manual_seed(0)
    layer = InterleavedConv(4)
    front, side = torch.randn(1, 4, 6, 5), torch.randn(1, 4, 6, 7)
    zx, zy = layer(front, side)
    expected = layer.conv(torch.cat((front, side.mean(3, keepdim=True).expand(-1, -1, -1, 5)), 1))
    torch.testing.assert_close(zx, expected)
    expected = layer.conv(torch.cat((side, front.mean(3, keepdim=True).expand(-1, -1, -1, 7)), 1))
    torch.testing.assert_close(zy, expected)
    # A permutation of the lateral columns (y) keeps the profile along z: the frontal plane cannot tell.
    torch.testing.assert_close(layer(front, side.flip(3))[0], zx)
    assert (layer(front, side.flip(2))[0] - zx).abs().max() > 0.1


def test_both_views_reach_all_planes():
    model = make_generator(16)
    frontal, lateral = make_xrays((16, 16, 16))
    before, after = model(frontal, lateral)[0], model(frontal, lateral.roll(3, dims=2))[0]
    for a, b in zip(before, after, strict=True):
        assert (a - b).abs().mean() > 1e-3


def test_swapping_the_views_is_noticed():
    model = make_generator(16)
    frontal, lateral = make_xrays((16, 16, 16))
    straight, swapped = model(frontal, lateral)[0], model(lateral, frontal)[0]
    for a, b in zip(straight, swapped, strict=True):
        assert (a - b).abs().mean() > 1e-2
    # The encoder is siamese: swapping exchanges zx and zy, and only the modulators tell the views apart.
    torch.testing.assert_close(straight[0], swapped[1])


def test_modulators_are_equations_3_and_4():
    torch.manual_seed(0)
    layer = ViewModulators(12)
    assert torch.equal(layer.mlp1[-1].bias, torch.ones(12))
    gamma1, gamma2 = layer.mlp1(torch.tensor([1.0, 0, 1])), layer.mlp2(torch.tensor([0.0, 1, 1]))
    norm = (gamma1**2 + gamma2**2 + 1e-8).sqrt()
    front, side = torch.randn(2, 12, 4, 5), torch.randn(2, 12, 4, 5)
    expected = (gamma1.abs() / norm)[:, None, None] * front + (gamma2.abs() / norm)[:, None, None] * side
    torch.testing.assert_close(layer(front, side), expected)
    bar1, bar2 = layer.weights()
    torch.testing.assert_close(bar1**2 + bar2**2, torch.ones(12))
    assert (bar1 - bar2).abs().max() > 0.01, "the two views have their own modulators"


def test_axial_layouts():
    zx, zy = torch.randn(1, 1, 4, 4), torch.randn(1, 1, 4, 4)  # [z, x] and [z, y]
    for how, expected in {
        "literal": lambda y, x: zx[0, 0, y, x] + zy[0, 0, y, x],
        "transpose": lambda y, x: zx[0, 0, y, x] + zy[0, 0, x, y],
        "axis": lambda y, x: zx[0, 0, :, x].mean() + zy[0, 0, :, y].mean(),
    }.items():
        front, side = lay_out_axial(zx, zy, how)
        yx = (front + side)[0, 0]
        for y in range(4):
            for x in range(4):
                torch.testing.assert_close(yx[y, x], expected(y, x), msg=how)


def test_axis_layout_puts_a_bright_voxel_where_it_is():
    """Build order 1, through the axial plane: a voxel at (z, y, x) is bright at yx[y, x]."""
    z, y, x = 5, 1, 6
    zx, zy = torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)
    zx[0, 0, z, x] = zy[0, 0, z, y] = 1
    front, side = lay_out_axial(zx, zy, "axis")
    assert (front + side)[0, 0].argmax().item() == y * 8 + x


def test_embedding_enters_at_the_bottleneck_only():
    model, xrays = make_generator(16), make_xrays((16, 16, 16))
    assert model.perturbation_shape == (32, 2, 2)
    z = torch.randn(2, 32, 2, 2)
    for (zx0, zy0, yx0), (zx1, zy1, yx1) in zip(model(*xrays), model(*xrays, z), strict=True):
        assert torch.equal(zx0, zx1)
        assert torch.equal(zy0, zy1)
        assert (yx0 - yx1).abs().mean() > 1e-3
    layer = LearnableEmbedding(8, 3, 5)
    z = torch.randn(2, 8, 3, 5)
    torch.testing.assert_close(layer(z), torch.nn.functional.silu(layer.conv(layer.sine + z)))
    torch.testing.assert_close(layer.sine.detach(), sine_encoding_2d(8, 3, 5))


def test_sine_encoding_tells_every_place_apart():
    code = sine_encoding_2d(16, 6, 7).flatten(2)[0].T
    assert torch.cdist(code, code).fill_diagonal_(9).min() > 0.1
    assert code.abs().max() <= 1


def test_perturbation_is_drawn_in_training_and_zero_in_evaluation():
    model, xrays = make_generator(16), make_xrays((16, 16, 16))
    zero = torch.zeros(2, *model.perturbation_shape)
    torch.testing.assert_close(model(*xrays), model(*xrays, zero), atol=0, rtol=0)
    model.train()
    torch.manual_seed(5)
    drawn = model(*xrays)
    assert (drawn[0][2] - model(*xrays)[0][2]).abs().mean() > 1e-3
    torch.manual_seed(5)
    torch.testing.assert_close(model(*xrays), drawn, atol=0, rtol=0)
    torch.testing.assert_close(model(*xrays, zero), model.eval()(*xrays), atol=0, rtol=0)


@pytest.mark.parametrize("fusion", ["modulators", "resnet"])
def test_gradients_reach_every_parameter(fusion: str):
    model = make_generator(16, num_scales=4, fusion=fusion).train()
    planes = model(*make_xrays((16, 16, 16)))
    sum(plane.square().mean() for triple in planes for plane in triple).backward()
    dead = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not dead


def test_table_3_options_drop_their_parts():
    names = {
        key: {n.split(".")[0] for n, _ in make_generator(16, **options).named_parameters()}
        for key, options in {"mean": {"fusion": "mean"}, "no_l": {"learnable_embedding": False}}.items()
    }
    assert "fusions" not in names["mean"]
    assert "embedding" not in names["no_l"]
    assert {"embedding", "encoder", "decoder", "stem", "interleave"} <= names["mean"]


@pytest.mark.parametrize(
    ("size", "options", "message"),
    [
        (20, {}, "divisible by 8"),
        ((16, 16, 24), {}, "needs a cube"),
        (16, {"uv_fusion": "diagonal"}, "diagonal"),
        (16, {"fusion": "sum"}, "sum"),
        (16, {"num_scales": 5}, "num_scales=5"),
    ],
)
def test_bad_options_say_what_to_do(size, options: dict, message: str):
    with pytest.raises(UserError, match=message):
        TriplaneGenerator(size, **SMALL, **options)


def test_xrays_of_another_size():
    with pytest.raises(UserError, match=r"the model was built for \(16, 16\)"):
        make_generator(16)(*make_xrays((24, 24, 24)))


def test_view_modulators_are_fp32_under_autocast():
    torch.manual_seed(0)
    modulators = ViewModulators(16)
    exact = modulators.weights()
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = modulators.weights()
    for a, b in zip(exact, under_autocast, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
