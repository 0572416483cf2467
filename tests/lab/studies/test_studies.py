"""Every decision rule on simulated records: its size, its power, its reverse, and its words."""

import dataclasses
import functools
import json
import re

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from halfway.lab import studies
from halfway.lab.measurements import measurements
from halfway.lab.studies.g3 import contest
from halfway.lab.studies.t12 import partial_ranks
from halfway.lab.study import family, plants, wording
from halfway.lab.study.protocol import Measurement, Request

STUDIES = studies.available()
BOUNDARIES = [(name, b) for name, study in STUDIES.items() for b in study.boundaries()]
WORDS = ("supported", "refuted", "inconclusive")
SEED = 20_240_601
NUM_DRAWS, FEW_DRAWS = 200, 60
"""As many as every rule is tested on, and what a change has to wait for where a draw takes long."""

POOLED = {"G3", "T3", "T12"}
"""Studies whose parts count the pairs of all conditions together."""

MODELS = {"T11": 16}
"""Studies whose parts count models: the surrogates and targets of a cell."""


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch):
    # A standard error to 5 %, where the study takes 10,000: six hundred decisions are made here.
    monkeypatch.setattr(contest, "NUM_RESAMPLES", 200)
    monkeypatch.setattr(contest, "NUM_PERMUTATIONS", 499)
    # Three tests, Holm over twenty: a reverse needs p < .0008.
    monkeypatch.setattr(partial_ranks, "NUM_PERMUTATIONS", 1299)
    monkeypatch.setattr(partial_ranks, "NUM_RESAMPLES", 50)


each_study = pytest.mark.parametrize("name", STUDIES)


def _with_draws(cases):
    """Cases with their number of draws: few and, nightly, all of them where grids are planted."""
    found = []
    for case in cases:
        if case[0] in POOLED:
            found.append(pytest.param(*case, FEW_DRAWS))
            found.append(pytest.param(*case, NUM_DRAWS, marks=pytest.mark.slow))
        else:
            found.append(pytest.param(*case, NUM_DRAWS))
    return found


def _p_values(study, effect, boundary=None, num_draws=NUM_DRAWS):
    rng = np.random.default_rng(SEED)
    return np.array(
        [study.decide(study.plant(rng, effect, boundary)).p_value for _ in range(num_draws)]
    )


@functools.cache
def _planted(name, effect=1.0):
    return STUDIES[name].plant(np.random.default_rng(SEED), effect)


def _num_pairs(name):
    """The pairs that a part counts: of a study's conditions, or of all of them together."""
    pairs = _planted(name).conditions["num_pairs"]
    if name in MODELS:
        return MODELS[name]
    return int(pairs.sum() if name in POOLED else pairs.iloc[0])


def _some(records, number=6):
    """Keys of a few conditions, spread over all of them."""
    keys = list(records.conditions.index)
    return keys[:: max(1, len(keys) // number)]


def _conclude(name, records):
    study = STUDIES[name]
    pairs = [(study, study.decide(records))]
    return family.conclude(pairs, evidence="exploratory")[0]


def test_studies_are_listed_in_the_order_of_the_family():
    assert list(STUDIES) == family.sort_ids(STUDIES)
    assert {"G1", "G2", "T1", "T2"} <= set(STUDIES)
    for name, study in STUDIES.items():
        assert study.id == name
        assert study.claim.endswith(".")
        assert study.controls
        assert study.smallest_effect
        with pytest.raises(dataclasses.FrozenInstanceError):
            study.id = "G0"


# Size and power


@pytest.mark.parametrize(("name", "boundary", "num_draws"), _with_draws(BOUNDARIES))
def test_size_with_one_test_at_the_boundary_of_its_null(name, boundary, num_draws):
    p_values = _p_values(STUDIES[name], 1.0, boundary, num_draws)
    assert (p_values < 0.05).mean() <= 0.1
    # The other tests hold, so that this one decides: its p is spread, not stuck at 1.
    assert (p_values < 0.5).mean() > 0.2


@each_study
def test_size_with_every_test_at_the_boundary(name):
    assert (_p_values(STUDIES[name], 0.0, num_draws=40) < 0.05).mean() <= 0.1


@pytest.mark.parametrize(("name", "num_draws"), _with_draws((name,) for name in STUDIES))
def test_power_at_the_smallest_effect_worth_reporting(name, num_draws):
    # .05 over twenty: what Holm asks of a hypothesis that is alone.
    p_values = _p_values(STUDIES[name], 1.0, num_draws=num_draws)
    assert (p_values < 0.05 / 20).mean() >= 0.8


@each_study
def test_a_planted_reverse_is_refuted(name):
    for seed in range(5):
        records = STUDIES[name].plant(np.random.default_rng(seed), -1.0)
        verdict = _conclude(name, records)
        assert verdict.verdict == "refuted", verdict.reason


@each_study
def test_a_large_effect_is_supported(name):
    verdict = _conclude(name, STUDIES[name].plant(np.random.default_rng(SEED), 1.5))
    assert verdict.verdict == "supported", verdict.reason


# The rule


@each_study
def test_boundaries_name_tests(name):
    tests = [part.name for part in STUDIES[name].decide(_planted(name)).tests]
    assert len(set(tests)) == len(tests)
    boundaries = STUDIES[name].boundaries()
    assert len(set(boundaries)) == len(boundaries)
    # An equivalence has two boundaries, named after its test.
    owners = [
        [test for test in tests if b == test or b.startswith(f"{test}, ")] for b in boundaries
    ]
    assert all(owners)
    assert {test for owner in owners for test in owner} == set(tests)


@each_study
def test_outcome_is_complete(name):
    outcome = STUDIES[name].decide(_planted(name))
    names = [part.name for part in outcome.parts]
    assert len(set(names)) == len(names)
    assert set(outcome.first) <= {part.name for part in outcome.tests}
    assert outcome.first
    for part in outcome.parts:
        assert np.isfinite(part.estimate)
        assert part.low <= part.estimate <= part.high
        assert part.num_pairs == _num_pairs(name)
        assert part.num_excluded == 0
        assert (part.p_value is None) == (part.kind == "gate")
        assert len(part.threshold) == (2 if part.kind == "equivalence" else 1)
        assert (part.direction == "within") == (part.kind == "equivalence")


@each_study
def test_decide_is_deterministic_and_blind_to_the_order_of_rows(name):
    study, records = STUDIES[name], _planted(name)
    table = records.table.copy()
    outcome = study.decide(records)
    assert study.decide(records) == outcome
    pd.testing.assert_frame_equal(records.table, table)
    shuffled = table.sample(frac=1, random_state=1, ignore_index=True)
    backwards = {
        key: dict(reversed(arrays.items()))
        for key, arrays in reversed(list(records.arrays.items()))
    }
    again = dataclasses.replace(
        records,
        table=shuffled,
        conditions=records.conditions.iloc[::-1],
        arrays=backwards,
    )
    assert study.decide(again) == outcome


@each_study
def test_decide_does_not_look_at_other_conditions(name):
    records = _planted(name)
    stranger = records.table.assign(condition="000000000000", value=99.0)
    stranger["condition"] = stranger["condition"].astype("string")
    both = pd.concat([stranger, records.table], ignore_index=True)
    more = dataclasses.replace(records, table=both)
    assert STUDIES[name].decide(more) == STUDIES[name].decide(records)


# Diverged pairs


def _diverged(records, key, pairs, garbage):
    """Pairs of one condition marked as not finite, their other numbers replaced."""
    table = records.table.copy()
    rows = (table["condition"] == key) & table["pair"].isin(pairs)
    flag = table["quantity"] == "finite"
    assert (rows & flag).sum() == len(pairs)
    table.loc[rows & flag, "value"] = 0.0
    arrays = dict(records.arrays)
    if garbage is not None:
        table.loc[rows & ~flag, "value"] = garbage
        for place in [place for place in arrays if place[1] == key]:
            arrays[place] = {n: values.copy() for n, values in arrays[place].items()}
            for values in arrays[place].values():
                if np.issubdtype(values.dtype, np.floating):
                    values[list(pairs)] = garbage
    return dataclasses.replace(records, table=table, arrays=arrays)


@each_study
def test_a_diverged_pair_leaves_and_is_counted(name):
    records = _planted(name)
    whole = STUDIES[name].decide(records)
    for key in _some(records):
        outcome = STUDIES[name].decide(_diverged(records, key, [3], None))
        concerned = [part for part in outcome.parts if part.num_excluded]
        assert concerned, f"nobody missed a pair of condition {key}"
        for part in concerned:
            assert (part.num_pairs, part.num_excluded) == (_num_pairs(name) - 1, 1)
        # What diverged cannot matter, and who did not lose a pair notices nothing.
        for garbage in (np.nan, np.inf, 1e3):
            assert STUDIES[name].decide(_diverged(records, key, [3], garbage)) == outcome
        for part, other in zip(outcome.parts, whole.parts, strict=True):
            assert part.num_excluded or part == other


@each_study
def test_more_than_one_of_sixteen_diverged_settles_nothing(name):
    records = _planted(name)
    total = _num_pairs(name)
    assert total % 16 == 0

    def without(number):
        """The first condition loses pairs; where all are counted together, the next ones too."""
        lost, rest = records, number
        for key, size in records.conditions["num_pairs"].items():
            lost = _diverged(lost, key, range(min(rest, size)), np.nan) if rest else lost
            rest -= min(rest, size)
        return _conclude(name, lost)

    excluded = total // 16 + 1
    assert "diverged" not in without(excluded - 1).reason
    verdict = without(excluded)
    assert verdict.verdict == "inconclusive"
    assert f"{excluded} of {total} pairs" in verdict.reason
    assert "diverged" in verdict.reason
    assert (verdict.num_pairs, verdict.num_excluded) == (total - excluded, excluded)


@each_study
def test_all_diverged_is_still_an_answer(name):
    records = _planted(name)
    for key, size in records.conditions["num_pairs"].items():
        records = _diverged(records, key, range(size), np.nan)
    verdict = _conclude(name, records)
    assert verdict.verdict == "inconclusive"
    assert verdict.num_pairs == 0
    assert np.isfinite(verdict.effect)
    json.dumps(verdict.to_json(), allow_nan=False)
    assert not _mentions_nan(STUDIES[name].explain(verdict), verdict.reason)


def test_g8_says_what_was_measured_on_fresh_data_once():
    verdict = _conclude("G8", _planted("G8"))
    fresh, *cells = map(wording.format_headline, verdict.headlines)
    words = STUDIES["G8"].explain(verdict)
    # What the paragraph quotes to the letter is not listed below it again.
    assert words.count(fresh) == 1
    assert not any(cell in words for cell in cells) and len(cells) == 6


def test_a_pair_that_did_not_come_to_the_loss_is_left_out_and_said():
    records = _planted("G3")
    whole = STUDIES["G3"].decide(records)
    key = records.conditions.index[5]
    table = records.table.copy()
    rows = (table["condition"] == key) & (table["pair"] == 2)
    table.loc[rows & (table["quantity"] == "reached") & (table["surrogate"] == "A"), "value"] = 0.0
    outcome = STUDIES["G3"].decide(dataclasses.replace(records, table=table))
    assert outcome.warnings == (
        "1 of 1024 pairs, of 1 of 128 conditions, had a model that did not come to a training loss "
        "of 0.05 in 4000 steps; these pairs are left out.",
    )
    assert not whole.warnings and outcome.parts != whole.parts
    # It is no divergence, and what it measured no longer matters.
    assert outcome.parts[0].num_excluded == 0
    names = ["reached", "finite"]
    table.loc[rows & ~table["quantity"].isin(names), "value"] = 1e3
    assert STUDIES["G3"].decide(dataclasses.replace(records, table=table)) == outcome


# Figures and words


def _mentions_nan(*texts):
    return any(re.search(r"\bnan\b", text, re.IGNORECASE) for text in texts)


def _texts(figure):
    return [text.get_text() for text in figure.findobj(Text)]


@each_study
def test_figures_and_words_for_each_verdict(name):
    study, records = STUDIES[name], _planted(name)
    verdict = _conclude(name, records)
    explained, captions = set(), set()
    for word in WORDS:
        given = dataclasses.replace(verdict, verdict=word, reason="what was found")
        words = study.explain(given)
        assert len(words.split()) > 20
        figures = study.draw(records, given)
        assert figures
        assert len({figure.name for figure in figures}) == len(figures)
        for figure in figures:
            assert figure.name.startswith(f"{name.lower()}_")
            assert not _mentions_nan(words, figure.caption, *_texts(figure.figure))
        if word == "inconclusive":
            assert "what was found" in words
        explained.add(words)
        captions.add(" ".join(figure.caption for figure in figures))
    assert len(explained) == len(captions) == 3


@each_study
def test_explanation_quotes_its_numbers(name):
    words = STUDIES[name].explain(_conclude(name, _planted(name)))
    # At least one estimate with its interval.
    assert "[" in words
    assert "]" in words


@each_study
def test_figures_without_the_pairs_that_diverged(name):
    records = _planted(name)
    for key, size in records.conditions["num_pairs"].items():
        records = _diverged(records, key, range(size - 2), np.nan)
    verdict = _conclude(name, records)
    for figure in STUDIES[name].draw(records, verdict):
        assert not _mentions_nan(figure.caption, *_texts(figure.figure))


# Needs


@each_study
def test_needs_hold_what_the_rule_reads(name):
    config = plants.CONFIG
    requests = list(STUDIES[name].needs(config))
    assert all(isinstance(request, Request) for request in requests)
    keys = [request.key for request in requests]
    assert len(set(keys)) == len(keys)
    assert keys == [request.key for request in STUDIES[name].needs(config)]
    records = _planted(name)
    asked = {condition.key for request in requests for condition in request.conditions}
    assert set(records.conditions.index) <= asked
    stored = {(r.measurement.name, r.conditions[0].key) for r in requests}
    assert set(records.arrays) <= stored
    # A pair's `finite` is a row of its training.
    assert {("learning", key) for key in records.conditions.index} <= stored
    for request in requests:
        for condition in request.conditions:
            assert condition.num_pairs % config.num_pairs == 0 or name in {*POOLED, *MODELS}
            assert condition.seed == config.seed


@pytest.mark.parametrize("name", ["G1", "T1"])
def test_needs_hold_the_control_with_permuted_labels(name):
    config = plants.CONFIG
    requests = STUDIES[name].needs(config)
    for architecture in config.architectures:
        own = [r for r in requests if r.conditions[0].architecture == architecture]
        assert any(r.conditions[-1].permuted for r in own)
        for request in own:
            if request.measurement.name == "transfer":
                partner = request.conditions[1]
                expected = dataclasses.replace(partner, permuted=False)
                assert partner.permuted
                assert expected == dataclasses.replace(request.conditions[0], noise_rate=0.0)


def test_salts_and_names_of_measurements_are_unique():
    found = {
        request.measurement for study in STUDIES.values() for request in study.needs(plants.CONFIG)
    }
    found |= {m for m in vars(measurements).values() if isinstance(m, Measurement)}
    assert len({m.salt for m in found}) == len(found)
    assert len({m.name for m in found}) == len(found)
    # A dash separates names from conditions in the names of files.
    assert not any("-" in m.name for m in found)
    # For good: another salt would be another measurement.
    salts = {m.name: m.salt for m in found}
    assert {k: salts[k] for k in ("learning", "transfer", "first_order")} == {
        "learning": 1,
        "transfer": 2,
        "first_order": 3,
    }
