"""The package's structure: no circle of imports, and a map in CONTRIBUTING that is true."""

import ast
import collections
import graphlib
import pathlib
import re

ROOT = pathlib.Path(__file__).parents[2]
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "jlora").rglob("*.py"))
}


def imported(body):
    """The modules of the package that a module imports at its top, if only for its types."""
    for node in body:
        if isinstance(node, ast.If):
            yield from imported([*node.body, *node.orelse])
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in FILES)
        elif isinstance(node, ast.ImportFrom) and node.module in FILES:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in FILES else node.module


def test_no_imports_go_in_a_circle():
    graph = collections.defaultdict(set)
    for name, path in FILES.items():
        body = ast.parse(path.read_text()).body
        if name == "jlora":  # it names the rooms that are loaded on first use
            body = [node for node in body if not isinstance(node, ast.If)]
        graph[name].update(imported(body))
    order = list(graphlib.TopologicalSorter(graph).static_order())  # raises for a circle
    assert len(order) == len(FILES) > 100
    assert order.index("jlora._lowrank") < order.index("jlora._node") < order.index("jlora._split")


def test_the_core_knows_nothing_of_models_and_files():
    for name, path in FILES.items():
        room = name.split(".")[1] if "." in name else ""
        if room.startswith("_") and room not in ("_commands", "_info", "__main__"):
            found = set(imported(ast.parse(path.read_text()).body))
            beside = {each for each in found if not each.removeprefix("jlora.").startswith("_")}
            assert beside - {"jlora"} == set(), name


def test_the_files_that_contributing_names_are_there():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    named = re.findall(r"`((?:_|models|peft|checkpoint)[\w/]*(?:\.py|/))`", text)
    assert len(named) > 20
    assert [name for name in named if not (ROOT / "jlora" / name).exists()] == []
    for name in re.findall(r"`(_[a-z_]+)`", text):
        assert (ROOT / f"jlora/{name}.py").exists(), name
