"""One thread (the networks are tiny) and one seed for every test; the same examples in every run."""

import signal

import pytest
import torch
from hypothesis import settings

collect_ignore = ["fuzz_atheris.py"]  # a program, for whom has atheris
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as shells start what runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)
settings.register_profile("suite", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("suite")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def pytest_collection_modifyitems(config, items):
    """Tests marked ``gpu`` are for machines that have one."""
    if torch.cuda.is_available():
        return
    here = [item for item in items if item.get_closest_marker("gpu") is None]
    config.hook.pytest_deselected(items=[item for item in items if item not in here])
    items[:] = here
