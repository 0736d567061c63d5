"""Over quantised weights a run on a mesh is the run on one device, and no block is cut."""

import functools

import jax
import model_files
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from models_on_meshes import Run, on, on_one_device

import jlora
from jlora import models
from jlora._quantised import place_of
from jlora.models._layout import laid_out

MESHES = {
    "fsdp=2,model=4": {"fsdp": 2, "model": 4},
    "data=2,fsdp=2,model=2": {"data": 2, "fsdp": 2, "model": 2},
}


@functools.cache
def on_one(run):
    return run.trained(None, steps=8)[0].losses


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("format", ["int8", "nf4", "Q4_1"])
def test_steps_are_those_of_one_device(mesh, format):
    method = "dora" if (mesh, format) == ("fsdp=2,model=4", "Q4_1") else "lora"
    run = Run("wide llama", method, quantize=format)
    measured, state = run.trained(models.make_mesh(MESHES[mesh]), steps=8)
    np.testing.assert_allclose(measured.losses, on_one(run), atol=2e-5, rtol=0)
    for leaf in jax.tree.leaves(state.lora):
        assert len(leaf.sharding.device_set) == 8


@pytest.mark.parametrize("format", ["int8", "nf4", "Q4_1"])
def test_stored_arrays_lie_as_their_weight_and_its_adapter_beside_it(format):
    mesh = models.make_mesh({"fsdp": 2, "model": 4})
    plain, small = on(mesh, "wide llama"), on(mesh, "wide llama", format)
    for name in ("q_proj", "o_proj"):
        its, wanted = (m.params["layers"]["attn"][name]["kernel"] for m in (small, plain))
        assert place_of(its).spec == wanted.sharding.spec
        stored = sum(array.addressable_shards[0].data.nbytes for array in jax.tree.leaves(its))
        assert stored < its.nbytes / 8 + 2 * 1024
    config = jlora.LoraConfig(targets="q_proj", rank=4)
    axes = jlora.trace_axes(small.apply, small.params, np.ones((1, 2), int))
    _, lora = jlora.split(small.params, config, jax.random.key(0), axes=axes)
    of_small, of_plain = (m.layout.of_adapter(m.params, lora) for m in (small, plain))
    assert jax.tree.leaves(of_small) == jax.tree.leaves(of_plain)


@pytest.mark.parametrize("format", ["int8", "nf4", "Q4_1"])
def test_a_restored_adapter_goes_where_its_base_lies(format, tmp_path):
    small = on(models.make_mesh({"fsdp": 2, "model": 4}), "wide llama", format)
    config = jlora.LoraConfig(targets="q_proj|down_proj", rank=4)
    axes = jlora.trace_axes(small.apply, small.params, np.ones((1, 2), int))
    _, lora = jlora.split(small.params, config, jax.random.key(0), axes=axes)
    jlora.checkpoint.save(tmp_path / "saved", lora, config, base=small.params)
    again, _ = jlora.checkpoint.restore(tmp_path / "saved", base=small.params)
    want = jlora.shardings(small.params, lora)
    assert jax.tree.map(lambda leaf: leaf.sharding, again) == want
    tokens = np.ones((8, 4), int)
    assert jax.jit(jlora.lift(small.apply))(small.params, again, tokens).shape == (8, 4, 64)


@pytest.mark.filterwarnings("ignore:.*weights are plain")
@pytest.mark.parametrize(("kind", "sizes"), [("fp8", {"model": 2}), ("mxfp4", {"data": 2})])
def test_what_a_folder_stores_lies_as_the_weight_that_it_stands_for(kind, sizes, tmp_path):
    folder = model_files.write(kind, tmp_path)
    mesh = models.make_mesh({"fsdp": 1, **sizes})
    small, plain = (
        models.load(folder, quantize=each, mesh=mesh).params for each in ("stored", None)
    )
    jax.tree.map(np.testing.assert_array_equal, jlora.dequantize(small), plain)
    is_small = lambda leaf: isinstance(leaf, jlora.QuantizedWeight)  # noqa: E731
    leaves = zip(jax.tree.leaves(small, is_leaf=is_small), jax.tree.leaves(plain), strict=True)
    both = [(its, weight) for its, weight in leaves if is_small(its)]
    assert len(both) == {"fp8": 7, "mxfp4": 2}[kind]
    for its, weight in both:
        assert place_of(its).is_equivalent_to(weight.sharding, weight.ndim)


def test_a_mesh_that_cuts_blocks_is_refused_with_counts_that_do_not():
    layout = models.Layout(models.make_mesh({"fsdp": 8}), rules=(("q_proj", P(None, "fsdp")),))
    model = on_one_device("wide llama")
    axes = jlora.trace_axes(model.apply, model.params, np.ones((1, 2), int))
    small = jlora.quantize(model.params, "nf4", targets="q_proj", axes=axes)
    said = "q_proj/kernel: 4 blocks of nf4 along its inputs can't be cut over 8 devices: 1, 2, 4"
    with pytest.raises(ValueError, match=said):
        laid_out(layout, model.config, small)
