"""What llama.cpp ignores, refuses or ends at: the reasons for which adapters are not written."""

import gguf
import gguf_toys
import numpy as np
import pytest
from llama_cpp import asked

TEXT = [5, 9, 30, 17, 12, 1, 3]


def file_of(path, architecture, pairs, *, alpha=5.0, beside=None):
    """An adapter's file with random A and B of rank 3 for tensors of these shapes, by name."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    for name, (*experts, rows, columns) in pairs.items():
        shapes = {"lora_a": (*experts, 3, columns), "lora_b": (*experts, rows, 3)}
        if name == "token_embd.weight":
            shapes = {"lora_a": (rows, 3), "lora_b": (columns, 3)}
        for end, shape in shapes.items():
            writer.add_tensor(f"{name}.{end}", rng.normal(size=shape).astype(np.float32))
    for name, array in (beside or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


def base_of(family, folder, **changes):
    """(a random model's file, the shapes of its tensors by name)."""
    path = gguf_toys.write(folder / "base.gguf", family, **changes)
    reader = gguf.GGUFReader(path)
    shapes = {tensor.name: tuple(map(int, tensor.shape))[::-1] for tensor in reader.tensors}
    return path, shapes


def probabilities(base, *adapters):
    """llama.cpp's with each adapter; its message where it refuses one."""
    jobs = [{"model": base, "adapters": list(each)} for each in adapters]
    found = asked(*({**job, "texts": [TEXT], "whole": True} for job in jobs))
    return [each.get("error") or np.array(each["next"][0]) for each in found]


# A family, and tensors of which an adapter does nothing.
IGNORED = {
    "deepseek_v3": (
        "deepseek2",
        ("blk.0.attn_q_a.weight", "blk.1.attn_q_b.weight", "blk.1.attn_kv_a_mqa.weight",
         "output.weight"),
    ),
    "gemma3n_text": (
        "gemma3n",
        ("altup_proj.weight", "altup_unembd_proj.weight", "blk.1.altup_router.weight",
         "per_layer_model_proj.weight"),
    ),
    "gpt2": ("gpt2", ("position_embd.weight",)),
}  # fmt: skip


@pytest.mark.parametrize("family", IGNORED)
def test_adapters_of_these_change_nothing(family, tmp_path):
    base, shapes = base_of(family, tmp_path)
    architecture, names = IGNORED[family]
    files = [
        [file_of(tmp_path / f"{at}.gguf", architecture, {name: shapes[name]})]
        for at, name in enumerate(names)
    ]
    plain, *found = probabilities(base, [], *files)
    for name, got in zip(names, found, strict=True):
        np.testing.assert_array_equal(got, plain, err_msg=name)


def test_norms_are_left_unread_and_other_names_refused(tmp_path):
    base, shapes = base_of("llama", tmp_path)
    pair = {"blk.0.attn_q.weight": shapes["blk.0.attn_q.weight"]}
    norm = {"blk.0.attn_norm.weight": np.full(22, 9.0, np.float32)}
    bias = {"blk.0.attn_q.bias": np.ones(40, np.float32)}
    files = [
        [file_of(tmp_path / "pair.gguf", "llama", pair)],
        [file_of(tmp_path / "norm.gguf", "llama", pair, beside=norm)],
        [file_of(tmp_path / "bias.gguf", "llama", pair, beside=bias)],
        [file_of(tmp_path / "other.gguf", "qwen2", pair)],
    ]
    alone, with_norm, with_bias, of_another = probabilities(base, *files)
    np.testing.assert_array_equal(alone, with_norm)
    assert isinstance(with_bias, str)
    assert isinstance(of_another, str)


def test_no_alpha_is_a_scale_of_one(tmp_path):
    base, shapes = base_of("llama", tmp_path)
    pair = {"blk.1.ffn_up.weight": shapes["blk.1.ffn_up.weight"]}
    none, same_as_rank, plain = probabilities(
        base,
        [file_of(tmp_path / "none.gguf", "llama", pair, alpha=0.0)],
        [file_of(tmp_path / "rank.gguf", "llama", pair, alpha=3.0)],
        [],
    )
    np.testing.assert_array_equal(none, same_as_rank)
    assert np.abs(none - plain).max() > 1e-3


def test_a_tied_head_is_refused_and_its_embedding_ends_the_process(tmp_path):
    base, shapes = base_of("llama", tmp_path, tie_word_embeddings=True)
    embedding = shapes["token_embd.weight"]
    head = file_of(tmp_path / "head.gguf", "llama", {"output.weight": embedding})
    [refused] = probabilities(base, [head])
    assert isinstance(refused, str)
    table = file_of(tmp_path / "table.gguf", "llama", {"token_embd.weight": embedding})
    with pytest.raises(RuntimeError, match=r"llama.cpp ended by"):
        probabilities(base, [table])


@pytest.mark.parametrize("tensor", ["blk.1.attn_output.weight", "blk.1.ffn_down.weight"])
def test_glm4_s_products_of_a_set_precision_end_the_process(tensor, tmp_path):
    base, shapes = base_of("glm4", tmp_path)
    file = file_of(tmp_path / "a.gguf", "glm4", {tensor: shapes[tensor]})
    with pytest.raises(RuntimeError, match=r"a->op == GGML_OP_MUL_MAT"):
        probabilities(base, [file])
