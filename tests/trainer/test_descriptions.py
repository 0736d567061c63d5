"""What stands beside an adapter's arrays: damaged it is one clear error, and `info` tells all."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from laws import example
from sealed import resealed

import jlora
from jlora import _info, checkpoint, peft

KEY = jax.random.key(0)
CONFIG = jlora.LoraConfig(targets="kernel", rank=2, alpha=3)
FROZEN, LORA = jlora.split({"kernel": jax.random.normal(KEY, (7, 5))}, CONFIG, KEY)


def of_version_2(description):
    del description["config"]
    description["version"] = 2


def with_base(base):
    return lambda description: description.update(base=base)


def with_config(**changes):
    return lambda description: description["config"].update(changes)


GOOD = {"shape": [7, 5], "dtype": "float32", "values": None}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (of_version_2, "adapter.json is damaged: KeyError"),
        (with_base([1]), "the base's fingerprint is no object"),
        (with_base({"kernel": {}}), "the base's fingerprint of kernel is {}"),
        (with_base({"kernel": 3}), "the base's fingerprint of kernel is 3"),
        (with_base({"kernel": {**GOOD, "shape": [7, -5]}}), "the base's fingerprint of kernel is"),
        (with_base({"kernel": {**GOOD, "shape": 35}}), "the base's fingerprint of kernel is"),
        (with_base({"kernel": {**GOOD, "dtype": "float33"}}), "the base's fingerprint of kernel"),
        (with_base({"kernel": {**GOOD, "values": 5}}), "the base's fingerprint of kernel is"),
        (with_base({"kernel": {**GOOD, "sum": 5}}), "the base's fingerprint of kernel is"),
        (with_config(rank_pattern={"(": 2}), r"rank_pattern '\(' is no regular expression"),
    ],
)
def test_a_damaged_description_is_a_value_error_wherever_it_is_read(tmp_path, change, told):
    checkpoint.save(tmp_path, LORA, CONFIG, base=FROZEN)
    resealed(tmp_path / "adapter.json", change)
    for read in (lambda: checkpoint.restore(tmp_path, base=FROZEN), lambda: _info.facts(tmp_path)):
        with pytest.raises(ValueError, match=told):
            read()


def test_fingerprints_of_all_dtypes_are_read_again(tmp_path):
    odd = {"bf": jnp.ones(3, "bfloat16"), "i4": jnp.ones(3, "int4"), "key": KEY, **FROZEN}
    checkpoint.save(tmp_path, LORA, CONFIG, base=odd)
    assert checkpoint.describe(tmp_path)["base"] == checkpoint.fingerprint(odd)
    checkpoint.restore(tmp_path, base=odd)


def test_metadata_that_no_file_can_hold_is_refused_before_any_is_written(tmp_path):
    with pytest.raises(ValueError, match="the metadata can't be written as JSON"):
        checkpoint.save(tmp_path / "x", LORA, CONFIG, metadata={"by": "\ud800"})
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("field", ["targets", "exclude", "train", "rank_pattern", "tokens"])
def test_a_pattern_that_is_none_is_an_error_of_the_configuration(field):
    value = {"rank_pattern": {"(": 3}, "tokens": {"(": (1,)}}.get(field, "(")
    with pytest.raises(ValueError, match=rf"{field} '\(' is no regular expression"):
        jlora.LoraConfig(**{"targets": "kernel", field: value})


@pytest.mark.parametrize(
    "metadata", [{"settings": "fast"}, {"system": ["a", "b"]}, {"model": 5}, {"settings": None}]
)
def test_info_tells_metadata_of_any_kind(tmp_path, metadata):
    checkpoint.save(tmp_path, LORA, CONFIG, metadata=metadata)
    [value] = metadata.values()
    assert str(value) in _info.text(_info.facts(tmp_path)) or value is None


def test_info_tells_each_layers_scaling(tmp_path):
    axes = {"kernel": jlora.Axes(stack=(0,), inputs=(1,), outputs=(2,))}
    config = dataclasses.replace(CONFIG, alpha_pattern={"kernel": (2.0, 4.0, 9.0)})
    _, lora = jlora.split({"kernel": jnp.ones((3, 7, 5))}, config, KEY, axes=axes)
    checkpoint.save(tmp_path, lora, config)
    [leaf] = _info.facts(tmp_path)["leaves"]
    assert leaf["scaling"] == [1.0, 2.0, 4.5] == lora["kernel"].scaling[:, 0].tolist()


def test_info_tells_an_adapter_with_shared_factors(tmp_path):
    config = jlora.LoraConfig(targets="kernel", rank=2, method=example("vera").VeraWeight)
    _, lora = jlora.split(FROZEN, config, KEY)
    checkpoint.save(tmp_path, lora, config)
    facts = _info.facts(tmp_path)
    assert facts["parameters"] == 2 + 5
    assert "vera (1), shared (2)" in _info.text(facts)


def test_info_reads_the_file_that_belongs_to_the_configuration(tmp_path):
    peft.save(tmp_path, LORA, CONFIG, FROZEN, names={"kernel": "model.proj"})
    of_mlx = {"model.proj.lora_a": np.ones((7, 3)), "model.proj.lora_b": np.ones((3, 5))}
    safetensors.numpy.save_file(of_mlx, tmp_path / "adapters.safetensors")
    assert _info.facts(tmp_path)["parameters"] == 2 * (7 + 5)
    parameters = {"rank": 3, "scale": 2.0, "dropout": 0.0}
    told = {"fine_tune_type": "lora", "lora_parameters": parameters}
    (tmp_path / "adapter_config.json").write_text(json.dumps(told))
    assert _info.facts(tmp_path)["parameters"] == 3 * (7 + 5)
