"""A small random llama against PEFT on torch: loss, gradients, merged weights; sharded files."""

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import tokenizers
import torch
import transformers

import jlora
from jlora import models

SMALL = {
    "vocab_size": 83,
    "hidden_size": 42,
    "intermediate_size": 52,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "max_position_embeddings": 256,
    "eos_token_id": 2,
}
TOKENS = np.random.default_rng(0).integers(3, 83, (2, 61))


def saved(tmp_path, **options):
    """A random llama in torch, and its folder."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SMALL)
    model = transformers.LlamaForCausalLM(config).eval()
    for parameter in model.parameters():  # norms too: a scale of one would hide itself
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(tmp_path, **options)
    vocabulary = {f"t{k}": k for k in range(83)}
    tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="t0")).save(
        str(tmp_path / "tokenizer.json")
    )
    return model


def test_a_model_in_several_files_is_the_same_model(tmp_path):
    saved(tmp_path / "one")
    saved(tmp_path / "many", max_shard_size="20KB")
    assert (tmp_path / "many" / "model.safetensors.index.json").exists()
    one, many = models.load(tmp_path / "one"), models.load(tmp_path / "many")
    for left, right in zip(jax.tree.leaves(one.params), jax.tree.leaves(many.params), strict=True):
        assert (np.asarray(left) == np.asarray(right)).all()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT's own
def test_loss_gradients_and_merged_weights_are_those_of_peft(tmp_path):
    oracle = saved(tmp_path)
    model = models.load(tmp_path)
    tokens = jnp.asarray(TOKENS)
    axes = jlora.trace_axes(model.apply, model.params, tokens)
    config = jlora.LoraConfig(targets="(q|v|down)_proj", rank=3, alpha=7)
    frozen, lora = jlora.split(model.params, config, jax.random.key(0), axes=axes)
    lora = jax.tree.map(
        lambda leaf: (
            0.3 * jax.random.normal(jax.random.key(leaf.size), leaf.shape) if leaf.ndim else leaf
        ),
        lora,
    )
    adapted = peft.get_peft_model(
        oracle,
        peft.LoraConfig(r=3, lora_alpha=7, target_modules=["q_proj", "v_proj", "down_proj"]),
    )

    def places():
        """(torch parameter name's module, our node, layer)."""
        for name, module in adapted.named_modules():
            if isinstance(module, peft.tuners.lora.Linear):
                layer = int(name.split(".layers.")[1].split(".")[0])
                part = "mlp" if "mlp" in name else "attn"
                yield module, f"layers/{part}/{name.rsplit('.', 1)[1]}/kernel", layer

    for module, path, layer in places():
        node = lora[path]
        a, b = np.asarray(node.a[layer]).T, np.asarray(node.b[layer]).T
        module.lora_A["default"].weight.data = torch.tensor(a.copy())
        module.lora_B["default"].weight.data = torch.tensor(b.copy())

    def loss(params):
        logits = model.apply(params, tokens)[:, :-1]
        scores = jax.nn.log_softmax(logits)
        return -jnp.take_along_axis(scores, tokens[:, 1:, None], axis=-1).mean()

    ours, grads = jax.value_and_grad(jlora.lift(loss, strict=True), argnums=1)(frozen, lora)
    theirs = adapted(torch.tensor(TOKENS), labels=torch.tensor(TOKENS)).loss
    theirs.backward()
    assert abs(float(ours) - theirs.item()) < 1e-5 * abs(theirs.item())
    checked = 0
    for module, path, layer in places():
        for ours_, theirs_ in (
            (grads[path].a[layer].T, module.lora_A["default"].weight.grad),
            (grads[path].b[layer].T, module.lora_B["default"].weight.grad),
        ):
            theirs_ = theirs_.numpy()
            assert np.abs(np.asarray(ours_) - theirs_).max() < 1e-4 * np.abs(theirs_).max()
            checked += 1
    assert checked == 2 * 3 * 3

    merged = jlora.merge(frozen, lora)["layers"]
    theirs = adapted.merge_and_unload().model.layers
    for layer in range(3):
        for part, module in (("attn", theirs[layer].self_attn), ("mlp", theirs[layer].mlp)):
            for name, leaf in merged[part].items():
                weight = getattr(module, name).weight.detach().numpy()
                np.testing.assert_allclose(np.asarray(leaf["kernel"][layer]).T, weight, atol=1e-6)
