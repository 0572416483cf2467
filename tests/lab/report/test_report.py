"""The page, the files and the words made of verdicts."""

import dataclasses
import html.parser
import math
import pathlib
import re

import numpy as np
import pytest

from halfway import plots
from halfway.lab.config.user import UserError
from halfway.lab.report import drawing, page, run_report
from halfway.lab.study import wording
from halfway.lab.study.protocol import Figure, Table
from halfway.lab.study.verdict import Headline, Listed, PartResult, Verdict

LISTED = tuple(
    Listed(name, claim, "control" if name in ("G1", "T1") else "hypothesis")
    for name, claim in (
        ("G1", "Training on one half descends the other"),
        ("G2", "Noise costs more meeting than the wrong labels themselves"),
        ("G3", "Early coherence predicts the final gap"),
        ("G4", "Halves disagree as often as they err"),
        ("G5", "Halves meet class by class"),
        ("G6", "Halves meet in the middle after matching"),
        ("G7", "What is learned first is shared"),
        ("G8", "Fresh data leaves nothing memorized"),
        ("T1", "An attack on one model moves the other more than noise"),
        ("T2", "Gradient alignment predicts transfer example by example"),
        ("T3", "Transfer follows generalization"),
        ("T4", "Directions of attack align before accuracy"),
        ("T5", "Shared data is not needed"),
        ("T6", "Perturbations are features"),
        ("T7", "More surrogates meet the target better"),
        ("T8", "Models share an adversarial subspace"),
        ("T9", "Boundaries meet, about halfway"),
        ("T10", "On- and off-manifold parts transfer differently"),
        ("T11", "Transfer crosses architectures"),
        ("T12", "Size, alignment and variability each tell something"),
    )
)
CLAIMS = {study.id: study.short for study in LISTED}
RUN = run_report.RunInfo(
    command="python -m experiments.reproduce --config=configs/digits.py --only=G1,T1",
    config={"dataset": "digits", "seed": 0, "num_pairs": 16, "n": 600, "noise_rates": [0, 0.2, 1]},
    seed=0,
    versions={"halfway": "0.1.0", "jax": "0.10.2", "numpy": "2.3.0"},
    commit=None,
    devices="CPU (2 cores)",
    num_devices=1,
    dataset="digits",
    data_version="1.0.0",
    data_checksum="sha256:3f9a0c17",
    num_pairs=16,
    architectures=("MLP", "CNN"),
    num_conditions=14,
    started="2026-01-05 10:20 UTC",
    seconds={"data": 0.4, "training": 41.2, "attacks": 22.0, "verdicts and report": 6.1},
    warnings=("In condition mlp-0.8 pair 3 ended with a non-finite loss & was left out.",),
    evidence="exploratory",
)


def part(name, statistic, estimate, low, high, **fields):
    defaults = {
        "kind": "test",
        "direction": "greater",
        "threshold": (0.0,),
        "p_value": 2e-9,
        "p_reverse": 1.0,
        "num_pairs": 16,
    }
    fields = defaults | fields
    return PartResult(name, fields.pop("kind"), statistic, estimate, low, high, **fields)


def verdict(name, word, parts, **fields):
    first = parts[0]
    defaults = {
        "claim": f"{CLAIMS[name]}.",
        "reason": "every part holds",
        "p_value": 2e-9,
        "p_adjusted": 4e-8,
        "control": "A's labels permuted, same seeds",
        "num_pairs": 16,
        "evidence": "exploratory",
        "effect": first.estimate,
        "interval": (first.low, first.high),
    }
    if word in ("met", "not met"):
        defaults |= {"kind": "control", "p_adjusted": None}
    return Verdict(id=name, verdict=word, parts=tuple(parts), **(defaults | fields))


G1 = verdict(
    "G1",
    "met",
    [
        part(
            "mlp",
            "M_θ minus the same with A's labels permuted, MLP",
            0.989,
            0.978,
            0.999,
            control="0.001 [−0.012, 0.014]",
        ),
        part("cnn", "M_θ minus the same with A's labels permuted, CNN", 0.991, 0.981, 1.001),
    ],
    headlines=(
        Headline("M_θ, MLP", 0.990, 0.985, 0.995, "labels permuted", (0.001, -0.012, 0.014)),
        Headline("M_θ, CNN", 0.992, 0.987, 0.996, "labels permuted", (0.001, -0.011, 0.013)),
    ),
)
G2 = verdict(
    "G2",
    "inconclusive",
    [
        part(
            "mlp, 0 to .2",
            "step of M_θ/(1 − ρ) from ρ = 0 to .2, MLP",
            -0.13,
            -0.15,
            -0.11,
            direction="less",
        ),
        part(
            "mlp, noise",
            "M_θ at ρ = 1, MLP",
            -0.002,
            -0.011,
            0.007,
            kind="equivalence",
            direction="within",
            threshold=(-0.03, 0.03),
            p_value=3e-6,
            p_reverse=1.0,
        ),
        part(
            "mlp, fitted",
            "smallest mean training accuracy",
            0.943,
            math.nan,
            math.nan,
            kind="gate",
            threshold=(0.95,),
            p_value=None,
            p_reverse=None,
        ),
    ],
    reason="the gate 'mlp, fitted' is not met: training accuracy .943, to be above .95",
    p_value=3e-6,
    p_adjusted=6e-5,
    num_pairs=15,
    num_excluded=1,
    control="the ceiling 1 − ρ",
    warnings=("Training accuracy at ρ = .8 is below .95: noise is not fully fitted.",),
)
T1 = verdict(
    "T1",
    "met",
    [
        part(
            f"mlp, {name}",
            f"rise of B's margin loss minus {name}, MLP",
            1.21 - c,
            1.05 - c,
            1.37 - c,
        )
        for name, c in (("permuted target", 0.09), ("random signs", 0.05), ("other example", 0.07))
    ],
    headlines=(
        Headline("M_x, MLP", 0.35, 0.32, 0.38, "permuted target", (0.03, 0.01, 0.05)),
        Headline(
            "fooled share of the target at ε = .1, MLP",
            0.16,
            0.14,
            0.18,
            "random signs",
            (0.01, 0.004, 0.016),
        ),
    ),
    control="permuted target, random signs, another example's perturbation",
)
T2 = verdict(
    "T2",
    "refuted",
    [
        part(
            "auc",
            "AUC of ⟨h_B, s(h_A)⟩ among A-fooled, B-correct",
            0.802,
            0.771,
            0.833,
            threshold=(0.5,),
        ),
        part(
            "slope",
            "slope of measured on predicted change, ε = .02",
            1.43,
            1.38,
            1.48,
            kind="equivalence",
            direction="within",
            threshold=(0.8, 1.25),
            p_value=1.0,
            p_reverse=1e-7,
        ),
    ],
    reason="the slope is outside its margin: 1.43, to be between .8 and 1.25",
    p_value=1.0,
    p_adjusted=1.0,
    headlines=(Headline("AUC, MLP", 0.802, 0.771, 0.833),),
    control="target's margin and class, as strata",
)
T3 = verdict(
    "T3",
    "inconclusive",
    [
        part(
            "all",
            "stratified τ_K of M_x and the gap",
            -0.4,
            -math.inf,
            math.inf,
            direction="less",
            p_value=0.21,
            p_reverse=0.8,
        )
    ],
    reason="the interval is unbounded",
    p_value=0.21,
    p_adjusted=1.0,
    evidence="none",
)
VERDICTS = (T2, G2, G1, T3, T1)
EXPLANATIONS = {
    "G1": "A model trained on half A goes nearly as far down half B: M_θ is 0.99 of the way. With "
    "A's labels permuted it goes nowhere.\n\nSo what one half teaches holds on the other.",
    "G2": "At every step of noise the meeting falls below the ceiling 1 − ρ. But one gate is not "
    "met, so nothing is decided. What would have to change: train longer at ρ = .8.",
    "T1": "An attack on A moves B far more than any of the three kinds of noise of the same size.",
    "T2": "Where the gradients agree B is fooled more often, but the first-order prediction is too "
    "small: the change is 1.43 times what it says.",
}


def toy_figure(name="toy", low=None):
    rates = np.array([0, 0.2, 0.4])
    axes = plots.budget_curve(rates, {"M_θ": rates, "noise": rates / 9}, controls=("noise",))
    return Figure(name, "Share of B fooled <b> against M_θ", axes.figure)


TABLE = Table(
    "M_θ by condition",
    "Estimate and 95 % interval",
    ("condition", "M_θ in error", "note"),
    (("MLP, ρ = 0", "0.990 [0.985, 0.995]", "x < y"), ("MLP, ρ = .2", "−0.1 [−∞, ∞]", "")),
)


class Browser(html.parser.HTMLParser):
    """What a browser would see: ids, links, tags in order, and the text."""

    VOID = ("meta", "path", "rect", "circle", "use", "br")

    def __init__(self, source):
        super().__init__()
        self.tags, self.attrs, self.stack, self.text, self.unclosed = [], [], [], "", []
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attrs += [(tag, name, value) for name, value in attrs]
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attrs += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        if tag not in self.VOID and self.stack.pop() != tag:
            self.unclosed.append(tag)

    def handle_data(self, data):
        self.text += data

    def values(self, name, tag=None):
        return [value for t, n, value in self.attrs if n == name and tag in (None, t)]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def write(folder, **changes):
    given = {
        "verdicts": VERDICTS,
        "figures": {"G1": [toy_figure("g1")], "T1": [toy_figure("t1"), toy_figure("t1_b")]},
        "explanations": EXPLANATIONS,
        "listed": LISTED,
        "condition_tables": [TABLE],
        "condition_figures": [toy_figure("all")],
        "run": RUN,
    }
    path = page.write(folder, run_report.page(**(given | changes)))
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write(tmp_path_factory.mktemp("report"))


def test_a_pool_with_permuted_labels_is_said_first_with_what_it_claims(tmp_path, source):
    config = {**RUN.config, "shuffled_labels": True}
    page = write(tmp_path, run=dataclasses.replace(RUN, config=config))
    assert "nothing that needs true labels may be claimed" in page
    assert "must claim nothing" in page and "claims what it may not" in page
    assert "must claim nothing" not in source


@pytest.fixture(scope="module")
def browser(source):
    return Browser(source)


@pytest.mark.quick
def test_format_estimate_by_hand():
    # standard error (.995 - .985)/3.92 = .00255: two digits of it are four decimals
    assert wording.format_estimate(0.99, 0.985, 0.995) == "0.9900 [0.9850, 0.9950]"
    # .06/3.92 = .0153: three decimals
    assert wording.format_estimate(0.35, 0.32, 0.38) == "0.350 [0.320, 0.380]"
    # 3.9/3.92 = .995 to two digits is .99, so .9949 has two decimals and 1.0 has one
    assert wording.format_estimate(-7.123, -9.073, -5.173) == "−7.12 [−9.07, −5.17]"
    assert wording.format_estimate(7.123, 5.153, 9.093) == "7.1 [5.2, 9.1]"
    assert wording.format_estimate(1234.0, 1038.0, 1430.0) == "1234 [1038, 1430]"


def test_format_estimate_unbounded_and_undefined():
    inf, nan = math.inf, math.nan
    assert wording.format_estimate(0.4, -inf, inf) == "0.400 [−∞, ∞]"
    # one finite side: (.4 - .2)/1.96 = .10
    assert wording.format_estimate(0.4, 0.2, inf) == "0.40 [0.20, ∞]"
    assert wording.format_estimate(nan, nan, nan) == "undefined"
    assert wording.format_estimate(0.943) == "0.943"
    assert wording.format_estimate(inf) == "∞"
    assert wording.format_estimate(0.0, 0.0, 0.0) == "0.00 [0.00, 0.00]"


def test_format_estimate_has_no_negative_zero_and_shortens_extremes():
    assert wording.format_estimate(-0.0001, -0.1, 0.1).startswith("0.000 [")
    assert wording.format_estimate(2e-9, 1e-9, 3e-9) == "2.00 [1.00, 3.00] × 10^−9"
    # A number of ordinary size stays one, however narrow its interval is.
    shown = wording.format_estimate(0.42702, 0.42702, 0.42703)
    assert shown == "0.427020 [0.427020, 0.427030]"
    assert [piece.kind for piece in page.pieces("2 × 10^−9")] == ["plain", "power"]


@pytest.mark.parametrize(
    ("p_value", "expected"),
    [
        (0.0342, "0.034"),
        (0.04996, "0.04996"),
        (0.05, "0.05"),
        (1.0, "1"),
        (0.0, "< 0.0001"),
        (None, "–"),
        (math.nan, "undefined"),
        (0.00123, "0.0012"),
    ],
)
def test_format_p(p_value, expected):
    assert wording.format_p(p_value) == expected


@pytest.mark.quick
def test_rules_and_commands_in_words():
    assert wording.format_rule(T2.parts[1]) == "between 0.8 and 1.25"
    assert wording.format_rule(G2.parts[0]) == "< 0"
    assert wording.rerun_command(RUN.command, "G2").endswith("configs/digits.py --only=G2")
    assert wording.rerun_command("run --only 'G1,T1' --x=1", "T2") == "run --x=1 --only=T2"
    assert wording.format_duration(4.21) == "4.2 s"
    assert wording.format_duration(119.6) == "2 min 0 s"
    weakest = wording.weakest_part(T2)
    assert weakest is not None and weakest.name == "slope"


@pytest.mark.quick
def test_answer_follows_the_first_hypothesis():
    assert wording.answer([G1], "G")[0] == (
        "A model trained on one half of the data makes 99 % of its progress on the other half too, "
        "which it never saw (0.1 % when labels are shuffled)."
    )
    assert "0.9900 [0.9850, 0.9950]" in wording.answer([G1], "G")[1]
    unmet = dataclasses.replace(G1, verdict="not met")
    assert wording.answer([unmet], "G")[0].startswith("It is not shown that what a model learns")
    assert "T1 was not run" in wording.answer([T2], "T")[0]
    assert wording.answer([G1], "T")[1] == "hypotheses about models that were run: none."
    assert "that were run: none." in wording.answer([G1], "G")[1]
    assert "that were run: 1 inconclusive." in wording.answer(VERDICTS, "G")[1]
    assert "1 refuted and 1 inconclusive" in wording.answer(VERDICTS, "T")[1]
    assert "little" in wording.little_was_run(1, 20)
    assert "little" not in wording.little_was_run(20, 20)


@pytest.mark.quick
def test_terminal_map():
    shown = wording.terminal_map(VERDICTS, LISTED)
    lines = shown.splitlines()
    assert lines[0].count("G") == 7 and lines[1].count("T") == 11
    assert "G2 ◐" in lines[0] and "T2 ✕" in lines[1] and "T4 ·" in lines[1]
    assert "G1 ✓" in lines[2] and "T1 ✓" in lines[2]
    table = lines[-7:-2]
    assert [line.split()[0] for line in table] == ["G1", "G2", "T1", "T2", "T3"]
    assert "−0.400 [−∞, ∞]" in table[-1]
    assert "mlp: M_θ minus" in table[0]
    assert "Evidence: exploratory" in lines[-1]
    assert max(map(len, lines)) <= 100
    assert "id " not in wording.terminal_map([], LISTED)


def test_page_has_every_section_in_order(browser, source):
    assert [value for value in browser.values("id", "section")] == [
        "answer",
        "map",
        "forest",
        "hypotheses",
        "checks",
        "conditions",
        "distrust",
        "repeat",
    ]
    assert not browser.unclosed and not browser.stack
    assert browser.tags.count("h1") == 1
    assert (
        source.index("A model trained on one half")
        < source.index("An attack on one model moves the other")
        < source.index('<h2 id="map-title')
    )


def test_page_has_twenty_tiles_that_lead_somewhere(browser):
    tiles = [value for value in browser.values("class", "a") if value.startswith("tile ")]
    assert len(tiles) == 20
    states = [tile.removeprefix("tile ") for tile in tiles]
    assert states[:2] == ["inconclusive", "not-run"]
    assert states[7:9] == ["refuted", "inconclusive"]
    assert states[18:] == ["met", "met"]
    ids = browser.values("id")
    links = [value[1:] for value in browser.values("href") if value.startswith("#")]
    assert len(links) > 40 and set(links) <= set(ids)


def test_page_needs_nothing_from_elsewhere(browser, source):
    assert not re.search(r"https?://|//\w+\.\w+/|@import|<script|<link|<img|javascript:", source)
    assert "script" not in browser.tags and "iframe" not in browser.tags
    targets = re.findall(r"url\(([^)]*)\)", source)
    assert targets and all(target.startswith("#f") for target in targets)
    assert len(source.encode()) < 5_000_000


def test_page_ids_are_unique_and_references_resolve(browser, source):
    ids = browser.values("id")
    assert len(ids) == len(set(ids)) > 100
    assert {target[1:] for target in re.findall(r"url\((#[^)]*)\)", source)} <= set(ids)


def test_every_figure_is_described(browser, source):
    assert browser.tags.count("figure") == browser.tags.count("figcaption") == 5
    drawings = re.findall(r'<svg role="img" aria-label="([^"]*)"', source)
    assert len(drawings) == 5 and all(drawings)
    assert not re.search(r"<\?xml|<!DOCTYPE svg|<metadata|<!--", source)


def test_figures_follow_light_and_dark(source):
    drawing = re.search(r"<figure>.*?</figure>", source, re.S)
    assert drawing
    assert "var(--ink)" in drawing[0] and "var(--grid)" in drawing[0]
    assert not re.search(r"#[0-9a-f]{6}", drawing[0].replace("#f", ""))
    defined = set(re.findall(r"(--[a-z]+):", source))
    assert set(re.findall(r"var\((--[a-z]+)\)", source)) <= defined
    assert "prefers-color-scheme: dark" in source


def test_symbols_are_set_as_subscripts(source):
    assert '<tspan font-style="italic">M</tspan><tspan dy=".3em" font-size="75%">θ' in source
    assert "<i>M</i><sub>θ</sub>" in source
    assert page.pieces("num_pairs of n_half")[0] == page.Piece("plain", "num_pairs of ")
    assert page.pieces("num_pairs of n_half")[1] == page.Piece("symbol", "n", "half")


def test_page_escapes_what_it_is_given(tmp_path):
    nasty = '<script>alert("x")</script> & <b>'
    source = write(
        tmp_path,
        verdicts=[dataclasses.replace(G1, claim=nasty, reason=nasty, warnings=(nasty,))],
        explanations={"G1": nasty},
        run=dataclasses.replace(
            RUN,
            dataset=nasty,
            command=nasty,
            warnings=(nasty,),
            config={nasty: nasty},
            versions={nasty: nasty},
            commit=nasty,
            seconds={nasty: 1.0},
            devices=nasty,
        ),
        listed=[study._replace(short=nasty) for study in LISTED],
        condition_tables=[Table(nasty, nasty, (nasty,), ((nasty,),))],
        condition_figures=[dataclasses.replace(toy_figure(), caption=nasty)],
    )
    assert "<script" not in source and "<b>&" not in source and "& <" not in source
    assert source.count("&lt;script&gt;") > 20
    assert not Browser(source).unclosed


def test_page_states_parts_gates_and_warnings(browser):
    text = " ".join(browser.text.split())
    assert "1 left out, because a value was not finite" in text
    assert "gate mlp, fitted not met: smallest mean training accuracy is 0.943, not > 0.95." in text
    assert "In condition mlp-0.8 pair 3 ended with a non-finite loss & was left out." in text
    assert "between −0.03 and 0.03" in text
    assert "largest of its tests: < 0.0001 raw, < 0.0001 after Holm's" in text
    assert "--config=configs/digits.py --only=G2" in text
    assert "sha256:3f9a0c17" in text and "not in a repository" in text
    assert "1 min" not in text and "70 s" in text  # the stages add up
    assert "Mθ in error is close to a held-out error" in text
    assert "one finite data set" in text
    assert "evidence: exploratory" in text


def test_page_is_deterministic_and_whole(tmp_path, source):
    again = write(tmp_path)
    assert again == source
    assert names(tmp_path) == ["figures", "report.html"]
    with pytest.raises(ValueError, match="G99"):
        write(tmp_path, verdicts=[dataclasses.replace(G1, id="G99")])


def test_a_failed_write_leaves_the_old_report(tmp_path, monkeypatch):
    (tmp_path / "report.html").write_text("old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(pathlib.Path, "replace", fail)
    with pytest.raises(UserError, match=r"cannot be written \(disk full\): choose another"):
        write(tmp_path)
    assert (tmp_path / "report.html").read_text() == "old"
    assert names(tmp_path) == ["figures", "report.html"]


@pytest.mark.quick
def test_page_without_any_verdict(tmp_path):
    source = write(
        tmp_path,
        verdicts=[],
        figures={},
        explanations={},
        condition_tables=[],
        condition_figures=[],
        run=dataclasses.replace(RUN, seconds={}, warnings=()),
    )
    browser = Browser(source)
    assert "was not asked (G1 was not run)" in browser.text
    assert "0 of 18 hypotheses were run" in browser.text
    assert browser.values("class", "a").count("tile not-run") == 20
    assert browser.tags.count("figure") == 0
    ids = browser.values("id")
    assert {value[1:] for value in browser.values("href") if value.startswith("#")} <= set(ids)


@pytest.mark.quick
def test_forest_draws_a_control_only_on_its_own_axis():
    figure = run_report.forest_figure(VERDICTS, LISTED)
    assert figure is not None
    axes = figure.figure.axes
    assert [ax.get_title(loc="left")[:2] for ax in axes] == ["G1", "G2", "T1", "T2", "T3"]
    drawn = [any("control" in text.get_text() for text in ax.texts) for ax in axes]
    # T1's headlines are coefficients, its effect is a loss: no control on that axis
    assert drawn == [True, False, False, False, False]
    assert any("fails: slope" in text.get_text() for text in axes[3].texts)
    assert run_report.forest_figure([], LISTED) is None


def test_save_figures_twice_gives_the_same_bytes(tmp_path):
    first = drawing.save(tmp_path / "a", [toy_figure("x"), toy_figure("y")])
    assert sorted(path.name for path in first) == ["x.png", "x.svg", "y.png", "y.svg"]
    second = drawing.save(tmp_path / "b", [toy_figure("x")])
    assert [path.read_bytes() for path in second] == [path.read_bytes() for path in first[:2]]
    assert b"#16181c" in second[1].read_bytes() and b"var(" not in second[1].read_bytes()
    assert not re.search(rb"<dc:date>|Matplotlib v", second[1].read_bytes())
    width = int.from_bytes(second[0].read_bytes()[16:20], "big")
    assert width == pytest.approx(200 * toy_figure().figure.get_figwidth(), abs=1)


def test_bad_tables_and_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match="1 cells, 2 needed"):
        Table("t", "c", ("a", "b"), (("x",),))
    for bad in (["../x"], ["x", "x"]):
        with pytest.raises(ValueError, match="figure name"):
            drawing.save(tmp_path, [toy_figure(name) for name in bad])
    assert not names(tmp_path)


def test_the_forest_shows_the_part_that_is_the_effect():
    near = part("near", "distance to the law", 0.3, 0.2, 0.4, threshold=(0.1,))
    weakest = part("lead", "lead over a rival", 0.02, 0.01, 0.03)
    shown = verdict("T3", "supported", [near, weakest], effect=0.02, interval=(0.01, 0.03))
    row = run_report._forest_row(shown)
    assert (row.label, row.threshold) == ("lead over a rival", (0.0,))
