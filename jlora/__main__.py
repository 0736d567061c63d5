"""``python -m jlora``: what can be done with a saved adapter at a terminal."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from jlora._commands import COMMANDS


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 0, 2 for bad input, 1 when something could not be written."""
    args = _parse(argv)
    try:
        args.run(args)
    except (ValueError, OSError) as error:
        print(f"jlora {args.command}: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    except KeyboardInterrupt:
        return 130
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m jlora", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="|".join(COMMANDS))
    for name, module in COMMANDS.items():
        text = (module.__doc__ or "").partition("\n")[0]
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.usage = "%(prog)s [flags]"  # argparse fails at a long one with empty metavars
        module.add_flags(command)
        command.set_defaults(run=module.run)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
