"""How a command line and a file of settings become `Settings`."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import json
import re
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import tomli_w
import tyro
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

import jlora
from jlora import _files, _together
from jlora.finetune import _kinds
from jlora.finetune._settings import Settings, flag

Switch = Annotated[bool, tyro.conf.FlagCreatePairsOff]


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a command line asks for: settings, and what to do with them."""

    config: Annotated[str, _kinds.UNSHOWN] = ""
    """file of settings, TOML or JSON, whose keys are the flags; flags win over it"""
    resume: Switch = False
    """go on with the run in --out, with the settings that it was begun with"""
    overwrite: Switch = False
    """replace the run in --out"""
    dry_run: Switch = False
    """say what the run will need, from shapes alone, and show a few rows; train nothing"""
    preview: Switch = False
    """show a few rows as the model will see them; train nothing"""
    # Of the start, not of the run: one that goes on may have other processes.
    distributed: Switch = False
    """one of several processes, which the cluster says: SLURM, TPU, GKE, MPI"""
    coordinator: Annotated[str, _kinds.UNSHOWN] = ""
    """HOST:PORT where process 0 listens, in the place of --distributed"""
    processes: Annotated[int | None, _kinds.STEPS, _kinds.UNSHOWN] = None
    """how many processes there are, with --coordinator"""
    process_id: Annotated[int | None, _kinds.STEPS, _kinds.UNSHOWN] = None
    """number of this process, from 0, with --coordinator"""
    settings: Annotated[Settings, tyro.conf.arg(name="")] = Settings()  # noqa: RUF009 - frozen

    @property
    def of_several(self) -> bool:
        """Whether this process is one of several."""
        given = (self.coordinator or None, self.processes, self.process_id)
        return self.distributed or any(each is not None for each in given)


def parse(
    argv: Sequence[str] | None = None, *, base: Settings | None = None, description: str = ""
) -> Asked:
    """The settings of a command line over those of its ``--config`` file, over ``base``.

    Args:
        argv: the arguments; the process's own if None.
        base: what holds where neither says anything; the defaults if None.
        description: what --help begins with.

    Raises:
        ValueError: in one line, when a flag or a key is unknown, or a value can't be read. What a
            value may be, `Settings.problems` says.
        SystemExit: after --help.

    Example:
        >>> from jlora import finetune
        >>> asked = finetune.parse(["--rank", "4", "--data", "rows.jsonl", "--resume"])
        >>> asked.settings.lora.rank, asked.settings.data, asked.resume
        (4, ('rows.jsonl',), True)
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    before = Asked(settings=base or Settings())
    asked = _parsed(argv, before, description)
    if not asked.config:
        return asked
    in_file = _arguments_of(_read(Path(asked.config)))
    try:
        before = _parsed(in_file, before, description)
    except ValueError as error:
        raise ValueError(f"{asked.config}: {error}") from None
    return _parsed(argv, before, description)


def write_settings(path: Path, settings: Settings) -> None:
    """Writes the file that repeats the run by ``--config``, whole or not at all.

    Raises:
        OSError: when it can't be written.
    """
    said = {name: _for_toml(value) for name, value in settings.flat().items()}
    kept = {name: value for name, value in said.items() if value not in (None, "", [], {})}
    plain_first = sorted(kept, key=lambda name: isinstance(kept[name], Mapping))
    text = tomli_w.dumps({name: kept[name] for name in plain_first}, multiline_strings=True)
    content = f"# Repeats this run: --config {path.name}\n{text}".encode()
    _together.by_first(f"writing {path}", lambda: _files.write_together({path: content}))


def _parsed(argv: Sequence[str], default: Asked, description: str) -> Asked:
    """What tyro reads, its boxes of errors as one line."""
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            asked = tyro.cli(
                Asked,
                args=argv,
                default=default,
                description=description,
                config=(tyro.conf.OmitArgPrefixes,),
                registry=_REGISTRY,
            )
    except SystemExit as stopped:
        if not stopped.code:
            raise
        raise ValueError(_one_line(told.getvalue())) from None
    values = {field.name: getattr(asked.settings, field.name) for field in _FIELDS}
    values |= {name: getattr(asked, name) for name in ("processes", "process_id")}
    if problems := _unread(values):
        raise ValueError("; ".join(problems))
    return asked


def _unread(values: Mapping[str, Any]) -> list[str]:
    """What could not be read, by flag; a configuration's own words have the flags' names."""
    return [
        str(value) if name == "lora" else f"{flag(name)}: {value}"
        for name, value in values.items()
        if isinstance(value, ValueError)
    ]


def _one_line(box: str) -> str:
    """The message in a box that tyro draws, with the nearest flags where one is unknown.

    A box has its title in its frame, or, where the terminal has no lines, above a first rule.
    """
    framed = "╭" in box
    lines = [line.strip(" │╰╯") for line in box.splitlines() if not line.startswith("╭")]
    parts = "\n".join("" if set(line) <= set("─-") else line for line in lines).split("\n\n")
    message = " ".join((parts if framed else parts[1:] or parts)[0].split())
    unknown = re.findall(r"--[\w-]+", message) if "nrecognized" in message else []
    near = [name for wrong in unknown for name in nearest(wrong)]
    return f"{message}. Did you mean {' or '.join(map(flag, near))}?" if near else message


def nearest(name: str) -> list[str]:
    """The settings whose names are like this one."""
    known = [*Settings().flat(), *(field.name for field in dataclasses.fields(Asked))]
    known.remove("settings")
    return difflib.get_close_matches(name.strip("-").replace("-", "_"), known, n=2, cutoff=0.6)


def _read(path: Path) -> dict[str, Any]:
    """The keys of a file of settings.

    Raises:
        ValueError: when it can't be read, or a key is no setting.
    """
    _files.require_regular(path)
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} can't be read: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected settings by name")
    named = {key.replace("-", "_"): value for key, value in found.items()}
    problems = []
    for key in named.keys() - Settings().flat().keys():
        near = nearest(key)
        hint = f": did you mean {' or '.join(near)}?" if near else ""
        problems.append(f"{key} is no setting{hint}")
    if problems:
        raise ValueError(f"{path}: {'; '.join(sorted(problems))}")
    return named


def _arguments_of(named: Mapping[str, Any]) -> list[str]:
    """The command line that says the same as a file's keys."""
    kinds = _written_by()
    arguments: list[str] = []
    for name, value in named.items():
        if isinstance(value, bool):
            arguments.append(flag(name) if value else flag(f"no_{name}"))
        elif value and isinstance(value, (Mapping, list)) and name in kinds:
            arguments += [flag(name), *kinds[name].str_from_instance(value)]
        elif isinstance(value, Mapping):
            arguments += [flag(name), json.dumps(value)]
        elif isinstance(value, list):
            arguments += [flag(name), *map(str, value)]
        elif value is not None:
            arguments += [flag(name), str(value)]
    return arguments


def _written_by() -> dict[str, PrimitiveConstructorSpec[Any]]:
    """How the settings that `_kinds` reads are written, by name."""
    hints = get_type_hints(Settings, include_extras=True)
    found = {name: getattr(hint, "__metadata__", ()) for name, hint in hints.items()}
    found |= {name: (kind,) for name, (_, kind) in _kinds.OF_LORA.items()}
    return {
        name: kind
        for name, kinds in found.items()
        for kind in kinds
        if isinstance(kind, PrimitiveConstructorSpec)
    }


def _for_toml(value: Any) -> Any:
    """The value in the types that TOML has; what it has no word for is None."""
    if isinstance(value, Mapping):
        return {key: _for_toml(each) for key, each in value.items()}
    return [_for_toml(each) for each in value] if isinstance(value, (tuple, list)) else value


_FIELDS = dataclasses.fields(Settings)
_REGISTRY = ConstructorRegistry()


@_REGISTRY.struct_rule
def _lora(info: StructTypeInfo) -> StructConstructorSpec | None:
    """`jlora.LoraConfig` by the flags that `_kinds.OF_LORA` names.

    One that can't be is kept as its error, so that tyro does not draw a box around it.
    """
    if info.type is not jlora.LoraConfig:
        return None
    default: Any = info.default

    def unshown(name: str) -> tuple[Any, ...]:
        return () if getattr(default, name) else (_kinds.UNSHOWN,)

    def typed(name: str, kind: Any) -> Any:
        return kind if isinstance(kind, type) else Annotated[Any, kind, *unshown(name)]

    fields = tuple(
        StructFieldSpec(
            name,
            typed(name, kind),
            getattr(default, name),
            helptext=text,
        )
        for name, (text, kind) in _kinds.OF_LORA.items()
    )

    def made(**given: Any) -> jlora.LoraConfig | ValueError:
        if problems := _unread(given):
            return ValueError("; ".join(problems))
        try:
            return dataclasses.replace(default, **given)
        except ValueError as error:
            return error

    return StructConstructorSpec(instantiate=made, fields=fields)
