"""Pages: escaped whatever is filled in, and no markup outside the templates."""

import ast
import re
from pathlib import Path

import pytest

from halfway import lab, plots
from halfway.lab.report import page
from halfway.lab.report.page import Page
from halfway.lab.study.protocol import Figure, Table

NASTY = '<script>alert("x")</script> & M_<b> 10^−3'
ROOT = Path(lab.__file__).parent


def table(text=NASTY):
    return Table(text, text, [text, text], [[text, text]])


def figure(name):
    return Figure(name, NASTY, plots.budget_curve([0.1, 0.2], {"a": [0.0, 1.0]}).figure)


LAWS = ("first_law", "first_law_trained", "second_law", "linear_gaussian")
PAGES = {
    "landscape": {
        "lead": NASTY,
        "sentences": [NASTY],
        "titles": {"spectra": NASTY},
        "doubts": [NASTY],
        "drawn": {"spectra": None},
        "tabled": {"spectra": table()},
        "run": None,
        "command": NASTY,
        "settings": table(),
    },
    "evaluation": {
        "lead": NASTY,
        "sentences": [NASTY, NASTY],
        "doubts": [NASTY],
        "tables": [table(), table()],
        "curve": figure("curve"),
        "worst": figure("worst"),
        "command": NASTY,
        "settings": table(),
    },
    "transfer": {
        "lead": NASTY,
        "sentences": [NASTY],
        "doubts": [NASTY],
        "tables": [table(), table(), table()],
        "first_budgets": table(),
        "matrices": [],
        "others": [],
        "source": NASTY,
        "shares": {NASTY: 0.5},
        "weak": [{"name": NASTY, "share": 0.1}],
        "unmatched": [{"name": NASTY, "share": 0.1}],
        "command": NASTY,
        "settings": table(),
    },
    "laws": {
        "lead": NASTY,
        "laws": [(figure(name), table()) for name in LAWS],
        "num_steps": 100,
        "command": NASTY,
    },
    "sweep": {"lead": NASTY, "table": table(), "command": NASTY},
}
"""What each page is filled with; that of a run is in `test_report`."""


@pytest.mark.quick
@pytest.mark.parametrize("name", PAGES)
def test_what_is_filled_in_is_escaped(name):
    source = page.render(Page(name, NASTY, NASTY, PAGES[name]))
    assert "<script" not in source and "<b>" not in source and "& M" not in source
    assert source.count("&lt;script&gt;") >= 4
    assert "default-src &#39;none&#39;" in source or "default-src 'none'" in source
    # Every link within the page leads somewhere.
    ids = re.findall(r'id="([^"]*)"', source)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]*)"', source)) <= set(ids)


@pytest.mark.quick
def test_every_page_has_a_template_that_is_tested():
    folder = ROOT / "report" / "templates"
    names = {path.name.removesuffix(".html.jinja") for path in folder.glob("*.jinja")}
    assert names - {"base", "elements"} == {*PAGES, "report"}


def test_an_interval_may_stand_below_its_number_and_a_heading_in_lines():
    """A column is as wide as a number or an interval: in one line tables outgrow the page."""
    style = (ROOT / "report" / "templates" / "style.css").read_text()
    assert "thead .number, .estimate { white-space: normal; }\n" in style
    rows = [["a", "0.5 [0.4, 0.6]", "< 0.0001"], ["b", "0.1 [0.0, 10^3]", "0.2"]]
    content = PAGES["sweep"] | {"table": Table("t", "", ["name", "effect", "p"], rows)}
    source = page.render(Page("sweep", "", "", content))
    assert '<td class="number"><span class="estimate">0.5 <span>[0.4, 0.6]</span></span>' in source
    assert "<span>[0.0, 10<sup>3</sup>]</span></span></td>" in source
    assert '<td class="number">&lt; 0.0001</td>' in source


def test_what_a_template_lacks_is_an_error():
    with pytest.raises(Exception, match="'lead' is undefined"):
        page.render(Page("sweep", "", "", {}))


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: path.stem)
def test_no_markup_in_python(path):
    if path.name == "drawing.py":  # takes apart what matplotlib draws
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert not re.search(r"</?[a-z][a-z0-9]*( [a-z-]+=|/?>)", node.value), node.value
