"""A page for each file of the repository's examples, and their table."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "examples"
HEAD = """# Examples

Each is one file to copy and change. It runs as it stands on a CPU, in seconds, and downloads
nothing. Its first lines say what it prints.

| Example | What it shows | Public names in it |
|---|---|---|
"""


class Example(NamedTuple):
    """What a file says of itself."""

    name: str
    title: str
    shows: str  # the rest of its first sentence
    about: str  # its command and its paragraphs
    begins: str  # its first line of code
    uses: str  # public names of jlora, in their order in the package


def examples() -> list[Example]:
    """Every example, by name."""
    public = re.findall(r"as (\w+)\n", (ROOT / "jlora" / "__init__.py").read_text(encoding="utf-8"))
    found = []
    for path in sorted((ROOT / "examples").glob("*.py")):
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source)
        about, promised, _ = (ast.get_docstring(tree) or "").partition("\n\nIt prints")
        if not promised:
            raise ValueError(f"{path} does not say what it prints: expected 'It prints' and text")
        first, _, about = about.partition("\n\n")
        title, _, shows = first.removesuffix(".").partition(": ")
        used = set(re.findall(r"\bjlora\.(\w+)", source)) | set(
            re.findall(r"^from jlora import (.+)$", source, re.MULTILINE)[0].split(", ")
            if "\nfrom jlora import " in source
            else ()
        )
        names = ", ".join(f"`{name}`" for name in dict.fromkeys(public) if name in used)
        begins = source.splitlines()[tree.body[1].lineno - 1]
        found.append(Example(path.stem, title, shows, about, begins, names))
    return found


def files() -> dict[Path, str]:
    """The text of each page."""
    written = {PAGES / "index.md": HEAD}
    for each in examples():
        command, _, text = each.about.partition("\n\n")
        command = "\n".join(line.strip() for line in command.splitlines())
        written[PAGES / "index.md"] += (
            f"| [{each.title}]({each.name}.md) | {each.shows} | {each.uses} |\n"
        )
        written[PAGES / f"{each.name}.md"] = (
            f"# {each.title}\n\n{each.shows[:1].upper()}{each.shows[1:]}.\n\n"
            f"```bash\n{command}\n```\n\n{text}\n\n"
            f"```{{literalinclude}} ../../examples/{each.name}.py\n:language: python\n"
            f":start-at: {each.begins}\n```\n\nIt prints\n\n"
            f"```{{literalinclude}} ../../examples/{each.name}.py\n:start-after: It prints\n"
            ':end-before: \'"""\'\n:dedent: 4\n```\n'
        )
    tree = "\n".join(each.name for each in examples())
    written[PAGES / "index.md"] += f"\n```{{toctree}}\n:hidden:\n\n{tree}\n```\n"
    return written
