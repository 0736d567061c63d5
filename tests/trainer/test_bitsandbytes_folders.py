"""Folders of nf4 and fp4 as bitsandbytes writes them: decoded, or kept as they are."""

import json

import bitsandbytes_folders
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny as tiny_llama
from bitsandbytes_folders import assert_read, quantise
from laws import assert_close
from stored_models import assert_outlined, assert_used_as

import jlora
from jlora import models
from jlora._quantised import FourBitWeight

TOKENS = jnp.array([[1, 5, 9, 2, 3]])
PLAIN = pytest.mark.filterwarnings("ignore:.*weights are plain")


@pytest.fixture
def folder(tmp_path):
    """Of width 64: rows of some matrices are whole blocks, those of others are none."""
    return tiny_llama.save_tiny_llama(tmp_path / "model", width=64)


@PLAIN
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("nf4", {}),
        ("nf4", {"nested": False, "storage": np.float32}),
        ("fp4", {"nested": False, "block": 32}),
    ],
)
def test_four_bits_are_numbers_of_a_table_times_the_scale_of_their_block(folder, kind, options):
    meant = quantise(folder, kind, **options)
    _, small = assert_read(folder, meant)
    layers = small.params["layers"]
    q_proj, o_proj = (layers["attn"][name]["kernel"] for name in ("q_proj", "o_proj"))
    assert type(q_proj) is type(o_proj) is FourBitWeight
    assert (q_proj.format, q_proj.flat, o_proj.flat) == (kind, False, True)
    assert q_proj.nbytes < q_proj.shape[0] * 64 * 24 * (0.7 if "block" in options else 0.6)


@PLAIN
def test_a_matrix_that_lies_in_out_for_us_is_turned(tmp_path):
    """bitsandbytes has GPT-2's, which lie (in, out) in its own files, as (out, in)."""
    sizes = {"n_embd": 64, "n_head": 4}
    folder = bitsandbytes_folders.of_family(tmp_path / "gpt2", "gpt2", **sizes)
    _, small = assert_read(folder, quantise(folder, turned=True))
    kernel = small.params["layers"]["mlp"]["up_proj"]["kernel"]
    assert (kernel.format, kernel.flat, kernel.shape[-1] // kernel.shape[-2]) == ("nf4", False, 4)


@PLAIN
def test_a_head_is_kept_too(tmp_path):
    folder = tiny_llama.save_tiny_llama(tmp_path / "untied", width=64, tied=False)
    name = "lm_head.weight"
    head, means = bitsandbytes_folders.parts(name, *bitsandbytes_folders.read(folder)[name].shape)
    meant = quantise(folder)
    head[name] = head[name][:, None]
    bitsandbytes_folders.change(folder, lambda tensors: tensors.update(head))
    _, small = assert_read(folder, {**meant, name: means})
    assert small.params["head"]["kernel"].offset.shape == ()


@PLAIN
@pytest.mark.parametrize("nested", [True, False])
def test_experts_that_lie_one_by_one_are_one_leaf(nested, tmp_path):
    sizes = {"hidden_size": 64, "moe_intermediate_size": 9}
    folder = bitsandbytes_folders.of_family(tmp_path / "moe", "qwen3_moe", **sizes)
    _, small = assert_read(folder, quantise(folder, nested=nested))
    experts = small.params["layers"]["mlp"]["experts"]
    both = experts["gate_up_proj"]["kernel"]  # scales of scales are of one matrix each: not kept
    assert (both.format, both.scale_scales) == ("nf4", None)
    assert both.scales.shape == (*both.shape[:2], 18, 1)
    down = experts["down_proj"]["kernel"]  # rows of 9
    assert (down.flat, down.scale_scales is None) == (True, not nested)


@PLAIN
def test_what_is_kept_is_used_as_what_it_stands_for(folder):
    plain, small = assert_read(folder, quantise(folder, nested=False))
    frozen, lora = assert_used_as(small, plain, TOKENS)
    merged = jlora.merge(frozen, lora)
    assert_close(merged, jlora.merge(plain.params, lora), 1e-6)
    small_of, plain_of = map(jlora.checkpoint.fingerprint, (small.params, plain.params))
    assert small_of == plain_of
    told = jlora.explain(small.apply, small.params, {}, TOKENS).small
    assert told["layers/attn/q_proj/kernel"].startswith("nf4, 1.73 kB in the place of 12.29 kB")
    again = jlora.requantize(jlora.dequantize(small.params), like=small.params)
    jax.tree.map(np.testing.assert_array_equal, again, small.params)
    assert (
        jlora.requantize(merged, like=small.params)["layers"]["attn"]["q_proj"]["kernel"].format
        == "nf4"
    )
    axes = jlora.trace_axes(small.apply, small.params, TOKENS)
    with pytest.raises(ValueError, match="layers/attn/k_proj/kernel is nf4 already"):
        jlora.quantize(small.params, "int8", axes=axes)


@PLAIN
def test_an_outline_has_the_shapes_of_what_is_loaded(folder):
    quantise(folder)
    assert_outlined(folder)


def test_a_matrix_that_some_layers_have_otherwise_is_plain(folder):
    name = "model.layers.1.mlp.up_proj.weight"
    before = bitsandbytes_folders.read(folder)[name]

    def plain_again(tensors):
        for part in [part for part in tensors if part.startswith(name)]:
            del tensors[part]
        tensors[name] = before

    quantise(folder)
    bitsandbytes_folders.change(folder, plain_again)
    said = "2 of 8 weights are plain: embed/embedding, layers/mlp/up_proj/kernel are not stored in"
    with pytest.warns(UserWarning, match=said):
        small = models.load(folder, quantize="stored").params["layers"]["mlp"]
    np.testing.assert_array_equal(small["up_proj"]["kernel"][1], before.T)
    assert small["gate_proj"]["kernel"].format == "nf4"


def test_an_exported_folder_holds_what_they_stand_for(folder, tmp_path):
    meant = quantise(folder)
    out = models.export(folder, tmp_path / "out")
    tensors = bitsandbytes_folders.read(out)
    assert {name for name in tensors if "layers.0.mlp" in name} == {
        f"model.layers.0.mlp.{name}_proj.weight" for name in ("up", "gate", "down")
    }
    name = "model.layers.1.mlp.up_proj.weight"
    np.testing.assert_array_equal(
        tensors[name], meant[name].astype(jnp.bfloat16)
    )  # as the JSON says
    assert "quantization_config" not in json.loads((out / "config.json").read_text())


# ---- What does not fit ---------------------------------------------------------------------------

UP, DOWN = (f"model.layers.1.mlp.{name}_proj.weight" for name in ("up", "down"))
STATE = f"{UP}.{bitsandbytes_folders.STATE}"


def said_again(**changes):
    """With something else in the JSON."""

    def change(tensors):
        said = {**json.loads(tensors[f"{STATE}nf4"].tobytes()), **changes}
        tensors[f"{STATE}nf4"] = np.frombuffer(json.dumps(said).encode(), np.uint8)

    return change


def another_type(tensors):
    tensors[f"{STATE}int2"] = tensors.pop(f"{STATE}nf4")


def without_parts(tensors):
    for part in (f"{UP}.absmax", f"{DOWN}.quant_map"):
        del tensors[part]


def another_table(tensors):
    tensors[f"{UP}.quant_map"] = tensors[f"{UP}.quant_map"][::-1].copy()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (another_type, f"{UP} is of bitsandbytes' type 'int2', but only 'nf4', 'fp4' are read"),
        (without_parts, f"{DOWN} has no {DOWN}.quant_map\n  {UP} has no {UP}.absmax"),
        (said_again(shape=[40, 63]), rf"{UP} has shape \(40, 63\), expected \(40, 64\)"),
        (said_again(shape=None), f"{STATE}nf4 can't be read: TypeError"),
        (said_again(blocksize=63), f"{UP} has blocks of 63 numbers and groups of 256 scales"),
        (said_again(blocksize=32), rf"{UP}.absmax holds 40, expected 80 for \(40, 64\)"),
        (another_table, f"{UP}.quant_map is another table than that of nf4"),
    ],
)
def test_what_does_not_fit_is_named(folder, change, said):
    quantise(folder)
    bitsandbytes_folders.change(folder, change)
    with pytest.raises(ValueError, match=said):
        models.load(folder)
