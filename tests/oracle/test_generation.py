"""Filters, and greedy answers with a penalty, against transformers on torch."""

import numpy as np
import pytest
import torch
import transformers
from transformers.generation import logits_process

from jlora import models
from jlora.models import Sampling
from jlora.models._answers import _sampling

VOCABULARY = 211
SAMPLINGS = [
    Sampling(0.7),
    Sampling(1.7, top_k=17),
    Sampling(1.3, top_p=0.8),
    Sampling(1.0, min_p=0.05),
    Sampling(1.0, repetition_penalty=1.3),
    Sampling(0.9, top_k=40, top_p=0.9, repetition_penalty=1.2),
    Sampling(1.4, top_k=60, top_p=0.95, min_p=0.02, repetition_penalty=0.8),
]


def processors(sampling):
    """What ``generate(do_sample=True)`` of transformers applies, in its order."""
    config = transformers.GenerationConfig(
        do_sample=True,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p or None,
        repetition_penalty=sampling.repetition_penalty,
    )
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
        )
    )
    return model._get_logits_processor(config, input_ids_seq_length=5)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_what_is_drawn_from_is_what_transformers_draws_from(sampling):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (9, VOCABULARY)).astype(np.float32)
    tokens = rng.integers(0, VOCABULARY, (9, 31))
    said = np.zeros(logits.shape, bool)
    said[np.arange(9)[:, None], tokens] = True
    theirs = processors(sampling)(torch.tensor(tokens), torch.tensor(logits))
    theirs = torch.softmax(theirs, dim=-1).numpy()
    ours = _sampling.filtered(logits, sampling.numbers(), said)
    ours = torch.softmax(torch.tensor(np.asarray(ours)), dim=-1).numpy()
    assert ((ours > 0) == (theirs > 0)).all()
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", ["top_k", "top_p", "repetition_penalty"])
def test_each_filter_is_that_of_transformers(kind):
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 2, (7, VOCABULARY)).astype(np.float32)
    tokens = rng.integers(0, VOCABULARY, (7, 11))
    said = np.zeros(logits.shape, bool)
    said[np.arange(7)[:, None], tokens] = True
    theirs, ours = {
        "top_k": (logits_process.TopKLogitsWarper(13), lambda x: _sampling.top_k(x, 13)),
        "top_p": (logits_process.TopPLogitsWarper(0.7), lambda x: _sampling.top_p(x, 0.7)),
        "repetition_penalty": (
            logits_process.RepetitionPenaltyLogitsProcessor(1.4),
            lambda x: _sampling.repetition_penalty(x, said, 1.4),
        ),
    }[kind]
    want = theirs(torch.tensor(tokens), torch.tensor(logits)).numpy()
    np.testing.assert_allclose(np.asarray(ours(logits)), want, rtol=1e-6)


def test_greedy_answers_with_a_penalty_are_those_of_transformers(smollm2, smollm2_path):
    oracle = transformers.AutoModelForCausalLM.from_pretrained(
        str(smollm2_path.parent),
        gguf_file=smollm2_path.name,
        local_files_only=True,
        dtype=torch.float32,
    ).eval()
    rows = [
        [{"role": "user", "content": "Name three animals of the forest."}],
        [{"role": "user", "content": "What is rain?"}],
    ]
    ours = models.answer(
        smollm2, rows, max_new_tokens=24, sampling=Sampling(repetition_penalty=1.3)
    )
    for row, answer in zip(rows, ours, strict=True):
        prompt = smollm2.tokenizer.render(row, add_generation_prompt=True)
        tokens = torch.tensor([smollm2.tokenizer.encode(prompt)])
        theirs = oracle.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=24,
            do_sample=False,
            repetition_penalty=1.3,
            eos_token_id=list(smollm2.tokenizer.stop_ids),
            pad_token_id=smollm2.tokenizer.stop_ids[0],
        )
        assert answer == smollm2.tokenizer.decode(theirs[0, tokens.shape[1] :].tolist())
        assert len(answer) > 10
