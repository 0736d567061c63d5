"""The four tables: what a step needs, quantised too, what it moves, and how both scale."""

import dataclasses

import jax

from benchmarks._shared.table import Table
from benchmarks.ahead import _proofs
from benchmarks.ahead._collectives import moved, sent
from benchmarks.ahead._compiled import (
    Figures,
    Program,
    figures,
    held,
    on_a_chip,
    traced_flops,
)
from benchmarks.ahead._links import CHIPS, seconds
from benchmarks.ahead._slices import GIB, Slice
from benchmarks.ahead._steps import PLAIN, SHARING, STEPS, Step, layout_on, lora_step
from benchmarks.ahead._theory import needed

MEMORY = (
    "model",
    "slice",
    "mesh",
    "trains",
    "weights",
    "adapters",
    "optimizer",
    "temporary",
    "peak, GB a chip",
    "TFLOP a chip",
    "FLOPs, compiled / traced",
)
QUANTISED = (
    "model",
    "slice",
    "weights in",
    "weights",
    "adapters",
    "optimizer",
    "temporary",
    "peak, GB",
    "peak, GiB",
    "arguments, laid out / stored",
)
COLLECTIVES = (
    "model",
    "slice",
    "mesh",
    "trains",
    "all-gather",
    "reduce-scatter",
    "all-reduce",
    "permute, all-to-all",
    "sent, GB a chip",
    "needed: weights + gradients + activations",
    "sent / needed",
    "stacks gathered",
    "largest sum over rows / smallest weight",
    "sums of A, B / one everywhere",
)
SCALING = (
    "model",
    "trains",
    "chips",
    "mesh",
    "TFLOP a chip",
    "sent, GB a chip",
    *(f"{generation}: sending / computing" for generation in CHIPS),
)
COUNTS = (1, 8, 64, 256)


@dataclasses.dataclass(frozen=True)
class Case:
    """A model that trains so on these chips."""

    model: str
    trains: str
    on: Slice
    base: str = PLAIN  # what the layers' kernels are kept in

    @property
    def sharing(self) -> int:
        return min(SHARING[self.model], self.on.chips)

    @property
    def name(self) -> str:
        base = "" if self.base == PLAIN else f"-{self.base}"
        return f"{self.model}-{self.on}-{self.trains}-{self.sharing}{base}".replace(":", "-")

    def step(self) -> Step:
        """FSDP over the slice, but for so many chips in each group as suit the model."""
        layout = layout_on(self.on.devices(), self.sharing)
        if self.base != PLAIN:
            return lora_step(self.model, layout, self.base)
        return STEPS[self.trains](self.model, layout)


def memory_row(table: Table, case: Case, step: Step, its: Program) -> Figures:
    """One row of what a step needs."""
    found = figures(step, its, case.on)
    temporary = "does not fit" if found.temporary is None else f"{found.temporary / 1e9:.2f}"
    table.row(
        *_head(case, step),
        *(f"{size / 1e9:.2f}" for size in (found.weights, found.adapters, found.optimizer)),
        temporary,
        f"{found.peak / 1e9:.2f} of {case.on.memory / 1e9:.1f}",
        f"{found.flops / 1e12:.1f}",
        "" if found.repeated is None else f"{found.repeated:.2f}{'*' * found.in_turns}",
    )
    return found


def quantised_row(table: Table, case: Case, step: Step, its: Program) -> None:
    """One row of what a step needs that trains an adapter of weights in a few bits."""
    stored = held(step)
    fits = its.temporary is not None and its.peak <= case.on.memory
    laid_out = "" if its.arguments is None else f"{its.arguments / on_a_chip(step.args):.3f}"
    table.row(
        case.model,
        str(case.on),
        case.base,
        *(f"{size / 1e9:.2f}" for size in stored),
        f"{its.temporary / 1e9:.2f}" if its.temporary is not None and fits else "does not fit",
        f"{its.peak / 1e9:.2f} of {case.on.memory / 1e9:.1f}",
        f"{its.peak / GIB:.2f}",
        laid_out,
    )


def collectives_row(table: Table, case: Case, step: Step, its: Program) -> None:
    """One row of what a step moves; none where nothing was compiled, or on one chip."""
    if not its.text or case.on.chips == 1:
        return
    found = moved(its.text, case.on.chips)
    by_name = sent(found)
    least = needed(case.model, step, step.layout.parts, case.sharing)
    whole, named = sum(by_name.values()), ("all-gather", "reduce-scatter", "all-reduce")
    each = [by_name.get(name, 0) for name in named]
    lora = step.frozen is not None
    largest = _proofs.largest_sum(found, step) if lora else None
    of_factors = _proofs.sums_of_factors(found, step) if lora else None
    table.row(
        *_head(case, step),
        *(f"{size / 1e9:.2f}" for size in (*each, whole - sum(each), whole)),
        " + ".join(f"{s / 1e9:.2f}" for s in (least.weights, least.gradients, least.activations)),
        f"{whole / least.total:.2f}",
        str(len(_proofs.stacks(found, step))),
        "" if largest is None else f"{largest:.3f}",
        "" if of_factors is None else f"{of_factors:.2f}",
    )


def scaling_rows(table: Table, model: str, trains: str) -> None:
    """By theory alone: one row of 2048 tokens for each place along the FSDP axis."""
    step = STEPS[trains](model, layout_on(jax.devices()[:1], 1))
    products, _ = traced_flops(step)
    for chips in COUNTS:
        sharing = min(SHARING[model], chips)
        its = needed(model, step, chips // sharing, sharing)
        on_a_chip = products / sharing
        cells = []
        for chip in CHIPS.values():
            along_rows = its.weights + its.gradients
            sending = seconds(chip, along_rows, its.activations, chips, sharing)
            cells.append(f"{100 * sending / (on_a_chip / chip.flops):.0f} %")
        mesh = f"{chips // sharing}x{sharing}"
        table.row(
            model,
            trains,
            str(chips),
            mesh,
            f"{on_a_chip / 1e12:.1f}",
            f"{its.total / 1e9:.2f}",
            *cells,
        )


def _head(case: Case, step: Step) -> tuple[str, ...]:
    mesh = "x".join(map(str, step.layout.mesh.shape.values()))
    return case.model, str(case.on), mesh, case.trains
