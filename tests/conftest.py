"""What every test runs under: one thread per process, a fixed seed, and no silent use of a GPU."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import os
from collections.abc import Iterator

# One thread, and so the same arithmetic with any number of workers (`make test` runs two on two cores). Subprocesses
# inherit it; it has to be set before torch is first imported.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
# Processes that tests start compile the sources once, not each for itself, and C++ without its headers beforehand: the
# two compilations that there are take longer with that.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
os.environ["TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS"] = "0"

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture import providers

from reparam.rewrite import verifying
from reparam.utils.garbage import old_objects_at_rest
from support.warm_process import WarmProcess

torch.set_num_threads(1)
_calls = contextlib.ExitStack()

# A CPU build of torch lacks the operators that a CUDA build of torchvision looks up when it is imported.
if torch.version.cuda is None and importlib.util.find_spec("reparam.loading"):
    from reparam.utils.torchvision_ops import register_missing_torchvision_ops

    register_missing_torchvision_ops()

# Captures take seconds, so there is no deadline. `make test` draws the same few examples every time, `make mutants`
# more of them; to hunt with fresh ones, as `make sweep` does: `make test ARGS="--hypothesis-profile explore"`.
settings.register_profile(
    "default", deadline=None, derandomize=True, max_examples=10, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("mutants", settings.get_profile("default"), max_examples=25)
settings.register_profile(
    "explore", settings.get_profile("default"), derandomize=False, max_examples=100, print_blob=True
)
settings.load_profile("default")
# Examples are also drawn from the numbers in modules that are loaded, which would hang on the tests that ran before.
providers._get_local_constants = lambda: providers._local_constants


@pytest.fixture(autouse=True)
def well_formed_programs() -> Iterator[None]:
    """After every rewrite of every test the program is well formed."""
    with verifying():
        yield


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Each test draws the same weights and inputs, whatever ran before it and on whichever worker."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def warm() -> Iterator[WarmProcess]:
    """Processes that need not import torch each for itself."""
    with WarmProcess() as server:
        yield server


def pytest_collection_finish() -> None:
    """What the imports made is never collected, and so need not be looked at again: a fifth of the time of a test.

    All tests are one call, so that those of the tests need not find out that objects are frozen: a seventh of the time.
    """
    gc.collect()
    _calls.enter_context(old_objects_at_rest())
    gc.set_threshold(50_000, 20, 100)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is marked `gpu` where torch sees no CUDA device."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip(f"needs a CUDA device: torch {torch.__version__} sees none here")
