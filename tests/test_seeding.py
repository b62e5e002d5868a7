"""Streams of different numbers differ, in all bits that a generator keeps."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from diffux2ct.reconstructors.base import seeded_integers, seeded_normal
from diffux2ct.seeding import CPU, seed_all, seeded_generator
from diffux2ct.training.steps import sample_seeds


def num_streams(steps) -> int:
    """The number of streams among those that two samples of each step draw from."""
    draws = [seeded_integers(2**62, sample_seeds(0, step, 0, 2), CPU) for step in steps]
    return len(torch.cat(draws).unique())


@pytest.mark.slow
def test_no_two_of_a_million_samples_draw_the_same():
    assert num_streams(range(500_000)) == 1_000_000


def test_steps_65535_apart_draw_otherwise():
    """An earlier mixing gave sample 1 of step s + 65535 the noise and the timestep of sample 0 of step s."""
    assert num_streams([*range(50), *range(65535, 65585)]) == 200
    noise = [seeded_normal((4,), sample_seeds(0, *numbers, 1), CPU) for numbers in ((7, 0), (7 + 65535, 1))]
    assert not torch.equal(*noise)


def test_a_generator_on_the_cpu_keeps_more_than_32_bits():
    """manual_seed alone gives these two the same stream."""
    a, b = (torch.Generator().manual_seed(seed) for seed in (5, 5 + 2**32))
    assert torch.equal(torch.randn(9, generator=a), torch.randn(9, generator=b))
    words = {tuple(seeded_generator(CPU, n).get_state()[24:64].tolist()) for n in range(2000)}
    assert len(words) == 2000


def test_the_stream_is_numpy_s_mersenne_twister_of_the_same_words():
    """So that a PyTorch whose state lies otherwise is noticed."""
    drawn = torch.empty(2000, dtype=torch.int64).random_(0, 2**20, generator=seeded_generator(CPU, 3, 1, 4))
    twister = np.random.MT19937()
    key = np.random.SeedSequence([3, 1, 4]).generate_state(624)
    twister.state = {"bit_generator": "MT19937", "state": {"key": key, "pos": 624}}
    np.testing.assert_array_equal(drawn.numpy(), twister.random_raw(2000) % 2**20)


def test_normal_draws_are_normal_and_follow_their_numbers():
    draws = [torch.randn(100_000, generator=seeded_generator(CPU, 0, step)) for step in (1, 2, 1)]
    torch.testing.assert_close(draws[0], draws[2], rtol=0, atol=0)
    assert abs(float(torch.corrcoef(torch.stack(draws[:2]))[0, 1])) < 0.02
    assert abs(float(draws[0].mean())) < 0.02
    assert abs(float(draws[0].std()) - 1) < 0.02


def test_the_global_generator_follows_its_numbers():
    seed_all(1, 2, 3)
    first = torch.rand(5)
    seed_all(1, 2, 4)
    assert not torch.equal(torch.rand(5), first)
    seed_all(1, 2, 3)
    assert torch.equal(torch.rand(5), first)


def test_seeds_are_mixed_in_one_place():
    """A sum or a XOR of numbers makes two streams the same sooner or later."""
    src = Path(__file__).resolve().parents[1] / "src"
    mixed = re.compile(r"manual_seed\(.*\w *[\^+*] *\w|seed=[\w.]*seed\s*[\^+*]")
    found = [str(path) for path in src.rglob("*.py") if mixed.search(path.read_text(encoding="utf-8"))]
    assert found == []
