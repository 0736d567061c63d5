"""Corners of PEFT's: biases beside experts, and leaves narrower than the rank."""

import jax
import jax.numpy as jnp
import pytest
from beside_peft import TOKENS, adapted_in_peft, assert_near, base, logits_of
from safetensors.numpy import load_file

import jlora
import jlora.peft

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def test_lora_only_means_no_biases_of_experts(tmp_path):
    """They are parameters of the experts there; a configuration of ours must not ask for them."""
    import peft

    oracle, model, axes, _ = base("gpt_oss")
    config = peft.LoraConfig(
        r=3,
        lora_alpha=5,
        target_modules=["q_proj"],
        target_parameters=["experts.gate_up_proj", "router.weight"],
        bias="lora_only",
    )
    theirs = adapted_in_peft(oracle, tmp_path / "theirs", config)
    lora, ours = jlora.peft.load(tmp_path / "theirs", model)
    assert_near(jlora.lift(model.apply)(model.params, lora, jnp.asarray(TOKENS)), logits_of(theirs))
    _, again = jlora.split(model.params, ours, jax.random.key(0), axes=axes)
    assert again.keys() == lora.keys()
    assert "layers/attn/q_proj/bias" in lora
    assert not any("experts" in path and path.endswith("bias") for path in lora)
    jlora.peft.save(tmp_path / "ours", lora, ours, model)
    name = "adapter_model.safetensors"
    assert (
        load_file(tmp_path / "ours" / name).keys() == load_file(tmp_path / "theirs" / name).keys()
    )

    config = jlora.LoraConfig(targets="experts/.*/kernel", rank=3, bias="adapted")
    _, lora = jlora.split(model.params, config, jax.random.key(0), axes=axes)
    with pytest.raises(ValueError, match=r"mlp\.experts is adapted and trained whole: PEFT"):
        jlora.peft.save(tmp_path / "none", lora, config, model)


def test_all_linear_takes_a_gate_of_one_output_as_peft_does(tmp_path):
    import peft

    oracle, model, axes, _ = base("qwen2_moe")
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules="all-linear")
    theirs = adapted_in_peft(oracle, tmp_path / "theirs", config)
    lora, _ = jlora.peft.load(tmp_path / "theirs", model)
    assert lora["layers/mlp/shared_gate/kernel"].b.shape[-2:] == (4, 1)
    assert_near(jlora.lift(model.apply)(model.params, lora, jnp.asarray(TOKENS)), logits_of(theirs))
    ours = jlora.LoraConfig(targets="all-linear", rank=4)
    _, made = jlora.split(model.params, ours, jax.random.key(0), axes=axes)
    assert lora.keys() <= made.keys()  # ours takes experts and routers too, which are no modules
