"""The real model, once in jlora and once in transformers on torch."""

import jax
import pytest

from jlora import models


@pytest.fixture(scope="session")
def smollm2():
    return models.load("smollm2")


@pytest.fixture(scope="session")
def smollm2_path():
    return models.located("smollm2")


@pytest.fixture(scope="module")
def compiled_fast():
    """For tiny programs: XLA's optimisations take longer than all the rest."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
