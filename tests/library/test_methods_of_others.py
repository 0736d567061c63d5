"""What a method of others keeps: by public names alone it is as good as those of the package."""

import dataclasses
import json
import warnings
from typing import ClassVar

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from laws import EXAMPLES, adapted, assert_close, check_law_1, example, trained
from sealed import resealed

import jlora
from jlora import extend

KEY = jax.random.key(0)


def normal(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


vera, hira = example("vera"), example("hira")


@pytest.mark.parametrize("module", [vera, hira], ids=["vera", "hira"])
def test_the_example_runs_as_it_stands(module, capsys):
    module.main()
    assert "merged and adapted differ by" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["vera", "hira"])
def test_examples_use_public_names_alone(name):
    text = (EXAMPLES / f"{name}.py").read_text()
    assert "jlora._" not in text
    assert "import _" not in text


FOREIGN = {
    "vera": ("vera", {"options": {"d_initial": 0.3}}),
    "hira": ("hira", {}),
}
PARAMS = {
    "up": normal(3, 7, 11),
    "down": normal(3, 11, 7, seed=1),
    "heads": normal(7, 2, 4, seed=2),
    "table": normal(13, 7, seed=3),
}
TOKENS = jnp.array([[1, 5, 1], [12, 0, 3]])


def model(p, tokens):
    def layer(x, weights):
        up, down = weights
        return x + jnp.tanh(x @ up) @ down, None

    x, _ = lax.scan(jax.checkpoint(layer), p["table"][tokens] / 3, (p["up"], p["down"]))
    return jnp.einsum("btd,dhk->bthk", x, p["heads"]), x @ p["table"].T


def foreign(name, **options):
    method, more = FOREIGN[name]
    axes = jlora.trace_axes(model, PARAMS, TOKENS)
    return adapted(PARAMS, axes, method=method, rank=3, **more, **options)


@pytest.mark.parametrize("name", FOREIGN)
def test_a_method_of_others_keeps_law_1(name):
    frozen, lora = foreign(name)
    report = check_law_1(model, frozen, lora, TOKENS, tolerance=5e-5)
    if name == "vera":
        assert report.formed == 0
    else:
        assert (report.factored, report.formed) == (1, 4)  # the lookup, and the products
        assert "for the gradient" in str(report)


MADE_OF_A_WEIGHT = {
    "summed over outputs": lambda w: w.sum(1),
    "summed over an input": lambda w: w.sum(2),
    "rolled along outputs": lambda w: jnp.roll(w, 1, 1),
    "rolled along an input": lambda w: jnp.roll(w, 1, 0),
    "beside its double": lambda w: jnp.concatenate([w, 2 * w], 1),
    "stacked": lambda w: jnp.stack([w, -w]),
    "a stack of parts": lambda w: jnp.stack([w[:, :2], w[:, 1:]], 1),
}


@pytest.mark.parametrize("made", MADE_OF_A_WEIGHT)
@pytest.mark.parametrize("name", FOREIGN)
def test_what_a_method_gives_each_output_stays_with_its_output(name, made):
    """A gain along a dimension that is summed, joined or moved."""
    method, more = FOREIGN[name]
    axes = {"w": jlora.Axes((0, 2), (1,))}
    frozen, lora = adapted({"w": normal(4, 3, 5)}, axes, method=method, rank=2, **more)

    def fn(p):
        value = MADE_OF_A_WEIGHT[made](p["w"])
        return jnp.sin(jnp.tensordot(normal(2, value.shape[0], seed=3), value, 1))

    def value_and_pull(fn):
        value, pull = jax.vjp(fn, lora)
        return value, pull(value)

    @jax.jit
    def both():
        merged = value_and_pull(lambda lora: fn(jlora.merge(frozen, lora)))
        return value_and_pull(lambda lora: jlora.lift(fn)(frozen, lora)), merged

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", jlora.MaterialisedWarning)
        got, want = both()
    assert_close(got, want)


@pytest.mark.parametrize("name", FOREIGN)
def test_a_fresh_adapter_changes_nothing_and_depends_on_its_own_path_alone(name):
    method, more = FOREIGN[name]
    axes = jlora.trace_axes(model, PARAMS, TOKENS)
    few = jlora.LoraConfig(targets="up|heads", method=method, rank=3, **more)
    many = dataclasses.replace(few, targets=".")
    frozen, lora = jlora.split(PARAMS, few, KEY, axes=axes)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: a is b, frozen, PARAMS)))
    assert_close(jlora.merge(frozen, lora), PARAMS, 0)
    _, larger = jlora.split(PARAMS, many, KEY, axes=axes)
    for path in ("up", "heads"):
        assert_close(larger[path], lora[path], 0)


def test_what_leaves_share_stands_once_and_is_as_large_as_the_largest_needs():
    _, lora = foreign("vera")
    assert list(lora) == ["down", "heads", "table", "up", "shared/vera_A", "shared/vera_B"]
    a, b = lora["shared/vera_A"].value, lora["shared/vera_B"].value
    assert (a.shape, b.shape) == ((13, 3), (3, 11))
    assert jlora.summary(PARAMS, lora).leaves == 4
    trains = jlora.mask(lora)
    assert not jax.tree.leaves(trains["shared/vera_A"])[0]
    assert jax.tree.leaves(trains["up"]) == [True, True]
    small = {**lora, "shared/vera_A": extend.SharedFactor(a[:5])}
    with pytest.raises(ValueError, match=r"up: shared/vera_A is \(5, 3\): expected at least"):
        jlora.merge(PARAMS, small)
    without = {path: node for path, node in lora.items() if path != "shared/vera_B"}
    with pytest.raises(ValueError, match="shared/vera_B is missing"):
        jlora.lift(model)(PARAMS, without, TOKENS)
    clash = {"shared": {"vera_A": normal(3, 3)}, **PARAMS}
    with pytest.raises(ValueError, match="shared/vera_A: a shared factor has the path of a leaf"):
        jlora.merge(clash, lora)


@pytest.mark.parametrize("name", FOREIGN)
def test_a_method_of_others_trains_by_optax_and_alone(name):
    frozen, lora = foreign(name)
    tx = jlora.optimizer(optax.adamw(1e-2, weight_decay=0.1, mask=jlora.decay_mask))
    state = tx.init(lora)
    grads = jax.jit(jax.grad(lambda lora: sum(
        (out**2).sum() for out in jlora.lift(model)(frozen, lora, TOKENS))))(lora)  # fmt: skip
    updates, _ = tx.update(grads, state, lora)
    new = optax.apply_updates(lora, updates)
    for path, node in new.items():
        for field in dataclasses.fields(node):
            before, after = (getattr(each[path], field.name) for each in (lora, new))
            if field.name in node.trainable:
                assert not np.array_equal(before, after), (path, field.name)
            elif isinstance(before, jax.Array):
                assert np.array_equal(before, after), (path, field.name)


def test_lora_plus_is_for_what_a_method_calls_its_factors():
    lora = {path: foreign(name)[1]["up"] for path, name in (("h", "hira"), ("v", "vera"))}
    ones = jax.tree.map(jnp.ones_like, lora)
    tx = jlora.lora_plus(4)
    updates, _ = tx.update(ones, tx.init(lora), lora)
    assert np.unique(updates["h"].b) == 4
    for other in (updates["h"].a, updates["v"].b, updates["v"].d):  # VeRA's b is a scale
        assert np.unique(other) == 1


@pytest.mark.parametrize("start", [jlora.eva, jlora.lora_ga])
@pytest.mark.parametrize("name", FOREIGN)
def test_starts_from_data_say_that_they_are_for_loras_factors(start, name):
    frozen, lora = foreign(name)
    config = jlora.LoraConfig(targets=".", method=FOREIGN[name][0], rank=3)
    kind = type(lora["up"]).__name__
    with pytest.raises(ValueError, match=f"expected LoraWeights, .*, got .*{kind}"):
        start(model, frozen, lora, [TOKENS], config, KEY)


@pytest.mark.parametrize("name", FOREIGN)
def test_rebase_leaves_what_took_no_weight_as_it_is(name, tmp_path):
    method, more = FOREIGN[name]
    config = jlora.LoraConfig(targets=".", method=method, rank=3, rank_pattern={"up": 2}, **more)
    axes = jlora.trace_axes(model, PARAMS, TOKENS)
    frozen, start = jlora.split(PARAMS, config, KEY, axes=axes)
    lora = trained(start)
    plain, same = jlora.rebase(lora, start, config)
    assert (plain, same) == (lora, config)
    jlora.checkpoint.save(tmp_path / "a", plain, same, base=frozen)  # it fits its configuration


def test_rebase_refuses_ranks_that_no_configuration_says():
    @extend.register("half")
    @dataclasses.dataclass(frozen=True)
    class Half(jlora.LoraWeight):
        def since(self, start):
            return super().since(start) if self.shape == (7, 5) else self

    config = jlora.LoraConfig(targets=".", method=Half, rank=2)
    _, lora = jlora.split({"one": normal(7, 5), "two": normal(5, 7)}, config, KEY)
    with pytest.raises(ValueError, match=r"one from 2 to 4, two from 2 to 2. Expected Node.since"):
        jlora.rebase(lora, lora, config)


@pytest.mark.parametrize("name", FOREIGN)
def test_a_method_of_others_is_data(name):
    frozen, one = foreign(name)
    other = jax.tree.map(lambda leaf: 0.5 * leaf, one)
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), one, other)
    apply = jax.jit(jlora.lift(model, strict=True))
    got = jax.jit(jax.vmap(apply, in_axes=(None, 0, None)))(frozen, both, TOKENS)
    for at, lora in enumerate((one, other)):
        assert_close(jax.tree.map(lambda v, at=at: v[at], got), apply(frozen, lora, TOKENS), 1e-5)


@pytest.mark.parametrize("name", FOREIGN)
def test_it_is_saved_restored_and_sliced(name, tmp_path):
    frozen, lora = foreign(name)
    method, more = FOREIGN[name]
    config = jlora.LoraConfig(targets=".", method=method, rank=3, **more)
    jlora.checkpoint.save(tmp_path / "a", lora, config, base=frozen)
    again, same = jlora.checkpoint.restore(tmp_path / "a", base=frozen)
    assert (same, hash(same)) == (config, hash(config))
    assert_close(again, lora, 0)
    shared = {n.removeprefix("shared/"): lora[n].value for n in lora if n.startswith("shared/")}
    whole = jlora.merge(frozen, lora)["up"]
    for layer in range(3):
        part = lora["up"].part(0, layer)
        assert_close(part.merged(frozen["up"][layer : layer + 1], shared)[0], whole[layer], 1e-6)
    packed = flax.serialization.to_bytes(lora)
    empty = jax.tree.map(jnp.zeros_like, lora)
    assert_close(flax.serialization.from_bytes(empty, packed), lora, 0)


def test_a_saved_method_that_is_not_registered_names_itself(tmp_path):
    _, lora = foreign("vera")
    config = jlora.LoraConfig(targets=".", method="vera", rank=3)
    jlora.checkpoint.save(tmp_path / "a", lora, config)
    file = tmp_path / "a" / "adapter.json"
    renamed = lambda told: json.loads(json.dumps(told).replace('"vera"', '"veritas"'))  # noqa: E731
    resealed(file, lambda told: told.update(renamed(told)))
    said = r"registered as 'veritas': import the module that has @jlora\.extend\.register\('verit"
    with pytest.raises(ValueError, match=said):
        jlora.checkpoint.restore(tmp_path / "a")


@extend.register("warm")
@dataclasses.dataclass(frozen=True)
class Warm(jlora.LoraWeight):
    """LoRA with a start of its own beside the default: B is what A is."""

    inits: ClassVar = ("warm_[0-9]",)

    @classmethod
    def moves_weight(cls, init):
        return init != "kaiming"

    @classmethod
    def start_fields(cls, leaf):
        if leaf.init == "kaiming":
            return super().start_fields(leaf)
        a = jnp.full((*leaf.inputs, leaf.rank), float(leaf.init[-1]))
        fields = {"axes": leaf.axes, "scaling": leaf.scaling}
        return {"a": a, "b": jnp.ones((leaf.rank, *leaf.outputs)), **fields}


def test_an_init_that_a_method_does_not_read_is_refused():
    """It would change nothing, in silence."""
    for method, init, said in (
        ("vera", "pissa", "init is 'pissa', but 'vera' has one start of its own: leave it out"),
        ("hira", "gaussian", "init is 'gaussian', but 'hira' has one start of its own"),
        ("vera", None, "init is None, but 'vera' has one start of its own"),
        (Warm, "gaussian", r"init is 'gaussian', but 'warm' takes warm_\[0-9\]"),
        (Warm, "warm_10", "init is 'warm_10', but 'warm' takes warm"),
    ):
        with pytest.raises(ValueError, match=said):
            jlora.LoraConfig(targets="w", method=method, init=init)
    default = jlora.LoraConfig(targets="w").init  # stands in the files of all methods
    for method in ("vera", "hira", Warm, Doubled, Tempered):
        assert jlora.LoraConfig(targets="w", method=method, init=default).init == default
    for method in (Doubled, Tempered):  # their start is LoRA's
        assert jlora.LoraConfig(targets="w", method=method, init="olora").init == "olora"


def test_a_start_of_a_methods_own_is_taken():
    params = {"w": normal(7, 5)}
    config = jlora.LoraConfig(targets="w", method=Warm, init="warm_3", rank=2)
    frozen, lora = jlora.split(params, config, KEY)
    assert_close(lora["w"].a, jnp.full((7, 2), 3.0), 0)
    assert_close(jlora.merge(frozen, lora), params)
    fresh = dataclasses.replace(config, init="kaiming")
    frozen, lora = jlora.split(params, fresh, KEY)
    with pytest.raises(ValueError, match="init is 'lora_ga', but 'warm' takes warm"):
        jlora.lora_ga(None, frozen, lora, None, fresh, KEY)  # before any batch is read


def test_a_node_for_targets_must_be_a_method():
    @dataclasses.dataclass(frozen=True)
    class Bare(extend.Node):
        targeted: ClassVar = True

    with pytest.raises(ValueError, match=r"Bare is targeted, but no jlora.extend.Method"):
        extend.register("bare")(Bare)
    assert jlora.LoraConfig(targets="w").method == "lora"  # it is not among the methods


@extend.register("doubled")
@dataclasses.dataclass(frozen=True)
class Doubled(jlora.LoraWeight):
    """LoRA, twice over."""

    def adapt(self, weight, shared):
        product = self.product()
        return extend.Factored((product, product))


@extend.register("tempered")
@dataclasses.dataclass(frozen=True)
class Tempered(jlora.DoraWeight):
    """DoRA with a field of its own."""

    warmth: jax.Array = dataclasses.field(kw_only=True)

    @classmethod
    def start_fields(cls, leaf):
        return {**super().start_fields(leaf), "warmth": jnp.float32(3)}

    def dimensions(self):
        return {**super().dimensions(), "warmth": ()}


@pytest.mark.parametrize("method", [Doubled, Tempered])
def test_a_class_of_lora_is_what_split_makes(method):
    config = jlora.LoraConfig(targets="w", method=method, rank=2)
    frozen, lora = jlora.split({"w": normal(7, 5)}, config, KEY)
    assert type(lora["w"]) is method
    lora, x = trained(lora), normal(3, 7, seed=1)
    got = jlora.lift(lambda p, x: x @ p["w"])(frozen, lora, x)
    assert_close(got, x @ jlora.merge(frozen, lora)["w"])
    if method is Doubled:
        assert_close(got, x @ (frozen["w"] + 2 * lora["w"].delta()))


def test_a_method_is_told_the_leafs_key_and_not_its_path():
    """Leaves that are alike share one compiled start, which a path would tell apart."""
    told = []

    @extend.register("listening")
    @dataclasses.dataclass(frozen=True)
    class Listening(jlora.LoraWeight):
        options: ClassVar = {"each": ()}

        @classmethod
        def start(cls, leaf):
            told.append((leaf.path, leaf.shape, leaf.options["each"]))
            return super().start(leaf)

        @classmethod
        def shared(cls, leaves, key):
            told.extend(leaf.path for leaf in leaves)
            return {}

    config = jlora.LoraConfig(
        targets=".", method=Listening, rank=2, options={"each": [[1, 2], [3, None]]}
    )
    _, lora = jlora.split({"one": normal(7, 5), "two": normal(7, 5)}, config, KEY)
    assert told == [(None, (7, 5), ((1, 2), (3, None))), "one", "two"]
    assert np.abs(lora["one"].a - lora["two"].a).max() > 0.1
    assert hash(config) == hash(dataclasses.replace(config))


def test_options_belong_to_the_method():
    for options, said in (
        ({"d_initial": -1}, "d_initial is -1: expected a number above 0"),
        ({"depth": 3}, "options of 'vera' has depth: it has the options d_initial"),
        ({"d_initial": jnp.ones(2)}, "expected numbers, texts, None, or tuples of these"),
    ):
        with pytest.raises(ValueError, match=said):
            jlora.LoraConfig(targets="w", method=vera.VeraWeight, options=options)
    with pytest.raises(ValueError, match="options of 'lora' has alpha_2: it has the options none"):
        jlora.LoraConfig(targets="w", options={"alpha_2": 3})

    class Stranger(extend.Method):
        pass

    with pytest.raises(ValueError, match=r"is not registered: put @jlora\.extend\.register"):
        jlora.LoraConfig(targets="w", method=Stranger)
    with pytest.raises(ValueError, match="method is 'nothing': expected lora or dora or"):
        jlora.LoraConfig(targets="w", method="nothing")
    with pytest.raises(ValueError, match="'vera' is registered already, for example_vera"):
        extend.register("vera")(dataclasses.make_dataclass("Other", [], bases=(extend.Method,)))
    with pytest.raises(ValueError, match="is no dataclass"):
        extend.register("stranger")(Stranger)


def test_a_weight_formed_by_its_method_is_one_layer_at_a_time(compiled_as_ever):
    """Forward, backward and in between: what is kept has no weight's size."""
    params = {"w": normal(12, 96, 96)}
    axes = {"w": jlora.Axes((1,), (2,), (0,))}
    x = normal(4, 96)

    def loss(p, x):
        return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p["w"])[0].sum()

    def temporary(method):
        frozen, lora = adapted(params, axes, rank=2, method=method)
        grad = jax.jit(jax.grad(jlora.lift(loss, strict=True), argnums=1))
        return grad.lower(frozen, lora, x).compile().memory_analysis().temp_size_in_bytes

    layer = 96 * 96 * 4
    assert temporary("hira") < temporary("lora") + 4 * layer  # twelve are in the stack


def test_a_class_that_names_no_array_of_its_own_is_told_before_anything_trains():
    @dataclasses.dataclass(frozen=True)
    class Misnamed(jlora.LoraWeight):
        trainable: ClassVar = ("a", "bee")
        factors: ClassVar = ("a", "axes")  # which is static

    said = r"Misnamed says that axes, bee trains or is a factor: expected names of its arrays, a, b"
    with pytest.raises(ValueError, match=said):
        extend.register("misnamed")(Misnamed)


def test_dropout_is_for_methods_that_filter_their_input():
    with pytest.raises(ValueError, match=r"dropout is 0.1, but 'hira' has no input_filter"):
        jlora.LoraConfig(targets="w", method="hira", dropout=0.1)
    assert jlora.LoraConfig(targets="w", method="dora", dropout=0.1).dropout == 0.1
