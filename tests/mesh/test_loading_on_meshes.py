"""Models go from files onto a mesh in slices: the same arrays, each byte read once, memory kept."""

import json
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

from jlora.models._files import _boxes, _stacking
from jlora.models._files._tensor import Tensor

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


@pytest.mark.parametrize("kind", [kind for kind in model_files.WRITTEN if "large" not in kind])
def test_slices_are_those_of_a_plain_load_and_no_byte_is_read_twice(kind, written, mesh):
    loading.check(written(kind), mesh, *loading.LAYOUTS)


STORED = ("fp8", "mxfp4", "nf4", "int8", "gguf of blocks", "gguf of two kinds", "gguf, joined")


@pytest.mark.parametrize("kind", STORED)
def test_what_stays_as_it_is_stored_lies_so_and_no_byte_is_read_twice(kind, written, mesh):
    loading.check_stored(written(kind), mesh, *loading.LAYOUTS)


def test_two_processes_hold_half_each_read_that_alone_and_keep_one_tensor_beside_it(written):
    """Plain weights, and those that stay as they are stored."""
    kinds = ("large", "large of int8", "large gguf of blocks")
    kinds += ("experts", "fp8", "nf4", "gguf of blocks", "gguf, joined")
    large, *_ = paths = [*map(written, kinds)]
    sizes = load_file(large / "model.safetensors").values()
    largest = max(tensor.nbytes for tensor in sizes)
    for told in told_by_two_processes(*paths):
        measured = [line for line in told.splitlines() if line.startswith("{")]
        assert len(measured) == 12  # the others are of the transport
        for found in map(json.loads, measured):
            plain = found["quantize"] is None
            # where the inputs of int8 are cut, each half has the scales of all outputs
            assert found["held"] == pytest.approx(found["whole"] / 2, rel=1e-3 if plain else 1e-2)
            # plain, the embedding and the norms have four bytes a number in the file, and two here;
            # beside int8 the head has two in the file, and four here
            least = 1 if plain else 0.9
            assert least * found["held"] <= found["read"] < 1.05 * found["held"]
            assert found["held"] < found["peak"] < found["held"] + largest


def told_by_two_processes(*paths):
    """What each of two processes of four devices prints that load these."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    room = ONE_OF_TWO.parents[1]
    search = [room.parent, room / "library", room / "trainer", room / "mesh"]
    given = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(map(str, search)),
    }
    both = [
        subprocess.Popen(
            [sys.executable, str(ONE_OF_TWO), address, str(number), *map(str, paths)],
            env=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(2)
    ]
    try:
        ended = [process.communicate(timeout=300)[0] for process in both]
    finally:
        for process in both:
            process.kill()
    for process, told in zip(both, ended, strict=True):
        assert process.returncode == 0, told
    return ended


def with_second_head(written, tmp_path, change):
    """A folder whose head is its embedding and in the file as well."""
    folder = shutil.copytree(written("linear"), tmp_path / "tied")
    edit(folder / "config.json", tie_word_embeddings=True)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    change(tensors["lm_head.weight"])
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_a_head_that_should_be_the_embedding_is_compared_slice_by_slice(written, tmp_path, mesh):
    folder = with_second_head(written, tmp_path, lambda head: None)
    loading.check(folder, mesh, "columns", "rows")
    other = with_second_head(written, tmp_path / "other", lambda head: head[70].fill(0.5))
    model = loading.opened(other)
    where = loading.shardings(model.config, mesh, "rows")
    with pytest.raises(ValueError, match=r"lm_head\.weight is not model\.embed_tokens\.weight"):
        _stacking.assemble(model, "float32", where)


def test_a_slice_with_values_that_the_dtype_cannot_hold_is_an_error(written, tmp_path, mesh):
    folder = shutil.copytree(written("linear"), tmp_path / "large")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.3.mlp.up_proj.weight"][120, 90] = 1e30
    save_file(tensors, folder / "model.safetensors")
    model = loading.opened(folder)
    where = loading.shardings(model.config, mesh, "columns")
    told = r"layers/mlp/up_proj/kernel has values that float16 can't hold"
    with pytest.raises(ValueError, match=told):
        _stacking.assemble(model, "float16", where)


@pytest.mark.parametrize("cut", [16, 32, 48])
def test_rows_of_blocks_are_read_by_blocks_where_the_slices_are_whole_ones(cut):
    rows, columns, block = 5, 96, 32
    whole, asked = np.arange(rows * columns).reshape(rows, columns), []

    def read(box):
        asked.append(box)
        return whole[_boxes.index(box)]

    boxes = [(range(1, 3), range(at, at + cut)) for at in range(0, columns, cut)]
    tensor = Tensor((rows, columns), (1, block), read)
    for (down, across), values in tensor.parts(boxes):
        np.testing.assert_array_equal(values, whole[1:3, across.start : across.stop])
        assert down == range(1, 3)
    assert asked == (boxes if cut == block else [(range(1, 3), range(columns))])
