"""Adapters in the format of PEFT: those of the hub work here, and those made here work there.

``lora, config = load(directory, model)``; ``save(directory, lora, config, model)``. A model of
one's own needs ``names``: ``{"layers/q/kernel": "model.layers.{}.self_attn.q_proj"}``.
"""

from jlora.peft._labels import labels as labels
from jlora.peft._load import describe as describe
from jlora.peft._load import load as load
from jlora.peft._load import located as located
from jlora.peft._publish import publish as publish
from jlora.peft._save import save as save
from jlora.peft._vocabulary import vocabulary as vocabulary
