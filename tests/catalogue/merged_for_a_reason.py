"""The uses that are linear in the weight and get it merged all the same, and why that is right.

Keyed by the primitive and by what jlora says of the use: another use of the same primitive needs a
reason of its own.
"""

POINTS = (
    "single entries are chosen or written, whose rows and columns of A and B differ from one to "
    "the next: as many thin products as entries"
)
ONE_ARRAY = "the function returns the weight itself, which has to be an array"
A_SIGNAL = (
    "the adapted leaf is the signal: windows over it are no contraction of its rows or columns"
)
NO_RULE = "jlora has no rule for it"

REASONS: dict[tuple[str, str], str] = {
    ("return", "returned by the function"): ONE_ARRAY,
    (
        "reshape",
        "a reshape mixes input, output or stack dimensions",
    ): "rows and columns are mixed: the delta has no low rank any more",
    (
        "conv_general_dilated",
        "the weight is the input of a convolution",
    ): A_SIGNAL,
    (
        "conv_general_dilated",
        "a convolution whose window is not all on one side of the adapter",
    ): "A has a part of the window and B another: two convolutions would sum over both at once",
    (
        "conv_general_dilated",
        "the kernel is so small (depthwise?) that merging it costs less",
    ): "the merged kernel costs fewer FLOPs than the two thin convolutions",
    ("reduce_window_sum", NO_RULE): A_SIGNAL,
    ("reduce_window", NO_RULE): A_SIGNAL,
    ("select_and_scatter_add", NO_RULE): A_SIGNAL,
    ("select_and_gather_add", NO_RULE): A_SIGNAL,
    (
        "gather",
        "a gather that is no choice of whole slices along one dimension",
    ): POINTS,
    (
        "scatter",
        "a scatter of other than whole slices at one place of one dimension",
    ): POINTS,
    ("scatter-add", "an adapted weight is added to places of an array"): POINTS,
    ("scatter-mul", NO_RULE): "each entry that is multiplied has a factor of its own",
    ("scatter-min", NO_RULE): "linear by accident: nothing that it is compared with is smaller",
    ("scatter-max", NO_RULE): "linear by accident: nothing that it is compared with is larger",
    ("max", NO_RULE): "linear by accident: what it is compared with is -inf or NaN",
    ("min", NO_RULE): "linear by accident: what it is compared with is inf or NaN",
    (
        "mul",
        "a product that broadcasts the weight",
    ): "the weight is repeated along a dimension on which the other operand differs",
    ("custom_linear_solve", NO_RULE): "the right-hand side of a solve, no weight of a model",
    ("triangular_solve", NO_RULE): "the right-hand side of a solve, no weight of a model",
}
