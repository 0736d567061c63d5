"""SentencePiece's BPE out of a GGUF header against the library that trained it."""

import io
import pathlib

import pytest
import sentencepiece

from jlora.models._text._from_gguf import from_gguf

ROOT = pathlib.Path(__file__).parents[2]
TEXTS = [
    "The capital of France is Paris.",
    "  two spaces,   three\n\tand a tab; 1,024 numbers",
    "naïve café, 東京 🚀, ﬁns\u00a0and nothing else",
    " ",
    "a",
    "line\n\nline",
]


@pytest.fixture(scope="module", params=[True, False], ids=["prefixed", "as it is"])
def trained(request):
    """A small model of 700 pieces, and what a GGUF header says of it."""
    text = (ROOT / "README.md").read_text() + (ROOT / "CONTRIBUTING.md").read_text()
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text.splitlines()),
        model_writer=file,
        vocab_size=700,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=request.param,
        user_defined_symbols=["<turn>"],
        minloglevel=2,
    )
    theirs = sentencepiece.SentencePieceProcessor(model_proto=file.getvalue())
    pieces = range(theirs.vocab_size())

    def kind(at):
        if theirs.is_unknown(at):
            return 2
        if theirs.is_control(at):
            return 3
        return 6 if theirs.is_byte(at) else 4 if theirs.id_to_piece(at) == "<turn>" else 1

    header = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [theirs.id_to_piece(at) for at in pieces],
        "tokenizer.ggml.scores": [theirs.get_score(at) for at in pieces],
        "tokenizer.ggml.token_type": [kind(at) for at in pieces],
        "tokenizer.ggml.unknown_token_id": theirs.unk_id(),
        "tokenizer.ggml.bos_token_id": theirs.bos_id(),
        "tokenizer.ggml.eos_token_id": theirs.eos_id(),
        "tokenizer.ggml.add_space_prefix": request.param,
    }
    return theirs, from_gguf(header, "here")


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_and_texts_are_those_of_sentencepiece(trained, text):
    theirs, ours = trained
    wanted = theirs.encode(text)
    assert ours.encode(text) == wanted
    assert ours.decode(wanted) == theirs.decode(wanted)


def test_a_long_text_has_the_tokens_of_sentencepiece(trained):
    theirs, ours = trained
    text = (ROOT / "CHANGELOG.md").read_text()
    assert ours.encode(text) == theirs.encode(text)
    assert ours.stop_ids == (theirs.eos_id(),)
    assert ours.begin == "<s>"


def test_special_tokens_in_a_text_are_themselves(trained):
    theirs, ours = trained
    names = [ours.backend.id_to_token(at) for at in ours.encode("<s>a<turn>")]
    assert names[0] == "<s>"
    assert names[-1] == "<turn>"
    assert theirs.piece_to_id("<turn>") == ours.encode("<s>a<turn>")[-1]
