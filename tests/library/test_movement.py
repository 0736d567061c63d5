"""Law 1 on what moves a weight about before a product: exact movements keep it factored."""

import warnings

import jax.numpy as jnp
import pytest
from jax import lax
from laws import adapted, check_law_1
from test_products import AXES, PARAMS, X, Y

import jlora

EXACT = {
    "transpose twice": lambda p: X @ p["w"].T.T,
    "reshape of outputs": lambda p: jnp.einsum("bi,iho->bho", X, p["w"].reshape(7, 11, 1)),
    "heads flattened": lambda p: X @ p["h"].reshape(7, 26),
    "heads flattened and parted": lambda p: jnp.einsum(
        "bi,ihd->bhd", X, p["h"].reshape(7, 26).reshape(7, 13, 2)
    ),
    "inputs flattened": lambda p: jnp.ones((5, 26)) @ p["o"].reshape(26, 7),
    "a new dimension": lambda p: jnp.einsum("bi,xio->xbo", X, p["w"][None]),
    "broadcast": lambda p: jnp.einsum(
        "ebi,eio->ebo", jnp.stack([X] * 3), jnp.broadcast_to(p["w"], (3, 7, 11))
    ),
    "squeeze": lambda p: X @ p["s"][1:2].squeeze(0),
    "one of a stack": lambda p: X @ p["s"][1],
    "one of a stack, at run time": lambda p: X @ p["s"][jnp.int32(2)],
    "a stack by indices": lambda p: jnp.einsum("bi,bio->bo", X, p["s"][jnp.array([0, 2, 1, 1, 0])]),
    "slices": lambda p: X[:, 1:4] @ p["w"][1:4, ::3],
    "slices at run time": lambda p: X[:, 1:4] @ lax.dynamic_slice(p["w"], (1, 2), (3, 4)),
    "split": lambda p: [X @ part for part in jnp.split(p["w"], [3, 4], axis=1)],
    "fused": lambda p: X @ jnp.concatenate([p["w"], p["v"][:, :3], jnp.ones((7, 2))], axis=1),
    "fused, transposed": lambda p: (
        jnp.concatenate([Y, Y], 1) @ jnp.concatenate([p["w"], p["v"]], 1).T
    ),
    "fused along inputs": lambda p: (
        jnp.concatenate([X, X], 1) @ jnp.concatenate([p["w"], p["v"]], 0)
    ),
    "fused and split": lambda p: [
        X @ part for part in jnp.split(jnp.concatenate([p["w"], p["v"]], 1), [3, 14], axis=1)
    ],
    "stacked": lambda p: jnp.einsum("bi,eio->ebo", X, jnp.stack([p["w"], p["v"]])),
    "stacked with a plain one": lambda p: jnp.einsum(
        "bi,ieo->beo", X, jnp.stack([p["w"], jnp.ones((7, 11))], axis=1)
    ),
    "a stack made longer": lambda p: jnp.einsum(
        "bi,eio->ebo", X, jnp.concatenate([p["s"], p["w"][None]])
    ),
    "cast": lambda p: X @ p["w"].astype(jnp.float32).astype(jnp.float32),
    "stop_gradient": lambda p: X @ lax.stop_gradient(p["w"]) + X @ p["v"],
    "barrier": lambda p: X @ lax.optimization_barrier(p["w"]),
    "scalars": lambda p: X @ (2.0 * -p["w"] / 3.0 - p["v"] * jnp.float32(0.5)),
    "a scale for each output": lambda p: X @ (p["w"] * Y[0][None, :]),
    "a scale for each input": lambda p: X @ (p["w"] / X[0][:, None]),
    "a scale for each layer": lambda p: jnp.einsum(
        "bi,eio->ebo", X, p["s"] * X[0, :3][:, None, None]
    ),
    "sums": lambda p: X @ (p["w"] + p["v"] - jnp.ones((7, 11))),
    "sums of rows": lambda p: p["w"].sum(0) + p["w"].sum(),
    "a gather that fills, of a repeated weight": lambda p: jnp.einsum(
        "bi,eio->ebo",
        X,
        jnp.broadcast_to(p["w"], (3, 7, 11)).at[jnp.array([0, 9])].get(mode="fill", fill_value=0),
    ),
    "a norm": lambda p: jnp.sqrt((p["w"] * p["w"]).sum(0)),
    "chosen whole": lambda p: X @ jnp.where(X[0, 0] > 0, p["w"], p["v"]),
}


@pytest.mark.parametrize("name", EXACT)
def test_an_exact_movement_keeps_the_weight_factored(name):
    frozen, lora = adapted(PARAMS, AXES, rank=2)
    check_law_1(EXACT[name], frozen, lora)


MERGED = {
    "a reshape across inputs and outputs": lambda p: X @ p["w"].reshape(11, 7).T,
    "a mask": lambda p: X @ (p["w"] * (jnp.arange(77).reshape(7, 11) % 3 > 0)),
    "a function": lambda p: jnp.sin(p["w"]),
    "a sort": lambda p: X @ jnp.sort(p["w"], axis=0),
    "a cumulative sum": lambda p: jnp.cumsum(p["w"], axis=1),
    "the weight itself": lambda p: p["w"],
}


@pytest.mark.parametrize("name", MERGED)
def test_any_other_operation_gets_the_merged_weight(name):
    frozen, lora = adapted(PARAMS, AXES, rank=2)
    report = jlora.explain(MERGED[name], frozen, lora)
    assert report.materialised >= 1
    check_law_1(MERGED[name], frozen, lora, merged=report.materialised)


def test_a_merged_weight_is_told_once_with_leaf_operation_and_line():
    frozen, lora = adapted(PARAMS, AXES, rank=2)
    with pytest.warns(jlora.MaterialisedWarning) as told:
        jlora.lift(lambda p: jnp.sin(p["w"]))(frozen, lora)
    [message] = [str(warning.message) for warning in told]
    assert "w was merged for `sin` at test_movement.py:" in message


def test_strict_raises_instead_of_merging():
    frozen, lora = adapted(PARAMS, AXES, rank=2)
    with pytest.raises(ValueError, match=r"strict: w would be merged for `sin` at test_movement"):
        jlora.lift(lambda p: jnp.sin(p["w"]), strict=True)(frozen, lora)


def test_a_weight_asked_only_for_its_shape_is_not_used():
    frozen, lora = adapted(PARAMS, AXES, rank=2)
    fn = lambda p: X @ p["w"] * jnp.zeros_like(p["v"]).sum()  # noqa: E731
    assert [use.path for use in jlora.explain(fn, frozen, lora).uses] == ["w"]


def test_a_parameter_that_a_later_jax_adds_falls_back_to_the_merged_weight(monkeypatch):
    from jlora._lift import _walk

    known = _walk.RULES["transpose"]
    later = _walk.Rule(known.apply, known.reads | {"of_the_future"}, known.carries)
    monkeypatch.setitem(_walk.RULES, "transpose", later)
    frozen, lora = adapted(PARAMS, AXES, rank=2)
    fn = lambda p: Y @ p["w"].T  # noqa: E731
    with pytest.warns(jlora.MaterialisedWarning, match="no parameter of_the_future"):
        got = jlora.lift(fn)(frozen, lora)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert jnp.allclose(got, fn(jlora.merge(frozen, lora)), rtol=1e-5)
