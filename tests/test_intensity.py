import numpy as np
import pytest
import torch

from diffux2ct.errors import UserError
from diffux2ct.intensity import HU_WINDOW, attenuation_from_hu, denormalize_hu, normalize_hu


def test_the_window_becomes_minus_one_to_one_and_the_rest_is_clipped():
    hu = torch.tensor([-2048.0, -1024.0, 238.0, 1500.0, 3071.0])
    torch.testing.assert_close(normalize_hu(hu), torch.tensor([-1.0, -1.0, 0.0, 1.0, 1.0]))
    torch.testing.assert_close(
        normalize_hu(hu, (-1000, 1000)), torch.tensor([-1.0, -1.0, 0.238, 1.0, 1.0]), rtol=0, atol=1e-6
    )


def test_denormalize_undoes_normalize_within_the_window():
    hu = torch.linspace(*HU_WINDOW, 500)
    torch.testing.assert_close(denormalize_hu(normalize_hu(hu)), hu, rtol=0, atol=1e-3)
    torch.testing.assert_close(denormalize_hu(torch.tensor([-1.0, 1.0])), torch.tensor([-1024.0, 1500.0]))


def test_integers_become_float32_and_arrays_stay_arrays():
    hu = np.array([-1024, 0, 1500], dtype=np.int16)
    for function in (normalize_hu, attenuation_from_hu):
        array, tensor = function(hu), function(torch.from_numpy(hu))
        assert isinstance(array, np.ndarray)
        assert array.dtype == np.float32
        assert tensor.dtype == torch.float32
        np.testing.assert_allclose(array, tensor.numpy(), rtol=0, atol=1e-7)
    assert normalize_hu(torch.zeros(2, dtype=torch.float64)).dtype == torch.float64


def test_attenuation_is_plastimatchs():
    hu = torch.tensor([-1024.0, -801.0, -800.0, -799.0, 0.0, 1000.0])
    expected = torch.tensor([0.0, 0.0, 0.0, 0.022 * 0.201, 0.022, 0.044])
    torch.testing.assert_close(attenuation_from_hu(hu), expected, rtol=0, atol=1e-7)


def test_an_empty_window_is_refused():
    with pytest.raises(UserError, match="the lower one first"):
        normalize_hu(torch.zeros(1), (100, 100))
