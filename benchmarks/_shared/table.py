"""A benchmark's table: printed in Markdown row by row, and kept beside what it was measured with.

It imports nothing but the standard library, so that a benchmark in an environment of its own can
use it.
"""

import argparse
import importlib.metadata
import json
import shlex
import sys
from pathlib import Path

RESULTS = Path(__file__).parents[1] / "results"


def add_save(parser: argparse.ArgumentParser) -> None:
    """``--save MACHINE``."""
    parser.add_argument(
        "--save",
        metavar="MACHINE",
        help="keep the table in benchmarks/results, with these words for the machine",
    )


def versions(*packages: str) -> str:
    """The versions of Python and of those packages that are installed."""
    found = [f"Python {sys.version_info.major}.{sys.version_info.minor}"]
    for package in packages:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


class Table:
    """Rows of text below these columns."""

    def __init__(self, *columns: str):
        self.columns = list(columns)
        self.rows: list[list[str]] = []
        print(markdown_row(columns) + "\n" + "|---" * len(columns) + "|", flush=True)

    def row(self, *cells: str) -> None:
        """One more row, which is printed."""
        self.rows.append(list(cells))
        print(markdown_row(cells), flush=True)

    def keep(self, name: str, machine: str | None, versions: str) -> None:
        """Writes ``benchmarks/results/NAME.json`` where ``--save`` says what the machine is."""
        if not machine:
            return
        said = {"command": command(), "versions": versions, "machine": machine}
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(as_json(said, self.columns, self.rows), "utf-8")


def as_json(said: dict[str, str], columns: list[str], rows: list[list[str]]) -> str:
    """A result, each row of it on a line of its own."""
    head = "".join(f" {_plain(name)}: {_plain(value)},\n" for name, value in said.items())
    lines = ",\n".join(f"  {_plain(row)}" for row in rows)
    return f'{{\n{head} "columns": {_plain(columns)},\n "rows": [\n{lines}\n ]\n}}\n'


def _plain(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def markdown_row(cells: list[str] | tuple[str, ...]) -> str:
    """The cells between bars."""
    return f"| {' | '.join(cells)} |"


def command() -> str:
    """What was typed, without ``--save``."""
    words, given = [], iter(sys.argv[1:])
    for word in given:
        if word == "--save":
            next(given)
        elif not word.startswith("--save="):
            words.append(word)
    spec = sys.modules["__main__"].__spec__
    module = spec.name.removesuffix(".__main__") if spec else ""
    run = ["python", "-m", module] if module else ["python", f"benchmarks/{Path(sys.argv[0]).name}"]
    return shlex.join([*run, *words])
