"""AttackBench's measure: by hand, the passes that our attacks spend, and a tiny run."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import commands

from halfway import models
from halfway.lab.benchmarks import mnist, peers
from halfway.lab.benchmarks.optimality import measure, networks, ours, suite, theirs
from halfway.lab.benchmarks.optimality.passes import NORM_ORDERS, Attack, Cost, Found
from halfway.lab.benchmarks.optimality.suite import Standing
from halfway.lab.config.user import UserError

FIRST, SECOND = (1.0, 4.0, np.inf), (2.0, 2.0, 4.0)
BEST = (1.0, 2.0, 4.0)
"""The distances of three inputs by two attacks, and the best of both."""


@pytest.mark.quick
def test_the_curve_of_robust_accuracy():
    curve = measure.robust_accuracy(FIRST, [0.0, 1.0, 3.9, 4.0, 100.0])
    np.testing.assert_allclose(curve, [1, 2 / 3, 2 / 3, 1 / 3, 1 / 3])
    np.testing.assert_array_equal(measure.best_of([FIRST, SECOND]), BEST)


@pytest.mark.quick
def test_optimality_by_hand():
    # Up to ρ0 = 4 the best curve has the area (1 + 2 + 4)/3 = 7/3, of 4 in all: 5/3 are left.
    # The areas of the attacks are (1 + 4 + 4)/3 = 3 and (2 + 2 + 4)/3 = 8/3.
    assert measure.local_optimality(FIRST, BEST) == pytest.approx(1 - (3 - 7 / 3) / (5 / 3))
    assert measure.local_optimality(SECOND, BEST) == pytest.approx(1 - (8 / 3 - 7 / 3) / (5 / 3))
    # The integral of the curve itself, on a fine grid.
    radii = np.arange(0, 4, 1e-3)
    areas = [4 * measure.robust_accuracy(d, radii).mean() for d in (FIRST, BEST)]
    assert 1 - (areas[0] - areas[1]) / (4 - areas[1]) == pytest.approx(0.6, abs=1e-3)


@pytest.mark.quick
def test_the_best_is_1_and_nothing_is_0():
    assert measure.local_optimality(BEST, BEST) == 1
    assert measure.local_optimality([np.inf] * 3, BEST) == 0
    assert measure.local_optimality([4.0, 5.0, 99.0], BEST) == 0  # nothing within ρ0
    for unit in (1e-3, 255.0):
        scaled = [unit * np.array(d) for d in (FIRST, BEST)]
        assert measure.local_optimality(*scaled) == pytest.approx(0.6)


@pytest.mark.quick
def test_inputs_that_nothing_or_no_attack_fools():
    # Misclassified from the start: distance 0. The accuracy is 2/3 and the area at most 8/3.
    best = [0.0, 2.0, 4.0]
    assert measure.local_optimality([0.0, 4.0, 4.0], best) == pytest.approx(0)
    assert measure.local_optimality([0.0, 3.0, 4.0], best) == pytest.approx(0.5)
    # An input that none fools: ρ0 is the largest distance of the others.
    best = [1.0, 2.0, np.inf]
    assert measure.local_optimality([2.0, 2.0, np.inf], best) == 0
    assert measure.local_optimality([1.5, 2.0, np.inf], best) == pytest.approx(0.5)
    # Nothing to compare.
    for best in ([np.inf] * 3, [2.0] * 3, [0.0] * 3):
        assert np.isnan(measure.local_optimality(best, best))
    assert measure.global_optimality([0.5, np.nan, 1.0]) == 0.75
    assert np.isnan(measure.global_optimality([np.nan]))


@pytest.mark.quick
def test_steps_stay_within_the_budget():
    cost = Cost(7, 12)
    assert cost.num_steps(2000) == 166 and cost.passes(166) == 1999
    assert cost.num_steps(19) == 1
    with pytest.raises(ValueError, match="a budget of 18 passes is below the 19 of a step"):
        cost.num_steps(18)


NUM_CLASSES, NUM_STEPS = 3, 2
WEIGHTS = np.random.default_rng(0).normal(size=(4, NUM_CLASSES)).astype(np.float32)


class Counter:
    """A linear model that counts its passes while they run, not while they are traced."""

    def __init__(self):
        self.forward = self.backward = 0

        def forward(x):
            jax.debug.callback(self._add_forward)
            return x @ WEIGHTS

        def backward(_, gradient):
            jax.debug.callback(self._add_backward)
            return (gradient @ WEIGHTS.T,)

        self.logits_fn = jax.custom_vjp(forward)
        self.logits_fn.defvjp(lambda x: (forward(x), None), backward)

    def _add_forward(self):
        self.forward += 1

    def _add_backward(self):
        self.backward += 1


COMPOSED = ours.composed(NUM_CLASSES)
IN_TURN = {("deepfool", "l2"), ("ddn", "l2"), ("fmn", "l1"), ("fab", "linf")}
IN_TURN |= {("apgd, bisection", "linf"), ("carlini_wagner", "l2"), ("sigma_zero", "l0")}
IN_TURN.add(("sparse_tabu", "l0"))
"""One of each formula; other norms of the same attack are left to the slow tests."""


def _case(each):
    marks = () if (each.name, each.norm) in IN_TURN else pytest.mark.slow
    return pytest.param(each, id=f"{each.name} {each.norm}", marks=marks)


@pytest.mark.parametrize("each", [_case(each) for each in COMPOSED])
def test_passes_are_those_that_a_model_counts(each):
    counter = Counter()
    x = jnp.asarray(np.random.default_rng(1).uniform(size=(2, 4)), jnp.float32)
    labels = (x @ WEIGHTS).argmax(-1)
    attack = functools.partial(each.attack, counter.logits_fn, num_steps=NUM_STEPS)
    jax.block_until_ready(jax.jit(attack)(jax.random.key(0), x, labels))
    jax.effects_barrier()
    assert counter.backward > 0
    assert counter.forward + counter.backward == each.cost.passes(NUM_STEPS)


def test_every_norm_of_theirs_is_one_of_ours():
    norms = {each.norm for each in COMPOSED}
    assert norms >= {"l1", "l2", "linf"} and norms <= set(NORM_ORDERS)
    assert len({(each.name, each.norm) for each in COMPOSED}) == len(COMPOSED)


CONFIG = {"kind": "mlp", "widths": (6,)}


@pytest.fixture(scope="module")
def tiny():
    """A network with random weights, and images that it classifies as it is asked to."""
    images = np.random.default_rng(2).uniform(size=(20, 4, 4, 1)).astype(np.float32)
    params = models.build(CONFIG, num_classes=10).init(jax.random.key(1), images[:1])["params"]
    labels = np.array(mnist.logits_of(CONFIG, params)(images).argmax(-1))
    labels[::2] = (labels[::2] + 1) % 10
    return networks.correct_ones(CONFIG, params, images, labels, 6)


def test_images_are_those_that_the_network_classifies_correctly(tiny):
    assert tiny.accuracy == 0.5 and tiny.images.shape == (6, 4, 4, 1)
    np.testing.assert_array_equal(tiny.logits_fn(tiny.images).argmax(-1), tiny.labels)
    assert len(np.unique(tiny.images, axis=0)) == 6
    with pytest.raises(ValueError, match="6 images are classified correctly, 7 are needed"):
        networks.correct_ones(CONFIG, tiny.params, np.asarray(tiny.images), tiny.labels, 7)


def test_a_network_learns():
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 10, 256).astype(np.int32)
    images = (labels[:, None, None, None] / 10 + rng.uniform(0, 0.05, (256, 2, 2, 1))).astype("f")
    losses = []
    for num_epochs in (1, 30):
        logits = mnist.logits_of(CONFIG, mnist.trained(CONFIG, images, labels, num_epochs))(images)
        losses.append(-jax.nn.log_softmax(logits)[np.arange(256), labels].mean())
    assert losses[1] < losses[0] - 0.1


def _other_class(problem):
    """Points, in the box, that the network gives to another class: images of other classes."""
    classes = np.asarray(problem.labels)
    chosen = [np.flatnonzero(classes != label)[0] for label in classes]
    return np.array(problem.images)[chosen]


def test_a_success_lies_in_the_box_and_our_network_looks_again(tiny):
    points, images = _other_class(tiny), np.array(tiny.images)
    assert len(set(np.asarray(tiny.labels))) > 1
    points[0] = images[0]  # a success of the peer's network alone
    points[1] = np.where(np.arange(16).reshape(4, 4, 1) == 0, 1.5, points[1])  # out of the box
    points[2] = np.nan
    own = np.ones(6, bool)
    for norm, order in (("l0", 0), ("l1", 1), ("l2", 2), ("linf", np.inf)):
        distances, remarks = suite.checked(tiny, tiny.logits_fn, norm, Found(points, 1, 1.0, own))
        moves = (points - images).reshape(6, -1)
        np.testing.assert_array_equal(distances[:3], np.inf)
        expected = np.linalg.norm(moves[3:], order, axis=1)
        np.testing.assert_allclose(distances[3:], expected, rtol=1e-5)
        assert remarks == ["2 outside of the box", "1 fool the peer's program alone"]
    _, remarks = suite.checked(tiny, tiny.logits_fn, "l2", Found(images, 1, 1.0))
    assert remarks == []


def _numbers(distances):
    return [np.inf if distance is None else distance for distance in distances]


def _attack(package, name, run, norm="l2"):
    return Attack(package, name, norm, Cost(1, 2), run)


def test_rows_of_a_network_are_best_first_and_say_what_a_peer_raised(tiny, monkeypatch):
    near, nothing = _other_class(tiny), np.array(tiny.images)
    # Halfway back some are no longer fooled: those points are nearer or count as nothing.
    some = nothing + 0.7 * (near - nothing)

    def broken(num_steps):
        raise RuntimeError(f"{num_steps} steps\nare too many")

    found = [
        _attack("a 1.0", "raises", broken),
        _attack("a 1.0", "finds nothing", lambda n: Found(nothing, 2 * n + 1, 0.5)),
        _attack("a 1.0", "finds", lambda n: Found(near, 2 * n, 0.5)),
        _attack("a 1.0", "some", lambda n: Found(some, 2 * n, 0.5)),
        _attack("a 1.0", "sparse", lambda n: Found(near, 2 * n, 0.5), "l0"),
    ]
    monkeypatch.setattr(ours, "attacks_on", lambda _: [])
    monkeypatch.setattr(theirs, "attacks_on", lambda _: (found, ["b is not installed"]))
    monkeypatch.setattr(suite, "BUDGET", 100)
    rows = suite.standings("net", tiny)
    by_name = {row.attack: row for row in rows}
    assert rows[0].attack == "sparse" and rows[-1].skipped == "b is not installed"
    optimality = [row.optimality for row in rows[1:4]]
    assert optimality == sorted(optimality, reverse=True) and optimality[-1] == 0
    assert by_name["raises"].skipped == "RuntimeError: 49 steps" == rows[-2].skipped
    nobody = by_name["finds nothing"]
    assert nobody.fooled == 0 and nobody.median is None and nobody.distances == (None,) * 6
    assert nobody.passes == 99 and nobody.note == "49 steps"
    distances = [
        [np.inf if d is None else d for d in by_name[n].distances] for n in ("finds", "some")
    ]
    best = np.minimum(*distances)
    expected = [measure.local_optimality(d, best) for d in distances]
    assert [by_name[n].optimality for n in ("finds", "some")] == pytest.approx(expected)
    text, table = suite.as_text(rows), suite.as_markdown([*rows, *suite.on_all(rows)])
    assert "skipped: RuntimeError: 49 steps" in text and "skipped: b is not installed" in text
    assert "| raises | a 1.0 | – | failed | – |" in table.splitlines()
    assert "| l0 | from | all | net | passes |" in table.splitlines()
    # An error of ours is an error.
    mine = [_attack("halfway 1.0", "raises", broken)]
    monkeypatch.setattr(ours, "attacks_on", lambda _: mine)
    with pytest.raises(RuntimeError, match="are too many"):
        suite.standings("net", tiny)


def test_rows_are_kept_as_they_come_and_taken_up_by_the_next_run(tiny, monkeypatch, tmp_path):
    near, calls = _other_class(tiny), []

    def counted(name, num_steps):
        calls.append(name)
        if name == "last" and calls.count(name) == 1:
            raise KeyboardInterrupt
        return Found(near, num_steps, 0.5)

    found = [_attack("a 1.0", name, functools.partial(counted, name)) for name in ("first", "last")]
    monkeypatch.setattr(ours, "attacks_on", lambda _: [])
    monkeypatch.setattr(theirs, "attacks_on", lambda _: (found, []))
    path = tmp_path / "new" / "rows.json"
    with pytest.raises(KeyboardInterrupt):
        suite.standings("net", tiny, suite.Kept(path))
    assert [row["attack"] for row in json.loads(path.read_text())] == ["first"]
    resumed = suite.standings("net", tiny, suite.Kept(path))
    assert calls == ["first", "last", "last"]
    assert suite.standings("net", tiny, suite.Kept(path)) == resumed
    assert len(calls) == 3
    # Another budget is another problem, and so are other weights.
    monkeypatch.setattr(suite, "BUDGET", suite.BUDGET + 1)
    suite.standings("net", tiny, suite.Kept(path))
    assert len(calls) == 5
    other = tiny._replace(params=jax.tree.map(lambda leaf: leaf + 1, tiny.params))
    suite.standings("net", other, suite.Kept(path))
    assert len(calls) == 7
    # So is other code: of our attacks, or of the settings that peers get.
    assert suite._code(is_ours=True) != suite._code(is_ours=False)
    monkeypatch.setattr(suite, "_code", lambda *, is_ours: "another")
    suite.standings("net", other, suite.Kept(path))
    assert len(calls) == 9


def test_global_optimality_is_the_mean_over_networks():
    row = functools.partial(Standing, fooled=1.0, passes=10.0, seconds=2.0)
    rows = [
        row("a", "l2", "x", "p", optimality=0.5),
        row("b", "l2", "x", "p", optimality=0.7),
        row("a", "l2", "y", "p", optimality=0.9),
        row("a", "l1", "x", "p", optimality=0.1),
        Standing("b", "l2", "y", "p", skipped="RuntimeError"),
        Standing("c", skipped="no data"),
    ]
    whole = suite.on_all(rows)
    assert [(r.norm, r.attack) for r in whole] == [("l1", "x"), ("l2", "y"), ("l2", "x")]
    assert [r.optimality for r in whole] == pytest.approx([0.1, 0.9, 0.6])
    assert [r.note for r in whole] == ["1 of 2 networks", "1 of 2 networks", ""]
    assert [r.seconds for r in whole] == [2, 2, 4]
    table = suite.as_markdown([*rows, *whole]).splitlines()
    assert "| x | p | 0.600 | 0.500 (–) | 0.700 (–) | 10 |" in table
    assert "| y | p | 0.900 | 0.900 (–) | failed | 10 |" in table


def test_a_tiny_run_without_peers(tiny, monkeypatch, tmp_path, capsys):
    chosen = [e for e in ours.composed(10) if e.norm == "l2" and e.name in ("ddn", "deepfool")]
    monkeypatch.setattr(ours, "composed", lambda num_classes: chosen)
    monkeypatch.setattr(mnist, "NUM_AT_ONCE", 3)
    monkeypatch.setattr(suite, "BUDGET", 60)
    monkeypatch.setattr(peers, "load", lambda *names: f"{names[-1]} is not installed")
    names = dict.fromkeys(("a", "b"), ("digits", CONFIG, 1))
    monkeypatch.setattr(networks, "NETWORKS", names)
    monkeypatch.setattr(networks, "problem", lambda name, _: tiny if name == "a" else "no data")
    out, table = tmp_path / "rows.json", tmp_path / "table.md"
    arguments = ("--suite=optimality", f"--out={out}", f"--markdown={table}")
    commands.main("benchmark", *arguments, "--compilation_cache=off")
    stored = {(r["network"], r["attack"]): r for r in json.loads(out.read_text())}
    ddn, deepfool = (stored["a", name] for name in ("ddn", "deepfool"))
    assert ddn["passes"] == 60 and deepfool["passes"] == 3 + 4 * 12
    assert ddn["note"] == "29 steps" and ddn["package"].startswith("halfway ")
    assert ddn["fooled"] == 1 and len(ddn["distances"]) == len(deepfool["distances"]) == 6
    distances = [_numbers(r["distances"]) for r in (ddn, deepfool)]
    expected = [measure.local_optimality(d, np.min(distances, 0)) for d in distances]
    assert [ddn["optimality"], deepfool["optimality"]] == pytest.approx(expected)
    assert stored[suite.ALL_NETWORKS, "ddn"]["optimality"] == pytest.approx(ddn["optimality"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == list(suite.HEADINGS)
    assert sum("is not installed" in line for line in lines) == 3
    assert sum("skipped: no data" in line for line in lines) == 1
    assert table.read_text().startswith("| l2 | from | all | a | passes |")
    # The same command takes its rows from the file.
    whole = json.loads(out.read_text())
    monkeypatch.setattr(ours, "_run", lambda *_: pytest.fail("runs again"))
    commands.main("benchmark", *arguments, "--compilation_cache=off")
    assert json.loads(out.read_text()) == whole
    for content in ("[{}]", "{", '[{"work": "a"}]'):
        out.write_text(content)
        with pytest.raises(UserError, match=r"rows.json holds no rows of this suite"):
            commands.main("benchmark", *arguments, "--compilation_cache=off")


@pytest.mark.quick
def test_a_suite_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(networks, "NETWORKS", dict(list(networks.NETWORKS.items())[1:]))
    rows = suite.rows(str(tmp_path))
    assert [row.network for row in rows] == ["mnist_cnn", "cifar10_cnn"]
    assert "data set 'mnist' is not in the data folder" in rows[0].skipped
    assert "data set 'cifar10_jpeg' is not in the data folder" in rows[1].skipped
    with pytest.raises(UserError, match="--markdown: scale writes no tables; optimality does"):
        commands.main("benchmark", "--suite=scale", f"--markdown={tmp_path}/x")


@pytest.mark.slow
def test_peers_stay_within_what_they_are_said_to_spend(tiny, monkeypatch):
    """Where peers are installed; Brendel and Bethge's attack takes minutes to compile."""
    pytest.importorskip("torch")
    monkeypatch.setattr(suite, "BUDGET", 400)
    found, _ = theirs.attacks_on(tiny)
    for attack in found:
        if attack.name != "brendel_bethge":
            begun = Standing("tiny", attack.norm, attack.name, attack.package)
            row = suite._standing(begun, tiny, tiny.logits_fn, attack)
            assert row.skipped or 0 < row.passes <= 400, (attack.package, attack.name, attack.norm)
