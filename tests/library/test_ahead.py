"""The rules by which ``python -m benchmarks.ahead`` lays a llama out: no compiler is needed."""

import jax
import pytest
from jax.sharding import AbstractMesh, NamedSharding

from benchmarks._shared.llamas import LLAMAS, outlined
from benchmarks.ahead._compiled import needed
from benchmarks.ahead._layout import FSDP, RULES, SHARING, TENSOR, shardings_of, spec_of
from benchmarks.ahead._slices import SLICES
from jlora.trainer._flops import flops


@pytest.mark.parametrize("name", SHARING)
def test_one_rule_cuts_each_parameter_evenly_on_every_slice(name):
    params = outlined(LLAMAS[name]).params
    for each in (each for slices in SLICES.values() for each in slices):
        tensor = min(SHARING[name], each.chips)
        mesh = AbstractMesh((each.chips // tensor, tensor), (FSDP, TENSOR))

        def check(leaf, sharding):
            assert isinstance(sharding, NamedSharding)
            sharding.shard_shape(leaf.shape)  # raises where a dimension does not divide

        jax.tree.map(check, params, shardings_of(params, mesh))


def test_every_rule_is_of_use():
    leaves = jax.tree_util.tree_leaves_with_path(outlined(LLAMAS["8B"]).params)
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    assert {spec_of(path) for path in paths} == {spec for _, spec in RULES}


@pytest.mark.parametrize("path", ["layers/attn/k_proj/bias", "embed/embedding/norm/scale/extra"])
def test_a_parameter_without_a_rule_is_named(path):
    with pytest.raises(ValueError, match=rf"{path}: expected one rule, found \[\]"):
        spec_of(path)


def test_products_under_a_scan_count_each_time():
    def scanned(x, w):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0]

    jaxpr = jax.make_jaxpr(scanned)(jax.numpy.ones((7, 11)), jax.numpy.ones((3, 11, 11)))
    assert flops(jaxpr.jaxpr) == 3 * 2 * 7 * 11 * 11
    assert flops(jaxpr.jaxpr, loops_once=True) == 2 * 7 * 11 * 11


@pytest.mark.parametrize(
    "message",
    [
        "the total memory required for HLO temporaries (16.50G) exceeds available HBM (15.75G).",
        "Ran out of memory in memory space hbm. Used 16.50G of 15.75G hbm.",
    ],
)
def test_what_does_not_fit_is_read_from_the_compilers_error(message):
    assert needed(message) == 33 * 2**29


def test_other_errors_of_the_compiler_are_no_answer():
    with pytest.raises(RuntimeError, match="not for memory: INTERNAL"):
        needed("INTERNAL: something else")
