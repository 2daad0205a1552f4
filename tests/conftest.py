"""Order the tests: those with a device that is not there come last."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests on the fake device last: a process that has used it cannot fork others that train."""
    items.sort(key=lambda item: "test_fake_device" in item.nodeid)
