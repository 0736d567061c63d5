"""A model on a mesh with a fresh head, or a longer vocabulary: new arrays lie as all others do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import assert_close
from tiny import save_tiny_llama

from jlora import models

MESH = {"data": 2, "model": 4}
TOKENS = jnp.array([[1, 2, 7], [4, 5, 11]])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return str(save_tiny_llama(tmp_path_factory.mktemp("models") / "tiny"))


def further(count):
    rows = np.random.default_rng(3).normal(size=(count, 24)).astype(np.float32)
    return models.Vocabulary({"embed/embedding": rows})


# 259 and 1 are cut by 4, 259 and 3 are not
CHANGES = {
    "head": lambda model: models.with_classifier(model, ("a", "b", "c"), jax.random.key(1)),
    "tokens that the axis divides": lambda model: models.with_vocabulary(model, further(1)),
    "tokens that it does not": lambda model: models.with_vocabulary(model, further(3)),
    "untied": lambda model: models.with_vocabulary(model, models.Vocabulary(untied=True)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_it_gives_what_one_device_gives_and_lies_as_its_layout_says(tiny, change):
    alone = change(models.load(tiny))
    layout = models.Layout(models.make_mesh(MESH))
    on, outlined = change(models.load(tiny, mesh=layout)), change(models.outline(tiny, mesh=layout))
    shapes = models.expected_shapes(on.config)
    flat = {
        "/".join(key.key for key in path): leaf
        for path, leaf in jax.tree.leaves_with_path(on.params)
    }
    wanted = layout.weights(on.config, shapes)
    assert {path: leaf.sharding for path, leaf in flat.items()} == wanted
    its = jax.tree.map(lambda leaf: leaf.sharding, outlined.params)
    assert its == jax.tree.map(lambda leaf: leaf.sharding, on.params)
    assert_close(on.apply(on.params, TOKENS), alone.apply(alone.params, TOKENS), 1e-4)
