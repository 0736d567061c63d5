"""The commands of ``python -m jlora``: one file each, with ``add_flags(parser)`` and ``run(args)``.

The first line of a file's docstring is what --help says of its command. Heavy imports stand in
``run``, so that --help and a mistyped flag answer at once.
"""

from __future__ import annotations

from types import ModuleType

from jlora._commands import _chat, _export, _generate, _info, _merge

COMMANDS: dict[str, ModuleType] = {
    "generate": _generate,
    "chat": _chat,
    "merge": _merge,
    "export": _export,
    "info": _info,
}
