"""Adapters in PEFT's format: no number is rounded, and a write that fails changes nothing."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.flax
from laws import example

import jlora
from jlora import peft

KEY = jax.random.key(0)
NAMES = {"kernel": "model.proj"}
CONFIG = jlora.LoraConfig(targets="kernel", rank=2, alpha=3)
FROZEN, LORA = jlora.split({"kernel": jax.random.normal(KEY, (7, 5))}, CONFIG, KEY)
LORA = {"kernel": dataclasses.replace(LORA["kernel"], b=jax.random.normal(KEY, (2, 5)))}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Halved(jlora.extend.FrozenLeaf):
    """A weight that is kept as half of itself."""

    kept: jax.Array
    dtype = jnp.dtype("float32")
    shape = property(lambda self: self.kept.shape)

    def dimensions(self):
        return {"kept": tuple(range(self.kept.ndim))}

    def plain(self):
        return 2 * self.kept


def changed(folder, change):
    """Each tensor of an adapter's file by ``change(name, tensor)``; None leaves it out."""
    path = folder / "adapter_model.safetensors"
    tensors = {name: change(name, t) for name, t in safetensors.flax.load_file(path).items()}
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    safetensors.flax.save_file(kept, path, metadata={"format": "pt"})


def settings(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_b_is_not_rounded_to_the_dtype_of_a(tmp_path):
    peft.save(tmp_path, LORA, CONFIG, FROZEN, names=NAMES)
    changed(tmp_path, lambda name, t: t.astype("bfloat16") if "lora_A" in name else t)
    lora, config = peft.load(tmp_path, FROZEN, names=NAMES)
    np.testing.assert_array_equal(lora["kernel"].b, LORA["kernel"].b)
    np.testing.assert_array_equal(lora["kernel"].a, LORA["kernel"].a.astype("bfloat16"))
    assert config.dtype == "float32"


NORMS = {"kernel": jnp.ones((7, 5)), "norm": jax.random.normal(KEY, (3, 7))}
OF_NORMS = {"kernel": "model.proj", "norm": "layers.{}.norm"}


def with_norms(folder):
    config = jlora.LoraConfig(targets="kernel", rank=2, train="norm")
    frozen, lora = jlora.split(NORMS, config, KEY)
    lora["norm"] = dataclasses.replace(lora["norm"], value=lora["norm"].value + 1)
    peft.save(folder, lora, config, frozen, names=OF_NORMS)
    return frozen, lora


def test_a_layer_saved_in_bfloat16_rounds_no_other(tmp_path):
    frozen, lora = with_norms(tmp_path)
    changed(tmp_path, lambda name, t: t.astype("bfloat16") if "layers.0." in name else t)
    got, _ = peft.load(tmp_path, frozen, names=OF_NORMS)
    np.testing.assert_array_equal(got["norm"].value[1:], lora["norm"].value[1:])


def test_layers_that_a_file_does_not_have_stay_the_bases(tmp_path):
    frozen, _ = with_norms(tmp_path)
    changed(tmp_path, lambda name, t: None if "norm" in name and "layers.1." not in name else
            t.astype("bfloat16"))  # fmt: skip
    settings(tmp_path, modules_to_save=["layers.1.norm"])
    got, _ = peft.load(tmp_path, frozen, names=OF_NORMS)
    np.testing.assert_array_equal(got["norm"].value[::2], NORMS["norm"][::2])
    assert (got["norm"].value[1] != NORMS["norm"][1]).all()


def test_a_leaf_that_the_file_has_whole_needs_no_base(tmp_path):
    frozen, lora = with_norms(tmp_path)
    shapes = jax.eval_shape(lambda: frozen)
    got, _ = peft.load(tmp_path, shapes, names=OF_NORMS)
    np.testing.assert_array_equal(got["norm"].value, lora["norm"].value)


def test_rows_of_a_frozen_leaf_are_those_of_its_array(tmp_path):
    plain = {"embed": jax.random.normal(KEY, (9, 4)), "head": jnp.ones((4, 9))}
    names = {"embed": "model.embed_tokens", "head": "model.proj"}
    config = jlora.LoraConfig(targets="head", rank=2, tokens={"embed": (5, 8)})
    _, lora = jlora.split(plain, config, KEY)
    lora["embed"] = dataclasses.replace(lora["embed"], delta=lora["embed"].delta + 0.5)
    peft.save(tmp_path / "plain", lora, config, plain, names=names)
    small = {**plain, "embed": Halved(plain["embed"] / 2)}
    peft.save(tmp_path / "small", lora, config, small, names=names)
    assert files(tmp_path / "small") == files(tmp_path / "plain")
    got, _ = peft.load(tmp_path / "plain", small, names=names)
    np.testing.assert_allclose(got["embed"].delta, lora["embed"].delta, atol=1e-6)


def test_rows_of_a_table_in_two_modules_are_refused(tmp_path):
    plain = {"embed": jnp.ones((9, 4)), "head": jnp.ones((4, 9))}
    names = {"embed": {"model.embed_a": 1, "model.embed_b": 3}, "head": "model.proj"}
    config = jlora.LoraConfig(targets="head", rank=2, tokens={"embed": (5, 8)})
    frozen, lora = jlora.split(plain, config, KEY)
    with pytest.raises(ValueError, match="embed: expected one table of torch for rows"):
        peft.save(tmp_path / "x", lora, config, frozen, names=names)


def test_a_list_of_no_rows_says_nothing(tmp_path):
    plain = {"embed": jnp.ones((9, 4)), "head": jnp.ones((4, 9))}
    names = {"embed": "model.embed_tokens", "head": "model.proj"}
    config = jlora.LoraConfig(targets="head", rank=2, tokens={"embed": (5, 8)})
    frozen, lora = jlora.split(plain, config, KEY)
    peft.save(tmp_path, lora, config, frozen, names=names)
    settings(tmp_path, trainable_token_indices={"model.embed_tokens": []})
    changed(tmp_path, lambda name, t: t[:0] if "token_adapter" in name else t)
    assert list(peft.load(tmp_path, frozen, names=names)[0]) == ["head"]


@pytest.fixture(scope="module")
def of_vera():
    config = jlora.LoraConfig(targets="kernel", rank=2, method=example("vera").VeraWeight)
    return config, *jlora.split(FROZEN, config, KEY)


def test_dtype_holds_for_other_methods_too(tmp_path, of_vera):
    config, frozen, lora = of_vera
    peft.save(tmp_path, lora, config, frozen, names=NAMES)
    got, read = peft.load(tmp_path, frozen, names=NAMES, dtype=jnp.bfloat16)
    assert {str(array.dtype) for array in jax.tree.leaves(got)} == {"bfloat16"}
    assert read.dtype == "bfloat16"
    got, read = peft.load(tmp_path, frozen, names=NAMES)
    assert {str(array.dtype) for array in jax.tree.leaves(got)} == {"float32"}


@pytest.mark.parametrize(
    "wrong",
    [{"target_modules": 5}, {"exclude_modules": [3]}, {"layers_to_transform": "x"}],
    ids=str,
)
def test_fields_that_choose_modules_are_checked_for_every_method(tmp_path, of_vera, wrong):
    config, frozen, lora = of_vera
    peft.save(tmp_path, lora, config, frozen, names=NAMES)
    settings(tmp_path, **wrong)
    with pytest.raises(ValueError, match=f"can't be honoured:\n  {next(iter(wrong))} is"):
        peft.load(tmp_path, frozen, names=NAMES)


def test_mlx_refuses_a_method_that_it_does_not_have(tmp_path, of_vera, tiny):
    model = jlora.models.outline(tiny)
    config = dataclasses.replace(of_vera[0], targets="q_proj/kernel")
    axes = jlora.trace_axes(model.apply, model.params, jnp.ones((1, 2), int))
    weights = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), model.params)
    _, lora = jlora.split(weights, config, KEY, axes=axes)
    with pytest.raises(ValueError, match="of the type VERA: mlx-lm has LoRA and DoRA alone"):
        peft.publish(tmp_path / "x", lora, config, model, format="mlx")


def test_a_file_that_cant_take_its_place_changes_no_other(tmp_path):
    peft.save(tmp_path, LORA, CONFIG, FROZEN, names=NAMES)
    (tmp_path / "adapter_config.json").unlink()
    (tmp_path / "adapter_config.json").mkdir()
    before = files(tmp_path)
    other = {"kernel": dataclasses.replace(LORA["kernel"], b=2 * LORA["kernel"].b)}
    with pytest.raises(OSError, match=r"adapter_config.json could not be written: it is a folder"):
        peft.save(tmp_path, other, CONFIG, FROZEN, names=NAMES, overwrite=True)
    assert files(tmp_path) == before


def test_publish_writes_all_files_or_none(tmp_path):
    (tmp_path / "README.md").mkdir()
    with pytest.raises(OSError, match=r"README.md could not be written"):
        peft.publish(tmp_path, LORA, CONFIG, FROZEN, names=NAMES, overwrite=True)
    assert files(tmp_path) == {}


@pytest.mark.parametrize(
    ("name", "base", "revision"),
    [
        ("/home/me@work/model", "/home/me@work/model", None),
        ("owner/name@v1/x", "owner/name", "v1/x"),
        ("owner/name", "owner/name", None),
        (None, None, None),
    ],
)
def test_only_a_hub_id_has_a_revision(tmp_path, name, base, revision):
    peft.save(tmp_path, LORA, CONFIG, FROZEN, names=NAMES, base_model=name)
    told = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (told["base_model_name_or_path"], told["revision"]) == (base, revision)


def test_a_system_message_with_a_fence_stays_inside_its_own(tmp_path):
    system = "Answer so:\n```json\n{}\n```\n# Not a heading"
    about = {"system": system}
    peft.publish(tmp_path, LORA, CONFIG, FROZEN, names=NAMES, about=about)
    card = (tmp_path / "README.md").read_text()
    assert f"\n````text\n{system}\n````\n" in card
