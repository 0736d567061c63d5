"""What the pages take from the code and from stored results is what these say now."""

import json
import re
import shlex
from xml.etree import ElementTree

import pytest

from docs.made import DOCS, MAKERS, files, flags, results, written
from jlora._commands import COMMANDS
from jlora.finetune import Settings
from jlora.models._families import ENCODERS, FAMILIES

ROOT = DOCS.parent
TEXTS = {
    path: path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *DOCS.rglob("*.md")]
}
README = TEXTS[ROOT / "README.md"]
MARKS = re.compile(r"^<!-- made: (.+) -->$", re.MULTILINE)
USED = {tuple(found.split()) for text in TEXTS.values() for found in MARKS.findall(text)}
CALLS = re.compile(r"^(?:python train\.py|python -m jlora (\w+))( .*)?$", re.MULTILINE)


MADE = files()


@pytest.mark.parametrize("path", MADE, ids=lambda path: path.name)
def test_what_is_made_is_as_it_would_be_made_now(path):
    assert path.read_text(encoding="utf-8") == MADE[path], "run python -m docs.made"


def test_nothing_lies_beside_what_is_made_as_a_whole():
    for folder in (DOCS / "examples", DOCS / "pictures" / "methods"):
        assert {*folder.iterdir()} == {path for path in MADE if path.parent == folder}


def test_every_example_is_in_the_table_and_fits_a_few_screens():
    table = MADE[DOCS / "examples" / "index.md"]
    for path in (ROOT / "examples").glob("*.py"):
        assert f"]({path.stem}.md) | " in table
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 260


def test_every_picture_of_a_method_is_well_formed_and_stands_on_the_page():
    page = TEXTS[DOCS / "guides" / "methods.md"]
    for path, drawn in MADE.items():
        if path.suffix == ".svg":
            ElementTree.fromstring(drawn)
        if path.parent.name == "methods":
            assert page.count(f"](../pictures/methods/{path.name})") == 1


def test_a_mark_that_nothing_makes_is_an_error():
    with pytest.raises(ValueError, match="made: nothing: expected one of families"):
        written("<!-- made: nothing -->\n<!-- until here -->\n")
    assert {words[0] for words in USED} == set(MAKERS)


@pytest.mark.parametrize("command", ["train", *COMMANDS])
def test_the_page_of_a_command_names_each_of_its_flags_once(command):
    page = (DOCS / "commands" / f"{command}.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([^`]+)`", page, re.MULTILINE)
    assert sorted(rows) == sorted(flag.name for flag in flags.flags(command))


def test_what_help_says_of_a_flag_is_found_in_it():
    train = {flag.name.split(",")[0]: flag for flag in flags.flags("train")}
    given = {"--config", "--resume", "--overwrite", "--dry-run", "--preview"}
    given |= {"--distributed", "--coordinator", "--processes", "--process-id"}
    assert train.keys() - given == {f"--{name.replace('_', '-')}" for name in Settings().flat()}
    assert all(flag.text for flag in train.values())
    assert train["--rank"] == ("--rank", "number", "rank of A B", "8")
    assert train["--targets"].default == "'(q|k|v|o|gate|up|down)_proj'"
    assert train["--precision"][1::2] == ("default, high, highest", "the environment's")
    merge = {flag.name: flag for flag in flags.flags("merge")}
    assert merge["--dtype"].value == "float32, bfloat16, float16"
    assert merge["--max-shard-size"].default == "5GB"


def test_every_command_line_in_the_pages_has_flags_that_are_there():
    known = {
        name: {each for flag in flags.flags(name) for each in flag.name.split(", ")}
        for name in ("train", *COMMANDS)
    }
    calls = [
        (path, *found)
        for path, text in TEXTS.items()
        for found in CALLS.findall(text.replace("\\\n", " "))
    ]
    assert len(calls) > 30
    for path, command, rest in calls:
        words = shlex.split(rest, comments=True)
        unknown = {w.partition("=")[0] for w in words if w.startswith("--")} - {"--print-script"}
        assert unknown - known[command or "train"] == set(), (path.name, rest)


def test_every_stored_result_stands_in_a_page():
    stored = {path.stem for path in results.RESULTS.glob("*.json")}
    others = {"models-of-others"}  # a table of its own, where each row has its versions
    assert {words[1] for words in USED if words[0] == "result"} == stored - others
    for name in stored - others:
        its = json.loads((results.RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        assert its["command"].startswith(("python ", "pytest "))
        assert its["versions"].startswith("Python 3.")
        assert its["machine"]
        assert {len(row) for row in its["rows"]} == {len(its["columns"])}


def rows_of(name):
    return json.loads((results.RESULTS / f"{name}.json").read_text(encoding="utf-8"))["rows"]


def test_the_figures_in_sentences_are_those_that_are_stored():
    [peft], [compiled] = (
        [row[-2:] for row in rows_of(name) if row[0].startswith("PEFT")]
        for name in ("against-peft", "against-peft-compiled")
    )
    sentences = " ".join(README.split())
    ratio, spread = peft[0].split(" ", 1)
    assert f"{ratio} of its tokens/s {spread} and {peft[1]} of its memory" in sentences
    assert f"{compiled[0].split()[0]} and {compiled[1]} where PEFT is compiled" in sentences
    first, *others = rows_of("default-run")
    _, before, after, matched_before, matched, minutes, speed, memory = first
    for page in (sentences, " ".join(TEXTS[DOCS / "guides/train.md"].split())):
        assert f"before {before} {matched_before} after {after} {matched}" in page
        assert f"{minutes} minutes with both evaluations" in page
        assert f"{memory} of memory at most" in page
    train = TEXTS[DOCS / "guides/train.md"]
    assert f"{speed} tokens/s in training" in train
    assert all(row[4] in train for row in others)


def test_the_families_are_all_there_and_readme_counts_them():
    page = TEXTS[DOCS / "guides" / "models.md"]
    assert all(f"| `{family}` | " in page for family in (*FAMILIES, *ENCODERS))
    assert (
        f"| Model families that load out of the box | {len(FAMILIES) + len(ENCODERS)} |" in README
    )


def test_models_of_others_were_run_at_the_pinned_versions():
    pinned = {}
    for line in (ROOT / "benchmarks/models_of_others/packages.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, version = line.lower().split("==")
            pinned[name] = version
    stored = json.loads((ROOT / "benchmarks/results/models-of-others.json").read_text())
    assert stored
    for title, row in stored.items():
        assert row["of"] == f"{pinned[row['package']]}, JAX {pinned['jax']}", title
