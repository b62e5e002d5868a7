import pytest
import torch
from tests.diffusion.samplers.draws import noises

from diffux2ct.diffusion.process import DiffusionProcess
from diffux2ct.diffusion.samplers.ddim import Ddim
from diffux2ct.diffusion.samplers.ddpm import Ddpm
from diffux2ct.diffusion.samplers.sampling import Step, sample
from diffux2ct.errors import UserError


def test_eta_one_is_ddpm():
    a_t, a_prev = torch.tensor(0.4), torch.tensor(0.55)
    draw = noises(4)
    x_0, x_t, noise = draw(), draw(), draw()
    ours, ddpm = (s.step(Step(x_t, x_0, a_t, a_prev, lambda: noise)) for s in (Ddim(eta=1.0), Ddpm()))
    torch.testing.assert_close(ours, ddpm, rtol=1e-4, atol=1e-5)


def test_volumes_depend_on_the_start_alone():
    start = noises(0)()
    first, second = (
        sample(lambda x, t: 0.5 * x + 0.1, DiffusionProcess(), Ddim(10), start, noises(seed)) for seed in (1, 2)
    )
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.parametrize("eta", [-1, float("nan"), float("inf")])
def test_a_wrong_eta_is_refused(eta):
    with pytest.raises(UserError, match=r"sampler\.eta="):
        Ddim(eta=eta)
