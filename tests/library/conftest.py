"""The checks of `laws` as fixtures."""

import laws
import pytest
from fast_compiles import compile_fast, compiled_as_ever
from laws import adapted as adapted
from laws import assert_close as assert_close
from laws import nothing_registered_stays as nothing_registered_stays

compile_fast()


@pytest.fixture(scope="session")
def check_law_1():
    """Law 1: the lifted function is that of the merged tree, in values and gradients."""
    return laws.check_law_1


@pytest.fixture(scope="session")
def check_learns():
    """A few steps through the lifted function alone make the loss fall."""
    return laws.check_learns


@pytest.fixture(scope="module", name="compiled_as_ever")
def _compiled_as_ever():
    with compiled_as_ever():
        yield
