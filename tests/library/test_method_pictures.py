"""Each method's picture is the one that the script draws, well formed, and stands on the page."""

import runpy
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[2]


def test_pictures_of_methods_are_those_of_the_script():
    script = runpy.run_path(str(ROOT / "docs" / "method_pictures.py"))
    page = (ROOT / "docs/guides/methods.md").read_text(encoding="utf-8")
    drawn = script["drawn"]()
    assert set(drawn) == set(script["FOLDER"].iterdir())
    for path, picture in drawn.items():
        ElementTree.fromstring(picture)
        assert path.read_text(encoding="utf-8") == picture, "run python docs/method_pictures.py"
        assert page.count(f"](../pictures/methods/{path.name})") == 1
