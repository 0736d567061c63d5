"""``python -m jlora``: an adapter trained, and what can be done with it, at a terminal."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from jlora._commands import COMMANDS, _train


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 0, 2 for bad input, 1 for what can't be written, 128 and a signal's."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv[:1] == ["train"]:  # its flags are its settings' own
        return _train.main(argv[1:])
    args = _parse(argv)
    try:
        args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has enough, as head has
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for what is flushed at the end
        return 141  # 128 and SIGPIPE's number
    except (ValueError, OSError) as error:
        print(f"jlora {args.command}: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    except KeyboardInterrupt:
        return 130
    return 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m jlora", allow_abbrev=False)
    names = "|".join(["train", *COMMANDS])
    commands = parser.add_subparsers(dest="command", required=True, metavar=names)
    commands.add_parser("train", help=(_train.__doc__ or "").partition("\n")[0], add_help=False)
    for name, module in COMMANDS.items():
        text = (module.__doc__ or "").partition("\n")[0]
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.usage = "%(prog)s [flags]"  # argparse fails at a long one with empty metavars
        module.add_flags(command)
        command.set_defaults(run=module.run)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
