"""Whether an example printed what it promised: counts are exact, shares and losses are not."""

from printed import says_the_same, value


def near(got: str, promised: str) -> bool:
    """Whether one number, as it was printed, is near another."""
    if got == promised:
        return True
    if got.endswith("%") and promised.endswith("%"):
        return abs(value(got) - value(promised)) <= 10
    if "e-" in got and "e-" in promised:  # a rounding error
        return value(got) <= max(10 * value(promised), 1e-4)
    if "." in got and "." in promised:
        return abs(value(got) - value(promised)) <= max(0.3 * value(promised), 0.1)
    return False


def same_line(got: str, promised: str) -> bool:
    """Whether a line has the promised words, its counts, and figures near those."""
    return says_the_same(got, promised, near)


def problems(printed: str, promised: str) -> list[str]:
    """The promised lines that were not printed in their order; ``...`` stands for any lines."""
    lines, told, open_end = iter(printed.splitlines()), [], False
    for wanted in promised.strip().splitlines():
        if wanted.strip() == "...":
            open_end = True
            continue
        got = next(lines, None)
        while open_end and got is not None and not same_line(got, wanted):
            got = next(lines, None)
        if got is None or not same_line(got, wanted):
            told.append(f"promised {wanted.strip()!r}, printed {got!r}")
        open_end = False
    if not open_end:
        told.extend(f"not promised: {line!r}" for line in lines)
    return told
