"""Models go from files onto a mesh in slices: the same arrays, each byte read once, memory kept."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jax
import loading
import model_files
import numpy as np
import pytest
from folders import edit
from safetensors.numpy import load_file, save_file

from jlora.models._files import _stacking

ONE_OF_TWO = Path(loading.__file__)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Each kind of file when it is asked for, and then the same again."""
    found, directory = {}, tmp_path_factory.mktemp("models")

    def get(kind):
        if kind not in found:
            found[kind] = model_files.write(kind, directory)
        return found[kind]

    return get


@pytest.fixture
def mesh():
    return jax.make_mesh((2, 4), ("data", "model"))


@pytest.mark.parametrize("layout", loading.LAYOUTS)
@pytest.mark.parametrize("kind", model_files.WRITTEN)
def test_slices_are_those_of_a_plain_load_and_no_byte_is_read_twice(kind, layout, written, mesh):
    loading.check(written(kind), mesh, layout)
