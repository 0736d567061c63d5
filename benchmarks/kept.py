"""What a layer keeps for its gradient: everything, its products' results (as it is), its input.

    python -m benchmarks.kept

A LoRA train step of SmolLM2's shape, 4 rows of 128 tokens, rank 8 on all linear layers, compiled
and not run: its temporary memory, and the FLOPs of its matrix products with loops in full.
"""

import jax

from benchmarks._shared.flops import flops
from benchmarks._shared.keeping import keeping
from benchmarks._shared.llamas import LLAMAS
from benchmarks.costs._linen import linen_ways
from benchmarks.costs._models import TOKENS
from benchmarks.costs._step import step
from jlora.models import Decoder
from jlora.models._net import _decoder

# what is kept: (the policy of `Decoder`, its ``remat``)
KEPT = {
    "everything": (jax.checkpoint_policies.everything_saveable, False),
    "products' results": (_decoder.PRODUCTS, False),
    "the layer's input": (None, True),
}


def main() -> None:
    """The table in Markdown."""
    print("| each layer keeps | temporary MB | TFLOP |\n|---|---|---|")
    for name, (policy, remat) in KEPT.items():
        with keeping(policy):
            way = linen_ways(Decoder(LLAMAS["135M"], remat), TOKENS)["jlora.lift"]
            gradient = jax.make_jaxpr(jax.value_and_grad(way.loss))(way.trained, way.frozen, TOKENS)
            memory = step(way, TOKENS).cost.temporary
        print(f"| {name} | {memory / 1e6:.0f} | {flops(gradient.jaxpr) / 1e12:.3f} |", flush=True)
    print(f"\n{jax.default_backend()}, JAX {jax.__version__}")


if __name__ == "__main__":
    main()
