"""Random streams that are fixed by whole numbers: the ONE place where seeds are derived.

numpy's SeedSequence mixes (seed, step, sample, salt) so that streams of different numbers are independent.
"""

import numpy as np
import torch

CPU = torch.device("cpu")
# The 624 words of PyTorch's Mersenne Twister in its state: 64 bits each, after seed, two flags and a position.
_WORDS = slice(24, 24 + 8 * 624)


def derived_seed(*numbers: int) -> int:
    """63 bits from whole numbers of at least 0: two lists of numbers share them with a chance of 1e-19."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) >> 1


def seeded_generator(device: torch.device | str, *numbers: int) -> torch.Generator:
    """A generator on ``device`` whose stream follows from whole numbers of at least 0.

    On a CPU ``manual_seed`` keeps 32 bits, with which two of 1e5 samples repeat each other: all its words are set.
    """
    # The meta device has no generator and draws no values.
    own = CPU if torch.device(device).type == "meta" else torch.device(device)
    generator = torch.Generator(own).manual_seed(derived_seed(*numbers))
    if own.type == "cpu":
        state = generator.get_state()
        state.numpy()[_WORDS].view(np.uint64)[:] = np.random.SeedSequence(numbers).generate_state(624)
        generator.set_state(state)
    return generator


def seed_all(*numbers: int) -> None:
    """Seed PyTorch's global generators, of all devices, from which dropout draws."""
    torch.manual_seed(derived_seed(*numbers))
    torch.set_rng_state(seeded_generator(CPU, *numbers).get_state())
