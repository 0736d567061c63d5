"""Exported folders opened by transformers: the same logits, tokens and conversations."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from random_models import TOKENS, both, opened_by_transformers

import jlora
from jlora import checkpoint, models

TEXTS = [
    "In 1984 there were 1,024 reasons; 3.14159 of them irrational.\n\n\tdef f(x):\n  return x**2\n",
    "  leading spaces, naïve café — 東京 🚀👩‍👩‍👧 ﬁns",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
]
MESSAGES = [
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "Sure?"},
]


def trained(model, **options):
    """A strong random adapter."""
    axes = jlora.trace_axes(model.apply, model.params, jnp.zeros((1, 4), int))
    config = jlora.LoraConfig(**{"targets": "all-linear", "rank": 3, **options})
    _, lora = jlora.split(model.params, config, jax.random.key(0), axes=axes)
    return {
        path: dataclasses.replace(
            node, **{name: moved(getattr(node, name)) for name in node.trainable}
        )
        for path, node in lora.items()
    }


def moved(array):
    return array + 0.1 * np.random.default_rng(array.size).normal(size=array.shape).astype("f")


def assert_same_logits(model, lora, folder, tokens):
    """Of transformers on the folder, of jlora on the merged parameters; nothing is left over."""
    theirs, loading = opened_by_transformers(
        folder,
        dtype=torch.float32,
        attn_implementation="eager",
        experts_implementation="eager",  # torch's own takes multiples of 16 bytes alone
        output_loading_info=True,
    )
    assert not any(loading.values())
    with torch.no_grad():
        want = theirs.eval()(torch.tensor(tokens)).logits.numpy()
    merged = jlora.merge(model.params, lora)
    apply = jax.jit(model.apply)
    got, base = (np.asarray(apply(p, jnp.asarray(tokens))) for p in (merged, model.params))
    assert np.abs(got - base).max() > 0.1 * base.std()  # the adapter does something
    assert np.abs(got - want).max() < 1e-3 * want.std()


FAMILIES = {
    "llama": {"method": "dora", "tokens": {"embed": (5, 17)}, "train": "norm|head"},
    "llama, tied": {"targets": "embed|_proj"},
    "mistral": {},
    "qwen2": {"train": "bias"},
    "qwen3": {},
    "qwen3_moe": {},
    "gemma2": {},
    "gemma3_text": {},
    "gemma3": {},
    "gemma3n_text": {"train": "layer_input/scale"},
    "gemma3n": {"targets": "layers/.*_proj", "layers": (0, 3, 6)},
    "phi3, longrope, a long text": {},
    "llama, yarn": {},
    "phi3": {},
    "gpt2": {"bias": "all"},
    "gpt_oss": {"targets": "layers/.*kernel", "train": "sinks|experts/.*/bias"},
    "gemma": {},
    "mixtral": {},
    "ministral": {},
    "qwen2_moe": {"exclude": "shared_gate"},
    "olmo2": {"train": "norm"},
    "olmo3": {},
    "granite": {},
    "granitemoe": {},
    "smollm3": {},
    "starcoder2": {"bias": "all"},
    "glm4": {},
    "cohere": {},
    "cohere2": {},
    "exaone4": {},
    "seed_oss": {},
    "ernie4_5": {},
    "hunyuan_v1_dense": {"train": "q_norm"},
    "nemotron": {"train": "norm"},
    "arcee": {},
    "llama4_text, alternating": {"layers": (0, 3, 4)},
    "llama4": {},
    "qwen3_next": {"exclude": "shared_gate", "train": "A_log|filter"},
    "qwen3_moe, some layers dense": {"layers": (1, 3)},
    "deepseek_v3": {"layers": (0, 2), "train": "kv_a_norm"},
    "deepseek_v2": {"rank_pattern": {"o_proj": (1, 0, 4)}},
}


@pytest.mark.parametrize("variant", FAMILIES)
def test_transformers_computes_the_merged_logits(variant, tmp_path):
    _, model, folder = both(variant)
    lora = trained(model, **FAMILIES[variant])
    base = checkpoint.fingerprint(model.params)
    out = models.export(folder, tmp_path / "out", lora=lora, base=base, max_shard_bytes=20_000)
    assert len(list(out.glob("*.safetensors"))) > 2
    assert_same_logits(model, lora, out, TOKENS)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_transformers_opens_the_dtype_of_the_files(dtype, tmp_path):
    _, _, folder = both("llama, tied")
    out = models.export(folder, tmp_path / "out", dtype=dtype)
    model = transformers.AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    assert {p.dtype for p in model.parameters()} == {getattr(torch, dtype)}
    assert model.config.dtype == getattr(torch, dtype)


@pytest.fixture(scope="module")
def exported(smollm2, tmp_path_factory):
    """(an adapter of the real model, the folder)."""
    lora = trained(smollm2, rank=8, targets="(q|k|v|o|gate|up|down)_proj")
    out = tmp_path_factory.mktemp("exported") / "smollm2"
    return lora, models.export("smollm2", out, lora=lora, max_shard_bytes=200 * 10**6)


def test_smollm2_out_of_gguf_has_the_merged_logits(smollm2, exported):
    lora, folder = exported
    assert len(list(folder.glob("*.safetensors"))) == 3
    assert_same_logits(smollm2, lora, folder, [smollm2.tokenizer.encode(TEXTS[0])])


def test_the_exported_tokenizer_encodes_and_renders_the_same(smollm2, exported):
    _, folder = exported
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        tokens = smollm2.tokenizer.encode(text)
        assert theirs(text, add_special_tokens=False)["input_ids"] == tokens
        assert theirs(text)["input_ids"] == tokens
        assert theirs.decode(tokens) == smollm2.tokenizer.backend.decode(
            tokens, skip_special_tokens=False
        )
    for messages in (MESSAGES, [{"role": "system", "content": "Be brief."}, *MESSAGES]):
        for prompt in (True, False):
            assert theirs.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=prompt
            ) == smollm2.tokenizer.render(messages, add_generation_prompt=prompt)
    assert (theirs.eos_token_id,) == smollm2.tokenizer.stop_ids
    generation = transformers.GenerationConfig.from_pretrained(folder)
    assert generation.eos_token_id == theirs.eos_token_id
    assert theirs.model_max_length == smollm2.config.max_length
