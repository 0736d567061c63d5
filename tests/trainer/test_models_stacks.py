"""Models of several stacks: routing, latent attention, files and adapters, without the oracle."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tokenizers
from safetensors.numpy import load_file, save_file

import jlora
from jlora import models
from jlora.models import DecoderConfig, Experts, Latent
from jlora.models._net._decoder import Block
from jlora.models._net._layer_differences import prepare
from jlora.models._net._routing import choose
from jlora.models._net._stacks import _periods, stacks

SETTINGS = {
    "model_type": "deepseek_v3",
    "vocab_size": 13,
    "hidden_size": 10,
    "intermediate_size": 9,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "q_lora_rank": 7,
    "kv_lora_rank": 5,
    "qk_nope_head_dim": 3,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "num_nextn_predict_layers": 1,
    "eos_token_id": 0,
}
CORRECTION = "model.layers.{}.mlp.gate.e_score_correction_bias"


def config_of(**changes):
    return models.from_huggingface({**SETTINGS, **changes}, "config.json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random model, with a layer behind the last that predicts further tokens."""
    path = tmp_path_factory.mktemp("model")
    config, rng = config_of(), np.random.default_rng(0)
    shapes, tensors = models.expected_shapes(config), {}
    stored = models.Model(shapes, config, tokenizer=None, name="tiny").stored  # type: ignore
    for leaf, shape in shapes.items():
        layers = {"0": [0], "1": [1, 2]}.get(leaf.removeprefix("layers/")[0], [0])
        for layer in layers:
            its = shape[1:] if leaf.startswith("layers/") else shape
            drawn = rng.normal(0, 0.3, its)
            held = np.float32 if leaf.endswith("correction") else ml_dtypes.bfloat16
            made = models.to_stored(stored[leaf], layer, drawn)
            tensors |= {n: np.ascontiguousarray(each, held) for n, each in made.items()}
    tensors["model.layers.3.eh_proj.weight"] = np.ones((10, 20), np.float32)
    save_file(tensors, path / "model.safetensors")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0, "yes": 1}, "?"))
    words.save(str(path / "tokenizer.json"))
    (path / "config.json").write_text(json.dumps(SETTINGS))
    return path


@pytest.fixture(scope="module")
def model(folder):
    with pytest.warns(UserWarning, match=r"no part of the decoder: layers\.3 \(1 tensors\)"):
        return models.load(folder, dtype="bfloat16")


def test_each_layer_lies_in_its_stack_under_its_own_number(folder, model):
    tensors = load_file(folder / "model.safetensors")
    for layer, (name, at) in enumerate([("0-0", 0), ("1-2", 0), ("1-2", 1)]):
        ours = model.params["layers"][name]["attn"]["kv_a_proj"]["kernel"][at]
        theirs = tensors[f"model.layers.{layer}.self_attn.kv_a_proj_with_mqa.weight"]
        np.testing.assert_array_equal(np.asarray(ours), theirs.T)
    shared = model.names["layers/1-2/mlp/shared/up_proj/kernel"]
    assert shared == "model.layers.{}.mlp.shared_experts.up_proj.weight"


def test_what_corrects_the_choice_of_experts_keeps_float32(folder, model, tmp_path):
    held = model.params["layers"]["1-2"]["mlp"]["router_correction"]
    assert held.dtype == jnp.float32
    assert model.params["layers"]["1-2"]["mlp"]["router"]["kernel"].dtype == jnp.bfloat16
    out = models.export(folder, tmp_path / "out", dtype="float16")
    before, after = (load_file(each / "model.safetensors") for each in (folder, out))
    assert after.keys() == before.keys()  # the layer behind the last too
    np.testing.assert_array_equal(after[CORRECTION.format(2)], before[CORRECTION.format(2)])
    assert after["model.layers.2.mlp.gate.weight"].dtype == np.float16


def test_an_adapter_is_merged_into_its_own_layers_of_a_folder(folder, model, tmp_path):
    axes = dict.fromkeys(
        ("layers/0-0/attn/o_proj/kernel", "layers/1-2/attn/o_proj/kernel"),
        jlora.Axes(inputs=(1,), outputs=(2,), stack=(0,)),
    )
    config = jlora.LoraConfig(targets="o_proj/kernel", rank=2, alpha=3, layers=(0, 2))
    _, lora = jlora.split(model.params, config, jax.random.key(0), axes=axes)
    lora = {p: dataclasses.replace(node, b=node.b + 0.5) for p, node in lora.items()}
    out = models.export(folder, tmp_path / "out", lora=lora)
    before, after = (load_file(each / "model.safetensors") for each in (folder, out))
    for layer, path, at in zip((0, 2), lora, (0, 1), strict=True):
        name = f"model.layers.{layer}.self_attn.o_proj.weight"
        added = 1.5 * np.asarray(lora[path].a[at] @ lora[path].b[at]).T
        want = (before[name].astype("f") + added).astype(ml_dtypes.bfloat16)
        np.testing.assert_array_equal(after[name].astype("f"), want.astype("f"))
        assert np.abs(added).max() > 0.1
    untouched = {name for name in before if np.array_equal(before[name], after[name])}
    assert len(before) - len(untouched) == 2


@pytest.mark.parametrize(
    ("kinds", "periods"),
    [
        ("DDDMMMM", [(1, 3), (1, 4)]),
        ("LLLFLLLFLLLF", [(4, 3)]),
        ("DLLLFLLLF", [(1, 1), (4, 2)]),
        ("DMDMD", [(2, 2), (1, 1)]),
        ("ABBA", [(1, 1), (1, 2), (1, 1)]),
        ("A", [(1, 1)]),
    ],
)
def test_layers_that_come_again_are_compiled_once(kinds, periods):
    assert _periods(kinds) == periods


def test_layers_of_stacks_that_take_turns_are_run_by_their_numbers():
    config = dataclasses.replace(
        config_of(num_hidden_layers=5), expert_layers=(False, True, False, True, True)
    )
    decoder, tokens = models.Decoder(config), jnp.arange(9)[None]
    params = jax.jit(decoder.init)(jax.random.key(0), tokens)["params"]
    assert params["layers"].keys() == {"0-2-2", "1-3-2", "4-4"}
    x, positions = params["embed"]["embedding"][tokens], jnp.arange(9)[None]
    mask = jnp.tril(jnp.ones((9, 9), bool))[None]
    shared, own = prepare(config, positions, positions[:, -1:] + 1, mask, None, jnp.float32)
    for layer in range(5):
        (stack,) = (each for each in stacks(config) if layer in each.layers)
        at = stack.layers.index(layer)
        its = jax.tree.map(lambda leaf, at=at: leaf[at], params["layers"][stack.name])
        x, _ = jax.jit(Block(stack.config).apply)({"params": its}, x, shared, own, None, None)
    hidden = jax.jit(lambda: decoder.apply({"params": params}, tokens, method="hidden"))()
    normed = x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + config.norm_epsilon)
    np.testing.assert_allclose(hidden, normed, rtol=1e-4, atol=1e-5)


def by_hand(experts, scores, correction):
    """The weights of one token's experts, by number."""
    shares = 1 / (1 + np.exp(-scores)) if experts.sigmoid else np.exp(scores) / np.exp(scores).sum()
    ranked = shares + correction
    size = experts.count // experts.groups
    groups = [range(first, first + size) for first in range(0, experts.count, size)]
    best = lambda group: sum(sorted(ranked[[*group]])[-experts.best_of_group :])  # noqa: E731
    kept = sorted(groups, key=best)[-experts.chosen_groups :]
    candidates = sorted((n for group in kept for n in group), key=lambda n: ranked[n])
    chosen = candidates[-experts.chosen :]
    total = sum(shares[n] for n in chosen) if experts.normalised else 1.0
    return {n: experts.scale * shares[n] / total for n in chosen}


@pytest.mark.parametrize(
    "options",
    [
        {"sigmoid": True, "corrected": True, "best_of_group": 2, "normalised": True, "scale": 2.5},
        {"normalised": False, "scale": 3.0},
        {"sigmoid": True, "corrected": True, "groups": 1, "chosen_groups": 1, "normalised": True},
    ],
    ids=str,
)
def test_experts_are_those_of_the_best_groups_and_count_by_their_uncorrected_scores(options):
    experts = Experts(**{"count": 12, "chosen": 3, "width": 1, "groups": 4, "chosen_groups": 2,
                         **options})  # fmt: skip
    rng = np.random.default_rng(1)
    scores, correction = rng.normal(0, 1, (17, 12)), rng.normal(0, 0.4, 12)
    given = jnp.asarray(correction) if experts.corrected else None
    shares, chosen = map(np.asarray, choose(experts, jnp.asarray(scores), given))
    for row in range(17):
        want = by_hand(experts, scores[row], correction if experts.corrected else 0.0)
        got = dict(zip(chosen[row].tolist(), shares[row], strict=True))
        assert got.keys() == want.keys()
        np.testing.assert_allclose([got[n] for n in want], [*want.values()], rtol=1e-5)


def test_a_stretched_rotation_makes_the_scores_sharper():
    yarn = {"type": "yarn", "factor": 40, "mscale": 1.0, "mscale_all_dim": 0.7}
    config = config_of(rope_scaling={**yarn, "original_max_position_embeddings": 32})
    np.testing.assert_allclose(
        config.score_scale, (0.07 * np.log(40) + 1) ** 2 / np.sqrt(7), rtol=1e-6
    )
    assert config_of().score_scale == 7**-0.5
    assert models.from_huggingface(models.to_huggingface(config), "config.json") == config


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"scoring_func": "softmax", "head_dim": 5, "n_shared_experts": None},
            ["scoring_func is 'softmax', but only 'sigmoid'", "head_dim is 5: expected 4",
             "n_shared_experts is missing"],
        ),
        ({"model_type": "deepseek_v2", "topk_method": "noaux_tc", "norm_topk_prob": True},
         ["topk_method is 'noaux_tc', but only 'greedy'", "norm_topk_prob is True"]),
        ({"num_key_value_heads": 1}, ["1 key-value heads for 2 heads"]),
        ({"qk_rope_head_dim": 3}, ["rotated even"]),
        ({"n_group": 3}, ["4 experts can't stand in 3 groups"]),
        ({"n_group": 4, "topk_group": 5}, ["5 of 4 groups can't be chosen",
                                           "a group of 1 experts has no 2 best ones"]),
        ({"num_experts_per_tok": 3}, ["1 groups of 2 experts hold no 3 to choose"]),
        ({"rope_scaling": {"type": "longrope"}}, ["type 'longrope': expected none"]),
    ],
)  # fmt: skip
def test_settings_that_can_not_be_are_refused(changes, told):
    with pytest.raises(ValueError, match=r"^config\.json: ") as caught:
        config_of(**changes)
    for part in told:
        assert part in str(caught.value)


def test_what_can_not_be_stacks_or_latent_is_named():
    sizes = {"vocabulary": 3, "width": 8, "heads": 2, "kv_heads": 2, "mlp_width": 8, "layers": 2}
    with pytest.raises(ValueError, match=r"expert_layers is .*: expected some with") as caught:
        DecoderConfig(
            **sizes, max_length=9, head_dim=6, expert_layers=(False, True), qk_norm=True,
            latent=Latent(width=3, query_width=None, plain=3, rotated=2, value=3),
        )  # fmt: skip
    for part in ("head_dim is 6: expected 3 + 2", "latent and qk_norm exclude each other"):
        assert part in str(caught.value)


def test_attention_in_one_operation_is_refused_where_values_are_of_another_width(folder):
    with pytest.raises(ValueError, match="its values have 6 dimensions a head, its keys 7"):
        models.load(folder, attention="xla")


def test_a_file_without_a_layer_of_a_stack_is_refused_by_its_name(folder, tmp_path):
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.self_attn.kv_b_proj.weight"]
    tensors["model.layers.4.eh_proj.weight"] = tensors["model.layers.3.eh_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_text((folder / name).read_text())
    missing = r"layers\.1\.self_attn\.kv_b_proj\.weight is missing"
    told = pytest.warns(UserWarning, match="left aside")
    with told, pytest.raises(ValueError, match=missing) as caught:
        models.load(tmp_path)
    assert "model.layers.4.eh_proj.weight is not expected" in str(caught.value)


@pytest.mark.parametrize(("windows", "silent"), [((2, None), "1-1"), ((None, 2), "0-0")], ids=str)
def test_each_stack_has_the_windows_of_its_own_layers(windows, silent):
    config = dataclasses.replace(config_of(num_hidden_layers=2), windows=windows)
    decoder, tokens = models.Decoder(config), jnp.arange(9)[None]
    params = jax.jit(decoder.init)(jax.random.key(0), tokens)["params"]
    mute = params["layers"][silent]["attn"]["o_proj"]
    mute["kernel"] = jnp.zeros_like(mute["kernel"])  # what is left is the other layer's attention
    hidden = jax.jit(lambda tokens: decoder.apply({"params": params}, tokens, method="hidden"))
    moved = jnp.abs(hidden(tokens) - hidden(tokens.at[0, 3].set(12))).max(axis=-1)[0] > 0
    assert moved.tolist() == [False] * 3 + [True] * 2 + [False] * 4


def test_the_router_computes_in_float32_whatever_the_weights_are(model):
    tokens = jax.ShapeDtypeStruct((3, 7), jnp.int32)
    traced = jax.make_jaxpr(model.apply)(model.params, tokens)
    products = [line for line in str(traced).splitlines() if "= dot_general" in line]
    assert sum("f32[21,4]" in line for line in products) == 1
    assert sum("bf16[3,7,10]" in line for line in products) == 3  # out of attention twice, the MLP


def test_an_adapter_of_modules_by_their_own_names_is_read(model, tmp_path):
    """As PEFT wrote it before transformers 5, in which each expert has modules of its own."""
    rng, tensors = np.random.default_rng(0), {}
    for module in (
        "layers.0.mlp",
        *(f"layers.{layer}.mlp.shared_experts" for layer in (1, 2)),
        *(f"layers.{layer}.mlp.experts.{n}" for layer in (1, 2) for n in range(4)),
    ):
        inputs = 9 if module == "layers.0.mlp" else 8
        for name, shape in (("lora_A", (2, inputs)), ("lora_B", (10, 2))):
            full = f"base_model.model.model.{module}.down_proj.{name}.weight"
            tensors[full] = rng.normal(size=shape).astype("f")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "target_modules": ["down_proj"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    lora, _ = jlora.peft.load(tmp_path, model)
    of = lambda module: tensors[f"base_model.model.model.{module}.down_proj.lora_A.weight"].T  # noqa: E731
    for path, at, module in (
        ("0-0/mlp", (0,), "layers.0.mlp"),
        ("1-2/mlp/shared", (1,), "layers.2.mlp.shared_experts"),
        ("1-2/mlp/experts", (0, 3), "layers.1.mlp.experts.3"),
    ):
        found = lora[f"layers/{path}/down_proj/kernel"].a[at]
        np.testing.assert_array_equal(found, of(module))
    assert len(lora) == 3
