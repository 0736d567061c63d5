"""A random model in torch and the same in jlora; adapters that PEFT makes, and what agrees."""

import copy
import functools
import logging
import warnings
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import peft
import safetensors.torch
import torch
from random_models import both

import jlora
import jlora.peft
from jlora import models

TOKENS = np.random.default_rng(1).integers(3, 83, (2, 13))


class Base(NamedTuple):
    """A random model in torch, the same in jlora, how jlora uses its weights."""

    torch: torch.nn.Module
    model: models.Model
    axes: jlora.TracedAxes
    logits: Callable  # of parameters, compiled once


@functools.cache
def base(variant):
    oracle, model, _ = both(variant)
    tokens, jitted = jnp.asarray(TOKENS), jax.jit(model.apply)
    axes = jlora.trace_axes(model.apply, model.params, tokens)
    return Base(oracle, model, axes, lambda params: jitted(params, tokens))


def made_by_peft(model, folder, *, r=4, lora_alpha=6, add=False, **options):
    """An adapter of LoRA with random values, and the logits that PEFT computes with it."""
    config = peft.LoraConfig(r=r, lora_alpha=lora_alpha, task_type="CAUSAL_LM", **options)
    return logits_of(adapted_in_peft(model, folder, config, add=add))


def adapted_in_peft(model, folder, config, *, add=False):
    """PEFT's model with random values in its adapter, which is saved."""
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = peft.get_peft_model(copy.deepcopy(model), config)
        for name, value in adapted.named_parameters():
            if value.requires_grad:
                factor = "lora_" in name and "magnitude" not in name and not add
                # in place: a tied adapter's head has the memory of its embedding
                value.data.mul_(0 if factor else 1).add_(torch.randn_like(value) * 0.3)
        adapted.eval().save_pretrained(folder)
    return adapted


def logits_of(model):
    with torch.no_grad():
        return model(torch.tensor(TOKENS)).logits.numpy()


def in_peft(model, folder, caplog):
    """PEFT's model with an adapter that jlora wrote; nothing is said about it."""
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        adapted = peft.PeftModel.from_pretrained(copy.deepcopy(model), folder).eval()
    assert not caplog.records
    return adapted


def assert_near(got, want, tolerance=1e-4):
    assert np.abs(np.asarray(got) - want).max() < tolerance * np.abs(want).max()


def assert_same_tensors(got, want):
    """All but copies: of frozen tables beside an adapter of them, of biases of saved modules."""
    got, want = (
        safetensors.torch.load_file(folder / "adapter_model.safetensors") for folder in (got, want)
    )
    copies = ("base_layer.weight", "modules_to_save.bias", "original_module.bias")
    want = {name: tensor for name, tensor in want.items() if not name.endswith(copies)}
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        assert (got[name].dtype, got[name].shape) == (tensor.dtype, tensor.shape), name
        if "token_adapter" in name:  # the frozen row and what is added to it, in float32
            torch.testing.assert_close(got[name], tensor, rtol=0, atol=1e-7)
        else:
            assert torch.equal(got[name], tensor), name


def assert_merged_alike(params, layout, merged):
    """jlora's merged tree against a merged torch model."""
    theirs = dict(merged.named_parameters())
    from jlora.peft import _names

    compared = set()
    leaves, _ = jlora._paths.flatten(params)
    for name, parameter in _names.layout(layout, None, None).parameters.items():
        ours = parameter.in_torch(
            lambda path, leaf=parameter.parts[0].leaf: leaf.matrices(leaves[path])
        )
        assert_near(ours, theirs[name].detach().numpy(), 1e-5)
        compared.add(name)
    aside = _names.layout(layout, None, None).aside
    assert compared == {n for n in theirs if not n.removeprefix("model.").startswith(aside)}
