"""Adapters of a random model of every family, in llama.cpp and here: the same probabilities."""

import re

import gguf_toys
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from llama_cpp import asked

import jlora
from jlora import models, peft

TEXT = [5, 9, 30, 17, 12, 1, 3, 3, 22, 36, 8]
# llama.cpp looks GELU up in a table of 16 bits; its Gemma 3n divides by one less in a deviation.
BY_TABLE = ("gemma", "gemma2", "gemma3_text", "gemma3n_text", "gpt2", "starcoder2")
# What llama.cpp does nothing with, or what ends it.
_OF_DEEPSEEK = r"attn/(q|q_a|q_b|kv_a|kv_b)_proj/kernel|head/kernel"
UNADAPTED = {
    "deepseek_v2": _OF_DEEPSEEK,
    "deepseek_v3": _OF_DEEPSEEK,
    "gemma3n_text": r"(to|from)_stream_\d/kernel|layer_inputs/.*|layers/altup/router/kernel",
    "glm4": "(attn/o|mlp/down)_proj/kernel",
    "gpt2": "positions/embedding",
}
FAMILIES = [*gguf_toys.FAMILIES_OF_GGUF, "mistral3"]


def applied(model):
    """A function of parameters: the logarithms of the probabilities at each place of the text."""
    return jax.jit(lambda params: jax.nn.log_softmax(model.apply(params, jnp.array([TEXT]))[0]))


def made(family, folder):
    """A random model in a file, and here."""
    if family == "mistral3":
        path = gguf_toys.write(folder / "base.gguf", "mistral", architecture="mistral3")
    else:
        path = gguf_toys.write(folder / "base.gguf", family)
    return path, models.load(path)


def each_leaf(model):
    """An adapter of each matrix of the model alone, all its layers, by its path."""
    narrow = any("shared_gate" in path for path in gguf_toys.flat(model.params))
    ranks = {"rank_pattern": {"shared_gate": 1}} if narrow else {}
    lora, config = gguf_toys.adapter(model, "(kernel|embedding)$", **ranks)
    return {path: {path: node} for path, node in lora.items()}, config


def refused(family, model, path):
    """Whether llama.cpp has nothing like an adapter of the leaf."""
    if path == "embed/embedding":
        return model.config.tied
    return re.search(UNADAPTED.get(family, "^$"), path) is not None


@pytest.mark.parametrize("family", FAMILIES)
def test_each_leaf_alone_moves_llama_cpp_as_it_moves_the_model(family, tmp_path):
    path, model = made(family, tmp_path)
    leaves, config = each_leaf(model)
    apply = applied(model)
    jobs, wanted = [{"model": path}], {"": apply(model.params)}
    for at, (leaf, lora) in enumerate(leaves.items()):
        file = tmp_path / f"{at}.gguf"
        if refused(family, model, leaf):
            with pytest.raises(ValueError, match=f"{leaf}: "):
                peft.publish(file, lora, config, model, format="gguf-lora")
            continue
        peft.publish(file, lora, config, model, format="gguf-lora")
        jobs.append({"model": path, "adapters": [str(file)]})
        wanted[leaf] = apply(jlora.merge(model.params, lora))
    found = asked(*({**job, "texts": [TEXT], "whole": True} for job in jobs))
    near = 1e-2 if family in BY_TABLE else 2e-4
    for (leaf, want), got in zip(wanted.items(), found, strict=True):
        assert "error" not in got, (leaf, got)
        np.testing.assert_allclose(np.log(got["next"][0]), want, atol=near, err_msg=leaf)
        assert leaf == "" or np.abs(want - wanted[""]).max() > 3 * near, leaf
