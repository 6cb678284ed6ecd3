"""The page: nothing a name may contain breaks out of it, it needs nothing beside it, and it is written whole."""

import base64
import re

import pytest
from matplotlib.figure import Figure

from diffeq_gen.report import page, picture, table, write

NASTY = "<script>alert('x')</script> & \"1 < 2\""


def test_names_are_text_wherever_they_stand():
    whole = page(NASTY, {NASTY: table((NASTY,), [(NASTY, NASTY)]) + picture(Figure(), NASTY)})
    assert "<script" not in whole and "'x'" not in whole and '"1' not in whole
    assert whole.count("&lt;script&gt;") == 8  # title, heading, section, column, two cells, alt and caption


def test_a_picture_is_inside_the_page():
    data = re.fullmatch(r'<figure><img alt="a" src="data:image/png;base64,([^"]+)">.*', picture(Figure(), "a"))
    assert base64.b64decode(data.group(1)).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("row", "cell"),
    [
        (("a", 3), '<td class="number">3</td>'),
        (("a", 0.123456), '<td class="number">0.123</td>'),
        (("a", float("nan")), '<td class="number">nan</td>'),
        (("a", "holds"), '<td class="holds">holds</td>'),
        (("a", "refuted"), '<td class="refuted">refuted</td>'),
        (("a", "word"), '<td class="">word</td>'),
        (("ddim-update", 1), '<td class="name">ddim-update</td>'),
    ],
)
def test_cells_are_set_by_what_they_hold(row, cell):
    assert cell in table(("one", "two"), [row])


def test_an_empty_table_keeps_its_header():
    assert table(("one",), []) == "<table><thead><tr><th>one</th></tr></thead><tbody></tbody></table>"


def test_a_page_is_written_whole_and_replaces_the_old(tmp_path):
    path = tmp_path / "new" / "index.html"
    for text in ("old", "λ → ∞"):
        write(path, page(text, {}))
    assert "λ → ∞" in path.read_text(encoding="utf-8") and 'charset="utf-8"' in path.read_text(encoding="utf-8")
    assert [found.name for found in path.parent.iterdir()] == ["index.html"]
