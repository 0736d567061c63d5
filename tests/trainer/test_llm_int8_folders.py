"""Folders of int8 as bitsandbytes writes them: decoded, or kept as they are."""

import json

import bitsandbytes_folders
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny as tiny_llama
from bitsandbytes_folders import assert_read, quantise_to_int8
from laws import assert_close
from stored_models import assert_outlined, assert_used_as

import jlora
from jlora import models
from jlora._quantised import Int8Weight

TOKENS = jnp.array([[1, 5, 9, 2, 3]])
PLAIN = pytest.mark.filterwarnings("ignore:.*weights are plain")
UP = "model.layers.1.mlp.up_proj"


@pytest.fixture
def folder(tmp_path):
    return tiny_llama.save_tiny_llama(tmp_path / "model")


@PLAIN
def test_int8_is_a_whole_number_times_a_share_of_the_largest_of_its_row(folder):
    _, small = assert_read(folder, quantise_to_int8(folder), rtol=0)
    kernel = small.params["layers"]["mlp"]["up_proj"]["kernel"]
    assert type(kernel) is Int8Weight
    assert (kernel.values.shape, kernel.scale.shape) == ((2, 24, 40), (2, 40))
    assert kernel.nbytes == 2 * 40 * (24 + 4)


@PLAIN
def test_a_matrix_that_lies_in_out_for_us_is_turned(tmp_path):
    """bitsandbytes has GPT-2's, which lie (in, out) in its own files, as (out, in)."""
    folder = bitsandbytes_folders.of_family(tmp_path / "gpt2", "gpt2")
    _, small = assert_read(folder, quantise_to_int8(folder, turned=True), rtol=0)
    kernel = small.params["layers"]["mlp"]["up_proj"]["kernel"]
    assert (kernel.format, kernel.values.shape) == ("int8", kernel.shape)


@PLAIN
def test_experts_that_lie_one_by_one_are_one_leaf(tmp_path):
    folder = bitsandbytes_folders.of_family(tmp_path / "moe", "qwen3_moe")
    _, small = assert_read(folder, quantise_to_int8(folder), rtol=0)
    both = small.params["layers"]["mlp"]["experts"]["gate_up_proj"]["kernel"]
    assert (both.format, both.scale.shape) == ("int8", (*both.shape[:2], both.shape[3]))


@PLAIN
def test_a_head_that_was_not_skipped_is_kept_too(tmp_path):
    folder = tiny_llama.save_tiny_llama(tmp_path / "untied", tied=False)
    name = "lm_head.weight"
    parts = bitsandbytes_folders.int8_parts(name, *bitsandbytes_folders.read(folder)[name].shape)
    meant = quantise_to_int8(folder)
    bitsandbytes_folders.change(folder, lambda tensors: tensors.update(parts[0]))
    _, small = assert_read(folder, {**meant, name: parts[1]}, rtol=0)
    assert small.params["head"]["kernel"].format == "int8"


def test_what_was_skipped_is_plain_and_named(folder):
    meant = quantise_to_int8(folder, skip=("layers.0.mlp.up_proj", "o_proj"))
    said = "3 of 8 weights are plain: embed/embedding, layers/attn/o_proj/kernel, layers/mlp/up_pr"
    with pytest.warns(UserWarning, match=said):
        _, small = assert_read(folder, meant, rtol=0)
    assert small.params["layers"]["mlp"]["gate_proj"]["kernel"].format == "int8"


@PLAIN
def test_what_is_kept_is_used_as_what_it_stands_for(folder):
    plain, small = assert_read(folder, quantise_to_int8(folder), rtol=0)
    frozen, lora = assert_used_as(small, plain, TOKENS)
    merged = jlora.merge(frozen, lora)
    assert_close(merged, jlora.merge(plain.params, lora), 1e-6)
    again = jlora.requantize(jlora.dequantize(small.params), like=small.params)
    jax.tree.map(np.testing.assert_array_equal, again, small.params)


@PLAIN
def test_an_outline_has_the_shapes_of_what_is_loaded(folder):
    quantise_to_int8(folder)
    assert_outlined(folder)


def test_an_exported_folder_holds_what_they_stand_for_in_the_dtype_of_the_embedding(
    folder, tmp_path
):
    meant = quantise_to_int8(folder)
    embedding = "model.embed_tokens.weight"
    narrow = lambda tensors: tensors.update({embedding: tensors[embedding].astype("f2")})  # noqa: E731
    bitsandbytes_folders.change(folder, narrow)
    tensors = bitsandbytes_folders.read(models.export(folder, tmp_path / "out"))
    assert not any("SCB" in name or "weight_format" in name for name in tensors)
    want = meant[f"{UP}.weight"].astype(np.float16)
    np.testing.assert_array_equal(tensors[f"{UP}.weight"], want, strict=True)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_config" not in config


def test_a_folder_from_before_methods_had_names_is_read(folder):
    meant = quantise_to_int8(folder)
    bitsandbytes_folders.say(folder, load_in_8bit=True, llm_int8_threshold=6.0)
    kernel = models.load(folder).params["layers"]["mlp"]["up_proj"]["kernel"]
    np.testing.assert_array_equal(kernel[1].T, meant[f"{UP}.weight"])


# ---- What does not fit ---------------------------------------------------------------------------


def other(name, change):
    def changed(tensors):
        tensors[name] = change(tensors[name])

    return changed


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda tensors: tensors.pop(f"{UP}.weight"),
            f"{UP}.SCB is there without {UP}.weight",
        ),
        (
            lambda tensors: tensors.pop(f"{UP}.SCB"),
            f"{UP}.weight is of dtype I8, expected one of F32",
        ),
        (
            other(f"{UP}.weight", lambda its: its.astype("f")),
            rf"{UP}.weight is F32 of shape \(40, 24\), expected I8",
        ),
        (
            other(f"{UP}.SCB", lambda its: its[1:].copy()),
            rf"{UP}.SCB has shape \(39,\), expected \(40,\)",
        ),
        (
            other(f"{UP}.weight", lambda its: its[:, 1:].copy()),
            rf"{UP}.weight has shape \(40, 23\), expected \(40, 24\)",
        ),
        (
            other(f"{UP}.weight_format", lambda its: np.full_like(its, 2)),
            f"{UP}.weight_format is 2, an order of some GPUs: expected 0",
        ),
    ],
)
def test_what_does_not_fit_is_named(folder, change, said):
    quantise_to_int8(folder)
    bitsandbytes_folders.change(folder, change)
    with pytest.raises(ValueError, match=said):
        models.load(folder)
