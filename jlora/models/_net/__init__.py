"""The decoder: one Flax module for every family, whose features a `DecoderConfig` turns on.

Tokens go in at `_decoder`, through layers of `_attention` and `_mlp` (or `_experts`), and come out
as scores; `_loss` makes a loss of them without ever holding them all. `_encoder`, by an
`EncoderConfig`, is the net of texts that are read and not continued; `_kinds` tells the two apart.
"""
