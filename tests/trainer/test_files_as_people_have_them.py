"""Folders of models as people have them load to the same values, or say in a few lines why not."""

import dataclasses
import re
import shutil
import time

import folders
import jax
import numpy as np
import pytest

from jlora import models

Q = "model.layers.0.self_attn.q_proj.weight"
EXTRA = {"x.weight": np.ones((3, 2), np.float32)}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LOADS = {
    "a prefix": folders.renamed(lambda name: f"language_model.{name}"),
    "a prefix within": folders.renamed(lambda n: n.replace("model.", "model.language_model.")),
    "model missing": folders.renamed(lambda name: name.removeprefix("model.")),
    "model doubled": folders.renamed(lambda name: f"model.{name}"),
    "of a parallel run": folders.renamed(lambda name: f"module.{name}"),
    "float64": folders.stored_as(Q, np.float64),
    "rotary buffers": folders.with_tensors(
        lambda _: {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}
    ),
    "its maker's own file beside": folders.beside("consolidated.safetensors", EXTRA),
    "an adapter beside": folders.beside("adapter_model.safetensors", EXTRA),
    "an optimizer's state beside": folders.with_file("optimizer.bin"),
    "shards": folders.in_shards,
    "shards without an index": lambda folder: folders.in_shards(folder, index=False),
    "links": folders.linked_to("model.safetensors", "blob"),
    "settings that change nothing": folders.configured(
        unsloth_fixed=True, pretraining_tp=1, attention_dropout=0.1, use_mrope=False, max_length=20
    ),
    "both kinds of rope settings": folders.configured(
        rope_scaling={"type": "default"},
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    ),
}


def made(change, tiny, tmp_path):
    folder = shutil.copytree(tiny, tmp_path / "folder")
    change(folder)
    return folder


@pytest.fixture(scope="module")
def want(tiny):
    return models.load(tiny)


@pytest.mark.parametrize("kind", LOADS)
def test_a_folder_of_this_kind_is_the_same_model(kind, want, tiny, tmp_path):
    model = models.load(made(LOADS[kind], tiny, tmp_path))
    jax.tree.map(np.testing.assert_array_equal, model.params, want.params)
    assert model.config == want.config


REFUSED = {
    "int8": (folders.stored_as(Q, np.int8), f"{Q} is of dtype I8, expected one of F32"),
    "uint8": (folders.stored_as(Q, np.uint8), f"{Q} is of dtype U8"),
    "bool": (folders.stored_as(Q, np.bool_), f"{Q} is of dtype BOOL"),
    "fp8": (folders.stored_as(Q, folders.FP8), f"{Q} has no scales, {Q}_scale_inv"),
    "the same parameter twice": (
        folders.with_tensors(lambda t: {f"language_model.{Q}": t[Q] + 1}),
        f"language_model.{Q} and {Q}",
    ),
    "a tensor in two files": (
        folders.together(
            lambda folder: folders.in_shards(folder, index=False),
            folders.beside("more.safetensors", {Q: np.ones((3, 2), np.float32)}),
        ),
        f"{Q} is in model-00002-of-00002.safetensors and in more.safetensors",
    ),
    "a shard is missing": (
        folders.together(
            lambda folder: folders.in_shards(folder, index=False),
            folders.without("model-00001-of-00002.safetensors"),
        ),
        "1 of the 2 files model-*-of-00002.safetensors are missing, the first is number 1",
    ),
    "a shard of the index is missing": (
        folders.together(folders.in_shards, folders.without("model-00002-of-00002.safetensors")),
        "names model-00002-of-00002.safetensors, which is missing",
    ),
    "the index of another model": (
        folders.together(
            folders.in_shards,
            lambda folder: folders.edit(
                folder / "model.safetensors.index.json",
                weight_map=dict.fromkeys(
                    (f"model.layers.{n}.mlp.w" for n in range(700)),
                    "model-00001-of-00002.safetensors",
                ),
            ),
        ),
        "is of another model, or a file is",
    ),
    "an index beside a whole file": (
        folders.together(folders.in_shards, folders.beside("model.safetensors", EXTRA)),
        "has model.safetensors and an index of other files",
    ),
    "pickles alone": (
        folders.together(
            folders.without("model.safetensors"), folders.with_file("pytorch_model.bin")
        ),
        "pytorch_model.bin is a pickle, which can run any code, and is not read",
    ),
    "its maker's own file alone": (
        folders.together(
            folders.without("model.safetensors"), folders.beside("consolidated.safetensors", EXTRA)
        ),
        "consolidated.safetensors has other names for its tensors",
    ),
    "an adapter's folder": (
        folders.together(
            folders.without("config.json"), folders.with_file("adapter_config.json", b"{}")
        ),
        "is an adapter, no model: name its base",
    ),
    "a folder around a GGUF file": (
        folders.together(folders.without("config.json"), folders.with_file("tiny.Q4.gguf")),
        "holds tiny.Q4.gguf: name the file itself",
    ),
    "tensors of another model": (
        folders.renamed(lambda name: f"encoder.{name}x"),
        "model.embed_tokens.weight is missing",
    ),
    "a FIFO for a configuration": (folders.as_fifo("config.json"), "is no regular file"),
    "a FIFO for a tokenizer": (folders.as_fifo("tokenizer.json"), "is no regular file"),
    "a FIFO for weights": (folders.as_fifo("model.safetensors"), "is no regular file"),
    "a tokenizer of 1 GB": (
        folders.as_large("tokenizer.json", 10**9),
        "tokenizer.json has 1.00 GB: expected at most 200.00 MB",
    ),
    "nested without end": (
        folders.with_file("config.json", b'{"a":' * 100_000),
        "it is nested too deeply",
    ),
    "both ropes, and they differ": (
        folders.configured(
            rope_scaling=LLAMA3,
            rope_parameters={**LLAMA3, "factor": 32.0, "rope_theta": 500000.0},
        ),
        "rope_scaling and rope_parameters differ in factor: 8.0 and 32.0",
    ),
    "two bases of one rope": (
        folders.configured(rope_parameters={"rope_type": "default", "rope_theta": 500000.0}),
        "rope_theta and rope_parameters differ in rope_theta: 10000.0 and 500000.0",
    ),
    "a setting that nobody knows": (
        folders.configured(embedding_multiplier=12.0),
        "embedding_multiplier is 12.0: jlora.models does not know this setting of a llama model",
    ),
    "numbers as texts": (folders.configured(hidden_size="24"), "hidden_size is '24': expected a"),
    "no whole number": (folders.configured(num_attention_heads=2.5), "num_attention_heads is 2.5"),
    "no number at all": (folders.configured(rms_norm_eps=float("nan")), "rms_norm_eps is nan"),
    "a flag as a text": (
        folders.configured(attention_bias="false"),
        "attention_bias is 'false': expected true or false",
    ),
    "a rope as a text": (
        folders.configured(rope_scaling="linear"),
        "rope_scaling is 'linear': expected an object",
    ),
    "a rope of texts": (
        folders.configured(rope_scaling={"type": "linear", "factor": "8"}),
        "has factor '8': expected a number above 0",
    ),
    "a rope with a key of no kind": (
        folders.configured(rope_scaling={"type": "linear", "factor": 2.0, "mrope_section": [1, 2]}),
        "rope_scaling has mrope_section [1, 2]: jlora.models does not know it",
    ),
    "an end token of no kind": (
        folders.configured(eos_token_id="<end>"),
        "eos_token_id is '<end>', which is no token's number",
    ),
    "a template of no kind": (
        lambda folder: folders.edit(folder / "tokenizer_config.json", chat_template=[1]),
        "tokenizer_config.json: the chat_template is no text",
    ),
    "a negative base": (folders.configured(rope_theta=-1), "rope_theta is -1: expected a number"),
    "a name of no kind": (
        folders.configured(model_type=["x"]),
        "the architecture is ['x']",
    ),
    "an activation of no kind": (folders.configured(hidden_act={}), "hidden_act is {}"),
    "layers without end": (
        folders.configured(num_hidden_layers=10**12),
        "num_hidden_layers is 1000000000000: expected at most 10000",
    ),
    "a width without end": (folders.configured(hidden_size=10**30), "hidden_size is 1000000"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_folder_of_this_kind_is_refused_in_a_few_lines(kind, tiny, tmp_path):
    change, told = REFUSED[kind]
    folder, began = made(change, tiny, tmp_path), time.monotonic()
    with pytest.raises(ValueError, match=re.escape(told)) as caught:
        models.load(folder)
    assert len(str(caught.value).splitlines()) <= 20
    assert time.monotonic() - began < 10


def test_everything_that_is_wrong_with_a_configuration_is_said_together(tiny, tmp_path):
    change = folders.configured(
        rope_scaling=LLAMA3,
        rope_parameters={"rope_type": "linear", "factor": 2.0},
        hidden_act="mish",
        logits_scaling=2.0,
        num_key_value_heads="1",
    )
    with pytest.raises(ValueError, match="differ in rope_type: 'llama3' and 'linear'") as caught:
        models.load(made(change, tiny, tmp_path))
    for told in ("differ in factor: 8.0 and 2.0", "hidden_act is 'mish'", "logits_scaling is 2.0",
                 "num_key_value_heads is '1'"):  # fmt: skip
        assert told in str(caught.value)


def test_a_hub_id_takes_a_revision_and_offline_holds(tiny, want, monkeypatch):
    import huggingface_hub

    asked = []

    def reachable(hub_id, *, revision, **_):
        asked.append((hub_id, revision))
        return str(tiny)

    with monkeypatch.context() as patch:
        patch.setattr(huggingface_hub, "snapshot_download", reachable)
        jax.tree.map(
            np.testing.assert_array_equal, models.load("owner/name@v1.0").params, want.params
        )
    assert asked == [("owner/name", "v1.0")]
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="could not be fetched: LocalEntryNotFoundError"):
        models.load("owner/no-such-model-anywhere")


def test_what_a_family_leaves_aside_is_told_in_one_line(tiny, tmp_path, monkeypatch):
    from jlora.models import _families

    llama = dataclasses.replace(
        _families.FAMILIES["llama"],
        tensors_aside=("vision_tower.",),
        settings_aside=frozenset({"vision_config"}),
    )
    monkeypatch.setitem(_families.FAMILIES, "llama", llama)
    change = folders.together(
        folders.configured(vision_config={"hidden_size": 3}),
        folders.with_tensors(
            lambda _: {f"model.vision_tower.{n}.weight": np.ones(3, np.float32) for n in range(4)}
        ),
    )
    with pytest.warns(UserWarning, match=r"left aside, .*: vision_tower \(4 tensors\)"):
        models.load(made(change, tiny, tmp_path))
