import pytest
from fast_compiles import compile_fast
from pairs import Pair

compile_fast()


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
