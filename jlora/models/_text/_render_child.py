"""A program of its own that renders chat templates, so that one of them can't harm the rest.

A template is text out of a model's folder. This process reads one request a line (JSON) and writes
one answer a line; it may hold so much memory and no more, and whoever started it ends it when an
answer takes too long. It imports nothing of jlora.
"""

import datetime
import functools
import json
import secrets
import signal
import sys

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox

MEMORY = 2**30  # bytes, where the system can hold a process to it
MOST_LETTERS = 2**24  # of a rendered conversation
_MARK = secrets.token_hex(12)  # stands before and after what {% generation %} encloses


class Generation(jinja2.ext.Extension):
    """``{% generation %}...{% endgeneration %}``: what the model itself is to write."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

    def parse(self, parser):
        """The block, its text marked at both ends."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_marked")
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _marked(self, caller):
        return f"{_MARK}{caller()}{_MARK}"


def _raise_exception(message):
    raise jinja2.TemplateError(message)


def _tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


@functools.lru_cache(maxsize=16)
def compiled(template):
    """The template, ready to render; it may call nothing that reaches out of it."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, Generation]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    return environment.from_string(template)


def answer(request):
    """``{"text": ..., "generated": [[start, end], ...] or None}``, or ``{"error": ...}``."""
    now = datetime.datetime.fromisoformat(request["now"])
    pieces, letters = [], 0
    try:
        template = compiled(request["template"])
        for piece in template.generate(strftime_now=now.strftime, **request["variables"]):
            pieces.append(piece)
            letters += len(piece)
            if letters > MOST_LETTERS:
                return {"error": f"it writes more than {MOST_LETTERS} letters"}
        return without_marks("".join(pieces), marked="generation" in request["template"])
    except MemoryError:
        return {"error": f"it needs more than {MEMORY >> 20} MiB of memory"}
    except RecursionError:
        return {"error": "it calls itself too deeply"}
    except jinja2.TemplateError as error:
        return {"error": str(error)[:2000]}
    except Exception as error:  # a template can make any happen
        return {"error": f"{type(error).__name__}: {error}"[:2000]}


def without_marks(text, marked):
    """The text as it is to be read, and where its marks were."""
    parts = text.split(_MARK)
    if not marked or len(parts) == 1:
        return {"text": text, "generated": None}
    ends = [0]
    for part in parts:
        ends.append(ends[-1] + len(part))
    spans = [[ends[at], ends[at + 1]] for at in range(1, len(parts), 2)]
    return {"text": "".join(parts), "generated": spans}


def _limit_memory():
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    except (ImportError, ValueError, OSError):
        pass  # Windows has no such limit, macOS does not hold to it


def main():
    """Answers until stdin ends, which it does when the process that asks is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for that one
    _limit_memory()
    requests, answers = sys.stdin.buffer, sys.stdout
    print("ready", file=answers, flush=True)
    for line in requests:
        print(json.dumps(answer(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
