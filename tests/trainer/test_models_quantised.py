"""Models whose weights stay in a few bits, from their files to training and answers."""

import json

import gguf
import jax
import jax.numpy as jnp
import merged_files
import numpy as np
import pytest
import small_runs

import jlora
import train
from jlora import models
from jlora.__main__ import main
from jlora._quantised import BlockWeight, MixedStack

TOKENS = jnp.array([[1, 5, 9, 2, 30]])
tiny, rows = small_runs.tiny, small_runs.rows


def logits(model):
    return np.asarray(jax.jit(model.apply)(model.params, TOKENS))


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_a_gguf_files_bytes_are_kept_and_mean_what_they_meant(kind, tmp_path):
    path = merged_files.packed_llama(tmp_path / "model.gguf", every=kind)
    small, plain = models.load(path, quantize="stored"), models.load(path)
    np.testing.assert_allclose(logits(small), logits(plain), atol=1e-5)
    np.testing.assert_array_equal(
        jlora.dequantize(small.params)["layers"]["attn"]["q_proj"]["kernel"],
        plain.params["layers"]["attn"]["q_proj"]["kernel"],
    )
    down = small.params["layers"]["mlp"]["down_proj"]["kernel"]
    assert (type(down), down.format, down.shape) == (BlockWeight, kind, (2, 256, 96))
    tensor = merged_files.tensors_of(path)["blk.1.ffn_down.weight"]
    np.testing.assert_array_equal(down.data[1], merged_files.raw(tensor))
    assert small.params["embed"]["embedding"].format == kind  # read by its rows
    assert isinstance(small.params["norm"]["scale"], jax.Array)


def test_a_table_that_gets_more_rows_is_plain(tmp_path):
    path = merged_files.packed_llama(tmp_path / "model.gguf", every="Q8_0")
    rows = np.ones((2, 96), "float32")
    more = models.Vocabulary({"embed/embedding": rows})
    small, plain, shapes = (
        models.with_vocabulary(each, more)
        for each in (
            models.load(path, quantize="stored"),
            models.load(path),
            models.outline(path, quantize="stored"),
        )
    )
    tables = [model.params["embed"]["embedding"] for model in (small, plain, shapes)]
    np.testing.assert_array_equal(tables[0], tables[1])
    assert tables[2].shape == (39, 96)
    np.testing.assert_allclose(logits(small), logits(plain), atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*weights are plain")
def test_layers_whose_formats_differ_keep_them(tmp_path):
    kinds = {"blk.0.ffn_down.weight": "Q6_K", "blk.1.ffn_down.weight": "Q4_K"}
    path = merged_files.packed_llama(tmp_path / "model.gguf", kinds)
    small, plain = models.load(path, quantize="stored"), models.load(path)
    down = small.params["layers"]["mlp"]["down_proj"]["kernel"]
    assert (type(down), down.format) == (MixedStack, "Q4_K and Q6_K")
    assert isinstance(small.params["layers"]["mlp"]["up_proj"]["kernel"], jax.Array)
    np.testing.assert_allclose(logits(small), logits(plain), atol=1e-5)
    assert jlora.checkpoint.fingerprint(small.params) == jlora.checkpoint.fingerprint(plain.params)


@pytest.mark.parametrize("format", ["int8", "nf4"])
def test_a_folders_linear_layers_are_quantised_while_they_are_read(format, tiny):
    small, plain = models.load(tiny, quantize=format), models.load(tiny)
    axes = jlora.trace_axes(plain.apply, plain.params, TOKENS)
    at_once = jlora.quantize(plain.params, format, axes=axes)
    for one, other in zip(*map(jax.tree.leaves, (small.params, at_once)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
    assert jax.tree.structure(small.params) == jax.tree.structure(at_once)


@pytest.mark.filterwarnings("ignore:.*weights are plain")
@pytest.mark.parametrize("quantize", ["int8", "nf4", "stored"])
def test_an_outline_has_the_shapes_of_what_is_loaded(quantize, tmp_path):
    kinds = {f"blk.{layer}.ffn_down.weight": ("Q6_K", "Q4_1")[layer] for layer in range(2)}
    path = merged_files.packed_llama(tmp_path / "model.gguf", kinds)
    shapes, loaded = (
        each(path, quantize=quantize).params for each in (models.outline, models.load)
    )
    assert jax.tree.structure(shapes) == jax.tree.structure(loaded)
    for one, other in zip(*map(jax.tree.leaves, (shapes, loaded)), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)


def test_what_can_not_be_kept_is_told_before_any_weight_is_read(tiny):
    with pytest.raises(ValueError, match="holds no weights that stay as they are stored"):
        models.load(tiny, quantize="stored")
    with pytest.raises(ValueError, match=r"'Q4_K': expected None, 'stored' or one of .*only read"):
        models.load(tiny, quantize="Q4_K")
    with pytest.raises(ValueError, match="'fp4': expected None, 'stored' or one of int8, nf4"):
        models.load(tiny, quantize="fp4")


def test_types_that_jlora_keeps_not_are_decoded_as_ever(tmp_path):
    """Of a file with others beside them, those are plain."""
    kinds = {"blk.0.ffn_down.weight": "IQ4_NL", "blk.1.ffn_down.weight": "IQ4_NL"}
    kinds |= {f"blk.{layer}.ffn_up.weight": "Q4_1" for layer in range(2)}
    path = merged_files.packed_llama(tmp_path / "model.gguf", kinds)
    with pytest.warns(UserWarning, match="7 of 8 weights are plain: embed/embedding, layers"):
        small = models.load(path, quantize="stored")
    plain = models.load(path)
    assert isinstance(small.params["layers"]["mlp"]["down_proj"]["kernel"], jax.Array)
    assert small.params["layers"]["mlp"]["up_proj"]["kernel"].format == "Q4_1"
    np.testing.assert_allclose(logits(small), logits(plain), atol=1e-5)


def test_a_run_keeps_its_base_small_and_its_adapter_says_so(tiny, rows, tmp_path, capsys):
    out = tmp_path / "run"
    given = ["--model", str(tiny), "--data", str(rows), "--out", str(out), "--quantize", "nf4"]
    assert train.main([*given, "--steps", "3", "--max-new-tokens", "6", "--max-length", "64"]) == 0
    said = capsys.readouterr().out
    assert "reloaded, it gives the same answer" in said
    described = jlora.checkpoint.describe(out / "adapter")
    assert described["metadata"]["quantize"] == "nf4"
    asked = [
        "generate",
        "--adapter",
        str(out / "adapter"),
        "--prompt",
        "7?",
        "--max-new-tokens",
        "6",
    ]
    answers = []
    for how in ([], ["--quantize", "nf4"], ["--dequantize"]):
        assert main([*asked, *how]) == 0
        answers.append(capsys.readouterr().out)
    assert len(set(answers)) == 1
    merge = ["merge", "--adapter", str(out / "adapter"), "--out", str(tmp_path / "merged")]
    assert main(merge) == 0
    assert "was trained beside weights rounded to nf4; the merged" in capsys.readouterr().out
    first = json.loads((out / "metrics.jsonl").read_text().splitlines()[0])
    assert first["loss"] > 0


def test_a_quantised_model_answers_without_an_adapter(tiny):
    small = models.load(tiny, quantize="int8")
    ask = [[{"role": "user", "content": "7?"}]]
    plain = jlora.dequantize(small.params)
    assert models.answer(small, ask, max_new_tokens=5) == models.answer(
        small, ask, plain, max_new_tokens=5
    )
    pieces = models.stream(small, ask[0], max_new_tokens=5)
    assert "".join(pieces) == models.answer(small, ask, max_new_tokens=5)[0]


def test_decoding_is_the_gguf_packages_bit_for_bit():
    from quantised_leaves import random_blocks

    from jlora._quantised import BLOCKS

    for name, its in BLOCKS.items():
        blocks = random_blocks(name, 5, 3)
        with np.errstate(all="ignore"):
            rows = gguf.dequantize(blocks.reshape(5, -1), gguf.GGMLQuantizationType[name])
        want = rows.reshape(5, 3, its.block)
        got = np.asarray(jax.jit(its.decode, static_argnums=1)(blocks, "float32"))
        finite = np.isfinite(want)
        assert finite.mean() > 0.5, name
        np.testing.assert_array_equal(got[finite], want[finite], err_msg=name)


def test_encoding_is_the_gguf_packages_to_a_step():
    from jlora._quantised import BLOCKS

    rng = np.random.default_rng(0)
    scale = rng.lognormal(size=(64, 4, 1))
    blocks = (rng.normal(size=(64, 4, 32)) * scale).astype("f4")
    blocks[3, 1] = 0
    for name, its in BLOCKS.items():
        if its.encode is None:
            continue
        kind = gguf.GGMLQuantizationType[name]
        want = gguf.dequantize(gguf.quantize(blocks.reshape(64, -1), kind), kind)
        got = np.asarray(its.decode(jax.jit(its.encode)(blocks), "float32")).reshape(64, -1)
        step = 1.01 * np.ptp(blocks, axis=-1, keepdims=True) / (2 ** int(name[1]) - 1) * 2
        assert (np.abs(got - want).reshape(blocks.shape) <= step).all(), name
        assert (got == want).mean() > 0.99, name
