"""Answers: cached as uncached, padded as alone, adapted as merged."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jlora
from jlora import models
from jlora.models._answers import _generate, _stops, _stream


@pytest.fixture(scope="module")
def model(tiny):
    return models.load(tiny)


PROMPTS = [[3, 50, 7, 91, 22], [44, 9], [17, 60, 61, 5, 5, 80, 12, 33, 8]]


def padded(prompts):
    width = max(map(len, prompts)) + 2
    tokens = np.zeros((len(prompts), width), np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[width - len(prompt) :] = prompt
    starts = np.array([width - len(prompt) for prompt in prompts], np.int32)
    return jnp.asarray(tokens), jnp.asarray(starts)


jitted = functools.cache(jax.jit)


@functools.cache
def generates(method):
    return jax.jit(method, static_argnames=("max_new_tokens", "sampling"))


def uncached(model, params, prompt, count):
    """Every token by a pass over the whole text so far (what stands to its right is not seen)."""
    apply = jitted(model.apply)
    tokens = list(prompt)
    for _ in range(count):
        text = np.zeros((1, 64), np.int32)
        text[0, : len(tokens)] = tokens
        logits = apply(params, text)[0, len(tokens) - 1]
        tokens.append(int(logits.argmax()))
        if tokens[-1] in model.tokenizer.stop_ids:
            break
    written = tokens[len(prompt) :]
    return written + [model.tokenizer.stop_ids[0]] * (count - len(written))


@pytest.fixture(scope="module")
def adapter(model):
    tokens = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    axes = jlora.trace_axes(model.apply, model.params, tokens)
    config = jlora.LoraConfig(targets="kernel", rank=3)
    frozen, lora = jlora.split(model.params, config, jax.random.key(1), axes=axes)
    lora = jax.tree.map(
        lambda leaf: (
            jax.random.normal(jax.random.key(leaf.size), leaf.shape) / 4 if leaf.ndim else leaf
        ),
        lora,
    )
    return frozen, lora


def test_prompts_of_different_length_answer_as_each_alone_and_without_a_cache(model):
    tokens, starts = padded(PROMPTS)
    written = generates(model.generate)(model.params, tokens, starts, max_new_tokens=7)
    assert written.tolist() == [uncached(model, model.params, p, 7) for p in PROMPTS]


def test_generation_through_the_adapter_is_that_of_the_merged_weights(model, adapter):
    frozen, lora = adapter
    tokens, starts = padded(PROMPTS)

    @jax.jit
    def generate(params):
        return model.generate(params, tokens, starts, max_new_tokens=7)

    adapted = jax.jit(jlora.lift(generate, strict=True))(frozen, lora)
    assert adapted.tolist() == generate(jlora.merge(frozen, lora)).tolist()
    assert adapted.tolist() != generate(frozen).tolist()


def test_after_a_stop_token_nothing_more_is_written(model):
    tokens, starts = padded(PROMPTS)
    free = generates(model.generate)(model.params, tokens, starts, max_new_tokens=7).tolist()
    stop = free[2][1]  # as if the token that the third row writes second ended an answer
    tokenizer = dataclasses.replace(model.tokenizer, stop_ids=(stop,))
    stopping = dataclasses.replace(model, tokenizer=tokenizer)
    generate = generates(stopping.generate)
    written = generate(model.params, tokens, starts, max_new_tokens=7).tolist()
    assert written[2][2:] == [stop] * 5 != free[2][2:]
    for row, whole in zip(written, free, strict=True):
        until = whole.index(stop) if stop in whole else 7
        assert row == whole[:until] + [stop] * (7 - until)


def test_answer_gives_rows_their_own_answers_in_their_own_order(model):
    rows = [[{"role": "user", "content": text}] for text in ("a long question, so to say", "b", "")]
    together = models.answer(model, rows, max_new_tokens=6)
    alone = [models.answer(model, [row], max_new_tokens=6)[0] for row in rows]
    assert together == alone
    assert len(set(alone)) > 1
    one_by_one = models.answer(model, rows, max_new_tokens=6, batch_size=1)
    assert one_by_one == alone


def test_answer_is_the_text_that_an_uncached_loop_writes(model):
    row = [{"role": "user", "content": "on or off?"}]
    prompt = model.tokenizer.encode(model.tokenizer.render(row, add_generation_prompt=True))
    written = uncached(model, model.params, prompt, 6)
    stop = model.tokenizer.stop_ids[0]
    kept = written[: written.index(stop)] if stop in written else written
    assert models.answer(model, [row], max_new_tokens=6) == [model.tokenizer.decode(kept)]


def test_answer_refuses_what_is_longer_than_the_positions(model):
    row = [{"role": "user", "content": "x" * 300}]
    with pytest.raises(ValueError, match=r"a prompt of 3\d\d tokens .* the 256 positions of"):
        models.answer(model, [row], max_new_tokens=6)


WARM = models.Sampling(temperature=1.3, top_k=40, top_p=0.95, repetition_penalty=1.2)
ROWS = [[{"role": "user", "content": text}] for text in ("a longer question, so to say", "b", "cd")]


def test_the_repetition_penalty_counts_prompt_and_answer_but_no_padding(model):
    tokens, starts = padded(PROMPTS)
    sampling = models.Sampling(repetition_penalty=1.5)
    generate = generates(model.generate)
    written = generate(model.params, tokens, starts, max_new_tokens=7, sampling=sampling)
    apply = jitted(model.apply)
    for prompt, row in zip(PROMPTS, written.tolist(), strict=True):
        text = list(prompt)
        for token in row:
            whole = np.zeros((1, 64), np.int32)
            whole[0, : len(text)] = text
            logits = np.array(apply(model.params, whole)[0, len(text) - 1])
            said = list(set(text))
            logits[said] *= np.where(logits[said] < 0, 1.5, 1 / 1.5)
            assert token == logits.argmax()
            text.append(token)
    without = generate(model.params, tokens, starts, max_new_tokens=7)
    assert written.tolist() != without.tolist()


@pytest.mark.parametrize("sampling", [models.Sampling(), WARM], ids=["greedy", "sampled"])
def test_adapted_merged_and_streamed_answers_are_the_same(model, adapter, sampling):
    frozen, lora = adapter
    merged = jlora.merge(frozen, lora)
    options = {"max_new_tokens": 9, "sampling": sampling, "seed": 5}
    adapted = models.answer(model, ROWS, frozen, lora, **options)
    assert adapted == models.answer(model, ROWS, merged, **options)
    assert adapted != models.answer(model, ROWS, frozen, **options)
    assert "".join(models.stream(model, ROWS[0], frozen, lora, **options)) == adapted[0]


def test_a_row_draws_the_same_whatever_the_batch_and_another_seed_draws_otherwise(model):
    options = {"max_new_tokens": 9, "sampling": WARM}
    together = models.answer(model, [*ROWS, ROWS[0]], seed=3, **options)
    assert together[0] != together[3]  # the same question, another stream
    longer = [*ROWS[:2], [{"role": "user", "content": "x" * 80}], ROWS[0]]
    options["batch_size"] = 2  # a short row beside a long one, and in other company
    assert models.answer(model, longer, seed=3, **options)[:2] == together[:2]
    assert models.answer(model, longer, seed=4, **options)[:2] != together[:2]


def test_a_temperature_needs_a_key_in_the_pure_function(model):
    tokens, starts = padded(PROMPTS)
    with pytest.raises(ValueError, match="a temperature needs a random key: pass key="):
        model.generate(model.params, tokens, starts, max_new_tokens=3, sampling=WARM)
    generate = jax.jit(
        lambda key: model.generate(
            model.params, tokens, starts, max_new_tokens=3, sampling=WARM, key=key
        )
    )
    one, other = (generate(jax.random.key(seed)).tolist() for seed in (0, 1))
    assert one != other


compilations = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, duration, **_: (
        compilations.append(event) if event.endswith("backend_compile_duration") else None
    )
)


def compiled_by(call):
    before = len(compilations)
    call()
    return len(compilations) - before


def test_a_bucket_of_lengths_compiles_two_functions_and_no_number_compiles_anew(model):
    # A configuration of its own, so that nothing is compiled before.
    model = dataclasses.replace(model, config=dataclasses.replace(model.config, norm_epsilon=2e-5))

    def ask(length, new, degree=0.0, seed=0, **others):
        row = [{"role": "user", "content": "x" * length}]
        sampling = models.Sampling(temperature=degree, **others)
        return lambda: models.answer(model, [row], max_new_tokens=new, sampling=sampling, seed=seed)

    assert compiled_by(ask(3, 5)) == 2  # the prompt, the tokens after it
    assert compiled_by(ask(9, 31)) == 0
    assert compiled_by(ask(40, 5)) == 2
    assert compiled_by(ask(3, 33)) == 1  # its 32 + 64 slots are the 64 + 32 of the last
    assert compiled_by(ask(3, 5, 0.7, top_k=5)) == 2
    assert compiled_by(ask(6, 8, 1.9, 77, top_k=9)) == 0

    def pieces(length, seed):
        row = [{"role": "user", "content": "x" * length}]
        sampling = models.Sampling(temperature=0.4, top_k=3)
        return lambda: list(
            models.stream(model, row, max_new_tokens=length, sampling=sampling, seed=seed)
        )

    assert compiled_by(pieces(3, 0)) == 0  # its 64 slots are those of the answer above
    assert compiled_by(pieces(40, 1)) == 2
    assert compiled_by(pieces(44, 2)) == 0


def test_buckets_are_few_and_never_a_quarter_too_long():
    sizes = {}
    for length in range(1, 5000):
        sizes.setdefault(_generate.bucket(length), []).append(length)
    assert list(sizes)[:9] == [32, 64, 96, 128, 160, 192, 224, 256, 320]
    assert len(sizes) == 8 + 4 * 4 + 1  # to 256, for each of four doublings, beyond 4096
    for size, lengths in sizes.items():
        assert max(lengths) <= size < max(32 + min(lengths), 1.25 * min(lengths))


def test_the_cache_is_written_in_place(model):
    _, advance = _generate.compiled(model.config)
    tokens, starts = padded(PROMPTS)
    rules = _generate.Rules(np.array([1], np.int32), {})
    batch, slots = tokens.shape
    state = jax.eval_shape(
        lambda: _generate.State(
            tokens,
            starts,
            jnp.int32(5),
            jnp.zeros(batch, bool),
            jax.random.split(jax.random.key(0), batch),
            _generate.empty_cache(model.config, batch, slots, jnp.float32),
        )
    )
    compiled = advance.lower((model.params,), state, rules, np.int32(8)).compile()
    cache = sum(leaf.size * 4 for leaf in state.cache)
    assert compiled.memory_analysis().alias_size_in_bytes > cache


def cut(text, *stops):
    return min((text[: text.find(stop)] for stop in stops if stop in text), default=text, key=len)


def test_an_answer_ends_before_a_stop_string(model):
    options = {"max_new_tokens": 40, "sampling": WARM, "seed": 2}
    whole = models.answer(model, ROWS, **options)
    stop = [whole[0][20:22], whole[2][3]]  # the first is written after the first look
    ended = models.answer(model, ROWS, stop=stop, **options)
    assert ended == [cut(text, *stop) for text in whole]
    assert ended != whole
    for row in range(3):
        single = models.answer(model, [ROWS[row]], stop=stop, **options)[0]
        assert "".join(models.stream(model, ROWS[row], stop=stop, **options)) == single


def test_a_special_token_stops_by_its_name(model):
    special = model.tokenizer.encode("<|im_start|>")
    stops = _stops.stops_of(model.tokenizer, "<|im_start|>")
    assert stops.tokens == (*model.tokenizer.stop_ids, *special)
    assert _stops.stops_of(model.tokenizer, ["END", "."]).strings == ("END", ".")
    with pytest.raises(ValueError, match="an empty string would stop every answer"):
        models.answer(model, ROWS, stop=["END", ""])


@given(
    st.text("abé🦊東", max_size=14), st.lists(st.text("abé東", min_size=1, max_size=4), max_size=3)
)
@settings(max_examples=80, deadline=None)
def test_pieces_are_whole_characters_and_together_the_text_before_the_stop(model, text, stop):
    stops = _stops.Stops(model.tokenizer.stop_ids, tuple(stop))
    tokens = model.tokenizer.encode(text)  # one a byte
    pieces = list(_stream._pieces(model.tokenizer, iter(tokens), stops))
    assert "".join(pieces) == stops.text_before(text)
    assert all(pieces)
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces)
    cut_inside = list(_stream._pieces(model.tokenizer, iter(tokens[:-1]), stops))
    assert "".join(cut_inside) == stops.text_before(model.tokenizer.decode(tokens[:-1]))
    if not stop:
        assert pieces == list(text)


def test_a_conversation_with_memory_goes_as_one_without(model):
    memory = models.Memory()
    options = {"max_new_tokens": 12, "sampling": WARM}
    messages, shared, slots = [], [], []
    for question in ("first", "and?", "x" * 70):
        messages.append({"role": "user", "content": question})
        prompt = model.tokenizer.encode(
            model.tokenizer.render(messages, add_generation_prompt=True)
        )
        shared.append(memory.shared(prompt))
        answer = "".join(models.stream(model, messages, memory=memory, **options))
        slots.append(memory.state.tokens.shape[1])
        assert answer == "".join(models.stream(model, messages, **options))
        messages.append({"role": "assistant", "content": answer})
    assert shared[0] == 0 < shared[1] < shared[2]
    assert slots == [64, 128, 256]
    # Other messages, of which only the beginning is the same, and an interrupted step.
    other = [{"role": "user", "content": "finally"}]
    alone = "".join(models.stream(model, other, **options))
    assert "".join(models.stream(model, other, memory=memory, **options)) == alone
    for leaf in memory.state.cache:
        leaf.delete()
    assert "".join(models.stream(model, other, memory=memory, **options)) == alone


def test_a_memory_is_read_again_where_the_text_turns_otherwise(model):
    pairs = model.config.head_dim // 2
    scaling = models.LongRopeScaling((1.0,) * pairs, (8.0,) * pairs, 100, 1.0)
    config = dataclasses.replace(model.config, rope_scaling=scaling)
    model = dataclasses.replace(model, config=config)
    memory, options = models.Memory(), {"max_new_tokens": 12}
    for question in ("short", "longer by " + "x" * 80, "short", "s" * 60):
        messages = [{"role": "user", "content": question}]
        alone = "".join(models.stream(model, messages, **options))
        assert "".join(models.stream(model, messages, memory=memory, **options)) == alone


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0: expected at least 1"),
        ({"seed": -1}, "seed is -1: expected a whole number from 0 to"),
        ({"max_new_tokens": 256}, "the 256 positions of"),
    ],
)
def test_bad_numbers_are_refused_before_anything_runs(model, options, message):
    with pytest.raises(ValueError, match=message):
        models.answer(model, ROWS, **options)
    with pytest.raises(ValueError, match=message):
        models.stream(model, ROWS[0], **options)
