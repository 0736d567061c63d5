"""A configuration is checked when it is made, and every mistake is told at once."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

import jlora


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"rank": 0}, "rank is 0: expected a whole number of at least 1"),
        ({"rank": -3}, "rank is -3: expected a whole number of at least 1"),
        ({"rank": 2.5}, "rank is 2.5: expected a whole number of at least 1"),
        ({"rank": True}, "rank is True: expected a whole number of at least 1"),
        ({"alpha": 0}, "alpha is 0: expected a number above 0"),
        ({"alpha": float("nan")}, "alpha is nan: expected a number above 0"),
        ({"alpha": float("inf")}, "alpha is inf: expected a number above 0"),
        ({"alpha": "16"}, "alpha is '16': expected a number above 0"),
        ({"targets": ""}, "targets is empty: expected a pattern"),
        ({"targets": ()}, "targets is empty: expected a pattern"),
        ({"targets": ("",)}, "targets is empty: expected a pattern"),
        ({"targets": ("all-linear", "w")}, "targets has 'all-linear' among patterns"),
        ({"targets": 8}, "targets is 8: expected a pattern or several, as text"),
        ({"targets": ("q", 8)}, "targets is ('q', 8): expected a pattern or several, as text"),
        ({"exclude": b"head"}, "exclude is b'head': expected a pattern or several, as text"),
        ({"layers": ()}, "layers is (): expected whole numbers from 0 on"),
        ({"layers": (-1,)}, "layers is (-1,): expected whole numbers from 0 on"),
        ({"rank_pattern": {"q": 0}}, "rank of 'q' is 0: expected a whole number of at least 1"),
        ({"rank_pattern": {"q": (0, 0)}}, "rank of 'q' is 0 in every layer: exclude it instead"),
        ({"alpha_pattern": {"q": -1}}, "alpha of 'q' is -1: expected a number above 0"),
        ({"method": "dara"}, "method is 'dara': expected lora or dora"),
        ({"bias": True}, "bias is True: expected none or adapted or all or lora"),
        ({"init": "pisa"}, "init is 'pisa', but 'lora' takes kaiming, gaussian, orthogonal, pissa"),
        ({"dropout": -0.1}, "dropout is -0.1: expected a number from 0 to below 1"),
        ({"tokens": {"embed": (3, 3)}}, "tokens of 'embed' are (3, 3): expected different"),
        ({"train": 3}, "train is 3: expected a pattern or several, as text"),
        (
            {"options": {"d": {"k": 3}}},
            "options are {'d': {'k': 3}}: expected numbers, texts, None",
        ),
        (
            {"options": {"d": (1, {2})}},
            "options are {'d': (1, {2})}: expected numbers, texts, None",
        ),
        ({"rank": np.float64(2)}, "rank is 2.0: expected a whole number of at least 1"),
        ({"rank": np.array([8])}, "rank is (8,): expected a whole number of at least 1"),
        ({"dtype": "int32"}, "dtype is 'int32': expected a float type"),
        ({"dtype": "float31"}, "dtype is 'float31': expected a float type"),
    ],
)
def test_a_value_out_of_range_is_told(wrong, said):
    with pytest.raises(ValueError, match=r"^LoraConfig: ") as error:
        jlora.LoraConfig(**{"targets": "kernel", **wrong})
    assert said in str(error.value)


def test_all_mistakes_are_told_at_once():
    with pytest.raises(ValueError, match="LoraConfig") as error:
        jlora.LoraConfig(targets="", rank=0, alpha=-1, dtype="int8")
    for field in ("targets", "rank", "alpha", "dtype"):
        assert f"{field} is " in str(error.value)


def test_a_configuration_survives_json():
    config = jlora.LoraConfig(
        targets=("q", "v"), rank=3, alpha=7, exclude=("k",), dtype="bfloat16", layers=(1, 2),
        rank_pattern={"q": (1, 2), "v": 4}, alpha_pattern={"q": (1.0, 2.5)}, tokens={"e": (5, 6)},
    )  # fmt: skip
    fields = json.loads(json.dumps(dataclasses.asdict(config)))
    assert jlora.LoraConfig(**fields) == config


def test_a_configuration_is_hashable_so_that_jit_may_hold_it():
    one = jlora.LoraConfig(targets=["q", "v"], rank=3)
    assert hash(one) == hash(jlora.LoraConfig(targets=("q", "v"), rank=3))


def test_numbers_of_numpy_and_jax_are_numbers():
    config = jlora.LoraConfig(
        targets="q", rank=np.int64(8), alpha=np.float32(16), dropout=np.float64(0.5),
        rank_pattern={"q": [np.int32(1), jnp.int32(2)]}, layers=np.arange(2),
        tokens={"e": range(3)},
    )  # fmt: skip
    assert config == jlora.LoraConfig(
        targets="q", rank=8, alpha=16.0, dropout=0.5, rank_pattern={"q": (1, 2)}, layers=(0, 1),
        tokens={"e": (0, 1, 2)},
    )  # fmt: skip
    assert {type(each) for each in (config.rank, *config.layers, *config.rank_pattern["q"])} == {
        int
    }
    assert jlora.LoraConfig(**json.loads(json.dumps(dataclasses.asdict(config)))) == config


def test_alphas_below_one_and_layers_of_alpha_zero_are_taken():
    config = jlora.LoraConfig(targets="q", rank=4, alpha=0.5, alpha_pattern={"mlp": (0, 0.25)})
    assert config.scaling_for("attn/q", 4) == 0.125
    assert [config.scaling_for("mlp", 2, layer) for layer in (0, 1)] == [0, 0.125]
    assert config.scaling_for("mlp", 2) == 0  # of a leaf that is no stack


def test_scaling_is_alpha_over_rank_or_over_its_root():
    config = jlora.LoraConfig(targets="q", rank=4, alpha=6, alpha_pattern={"mlp": 3, "m": 9})
    assert config.scaling_for("attn/q", 4) == 1.5
    assert config.scaling_for("mlp/up", 2) == 1.5
    rooted = dataclasses.replace(config, rslora=True)
    assert rooted.scaling_for("attn/q", 4) == 3
    assert rooted.scaling_for("m/up", 9) == 3


def test_configurations_are_equal_to_their_like_alone():
    one = jlora.LoraConfig(targets="q", rank=4)
    assert one == jlora.LoraConfig(targets="q", rank=4)
    assert one != dataclasses.replace(one, rank=5)
    assert one != 4
    assert one != "q"
    assert len({hash(dataclasses.replace(one, rank=rank)) for rank in range(1, 9)}) > 4


@pytest.mark.parametrize("rslora", [False, True])
def test_alpha_for_a_scaling_is_what_gives_it(rslora):
    config = jlora.LoraConfig(targets="w", rank=4, alpha=6.0, rslora=rslora)
    for rank in (1, 4, 9):
        scaling = config.scaling_for("w", rank)
        assert scaling == 6.0 / (rank**0.5 if rslora else rank)
        assert config.alpha_for(scaling, rank) == pytest.approx(6.0)


def test_the_dtype_is_kept_by_its_name():
    assert jlora.LoraConfig(targets="w", dtype=jnp.bfloat16).dtype == "bfloat16"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"alpha": (1.0, 2.0)}, r"alpha is \(1.0, 2.0\): expected a number above 0"),
        (
            {"targets": lambda path, leaf: True, "train": "("},
            r"train '\(' is no regular expression",
        ),
        ({"rank_pattern": {"(": 3}}, r"rank_pattern '\(' is no regular expression"),
        ({"alpha_pattern": {"(": 3}}, r"alpha_pattern '\(' is no regular expression"),
        ({"tokens": {"e": (-1,)}}, r"tokens of 'e' are \(-1,\): expected different numbers"),
        ({"tokens": {"e": ()}}, r"tokens of 'e' are \(\): expected different numbers"),
        ({"dtype": "words"}, "dtype is 'words': expected a float type"),
    ],
)
def test_a_value_that_can_not_be_is_named_with_its_field(options, said):
    with pytest.raises(ValueError, match=said):
        jlora.LoraConfig(**{"targets": "w", **options})
