"""The real model, once in jlora and once in transformers on torch."""

import pytest

from jlora import models


@pytest.fixture(scope="session")
def smollm2():
    return models.load("smollm2")


@pytest.fixture(scope="session")
def smollm2_path():
    return models.located("smollm2")
