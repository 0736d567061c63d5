"""Adapters in PEFT's format without PEFT: round trips, a tree of one's own, and broken files."""

import json
import shutil
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jlora
from jlora import models, peft

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def model(tiny):
    return models.load(tiny)


def moved(lora, seed=1):
    """The adapter with noise on all that trains."""

    def noisy(path, leaf, trains):
        key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(str(path).encode()))
        return leaf + 0.3 * jax.random.normal(key, leaf.shape, leaf.dtype) if trains else leaf

    return jax.tree_util.tree_map_with_path(noisy, lora, jlora.mask(lora))


def adapter(model, **options):
    tokens = jnp.zeros((1, 4), int)
    axes = jlora.trace_axes(model.apply, model.params, tokens)
    config = jlora.LoraConfig(**{"targets": "q_proj|down_proj", "rank": 3, **options})
    _, lora = jlora.split(model.params, config, KEY, axes=axes)
    return moved(lora), config


def assert_same(got, want):
    assert list(got) == list(want)
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rslora": True, "alpha_pattern": {"down": 5.0}, "rank_pattern": {"q_proj": 2}},
        {"method": "dora", "dropout": 0.1},
        {"targets": "q_proj|embed", "init": "gaussian"},
        {"train": "norm"},
        {"dtype": "bfloat16"},
    ],
    ids=str,
)
def test_what_is_saved_comes_back_bit_for_bit(model, tmp_path, options):
    lora, config = adapter(model, **options)
    peft.save(tmp_path / "a", lora, config, model)
    again, its_config = peft.load(tmp_path / "a", model)
    assert_same(again, lora)
    assert (its_config.rslora, its_config.method) == (config.rslora, config.method)
    written = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert (written["peft_type"], written["task_type"]) == ("LORA", "CAUSAL_LM")
    assert written["base_model_name_or_path"] == model.name


def test_a_layer_that_is_not_adapted_is_no_target(model, tmp_path):
    lora, config = adapter(model, rank_pattern={"q_proj": (0, 2)})
    peft.save(tmp_path / "a", lora, config, model)
    again, its_config = peft.load(tmp_path / "a", model)
    jax.tree.map(
        np.testing.assert_array_equal,
        jlora.merge(model.params, again),
        jlora.merge(model.params, lora),
    )
    assert its_config.ranks_for("layers/attn/q_proj/kernel") == (0, 2)
    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    assert not any("layers.0.self_attn" in name for name in tensors)


def test_rows_of_tokens_come_back_within_rounding(model, tmp_path):
    lora, config = adapter(model, tokens={"embed": (5, 17)})
    peft.save(tmp_path / "a", lora, config, model)
    again, _ = peft.load(tmp_path / "a", model)
    assert again["embed/embedding"].tokens == (5, 17)
    np.testing.assert_allclose(
        again["embed/embedding"].delta, lora["embed/embedding"].delta, atol=1e-6
    )


def test_names_and_orientation_are_those_of_peft(model, tmp_path):
    lora, config = adapter(model)
    peft.save(tmp_path / "a", lora, config, model)
    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    node = lora["layers/attn/q_proj/kernel"]
    prefix = "base_model.model.model.layers.1.self_attn.q_proj"
    np.testing.assert_array_equal(tensors[f"{prefix}.lora_A.weight"], node.a[1].T)
    np.testing.assert_array_equal(tensors[f"{prefix}.lora_B.weight"], node.b[1].T)
    assert len(tensors) == 2 * 2 * 2


# A tree of one's own

OWN = {
    "blocks": {"w": jax.random.normal(KEY, (2, 7, 5)), "b": jnp.zeros((2, 5))},
    "qkv": jax.random.normal(KEY, (7, 6)),
    "head": jax.random.normal(KEY, (11, 7)),  # acts from the left
}
OWN_AXES = {
    "blocks/w": jlora.Axes((1,), (2,), (0,)),
    "qkv": jlora.Axes(),
    "head": jlora.Axes((1,), (0,)),
}
NAMES = {
    "blocks/w": "net.{}.linear",
    "blocks/b": "net.{}.linear.bias",
    "qkv": {"net.q": 2, "net.k": 1, "net.v": 3},
    "head": "out",
}


def own_adapter(**options):
    config = jlora.LoraConfig(**{"targets": "w|qkv|head", "rank": 2, **options})
    _, lora = jlora.split(OWN, config, KEY, axes=OWN_AXES)
    return moved(lora), config


@pytest.mark.parametrize("names", [NAMES, NAMES.get], ids=["table", "function"])
@pytest.mark.parametrize("options", [{}, {"targets": "w", "bias": "lora"}], ids=str)
def test_a_tree_of_ones_own_needs_its_names(tmp_path, names, options):
    lora, config = own_adapter(**options)
    peft.save(tmp_path / "a", lora, config, OWN, names=names, axes=OWN_AXES)
    again, its_config = peft.load(tmp_path / "a", OWN, names=names, axes=OWN_AXES)
    got, want = jlora.merge(OWN, again), jlora.merge(OWN, lora)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got, want)
    assert its_config.bias == config.bias
    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    assert tensors["base_model.model.net.1.linear.lora_A.weight"].shape == (2, 7)
    if not options:  # one leaf here, three modules there: they share A
        for name, outputs in (("q", 2), ("k", 1), ("v", 3)):
            assert tensors[f"base_model.model.net.{name}.lora_A.weight"].shape == (2, 7)
            assert tensors[f"base_model.model.net.{name}.lora_B.weight"].shape == (outputs, 2)
        assert tensors["base_model.model.out.lora_B.weight"].shape == (11, 2)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (None, "names is missing: expected a jlora.models.Model, or a tree of parameters with"),
        ({"blocks/v": "net"}, "names has 'blocks/v', which is no leaf. The nearest: blocks/"),
        ({"qkv": {"q": 2, "k": 1}}, "qkv has 6 outputs, its names speak of 3"),
    ],
)
def test_names_that_do_not_fit_the_tree(tmp_path, names, message):
    lora, config = own_adapter()
    with pytest.raises(ValueError, match=message):
        peft.save(tmp_path / "a", lora, config, OWN, names=names, axes=OWN_AXES)
    assert not (tmp_path / "a").exists()


# What can be wrong


@pytest.fixture
def saved(model, tmp_path):
    lora, config = adapter(model)
    peft.save(tmp_path / "a", lora, config, model)
    return tmp_path / "a"


def refused(directory, model):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the callers look
        peft.load(directory, model)
    return str(error.value)


def test_every_tensor_that_does_not_fit_is_named(saved, model):
    path = saved / "adapter_model.safetensors"
    tensors = load_file(path)
    names = sorted(tensors)
    tensors[names[0]] = np.ones((4, 5), np.float32)
    del tensors[names[3]]
    tensors["base_model.model.model.layers.9.mlp.up_proj.lora_A.weight"] = np.ones((3, 3), "f4")
    save_file(tensors, path)
    told = refused(saved, model)
    first, missing = (name.removeprefix("base_model.model.") for name in (names[0], names[3]))
    assert f"{first}: expected (3, 40), got (4, 5)" in told
    assert f"{missing}: missing" in told
    assert "model.layers.9.mlp.up_proj.lora_A.weight: not expected" in told


def test_numbers_that_are_none_are_named(saved, model):
    path = saved / "adapter_model.safetensors"
    tensors = load_file(path)
    name = min(tensors)
    tensors[name][0, 0] = np.nan
    save_file(tensors, path)
    assert f"{name} holds what is no finite number" in refused(saved, model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_qalora": True, "corda_config": {"a": 1}}, "use_qalora is True: jlora has only Fals"),
        ({"use_qalora": True, "corda_config": {"a": 1}}, "corda_config is {'a': 1}"),
        ({"from_the_future": 3}, "from_the_future is 3: this jlora does not know the field"),
        ({"init_lora_weights": "pissa_niter_4"}, "Convert it in PEFT: save_pretrained("),
        ({"init_lora_weights": "loftq"}, "it belongs to a base that was quantised in PEFT"),
        ({"r": 0}, "r is 0: expected a whole number of at least 1"),
        ({"lora_alpha": "x"}, "lora_alpha is 'x': expected a number above 0"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3', and no registered method has that format"),
        ({"lora_bias": True}, "has no bias in the model, which lora_bias=True needs"),
        ({"r": 2}, "expected (2, 24), got (3, 24)"),
    ],
    ids=str,
)
def test_what_jlora_can_not_honour_is_named(saved, model, change, message):
    path = saved / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert message in refused(saved, model)


def test_a_field_of_the_future_that_says_nothing_is_passed_over(saved, model):
    path = saved / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "later": None, "other": {}}))
    peft.load(saved, model)


def test_files_that_are_missing_cut_short_or_pickles(saved, model, tmp_path):
    tensors, config = saved / "adapter_model.safetensors", saved / "adapter_config.json"
    whole = tensors.read_bytes()
    tensors.write_bytes(whole[:-7])
    assert "no whole safetensors file" in refused(saved, model)
    tensors.unlink()
    assert "holds no PEFT adapter: adapter_model.safetensors is missing" in refused(saved, model)
    (saved / "adapter_model.bin").write_bytes(b"cos\nsystem\n")
    assert "is a pickle, which can run any code, and is not read" in refused(saved, model)
    config.write_text("{")
    assert "adapter_config.json is damaged" in refused(saved, model)
    config.unlink()
    assert "adapter_config.json is missing" in refused(saved, model)
    assert "is no folder: expected one with adapter_config.json" in refused(tmp_path / "b", model)


def test_what_is_there_stays_unless_it_is_to_be_replaced(saved, model, monkeypatch):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    lora, config = adapter(model, rank=2)

    def files():
        return {path.name: path.read_bytes() for path in saved.iterdir()}

    with pytest.raises(ValueError, match="is not empty"):
        peft.save(saved, lora, config, model)
    assert files() == before
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 9))
        with pytest.raises(OSError, match="could not be written: it needs"):
            peft.save(saved, lora, config, model, overwrite=True)
    assert files() == before
    peft.save(saved, lora, config, model, overwrite=True)
    assert_same(peft.load(saved, model)[0], lora)


def test_what_this_format_does_not_hold_is_named(model, tmp_path):
    lora, config = adapter(model, init="pissa")
    with pytest.raises(ValueError, match=r"init is 'pissa'.*jlora\.rebase"):
        peft.save(tmp_path / "a", lora, config, model)
    mixed, config = adapter(model, method="dora")
    plain, _ = adapter(model)
    mixed["layers/mlp/down_proj/kernel"] = plain["layers/mlp/down_proj/kernel"]
    with pytest.raises(ValueError, match="some leaves have DoRA and others LoRA"):
        peft.save(tmp_path / "a", mixed, config, model)
    assert not (tmp_path / "a").exists()


def test_peft_folders_answer_and_merge_at_the_terminal(saved, tiny, tmp_path, capsys):
    from jlora.__main__ import main

    given = ["--adapter", str(saved)]
    assert main(["generate", "--prompt", "12?", "--max-new-tokens", "5", *given]) == 0
    answer = capsys.readouterr().out
    assert main(["merge", "--out", str(tmp_path / "merged"), *given]) == 0
    merged = models.load(tmp_path / "merged")
    model = models.load(tiny)
    want = jlora.merge(model.params, peft.load(saved, model)[0])
    jax.tree.map(np.testing.assert_array_equal, merged.params, want)
    capsys.readouterr()
    where = ["--model", str(tmp_path / "merged")]
    assert main(["generate", "--prompt", "12?", "--max-new-tokens", "5", *where]) == 0
    assert capsys.readouterr().out == answer
    assert main(["info", str(saved)]) == 0
    assert "q_proj" in capsys.readouterr().out
