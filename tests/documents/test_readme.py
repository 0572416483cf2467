"""The README's notebook example runs as printed, at a smaller size; its links exist."""

import re
from pathlib import Path

from halfway import attacks, data

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_notebook_example_runs(digits, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    lines = [line for line in code.splitlines() if line.strip()]
    assert len(lines) <= 18
    for full, small in (
        ("num_examples=600, num_holdout=597", "num_examples=300, num_holdout=200"),
        ("probe_steps=(0, 100, 700), num_pairs=8", "probe_steps=(0, 60), num_pairs=2"),
    ):
        assert full in code
        code = code.replace(full, small)
    monkeypatch.setattr(data, "load", lambda name: digits)
    exec(compile(code, "README.md", "exec"), {})
    meets, transfers = map(float, capsys.readouterr().out.split())
    # Trained for 60 steps with a fifth of the labels wrong: more than nothing, less than all.
    assert 0.2 < meets < 1.5
    assert 0.0 < transfers < 1.5


def test_files_that_the_readme_names_exist():
    names = re.findall(
        r"\]\(((?!http)[^)#]+)\)|`((?:halfway|experiments|configs|tests)/[\w/.]*)`", README
    )
    named = [first or second for first, second in names]
    assert len(named) > 8
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing


def test_every_attack_is_in_the_table():
    public = {name for name in attacks.__all__ if name.islower()}
    helpers = {
        "linf",
        "l2",
        "l1",
        "distance",
        "outcome",
        "diagnose",
        "in_words",
        "ensemble",
        "leave_one_out",
        "collect_weights",
    }
    rows = set(re.findall(r"^\| `(\w+)` \| (?:all|l)", README, flags=re.M))
    assert rows == public - helpers
    assert all(f"attacks.{name}" in README for name in helpers)
