import pytest
from pairs import Pair


@pytest.fixture
def pair(tmp_path):
    """Starts two processes of a program; none outlives the test."""
    started = []

    def start(name, *args):
        started.append(Pair(name, tmp_path, *args))
        return started[-1]

    yield start
    for each in started:
        each.end()
