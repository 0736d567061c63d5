"""What a train step of a llama with LoRA on every linear layer must cost, from its shape alone.

With n layers, length T, width d, MLP width m, vocabulary V, h heads, rank r and one row of text,
each layer has weights of (in, out): four of (d, d) in attention, two of (d, m) and one of (m, d) in
the MLP. A layer keeps its input and its products for the gradient; all else is computed again.

FLOPs of a step, a multiplication and an addition each counted:

    base       4 T (n (4 d² + 3 d m) + d V)      x W forward, and back to x; none for W, frozen
    adapters   6 T r n Σ (in + out)              x A B forward, back to x, and to A and B
               2 T r n Σ in                      x A again, for the gradient of B
    attention  16 P d n                          scores and mixing, two products of 2 P d each:
                                                 forward, again, and twice as many back

Left out is what isn't a product: norms, softmax, silu, rotation, the loss, AdamW.

Bytes, float32, while the backward pass is in a layer:

    frozen     4 (n (4 d² + 3 d m + 2 d) + d V + d)
    adapters   16 r n Σ (in + out)               A and B, Adam's two moments, the gradient
    kept       4 T n (5 d + 2 m)                 the layer's input, q, k, v, o; gate and up
    mask       T²
    at work    4 (4 d² + 3 d m + r Σ (in + out)) one layer's weights, cut from the stack
               4 T (8 d + 7 r + max(6 m, 4 h P / T)) its values and gradients

P is the pairs of tokens that meet: queries go by blocks, at most eight and of 64 tokens at least,
and none meets the keys after it, so that P is T² for one block and 9/16 T² for eight.

Derived are FLOPs, frozen, adapters, kept and mask: kept and mask are what `jax.vjp` of the lifted
loss holds, as `jax.eval_shape` lists it. At work is a count by hand, rough in its d: two normed
inputs, the sum between them, turned q and k, the mix, two gradients (8 d); seven x A; and either
the MLP's silu (two values), the down product's input and three gradients (6 m) or attention's
exponentials, weights and their gradients (4 h P / T). Three things in it were read off what the
compiler allocates: that the layer's weights are copied, that MLP and attention share their room,
and, of the ways to count d, which comes near. The head's logits are left out, as they are gone by
then.
"""

from jlora.models import DecoderConfig


def flops(config: DecoderConfig, rank: int, length: int) -> float:
    """Of one step."""
    d, m, layers = config.width, config.mlp_width, config.layers
    inputs, outputs = _dimensions(config)
    base = 4 * length * (layers * (4 * d * d + 3 * d * m) + d * config.vocabulary)
    adapters = 2 * length * rank * layers * (3 * (inputs + outputs) + inputs)
    attention = 16 * pairs(length) * d * layers
    return base + adapters + attention


def memory(config: DecoderConfig, rank: int, length: int) -> float:
    """Of one step, in bytes: arguments and temporaries."""
    d, m, layers = config.width, config.mlp_width, config.layers
    inputs, outputs = _dimensions(config)
    weights = 4 * d * d + 3 * d * m
    frozen = 4 * (layers * (weights + 2 * d) + d * config.vocabulary + d)
    adapters = 16 * rank * layers * (inputs + outputs)
    kept = 4 * layers * length * (5 * d + 2 * m) + length**2
    values = 8 * d + 7 * rank + max(6 * m, 4 * config.heads * pairs(length) / length)
    at_work = 4 * (weights + rank * (inputs + outputs) + length * values)
    return frozen + adapters + kept + at_work


def pairs(length: int) -> int:
    """A query and a key that meet, over all blocks of queries."""
    size = max(64, -(-length // 8))
    ends = [min(start + size, length) for start in range(0, length, size)]
    return sum((end - start) * end for start, end in zip([0, *ends], ends, strict=False))


def _dimensions(config: DecoderConfig) -> tuple[int, int]:
    """in and out, each summed over a layer's weights."""
    d, m = config.width, config.mlp_width
    return 6 * d + m, 5 * d + 2 * m
