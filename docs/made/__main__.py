"""Writes what is made into every page that asks for it: `python -m docs.made`."""

from docs.made import pages, written

for path in pages():
    path.write_text(written(path.read_text(encoding="utf-8")), encoding="utf-8")
