"""Adapters as several tools write them: the same deltas, or a few lines that say why not."""

import argparse
import dataclasses
import json
import shutil
import time

import folders
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import AddedToken, Tokenizer

import jlora
from jlora import models, peft
from jlora.__main__ import main
from jlora._commands import _flags

TENSORS = "adapter_model.safetensors"
Q, DOWN = "layers/attn/q_proj/kernel", "layers/mlp/down_proj/kernel"


@pytest.fixture(scope="module")
def model(tiny):
    return models.load(tiny)


def moved(lora):
    """The adapter with a B that is not zero."""
    noise = np.random.default_rng(3)
    return {
        path: dataclasses.replace(
            node, b=jnp.asarray(0.3 * noise.normal(size=node.b.shape), jnp.float32)
        )
        for path, node in lora.items()
    }


def made(model, directory, **options):
    """An adapter as PEFT would save it; its nodes."""
    config = jlora.LoraConfig(**{"targets": "q_proj|down_proj", "rank": 3, "alpha": 5, **options})
    axes = jlora.trace_axes(model.apply, model.params, jnp.zeros((1, 4), int))
    _, lora = jlora.split(model.params, config, jax.random.key(0), axes=axes)
    lora = moved(lora)
    peft.save(directory, lora, config, model)
    return lora


@pytest.fixture
def saved(model, tmp_path):
    made(model, tmp_path / "a")
    return tmp_path / "a"


def rename(rule):
    def change(folder):
        tensors = load_file(folder / TENSORS)
        save_file({rule(name): tensor for name, tensor in tensors.items()}, folder / TENSORS)

    return change


def merged(model, directory):
    return jlora.merge(model.params, peft.load(directory, model)[0])


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


KINDS = {
    "its own name in keys": rename(
        lambda n: n.replace("lora_A", "lora_A.default").replace("lora_B", "lora_B.default")
    ),
    "no prefix": rename(lambda name: name.removeprefix("base_model.model.")),
    "model missing": rename(lambda n: n.replace("model.model.model.", "model.model.")),
    "model doubled": rename(lambda n: n.replace("model.model.model.", "model.model.model.model.")),
    "a doubled prefix": rename(lambda name: f"base_model.model.{name}"),
    "a model in a wrapper": rename(
        lambda n: n.replace("base_model.model.", "base_model.model.language_model.")
    ),
    "a wrapper within, and targets that name it": folders.together(
        rename(lambda n: n.replace("model.layers", "model.language_model.layers")),
        lambda folder: folders.edit(
            folder / "adapter_config.json",
            target_modules=r".*\.language_model\.layers\.\d+\..*\.(q_proj|down_proj)",
            alpha_pattern={r"language_model\.layers\.1\.self_attn\.q_proj": 5},
        ),
    ),
}


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("kind", KINDS)
def test_other_names_are_the_same_adapter(kind, method, model, tmp_path):
    lora = made(model, tmp_path / "a", method=method)
    KINDS[kind](tmp_path / "a")
    same(merged(model, tmp_path / "a"), jlora.merge(model.params, lora))


@pytest.mark.parametrize("shape", [(-1, 1), (1, -1)])
@pytest.mark.parametrize("name", [".weight", ".default", ".default.weight", ""])
def test_magnitudes_of_other_tools_are_vectors(shape, name, model, tmp_path):
    lora = made(model, tmp_path / "a", method="dora", rslora=True)
    tensors = load_file(tmp_path / "a" / TENSORS)
    for each in list(tensors):
        if each.endswith("magnitude_vector"):
            tensors[f"{each}{name}"] = tensors.pop(each).reshape(shape)
    save_file(tensors, tmp_path / "a" / TENSORS)
    same(merged(model, tmp_path / "a"), jlora.merge(model.params, lora))


# mlx-lm


def mlx(directory, tensors, **parameters):
    """A folder as mlx-lm writes it."""
    directory.mkdir()
    save_file(tensors, directory / "adapters.safetensors")
    settings = {
        "model": "mlx-community/tiny",
        "fine_tune_type": "lora",
        "num_layers": 16,
        "iters": 600,
        "lora_parameters": {"rank": 3, "scale": 20.0, "dropout": 0.0, **parameters},
    }
    (directory / "adapter_config.json").write_text(json.dumps(settings))
    return directory


def drawn(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def test_an_adapter_of_mlx_lm_is_read_in_its_own_orientation(model, tmp_path):
    pairs = {
        f"model.layers.{layer}.mlp.down_proj": (drawn(40, 3, seed=layer), drawn(3, 24, seed=layer))
        for layer in range(2)
    }
    tensors = {f"{name}.lora_a": a for name, (a, _) in pairs.items()}
    tensors |= {f"{name}.lora_b": b for name, (_, b) in pairs.items()}
    directory = mlx(tmp_path / "a", tensors)
    got = merged(model, directory)["layers"]["mlp"]["down_proj"]["kernel"]
    base = model.params["layers"]["mlp"]["down_proj"]["kernel"]
    want = np.stack([w + 20 * a @ b for w, (a, b) in zip(base, pairs.values(), strict=True)])
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    assert peft.describe(directory)["base_model_name_or_path"] == "mlx-community/tiny"


def test_a_tied_embedding_of_mlx_lm_is_its_head_as_well(model, tmp_path):
    a, b = drawn(259, 3), drawn(3, 24)
    tensors = {"model.embed_tokens.lora_a": a, "model.embed_tokens.lora_b": b}
    got = merged(model, mlx(tmp_path / "a", tensors))["embed"]["embedding"]
    np.testing.assert_allclose(got, model.params["embed"]["embedding"] + 20 * a @ b, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"alpha": 16.0}, "lora_parameters has alpha 16.0 beside scale"),
        ({"rank": "3"}, "rank is '3' and scale 20.0: expected numbers"),
        ({"group": 1}, "lora_parameters has group: jlora has no such"),
    ],
)
def test_what_mlx_lm_says_otherwise_is_refused(change, told, model, tmp_path):
    directory = mlx(tmp_path / "a", {"model.x.lora_a": drawn(2, 3)}, **change)
    with pytest.raises(ValueError, match=told):
        peft.load(directory, model)


# What else can be wrong


def configured(**changes):
    return lambda folder: folders.edit(folder / "adapter_config.json", **changes)


NEVER = r"(?:(?:.|.)(?:.|.))*[!?]"
REFUSED = {
    "two adapters in one file": (
        rename(lambda n: n.replace("lora_A", "lora_A.one").replace("lora_B", "lora_B.two")),
        "it holds several adapters (one, two)",
    ),
    "a pattern that never ends": (
        configured(target_modules=NEVER),
        "takes more than 1 second",
    ),
    "a pattern of layers that never ends": (
        configured(rank_pattern={NEVER: 4}),
        "takes more than 1 second",
    ),
    "no pattern": (configured(target_modules="(q_proj"), "is no regular expression"),
    "a flag as a text": (configured(use_rslora="false"), "use_rslora is 'false': expected true"),
    "layers of no kind": (configured(layers_to_transform=2.5), "layers_to_transform is 2.5"),
    "tokens of no kind": (configured(trainable_token_indices=-1), "trainable_token_indices is -1"),
    "a kind of no kind": (configured(peft_type=[]), "peft_type is []"),
    "a FIFO for its settings": (folders.as_fifo("adapter_config.json"), "is no regular file"),
    "a FIFO": (
        folders.together(
            lambda folder: (folder / TENSORS).unlink(),
            folders.as_fifo(TENSORS),
        ),
        "is no regular file",
    ),
    "hundreds of tensors of another model": (
        lambda folder: save_file(
            {f"base_model.model.h.{n}.lora_A.weight": drawn(3, 24) for n in range(700)},
            folder / TENSORS,
        ),
        "and 692 more",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_an_adapter_of_this_kind_is_refused_in_a_few_lines(kind, saved, model):
    change, told = REFUSED[kind]
    change(saved)
    began = time.monotonic()
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the words stand above
        peft.load(saved, model)
    assert told in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 20
    assert time.monotonic() - began < 10


def test_a_hub_id_is_fetched_at_its_revision(saved, model, monkeypatch):
    import huggingface_hub

    asked = []

    def reachable(hub_id, *, revision, **_):
        asked.append((hub_id, revision))
        return str(saved)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", reachable)
    for source in ("owner/adapter", "owner/adapter@v2"):
        same(merged(model, source), merged(model, saved))
    assert asked == [("owner/adapter", None), ("owner/adapter", "v2")]

    def unreachable(hub_id, **_):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(ValueError, match="could not be fetched: ConnectionError: no route"):
        peft.load("owner/adapter", model)


# A base that moved, tokens that were added, a tokenizer of its own


def at(*arguments):
    """What generate makes of these flags."""
    parser = argparse.ArgumentParser()
    _flags.add_model(parser)
    _flags.add_mesh(parser)
    _flags.add_quantize(parser)
    _flags.add_answer(parser)
    return parser.parse_args([*map(str, arguments)])


def test_a_base_that_moved_is_asked_for(saved, tiny, capsys):
    folders.edit(saved / "adapter_config.json", base_model_name_or_path="/home/them/llama")
    assert main(["generate", "--prompt", "x", "--adapter", str(saved)]) == 2
    told = capsys.readouterr().err
    assert "was trained on '/home/them/llama', which is not here" in told
    assert "--model" in told
    given = ["--adapter", str(saved), "--model", str(tiny), "--max-new-tokens", "2"]
    assert main(["generate", "--prompt", "x", *given]) == 0


def test_the_revision_of_the_base_holds(saved):
    folders.edit(saved / "adapter_config.json", base_model_name_or_path="owner/base", revision="v2")
    assert _flags.described(saved) == {"model": "owner/base@v2"}


def test_a_folders_own_template_is_the_one_that_is_used(saved, tiny):
    (saved / "chat_template.jinja").write_text("{{ messages[0]['content'] }}!")
    adapted = _flags.load_model(at("--adapter", saved))
    assert adapted.model.tokenizer.render([{"role": "user", "content": "a"}]) == "a!"
    assert adapted.model.tokenizer.stop_ids == (1,)


def with_more_tokens(model, tiny, directory, *, head=False):
    """An adapter of a model with three tokens more, as PEFT saves it: with the whole tables."""
    more = drawn(3, 24, seed=7)
    lora = made(model, directory)
    tensors = load_file(directory / TENSORS)
    name = "base_model.model.model.embed_tokens.weight"
    embedding = np.asarray(model.params["embed"]["embedding"])
    tensors[name] = np.concatenate([embedding, more])
    save_file(tensors, directory / TENSORS)
    tokenizer = Tokenizer.from_file(str(tiny / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in ("<a>", "<b>", "<c>")])
    tokenizer.save(str(directory / "tokenizer.json"))
    return lora, more


def test_rows_for_added_tokens_are_the_models_own(model, tiny, tmp_path):
    lora, more = with_more_tokens(model, tiny, tmp_path / "a")
    adapted = _flags.load_model(at("--adapter", tmp_path / "a"))
    assert adapted.model.config.vocabulary == 262
    assert adapted.model.tokenizer.encode("<b>") == [260]
    np.testing.assert_array_equal(adapted.weights[0]["embed"]["embedding"][259:], more)
    want = jlora.merge(model.params, lora)
    same(adapted.weights[0]["layers"], want["layers"])
    logits = adapted.model.apply(adapted.weights[0], jnp.array([[4, 260, 5]]))
    assert logits.shape == (1, 3, 262)


def test_a_merged_model_has_the_added_tokens_and_their_tokenizer(model, tiny, tmp_path, capsys):
    with_more_tokens(model, tiny, tmp_path / "a")
    out = tmp_path / "merged"
    assert main(["merge", "--adapter", str(tmp_path / "a"), "--out", str(out)]) == 0
    adapted = _flags.load_model(at("--adapter", tmp_path / "a"))
    again = models.load(out)
    same(again.params, adapted.weights[0])
    assert again.tokenizer.encode("<b>") == [260]
    assert json.loads((out / "config.json").read_text())["vocab_size"] == 262


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(model, saved, tiny, tmp_path):
    with_more_tokens(model, tiny, tmp_path / "b")
    shutil.copy(tmp_path / "b" / "tokenizer.json", saved)
    with pytest.raises(ValueError, match="has token 261, but the model has 259"):
        _flags.load_model(at("--adapter", saved))


@pytest.mark.parametrize("which", ["head", "embedding"])
def test_a_tied_table_that_is_adapted_on_one_side_alone_comes_apart(which, model, tmp_path):
    made(model, tmp_path / "a")
    a, b = drawn(3, 24), drawn(259, 3)
    tensors = load_file(tmp_path / "a" / TENSORS)
    if which == "head":
        tensors["base_model.model.lm_head.lora_A.weight"] = a
        tensors["base_model.model.lm_head.lora_B.weight"] = b
        targets = ["q_proj", "down_proj", "lm_head"]
    else:
        tensors["base_model.model.model.embed_tokens.lora_embedding_A"] = b.T.copy()
        tensors["base_model.model.model.embed_tokens.lora_embedding_B"] = a.T.copy()
        targets = ["q_proj", "down_proj", "embed_tokens"]
    save_file(tensors, tmp_path / "a" / TENSORS)
    folders.edit(tmp_path / "a" / "adapter_config.json", target_modules=targets)
    with pytest.raises(ValueError, match=r"models\.with_vocabulary\(model, peft\.vocabulary"):
        peft.load(tmp_path / "a", model)
    adapted = _flags.load_model(at("--adapter", tmp_path / "a"))
    table = np.asarray(model.params["embed"]["embedding"])
    moved = table + 5 / 3 * b @ a
    head, embedding = (moved, table) if which == "head" else (table, moved)
    np.testing.assert_allclose(adapted.weights[0]["head"]["kernel"].T, head, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        adapted.weights[0]["embed"]["embedding"], embedding, rtol=1e-5, atol=1e-6
    )
    out = tmp_path / "merged"
    assert main(["merge", "--adapter", str(tmp_path / "a"), "--out", str(out)]) == 0
    same(models.load(out).params, adapted.weights[0])
