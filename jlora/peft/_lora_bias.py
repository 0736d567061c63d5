"""``lora_bias``: a bias on PEFT's B, which here is a delta of the layer's own bias."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np

from jlora._lora_dict import Lora
from jlora._methods import BiasDelta
from jlora._peft_form import BiasOnB
from jlora.peft._layout import Layout, Parameter
from jlora.peft._pairs import Pair


def tensor_name(prefix: str) -> str:
    """The bias's name; ``prefix`` is the adapted parameter's."""
    return f"{prefix}.lora_B.bias"


def read(
    pairs: Mapping[str, Pair],
    layout: Layout,
    take: Callable[[str], np.ndarray | None],
    problems: list[str],
) -> Lora:
    """The node of every bias beside an adapted module; what is wrong goes to ``problems``."""
    deltas: dict[str, np.ndarray] = {}
    scalings: dict[str, np.ndarray] = {}
    for name, pair in pairs.items():
        module = layout.parameters[name].module
        tensor, bias = take(tensor_name(module)), layout.parameters.get(f"{module}.bias")
        if bias is None:
            problems.append(f"{module} has no bias in the model, which lora_bias=True needs")
        elif tensor is None:
            problems.append(f"{tensor_name(module)}: missing")
        elif tensor.shape != (bias.outputs,):
            problems.append(
                f"{tensor_name(module)}: expected {(bias.outputs,)}, got {tensor.shape}"
            )
        else:
            for part in bias.parts:
                leaf = part.leaf
                zeros = np.zeros((*leaf.stack, leaf.outputs), np.float32)
                delta = deltas.setdefault(leaf.path, zeros)
                scaling = scalings.setdefault(leaf.path, np.zeros(leaf.stack, np.float32))
                shared = scaling[part.layer] or pair.scaling[0]
                scaling[part.layer] = shared
                # of fused modules that differ in their scaling, the delta takes the difference
                delta[part.layer][part.ours] = tensor[part.theirs] * (pair.scaling[0] / shared)
    return {
        path: BiasDelta(
            jnp.asarray(layout.leaves[path].from_matrices(delta)), _uniform(scalings[path])
        )
        for path, delta in deltas.items()
    }


def write(
    parameter: Parameter, pair: Pair, biases: Mapping[str, BiasOnB], layout: Layout
) -> np.ndarray | str:
    """The bias on the B of one adapted module (zeros where it has none), or what is wrong."""
    bias = layout.parameters.get(f"{parameter.module}.bias")
    if bias is None or parameter.lone:
        return f"{parameter.full_name} has no bias: with PEFT's lora_bias every module has one"
    whole = np.zeros(bias.outputs, pair.b.dtype)
    for part in bias.parts:
        if form := biases.get(part.leaf.path):
            delta = part.leaf.matrices(form.delta)[part.layer]
            scaling = np.broadcast_to(form.scaling, part.leaf.stack)[part.layer]
            whole[part.theirs] = delta[part.ours] * (scaling / pair.scaling[0])
    return whole


def _uniform(scaling: np.ndarray) -> jnp.ndarray:
    """() where all layers have one and the same."""
    same = (scaling == scaling.flat[0]).all()
    return jnp.asarray(scaling.reshape(-1)[0] if same else scaling)
