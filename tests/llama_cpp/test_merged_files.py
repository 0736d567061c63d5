"""Merged GGUF files in llama.cpp: it answers by them as the merged model does here."""

import gguf_toys
import jax
import jax.numpy as jnp
import merged_files
import numpy as np
import pytest
from llama_cpp import asked

import jlora
from jlora import models

TEXT = [5, 9, 30, 17, 12, 1, 3, 3, 22, 36, 8]
# llama.cpp looks GELU up in a table of 16 bits; its Gemma 3n divides by one less in a deviation.
BY_TABLE = ("gemma", "gemma2", "gemma3_text", "gemma3n_text", "gpt2", "starcoder2")


def applied(model):
    """A function of parameters: the logarithms of the probabilities at each place of the text."""
    return jax.jit(lambda params: jax.nn.log_softmax(model.apply(params, jnp.array([TEXT]))[0]))


def in_llama_cpp(*paths):
    """The same of files."""
    found = asked(*({"model": path, "texts": [TEXT], "whole": True} for path in paths))
    return [np.log(each["next"][0]) for each in found]


@pytest.mark.parametrize("family", merged_files.READ)
def test_a_merged_file_is_the_merged_model_in_llama_cpp_of(family, tmp_path):
    base = gguf_toys.write(tmp_path / "base.gguf", family)
    model = models.load(base)
    narrow = any("shared_gate" in path for path in gguf_toys.flat(model.params))
    ranks = {"rank_pattern": {"shared_gate": 1}} if narrow else {}
    lora, _ = gguf_toys.adapter(model, "(kernel|embedding)$", **ranks)
    merged = models.export_gguf(base, tmp_path / "tuned.gguf", lora=lora)
    apply, [got] = applied(model), in_llama_cpp(merged.path)
    want = apply(jlora.merge(model.params, lora))
    np.testing.assert_allclose(got, want, atol=1e-2 if family in BY_TABLE else 5e-4)
    assert np.abs(want - apply(model.params)).max() > 0.02


def test_a_pooled_change_moves_a_file_of_4_bits_and_a_plain_one_hardly_does(tmp_path):
    base = merged_files.packed_llama(tmp_path / "base.gguf", every="Q4_1")
    model = models.load(base)
    pooled, plain = (
        gguf_toys.adapter(model, "_proj/kernel", strength=strength, method=method)[0]
        for method, strength in (("qalora", 0.03), ("lora", 0.03))
    )
    files = [
        models.export_gguf(base, tmp_path / f"{name}.gguf", lora=lora).path
        for name, lora in (("pooled", pooled), ("plain", plain))
    ]
    of_base, of_pooled, of_plain = in_llama_cpp(base, *files)
    apply = applied(model)
    before = np.asarray(apply(model.params))

    def moved_as_here(after, lora):
        """The share of the way from the base to the adapted model."""
        change = np.asarray(apply(jlora.merge(model.params, lora))) - before
        return ((after - of_base) * change).sum() / (change * change).sum()

    assert 0.9 < moved_as_here(of_pooled, pooled) < 1.1
    assert moved_as_here(of_plain, plain) < 0.5
