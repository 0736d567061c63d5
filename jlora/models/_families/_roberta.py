"""RoBERTa (Liu et al. 2019, arXiv 1907.11692): BERT with positions that pass over the padding."""

from __future__ import annotations

import dataclasses

from jlora.models._families._bert import BERT, leaves
from jlora.models._families._encoder_settings import PADDING, SIZES
from jlora.models._families._settings import Activation

ROBERTA = dataclasses.replace(
    BERT,
    architecture="RobertaModel",
    leaves=leaves(
        "roberta",
        {"classifier/dense": "classifier.dense", "classifier/out_proj": "classifier.out_proj"},
    ),
    parts=(SIZES, PADDING, Activation(tanh="gelu_new")),
    features={"own_dense": True},
    prefix="roberta.",
    defaults={**BERT.defaults, "pad_token_id": 1},
)
