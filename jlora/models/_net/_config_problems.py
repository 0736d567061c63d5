"""What can't be a decoder: numbers out of range, and features that exclude each other."""

from __future__ import annotations

import dataclasses
from typing import Any

from jlora.models._net._rope_scalings import LongRopeScaling

ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu", "relu2")
NORMS = ("rms", "rms_plus_one", "layer", "layer_plus_one", "layer_no_bias")


def problems_of_decoder(config: Any) -> list[str]:
    """What can't be in a `DecoderConfig`, one sentence each."""
    problems = [
        f"{field.name} is {getattr(config, field.name)}: expected at least 1"
        for field in dataclasses.fields(config)
        if field.type == "int" and getattr(config, field.name) < 1
    ]
    if not problems and config.heads % config.kv_heads:
        problems.append(
            f"{config.heads} heads can't share {config.kv_heads} key-value heads evenly"
        )
    whole = config.rotary_share == 1.0 and not config.learned_positions and config.latent is None
    if whole and config.head_dim % 2:
        problems.append(f"head_dim is {config.head_dim}: expected even")
    if not 0 < config.rotary_share <= 1:
        problems.append(f"rotary_share is {config.rotary_share}: expected more than 0, at most 1")
    if isinstance(config.rope_scaling, LongRopeScaling):
        pairs = -(-config.turned // 2)
        for name in ("short", "long"):
            if (count := len(getattr(config.rope_scaling, name))) != pairs:
                problems.append(
                    f"{name}_factor of the RoPE scaling has {count} entries: expected {pairs}"
                )
    for name, known in (("activation", ACTIVATIONS), ("norm", NORMS)):
        if getattr(config, name) not in known:
            problems.append(f"{name} is {getattr(config, name)!r}: expected {', '.join(known)}")
    for name in ("windows", "chunks"):
        each = getattr(config, name) or (None,) * config.layers
        if len(each) != config.layers:
            problems.append(f"{len(each)} {name}: expected {config.layers}, one a layer")
        if any(tokens is not None and tokens < 1 for tokens in each):
            problems.append(f"{name} are {each}: expected each None or at least 1")
    if config.windows is not None and config.chunks is not None:
        problems.append("windows and chunks exclude each other")
    for name in ("rotated", "expert_layers", "linear_layers", "sparsity"):
        if (each := getattr(config, name)) is not None and len(each) != config.layers:
            problems.append(
                f"{name} has {len(each)} entries: expected {config.layers}, one a layer"
            )
    if config.parallel and (config.post_norms or not config.pre_norms):
        problems.append("parallel attention and MLP have one norm, before both")
    if config.experts is not None:
        problems += config.experts.problems()
    if config.expert_layers is not None and (
        config.experts is None or len(set(config.expert_layers)) < 2
    ):
        problems.append(
            f"expert_layers is {config.expert_layers}: expected some with the experts that the "
            "model has, some without"
        )
    problems += (
        _of_linear(config)
        + _of_latent(config)
        + _of_streams(config)
        + _of_borrowing(config)
        + problems_of_labels(config.labels)
    )
    if config.labels and config.tied:
        problems.append("tied is True, but a head for classification is never the embedding")
    return problems


def _of_linear(config: Any) -> list[str]:
    problems = [] if config.linear is None else config.linear.problems()
    if config.linear_layers is not None and (
        config.linear is None or len(set(config.linear_layers)) < 2
    ):
        problems.append(
            f"linear_layers is {config.linear_layers}: expected some by the delta rule that the "
            "model has, some not"
        )
    if config.linear is not None and config.length_that_turns is not None:
        problems.append("linear and longrope exclude each other")
    if config.gated_attention and config.fused_qkv:
        problems.append("gated_attention and fused_qkv exclude each other")
    return problems


def _of_latent(config: Any) -> list[str]:
    if (latent := config.latent) is None:
        return []
    problems = []
    sizes = (latent.width, latent.rotated, latent.value, latent.query_width or 1)
    if min(sizes) < 1 or latent.plain < 0 or latent.rotated % 2:
        problems.append(f"{latent}: expected sizes of at least 1, and rotated even")
    if config.head_dim != latent.plain + latent.rotated:
        problems.append(
            f"head_dim is {config.head_dim}: expected {latent.plain} + {latent.rotated}, the "
            "dimensions that are not rotated and those that are"
        )
    if config.kv_heads != config.heads:
        problems.append(
            f"{config.kv_heads} key-value heads for {config.heads} heads: expected as many, where "
            "keys and values come out of one short vector"
        )
    others = {"fused_qkv": config.fused_qkv, "qk_norm": config.qk_norm, "qk_rms": config.qk_rms}
    others |= {"gated_attention": config.gated_attention}
    others |= {"rotary_share": config.rotary_share != 1, "sinks": config.sinks}
    others |= {"value_rms": config.value_rms}
    problems += [f"latent and {name} exclude each other" for name, on in others.items() if on]
    return problems


def _of_streams(config: Any) -> list[str]:
    problems = []
    if config.streams is not None and config.streams < 2:
        problems.append(f"streams is {config.streams}: expected at least 2")
    if config.laurel_rank is not None and config.laurel_rank < 1:
        problems.append(f"laurel_rank is {config.laurel_rank}: expected at least 1")
    if config.parallel and config.laurel_rank is not None:
        problems.append("laurel_rank and parallel exclude each other")
    if config.layer_inputs is not None and min(dataclasses.astuple(config.layer_inputs)) < 1:
        problems.append(f"{config.layer_inputs}: expected numbers of at least 1")
    if any(not 0 <= share < 1 for share in config.sparsity or ()):
        problems.append(f"sparsity is {config.sparsity}: expected shares from 0 to below 1")
    if config.sparsity is not None and (config.experts is not None or not config.gated):
        problems.append("sparsity is of the MLP's gate: expected gated, and no experts")
    return problems


def _of_borrowing(config: Any) -> list[str]:
    if (count := config.borrowing) is None:
        return []
    if not 0 < count < config.layers:
        return [f"borrowing is {count}: expected at least 1 of {config.layers} layers, not all"]
    others = {"linear": config.linear is not None, "latent": config.latent is not None}
    others |= {"fused_qkv": config.fused_qkv, "chunks": config.chunks is not None}
    others |= {"rotated": config.rotated is not None}
    problems = [f"borrowing and {name} exclude each other" for name, on in others.items() if on]
    windows = config.windows or (None,) * config.layers
    lenders, borrowers = windows[: config.layers - count], windows[config.layers - count :]
    if len(windows) == config.layers and set(borrowers) - set(lenders):
        problems.append(
            f"the last {count} layers have windows {borrowers}: expected each among those of "
            f"the layers before, {lenders}, whose keys and values they read"
        )
    return problems


def problems_of_labels(labels: tuple[str, ...]) -> list[str]:
    """What can't be the labels of a head for classification."""
    return [f"labels are {labels}: expected each once"] if len(set(labels)) < len(labels) else []
