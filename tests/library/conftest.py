"""The checks of `laws` as fixtures."""

import jax
import laws
import pytest
from fast_compiles import compile_fast
from laws import adapted as adapted
from laws import assert_close as assert_close

compile_fast()


@pytest.fixture(scope="session")
def check_law_1():
    """Law 1: the lifted function is that of the merged tree, in values and gradients."""
    return laws.check_law_1


@pytest.fixture(scope="session")
def check_learns():
    """A few steps through the lifted function alone make the loss fall."""
    return laws.check_learns


@pytest.fixture(scope="module")
def compiled_as_ever():
    """With XLA's optimisations and anew: for costs, which are those that users have."""
    jax.config.update("jax_disable_most_optimizations", False)
    jax.config.update("jax_enable_compilation_cache", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)
    jax.config.update("jax_enable_compilation_cache", True)
