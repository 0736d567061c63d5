"""The Python of a page: its blocks, what they print in one namespace, what comments promise."""

import contextlib
import io
import re

# a comment behind a print is what it prints, on its line or on the next
_PROMISE = re.compile(r"^\s*print\(.*\)(?:\s+# |\n# )(.+)$", re.MULTILINE)


def code_of(text: str) -> str:
    """The blocks of a page, one after the other."""
    return "\n".join(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL))


def printed_in(namespace: dict, text: str) -> str:
    """What the page's blocks print where these names are there already."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code_of(text), namespace)
    return printed.getvalue()


def promises(text: str) -> list[str]:
    """What comments behind the page's prints say that they print."""
    return _PROMISE.findall(code_of(text))
