"""Fixtures that tests of several rooms share."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

# the real engine's tests need its environment: make test-omni
collect_ignore = [] if os.environ.get("FA_TUNE_EMULATE_NPU") == "1" else ["omni"]

# Started in the background of a script, a process ignores SIGINT, and so would all that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def one_thread() -> Iterator[None]:
    """So little work on several threads is mostly waiting: four times slower where the machine is busy."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_wan(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text-to-video checkpoint with two experts of two layers; do not write into it."""
    from tests.support.tiny_wan import make_tiny_wan

    return make_tiny_wan(tmp_path_factory.mktemp("tiny_wan"))


@pytest.fixture(scope="session")
def tiny_wan_i2v(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `tiny_wan`, image-to-video."""
    from tests.support.tiny_wan import make_tiny_wan

    return make_tiny_wan(tmp_path_factory.mktemp("tiny_wan_i2v"), i2v=True)
