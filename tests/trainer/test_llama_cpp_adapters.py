"""Adapters as llama.cpp's GGUF files: what is written is read again, and nothing is dropped."""

import dataclasses
import json

import gguf
import gguf_toys
import jax
import numpy as np
import pytest

import jlora
from jlora import checkpoint, models, peft
from jlora.__main__ import main


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A random llama out of a GGUF file, its head apart from its embedding."""
    path = gguf_toys.write(tmp_path_factory.mktemp("toy") / "toy.gguf", "llama")
    return models.load(path)


@pytest.fixture(scope="module")
def axes(toy):
    return gguf_toys.axes_of(toy)


@pytest.fixture
def written(toy, axes, tmp_path):
    """An adapter's file."""

    def write(targets="(q|v|down)_proj/kernel", **options):
        lora, config = gguf_toys.adapter(toy, targets, axes=axes, **options)
        path = tmp_path / "adapter.gguf"
        peft.publish(path, lora, config, toy, format="gguf-lora", overwrite=True)
        return path, lora, config

    return write


def same(one, other):
    return jax.tree.all(jax.tree.map(np.array_equal, one, other))


def rewritten(path, out, *, header=(), tensors=(), left_out=()):
    """The file with other entries of its header and other tensors; None removes."""
    reader, kinds = gguf.GGUFReader(path), gguf.GGUFValueType
    entries = {
        name: (field.contents(), field.types[0])
        for name, field in reader.fields.items()
        if not name.startswith("GGUF.")
    }
    for name, value in dict(header).items():
        kind = kinds.STRING if isinstance(value, str) else kinds.FLOAT32
        entries[name] = (value, kinds.ARRAY if isinstance(value, list) else kind)
    writer = gguf.GGUFWriter(out, entries.pop("general.architecture")[0])
    for name, (value, kind) in entries.items():
        if value is not None:
            writer.add_key_value(name, value, kind, kinds.UINT32 if kind == kinds.ARRAY else None)
    held = {tensor.name: np.array(tensor.data) for tensor in reader.tensors} | dict(tensors)
    for name, array in held.items():
        if array is not None:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


@pytest.mark.parametrize("options", [
    {},
    {"rank": 4, "rank_pattern": {"v_proj": 2}},
    {"rank_pattern": {"q_proj": (0, 2, 3)}},
    {"targets": "(embedding|kernel)$"},
    {"rslora": True, "alpha": 6, "rank": 4, "alpha_pattern": {"down_proj": 8.0}},
], ids=str)  # fmt: skip
def test_what_was_written_comes_back_the_same(options, toy, written, tmp_path):
    path, lora, config = written(**options)
    again, told = peft.load(path, toy)
    assert same(jlora.merge(toy.params, again), jlora.merge(toy.params, lora))
    assert {type(node) for node in again.values()} == {type(node) for node in lora.values()}
    if not config.rslora:  # whose alpha is in B
        assert told.alpha == config.alpha
        before = path.read_bytes()
        peft.publish(path, again, told, toy, format="gguf-lora", overwrite=True)
        assert path.read_bytes() == before


def test_the_file_is_the_one_that_llama_cpp_asks_for(toy, written):
    path, lora, _ = written("(q_proj|down_proj|head|embed).*(kernel|embedding)$")
    reader = gguf.GGUFReader(path)
    said = {name: field.contents() for name, field in reader.fields.items()}
    assert said["general.type"] == "adapter"
    assert said["general.architecture"] == "llama"
    assert (said["adapter.type"], said["adapter.lora.alpha"]) == ("lora", 5.0)
    assert "tokenizer.ggml.tokens" not in said
    shapes = {tensor.name: tensor.data.shape for tensor in reader.tensors}
    assert {tensor.tensor_type.name for tensor in reader.tensors} == {"F32"}
    assert shapes["blk.2.attn_q.weight.lora_a"] == (3, 22)
    assert shapes["blk.2.attn_q.weight.lora_b"] == (40, 3)
    assert shapes["token_embd.weight.lora_a"] == (37, 3)
    assert shapes["token_embd.weight.lora_b"] == (22, 3)
    assert shapes["output.weight.lora_b"] == (37, 3)
    assert len(shapes) == 2 * (2 * 3 + 2)
    held = {tensor.name: tensor.data for tensor in reader.tensors}
    b = np.asarray(lora["layers/attn/q_proj/kernel"].b[2]).T  # (heads * head, rank)
    turns = b.reshape(4, 2, 5, 3).swapaxes(1, 2).reshape(40, 3)  # both halves of a head in turns
    np.testing.assert_array_equal(held["blk.2.attn_q.weight.lora_b"], turns)
    np.testing.assert_array_equal(
        held["blk.0.ffn_down.weight.lora_b"],
        np.asarray(lora["layers/mlp/down_proj/kernel"].b[0]).T,
    )


def test_alpha_is_written_where_it_is_one_and_stands_in_b_where_it_is_not(toy, written):
    for options, alpha, factor in (
        ({"rank_pattern": {"v_proj": 2}}, 5.0, 1.0),
        ({"rslora": True, "rank": 4}, 10.0, 1.0),  # as 10 over 4 is 5 over its root
        ({"alpha_pattern": {"v_proj": 9.0}}, 0.0, 3.0),
    ):
        path, lora, _ = written("(q|v)_proj/kernel", **options)
        reader = gguf.GGUFReader(path)
        assert reader.fields["adapter.lora.alpha"].contents() == alpha
        held = {tensor.name: tensor.data for tensor in reader.tensors}
        b = np.asarray(lora["layers/attn/v_proj/kernel"].b[1]).T
        np.testing.assert_allclose(held["blk.1.attn_v.weight.lora_b"], factor * b, rtol=1e-6)


def test_a_file_without_alpha_is_scaled_by_nothing(toy, written, tmp_path):
    path, lora, _ = written()
    bare = rewritten(path, tmp_path / "bare.gguf", header={"adapter.lora.alpha": None})
    got, config = peft.load(bare, toy)
    assert {float(node.scaling) for node in got.values()} == {1.0}
    assert config.alpha == config.rank == 3
    assert same(*({p: n.a for p, n in each.items()} for each in (got, lora)))


@pytest.mark.parametrize(("options", "told"), [
    ({"method": "dora"}, "layers/attn/q_proj/kernel: DoRA"),
    ({"train": "norm/scale"}, "norm/scale: 'whole' is no product of A and B"),
    ({"init": "pissa", "rank": 2}, "init is 'pissa', which took weight"),
], ids=str)  # fmt: skip
def test_what_llama_cpp_has_nothing_like_is_named_and_nothing_written(
    options, told, toy, written, tmp_path
):
    with pytest.raises(ValueError, match="can't hold this one") as error:
        written(**options)
    assert told in str(error.value)
    assert "jlora.models.export writes the model with the adapter merged" in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_an_embedding_that_is_the_head_is_refused_both_ways(toy, written, tmp_path):
    tied = models.load(gguf_toys.write(tmp_path / "tied.gguf", "llama", tie_word_embeddings=True))
    lora, config = gguf_toys.adapter(tied, "embed")
    with pytest.raises(ValueError, match="embed/embedding: it is the head as well"):
        peft.publish(tmp_path / "a.gguf", lora, config, tied, format="gguf-lora")
    path, *_ = written("embed")
    with pytest.raises(ValueError, match=r"token_embd.weight: the model's head is its embedding"):
        peft.load(path, tied)


def test_a_model_without_gguf_files_is_refused(toy, axes, tmp_path):
    other = dataclasses.replace(toy, config=dataclasses.replace(toy.config, family="ministral"))
    lora, config = gguf_toys.adapter(toy, "q_proj/kernel", axes=axes)
    with pytest.raises(ValueError, match=r"of which jlora knows no GGUF files: .*llama, "):
        peft.publish(tmp_path / "a.gguf", lora, config, other, format="gguf-lora")


def test_a_folder_becomes_a_file_of_another_architecture_than_its_family_is_read_from(toy):
    from jlora.models._files._gguf_rows import Places

    mistral = dataclasses.replace(toy.config, family="mistral")
    of_folder = dataclasses.replace(toy, config=mistral, name="folder")
    of_file = dataclasses.replace(toy, config=mistral)
    assert Places(of_folder).architecture == "llama"
    assert Places(of_file).architecture == "mistral3"
    assert Places(of_folder).architectures == ("mistral3", "llama")


WRONG = {
    "general.type is 'model'": {"header": {"general.type": "model"}},
    "adapter.type is 'control'": {"header": {"adapter.type": "control"}},
    "adapter.lora.alpha is nan": {"header": {"adapter.lora.alpha": float("nan")}},
    "adapter.alora.invocation_tokens": {"header": {"adapter.alora.invocation_tokens": [3, 4]}},
    "is of a qwen2 model, but": {"header": {"general.architecture": "qwen2"}},
    "attn_q.weight.lora_b: missing": {"tensors": {"blk.1.attn_q.weight.lora_b": None}},
    "blk.9.attn_q.weight: the model has no such tensor": {
        "tensors": {
            "blk.9.attn_q.weight.lora_a": np.ones((3, 22), np.float32),
            "blk.9.attn_q.weight.lora_b": np.ones((40, 3), np.float32),
        }
    },
    "blk.0.attn_norm.weight: expected the name of a lora_a or a lora_b": {
        "tensors": {"blk.0.attn_norm.weight": np.ones(22, np.float32)}
    },
    r"blk.1.attn_q.weight.lora_a: expected \(3, 22\), got \(3, 21\)": {
        "tensors": {"blk.1.attn_q.weight.lora_a": np.ones((3, 21), np.float32)}
    },
    r"blk.1.attn_q.weight.lora_b: expected \(40, 2\), got \(40, 3\)": {
        "tensors": {"blk.1.attn_q.weight.lora_a": np.ones((2, 22), np.float32)}
    },
    "blk.1.attn_q.weight.lora_a holds what is no finite number": {
        "tensors": {"blk.1.attn_q.weight.lora_a": np.full((3, 22), np.inf, np.float32)}
    },
    "blk.1.attn_q.weight.lora_a is of type I32": {
        "tensors": {"blk.1.attn_q.weight.lora_a": np.ones((3, 22), np.int32)}
    },
}


@pytest.mark.parametrize("told", WRONG)
def test_a_file_that_does_not_fit_is_named(told, toy, written, tmp_path):
    path, *_ = written()
    with pytest.raises(ValueError, match=told):
        peft.load(rewritten(path, tmp_path / "wrong.gguf", **WRONG[told]), toy)


def test_another_number_of_experts_is_named(tmp_path):
    one, other = (
        models.load(gguf_toys.write(tmp_path / f"{count}.gguf", "mixtral", num_local_experts=count))
        for count in (5, 4)
    )
    lora, config = gguf_toys.adapter(one, "experts/down_proj")
    path = tmp_path / "adapter.gguf"
    peft.publish(path, lora, config, one, format="gguf-lora")
    wrong = r"ffn_down_exps.weight.lora_a: expected \(4, 3, 26\), got \(5, 3, 26\)"
    with pytest.raises(ValueError, match=wrong):
        peft.load(path, other)


def test_packed_and_half_numbers_are_read_in_32_bits(toy, written, tmp_path):
    path, lora, _ = written()
    held = {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(path).tensors}
    half = {name: array.astype(np.float16) for name, array in held.items()}
    got, config = peft.load(rewritten(path, tmp_path / "half.gguf", tensors=half), toy)
    assert config.dtype == "float32"
    for leaf, node in got.items():
        np.testing.assert_array_equal(node.a, np.asarray(lora[leaf].a).astype(np.float16))


@pytest.fixture
def kept(toy, axes, tmp_path):
    """A saved adapter in jlora's own format."""
    lora, config = gguf_toys.adapter(toy, "(q|down)_proj/kernel", axes=axes)
    about = {"model": toy.name, "system": "Be brief.", "settings": {"data": "rows.jsonl"}}
    checkpoint.save(tmp_path / "a", lora, config, base=toy.params, metadata=about)
    return tmp_path / "a", lora


def test_export_writes_the_file_and_every_command_takes_it(kept, toy, tmp_path, capsys):
    folder, lora = kept
    out = tmp_path / "out" / "adapter.gguf"
    given = ["export", "--adapter", str(folder), "--out", str(out), "--format", "gguf-lora"]
    assert main(given) == 0
    assert "of       llama models" in capsys.readouterr().out
    assert [path.name for path in out.parent.iterdir()] == ["adapter.gguf"]
    assert main(given) == 2
    assert "is there already" in capsys.readouterr().err
    assert main([*given, "--overwrite"]) == 0
    for_peft = ["--out", str(tmp_path / "peft"), "--format", "peft"]
    assert main(["export", "--adapter", str(out), *for_peft]) == 0
    again, _ = peft.load(tmp_path / "peft", toy)
    assert same(jlora.merge(toy.params, again), jlora.merge(toy.params, lora))
    merged = tmp_path / "merged"
    assert main(["merge", "--adapter", str(out), "--out", str(merged)]) == 0
    got = models.load(merged).params
    assert same(got, jlora.merge(toy.params, lora))


def test_a_file_s_name_must_be_that_of_a_gguf_file(kept, tmp_path, capsys):
    given = ["--adapter", str(kept[0]), "--format", "gguf-lora", "--out"]
    assert main(["export", *given, str(tmp_path / "folder")]) == 2
    assert "expected NAME.gguf" in capsys.readouterr().err


def test_info_says_what_a_file_is(written, capsys):
    path, *_ = written(rank_pattern={"v_proj": 2})
    assert main(["info", str(path), "--json"]) == 0
    known = json.loads(capsys.readouterr().out)
    assert (known["kind"], known["architecture"], known["alpha"]) == ("gguf adapter", "llama", 5.0)
    ranks = {each["tensor"]: (each["ranks"], each["count"]) for each in known["tensors"]}
    assert ranks == {
        "blk.*.attn_q.weight": ([3], 3),
        "blk.*.attn_v.weight": ([2], 3),
        "blk.*.ffn_down.weight": ([3], 3),
    }
    assert main(["info", str(path)]) == 0
    assert "rank     2-3" in capsys.readouterr().out


def test_ollama_gets_a_folder_with_base_adapter_and_system_message(kept, toy, tmp_path, capsys):
    folder, lora = kept
    out = tmp_path / "ollama"
    given = ["export", "--adapter", str(folder), "--out", str(out), "--format", "ollama"]
    assert main(given) == 0
    lines = (out / "Modelfile").read_text().splitlines()
    assert lines == [f"FROM {toy.name}", "ADAPTER ./adapter.gguf", 'SYSTEM """Be brief."""']
    assert sorted(path.name for path in out.iterdir()) == ["Modelfile", "README.md", "adapter.gguf"]
    assert "rows.jsonl" in (out / "README.md").read_text()
    again, _ = peft.load(out, toy)
    assert same(jlora.merge(toy.params, again), jlora.merge(toy.params, lora))
    assert main(given) == 2
    assert "is not empty" in capsys.readouterr().err
    assert main([*given, "--overwrite", "--base-model", "llama3.2"]) == 0
    assert (out / "Modelfile").read_text().startswith("FROM llama3.2\n")


def test_ollama_has_to_be_told_the_base_of_a_folder(toy, axes, tmp_path):
    lora, config = gguf_toys.adapter(toy, "q_proj/kernel", axes=axes)
    other = dataclasses.replace(toy, name="owner/model")
    with pytest.raises(ValueError, match=r"owner/model is no GGUF file: give base_model"):
        peft.publish(tmp_path / "o", lora, config, other, format="ollama")
    quoted = {"system": 'Say """.'}
    with pytest.raises(ValueError, match="system message can't stand in a Modelfile"):
        peft.publish(tmp_path / "o", lora, config, toy, format="ollama", about=quoted)
    assert not (tmp_path / "o").exists()
