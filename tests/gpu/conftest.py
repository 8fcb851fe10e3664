"""The device of the checks, which `make check-gpu` chooses."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cuda", help="cuda, or cpu to try the checks there")


@pytest.fixture
def device(request: pytest.FixtureRequest) -> str:
    """Where the checks run."""
    return str(request.config.getoption("--device"))
