"""PEFT's own adapters in jlora, jlora's in PEFT: files, logits and merged weights."""

import copy
import functools
import itertools
import logging
import warnings
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import safetensors.torch
import torch
from random_models import both

import jlora
import jlora.peft
from jlora import models

pytestmark = [
    # PEFT's own
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
]

TOKENS = np.random.default_rng(1).integers(3, 83, (2, 13))
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

ADAPTERS = {
    "attention": {"target_modules": ["q_proj", "v_proj"]},
    "all linear layers": {"target_modules": "all-linear", "use_rslora": True},
    "a regex": {"target_modules": r".*\.[12]\.(self_attn\.q|mlp\.down)_proj"},
    "without some": {
        "target_modules": ALL,
        "exclude_modules": ["layers.1.mlp.up_proj", "k_proj"],
    },
    "one layer": {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": 1},
    "two layers": {
        "target_modules": ["o_proj"],
        "layers_to_transform": [0, 2],
        "layers_pattern": "layers",
    },
    "patterns": {
        "target_modules": ["q_proj", "v_proj", "up_proj"],
        "rank_pattern": {"layers.1.self_attn.q_proj": 2, "v_proj": 5, r".*\.2\.mlp\.up_proj": 6},
        "alpha_pattern": {"up_proj": 9, r"layers.0.self_attn.(q|v)_proj": 4},
        "use_rslora": True,
    },
    "DoRA": {"target_modules": ["q_proj", "down_proj"], "use_dora": True},
    "DoRA in two layers": {
        "target_modules": ["q_proj", "down_proj"],
        "use_dora": True,
        "layers_to_transform": [0, 2],
    },
    "embedding and head": {"target_modules": ["embed_tokens", "lm_head", "q_proj"]},
    "embedding with DoRA": {"target_modules": ["model.embed_tokens", "q_proj"], "use_dora": True},
    "head and norms whole": {
        "target_modules": ["q_proj"],
        "modules_to_save": ["lm_head", "input_layernorm", "model.norm"],
    },
    "embedding whole": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [5, 3, 17]},
    "tokens of both": {
        "target_modules": ["q_proj"],
        "trainable_token_indices": {"embed_tokens": [5, 3], "lm_head": [4]},
    },
    "a weight as a parameter": {
        "target_modules": [],
        "target_parameters": ["q_proj.weight", "mlp.up_proj.weight"],
    },
    "gaussian start": {"target_modules": ["q_proj"], "init_lora_weights": "gaussian"},
    "biases": {"variant": "llama, biases", "target_modules": ["q_proj", "up_proj"], "bias": "all"},
    "biases of targets": {
        "variant": "llama, biases",
        "target_modules": ["q_proj", "up_proj"],
        "bias": "lora_only",
        "modules_to_save": ["o_proj"],
    },
    "mistral": {"variant": "mistral", "target_modules": "all-linear"},
    "qwen2": {"variant": "qwen2", "target_modules": ["k_proj", "up_proj"], "bias": "lora_only"},
    "qwen2, a bias on B": {
        "variant": "qwen2",
        "target_modules": ["q_proj", "v_proj"],
        "lora_bias": True,
        "alpha_pattern": {"layers.1.self_attn.q_proj": 3},
    },
    "gpt2, a bias on B": {
        "variant": "gpt2",
        "target_modules": "all-linear",
        "fan_in_fan_out": True,
        "lora_bias": True,
        "use_rslora": True,
    },
    "qwen3": {
        "variant": "qwen3",
        "target_modules": ["q_proj", "down_proj"],
        "use_dora": True,
        "modules_to_save": ["q_norm", "k_norm"],
    },
    "gemma2": {
        "variant": "gemma2",
        "target_modules": ["o_proj", "gate_proj"],
        "modules_to_save": ["post_feedforward_layernorm", "model.norm"],
    },
    "gemma3_text": {
        "variant": "gemma3_text",
        "target_modules": "all-linear",
        "trainable_token_indices": [8, 2],
    },
    "gemma3, the decoder": {
        "variant": "gemma3",
        "target_modules": r".*language_model.*(q_proj|down_proj)",
        "alpha_pattern": {"down_proj": 3},
        "modules_to_save": ["q_norm"],
    },
    "gemma3n_text": {
        "variant": "gemma3n_text",
        "target_modules": "all-linear",
        "rank_pattern": {"correction_coefs": 2, "prediction_coefs": 3, "modality_router": 3},
        "trainable_token_indices": [8, 2],
    },
    "gemma3n, the decoder": {
        "variant": "gemma3n",
        "target_modules": r".*language_model.*(q_proj|k_proj|altup_projections\.1|linear_left)",
        "modules_to_save": ["post_laurel_norm", "per_layer_projection_norm"],
    },
    "phi3": {
        "variant": "phi3",
        "target_modules": ["qkv_proj", "gate_up_proj"],
        "rank_pattern": {"layers.1.mlp.gate_up_proj": 3},
        "modules_to_save": ["lm_head"],
    },
    "gpt2": {
        "variant": "gpt2",
        "target_modules": ["c_attn", "mlp.c_proj"],
        "fan_in_fan_out": True,
        "bias": "all",
        "modules_to_save": ["ln_2", "c_fc"],
    },
    "gpt2, tokens": {
        "variant": "gpt2",
        "target_modules": "all-linear",
        "fan_in_fan_out": True,
        "use_dora": True,
        "trainable_token_indices": [4],
    },
    "qwen3_moe, experts": {
        "variant": "qwen3_moe",
        "target_modules": ["q_proj"],
        "target_parameters": ["experts.gate_up_proj", "experts.down_proj"],
    },
    "qwen3_moe, one of them and the router": {
        "variant": "qwen3_moe",
        "target_modules": ["v_proj"],
        "target_parameters": ["experts.down_proj", "mlp.gate.weight"],
        "use_rslora": True,
    },
    "gpt_oss, experts": {
        "variant": "gpt_oss",
        "target_modules": ["q_proj", "o_proj"],
        "target_parameters": ["experts.gate_up_proj", "experts.down_proj"],
    },
    "gpt_oss, one of them and the router": {
        "variant": "gpt_oss",
        "target_modules": ["v_proj"],
        "target_parameters": ["experts.gate_up_proj", "router.weight"],
        "use_rslora": True,
    },
    "gemma": {
        "variant": "gemma",
        "target_modules": ["q_proj", "down_proj"],
        "modules_to_save": ["post_attention_layernorm"],
    },
    "mixtral, experts": {
        "variant": "mixtral",
        "target_modules": ["o_proj"],
        "target_parameters": ["experts.gate_up_proj", "experts.down_proj"],
    },
    "ministral": {"variant": "ministral", "target_modules": "all-linear", "use_dora": True},
    "qwen2_moe, experts and the shared one": {
        "variant": "qwen2_moe",
        "target_modules": ["shared_expert.up_proj", "v_proj"],
        "target_parameters": ["experts.down_proj", "mlp.gate.weight"],
        "modules_to_save": ["shared_expert_gate"],
    },
    "olmo2": {
        "variant": "olmo2",
        "target_modules": "all-linear",
        "modules_to_save": ["q_norm", "post_feedforward_layernorm"],
    },
    "olmo3": {"variant": "olmo3", "target_modules": ["k_proj", "o_proj"], "use_rslora": True},
    "granite": {"variant": "granite", "target_modules": "all-linear"},
    "granitemoe, experts": {
        "variant": "granitemoe",
        "target_modules": ["k_proj"],
        "target_parameters": ["experts.gate_up_proj", "block_sparse_moe.router.weight"],
    },
    "smollm3": {
        "variant": "smollm3",
        "target_modules": ["q_proj", "k_proj"],
        "trainable_token_indices": [8, 2],
    },
    "starcoder2": {
        "variant": "starcoder2",
        "target_modules": ["c_fc", "mlp.c_proj", "q_proj"],
        "bias": "all",
        "modules_to_save": ["input_layernorm"],
    },
    "glm4": {
        "variant": "glm4",
        "target_modules": ["gate_up_proj", "q_proj", "v_proj"],
        "bias": "lora_only",
    },
    "cohere": {"variant": "cohere", "target_modules": "all-linear"},
    "cohere2": {
        "variant": "cohere2",
        "target_modules": ["k_proj", "up_proj"],
        "modules_to_save": ["model.norm"],
    },
    "exaone4": {"variant": "exaone4", "target_modules": "all-linear", "use_dora": True},
    "seed_oss": {"variant": "seed_oss", "target_modules": "all-linear", "bias": "all"},
    "ernie4_5": {"variant": "ernie4_5", "target_modules": ["q_proj", "k_proj", "gate_proj"]},
    "hunyuan_v1_dense": {
        "variant": "hunyuan_v1_dense",
        "target_modules": ["q_proj", "down_proj"],
        "modules_to_save": ["query_layernorm"],
    },
    "nemotron": {
        "variant": "nemotron",
        "target_modules": "all-linear",
        "modules_to_save": ["post_attention_layernorm"],
    },
    "arcee": {"variant": "arcee", "target_modules": ["up_proj", "down_proj"]},
    "deepseek_v3, attention": {
        "variant": "deepseek_v3",
        "target_modules": r".*self_attn.*_proj.*",
        "rank_pattern": {r".*\.2\.self_attn\.kv_b_proj": 2},
        "use_dora": True,
        "modules_to_save": ["kv_a_layernorm"],
    },
    "deepseek_v3, experts and the MLPs of their names": {
        "variant": "deepseek_v3",
        "target_modules": ["q_b_proj", "kv_a_proj_with_mqa"],
        "target_parameters": [
            *("experts.gate_up_proj", "mlp.gate.weight"),
            *("mlp.down_proj.weight", "1.mlp.shared_experts.up_proj.weight"),
        ],
        "layers_to_transform": [0, 2],
    },
    "deepseek_v2": {
        "variant": "deepseek_v2",
        "target_modules": ["o_proj", "kv_b_proj"],
        "alpha_pattern": {"layers.1.self_attn.o_proj": 3},
        "modules_to_save": ["shared_experts", "model.norm"],
    },
    "llama4_text": {
        "variant": "llama4_text, alternating",
        "target_modules": ["q_proj", "v_proj"],
        "rank_pattern": {r".*\.3\.self_attn\.q_proj": 2},
        "use_dora": True,
        "modules_to_save": ["post_attention_layernorm"],
        "layers_to_transform": [0, 3, 4],
    },
    "llama4_text, experts and MLPs": {
        "variant": "llama4_text, alternating",
        "target_modules": ["feed_forward.up_proj", "shared_expert.down_proj"],
        "target_parameters": ["experts.gate_up_proj", "router.weight"],
    },
    "llama4, the decoder": {
        "variant": "llama4",
        "target_modules": r".*language_model.*(q_proj|v_proj|down_proj)",
        "target_parameters": ["experts.gate_up_proj"],
    },
    "qwen3_next": {
        "variant": "qwen3_next",
        "target_modules": ["in_proj_qkvz", "out_proj", "q_proj"],
        "target_parameters": ["experts.gate_up_proj", "shared_expert.up_proj.weight"],
        "layers_to_transform": [0, 1, 4],
    },
    "qwen3_moe, some layers dense": {
        "variant": "qwen3_moe, some layers dense",
        "target_modules": ["q_proj"],
        "target_parameters": ["experts.gate_up_proj", "mlp.up_proj.weight"],
    },
    "qwen2_moe, some layers dense": {
        "variant": "qwen2_moe, some layers dense",
        "target_modules": ["mlp.up_proj", "shared_expert.up_proj", "o_proj"],
        "target_parameters": ["experts.down_proj"],
    },
    "tied, attention": {"variant": "llama, tied", "target_modules": ["q_proj"]},
    "tied, embedding": {
        "variant": "llama, tied",
        "target_modules": ["embed_tokens", "q_proj"],
        "ensure_weight_tying": True,
    },
    "tied, embedding whole": {
        "variant": "llama, tied",
        "target_modules": ["q_proj"],
        "modules_to_save": ["embed_tokens"],
        "ensure_weight_tying": True,
    },
    "tied, tokens": {
        "variant": "llama, tied",
        "target_modules": ["q_proj"],
        "trainable_token_indices": [5, 3, 17],
    },
}


class Base(NamedTuple):
    """A random model in torch, the same in jlora, how jlora uses its weights."""

    torch: torch.nn.Module
    model: models.Model
    axes: jlora.TracedAxes
    logits: Callable  # of parameters, compiled once


@functools.cache
def base(variant):
    oracle, model, _ = both(variant)
    tokens, jitted = jnp.asarray(TOKENS), jax.jit(model.apply)
    axes = jlora.trace_axes(model.apply, model.params, tokens)
    return Base(oracle, model, axes, lambda params: jitted(params, tokens))


@pytest.fixture(scope="module", autouse=True)
def _compile_fast():
    """The programs are tiny: XLA's optimisations take longer than all the rest."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


# Those whose logits are computed without merging as well: one of each kind of node.
LIFTED = ("patterns", "DoRA in two layers", "embedding and head", "head and norms whole", "tokens")


def made_by_peft(model, folder, *, r=4, lora_alpha=6, add=False, **options):
    """An adapter of LoRA with random values, and the logits that PEFT computes with it."""
    config = peft.LoraConfig(r=r, lora_alpha=lora_alpha, task_type="CAUSAL_LM", **options)
    return logits_of(adapted_in_peft(model, folder, config, add=add))


def adapted_in_peft(model, folder, config, *, add=False):
    """PEFT's model with random values in its adapter, which is saved."""
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = peft.get_peft_model(copy.deepcopy(model), config)
        for name, value in adapted.named_parameters():
            if value.requires_grad:
                factor = "lora_" in name and "magnitude" not in name and not add
                # in place: a tied adapter's head has the memory of its embedding
                value.data.mul_(0 if factor else 1).add_(torch.randn_like(value) * 0.3)
        adapted.eval().save_pretrained(folder)
    return adapted


def logits_of(model):
    with torch.no_grad():
        return model(torch.tensor(TOKENS)).logits.numpy()


def in_peft(model, folder, caplog):
    """PEFT's model with an adapter that jlora wrote; nothing is said about it."""
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        adapted = peft.PeftModel.from_pretrained(copy.deepcopy(model), folder).eval()
    assert not caplog.records
    return adapted


def assert_near(got, want, tolerance=1e-4):
    assert np.abs(np.asarray(got) - want).max() < tolerance * np.abs(want).max()


def assert_same_tensors(got, want):
    """All but copies: of frozen tables beside an adapter of them, of biases of saved modules."""
    got, want = (
        safetensors.torch.load_file(folder / "adapter_model.safetensors") for folder in (got, want)
    )
    copies = ("base_layer.weight", "modules_to_save.bias", "original_module.bias")
    want = {name: tensor for name, tensor in want.items() if not name.endswith(copies)}
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        assert (got[name].dtype, got[name].shape) == (tensor.dtype, tensor.shape), name
        if "token_adapter" in name:  # the frozen row and what is added to it, in float32
            torch.testing.assert_close(got[name], tensor, rtol=0, atol=1e-7)
        else:
            assert torch.equal(got[name], tensor), name


def assert_merged_alike(params, layout, merged):
    """jlora's merged tree against a merged torch model."""
    theirs = dict(merged.named_parameters())
    from jlora.peft import _names

    compared = set()
    leaves, _ = jlora._paths.flatten(params)
    for name, parameter in _names.layout(layout, None, None).parameters.items():
        ours = parameter.in_torch(
            lambda path, leaf=parameter.parts[0].leaf: leaf.matrices(leaves[path])
        )
        assert_near(ours, theirs[name].detach().numpy(), 1e-5)
        compared.add(name)
    aside = _names.layout(layout, None, None).aside
    assert compared == {n for n in theirs if not n.removeprefix("model.").startswith(aside)}


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
