"""The uses that are linear in the weight and get it merged all the same, and why that is right.

Keyed by the primitive and by what jlora says of the use: another use of the same primitive needs a
reason of its own.
"""

POINTS = (
    "single entries are chosen or written, whose rows and columns of A and B differ from one to "
    "the next: as many thin products as entries"
)
ENTRIES = "each entry of the weight is treated alone: the result has no low rank"
REPEATED = "the weight is repeated along a dimension on which the other operand differs"
ONE_ARRAY = "the function returns the weight itself, which has to be an array"
A_SIGNAL = "the adapted leaf is the signal: its windows contract neither rows nor columns"
ACCIDENT = "linear by accident: at the numbers of this use alone"
UNUSED = "no model is known that does it to a weight: a rule would be code without a user"
NO_RULE = "jlora has no rule for it"
ELEMENTWISE = "an elementwise operation over inputs and outputs is not of low rank"

REASONS: dict[tuple[str, str], str] = {
    ("return", "returned by the function"): ONE_ARRAY,
    ("reshape", "a reshape mixes input, output or stack dimensions"): ENTRIES,
    ("reshape", "a reshape that also transposes"): UNUSED,
    ("mul", ELEMENTWISE): ENTRIES,
    ("div", ELEMENTWISE): ENTRIES,
    ("select_n", ELEMENTWISE): ENTRIES,
    ("mul", "a product that broadcasts the weight"): REPEATED,
    ("div", "a product that broadcasts the weight"): REPEATED,
    ("add", "a sum that broadcasts the weight"): REPEATED,
    ("sub", "a sum that broadcasts the weight"): REPEATED,
    ("conv_general_dilated", "the weight is the input of a convolution"): A_SIGNAL,
    (
        "conv_general_dilated",
        "a convolution whose window is not all on one side of the adapter",
    ): "A has a part of the window and B another: both would be summed over at once",
    (
        "conv_general_dilated",
        "the kernel is so small (depthwise?) that merging it costs less",
    ): "the merged kernel costs fewer FLOPs than the two thin convolutions",
    ("conv_general_dilated", "a convolution with groups in the batch"): (
        "JAX makes it for a kernel's gradient, and no model writes it"
    ),
    ("reduce_window_sum", NO_RULE): A_SIGNAL,
    ("reduce_window", NO_RULE): A_SIGNAL,
    ("select_and_scatter_add", NO_RULE): A_SIGNAL,
    ("select_and_gather_add", NO_RULE): A_SIGNAL,
    ("gather", "a gather that is no choice of whole slices along one dimension"): POINTS,
    ("scatter", "a scatter of other than whole slices at one place of one dimension"): POINTS,
    ("dynamic_update_slice", "an update along several dimensions, or along none"): POINTS,
    ("scatter-add", "an adapted weight is added to places of an array"): POINTS,
    ("scatter-mul", NO_RULE): ENTRIES,
    ("scatter-min", NO_RULE): ACCIDENT,
    ("scatter-max", NO_RULE): ACCIDENT,
    ("max", NO_RULE): ACCIDENT,
    ("min", NO_RULE): ACCIDENT,
    ("rem", NO_RULE): ACCIDENT,
    ("nextafter", NO_RULE): ACCIDENT,
    ("qr", NO_RULE): ACCIDENT,
    ("bitcast_convert_type", NO_RULE): ACCIDENT,
    ("reduce", NO_RULE): "jlora does not read what a reduction of one's own computes",
    ("conj", NO_RULE): UNUSED,
    ("cumsum", NO_RULE): UNUSED,
    ("fft", NO_RULE): UNUSED,
    ("custom_linear_solve", NO_RULE): UNUSED,
    ("triangular_solve", NO_RULE): UNUSED,
    ("tridiagonal_solve", NO_RULE): UNUSED,
}

# The uses in which values may differ, by the beginning of their names, and why.
MAY_DIFFER: dict[str, str] = {
    "div_singularity": "a weight over zero: W / 0 and A B / 0 may be infinite with other signs",
}
