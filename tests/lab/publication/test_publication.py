"""What is published is what was decided, and documents say what is published."""

import dataclasses
import json
import math
import re
from pathlib import Path

import pytest
from support import commands, drawings, run_folder

import halfway
from halfway.lab import studies
from halfway.lab.config.user import UserError
from halfway.lab.publication import documents, figures, literature, result, tables
from halfway.lab.runtime.runs import Run
from halfway.lab.studies.d3 import study as d3
from halfway.lab.studies.d3.measure import WAYS
from halfway.lab.study import registration
from halfway.lab.study.verdict import Headline, PartResult

ROOT = Path(halfway.__file__).parents[1]
RESULTS = result.read_all(ROOT / result.RESULTS_FOLDER)
SHIPPED = result.shipped(RESULTS)
DIGITS = next(found for found in SHIPPED if found.dataset == "digits")


# What is committed


@pytest.mark.parametrize("path", documents.DOCUMENTS)
def test_documents_say_what_results_say(path):
    """Where this fails: python -m experiments.publish."""
    text = (ROOT / path).read_text(encoding="utf-8")
    assert documents.filled(text, RESULTS) == text


def test_a_number_that_was_changed_by_hand_is_noticed():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "99.4 %, met" in text
    changed = text.replace("99.4 %, met", "99.9 %, met")
    assert documents.filled(changed, RESULTS) == text


def test_all_blocks_are_used():
    texts = [(ROOT / path).read_text(encoding="utf-8") for path in documents.DOCUMENTS]
    used = {match[2] for text in texts for match in documents._BLOCK.finditer(text)}
    assert used == set(documents.blocks(RESULTS))
    with pytest.raises(UserError, match="no block 'nonsense' is made from results"):
        documents.filled("<!-- begin nonsense -->\n\n<!-- end nonsense -->", RESULTS)


@pytest.mark.parametrize("found", RESULTS, ids=lambda found: found.name)
def test_results_are_of_the_rules_of_the_lock(found):
    for verdict in found.verdicts:
        if verdict.kind == "description":
            continue
        digest = re.search(r"digest (\w+), as locked", verdict.rule)
        assert digest and registration.decides_alike(verdict.id, digest[1]), verdict.id
    path = ROOT / result.RESULTS_FOLDER / f"{found.name}.json"
    assert path.stat().st_size <= result.MOST_BYTES


@pytest.mark.parametrize("found", RESULTS, ids=lambda found: found.name)
def test_no_hypothesis_on_a_shuffled_pool_claims_what_it_may_not(found):
    if not found.shuffled:
        pytest.skip("its labels are true")
    assert "claims what it may not" not in tables.null([found])


# Files


def test_what_is_read_is_what_was_written(tmp_path):
    verdict = dataclasses.replace(
        DIGITS.verdicts[0],
        interval=(-math.inf, 0.5),
        headlines=(Headline("a", 0.1, math.nan, math.nan, "b", (0.2, -math.inf, math.inf)),),
    )
    planted = dataclasses.replace(DIGITS, name="planted", verdicts=[verdict])
    path = result.write(planted, tmp_path)
    read = result.read(path)
    assert repr(read) == repr(planted)  # NaN equals nothing
    assert path.name == "planted.json"


def test_a_file_that_is_no_result_is_named(tmp_path):
    for content in ("[]", "{}", "nonsense", '{"verdicts": [1]}'):
        (tmp_path / "x.json").write_text(content)
        with pytest.raises(UserError, match=r"x\.json is no published result"):
            result.read_all(tmp_path)


def test_what_is_too_large_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(result, "MOST_BYTES", 1000)
    with pytest.raises(UserError, match=r"at most 1,000 are committed"):
        result.write(DIGITS, tmp_path)
    assert not list(tmp_path.iterdir())


def test_shipped_results_come_first_and_in_order(tmp_path):
    names = ("mnist1d", "digits-seed1", "digits-shuffled", "digits", "own")
    for name in names:
        renamed = dataclasses.replace(
            DIGITS, name=name, dataset=name.split("-")[0], shuffled="shuffled" in name
        )
        result.write(renamed, tmp_path)
    read = result.read_all(tmp_path)
    assert [found.name for found in read] == [
        "digits",
        "mnist1d",
        "own",
        "digits-seed1",
        "digits-shuffled",
    ]
    assert [found.name for found in result.shipped(read)] == ["digits", "mnist1d", "own"]


# A run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return run_folder.make(tmp_path_factory.mktemp("published"))[0]


def test_a_run_that_decides_nothing_is_refused(run):
    done = commands.call(run.parent, "publish", "--workdir=run")
    assert "evidence of run is none" in done.complaint and "--exploratory" in done.complaint


def test_a_run_is_published_as_it_was_decided(run, tmp_path):
    found = result.of_run(Run.open(run), exploratory=True)
    assert found.evidence == "none" and found.law is None
    assert found.seed == Run.open(run).config.seed
    (verdict,) = found.verdicts
    stored = json.loads((run / "verdicts.json").read_text(encoding="utf-8"))
    assert verdict.to_json() == stored[0]
    assert set(found.meeting) == set(Run.open(run).config.architectures)
    read = result.read(result.write(found, tmp_path))
    assert read.verdicts[0].effect == pytest.approx(verdict.effect, rel=1e-4)


def test_a_rule_that_is_not_the_locks_is_refused(run, monkeypatch):
    monkeypatch.setattr(registration, "is_locked", lambda study: False)
    with pytest.raises(UserError, match="the rule of G1 is not that of the lock"):
        result.of_run(Run.open(run), exploratory=True)


def test_a_config_that_is_not_the_locks_is_refused(run, monkeypatch):
    monkeypatch.setattr(registration, "is_config_locked", lambda name: False)
    with pytest.raises(UserError, match="the config digits is not that of the lock"):
        result.of_run(Run.open(run), exploratory=True)


# Words


def _verdict(word, **part):
    fields = {"name": "mlp", "kind": "test", "statistic": "mean", "direction": "greater"}
    fields |= {"estimate": 0.1, "low": -0.1, "high": 0.3, "threshold": (0.0,)}
    fields |= {"p_value": 0.15, "p_reverse": 0.85, "num_pairs": 16}
    planted = PartResult(**fields | part)
    return dataclasses.replace(
        DIGITS.verdict("G5"),
        verdict=word,
        reason="the reason",
        parts=(planted,),
        effect=planted.estimate,
        interval=(planted.low, planted.high),
    )


MET = (DIGITS.verdict("G1"),)


def _together(*words, checks=MET, p_adjusted=1.0, **part):
    names = ("digits", "mnist1d", "mnist")
    verdicts = [
        dataclasses.replace(_verdict(word, **part), p_adjusted=p_adjusted) for word in words
    ]
    results = [
        dataclasses.replace(DIGITS, name=name, dataset=name, verdicts=[*checks, verdict])
        for name, verdict in zip(names, verdicts, strict=False)
    ]
    return tables.together(studies.available()["G5"], results)


def test_what_data_sets_say_together():
    assert _together("supported") == "Supported on digits."
    assert _together("supported", "supported", "supported") == (
        "All agree: supported on digits, MNIST-1D and MNIST."
    )
    assert _together("supported", "refuted") == (
        "Data sets disagree: supported on digits; refuted on MNIST-1D."
    )
    assert _together() == "Not run yet."


def test_how_many_pairs_would_settle_a_claim():
    """To see an effect of 2.5 standard errors at level z = 2.79 with power z = .84 ..."""
    text = _together("supported", "inconclusive")
    assert text.startswith("Supported on digits; inconclusive on MNIST-1D. On MNIST-1D the part")
    # Half of the interval is t(.975, 15) = 2.131 standard errors: .1 is 1.066 of them.
    assert tables.pairs_needed(_verdict("inconclusive").parts[0]) == math.ceil(
        16 * ((2.7905 + 0.8416) / 1.0657) ** 2
    )
    assert "about 186 pairs would settle it." in text
    against = _together("inconclusive", estimate=-0.1, low=-0.3, high=0.1)
    assert against.endswith("about 186 pairs would settle it against the claim.")
    exact = _together("inconclusive", estimate=0.0, low=-0.2, high=0.2)
    assert exact.endswith("too near to the threshold for any number of pairs.")


def test_a_gate_is_not_met_by_more_pairs():
    text = _together("inconclusive", kind="gate", p_value=None)
    assert "the reason" in text or "must be > 0" in text
    failing = _together("inconclusive", kind="gate", p_value=0.5)
    assert failing.endswith("more pairs would not change that.")


def test_a_claim_that_has_nothing_to_stand_on_says_so():
    text = "Inconclusive on digits. On digits G1, on which the claim stands,"
    assert _together("inconclusive", checks=()) == f"{text} was not run."
    failed = dataclasses.replace(DIGITS.verdict("G1"), verdict="not met")
    assert _together("inconclusive", checks=(failed,)) == f"{text} is not met."
    held = _together("inconclusive", checks=(failed,), p_adjusted=0.01)
    assert held == f"{text} is not met, though every part of its own rule holds."
    gate = {"kind": "gate", "p_value": 0.5, "p_adjusted": 0.01}
    assert _together("inconclusive", checks=(failed,), **gate) == f"{text} is not met."


def test_a_cell_names_confirmatory_evidence():
    verdict = dataclasses.replace(_verdict("supported"), evidence="confirmatory", p_adjusted=0.01)
    assert tables.cell(verdict) == "**supported** 0.10 [−0.10, 0.30], p 0.01 (confirmatory)"
    assert tables.cell(None) == "–"


def test_bars_in_cells_are_not_columns():
    assert tables.markdown(["a"], [["|x|"]]).splitlines()[-1] == "| \\|x\\| |"


# Figures


@pytest.mark.parametrize("number", [1, 3])
def test_figures_lie_inside(number):
    results = [
        dataclasses.replace(DIGITS, name=name, dataset=name)
        for name in ("digits", "mnist1d", "cifar10_jpeg")[:number]
    ]
    for figure in (
        figures.verdict_map(results),
        figures.clearness(results),
        figures.law(results, 7, 0.05),
    ):
        drawings.assert_inside(figure)


def test_figures_of_a_data_set_that_was_run_in_part():
    part = dataclasses.replace(
        DIGITS, name="mnist", dataset="mnist", verdicts=DIGITS.verdicts[:3], law=None
    )
    for figure in (
        figures.verdict_map([DIGITS, part]),
        figures.clearness([DIGITS, part]),
        figures.law([DIGITS, part], 7, 0.05),
    ):
        drawings.assert_inside(figure)
    assert "not run" in drawings.words(figures.verdict_map([DIGITS, part]).axes[0])


def test_an_effect_is_clear_by_half_widths_of_its_interval():
    assert figures.clear_by(_verdict("supported")) == pytest.approx(0.5)
    assert figures.clear_by(
        _verdict("supported", direction="less", estimate=-0.1, low=-0.2, high=0.0)
    ) == pytest.approx(1.0)


@pytest.mark.quick
def test_percentages_have_no_negative_zero():
    assert tables.percent((-0.0046, -0.0115, 0.0024)) == "0 %"
    assert tables.percent((-0.03, -0.05, -0.01)) == "−3 %"


def test_transfer_of_published_attacks_stands_beside_the_published_numbers():
    names = [*WAYS, *(f"{stronger} minus {weaker}" for weaker, stronger in d3.STEPS)]
    headlines = tuple(
        Headline(f"{name} to {target}", 0.3 + shift, 0.2 + shift, 0.4 + shift)
        for shift, target in ((0.0, "cnn"), (0.1, "residual"))
        for name in names
    )
    described = dataclasses.replace(DIGITS.verdict("D2"), id="D3", headlines=headlines)
    published = dataclasses.replace(DIGITS, verdicts=[described])
    text = literature.ways([published], literature.TARGETED)
    head, _, *rows = text.splitlines()
    assert head == "| % | published | digits, CNN to CNN | digits, CNN to residual network |"
    assert rows[1].startswith("| MI-FGSM, targeted | 0 to 4 | 30.0 [20.0, 40.0] | 40.0 [")
    assert set(literature.STEPS) == set(names) - set(WAYS)
    assert literature.ways([DIGITS], literature.ORDER) == literature.NOT_MEASURED


@pytest.mark.parametrize(
    ("low", "high", "gain", "no_gain"),
    [
        (0.01, 0.03, "holds", "does not hold"),
        (-0.03, -0.01, "reversed", "holds"),
        (-0.01, 0.01, "open", "holds"),
    ],
)
def test_a_published_step_holds_where_its_whole_interval_is_on_its_side(low, high, gain, no_gain):
    middle = (low + high) / 2
    headlines = tuple(Headline(f"{name} to cnn", middle, low, high) for name in literature.STEPS)
    described = dataclasses.replace(DIGITS.verdict("D2"), id="D3", headlines=headlines)
    text = literature.attack_steps([dataclasses.replace(DIGITS, verdicts=[described])])
    *gains, last = [row.rsplit(", ", 1)[1] for row in text.splitlines()[2:]]
    assert set(gains) == {f"{gain} |"} and last == f"{no_gain} |"


def test_noise_scales_leave_out_what_is_undefined():
    curve = {0: (40.0, 30.0, 50.0), 20: (math.nan, -math.inf, math.inf), 100: (90.0, 1.0, math.inf)}
    halves = {("mlp", "other half"): curve, ("mlp", "half trained on"): curve}
    figure = figures.noise_scales({"digits": halves}, half="other half", published=900.0)
    figure.draw_without_rendering()
    (ax,) = figure.axes
    points, line = ax.lines
    assert list(points.get_xdata()) == [0, 100]
    assert list(line.get_ydata()) == [900, 900]
