"""Files of small random models, between jlora and transformers in both directions."""

import json

import numpy as np
import pytest
from random_models import (
    both,
    flat,
    logits_of,
    of_the_decoder,
    opened_by_transformers,
    per_layer,
    settings_of,
)
from safetensors.numpy import load_file, save_file
from variants import EAGER, SMALL, VARIANTS, VISION

from jlora import models
from jlora.models._families import FAMILIES
from jlora.models._files._torch_tensors import oriented

pytestmark = pytest.mark.usefixtures("compiled_fast")


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_we_write_is_what_transformers_writes_and_reads(variant, tmp_path):
    _, model, folder = both(variant)
    tensors = {}
    for path, leaf in flat(model.params).items():
        for layer, value in per_layer(path, np.asarray(leaf)):
            tensors |= models.to_stored(model.stored[path], layer, value)
    theirs = load_file(folder / "model.safetensors")
    family, given = settings_of(variant)
    assert tensors.keys() == of_the_decoder(family, theirs)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor, theirs[name])
    ours = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    save_file({**theirs, **ours}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    token_ids = {f"{name}_token_id": SMALL[f"{name}_token_id"] for name in ("bos", "eos", "pad")}
    others = {name: given[name] for name in (*VISION, "audio_config") if name in given}
    settings = {**models.to_huggingface(model.config), **token_ids, **others}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    # both fresh: transformers' rotary frequencies remember what the model has read so far
    read, again = (opened_by_transformers(each, **EAGER) for each in (tmp_path, folder))
    np.testing.assert_array_equal(logits_of(read), logits_of(again))


@pytest.mark.parametrize("family", FAMILIES)
def test_names_are_those_of_the_parameters_in_memory(family):
    oracle, model, _ = both(family)
    named = {
        model.names[path].format(layer): oriented(model.stored[path], value).shape
        for path, leaf in flat(model.params).items()
        for layer, value in per_layer(path, np.asarray(leaf))
    }
    # persistent buffers too, as files hold them
    theirs = {name: value for name, value in oracle.state_dict().items() if name in named} | dict(
        oracle.named_parameters()
    )
    assert named == {name: tuple(theirs[name].shape) for name in of_the_decoder(family, theirs)}


@pytest.mark.parametrize("family", ["qwen3_moe", "qwen2_moe", "mixtral", "granitemoe"])
def test_experts_are_read_from_a_file_by_their_names_in_memory(family, tmp_path):
    oracle, model, folder = both(family)
    held = {name: value.numpy() for name, value in oracle.state_dict().items()}
    name = model.names["layers/mlp/experts/gate_up_proj/kernel"].format(0)
    assert name in held
    assert name not in load_file(folder / "model.safetensors")
    save_file(held, tmp_path / "model.safetensors")
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_text((folder / name).read_text())
    read = flat(models.load(tmp_path).params)
    for path, leaf in flat(model.params).items():
        np.testing.assert_array_equal(read[path], leaf)


def test_a_gpt2_file_without_prefix_and_with_masks_is_read(tmp_path):
    _, model, folder = both("gpt2")
    tensors = {
        name.removeprefix("transformer."): tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    tensors["h.0.attn.bias"] = np.ones((1, 1, 128, 128), np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_text((folder / name).read_text())
    read = flat(models.load(tmp_path).params)
    for path, leaf in flat(model.params).items():
        np.testing.assert_array_equal(read[path], leaf)


def test_names_as_other_releases_write_them_are_read_and_what_is_left_aside_is_said(tmp_path):
    oracle, model, folder = both("gemma3, untied")
    save_file({name: value.numpy() for name, value in oracle.state_dict().items()},
              tmp_path / "model.safetensors")  # fmt: skip
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_text((folder / name).read_text())
    told = r"left aside, .*: multi_modal_projector \(\d+ tensors\), vision_tower \(\d+ tensors\)"
    with pytest.warns(UserWarning, match=told):
        read = flat(models.load(tmp_path).params)
    for path, leaf in flat(model.params).items():
        np.testing.assert_array_equal(read[path], leaf)
