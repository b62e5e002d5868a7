import pytest
import torch


@pytest.fixture(scope="package", autouse=True)
def one_thread():
    """Models this small gain nothing from threads, and lose much to waiting on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
