"""GGUF files as people have them: what their headers and tensors say holds, or is an error."""

import dataclasses
import json
import re
import shutil

import folders
import jax
import numpy as np
import pytest

from jlora import models
from jlora.models import LinearRopeScaling, RopeFactors, RopeScaling

LLAMA31 = {"factor": 8.0, "low": 1.0, "high": 4.0, "positions": 8192}
LLAMA32 = {**LLAMA31, "factor": 32.0}


def frequencies(config):
    """Radians a position, of the whole head."""
    return config.rope_scaling.frequencies(config.rope_theta, config.head_dim, None)


def divisors(theta, pairs, *, factor, low, high, positions):
    """What llama.cpp writes for Llama 3's stretching: its formula by wavelengths."""
    found = []
    for pair in range(pairs):
        wavelength = 2 * np.pi * theta ** (pair / pairs)
        smooth = (positions / wavelength - low) / (high - low)
        if wavelength < positions / high:
            found.append(1.0)
        elif wavelength > positions / low:
            found.append(factor)
        else:
            found.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(found, np.float32)


def with_divisors(tiny, path, values, theta=500000.0):
    folder = shutil.copytree(tiny, path.with_suffix(""))
    folders.edit(folder / "config.json", rope_theta=theta)
    return folders.to_gguf(folder, path, tensors={"rope_freqs.weight": values})


@pytest.mark.parametrize("said", [LLAMA31, LLAMA32], ids=["3.1", "3.2"])
@pytest.mark.parametrize("pairs", [4, 32, 64])
def test_the_divisors_of_llama_are_its_scaling_again(said, pairs):
    from jlora.models._files._gguf_rope import of_divisors

    values = divisors(500000.0, pairs, **said)
    got = of_divisors(values, 500000.0)
    config = dataclasses.replace(CONFIG, head_dim=2 * pairs, rope_scaling=got)
    plain = 500000.0 ** -(np.arange(pairs) / pairs)
    np.testing.assert_allclose(frequencies(config), plain / values, rtol=1e-5)
    if pairs > 4:  # four frequencies leave no point of the ramp to tell the positions by
        assert got == RopeScaling(said["factor"], 1.0, 4.0, 8192)
    assert "llama3" in json.dumps(models.to_huggingface(config))


CONFIG = models.DecoderConfig(
    vocabulary=9,
    width=8,
    layers=1,
    heads=1,
    kv_heads=1,
    head_dim=8,
    mlp_width=8,
    max_length=131072,
    rope_theta=500000.0,
)


def test_a_file_with_divisors_has_their_frequencies(tiny, tmp_path):
    values = divisors(500000.0, 4, **{**LLAMA31, "positions": 64})
    model = models.load(with_divisors(tiny, tmp_path / "tiny.gguf", values))
    assert isinstance(model.config.rope_scaling, RopeScaling)
    plain = np.array([500000.0 ** -(pair / 4) for pair in range(4)])
    np.testing.assert_allclose(frequencies(model.config), plain / values, rtol=1e-6)


def test_divisors_of_no_formula_hold_all_the_same_but_are_no_config_json(tiny, tmp_path):
    values = np.array([1.0, 3.0, 2.0, 7.0], np.float32)
    model = models.load(with_divisors(tiny, tmp_path / "tiny.gguf", values))
    assert model.config.rope_scaling == RopeFactors((1.0, 3.0, 2.0, 7.0))
    plain = np.array([500000.0 ** -(pair / 4) for pair in range(4)])
    np.testing.assert_allclose(frequencies(model.config), plain / values, rtol=1e-6)
    with pytest.raises(ValueError, match=r"no config\.json can say this: rope_scaling"):
        models.to_huggingface(model.config)


@pytest.mark.parametrize(("value", "said"), [(1, None), (4, LinearRopeScaling(4.0))])
def test_divisors_that_are_all_alike_are_one_factor(value, said, tiny, tmp_path):
    path = with_divisors(tiny, tmp_path / "tiny.gguf", np.full(4, value, np.float32))
    assert models.outline(path).config.rope_scaling == said


def test_linear_scaling_in_the_header_holds(tiny, tmp_path):
    linear = [("add_string", "llama.rope.scaling.type", "linear"),
              ("add_float32", "llama.rope.scaling.factor", 4.0)]  # fmt: skip
    path = folders.to_gguf(tiny, tmp_path / "tiny.gguf", header=linear)
    assert models.outline(path).config.rope_scaling == LinearRopeScaling(4.0)


def test_a_split_file_is_its_parts_together(tiny, tmp_path, monkeypatch):
    import gguf

    whole = models.load(folders.to_gguf(tiny, tmp_path / "whole.gguf"))

    def writer(path, architecture):
        return original(path, architecture, split_max_tensors=7)

    original = gguf.GGUFWriter
    monkeypatch.setattr(gguf, "GGUFWriter", writer)
    folders.to_gguf(tiny, tmp_path / "tiny.gguf")
    parts = sorted(tmp_path.glob("tiny-*"))
    assert len(parts) == 3
    for part in (parts[0], parts[2]):
        jax.tree.map(np.testing.assert_array_equal, models.load(part).params, whole.params)
    parts[1].unlink()
    with pytest.raises(ValueError, match=r"one of 3 files, of which tiny-00002-of-00003\.gguf is"):
        models.load(parts[0])


REFUSED = {
    "a scaling that is not known": (
        {"header": [("add_string", "llama.rope.scaling.type", "cubic")]},
        "RoPE scaling of type 'cubic'",
    ),
    "divisors beside a scaling": (
        {
            "header": [
                ("add_string", "llama.rope.scaling.type", "linear"),
                ("add_float32", "llama.rope.scaling.factor", 4.0),
            ],
            "tensors": {"rope_freqs.weight": np.full(4, 2, np.float32)},
        },
        "rope_freqs.weight stands beside rope.scaling.type 'linear'",
    ),
    "divisors of another head": (
        {"tensors": {"rope_freqs.weight": np.ones(5, np.float32)}},
        "rope_freqs.weight is float32[5]: expected float32[4]",
    ),
    "divisors of nothing": (
        {"tensors": {"rope_freqs.weight": np.zeros(4, np.float32)}},
        "expected numbers above 0",
    ),
    "a tensor that nobody knows": (
        {"tensors": {"blk.0.attn_sinks.weight": np.ones(3, np.float32)}},
        "blk.0.attn_sinks.weight is not expected",
    ),
    "factors that nobody reads": (
        {"tensors": {"rope_factors_long.weight": np.ones(4, np.float32)}},
        "rope_factors_long.weight is not expected",
    ),
    "an entry that nobody knows": (
        {"header": [("add_float32", "llama.attention.scale", 0.5)]},
        "llama.attention.scale is 0.5: jlora.models does not know this entry",
    ),
    "a mixture of no known size": (
        {"header": [("add_uint32", "llama.expert_count", 8)]},
        "there is no llama.expert_used_count",
    ),
    "a share of a head": (
        {"header": [("add_uint32", "llama.rope.dimension_count", 4)]},
        "rope.dimension_count is 4, but only 8 is supported",
    ),
    "texts for numbers": (
        {"header": [("add_string", "llama.vocab_size", "259")]},
        "vocab_size is '259': expected a whole number",
    ),
    "no merges": ({"merges": None}, "tokenizer.ggml.merges"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_file_of_this_kind_is_refused_in_a_few_lines(kind, tiny, tmp_path):
    options, told = REFUSED[kind]
    path = folders.to_gguf(tiny, tmp_path / "tiny.gguf", **options)
    with pytest.raises(ValueError, match=re.escape(told)) as caught:
        models.load(path)
    assert len(str(caught.value).splitlines()) <= 20


def test_texts_that_are_no_utf8_are_named_where_they_are_needed(tiny, tmp_path):
    path = folders.to_gguf(
        tiny, tmp_path / "tiny.gguf", header=[("add_description", "~~~~"), ("add_author", "me")]
    )
    content = path.read_bytes()
    path.write_bytes(content.replace(b"~~~~", b"\xff\xfe\xff\xfe"))
    models.outline(path)
    path.write_bytes(content.replace(b"<|im_end|>", b"<|im_\xff\xfe\xff|>"))
    with pytest.raises(ValueError, match=r"tokenizer\.ggml\.tokens in the header is no UTF-8"):
        models.outline(path)
