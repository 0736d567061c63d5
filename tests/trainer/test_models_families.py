"""Every family's tree, names and adapters, without the oracle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family_settings import abstract_params, config_of, shapes
from family_trees import TREES

import jlora
from jlora import models
from jlora.models import Decoder, Stored
from jlora.models._families import FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
def test_each_tree_is_stacked_by_layer_and_acts_from_the_right(family):
    assert shapes(config_of(family)) == TREES[family]
    assert TREES[family].keys() <= FAMILIES[family].leaves.keys()


# Those that have every operation between them; the others' programs are made of the same.
ALIKE = {"ministral", "olmo3", "granitemoe", "cohere", "seed_oss", "arcee", "gemma", "ernie4_5"}
PROGRAMS = [family for family in FAMILIES if family not in ALIKE]


@pytest.mark.parametrize("family", PROGRAMS)
def test_adapters_on_every_linear_weight_stay_factored_under_remat_and_in_the_gradient(family):
    config = config_of(family)
    params, tokens = abstract_params(config), jax.ShapeDtypeStruct((2, 9), jnp.int32)

    def loss(params, tokens):
        return Decoder(config, True).apply({"params": params}, tokens).mean()

    axes = jlora.trace_axes(loss, params, tokens)
    narrow = {"shared_gate": 1} if "layers/mlp/shared_gate/kernel" in TREES[family] else {}
    lora_config = jlora.LoraConfig(targets="layers/.*/kernel", rank=2, rank_pattern=narrow)
    split = lambda params: jlora.split(params, lora_config, jax.random.key(0), axes=axes)  # noqa: E731
    frozen, lora = jax.eval_shape(split, params)
    kernels = {path for path in TREES[family] if path.endswith("kernel")}
    assert set(lora) == kernels - {"head/kernel"}
    report = jlora.explain(loss, frozen, lora, tokens)
    assert (report.factored, report.materialised) == (len(lora), 0)
    step = jax.value_and_grad(jlora.lift(loss, strict=True), argnums=1)
    assert jax.eval_shape(step, frozen, lora, tokens)[1].keys() == lora.keys()


@pytest.mark.parametrize("family", PROGRAMS)
def test_parameters_of_half_precision_give_hidden_states_of_theirs_and_float32_scores(family):
    config = config_of(family)
    narrow = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), abstract_params(config)
    )
    tokens = jax.ShapeDtypeStruct((2, 9), jnp.int32)
    run = lambda method: jax.eval_shape(  # noqa: E731
        lambda params, tokens: Decoder(config).apply({"params": params}, tokens, method=method),
        *(narrow, tokens),
    )
    assert run("hidden").dtype == jnp.bfloat16
    assert run("__call__").dtype == jnp.float32


EXPERTS = Stored("m.{}.experts.gate_up_proj", "experts", ("gate_proj", "up_proj"))


def test_one_layer_of_experts_lies_in_a_file_as_a_tensor_for_each_and_comes_back():
    value = np.arange(2 * 3 * 8.0).reshape(2, 3, 8)  # (experts, in, gate and up)
    tensors = models.to_stored(EXPERTS, 4, value)
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        "m.4.experts.0.gate_proj.weight": (4, 3),
        "m.4.experts.0.up_proj.weight": (4, 3),
        "m.4.experts.1.gate_proj.weight": (4, 3),
        "m.4.experts.1.up_proj.weight": (4, 3),
    }
    np.testing.assert_array_equal(tensors["m.4.experts.1.up_proj.weight"], value[1, :, 4:].T)
    np.testing.assert_array_equal(models.from_stored(EXPERTS, 4, value.shape, tensors), value)
    held = {"m.4.experts.gate_up_proj": value.swapaxes(1, 2)}
    np.testing.assert_array_equal(models.from_stored(EXPERTS, 4, value.shape, held), value)
    tensors["m.4.experts.1.up_proj.weight"] = np.zeros((3, 4))
    del tensors["m.4.experts.0.up_proj.weight"]
    with pytest.raises(
        ValueError, match=r"0\.up_proj\.weight is missing; .*1\.up.* shape \(3, 4\)"
    ):
        models.from_stored(EXPERTS, 4, value.shape, tensors)


def test_a_model_says_what_its_leaves_are_called_and_nobody_changes_it(tiny):
    model = models.load(tiny)
    assert model.names.keys() == model.stored.keys()
    assert model.names["layers/mlp/up_proj/kernel"] == "model.layers.{}.mlp.up_proj.weight"
    assert "head/kernel" not in model.names  # the embedding is the head
    assert not any(leaf.fan_in_fan_out for leaf in model.stored.values())
    assert FAMILIES["gpt2"].leaves["layers/attn/qkv_proj/kernel"].fan_in_fan_out
    with pytest.raises(TypeError):
        model.names["embed/embedding"] = "mine"  # type: ignore
