"""Every decision rule on simulated records: its size, its power, its reverse, and its words."""

import dataclasses
import functools
import importlib
import json
import pkgutil
import re
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from lab.studies import plants as folder
from matplotlib.text import Text
from support import plants

from halfway.lab import studies
from halfway.lab.study import family, registration, wording
from halfway.lab.study.records import NUMBERS, Records, Request
from halfway.lab.study.verdict import WORDS


def deciding():
    """All studies that have a rule."""
    known = studies.available().items()
    return {name: study for name, study in known if study.kind != "description"}


STUDIES = deciding()
PLANTS = {
    info.name.upper(): importlib.import_module(f"lab.studies.plants.{info.name}")
    for info in pkgutil.iter_modules(folder.__path__)
}
"""Of each study: `BOUNDARIES`, the tests of its rule by name, each of which `plant` can put at the
boundary of its null, and `plant(rng, effect, boundary=None)`: records with the study's own noise
and number of pairs, whose effect is in units of the smallest worth reporting."""
CASES = [(name, boundary) for name, module in PLANTS.items() for boundary in module.BOUNDARIES]
"""Every test at the boundary of its null."""
SIZED = [
    (name, boundary)
    for name, module in PLANTS.items()
    for boundary in getattr(module, "SIZED", module.BOUNDARIES)
]
"""Those that a change has to wait for: some of them where many tests have one form."""
SEED = 20_240_601
NUM_DRAWS, MANY_DRAWS = 60, 200
"""What a change has to wait for, and nightly."""
POOLED = {name for name, module in PLANTS.items() if getattr(module, "POOLED", False)}
"""Studies whose parts count the pairs of all conditions together."""
each_study = pytest.mark.parametrize("name", PLANTS)


def _set_resamples(monkeypatch, name):
    for module in PLANTS.values():
        for place, attribute, number in getattr(module, name, ()):
            monkeypatch.setattr(place, attribute, number)


@pytest.fixture(autouse=True)
def fewest_resamples(monkeypatch):
    _set_resamples(monkeypatch, "FEWEST")


@pytest.fixture(autouse=True)
def made_up_lines(monkeypatch):
    """Predictions whose coefficients are frozen are tested with those of the plants."""
    monkeypatch.setattr(registration, "fitted", lambda name: PLANTS[name].FITTED)


@pytest.fixture
def few_resamples(fewest_resamples, monkeypatch):
    """As many as it takes for a p-value that Holm's correction leaves below .05."""
    _set_resamples(monkeypatch, "FEWER")


to_decide = pytest.mark.usefixtures("few_resamples")


def _with_draws(cases, sized=None):
    """Cases with their number of draws: few and, nightly, many; few of the sized ones alone."""
    cases = list(cases)
    few = [pytest.param(*case, NUM_DRAWS) for case in (cases if sized is None else sized)]
    return few + [pytest.param(*case, MANY_DRAWS, marks=pytest.mark.slow) for case in cases]


def _p_values(name, effect, boundary=None, num_draws=NUM_DRAWS):
    rng, study, plant = np.random.default_rng(SEED), STUDIES[name], PLANTS[name].plant
    return np.array([study.decide(plant(rng, effect, boundary)).p_value for _ in range(num_draws)])


def _most_rejections(num_draws):
    """The rejections that a rule of size .05 exceeds twice in a thousand times: .1 of 200."""
    return scipy.stats.binom.ppf(0.998, num_draws, 0.05)


@functools.cache
def _planted(name, effect=1.0):
    return PLANTS[name].plant(np.random.default_rng(SEED), effect)


def _sizes(records):
    """The number of pairs of each planted condition."""
    return {place[1]: dataset.sizes["pair"] for place, dataset in records.datasets.items()}


def _num_pairs(name):
    """The pairs that a part counts: of a study's conditions, or of all of them together."""
    sizes = list(_sizes(_planted(name)).values())
    if hasattr(PLANTS[name], "NUM_COUNTED"):
        return PLANTS[name].NUM_COUNTED
    return sum(sizes) if name in POOLED else sizes[0]


def _some(records, number=6):
    """Ids of a few conditions, spread over all of them."""
    ids = list(_sizes(records))
    return ids[:: max(1, len(ids) // number)]


def _conclude(name, records):
    # Alone: what it stands on is decided elsewhere.
    study = dataclasses.replace(STUDIES[name], stands_on=())
    outcomes = [(study, study.decide(records))]
    size = studies.family_size()
    return family.conclude(outcomes, family_size=size, evidence="exploratory")[0]


def _words(name):
    """What the study can come to: first where it holds, second where it does not."""
    return WORDS[STUDIES[name].kind]


@pytest.mark.quick
def test_every_study_is_planted_and_has_its_words():
    assert list(STUDIES) == sorted(STUDIES, key=lambda name: (name[0], int(name[1:])))
    for study in STUDIES.values():
        assert all(STUDIES[name].kind != "hypothesis" for name in study.stands_on)
    assert set(PLANTS) == set(STUDIES)
    for name, study in STUDIES.items():
        assert study.id == name
        assert study.claim.endswith(".") and not study.text.short.endswith(".")
        assert study.text.controls and study.text.smallest_effect
        with pytest.raises(dataclasses.FrozenInstanceError):
            study.id = "G0"


# Size and power


@pytest.mark.parametrize(("name", "boundary", "num_draws"), _with_draws(CASES, SIZED))
def test_size_with_one_test_at_the_boundary_of_its_null(name, boundary, num_draws):
    p_values = _p_values(name, 1.0, boundary, num_draws)
    assert (p_values < 0.05).sum() <= _most_rejections(num_draws)
    # The other tests hold, so that this one decides: its p is spread, not stuck at 1. Where
    # another test cannot hold at this boundary, it is the one that decides.
    if boundary not in getattr(PLANTS[name], "IMPLIED", ()):
        assert (p_values < 0.5).mean() > 0.2


@pytest.mark.parametrize("name", [n for n in PLANTS if len(PLANTS[n].BOUNDARIES) > 1])
def test_size_with_every_test_at_the_boundary(name):
    assert (_p_values(name, 0.0, num_draws=40) < 0.05).sum() <= _most_rejections(40)


@to_decide
@pytest.mark.parametrize(("name", "num_draws"), _with_draws((name,) for name in PLANTS))
def test_power_at_the_smallest_effect_worth_reporting(name, num_draws):
    # .05 over all: what Holm asks of a hypothesis that is alone.
    level = 0.05 / studies.family_size() if STUDIES[name].kind == "hypothesis" else 0.05
    p_values = _p_values(name, 1.0, num_draws=num_draws)
    assert (p_values < level).mean() >= 0.8


@to_decide
@each_study
def test_a_planted_reverse_is_refuted(name):
    for seed in range(5):
        records = PLANTS[name].plant(np.random.default_rng(seed), -1.0)
        verdict = _conclude(name, records)
        assert verdict.verdict == _words(name)[1], verdict.reason


@to_decide
@each_study
def test_a_large_effect_is_supported(name):
    verdict = _conclude(name, PLANTS[name].plant(np.random.default_rng(SEED), 1.5))
    assert verdict.verdict == _words(name)[0], verdict.reason


# The rule


@pytest.mark.quick
@each_study
def test_boundaries_name_tests(name):
    tests = [part.name for part in STUDIES[name].decide(_planted(name)).tests]
    assert len(set(tests)) == len(tests)
    boundaries = PLANTS[name].BOUNDARIES
    assert len(set(boundaries)) == len(boundaries)
    # An equivalence has two boundaries, named after its test.
    owners = [
        [test for test in tests if b == test or b.startswith(f"{test}, ")] for b in boundaries
    ]
    assert all(owners)
    assert {test for owner in owners for test in owner} == set(tests)


@pytest.mark.quick
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
        assert part.p_value is not None or part.kind == "gate"
        assert len(part.threshold) == (2 if part.direction == "within" else 1)
        assert (part.direction == "within") >= (part.kind == "equivalence")


@each_study
def test_decide_is_deterministic_and_changes_nothing(name):
    study, records = STUDIES[name], _planted(name)
    before = {place: dataset.copy(deep=True) for place, dataset in records.datasets.items()}
    outcome = study.decide(records)
    again = Records(records.config, dict(reversed(records.datasets.items())))
    assert study.decide(again) == outcome
    assert all(before[place].identical(dataset) for place, dataset in records.datasets.items())


@each_study
def test_decide_reads_by_label_and_not_by_place(name):
    records = _planted(name)
    outcome = STUDIES[name].decide(records)
    turned = {}
    for place, dataset in records.datasets.items():
        dims = [dim for dim in dataset.dims if dim in dataset.coords and dim not in ORDERED]
        turned[place] = dataset.isel({dim: slice(None, None, -1) for dim in dims})
    assert STUDIES[name].decide(Records(records.config, turned)) == outcome


ORDERED = ("pair", "step", "model", "surrogate", "target", "budget")
"""Dimensions whose order means something to who reads: time, size, and the two of a pair."""


# Diverged pairs


def _diverged(records, condition, pairs, garbage):
    """Pairs of one condition marked as not finite, their other numbers replaced."""
    datasets = dict(records.datasets)
    for place, dataset in records.datasets.items():
        if place[1] != condition:
            continue
        changed = dataset.copy(deep=True)
        changed["finite"][list(pairs)] = False
        for name, variable in changed.data_vars.items():
            numeric = name in dataset.attrs[NUMBERS] or np.issubdtype(variable.dtype, np.floating)
            if garbage is not None and name != "finite" and "pair" in variable.dims and numeric:
                variable[{"pair": list(pairs)}] = garbage
        datasets[place] = changed
    return Records(records.config, datasets)


@each_study
def test_a_diverged_pair_leaves_and_is_counted(name):
    records = _planted(name)
    whole = STUDIES[name].decide(records)
    for condition in _some(records):
        outcome = STUDIES[name].decide(_diverged(records, condition, [3], None))
        concerned = [part for part in outcome.parts if part.num_excluded]
        assert concerned, f"nobody missed a pair of condition {condition}"
        for part in concerned:
            assert (part.num_pairs, part.num_excluded) == (_num_pairs(name) - 1, 1)
        # What diverged cannot matter, and who did not lose a pair notices nothing.
        for garbage in (np.nan, np.inf, 1e3):
            assert STUDIES[name].decide(_diverged(records, condition, [3], garbage)) == outcome
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
        for condition, size in _sizes(records).items():
            lost = _diverged(lost, condition, range(min(rest, size)), np.nan) if rest else lost
            rest -= min(rest, size)
        return _conclude(name, lost)

    excluded = total // 16 + 1
    assert "diverged" not in without(excluded - 1).reason
    verdict = without(excluded)
    assert verdict.verdict == _words(name)[-1]
    assert f"{excluded} of {total} pairs" in verdict.reason
    assert "diverged" in verdict.reason
    assert (verdict.num_pairs, verdict.num_excluded) == (total - excluded, excluded)


@each_study
def test_all_diverged_is_still_an_answer(name):
    records = _planted(name)
    for condition, size in _sizes(records).items():
        records = _diverged(records, condition, range(size), np.nan)
    verdict = _conclude(name, records)
    assert verdict.verdict == _words(name)[-1]
    assert verdict.num_pairs == 0
    assert np.isfinite(verdict.effect)
    json.dumps(verdict.to_json(), allow_nan=False)
    assert not _mentions_nan(STUDIES[name].explain(verdict), verdict.reason)


SHARE = re.compile(r"^(\S+ ){0,2}(share|accuracy|rate|AUC)\b")
"""How the words for a share begin; they have "minus" where two are compared."""


@each_study
def test_intervals_of_shares_stay_within_their_range(name):
    """Where all diverged nothing is known of a share, but that it is one."""
    records = _planted(name)
    for condition, size in _sizes(records).items():
        records = _diverged(records, condition, range(size), np.nan)
    outcome = STUDIES[name].decide(records)
    listed = [(part.statistic, part.low, part.high) for part in outcome.parts]
    for headline in outcome.headlines:
        listed.append((headline.label, headline.low, headline.high))
        if headline.control is not None:
            listed.append((headline.label, *headline.control[1:]))
    for words, low, high in listed:
        if SHARE.match(words):
            assert low >= (-1 if "minus" in words else 0) and high <= 1, words


# Figures and words


def _mentions_nan(*texts):
    return any(re.search(r"\bnan\b", text, re.IGNORECASE) for text in texts)


def _texts(figure):
    return [text.get_text() for text in figure.findobj(Text)]


@pytest.mark.quick
@each_study
def test_figures_and_words_for_each_verdict(name):
    study, records = STUDIES[name], _planted(name)
    verdict = _conclude(name, records)
    explained, captions = set(), set()
    for word in _words(name):
        given = dataclasses.replace(verdict, verdict=word, reason="what was found")
        words = study.explain(given)
        assert len(words.split()) > 20
        assert not set("{}") & set(words)
        figures = study.figures(records, given)
        assert figures
        assert len({figure.name for figure in figures}) == len(figures)
        for figure in figures:
            assert figure.name.startswith(f"{name.lower()}_")
            assert not set("{}") & set(figure.caption)
            assert not _mentions_nan(words, figure.caption, *_texts(figure.figure))
        if word == _words(name)[-1] != "off":
            assert "what was found" in words
        explained.add(words)
        captions.add(" ".join(figure.caption for figure in figures))
    assert len(explained) == len(captions) == len(_words(name))


@pytest.mark.quick
@each_study
def test_explanation_quotes_its_numbers(name):
    words = STUDIES[name].explain(_conclude(name, _planted(name)))
    # At least one estimate with its interval.
    assert "[" in words
    assert "]" in words


@each_study
def test_figures_without_the_pairs_that_diverged(name):
    records = _planted(name)
    for condition, size in _sizes(records).items():
        records = _diverged(records, condition, range(size - 2), np.nan)
    verdict = _conclude(name, records)
    for figure in STUDIES[name].figures(records, verdict):
        assert not _mentions_nan(figure.caption, *_texts(figure.figure))


# Needs


@pytest.mark.quick
@each_study
def test_needs_hold_what_the_rule_reads(name):
    config = plants.CONFIG
    requests = list(STUDIES[name].needs(config))
    assert all(isinstance(request, Request) for request in requests)
    ids = [request.id for request in requests]
    assert len(set(ids)) == len(ids)
    assert ids == [request.id for request in STUDIES[name].needs(config)]
    stored = {(r.measurement.name, r.conditions[0].id) for r in requests}
    assert len(stored) == len(requests)  # a measurement of a condition is asked for in one way
    assert set(_planted(name).datasets) <= stored
    for request in requests:
        for condition in request.conditions:
            assert condition.seed == config.seed


@pytest.mark.quick
def test_names_of_measurements_are_unique():
    measurements = {
        request.measurement for study in STUDIES.values() for request in study.needs(plants.CONFIG)
    }
    assert len({measurement.name for measurement in measurements}) == len(measurements)


def test_a_study_is_in_one_place():
    root = Path(studies.__file__).parent
    for name in STUDIES:
        assert (root / name.lower() / "text.toml").is_file()
        assert (root / name.lower() / "study.py").is_file()


def test_headlines_of_a_card_are_formatted():
    verdict = _conclude("G1", _planted("G1"))
    assert wording.format_headline(verdict.headlines[0]) in STUDIES["G1"].explain(verdict)
