"""Robustness of one model: against closed forms, resumed, and handed nonsense."""

import copy
import dataclasses
import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import halfway
from halfway import attacks, losses, robustness

RNG = np.random.default_rng(0)
WEIGHTS = jnp.asarray(RNG.normal(size=(6, 2)), jnp.float32)
IMAGES = RNG.uniform(0.3, 0.7, (21, 6)).astype(np.float32)


def linear(x):
    return (x - 0.5) @ WEIGHTS


LABELS = np.array(linear(IMAGES).argmax(-1))
LABELS[:3] = 1 - LABELS[:3]  # the model errs there
STEEP = np.asarray(WEIGHTS[:, 0] - WEIGHTS[:, 1])
MARGINS = np.abs((IMAGES - 0.5) @ STEEP)
NEAREST = {"linf": MARGINS / np.abs(STEEP).sum(), "l2": MARGINS / np.linalg.norm(STEEP)}
BUDGETS = (0.02, 0.06)
evaluate = functools.partial(robustness.evaluate, linear, IMAGES, LABELS)
FEW = functools.partial(attacks.auto_attack, num_steps=4, num_queries=20)


@pytest.fixture(scope="module")
def result():
    threats = [attacks.linf(BUDGETS[1]), attacks.l2(0.1), attacks.linf(BUDGETS[0])]
    return evaluate(threats=threats, attacks=["pgd"], batch_size=8)


def test_of_a_linear_model_robust_is_what_lies_far_from_the_boundary(result):
    right = np.arange(21) >= 3
    np.testing.assert_array_equal(result.right, right)
    assert result.clean_accuracy.estimate == pytest.approx(18 / 21)
    for place, (norm, budget) in enumerate((("linf", 0.06), ("l2", 0.1), ("linf", 0.02))):
        expected = right & (NEAREST[norm] > budget)
        assert 0 < expected.sum() < 18
        np.testing.assert_array_equal(result.robust(place), expected)
        np.testing.assert_array_equal(result.robust(place, "pgd"), expected)
        share = result.robust_accuracy(place)
        assert share.estimate == pytest.approx(expected.mean())
        assert share.low < share.estimate < share.high
        moved = result.adversarial[place] != IMAGES
        np.testing.assert_array_equal(moved.any(-1), right & ~expected)


def test_curves_are_the_distances_to_the_boundary(result):
    assert result.norms == ("linf", "l2")
    for place, norm in enumerate(result.norms):
        assert (result.distance[place, :3] == 0).all()
        np.testing.assert_allclose(result.distance[place, 3:], NEAREST[norm][3:], rtol=0.02)
        shares = result.curve(norm, [0.0, 0.06, 9.0])
        expected = (NEAREST[norm][3:] > 0.06).sum() / 21
        np.testing.assert_allclose(shares, [18 / 21, expected, 0.0])


def test_what_fools_at_a_small_budget_fools_at_a_larger_one():
    """An attack that does nothing where it has more than .03."""

    def timid(logits_fn, key, x, labels, *, threat):
        made = attacks.pgd(logits_fn, key, x, labels, threat=threat)
        kept = jnp.where(threat.epsilon < 0.03, made.adversarial, x)
        return made._replace(adversarial=kept)

    threats = [attacks.linf(epsilon) for epsilon in reversed(BUDGETS)]
    found = evaluate(threats=threats, attacks={"timid": timid}, curves=False)
    np.testing.assert_array_equal(found.fooled[0, 0], found.fooled[0, 1])
    assert found.fooled.any() and found.norms == ()
    np.testing.assert_array_equal(found.adversarial[0], found.adversarial[1])
    # Of some features another budget says nothing.
    masked = [threat.within(jnp.ones(6, bool)) for threat in threats]
    apart = evaluate(threats=masked, attacks={"timid": timid})
    assert apart.fooled[0, 1].any() and not apart.fooled[0, 0].any() and apart.norms == ()


def test_no_answer_is_neither_fooled_nor_robust():
    def silent(x):  # NaN below the middle of the first feature
        return jnp.where(x[:, :1] < 0.5, jnp.nan, linear(x))

    x = IMAGES[IMAGES[:, 0] > 0.52]
    labels = np.asarray(linear(x).argmax(-1))

    def down(logits_fn, key, x, labels, *, threat):
        made = attacks.pgd(logits_fn, key, x, labels, threat=threat)
        point = threat.project(x - jnp.eye(1, x.shape[1]), x)
        return made._replace(adversarial=point)

    found = robustness.evaluate(
        silent, x, labels, threats=[attacks.linf(0.2)], attacks={"down": down}, curves=False
    )
    assert found.right.all() and found.undecided.all() and not found.fooled.any()
    assert found.robust_accuracy(0).estimate == 0


def test_an_attack_that_leaves_the_threat_model_is_named():
    def far(logits_fn, key, x, labels, *, threat):
        made = attacks.pgd(logits_fn, key, x, labels, threat=attacks.linf(2 * threat.epsilon))
        return made

    with pytest.raises(ValueError, match=r"'far' left the threat model linf 0\.02"):
        evaluate(threats=[attacks.linf(0.02)], attacks={"far": far})


def test_a_last_smaller_batch_compiles_nothing_and_changes_nothing(caplog):
    def fresh(x):  # nothing is compiled for it yet
        return linear(x)

    def run(number):
        return robustness.evaluate(
            fresh,
            IMAGES[:number],
            LABELS[:number],
            threats=[attacks.linf(epsilon) for epsilon in BUDGETS],
            attacks={"few": FEW, "pgd": attacks.pgd},
            batch_size=8,
        )

    def compiled():
        names = "_attacked", "_look", "_nearest", "_attack", "_clean"
        messages = [m for m in caplog.messages if "XLA compilation" in m]
        return {name for name in names if any(f"jit({name})" in m for m in messages)}

    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        whole = run(21)
        assert len(compiled()) == 5
        caplog.clear()
        part = run(19)  # other numbers of batches, of survivors and of rows in the last batch
        assert not compiled()
    np.testing.assert_array_equal(whole.fooled[1][:, :19], part.fooled[1])


@pytest.mark.parametrize("stop", [1, 4, 9, 14])
def test_taken_up_again_it_ends_as_it_would_have(stop):
    options = {
        "threats": [attacks.linf(0.02), attacks.linf(0.06)],
        "attacks": {"few": FEW, "fgsm": attacks.fgsm},
        "batch_size": 8,
    }
    steps = list(map(copy.deepcopy, robustness.evaluate_steps(linear, IMAGES, LABELS, **options)))
    assert [step.share for step in steps] == sorted(step.share for step in steps)
    assert steps[0].share == 0 and steps[-1].share == 1 and len(steps) > 15
    kept = copy.deepcopy(steps[stop])
    *_, last = robustness.evaluate_steps(linear, IMAGES, LABELS, **options, step=steps[stop])
    for name in ("fooled", "undecided", "adversarial", "found_by", "distance"):
        ended = getattr(last.robustness, name)
        np.testing.assert_array_equal(ended, getattr(steps[-1].robustness, name))
        given = getattr(steps[stop].robustness, name)
        np.testing.assert_array_equal(given, getattr(kept.robustness, name))


def test_where_cross_entropy_saturates_the_margin_is_tried_too():
    def saturated(x):
        return 1e4 * linear(x)

    found = robustness.evaluate(
        saturated, IMAGES, LABELS, threats=[attacks.linf(0.06)], attacks=["pgd"], curves=False
    )
    assert found.attacks == ("pgd", "pgd, margin")
    expected = np.arange(21) >= 3
    expected &= NEAREST["linf"] > 0.06
    np.testing.assert_array_equal(found.robust(0), expected)
    assert found.robust(0, "pgd").sum() > expected.sum()  # what cross-entropy leaves


def test_attacks_with_a_loss_of_their_own_are_left_alone():
    fns = {"own": functools.partial(attacks.pgd, loss_fn=losses.dlr), "fgsm": attacks.fgsm}
    assert list(robustness._with_margin(fns)) == ["fgsm, margin"]


@pytest.mark.quick
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threats": []}, "at least one threat model"),
        ({"attacks": []}, "one attack are needed"),
        ({"attacks": "pgd"}, r"a sequence of names, got 'pgd': \['pgd'\]"),
        ({"attacks": ["fmn"]}, "with a threat model, got 'fmn'"),
        ({"attacks": ["jax"]}, "got 'jax'"),
        ({"threats": [0.03]}, "threat"),
        ({"threats": [attacks.linf(jnp.array([0.1, 0.2]))]}, "budget"),
        ({"images": 255 * IMAGES}, "bounds"),
        ({"labels": LABELS.astype(float)}, "labels must be integers"),
        ({"labels": LABELS + 2}, "labels"),
    ],
)
def test_nonsense_is_one_line_before_anything_is_attacked(options, message):
    given = {"images": IMAGES, "labels": LABELS, "threats": [attacks.linf(0.1)]} | options
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        robustness.evaluate_steps(linear, **given)
    assert "\n" not in str(caught.value)


@pytest.mark.quick
def test_no_images_have_no_accuracy():
    found = robustness.evaluate(
        linear, IMAGES[:0], LABELS[:0], threats=[attacks.linf(0.1)], attacks=["pgd"]
    )
    share = found.robust_accuracy(0)
    assert np.isnan(share.estimate) and (share.low, share.high) == (0, 1)


@pytest.mark.quick
def test_the_package_offers_it_at_its_door():
    assert halfway.evaluate is robustness.evaluate and "evaluate" in dir(halfway)


def test_images_of_16_bits_keep_their_type():
    found = robustness.evaluate(
        lambda x: linear(x.astype(jnp.float32)),
        jnp.asarray(IMAGES, jnp.bfloat16),
        LABELS,
        threats=[attacks.linf(0.0625)],
        attacks={"pgd": attacks.pgd, "few": FEW},
    )
    assert found.adversarial.dtype == jnp.bfloat16
    assert found.fooled.any(-1).all()


def test_the_key_decides_the_draws():
    draws = functools.partial(attacks.pgd, random_start=True, num_steps=1, relative_step=0.0)
    threats = [attacks.linf(0.06)]
    runs = [
        evaluate(threats=threats, attacks={"draw": draws}, curves=False, key=jax.random.key(seed))
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(runs[0].adversarial, runs[1].adversarial)
    assert (runs[0].adversarial != runs[2].adversarial).any()


def test_a_model_that_cannot_be_hashed_is_a_model():
    @dataclasses.dataclass
    class Model:  # equal where its fields are, and so without a hash
        scale: float

        def __call__(self, x):
            return self.scale * linear(x)

    found = robustness.evaluate(
        Model(2.0),
        IMAGES,
        LABELS,
        threats=[attacks.linf(0.06)],
        attacks={"few": FEW, "pgd": attacks.pgd},
    )
    np.testing.assert_array_equal(found.robust(0), found.right & (NEAREST["linf"] > 0.06))


def test_what_is_kept_of_a_point_belongs_to_it(result):
    """The class that is seen in it, and the length of its change, which the curve knows too."""
    for place, threat in enumerate(result.threats):
        seen_as = np.asarray(linear(result.adversarial[place]).argmax(-1))
        np.testing.assert_array_equal(result.seen_as[place], seen_as)
        rows = result.found_by[place] >= 0
        length = np.asarray(
            attacks.distance(
                jnp.asarray(result.adversarial[place]), jnp.asarray(IMAGES), threat.norm.name
            )
        )
        known = result.distance[result.norms.index(threat.norm.name)]
        assert rows.any() and (known[rows] <= length[rows] + 1e-6).all()


def test_a_step_that_is_given_is_not_diagnosed_again(monkeypatch):
    options = {"threats": [attacks.linf(0.06)], "attacks": ["fgsm"], "curves": False}
    steps = robustness.evaluate_steps(linear, IMAGES, LABELS, **options)
    first = copy.deepcopy(next(steps))
    *_, last = steps
    monkeypatch.setattr(robustness, "_diagnosed", None)
    *_, again = robustness.evaluate_steps(linear, IMAGES, LABELS, **options, step=first)
    assert last.robustness.fooled.any() and not first.robustness.fooled.any()
    np.testing.assert_array_equal(again.robustness.fooled, last.robustness.fooled)
