"""One table of all attacks: what no attack may do, whatever a user hands over."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from halfway import attacks

KEY = jax.random.key(0)
CLASSES, SIZE, SHAPE = 3, 6, (4, 4, 1)
WEIGHTS = jax.random.normal(jax.random.key(1), (16, CLASSES))


def model(x):
    """A linear model that sees inputs about .5."""
    return (x.reshape(len(x), -1) - 0.5) @ WEIGHTS.astype(x.dtype)


def member(weights, x):
    return (x.reshape(len(x), -1) - 0.5) @ weights


X = jax.random.uniform(jax.random.key(2), (SIZE, *SHAPE), minval=0.2, maxval=0.8)
LABELS = model(X).argmax(-1)
BUDGET = {"threat": attacks.linf(0.2)}
FEW = {"num_steps": 3}
SUITE = {
    "apgd": BUDGET | FEW,
    "auto_attack": BUDGET | FEW | {"num_targets": 1, "num_queries": 5},
    "bim": BUDGET | FEW,
    "boundary": FEW,
    "carlini_wagner": FEW | {"num_searches": 2},
    "ddn": FEW,
    "deepfool": FEW,
    "di_fgsm": BUDGET | FEW,
    "fab": FEW,
    "fgsm": BUDGET,
    "fmn": FEW,
    "hop_skip_jump": FEW,
    "mi_fgsm": BUDGET | FEW,
    "ni_fgsm": BUDGET | FEW,
    "pgd": BUDGET | FEW,
    "si_fgsm": BUDGET | FEW,
    "square": BUDGET | {"num_queries": 5},
    "svre": BUDGET | FEW | {"params": jnp.stack([WEIGHTS, WEIGHTS])},
    "ti_fgsm": BUDGET | FEW,
    "universal": BUDGET | {"num_epochs": 2},
    "vmi_fgsm": BUDGET | FEW,
}
"""Every attack with what makes it short."""
TARGETED = [
    name for name in SUITE if "targets" in inspect.signature(getattr(attacks, name)).parameters
]


def attack_of(name, logits_fn=model, **options):
    """An attack as a function of inputs and labels."""
    first = member if name == "svre" else logits_fn
    return functools.partial(_call, name, first, SUITE[name] | options)


def _call(name, first, options, x, labels, **more):
    return getattr(attacks, name)(first, KEY, x, labels, **options, **more)


def test_the_table_has_every_attack():
    known = {
        name
        for name in attacks.__all__
        if inspect.isfunction(fn := getattr(attacks, name))
        and {"x", "labels", "key"} <= set(inspect.signature(fn).parameters)
        and "attack" not in inspect.signature(fn).parameters
    }
    assert known == set(SUITE)


def refused(name, message, x=X, labels=LABELS, logits_fn=model, **options):
    with pytest.raises(ValueError, match=message):
        attack_of(name, logits_fn, **options)(x, labels)


@pytest.mark.parametrize("name", SUITE)
class TestRefused:
    """One line with the remedy, before anything is computed."""

    def test_images_of_0_to_255(self, name):
        refused(name, r"x goes from 5\d\.?\d* to 20\d.*bounds 0 to 1: scale x", x=X * 255)

    def test_standardized_images(self, name):
        refused(name, r"x goes from -\d.*outside of the bounds", x=(X - 0.5) / 0.2)

    def test_nan(self, name):
        refused(name, "x holds NaN", x=X.at[0, 0, 0, 0].set(jnp.nan))

    def test_integers_as_images(self, name):
        refused(name, r"x must be floats, got uint8: .* / 255", x=(X * 255).astype(jnp.uint8))

    def test_labels_beyond_the_logits(self, name):
        refused(name, r"labels must lie in 0 to 2.*got 3", labels=LABELS.at[0].set(3))
        refused(name, r"labels must lie in 0 to 2.*got -1", labels=LABELS.at[0].set(-1))

    def test_one_hot_labels(self, name):
        refused(name, r"labels must be \[B\].*argmax\(-1\)", labels=jax.nn.one_hot(LABELS, CLASSES))

    def test_labels_of_floats(self, name):
        refused(name, "labels must be integers, got float32", labels=LABELS.astype(float))

    def test_too_few_labels(self, name):
        refused(name, "x has 6 examples, labels has 5", labels=LABELS[:5])

    def test_a_list_for_inputs(self, name):
        refused(name, r"x must be an array \[B, ...\], got list", x=[[0.5]])

    def test_one_logit(self, name):
        if name == "svre":
            pytest.skip("its model is given with parameters")
        for logits_fn in (lambda x: model(x)[:, :1], lambda x: model(x)[:, 0]):
            refused(name, r"one logit an example.*jnp\.stack", logits_fn=logits_fn)


@pytest.mark.parametrize("name", [name for name in SUITE if "threat" in SUITE[name]])
def test_a_number_is_no_threat_model(name):
    refused(name, r"threat must be a threat model, got 0\.03: attacks\.linf\(0\.03\)", threat=0.03)


@pytest.mark.parametrize("name", TARGETED)
def test_targets_are_checked_as_labels_are(name):
    refused(name, r"targets must be an array \[B\] of integers, got int", targets=1)
    refused(name, r"targets must lie in 0 to 2", targets=jnp.full(SIZE, 7))


@pytest.mark.parametrize("name", SUITE)
def test_what_is_wrong_and_traced_is_never_a_success(name):
    """Row 0 lies outside of the bounds, row 1 has a label without a logit."""
    x, labels = X.at[0].add(3.0), LABELS.at[1].set(CLASSES + 2)
    result = jax.jit(attack_of(name))(x, labels)
    assert not result.success[:2].any()
    # The others are as they are with right rows in their company.
    right = jax.jit(attack_of(name))(X, LABELS)
    if name != "universal":  # which couples examples by design
        np.testing.assert_array_equal(result.success[2:], right.success[2:])


@pytest.mark.parametrize("name", SUITE)
def test_arrays_of_numpy_are_arrays(name):
    result = attack_of(name)(np.asarray(X), np.asarray(LABELS))
    expected = attack_of(name)(X, LABELS)
    np.testing.assert_array_equal(result.success, expected.success)
    np.testing.assert_allclose(result.adversarial, expected.adversarial, atol=1e-6)


@pytest.mark.parametrize("name", SUITE)
def test_no_examples_give_no_results(name):
    empty = X[:0], LABELS[:0]
    if name == "universal":
        refused(name, "x has no examples", *empty)
        return
    result = attack_of(name)(*empty)
    assert result.adversarial.shape == (0, *SHAPE)
    assert result.success.shape == result.loss.shape == result.queries.shape == (0,)


@pytest.mark.parametrize("name", SUITE)
def test_rounding_at_the_bounds_is_no_mistake(name):
    x = X.at[0, 0, 0, 0].set(1.0 + 5e-7).at[1, 0, 0, 0].set(-5e-7)
    result = attack_of(name)(x, LABELS)
    assert np.isfinite(result.adversarial).all()
    assert result.adversarial.min() >= -1e-6 and result.adversarial.max() <= 1 + 1e-6


def test_a_model_that_answers_nan_is_not_robust():
    def broken(x):
        """NaN wherever an input was moved."""
        same = (x == X).reshape(len(x), -1).all(1, keepdims=True)
        return jnp.where(same, model(x), jnp.nan)

    result = attack_of("pgd", broken)(X, LABELS)
    assert not result.success.any()
    moved = result._replace(adversarial=X + 0.01)
    outcome = attacks.outcome(broken, X, LABELS, moved)
    assert not (outcome.misclassified | outcome.fooled | outcome.robust).any()
    assert attacks.outcome(model, X, LABELS, moved).robust.all()
