"""Small random encoders of transformers, as folders and as inputs."""

import json

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from tokenizers import pre_tokenizers, processors

from jlora.models._families import ENCODERS

SIZES = {
    "vocab_size": 83,
    "hidden_size": 42,
    "intermediate_size": 52,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "max_position_embeddings": 29,
    "type_vocab_size": 3,
}
LABELS = {"id2label": {at: f"kind {at}" for at in range(5)}}
CLASSES = {"bert": "Bert", "roberta": "Roberta"}
PADDING = {"bert": 0, "roberta": 4}
each_family = pytest.mark.parametrize("family", ENCODERS)


def class_of(family, head):
    return getattr(transformers, f"{CLASSES[family]}{head}")


def made(family, head="Model", options=None, **settings):
    """A random model of transformers in which no parameter has its usual value."""
    config = class_of(family, "Config")(
        **{**SIZES, **LABELS, "pad_token_id": PADDING[family], **settings},
        attn_implementation="eager",
    )
    torch.manual_seed(5)
    model = class_of(family, head)(config, **options or {}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def written(model, folder):
    """The model's folder, with a WordPiece tokenizer that frames texts as BERT does."""
    model.save_pretrained(folder)
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "un", "##do", "##ne", "well", "good", "bad"]
    words = {name: at for at, name in enumerate(names)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece(words, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    backend.enable_padding(length=20)  # as files of sentence models have it
    backend.enable_truncation(max_length=6)
    backend.save(str(folder / "tokenizer.json"))
    own = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(own))
    return folder


def batch(family, length=13):
    """Tokens with padding behind, whose mask and types are none of the usual ones."""
    rng = np.random.default_rng(3)
    tokens = rng.integers(5, 83, (4, length)).astype(np.int32)
    mask, types = np.ones_like(tokens), rng.integers(0, 3, tokens.shape).astype(np.int32)
    for row, end in enumerate((13, 7, 1, 10)):
        tokens[row, end:], mask[row, end:] = PADDING[family], 0
    return {"tokens": tokens, "mask": mask, "types": types}


def in_torch(inputs):
    names = {"tokens": "input_ids", "mask": "attention_mask", "types": "token_type_ids"}
    return {names[name]: torch.tensor(array).long() for name, array in inputs.items()}


def close(ours, theirs, atol=2e-5):
    ours, theirs = (x.detach() if isinstance(x, torch.Tensor) else x for x in (ours, theirs))
    np.testing.assert_allclose(ours, theirs, atol=atol, rtol=1e-4)
