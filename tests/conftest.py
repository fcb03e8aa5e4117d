"""Every test runs offline, on one thread, from its own seed, and hears signals."""

import gc
import os
import signal

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"

from collections.abc import Iterator
from zlib import crc32

# before objects are frozen: it looks for what refers to one, and pytest imports it in the end
import hypothesis  # noqa: F401
import pytest
import torch

from tests.slow import is_slow

torch.set_num_threads(1)
# what a shell's background job or `nohup` ignores, processes that tests start would ignore, too
for name, handler in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
    number = getattr(signal, name, None)
    if number is not None and signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def seed(request: pytest.FixtureRequest) -> Iterator[None]:
    """Seed torch from the test's name, so that no test depends on those before it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(crc32(request.node.nodeid.encode()))
        yield


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Keep the garbage collector from walking over a million objects of modules and tests, which stay."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        # tracing and building models makes thousands of objects in a moment, of which few are garbage
        gc.set_threshold(10_000, 10, 10)
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that `make test` leaves out; open with those whose fixture is dear.

    Processes take over the last tests of others, and would build it once more.
    """
    items.sort(key=lambda item: "test_distributed" not in item.nodeid)
    for item in items:
        if is_slow(item.nodeid):
            item.add_marker("slow")
