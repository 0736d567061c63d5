"""PEFT's own adapters in jlora, jlora's in PEFT: files, logits and merged weights."""

import copy
import itertools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import safetensors.torch
import torch
from adapters_of_peft import ADAPTERS
from beside_peft import (
    TOKENS,
    assert_merged_alike,
    assert_near,
    assert_same_tensors,
    base,
    in_peft,
    logits_of,
    made_by_peft,
)

import jlora
import jlora.peft

pytestmark = [
    # PEFT's own
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.usefixtures("compiled_fast"),
]


# Those whose logits are computed without merging as well: one of each kind of node.
LIFTED = ("patterns", "DoRA in two layers", "embedding and head", "head and norms whole", "tokens")


@pytest.mark.parametrize("which", ADAPTERS)
def test_an_adapter_of_peft_is_the_same_in_jlora_and_back(which, tmp_path, caplog):
    options = dict(ADAPTERS[which])
    oracle, model, axes, logits = base(options.pop("variant", "llama"))
    theirs = made_by_peft(oracle, tmp_path / "theirs", **options)
    lora, config = jlora.peft.load(tmp_path / "theirs", model)
    merged = jlora.merge(model.params, lora)
    assert_near(logits(merged), theirs)
    if which in LIFTED:
        assert_near(jlora.lift(model.apply)(model.params, lora, jnp.asarray(TOKENS)), theirs)
    if which != "tokens of both":  # `split` knows no rows of a head
        split = jax.eval_shape(
            lambda key: jlora.split(model.params, config, key, axes=axes)[1], jax.random.key(0)
        )
        assert jax.tree.map(jnp.shape, split) == jax.tree.map(jnp.shape, lora)

    jlora.peft.save(tmp_path / "ours", lora, config, model)
    assert_same_tensors(tmp_path / "ours", tmp_path / "theirs")
    again = in_peft(oracle, tmp_path / "ours", caplog)
    np.testing.assert_allclose(logits_of(again), theirs, atol=1e-5 * np.abs(theirs).max())
    if which != "tied, embedding":  # PEFT adds both adapters to the one weight, and says so
        assert_merged_alike(merged, model, again.merge_and_unload())


@pytest.mark.parametrize(
    "options",
    [
        {"init_lora_weights": "pissa", "use_dora": True},
        {"init_lora_weights": "olora", "use_rslora": True},
        {
            "init_lora_weights": "pissa",
            "rank_pattern": {r"1.self_attn.q_proj": 2},
            "alpha_pattern": {"down_proj": 9, "2.self_attn.q_proj": 5},
        },
    ],
    ids=str,
)
def test_a_start_that_peft_repeats_is_repeated(options, tmp_path, caplog):
    oracle, model, _, logits = base("llama")
    options = {"target_modules": ["q_proj", "down_proj", "model.embed_tokens"], **options}
    theirs = made_by_peft(oracle, tmp_path / "theirs", add=True, **options)
    lora, config = jlora.peft.load(tmp_path / "theirs", model)
    merged = jlora.merge(model.params, lora)
    assert_near(logits(merged), theirs)
    jlora.peft.save(tmp_path / "ours", lora, config, model)
    again = in_peft(oracle, tmp_path / "ours", caplog)
    assert_near(logits_of(again), theirs)
    assert_merged_alike(merged, model, again.merge_and_unload())


def test_a_pattern_means_a_router_by_the_name_of_its_parameter(tmp_path):
    oracle, model, _, logits = base("granitemoe")
    options = {
        "target_modules": ["k_proj"],
        "target_parameters": ["block_sparse_moe.router.weight"],
        "rank_pattern": {r"layers\.[12]\.block_sparse_moe\.router\.weight": 2},
    }
    theirs = made_by_peft(oracle, tmp_path, **options)
    lora, _ = jlora.peft.load(tmp_path, model)
    assert_near(logits(jlora.merge(model.params, lora)), theirs)
    scaling = lora["layers/mlp/router/kernel"].scaling
    np.testing.assert_allclose(scaling[:, :2], [[1.5] * 2, [3] * 2, [3] * 2])
    np.testing.assert_allclose(scaling[1:, 2:], 0)


def test_an_adapter_of_each_experts_own_modules(tmp_path, caplog):
    """As before transformers 5, which PEFT makes into one of the parameters that hold them all."""
    oracle, model, _, logits = base("qwen3_moe")
    torch.manual_seed(3)
    tensors = {}
    for layer, expert in itertools.product(range(3), range(7)):
        for name, wide, high in (("gate", 42, 11), ("up", 42, 11), ("down", 11, 42)):
            prefix = f"base_model.model.model.layers.{layer}.mlp.experts.{expert}.{name}_proj"
            tensors[f"{prefix}.lora_A.weight"] = torch.randn(2, wide) * 0.3
            tensors[f"{prefix}.lora_B.weight"] = torch.randn(high, 2) * 0.3
    peft.LoraConfig(
        r=2, lora_alpha=3, target_modules=["gate_proj", "up_proj", "down_proj"]
    ).save_pretrained(tmp_path / "theirs")
    safetensors.torch.save_file(tensors, tmp_path / "theirs" / "adapter_model.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own patterns, which mean no module
        theirs = peft.PeftModel.from_pretrained(copy.deepcopy(oracle), tmp_path / "theirs")
    lora, config = jlora.peft.load(tmp_path / "theirs", model)
    assert_near(logits(jlora.merge(model.params, lora)), logits_of(theirs))
    jlora.peft.save(tmp_path / "ours", lora, config, model)
    lora, _ = jlora.peft.load(tmp_path / "ours", model)
    assert_near(logits(jlora.merge(model.params, lora)), logits_of(theirs))


MADE_HERE = {
    "all linear layers": {"targets": "all-linear", "dropout": 0.1},
    "ranks by layer": {
        "targets": "q_proj|up_proj",
        "rank_pattern": {"q_proj": (3, 0, 5)},
        "alpha_pattern": {"up_proj": (1.3, 7, 0.7)},
        "rslora": True,
    },
    "layers, DoRA": {"targets": "o_proj|down_proj|head", "layers": None, "method": "dora"},
    "some layers": {"targets": "attn/", "layers": (0, 2), "alpha": 0.3},
    "norms, head and tokens": {
        "targets": "v_proj",
        "train": ("norm", "head"),
        "tokens": {"embed": (7, 2)},
    },
    "in bfloat16": {"targets": "v_proj|embed", "dtype": "bfloat16"},
}


@pytest.mark.parametrize("which", MADE_HERE)
def test_an_adapter_of_jlora_is_the_same_in_peft(which, tmp_path, caplog):
    oracle, model, axes, logits = base("llama")
    config = jlora.LoraConfig(**{"rank": 4, **MADE_HERE[which]})
    frozen, lora = jlora.split(model.params, config, jax.random.key(0), axes=axes)
    trains = jlora.mask(lora)
    lora = jax.tree.map(
        lambda leaf, train: (
            leaf + 0.3 * jax.random.normal(jax.random.key(leaf.size), leaf.shape, leaf.dtype)
            if train
            else leaf
        ),
        lora,
        trains,
    )
    merged = jlora.merge(frozen, lora)
    jlora.peft.save(tmp_path / "ours", lora, config, model)
    theirs = in_peft(oracle, tmp_path / "ours", caplog)
    assert_near(logits(merged), logits_of(theirs))
    assert_merged_alike(merged, model, theirs.merge_and_unload())


def test_a_parameter_beside_modules_is_not_saved_as_if_it_were_one(tmp_path):
    _, model, axes, _ = base("gpt_oss")
    config = jlora.LoraConfig(targets="q_proj/kernel", train="sinks", rank=2)
    _, lora = jlora.split(model.params, config, jax.random.key(0), axes=axes)
    told = r"self_attn\.sinks stands beside the modules of model\.layers\.0\.self_attn: PEFT"
    with pytest.raises(ValueError, match=told):
        jlora.peft.save(tmp_path / "ours", lora, config, model)
