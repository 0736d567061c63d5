"""Patterns find leaves by their paths, and what they find is adapted or named in an error."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jlora

KEY = jax.random.key(0)


def tree():
    return {
        "layers": [
            {"q_proj": {"kernel": jnp.ones((7, 11)), "bias": jnp.ones(11)}},
            {"q_proj": {"kernel": jnp.ones((7, 11)), "bias": jnp.ones(11)}},
        ],
        "head": {"kernel": jnp.ones((11, 13))},
        "table": jnp.ones((7, 11), "int32"),
        "heads": jnp.ones((7, 3, 5)),
    }


def adapted(**config):
    _, lora = jlora.split(tree(), jlora.LoraConfig(**{"rank": 2, **config}), KEY)
    return list(lora)


def refused(error=ValueError, **config):
    with pytest.raises(error) as refusal:
        adapted(**config)
    return str(refusal.value)


def test_a_pattern_is_searched_in_the_path():
    assert adapted(targets="kernel") == [
        "head/kernel",
        "layers/0/q_proj/kernel",
        "layers/1/q_proj/kernel",
    ]
    assert adapted(targets="^head/") == ["head/kernel"]
    assert adapted(targets=r"layers/\d/q_proj") == adapted(targets="q_proj/kernel")
    assert adapted(targets=("head/", "layers/1")) == ["head/kernel", "layers/1/q_proj/kernel"]


def test_exclude_takes_leaves_out():
    assert adapted(targets="kernel", exclude="head") == adapted(targets="q_proj")
    assert adapted(targets="kernel", exclude=("head", "layers/0")) == ["layers/1/q_proj/kernel"]


def test_a_bias_beside_its_kernel_is_passed_over():
    assert adapted(targets="layers/0") == ["layers/0/q_proj/kernel"]


def test_a_pattern_that_matches_nothing_names_the_nearest_paths():
    said = refused(targets="q_porj")
    assert said.startswith("targets 'q_porj' matches none of the 7 paths. The nearest: ")
    nearest = said.partition("The nearest: ")[2]
    assert nearest.startswith("layers/0/q_proj/bias, layers/0/q_proj/kernel, layers/1/q_proj/bias")


def test_each_of_several_patterns_must_match():
    assert "'v_proj' matches none" in refused(targets=("q_proj", "v_proj"))
    assert "exclude 'v_proj' matches none" in refused(targets="kernel", exclude="v_proj")


def test_a_pattern_that_is_no_regular_expression_is_told():
    assert "targets 'q_proj(' is no regular expression" in refused(targets="q_proj(")
    assert "exclude '*' is no regular" in refused(targets="q_proj", exclude="*")


def test_a_rank_larger_than_the_matrix_is_told():
    assert "head/kernel is a matrix of 11 x 13: rank 12 is larger than it" in refused(
        targets="head/", rank=12
    )
    assert adapted(targets="head/", rank=11) == ["head/kernel"]


def test_a_matrix_that_no_axes_speak_of_is_said_to_be_taken_for_one():
    """It may be a stack of vectors, as norms of layers are."""
    hint = (
        "It is taken as (in, out): if it is a stack of vectors, as norms of layers are, pass axes"
    )
    config = jlora.LoraConfig(targets="norm", rank=8)
    params = {"norm": jnp.ones((3, 11)), "w": jnp.ones((11, 11))}
    for axes in (None, {"w": jlora.Axes()}):
        with pytest.raises(ValueError, match="norm is a matrix of 3 x 11") as refusal:
            jlora.split(params, config, KEY, axes=axes)
        assert hint in str(refusal.value)
    with pytest.raises(ValueError, match="norm is a matrix of 3 x 11") as refusal:
        jlora.split(params, config, KEY, axes={"norm": jlora.Axes()})
    assert hint not in str(refusal.value)


def test_a_leaf_that_holds_no_floats_is_told():
    assert "table is of dtype int32: expected a floating type" in refused(targets="table")


def test_three_dimensions_without_axes_ask_for_trace_axes():
    said = refused(targets="heads")
    assert "heads has shape (7, 3, 5)" in said
    assert "Pass axes=jlora.trace_axes(fn, params, *args)" in said


def test_all_misfits_are_told_at_once():
    said = refused(targets=".", rank=8)
    for line in (
        "layers/0/q_proj/kernel is a matrix of 7 x 11: rank 8 is larger",
        "layers/1/q_proj/kernel is a matrix of 7 x 11: rank 8 is larger",
        "table is of dtype int32",
        "heads has shape (7, 3, 5)",
    ):
        assert line in said
    assert "head/kernel" not in said


def test_a_pattern_that_finds_only_biases_says_what_it_found():
    said = refused(targets="bias")
    assert "leaves no weight to adapt" in said
    assert "layers/0/q_proj/bias, layers/1/q_proj/bias" in said
    assert "head/kernel" in said


def test_excluding_everything_is_told():
    assert "leaves no weight to adapt" in refused(targets="head/", exclude="head/")


def test_two_leaves_of_one_path_are_told():
    params = {"a": {"b": jnp.ones((7, 11))}, "a/b": jnp.ones((7, 11))}
    with pytest.raises(ValueError, match="two leaves of the tree have the path 'a/b'"):
        jlora.split(params, jlora.LoraConfig(targets="a"), KEY)


def test_a_leaf_of_unclear_use_is_named_with_what_was_seen():
    params = {"gate": jnp.ones((7, 11)), "out": jnp.ones((11, 13))}
    axes = jlora.trace_axes(
        lambda p, x: x @ jnp.sin(p["gate"]) @ p["out"], params, jnp.ones((5, 7))
    )
    config = jlora.LoraConfig(targets="gate|out", rank=2)
    with pytest.warns(UserWarning, match=r"gate is adapted as \(in, out\), but .*: `sin` at"):
        lora = jlora.split(params, config, KEY, axes=axes)[1]
    assert [node.axes for node in lora.values()] == [jlora.Axes()] * 2
    by_hand = axes | {"gate": jlora.Axes((1,), (0,))}
    lora = jlora.split(params, config, KEY, axes=by_hand)[1]
    assert lora["gate"].axes == jlora.Axes((1,), (0,))


def test_axes_by_hand_for_one_leaf_take_no_other_out():
    params = {"c": jnp.ones((7, 2, 5)), "w": jnp.ones((7, 5)), "w_bias": jnp.ones(5)}
    config = jlora.LoraConfig(targets="c|w", rank=2)
    by_hand = {"c": jlora.Axes((0,), (1, 2))}
    lora = jlora.split(params, config, KEY, axes=by_hand)[1]
    assert {path: node.axes for path, node in lora.items()} == by_hand | {"w": jlora.Axes()}
    with pytest.raises(ValueError, match=r"c has shape \(7, 2, 5\): which .* \{\.\.\., 'c': jlora"):
        jlora.split(params, config, KEY, axes={"w": jlora.Axes()})
    with pytest.raises(ValueError, match=r"leaves no weight to adapt.*The weights are: c, w$"):
        jlora.split(params, jlora.LoraConfig(targets="bias"), KEY, axes=by_hand)


def test_a_leaf_of_unclear_use_and_more_dimensions_needs_its_axes():
    params = {"gate": jnp.ones((3, 7, 11))}
    axes = jlora.trace_axes(lambda p, x: x @ jnp.sin(p["gate"]), params, jnp.ones((5, 7)))
    config = jlora.LoraConfig(targets="gate", rank=2)
    with pytest.raises(ValueError, match=r"gate: .*Give its axes \(axes \| \{'gate': jlora\.Axes"):
        jlora.split(params, config, KEY, axes=axes)


def test_axes_of_another_number_of_dimensions_are_told():
    with pytest.raises(ValueError, match=r"w has shape \(7, 11\), but its axes .* of 3 dimensions"):
        jlora.split(
            {"w": jnp.ones((7, 11))},
            jlora.LoraConfig(targets="w"),
            KEY,
            axes={"w": jlora.Axes(inputs=(1,), outputs=(2,), stack=(0,))},
        )


@pytest.mark.parametrize(
    ("dims", "said"),
    [
        ({"inputs": (0,), "outputs": (0,)}, "exactly one of inputs, outputs and stack"),
        ({"inputs": (0,), "outputs": (2,)}, "exactly one of inputs, outputs and stack"),
        ({"inputs": (0, 1), "outputs": ()}, "needs an input and an output"),
        ({"inputs": (), "outputs": (0,)}, "needs an input and an output"),
    ],
)
def test_axes_that_cannot_be_are_refused(dims, said):
    with pytest.raises(ValueError, match=said):
        jlora.Axes(**dims)


def test_axes_may_be_given_as_lists():
    axes = jlora.Axes([np.int64(1)], [2], stack=[0])
    assert axes == jlora.Axes((1,), (2,), (0,))
    assert hash(axes) == hash(jlora.Axes((1,), (2,), (0,)))
    config = jlora.LoraConfig(targets="w", rank=2)
    lora = jlora.split({"w": jnp.ones((3, 7, 5))}, config, KEY, axes={"w": axes})[1]
    assert lora["w"].a.shape == (3, 7, 2)


def test_targets_may_be_a_function_of_path_and_leaf():
    assert adapted(targets=lambda path, leaf: "q_proj" in path and leaf.ndim == 2) == [
        "layers/0/q_proj/kernel",
        "layers/1/q_proj/kernel",
    ]
    assert "is True for none of the 7 leaves" in refused(targets=lambda path, leaf: False)


# all-linear: what trace_axes sees in products, without embeddings and heads


class Classifier(nn.Module):
    """An embedding, blocks on a residual stream, one or two heads."""

    heads: int = 1

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(13, 8)(tokens)
        for _ in range(2):
            x = x + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x))
            x = x + nn.Dense(8)(nn.gelu(nn.Dense(16)(x)))
        out = [nn.Dense(5 + head, name=f"head_{head}")(x) for head in range(self.heads)]
        return out or x


def linear(fn, params, *args, **config):
    axes = jlora.trace_axes(fn, params, *args)
    config = jlora.LoraConfig(targets="all-linear", rank=2, **config)
    return set(jlora.split(params, config, KEY, axes=axes)[1])


BLOCKS = {
    *(f"params/Dense_{at}/kernel" for at in range(4)),
    *(
        f"params/MultiHeadDotProductAttention_{at}/{name}/kernel"
        for at in range(2)
        for name in ("query", "key", "value", "out")
    ),
}


@pytest.mark.parametrize("heads", [0, 1, 2])
def test_all_linear_leaves_embeddings_and_heads_alone(heads):
    model, tokens = Classifier(heads), jnp.ones((2, 3), "int32")
    params = model.init(KEY, tokens)
    assert linear(model.apply, params, tokens) == BLOCKS
    assert linear(jax.jit(model.apply), params, tokens) == BLOCKS
    if heads == 1:

        def loss(params, tokens):
            return jax.nn.log_softmax(model.apply(params, tokens)[0]).mean()

        assert linear(loss, params, tokens) == BLOCKS
        some = linear(loss, params, tokens, exclude="Attention")
        assert some == {path for path in BLOCKS if "Attention" not in path}


def test_all_linear_in_scanned_layers_with_a_tied_table():
    params = {"table": jnp.ones((13, 8)), "layers": jnp.ones((3, 8, 8)), "norm": jnp.ones(8)}

    def fn(p, tokens):
        x = jax.lax.scan(lambda x, w: (x + x @ w, None), p["table"][tokens], p["layers"])[0]
        return (x * p["norm"]) @ p["table"].T

    assert linear(fn, params, jnp.ones((2, 5), "int32")) == {"layers"}


def test_all_linear_needs_the_axes():
    assert "Pass axes=jlora.trace_axes(fn, params, *args)" in refused(targets="all-linear")


# What else a configuration may ask of leaves


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"train": "q_proj"}, "layers/0/q_proj/kernel is asked to be adapted in two ways"),
        ({"train": "table"}, "table is of dtype int32: expected a floating type to train"),
        ({"train": "nothing"}, "train 'nothing' matches none of the 7 paths"),
        ({"tokens": {"heads": (1,)}}, "heads has shape (7, 3, 5): expected a table of rows"),
        ({"tokens": {"head/kernel": (11,)}}, "head/kernel has 11 rows: tokens names row 11"),
        ({"layers": (1,), "targets": "head/"}, "neither a stack nor a number in its path"),
        ({"layers": (5,)}, "leaves no weight to adapt"),
        ({"rank_pattern": {"k_proj": 3}}, "rank_pattern 'k_proj' matches none of the 4 paths"),
        ({"alpha_pattern": {"k_proj": 3}}, "alpha_pattern 'k_proj' matches none of the 4 paths"),
        ({"rank_pattern": {"q_proj": (1, 2)}}, "has no layers stacked, but rank_pattern names 2"),
        ({"rank_pattern": {"q_proj": 9}}, "is a matrix of 7 x 11: rank 9 is larger than it"),
    ],
)
def test_what_cannot_be_is_one_clear_error(config, said):
    assert said in refused(**{"targets": "q_proj", **config})


def test_a_bias_that_is_nowhere_is_an_error():
    said = refused(targets="head/kernel", bias="adapted")
    assert "bias is 'adapted', but no leaf is called bias or b there" in said


def test_one_array_in_two_leaves_is_not_torn_apart():
    table = jnp.ones((7, 11))
    params = {"embed": table, "head": table, "other": {"w": jnp.ones((7, 11))}}
    config = jlora.LoraConfig(targets="w", rank=2, train="head")
    with pytest.raises(ValueError, match="embed and head are one array: if they are tied, give"):
        jlora.split(params, config, jax.random.key(0))
    jlora.split(params, jlora.LoraConfig(targets="w", rank=2), jax.random.key(0))
    jlora.split({**params, "head": table.copy()}, config, jax.random.key(0))
