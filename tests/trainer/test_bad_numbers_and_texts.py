"""Numbers and texts that no answer and no batch can have: one clear error, and nothing silent."""

import itertools
import shutil

import jax
import numpy as np
import pytest
import tokenizers
from safetensors.numpy import load_file, save_file

import jlora
from jlora import models
from jlora.data import Batches, Example
from jlora.data._plan import _bucket_lengths

CONFIG = models.DecoderConfig(
    vocabulary=3, width=8, layers=1, heads=2, kv_heads=1, head_dim=4, mlp_width=8, max_length=64
)
WORDS = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0, "yes": 1}, "?"))
ROW = [{"role": "user", "content": "yes"}]


def tokenizer(template="{{ messages[-1].content }}", **options):
    return models.Tokenizer(WORDS, template, (0,), {}, "here", **options)


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_of_no_conversation_is_refused(size):
    model = models.Model({}, CONFIG, tokenizer(), "here")
    with pytest.raises(ValueError, match=f"batch_size is {size}: expected at least 1"):
        models.answer(model, [ROW], batch_size=size)


def test_a_template_that_writes_nothing_is_refused():
    model = models.Model({}, CONFIG, tokenizer("{{ '' }}"), "here")
    with pytest.raises(ValueError, match="the chat template of here writes nothing"):
        models.answer(model, [ROW])
    with pytest.raises(ValueError, match="the chat template of here writes nothing"):
        models.stream(model, ROW)


@pytest.mark.parametrize("date", ["tomorrow", "2026-13-01", "", None])
def test_a_date_that_is_none_is_refused_when_it_is_given(date):
    with pytest.raises(ValueError, match=f"date is {date!r}: expected one such as 2026-11-27"):
        tokenizer(date=date)


def test_a_day_and_a_moment_are_dates():
    template = "{{ strftime_now('%d %b %Y') }}"
    for date in ("2026-02-03", "2026-02-03T10:20:30"):
        assert tokenizer(template, date=date).render(ROW) == "03 Feb 2026"


@pytest.mark.parametrize("message", [{"content": "yes"}, "yes", {"role": 3, "content": "yes"}])
def test_a_message_without_a_role_is_named(message):
    with pytest.raises(ValueError, match=r"message 2 is .*: expected .*role"):
        tokenizer().render([*ROW, message])


def test_two_columns_of_one_name_are_refused(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("prompt,completion,completion\n1 + 1,2,3\n")
    with pytest.raises(ValueError, match=r"rows\.csv: two columns are called 'completion'"):
        jlora.data.read_rows(path)


def test_a_missing_file_beside_this_one_is_no_data_set_of_the_hub():
    for path in ("./nothing", "../nothing"):
        with pytest.raises(ValueError, match="can't be read: No such file"):
            jlora.data.read_rows(path)


def test_a_text_without_a_token_is_named():
    cut = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0}, "?"))
    cut.normalizer = tokenizers.normalizers.Replace("-", "")
    own = models.Tokenizer(cut, None, (0,), {}, "here")
    with pytest.raises(ValueError, match="row 1: the model's tokenizer makes no token of the text"):
        jlora.data.encode([[{"role": "text", "content": "---"}]], own, max_length=9)


def by_trying_all(lengths, count):
    unit = 8 * (-(-max(lengths) // 256))
    rounded = [-(-length // unit) * unit for length in lengths]
    limits = sorted(set(rounded))
    choices = itertools.combinations(limits[:-1], min(count, len(limits)) - 1)

    def tokens(chosen):
        return sum(next(limit for limit in chosen if length <= limit) for length in rounded)

    return list(min(((*choice, limits[-1]) for choice in choices), key=tokens))


def test_shapes_pad_as_little_as_any_choice_of_them():
    for seed in range(20):
        lengths = jax.random.randint(jax.random.key(seed), (17,), 1, 90 + 11 * seed).tolist()
        for count in (1, 2, 3, 5):
            assert _bucket_lengths(lengths, count) == by_trying_all(lengths, count)


def test_many_shapes_are_found_at_once():
    # out of 300 million choices
    examples = [Example(list(range(8 * n)), [1]) for n in range(1, 33)]
    assert len(Batches(examples, batch_size=2, shapes=16).shapes) == 16


def test_a_weight_that_a_dtype_cant_hold_is_no_infinity(tiny, tmp_path):
    folder = shutil.copytree(tiny, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = np.full_like(tensors["model.norm.weight"], 1e5)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match="norm/scale has values that float16 can't hold"):
        models.load(folder, dtype="float16")
    assert models.load(folder, dtype="bfloat16").params["norm"]["scale"].dtype == "bfloat16"
