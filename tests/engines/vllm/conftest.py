"""What the tests that ask vLLM share."""

import pytest


@pytest.fixture(scope="session")
def shelf(tmp_path_factory):
    """Where their models are."""
    return tmp_path_factory.mktemp("models")
