"""gpt-oss as llama.cpp ships it: experts in MXFP4, all else in other types."""

import family_settings
import gguf
import gguf_files
import gguf_toys
import jax
import jax.numpy as jnp
import merged_files
import numpy as np
import pytest
from stored_models import assert_used_as

import jlora
from jlora import models

TOKENS = jnp.array([[1, 5, 9, 2, 30]])
KINDS = gguf.GGMLQuantizationType
PLAIN = pytest.mark.filterwarnings("ignore:.*weights are plain")
WIDTHS = {"hidden_size": 64, "intermediate_size": 32}


def gpt_oss(path, exponents, kinds=None):
    """The file, its experts random bits with shared exponents of this range.

    ``kinds``: other types of some tensors, by their names.
    """
    config = family_settings.config_of("gpt_oss", **WIDTHS)
    tensors = gguf_toys.tensors_of(config, family_settings.random_params(config))
    settings = {**family_settings.SETTINGS["gpt_oss"], **models.to_huggingface(config)}
    plain = gguf_files.write(path.with_suffix(".plain"), settings, tensors, pre="qwen2")
    rng, packed = np.random.default_rng(0), {}
    for name, tensor in merged_files.tensors_of(plain).items():
        weights = merged_files.decoded(tensor)
        if kind := (kinds or {}).get(name):
            packed[name] = gguf.quantize(weights, kind), kind
        elif name.endswith("exps.weight"):
            *rows, columns = weights.shape
            blocks = rng.integers(0, 256, (*rows, columns // 32, 17)).astype(np.uint8)
            blocks[..., 0] = rng.integers(*exponents, blocks.shape[:-1])
            packed[name] = blocks.reshape(*rows, -1), KINDS.MXFP4
    return gguf_files.write(path, settings, tensors, pre="qwen2", further=packed)


def decoded(path, layer, name):
    """A tensor of the file as the `gguf` package decodes it."""
    tensor = merged_files.tensors_of(path)[f"blk.{layer}.ffn_{name}_exps.weight"]
    return merged_files.decoded(tensor)


@PLAIN
def test_experts_are_to_the_bit_what_the_gguf_package_makes_of_them(tmp_path):
    path = gpt_oss(
        tmp_path / "model.gguf", exponents=(3, 253)
    )  # no subnormal numbers: XLA has none
    plain, small = (models.load(path, quantize=each).params for each in (None, "stored"))
    kept = small["layers"]["mlp"]["experts"]
    assert {kept[name]["kernel"].format for name in ("gate_up_proj", "down_proj")} == {"MXFP4"}
    assert kept["down_proj"]["kernel"].data.shape == (3, 5, 64, 17)
    for params in (plain, jlora.dequantize(small)):
        experts = params["layers"]["mlp"]["experts"]
        for layer in range(3):
            gate, up, down = (decoded(path, layer, name) for name in ("gate", "up", "down"))
            both = np.asarray(experts["gate_up_proj"]["kernel"])[layer].swapaxes(1, 2)
            np.testing.assert_array_equal(both[:, ::2], gate)
            np.testing.assert_array_equal(both[:, 1::2], up)
            found = np.asarray(experts["down_proj"]["kernel"])[layer].swapaxes(1, 2)
            np.testing.assert_array_equal(found, down)
            assert np.unique(np.abs(down)).size > 100


@PLAIN
def test_experts_that_are_kept_are_used_as_what_they_stand_for(tmp_path):
    path = gpt_oss(tmp_path / "model.gguf", exponents=(118, 125))
    plain, small = (models.load(path, quantize=each) for each in (None, "stored"))
    assert_used_as(small, plain, TOKENS, "experts/.*kernel|q_proj")
    small_of, plain_of = map(jlora.checkpoint.fingerprint, (small.params, plain.params))
    assert small_of == plain_of  # zeros too, whatever their sign in the file


@PLAIN
def test_a_layer_whose_experts_are_of_another_type_keeps_it(tmp_path):
    kinds = {"blk.1.ffn_down_exps.weight": KINDS.Q8_0, "blk.2.attn_q.weight": KINDS.Q8_0}
    path = gpt_oss(tmp_path / "model.gguf", exponents=(118, 125), kinds=kinds)
    plain, small = (models.load(path, quantize=each) for each in (None, "stored"))
    down = small.params["layers"]["mlp"]["experts"]["down_proj"]["kernel"]
    assert down.format == "MXFP4 and Q8_0"
    jax.tree.map(np.testing.assert_array_equal, jlora.dequantize(small.params), plain.params)
