"""No figure changes Matplotlib's settings."""

from collections.abc import Iterator

import matplotlib
import pytest


@pytest.fixture(autouse=True)
def _settings_stay() -> Iterator[None]:
    before = dict(matplotlib.rcParams)
    yield
    assert dict(matplotlib.rcParams) == before
