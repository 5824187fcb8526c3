import pytest

from tests.serving.running import DEEPER, running


@pytest.fixture(scope="package")
def server():
    with running(named={"deeper": DEEPER, "shallow": "0:8"}) as found:
        yield found
