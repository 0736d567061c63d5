"""What a train step of a llama with LoRA on every linear layer must cost, from its shape alone.

With n layers, length T, width d, MLP width m, vocabulary V, rank r and one row of text, each layer
has weights of (in, out): four of (d, d) in attention, two of (d, m) and one of (m, d) in the MLP.

FLOPs of a step, a multiplication and an addition each counted:

    base       4 T (n (4 d² + 3 d m) + d V)      x W forward, and back to x; none for W, frozen
    adapters   6 T r n Σ (in + out)              x A B forward, back to x, and to A and B
    attention  12 T² d n                         scores and mixing: two products of 2 T² d, three
                                                 times; a causal mask saves nothing here

Left out is what isn't a product: norms, softmax, silu, rotation, the loss, AdamW.

Bytes, float32, when the backward pass begins:

    frozen     4 (n (4 d² + 3 d m + 2 d) + d V + d)
    adapters   16 r n Σ (in + out)               A and B, Adam's two moments, the gradient
    kept       4 T (8 d + 6 m + 7 r + 2 h T)     a layer's; n of them, and one to work on

kept is what derivatives ask for: two norms' inputs and outputs, queries, keys, values and what they
mix to (8 d); the gate, three values of its silu, the up product and what goes into the down product
(6 m); seven x A; and in each of h heads the scores' exponentials and their normalised weights.
The counts are those of what JAX's gradient of this model saves, as its jaxpr has it; no number is
fitted to the compiler's. That the layer at work has a copy of its own is the one term that was
added after seeing what the compiler allocates.
"""

from jlora.models import DecoderConfig


def flops(config: DecoderConfig, rank: int, length: int) -> float:
    """Of one step."""
    d, m, layers = config.width, config.mlp_width, config.layers
    base = 4 * length * (layers * (4 * d * d + 3 * d * m) + d * config.vocabulary)
    adapters = 6 * length * rank * layers * _dimensions(config)
    attention = 12 * length**2 * d * layers
    return base + adapters + attention


def memory(config: DecoderConfig, rank: int, length: int) -> float:
    """Of one step, in bytes: arguments and temporaries."""
    d, m, layers = config.width, config.mlp_width, config.layers
    frozen = 4 * (layers * (4 * d * d + 3 * d * m + 2 * d) + d * config.vocabulary + d)
    adapters = 16 * rank * layers * _dimensions(config)
    kept = 4 * length * (8 * d + 6 * m + 7 * rank + 2 * config.heads * length)
    return frozen + adapters + (layers + 1) * kept


def _dimensions(config: DecoderConfig) -> int:
    """in + out, summed over a layer's weights."""
    return 4 * 2 * config.width + 3 * (config.width + config.mlp_width)
