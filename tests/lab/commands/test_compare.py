"""Runs side by side: what differs first, every verdict, never more than 100 columns."""

import pytest
from support import commands, tiny_run

from halfway.lab import studies
from halfway.lab.commands import compare
from halfway.lab.config import settings
from halfway.lab.config.user import UserError
from halfway.lab.report import comparison
from halfway.lab.report.comparison import Summary
from halfway.lab.runtime.runs import Identity, Run

pytestmark = pytest.mark.quick


def _verdict(effect=0.5, interval=(0.4, 0.6), **fields):
    return {
        "verdict": "supported",
        "effect": effect,
        "interval": interval,
        "p_adjusted": 0.001,
        "num_pairs": 16,
        "evidence": "confirmatory",
    } | fields


SETTINGS = {"seed": 0, "attack.epsilon": 0.1, "commit": "abc"}


def _text(*runs):
    text = comparison.text(runs, studies.listed())
    assert all(len(line) <= 100 for line in text.splitlines())
    assert not any(line.endswith(" ") for line in text.splitlines())
    return text


def test_what_differs_comes_first_and_nothing_else():
    first = Summary("runs/a", SETTINGS, {"G1": _verdict()})
    other = Summary("runs/b", SETTINGS | {"seed": 7}, {"G1": _verdict()})
    lines = _text(first, other).splitlines()
    assert lines[:3] == ["Runs", "  A  runs/a", "  B  runs/b"]
    assert [line.split() for line in lines[4:6]] == [
        ["What", "differs", "A", "B"],
        ["seed", "0", "7"],
    ]
    assert lines[7].startswith("G1  ")
    assert "epsilon" not in "\n".join(lines)


def test_equal_settings_and_a_field_that_one_lacks():
    run = Summary("a", SETTINGS, {"G1": _verdict()})
    assert "The settings do not differ." in _text(run, run)
    less = {"seed": 0, "commit": "abc"}
    assert "attack.epsilon  0.1" in _text(run, Summary("b", less, {}))
    assert _text(run, Summary("b", less, {})).splitlines()[5].endswith("–")


def test_verdicts_in_the_order_of_the_family():
    first = Summary("a", SETTINGS, {"T1": _verdict(4.0, (None, 5.0)), "G1": _verdict()})
    other = Summary("b", SETTINGS, {"G2": _verdict(verdict="refuted"), "G1": _verdict(0.25)})
    text = _text(first, other)
    assert [line[:2] for line in text.splitlines()[6:] if line[0] in "GT"] == ["G1", "G2", "T1"]
    assert "supported  4.00 [−∞, 5.00]" in text
    assert text.count("not run") == 2
    assert "refuted" in text and "evidence confirmatory" in text and "16 pairs" in text


@pytest.mark.parametrize("number", [2, 3, 6])
def test_long_values_are_whole_and_said_once(number):
    steps = [tuple(range(60)), (*range(59), 99)]  # only the end differs
    runs = [
        Summary(f"runs/{i}", {"training.probe_steps": steps[i == 1], "seed": i}, {"G1": _verdict()})
        for i in range(number)
    ]
    text = " ".join(_text(*runs).split())
    others = " ".join("ABCDEF"[:number].replace("B", ""))
    first, second = (", ".join(map(str, values)) for values in steps)
    assert f"training.probe_steps {others} {first} B {second} G1 " in text
    assert f"What differs {' '.join('ABCDEF'[:number])} seed 0 1" in text


def test_columns_stand_below_their_letters():
    runs = [Summary(name, {"lr": value}, {}) for name, value in (("a", 1), ("b", 22))]
    header, row = _text(*runs).splitlines()[4:6]
    assert header.index(" A") + 1 == row.index("1") and header.index(" B") + 1 == row.index("22")


def test_an_effect_that_is_not_finite():
    run = Summary("a", {}, {"G1": _verdict(None, (None, None), verdict="inconclusive")})
    assert _text(run, run).count("inconclusive  undefined") == 2


def test_no_verdicts_at_all():
    assert "No hypothesis was decided." in _text(Summary("a", {}, {}), Summary("b", {}, {}))


# From disk


CONFIG = tiny_run.digits("tiny", seed=3)


def make_run(parent):
    """A run with what is compared of it."""
    path = parent / "run"
    notes = {
        "environment": {
            "commit": "a" * 40 + " with uncommitted changes",
            "devices": "cpu",
            "data_version": "1.0.0",
            "versions": {"jax": "0.10"},
            "layout": "mesh member:2,data:1",
        }
    }
    run = Run.create(path, Identity("digits", CONFIG.to_dict(), "0123456789abcdef"), 2)
    run.note(**notes)
    run.save_verdicts([{"id": "G1"} | _verdict()])
    return path


@pytest.fixture
def folder(tmp_path):
    return make_run(tmp_path)


def test_summary_of_a_run(folder):
    summary = compare.summarize(str(folder))
    fields = settings.leaves(CONFIG)
    assert (fields["seed"], fields["training.batch_size"]) == (3, 64)
    assert summary.settings == fields | {
        "config file": "digits",
        "data version": "1.0.0",
        "data checksum": "0123456789ab",
        "commit": "aaaaaaaa +changes",
        "devices": "2 × cpu",
        "layout": "mesh member:2,data:1",
        "jax version": "0.10",
    }
    assert list(summary.verdicts) == ["G1"]


def _run(*names):
    commands.main("compare", *names, positional=True)


def test_command(folder, capsys):
    before = sorted(folder.rglob("*"))
    _run(str(folder), str(folder))
    assert "The settings do not differ." in capsys.readouterr().out
    assert sorted(folder.rglob("*")) == before


def test_mistakes(folder, tmp_path):
    run = str(folder)
    for names, words in (
        ((), "two or more runs"),
        ((run,), "two or more runs"),
        ((run, str(tmp_path)), "holds no run"),
        ((run, "nowhere"), "nowhere holds no run"),
    ):
        with pytest.raises(UserError, match=words):
            _run(*names)
    for damage in ("{", "[{}]"):
        (folder / "verdicts.json").write_text(damage)
        with pytest.raises(UserError, match=r"halfway decide --workdir="):
            _run(run, run)
    (folder / "verdicts.json").unlink()
    with pytest.raises(UserError, match="has no verdicts"):
        _run(run, run)
