"""The README is short, its example runs as printed, and what it names exists."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MOST_WORDS = 1200
NARROW = 42
"""Characters of code that a screen of 390 pixels shows without a scroll bar."""


def test_it_is_short():
    assert len(README.split()) < MOST_WORDS


def test_no_command_is_cut_on_a_narrow_screen():
    blocks = re.findall(r"```sh\n(.*?)```", README, flags=re.S)
    assert len(blocks) >= 4
    for block in blocks:
        assert max(map(len, block.splitlines())) <= NARROW


def test_the_example_of_a_model_of_ones_own_runs(digits, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    monkeypatch.setattr("halfway.data.load", lambda name: {"digits": digits}[name])
    exec(compile(code, "README.md", "exec"), {})
    clean, robust = map(float, capsys.readouterr().out.split())
    # Least squares on ten digits: most are right, and a small change is enough for half of them.
    assert 0.8 < clean < 0.95 and 0.2 < robust < 0.6


def test_files_that_the_readme_names_exist():
    names = re.findall(
        r"\]\(((?!http)[^)#]+)\)|`((?:halfway|experiments|configs|tests|docs)/[\w/.]*)`", README
    )
    named = [first or second for first, second in names]
    assert len(named) > 8
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing


def test_results_are_eight_rows_with_a_number_each():
    rows = re.findall(r"^\| [^|]+\? \| (.+) \|$", README, flags=re.M)
    assert len(rows) == 8
    for row in rows:
        for cell in row.split(" | "):
            assert cell == "–" or len(re.findall(r"\d+(?:\.\d+)?", cell)) == 1, cell
