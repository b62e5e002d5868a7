"""channels_last_3d in a training step of each model, as the trainer prepares it: every convolution, and every copy."""

import pytest
import torch
from tests.training.toy import THIN, thin
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffux2ct.build import build_reconstructor
from diffux2ct.diffusion.samplers.ddim import Ddim
from diffux2ct.reconstructors.precision import computes_bf16
from diffux2ct.reconstructors.regression import RegressionReconstructor
from diffux2ct.training.state import prepare_model

BATCH, SIZE = 3, 16  # no weight has three output channels: what has a first side of three is a batch
LAST = [0, 2, 3, 4, 1]
DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
    ),
]
# The steps run in bf16, because a CPU convolves some small fp32 volumes in another layout.
needs_bf16 = pytest.mark.skipif(not computes_bf16("cpu"), reason="needs a CPU with bf16 arithmetic (AVX-512)")
DIFFUX2CT = {"implicit": (), "expand": ("conditioning=expand",), "none": ("conditioning=none",)}
OTHERS = {
    "icm_reg": ("model=icm_reg",),
    "backprojection_cnn": ("model=backprojection_cnn",),
    "x_ctrsnet_like": ("model=x_ctrsnet_like",),
    "vnet": ("model=vnet",),
    "x2ct_gan": ("model=x2ct_gan",),
}


def order(x: Tensor) -> list[int]:
    """The axes of a tensor as they lie in memory, outermost first."""
    return sorted(range(x.ndim), key=lambda axis: -x.stride(axis))


def is_batch(x: object) -> bool:
    """Of volumes whose order in memory is no matter of taste: no side of one, nothing repeated."""
    return isinstance(x, Tensor) and x.ndim == 5 and len(x) == BATCH and min(x.shape) > 1 and 0 not in x.stride()


class Layouts(TorchDispatchMode):
    """Convolutions with what is not channels_last_3d, and operations that take and give volumes in two orders."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions: dict[str, list[bool]] = {"forward": [], "backward": []}
        self.changes: list[str] = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        volumes = [x for x in (*tree_leaves(args), *tree_leaves(out)) if is_batch(x)]
        name = str(operation)
        if name.startswith("aten.convolution"):
            way = "backward" if "backward" in name else "forward"
            if volumes:
                self.convolutions[way].append(all(order(x) == LAST for x in volumes))
            return out
        storages = {x.untyped_storage().data_ptr() for x in volumes}
        if len(storages) > 1 and len({tuple(order(x)) for x in volumes}) > 1:  # a copy, and no mere view
            self.changes.append(f"{name} {[(tuple(x.shape), order(x)) for x in volumes]}")
        return out


def prepared(compose, device: str, overrides: tuple[str, ...], contiguous_weights: bool) -> nn.Module:
    torch.manual_seed(0)
    model = build_reconstructor(compose(*thin(*overrides), *overrides))
    return prepare_model(model, torch.device(device), True, contiguous_weights).train()


def step(model: nn.Module, device: str) -> None:
    """In bf16: a CPU convolves some small fp32 volumes otherwise."""
    generator = torch.Generator().manual_seed(1)
    plane = (BATCH, 1, SIZE, SIZE)
    batch = {
        "volume": torch.rand(*plane, SIZE, generator=generator) * 2 - 1,
        "frontal": torch.rand(plane, generator=generator),
        "lateral": torch.rand(plane, generator=generator),
        "labels": torch.randint(5, (BATCH, SIZE, SIZE, SIZE), generator=generator),
    }
    batch = {key: value.to(device) for key, value in batch.items()} | {"seed": torch.arange(BATCH)}
    for objective in model.objectives():
        with torch.autocast(device, torch.bfloat16):
            total = model(objective.name, batch)["total"]
        total.backward()


@needs_bf16
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("contiguous_weights", [False, True], ids=["whole", "as for fsdp"])
@pytest.mark.parametrize("conditioning", DIFFUX2CT)
def test_no_layer_of_the_denoiser_changes_the_memory_format(
    compose, device: str, contiguous_weights: bool, conditioning: str
):
    """A copy to another layout costs as much as a norm; neither forward nor backward has one."""
    model = prepared(compose, device, DIFFUX2CT[conditioning], contiguous_weights)
    torch.nn.init.normal_(model.denoiser.out.weight, std=0.1)  # at zero it sends no gradient back
    with Layouts() as seen:
        step(model, device)
    assert len(seen.convolutions["forward"]) > 20
    assert len(seen.convolutions["backward"]) > 20
    assert all(seen.convolutions["forward"])
    assert all(seen.convolutions["backward"])
    assert not seen.changes
    weights = [p for p in model.parameters() if p.ndim == 5 and min(p.shape) > 1]
    assert {p.is_contiguous() for p in weights} == {contiguous_weights}


@needs_bf16
@pytest.mark.parametrize("contiguous_weights", [False, True], ids=["whole", "as for fsdp"])
@pytest.mark.parametrize("name", OTHERS)
def test_every_convolution_takes_and_gives_channels_last(compose, contiguous_weights: bool, name: str):
    """Of ICM-Reg nothing is copied; the others make their volumes in another layout, and copy them for it.

    Backward, V-Net's loss gives its last convolution a gradient of another layout, and X2CT-GAN's instance norms give
    one to each convolution before them.
    """
    model = prepared(compose, "cpu", OTHERS[name], contiguous_weights)
    with Layouts() as seen:
        step(model, "cpu")
    assert len(seen.convolutions["forward"]) >= 4
    assert all(seen.convolutions["forward"])
    if name == "vnet":
        assert seen.convolutions["backward"].count(False) == 1
    else:
        assert all(seen.convolutions["backward"]) is (name != "x2ct_gan")
    assert bool(seen.changes) is (name != "icm_reg")


def test_a_single_channel_is_not_copied():
    x = torch.randn(2, 1, 4, 4, 4)
    seen: list[Tensor] = []
    conv = nn.Conv3d(1, 8, 3)
    prepare_model(RegressionReconstructor(conv), torch.device("cpu"), True)
    conv.register_forward_hook(lambda _, inputs, output: seen.extend((inputs[0], output)))
    conv(x)
    assert seen[0].data_ptr() == x.data_ptr()
    assert order(seen[1]) == LAST
    torch.testing.assert_close(seen[0], x, rtol=0, atol=0)


def test_channels_last_off_leaves_everything_as_it_was(compose):
    model = prepare_model(build_reconstructor(compose(*THIN)), torch.device("cpu"), False)
    assert all(p.is_contiguous() for p in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("name", ["diffux2ct", "x2ct_gan"])
def test_channels_last_changes_no_volume(compose, name: str):
    torch.manual_seed(0)
    model = build_reconstructor(compose(*thin(f"model={name}"), f"model={name}")).eval()
    if name == "diffux2ct":
        torch.nn.init.normal_(model.denoiser.out.weight, std=0.1)
    xrays = {view: torch.rand(1, 1, SIZE, SIZE) for view in ("frontal", "lateral")}

    settings = {"sampler": Ddim(2)} if name == "diffux2ct" else {}

    def sample() -> Tensor:
        generator = torch.Generator().manual_seed(2)
        return model.reconstruct(xrays, generator=generator, **settings)

    with torch.no_grad():
        expected = sample()
        assert expected.std() > 0.01
        prepare_model(model, torch.device("cpu"), True)
        torch.testing.assert_close(sample(), expected, rtol=1e-4, atol=1e-4)
