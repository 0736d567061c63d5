"""A merged GGUF file: the base's own, but for the weights that the adapter changes."""

import dataclasses

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from merged_files import (
    KINDS,
    check_family,
    decoded,
    delta,
    entries,
    flat,
    packed_llama,
    random_bytes,
    raw,
    tensors_of,
)

import jlora
from jlora import checkpoint, models

UP, DOWN, QUERY = (f"layers/{name}_proj/kernel" for name in ("mlp/up", "mlp/down", "attn/q"))
STACK = jlora.Axes(stack=(0,), inputs=(1,), outputs=(2,))


def node(inputs, outputs, *, seed=1, size=0.02, layers=2):
    """A strong LoRA of two layers."""
    a = delta((layers, inputs, 3), seed, 1.0)
    b = delta((layers, 3, outputs), seed + 1, size)
    return jlora.LoraWeight(jnp.asarray(a), jnp.asarray(b), jnp.float32(1), STACK)


LORA = {UP: node(96, 256), DOWN: node(256, 96), QUERY: node(96, 64)}


@pytest.mark.parametrize("family", ["deepseek_v3", "gemma3n_text"])
def test_a_merged_file_holds_the_merged_model_of(family, tmp_path):
    check_family(family, tmp_path)  # joined and transposed; stacked


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "F16", "BF16", "F32"])
def test_an_adapted_tensor_is_the_sum_in_float32_encoded_once(kind, tmp_path):
    base = packed_llama(tmp_path / "base.gguf", every=kind)
    merged = models.export_gguf(base, tmp_path / "tuned.gguf", lora=LORA)
    before, after = tensors_of(base), tensors_of(merged.path)
    assert entries(merged.path) == entries(base)
    assert list(after) == list(before)
    for layer in range(2):
        name = f"blk.{layer}.ffn_up.weight"
        change = LORA[UP].delta()[layer].T
        want = gguf.quantize(decoded(before[name]) + change, KINDS[kind]).view("u1")
        differ = (raw(after[name]) != want).mean()
        assert after[name].tensor_type == KINDS[kind]
        assert differ < 1e-3  # the last bit of the product's sum may round another way
    changed = {name for name in before if (raw(before[name]) != raw(after[name])).any()}
    assert changed == {f"blk.{k}.{n}.weight" for k in (0, 1) for n in ("ffn_up", "ffn_down",
                                                                       "attn_q")}  # fmt: skip


@pytest.mark.parametrize("alignment", [16, 32, 64])
def test_without_a_change_the_file_is_the_same_byte_for_byte(alignment, tmp_path):
    header = [("add_custom_alignment", alignment), ("add_string", "tokenizer.chat_template", "é{}")]
    kinds = {"blk.0.ffn_up.weight": "Q4_1", "blk.1.ffn_up.weight": "Q5_0", "token_embd.weight":
             "Q8_0", "blk.0.ffn_down.weight": "Q4_K", "blk.1.attn_q.weight": "BF16"}  # fmt: skip
    base = packed_llama(tmp_path / "base.gguf", kinds, header=header)
    assert entries(base)["general.alignment"] == alignment
    model = models.load(base)
    fresh = {QUERY: jax.tree.map(jnp.zeros_like, LORA[QUERY])}
    whole = {path: jlora.WholeWeight(value) for path, value in flat(model.params).items()
             if path != DOWN}  # fmt: skip
    for lora in (fresh, whole):
        merged = models.export_gguf(base, tmp_path / "same.gguf", lora=lora, overwrite=True)
        assert merged.path.read_bytes() == base.read_bytes()
        assert merged.survival == 1


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_1"])
def test_rows_that_do_not_change_keep_their_bytes(kind, tmp_path):
    base = packed_llama(tmp_path / "base.gguf", every=kind, pack=random_bytes)
    b = np.zeros((2, 3, 256), "f4")
    b[1, :, 7] = 0.3
    lora = {UP: jlora.LoraWeight(LORA[UP].a, jnp.asarray(b), jnp.float32(1), STACK)}
    merged = models.export_gguf(base, tmp_path / "tuned.gguf", lora=lora)
    before, after = tensors_of(base), tensors_of(merged.path)
    differ = {
        (name, row)
        for name in before
        for row in np.unique(np.nonzero(np.atleast_2d(raw(before[name]) != raw(after[name])))[0])
    }
    assert differ == {("blk.1.ffn_up.weight", 7)}


@pytest.mark.parametrize("type", ["F32", "Q8_0"])
def test_a_type_is_for_the_adapted_tensors_alone(type, tmp_path):
    base = packed_llama(tmp_path / "base.gguf", every="Q4_K" if type == "F32" else "Q4_1",
                        kinds={"token_embd.weight": "F16"} | dict.fromkeys(
                            [f"blk.{k}.{n}.weight" for k in (0, 1) for n in
                             ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_gate")],
                            "Q4_1"), header=[("add_file_type", 3)])  # fmt: skip
    model = models.load(base)
    lora = {**LORA, "norm/scale": jlora.WholeWeight(model.params["norm"]["scale"] + 1)}
    merged = models.export_gguf(base, tmp_path / "tuned.gguf", lora=lora, type=type)
    before, after = tensors_of(base), tensors_of(merged.path)
    adapted = [name for name in before if name.split(".")[-2] in ("ffn_up", "ffn_down", "attn_q")]
    for name, tensor in before.items():
        kept = tensor.tensor_type if name not in adapted else KINDS[type]
        assert after[name].tensor_type == kept
        if name not in [*adapted, "output_norm.weight"]:
            assert raw(after[name]).tobytes() == raw(tensor).tobytes()
    assert {**entries(merged.path), "general.file_type": 3} == entries(base)
    assert entries(merged.path)["general.file_type"] == {"F32": 0, "Q8_0": 7}[type]
    got, want = (flat(tree) for tree in (models.load(merged.path).params,
                                         jlora.merge(model.params, lora)))  # fmt: skip
    for path, value in want.items():
        atol = 1e-6 if type == "F32" or path not in lora else 0.02
        np.testing.assert_allclose(got[path], value, atol=atol, err_msg=path)


def test_types_that_nothing_writes_are_named_before_any_work(tmp_path):
    base = packed_llama(tmp_path / "base.gguf", {"blk.1.ffn_down.weight": "Q6_K"}, every="Q4_1")
    with pytest.raises(ValueError, match="The adapted tensors can get another type: Q8_0,") as told:
        models.export_gguf(base, tmp_path / "tuned.gguf", lora=LORA)
    wanted = "\n  blk.1.ffn_down.weight is Q6_K, which can be read and not be written\n"
    assert wanted in str(told.value)
    with pytest.raises(ValueError, match="type is 'Q4_K': expected one of Q8_0"):
        models.export_gguf(base, tmp_path / "tuned.gguf", lora=LORA, type="Q4_K")
    assert [path.name for path in tmp_path.iterdir()] == ["base.gguf"]
    of_first = jlora.LoraWeight(LORA[DOWN].a, LORA[DOWN].b * jnp.array([1.0, 0])[:, None, None],
                                jnp.float32(1), STACK)  # fmt: skip
    merged = models.export_gguf(base, tmp_path / "tuned.gguf", lora={DOWN: of_first})
    name = "blk.1.ffn_down.weight"
    assert raw(tensors_of(base)[name]).tobytes() == raw(tensors_of(merged.path)[name]).tobytes()


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_layers_that_are_not_adapted_keep_their_types_and_bytes(method, tmp_path):
    kinds = {"blk.1.ffn_down.weight": "Q6_K", "blk.0.ffn_down.weight": "Q4_1"}
    base = packed_llama(tmp_path / "base.gguf", kinds)
    model = models.load(base)
    config = jlora.LoraConfig(targets="down_proj", rank=3, layers=(0,), method=method)
    _, lora = jlora.split(model.params, config, jax.random.key(0), axes={DOWN: STACK})
    fresh = models.export_gguf(base, tmp_path / "fresh.gguf", lora=lora)
    assert method == "dora" or fresh.path.read_bytes() == base.read_bytes()
    lora[DOWN] = dataclasses.replace(lora[DOWN], b=lora[DOWN].b + 0.3)
    merged = models.export_gguf(base, tmp_path / "tuned.gguf", lora=lora, type="F32")
    before, after = tensors_of(base), tensors_of(merged.path)
    changed = {n for n in before if after[n].tensor_type != before[n].tensor_type}
    assert changed == {"blk.0.ffn_down.weight"}
    want = jlora.merge(model.params, lora)["layers"]["mlp"]["down_proj"]["kernel"][0].T
    np.testing.assert_allclose(decoded(after["blk.0.ffn_down.weight"]), want, atol=1e-6)


def test_rows_that_blocks_do_not_divide_are_named(tmp_path):
    from merged_files import family_file

    base = family_file("llama", tmp_path / "base.gguf")
    lora = {QUERY: node(22, 40, layers=3)}
    with pytest.raises(ValueError, match=r"blk\.0\.attn_q\.weight has rows of 22, which blocks of "
                       "Q4_1 do not divide"):  # fmt: skip
        models.export_gguf(base, tmp_path / "tuned.gguf", lora=lora, type="Q4_1")


def test_what_survives_is_the_share_of_the_change_that_is_stored(tmp_path):
    base = packed_llama(tmp_path / "base.gguf", every="Q4_0")
    small = {path: jlora.LoraWeight(its.a, its.b / 20, its.scaling, STACK) for path, its in
             LORA.items()}  # fmt: skip
    merged = models.export_gguf(base, tmp_path / "tuned.gguf", lora=small)
    before, after = tensors_of(base), tensors_of(merged.path)
    sums = []
    for path, name in ((UP, "ffn_up"), (DOWN, "ffn_down")):
        names = [f"blk.{layer}.{name}.weight" for layer in (0, 1)]
        stored = np.stack([decoded(after[each]) - decoded(before[each]) for each in names])
        change = np.asarray(small[path].delta()).swapaxes(1, 2)
        sums.append([(stored * change).sum(), (change**2).sum()])
        share = sums[-1][0] / sums[-1][1]
        assert merged.survivals[path.split("/")[-2]] == pytest.approx(share, rel=1e-3)
        assert share < 0.5
    assert set(merged.survivals) == {"up_proj", "down_proj", "q_proj"}
    assert 0 < merged.survival < 0.5
    strong = models.export_gguf(base, tmp_path / "f32.gguf", lora=small, type="F32")
    assert strong.survival == pytest.approx(1)


def test_a_tied_embedding_is_merged_in_its_one_tensor(tmp_path):
    base = packed_llama(tmp_path / "base.gguf", {"token_embd.weight": "F16"})
    model = models.load(base)
    rows = jlora.TokenRows(jnp.full((2, 96), 0.5), (3, 11), (37, 96))
    merged = models.export_gguf(base, tmp_path / "t.gguf", lora={"embed/embedding": rows})
    got = models.load(merged.path)
    want = jlora.merge(model.params, {"embed/embedding": rows})["embed"]["embedding"]
    np.testing.assert_allclose(got.params["embed"]["embedding"], want, atol=1e-3)
    assert got.config.tied
    before, after = (raw(tensors_of(path)["token_embd.weight"]) for path in (base, merged.path))
    assert set(np.nonzero(before != after)[0]) == {3, 11}


def test_a_file_in_parts_becomes_one(tmp_path, monkeypatch):
    whole = packed_llama(tmp_path / "whole.gguf", every="Q4_1")
    original = gguf.GGUFWriter
    monkeypatch.setattr(gguf, "GGUFWriter", lambda path, arch: original(
        path, arch, split_max_tensors=7, small_first_shard=True))  # fmt: skip
    packed = {n: (np.array(t.data), t.tensor_type) for n, t in tensors_of(whole).items()}
    import gguf_files
    from merged_files import LLAMA

    gguf_files.write(tmp_path / "parts.gguf", LLAMA, {}, further=packed)
    parts = sorted(tmp_path.glob("parts-*"))
    assert len(parts) == 4
    one = models.export_gguf(parts[0], tmp_path / "one.gguf", lora=LORA)
    other = models.export_gguf(whole, tmp_path / "other.gguf", lora=LORA)
    assert entries(one.path) == entries(other.path)
    for name, tensor in tensors_of(other.path).items():
        assert raw(tensors_of(one.path)[name]).tobytes() == raw(tensor).tobytes()
    assert models.load(one.path).config == models.load(whole).config


def test_scales_that_half_precision_cannot_hold_are_an_error(tmp_path):
    base = packed_llama(tmp_path / "base.gguf", every="Q4_0")
    huge = {UP: node(96, 256, size=1e7)}
    with pytest.raises(ValueError, match=r"ffn_up\.weight: the merged weight has values that Q4_0"):
        models.export_gguf(base, tmp_path / "tuned.gguf", lora=huge)
    assert [path.name for path in tmp_path.iterdir()] == ["base.gguf"]


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_a_block_that_becomes_zero_is_zero(kind, tmp_path):
    base = packed_llama(tmp_path / "base.gguf", every=kind)
    none = {UP: jlora.WholeWeight(jnp.zeros((2, 96, 256)))}
    merged = models.export_gguf(base, tmp_path / "tuned.gguf", lora=none)
    assert not decoded(tensors_of(merged.path)["blk.1.ffn_up.weight"]).any()


def test_another_base_is_told_before_any_work(tmp_path):
    base = packed_llama(tmp_path / "base.gguf", every="Q4_1")
    other = packed_llama(tmp_path / "other.gguf", every="Q4_0")
    trained_on = checkpoint.fingerprint(models.load(other).params)
    with pytest.raises(ValueError, match="trained on another base"):
        models.export_gguf(base, tmp_path / "tuned.gguf", lora=LORA, base=trained_on)
    models.export_gguf(other, tmp_path / "tuned.gguf", lora=LORA, base=trained_on)


def test_what_a_gguf_file_has_no_place_for_is_refused(tiny, tmp_path):
    base = packed_llama(tmp_path / "base.gguf")
    with pytest.raises(ValueError, match="is no GGUF file: an adapter is merged into one"):
        models.export_gguf(tiny, tmp_path / "t.gguf", lora=LORA)
    more = models.Vocabulary({"embed/embedding": np.ones((2, 96), "f4")})
    for vocabulary in (more, models.Vocabulary(untied=True)):
        with pytest.raises(ValueError, match="has tokens, an output table or a head of its own"):
            models.export_gguf(base, tmp_path / "t.gguf", lora=LORA, vocabulary=vocabulary)
    with pytest.raises(ValueError, match="head/kernel"):
        models.export_gguf(base, tmp_path / "t.gguf", lora={"head/kernel": LORA[UP]})
    for out, told in (
        (base, "is what is read, or in it"),
        (tmp_path / "tuned.bin", "expected one that ends in .gguf"),
        (tmp_path, "is no name of a GGUF file"),
    ):
        with pytest.raises(ValueError, match=told):
            models.export_gguf(base, out, lora=LORA, overwrite=True)
    there = tmp_path / "there.gguf"
    there.write_text("a text")
    with pytest.raises(ValueError, match="is there: choose another file, or overwrite it"):
        models.export_gguf(base, there, lora=LORA)
    with pytest.raises(ValueError, match="is no GGUF file, and is not overwritten"):
        models.export_gguf(base, there, lora=LORA, overwrite=True)
    assert there.read_text() == "a text"


def pooled(block=32, *, inputs=96, outputs=256, seed=3, size=0.003):
    """A QA-LoRA of two layers."""
    a, b = delta((2, inputs // block, 3), seed, 1.0), delta((2, 3, outputs), seed + 1, size)
    return jlora.QaLoraWeight(jnp.asarray(a), jnp.asarray(b), jnp.float32(2), STACK, block=block,
                              inputs=(inputs,))  # fmt: skip


POOLED = {UP: pooled(), DOWN: pooled(64, inputs=256, outputs=96), QUERY: pooled(outputs=64)}


@pytest.mark.parametrize("kind", ["Q4_1", "Q5_1"])
def test_a_pooled_change_goes_into_the_minima_alone_and_stays_whole(kind, tmp_path):
    base = packed_llama(tmp_path / "base.gguf", every=kind)
    merged = models.export_gguf(base, tmp_path / "tuned.gguf", lora=POOLED)
    before, after = tensors_of(base), tensors_of(merged.path)
    size = gguf.GGML_QUANT_SIZES[KINDS[kind]][1]
    for layer in range(2):
        name = f"blk.{layer}.ffn_up.weight"
        old, new = (raw(each[name]).reshape(256, 3, size) for each in (before, after))
        differ = (old != new).any((0, 1))
        assert set(np.nonzero(differ)[0]) == {2, 3}  # of scale, minimum, quants
        minima = old[..., 2:4].copy().view("<f2")[..., 0]
        change = np.asarray(POOLED[UP].delta())[layer, ::32].T
        np.testing.assert_allclose(
            new[..., 2:4].copy().view("<f2")[..., 0], minima + change, rtol=2**-10, atol=1e-7
        )
    want = flat(jlora.merge(models.load(base).params, POOLED))
    for path, value in flat(models.load(merged.path).params).items():
        np.testing.assert_allclose(value, want[path], atol=1e-3, err_msg=path)
    assert merged.survival == pytest.approx(1, abs=0.01)


def test_a_pooled_change_is_refused_where_it_would_not_stay_whole(tmp_path):
    kinds = {"blk.0.ffn_up.weight": "Q8_0", "blk.1.ffn_up.weight": "Q4_0",
             "blk.0.ffn_down.weight": "Q4_K", "blk.0.attn_q.weight": "Q5_0",
             "blk.1.attn_q.weight": "F16"}  # fmt: skip
    base = packed_llama(tmp_path / "base.gguf", kinds, every="Q4_1")
    with pytest.raises(ValueError, match="stays whole in Q4_1 and Q5_1 alone") as told:
        models.export_gguf(base, tmp_path / "tuned.gguf", lora=POOLED)
    for line in ("blk.0.ffn_up.weight is Q8_0, which has no minima", "blk.1.ffn_up.weight is Q4_0",
                 "blk.0.ffn_down.weight is Q4_K, where blocks share a minimum",
                 "blk.0.attn_q.weight is Q5_0"):  # fmt: skip
        assert line in str(told.value)
    assert "blk.1" not in str(told.value).replace("blk.1.ffn_up", "")
    by_type = models.export_gguf(base, tmp_path / "tuned.gguf", lora=POOLED, type="Q8_0")
    assert tensors_of(by_type.path)["blk.1.ffn_down.weight"].tensor_type == KINDS.Q8_0
    smaller = {QUERY: pooled(16, outputs=64)}
    q41 = packed_llama(tmp_path / "q41.gguf", every="Q4_1")
    table = jlora.QaLoraWeight(jnp.ones((1, 1)), jnp.ones((1, 96)), jnp.float32(1), jlora.Axes(),
                               block=37, inputs=(37,))  # fmt: skip
    for lora in (smaller, {"embed/embedding": table}):
        with pytest.raises(ValueError, match="has blocks of weights over which the adapter's"):
            models.export_gguf(q41, tmp_path / "t.gguf", lora=lora)


def test_a_minimum_beyond_half_precision_is_an_error(tmp_path):
    base = packed_llama(tmp_path / "base.gguf", every="Q4_1")
    with pytest.raises(ValueError, match="a minimum comes out larger than half precision"):
        models.export_gguf(base, tmp_path / "tuned.gguf", lora={UP: pooled(size=1e6)})
