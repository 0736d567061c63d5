"""The real model, once in jlora and once in transformers on torch."""

import os

# what they hold is here: nothing is looked up elsewhere
os.environ["HF_HUB_OFFLINE"] = "1"

import jax
import pytest
import torch
from fast_compiles import enough_threads

from jlora import models

enough_threads()

# The models are tiny: more threads would wait for one another, for longest on a busy machine.
torch.set_num_threads(1)


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
