"""The 3D U-Net, against the stage table and the parameter and FLOP counts of docs/method.md."""

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from diffux2ct.errors import UserError
from diffux2ct.models.conditioning import ImplicitConditioning
from diffux2ct.models.denoiser import UNet3d

TINY = {"channels": (8, 16, 24), "num_blocks": 1, "condition_channels": (4, 6, 8), "num_heads": 2, "window_size": 4}

SIZES = {  # U-Net options, ICM options, and millions of parameters of each
    "paper": ({}, {}, 38.35, 7.49),
    "small": (
        {"channels": (32, 64, 128), "num_blocks": 1, "condition_channels": (16, 32, 64)},
        {"channels": (16, 32, 64), "plane_channels": 32, "encoder_channels": (32, 64, 128, 128)},
        6.2,
        1.9,
    ),
    "tiny": (
        {
            "channels": (16, 32, 40),
            "num_blocks": 1,
            "condition_channels": (8, 16, 16),
            "num_heads": 4,
            "window_size": 4,
        },
        {"channels": (8, 16, 16), "plane_channels": 16, "encoder_channels": (16, 24, 32, 48), "num_blocks": 1},
        0.789,
        0.166,
    ),
}


def make_unet(**options) -> UNet3d:
    """With a random last convolution: at its initial zero nothing behind it could be seen."""
    torch.manual_seed(0)
    model = UNet3d(**TINY | options).eval()
    torch.nn.init.normal_(model.out.weight, std=0.1)
    return model


def make_inputs(size: tuple[int, int, int], channels=TINY["condition_channels"]) -> tuple[Tensor, Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(1)
    h = [torch.randn(2, c, *(n // 2**i for n in size), generator=generator) for i, c in enumerate(channels)]
    return torch.randn(2, 1, *size, generator=generator), torch.tensor([3, 700]), h


def millions(model: torch.nn.Module) -> float:
    return sum(p.numel() for p in model.parameters()) / 1e6


@pytest.mark.parametrize("name", SIZES)
def test_parameter_counts(name: str):
    unet, icm, unet_millions, icm_millions = SIZES[name]
    with torch.device("meta"):
        assert millions(UNet3d(**unet)) == pytest.approx(unet_millions, rel=0.1)
        assert millions(ImplicitConditioning(64, **icm)) == pytest.approx(icm_millions, rel=0.1)


def test_flops_of_the_paper_model_at_128_on_the_meta_device():
    with torch.device("meta"):
        unet, icm = UNet3d(), ImplicitConditioning(128)
        xrays = {"frontal": torch.empty(1, 1, 128, 128), "lateral": torch.empty(1, 1, 128, 128)}
        with FlopCounterMode(display=False) as icm_flops:
            h = icm(xrays)
        with FlopCounterMode(display=False) as unet_flops:
            y = unet(torch.empty(1, 1, 128, 128, 128), torch.empty(1, dtype=torch.long), h)
    assert y.shape == (1, 1, 128, 128, 128)
    assert icm_flops.get_total_flops() / 1e12 == pytest.approx(0.065, rel=0.1)
    assert unet_flops.get_total_flops() / 1e12 == pytest.approx(11.22, rel=0.1)


def test_stage_table_of_the_paper_model():
    """Widths in and out of every residual block, and whether its attention is shifted (docs/method.md)."""
    with torch.device("meta"):
        model = UNet3d()

    def rows(blocks) -> list[tuple]:
        return [
            (
                block.residual.conv1.in_channels,
                block.residual.conv1.out_channels,
                block.swin.attention.shift_size if hasattr(block.swin, "attention") else None,
            )
            for block in blocks
        ]

    assert [rows(stage) for stage in model.down] == [
        [(96, 64, None), (64, 64, None)],
        [(128, 128, None), (128, 128, None)],
        [(256, 256, 0), (256, 256, 4)],
    ]
    assert rows(model.middle[:1]) == [(256, 256, 0)]
    assert (model.middle[1].conv1.in_channels, model.middle[1].conv1.out_channels) == (256, 256)
    assert [rows(stage) for stage in model.up] == [
        [(160, 64, None), (128, 64, None)],
        [(320, 128, None), (256, 128, None)],
        [(640, 256, 4), (512, 256, 0)],
    ]
    assert [(d.conv.in_channels, d.conv.out_channels) for d in model.downsample] == [(64, 64), (128, 128)]
    assert [(u.conv.in_channels, u.conv.out_channels) for u in model.upsample] == [(128, 64), (256, 128)]
    assert model.down[0][0].residual.dropout.p == 0.2
    assert {m.num_groups for m in model.modules() if isinstance(m, torch.nn.GroupNorm)} == {32}


@pytest.mark.parametrize(("size", "window"), [((16, 16, 16), 4), ((8, 16, 24), 2), ((16, 32, 16), 8)])
@pytest.mark.parametrize("num_blocks", [1, 2])
def test_shapes(size: tuple[int, int, int], window: int, num_blocks: int):
    model = make_unet(window_size=window, num_blocks=num_blocks)
    x, t, h = make_inputs(size)
    y = model(x, t, h)
    assert y.shape == x.shape
    torch.testing.assert_close(model(x, t, h), y, atol=0, rtol=0)
    torch.testing.assert_close(model(x, t.float(), h), y, atol=0, rtol=0)


def test_untrained_network_predicts_zero():
    assert not UNet3d(**TINY)(*make_inputs((16, 16, 16))).any()


def test_every_input_counts():
    model, (x, t, h) = make_unet(), make_inputs((16, 16, 16))
    y = model(x, t, h)
    others = {
        "x_t": model(x.flip(2), t, h),
        "t": model(x, t.flip(0), h),
        **{f"h{i}": model(x, t, [c.flip(2) if i == j else c for j, c in enumerate(h)]) for i in range(3)},
    }
    for name, other in others.items():
        assert (other - y).abs().mean() > 0.01 * y.abs().mean(), name


@pytest.mark.parametrize("way", ["down", "up"])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_conditions_enter_on_the_way_down_and_on_the_way_up(way: str, stage: int):
    """The last channels into a stage's first block are h^(i) itself."""
    model, (x, t, h) = make_unet(num_blocks=2), make_inputs((16, 16, 16))
    entering = []
    block = getattr(model, way)[stage][0]
    block.register_forward_pre_hook(lambda _, args: entering.append(args[0]))
    model(x, t, h)
    assert len(entering) == 1
    torch.testing.assert_close(entering[0][:, -h[stage].shape[1] :], h[stage], atol=0, rtol=0)


def test_gradients_reach_every_parameter_and_input():
    model, (x, t, h) = make_unet(num_blocks=2).train(), make_inputs((32, 16, 16))
    leaves = [x.requires_grad_(), *(c.requires_grad_() for c in h)]
    model(x, t, h).square().mean().backward()
    dead = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not dead
    assert all(leaf.grad.abs().max() > 0 for leaf in leaves)


def test_unconditional_network_takes_empty_conditions():
    model, (x, t, h) = make_unet(condition_channels=(0, 0, 0)), make_inputs((16, 16, 16), channels=(0, 0, 0))
    assert model(x, t, h).shape == x.shape


def kept_for_backward(model: UNet3d, inputs: tuple) -> int:
    """Elements that a forward pass saves, parameters aside."""
    own, kept = {id(p) for p in model.parameters()}, []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: kept.append(0 if id(x) in own else x.numel()) or x, lambda x: x
    ):
        model(*inputs)
    return sum(kept)


def test_checkpointing_changes_no_gradient_and_keeps_less():
    grads, kept = [], []
    for stages in ((), (16,), (16, 8, 4)):
        model, (x, t, h) = make_unet(checkpoint_stages=stages, dropout=0.2).train(), make_inputs((16, 16, 16))
        torch.manual_seed(7)  # the same dropout
        model(x, t, h).square().mean().backward()
        grads.append([p.grad for p in model.parameters()])
        kept.append(kept_for_backward(model, (x, t, h)))
    torch.testing.assert_close(grads[1], grads[0])
    torch.testing.assert_close(grads[2], grads[0])
    # 16^3 is most of the work: checkpointing it alone saves most of what can be saved.
    assert 0 < kept[2] < kept[1] < 0.6 * kept[0]


def test_checkpointing_a_stage_that_is_not_there():
    model, inputs = make_unet(checkpoint_stages=[128, 8]), make_inputs((16, 16, 16))
    with pytest.raises(UserError, match=r"checkpoint_stages=\[8, 128\].*sides of 16, 8, 4 voxels"):
        model(*inputs)
    assert make_unet(checkpoint_stages=[32])(*make_inputs((16, 16, 32))).shape == (2, 1, 16, 16, 32)


def test_bf16_is_close_to_fp32():
    model, (x, t, h) = make_unet(), make_inputs((16, 16, 16))
    exact = model(x, t, h)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(x, t, h)
    assert (exact - rounded.float()).norm() < 0.03 * exact.norm()


def test_sides_and_conditions_that_do_not_fit():
    model, (x, t, h) = make_unet(), make_inputs((16, 16, 16))
    with pytest.raises(UserError, match="divisible by 4"):
        model(x[:, :, :14], t, h)
    with pytest.raises(UserError, match="2 conditions for 3 stages"):
        model(x, t, h[:2])
