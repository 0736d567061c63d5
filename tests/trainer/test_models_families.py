"""Every family's tree, names and adapters, without the oracle."""

import re

import numpy as np
import pytest
from family_programs import check_factored, check_half_precision
from family_settings import config_of, shapes
from family_trees import TREES

from jlora import models
from jlora.models import Stored
from jlora.models._families import FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
def test_each_tree_is_stacked_by_layer_and_acts_from_the_right(family):
    assert shapes(config_of(family)) == TREES[family]
    assert {re.sub(r"/\d-\d(-\d)?/", "/", path) for path in TREES[family]} <= {
        *FAMILIES[family].leaves
    }


# tests/wide has all families. These have between them: biases and one matrix for queries, keys and
# values; experts beside a shared one; norms behind each half layer, windows and scaled embeddings.
SOME = ["gpt2", "qwen2_moe", "gemma3"]


@pytest.mark.parametrize("family", SOME)
def test_adapters_on_every_linear_weight_stay_factored_under_remat_and_in_the_gradient(family):
    check_factored(family)


@pytest.mark.parametrize("family", SOME)
def test_parameters_of_half_precision_give_hidden_states_of_theirs_and_float32_scores(family):
    check_half_precision(family)


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
