"""What a test says when the machine lacks a system package that it needs."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def missing(reason: str) -> NoReturn:
    """Skips the test; fails it in CI, where tests/system-packages has been asked to install all."""
    if os.environ.get("HARNESS_REQUIRE_SYSTEM") == "1":
        pytest.fail(reason)
    pytest.skip(reason)
