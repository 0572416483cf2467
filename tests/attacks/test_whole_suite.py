"""One table of all attacks: what no attack may do, whatever a user hands over."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import attack_names

from halfway import attacks, losses, models
from halfway.attacks.minimum_norm.nearest import firm

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
    "auto_attack": BUDGET | FEW | {"num_targets": 1, "num_queries": 5, "chunk_size": 8},
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
    "sigma_zero": FEW,
    "sparse_rs": {"num_pixels": 3, "num_queries": 5},
    "sparse_tabu": FEW,
    "spatial": {"num_draws": 5},
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


def by_day(*names, but=()):
    """All attacks, of which those that are not named wait for the night: a program each."""
    return [
        name if name in names else pytest.param(name, marks=pytest.mark.slow)
        for name in SUITE
        if name not in but
    ]


def attack_of(name, logits_fn=model, **options):
    """An attack as a function of inputs and labels."""
    first = member if name == "svre" else logits_fn
    return functools.partial(_call, name, first, SUITE[name] | options)


def _call(name, first, options, x, labels, **more):
    return getattr(attacks, name)(first, KEY, x, labels, **options, **more)


def test_the_table_has_every_attack():
    known = attack_names.taking("x", "labels", "key")
    assert known - {"auto_attack_steps"} == set(SUITE)  # which is `auto_attack`, by chunks


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

    def test_a_loss_of_integers(self, name):
        if "loss_fn" not in inspect.signature(getattr(attacks, name)).parameters:
            pytest.skip("its loss is its own")
        for loss_fn, said in (
            (lambda logits, labels: (logits.argmax(-1) != labels).astype(int), r"int32 of shape"),
            (lambda logits, labels: losses.cross_entropy(logits, labels).mean(), r"shape \(\)"),
        ):
            refused(
                name, rf"floating-point loss per example, \(6,\), got .*{said}", loss_fn=loss_fn
            )

    def test_logits_of_integers(self, name):
        if name == "svre":
            pytest.skip("its model is given with parameters")
        rounded = lambda x: model(x).astype(int)  # noqa: E731
        refused(name, "must return floating-point logits, got int32", logits_fn=rounded)


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
def test_logits_of_several_models_need_their_loss(name):
    """Where an attack takes them, the loss of the ensemble makes them one; else it says so."""
    if name == "svre":
        pytest.skip("its models are given with parameters")
    both, joint_fn = attacks.ensemble(member, jnp.stack([WEIGHTS, WEIGHTS]), "loss")
    if "loss_fn" not in inspect.signature(getattr(attacks, name)).parameters:
        refused(name, r"logits of 2 models at once, .* takes those of one", logits_fn=both)
        return
    refused(name, r"logits of 2 models at once, .* give the loss_fn that", logits_fn=both)
    result = attack_of(name, both, loss_fn=joint_fn)(X, LABELS)
    np.testing.assert_array_equal(result.success, attack_of(name)(X, LABELS).success)


@pytest.mark.parametrize("name", ["di_fgsm", "ti_fgsm", "square", "spatial"])
def test_channels_come_last(name):
    x = jnp.full((2, 3, 8, 8), 0.5)
    message = r"channels first: images must be \[B, H, W, D\], x\.transpose\(0, 2, 3, 1\)"
    flat = lambda x: x.reshape(len(x), -1)[:, :3]  # noqa: E731
    refused(name, message, x=x, labels=jnp.zeros(2, int), logits_fn=flat)


# Types and derivatives

MORE = jax.random.uniform(jax.random.key(2), (50, *SHAPE), minval=0.2, maxval=0.8)
MORE_LABELS = model(MORE).argmax(-1)


@pytest.mark.parametrize("name", by_day("auto_attack", "deepfool", "fab", "pgd", "ti_fgsm"))
def test_every_type_of_floats_keeps_its_type(name):
    """Feasible to one unit in the last place of the type, and as successful as float32."""
    # Other types draw other numbers: moves come from a grid.
    options = {"spatial": {"num_draws": None, "grid": (7, 3)}}.get(name, LONGER.get(name, {}))
    if "threat" in SUITE[name]:
        options = {"threat": attacks.linf(0.08)}
    counts = {}
    for dtype in ("float32", "float16", "bfloat16", "float64"):
        with jax.enable_x64(dtype == "float64"):
            x = jnp.asarray(MORE, dtype)
            result = jax.jit(attack_of(name, **options))(x, jnp.asarray(MORE_LABELS))
            assert result.adversarial.dtype == dtype, dtype
            wrong = model(result.adversarial).argmax(-1) != MORE_LABELS
            np.testing.assert_array_equal(result.success, wrong, err_msg=dtype)
            ours, clean = (np.asarray(a, np.float64) for a in (result.adversarial, x))
            assert ours.min() >= 0 and ours.max() <= 1
            if "threat" in options:
                unit = float(jnp.finfo(dtype).eps)  # one unit in the last place below 1
                assert np.abs(ours - clean).max() <= 0.08 + unit, dtype
            counts[dtype] = int(result.success.sum())
    assert max(counts.values()) - min(counts.values()) <= 0.02 * len(MORE), counts


@pytest.mark.parametrize("name", by_day("carlini_wagner", "ddn", "fmn", "mi_fgsm", "pgd"))
def test_derivatives_are_finite(name):
    """Backwards, or forwards where the attack is a loop without a known end."""
    x = X.at[0, 0, 0, 0].set(0.0).at[1, 1, 1, 0].set(1.0)
    norms = {"fmn": ("linf", "l2", "l1"), "fab": ("linf", "l2", "l1"), "deepfool": ("linf", "l2")}
    threats = [attacks.linf(0.2), attacks.l2(0.5), attacks.l1(1.0)]
    if name in norms:
        variants = [{"norm": norm} for norm in norms[name]]
    else:
        variants = [{"threat": t} for t in threats] if name in ("pgd", "apgd") else [{}]

    for options in variants:

        def end(x, options=options):
            return attack_of(name, **options)(x, LABELS).adversarial

        try:
            derivative = jax.jit(jax.grad(lambda x, end=end: end(x).sum()))(x)
        except ValueError as error:
            assert "Reverse-mode differentiation does not work for lax.while_loop" in str(error)
            derivative = jax.jit(lambda x, end=end: jax.jvp(end, (x,), (x,))[1])(x)
        assert np.isfinite(derivative).all(), options
        assert (derivative != 0).any(), options


def test_the_firm_lead_is_above_rounding():
    """A lead of a few units in the last place is no success; one of a thousandth is."""
    for dtype, share in ((jnp.float32, 64 * 2**-23), (jnp.bfloat16, 4 * 2**-7)):
        logits = jnp.array(
            [[10.0, 10.0 * (1 + 0.5 * share)], [10.0, 10.0 * (1 + 4 * share)]], dtype
        )
        goal = firm(lambda x, logits=logits: logits, jnp.zeros(2, int), losses.margin)
        assert goal.success(logits).tolist() == [False, True]


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


# Attacks without a budget

NEAREST = (
    "boundary",
    "carlini_wagner",
    "ddn",
    "deepfool",
    "fab",
    "fmn",
    "hop_skip_jump",
    "sigma_zero",
    "sparse_tabu",
)
RANDOM = ("boundary", "hop_skip_jump")
LONGER = {
    "boundary": {"num_steps": 200},
    "carlini_wagner": {"num_steps": 60, "num_searches": 5},
    "ddn": {"num_steps": 40},
    "deepfool": {"num_steps": 20},
    "fab": {"num_steps": 20},
    "fmn": {"num_steps": 40},
    "hop_skip_jump": {"num_steps": 6},
    "sigma_zero": {"num_steps": 40},
    "sparse_rs": {"num_pixels": 12, "num_queries": 60},
    "sparse_tabu": {"num_steps": 40},
}


@pytest.mark.parametrize("bounds", [(0.0, 255.0), (-1.0, 1.0)], ids=str)
@pytest.mark.parametrize("name", NEAREST)
def test_lengths_are_those_of_the_box(name, bounds):
    """The same images in other units: points are the same, distances scaled but for that of l0."""
    lower, width = bounds[0], bounds[1] - bounds[0]
    expected = jax.jit(attack_of(name, **LONGER[name]))(X, LABELS)

    def scaled(x):
        return model((x - lower) / width)

    options = LONGER[name] | {"bounds": bounds}
    result = jax.jit(attack_of(name, scaled, **options))(lower + width * X, LABELS)
    np.testing.assert_array_equal(result.success, expected.success)
    assert result.success.any()
    if name in ("sigma_zero", "sparse_tabu"):
        moved = np.asarray(result.adversarial != lower + width * X)
        np.testing.assert_array_equal(moved, expected.adversarial != X)
        return
    norm = inspect.signature(getattr(attacks, name)).parameters.get("norm")
    norm = norm.default if norm else "l2"
    ratio = attacks.distance(result.adversarial, lower + width * X, norm) / (
        width * attacks.distance(expected.adversarial, X, norm)
    )
    assert abs(np.median(ratio) - 1) < 1e-3
    # Rounding leads a walk along random decisions another way.
    np.testing.assert_allclose(ratio, 1, rtol=0.02 if name in RANDOM else 1e-3)
    assert result.adversarial.min() >= lower and result.adversarial.max() <= bounds[1]


@pytest.mark.parametrize("low", [(0.0, -1.0), 0.0], ids=["of each", "one below"])
@pytest.mark.parametrize("name", [*NEAREST, "auto_attack", "sparse_rs"])
def test_bounds_of_each_channel(name, low):
    images = jax.random.uniform(KEY, (4, 3, 3, 2), minval=0.2, maxval=0.8)
    weights = jax.random.normal(KEY, (18, 3))
    low = jnp.reshape(jnp.array(low), (1, 1, 1, 2)) if isinstance(low, tuple) else low
    high = jnp.array([1.0, 3.0]).reshape(1, 1, 1, 2)

    def logits_fn(x):
        return ((x - low) / (high - low) - 0.5).reshape(len(x), -1) @ weights

    x = low + (high - low) * images
    options = {"bounds": (low, high)} | LONGER.get(name, {})
    if name == "auto_attack":
        options = {"threat": attacks.linf(0.3, (low, high))}
    result = attack_of(name, logits_fn, **options)(x, logits_fn(x).argmax(-1))
    assert result.success.any()
    assert (result.adversarial >= low).all() and (result.adversarial <= high).all()


@pytest.mark.parametrize("name", NEAREST)
def test_infinite_bounds_are_left_as_they_are(name):
    if name in ("boundary", "hop_skip_jump", "carlini_wagner", "sparse_tabu"):
        pytest.skip("it needs finite bounds")
    result = attack_of(name, bounds=(-jnp.inf, jnp.inf), **LONGER[name])(X, LABELS)
    assert result.success.any() and np.isfinite(result.adversarial).all()


# So near to the boundary that some successes would be undone if they were not firm.
CLOSEST = LONGER | {"deepfool": {"num_steps": 20, "overshoot": 0.0}, "fmn": {"num_steps": 100}}
WIDE = jax.random.uniform(jax.random.key(5), (64, 8, 8, 1))
NETWORK = models.build({"kind": "cnn", "features": [8, 8], "widths": [16]}, num_classes=5)
NETWORK_PARAMS = NETWORK.init(jax.random.key(6), WIDE)


def network(x):
    return NETWORK.apply(NETWORK_PARAMS, x)


def precisely(points):
    """The logits of the same network in float64, where rounding is another one."""
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), NETWORK_PARAMS)
        return np.asarray(NETWORK.apply(params, np.asarray(points, np.float64)))


SECOND_LOOKS = ("deepfool", "fab", "fmn", "hop_skip_jump", "pgd", "square")


@pytest.mark.parametrize("name", by_day(*SECOND_LOOKS, but=["svre"]))
def test_successes_survive_a_second_look(name):
    """In batches of 1, 7 and 64, jitted and not, a point is fooled or it is not."""
    labels = network(WIDE).argmax(-1)
    options = CLOSEST.get(name, {"threat": attacks.linf(0.1)} if "threat" in SUITE[name] else {})
    result = jax.jit(attack_of(name, network, **options))(WIDE, labels)
    for look in (network, jax.jit(network), precisely):
        for size in (1, 7, 64):
            parts = [
                look(result.adversarial[begin : begin + size]).argmax(-1)
                for begin in range(0, 64, size)
            ]
            fooled = np.concatenate(parts) != labels
            np.testing.assert_array_equal(fooled, result.success, err_msg=f"{size}")
    if name in NEAREST:
        # Programs of a small network round alike: what a larger one would lose is looked at too.
        logits, rows = precisely(result.adversarial), np.arange(64)
        aimed = logits[rows, labels]
        lead = np.asarray(losses.margin(logits, labels), np.float64)
        rounding = 2.0**-23 * np.maximum(abs(aimed), abs(aimed + lead))
        assert (lead > 32 * rounding)[np.asarray(result.success)].all()


@pytest.mark.parametrize("name", ["boundary", "hop_skip_jump"])
def test_a_walk_without_a_start_is_not_robust(name):
    """Uniform draws are all of class 0: examples of class 1 find no start, those of class 0 do."""

    def logits_fn(x):
        """Class 1 where the mean is far from that of any draw."""
        mean = x.reshape(len(x), -1).mean(1)
        return jnp.stack([jnp.full_like(mean, 0.0), jnp.abs(mean - 0.5) - 0.4], -1)

    dark = jnp.full((2, *SHAPE), 0.02)
    grey = jnp.full((2, *SHAPE), 0.5)
    alone = attack_of(name, logits_fn)(grey, jnp.zeros(2, int))
    assert not alone.success.any() and jnp.isnan(alone.loss).all()
    outcome = attacks.outcome(logits_fn, grey, jnp.zeros(2, int), alone)
    assert not outcome.robust.any()
    # With examples of the other label in the batch there is a start.
    x, labels = jnp.concatenate([grey, dark]), jnp.array([0, 0, 1, 1])
    together = attack_of(name, logits_fn)(x, labels)
    assert together.success.all()


@pytest.mark.parametrize("scale", [1e-20, 1e3])
@pytest.mark.parametrize("name", NEAREST)
def test_the_scale_of_logits_does_not_matter(name, scale):
    expected = jax.jit(attack_of(name, **LONGER[name]))(X, LABELS)
    result = jax.jit(attack_of(name, lambda x: scale * model(x), **LONGER[name]))(X, LABELS)
    np.testing.assert_array_equal(result.success, expected.success)


def test_fmn_does_not_stop_before_the_boundary():
    """Steps of what a linear model needs end at its boundary, inside: they must go beyond."""
    start = jax.random.uniform(jax.random.key(7), (200, *SHAPE), minval=0.3, maxval=0.7)
    result = jax.jit(attack_of("fmn", num_steps=50))(start, model(start).argmax(-1))
    assert result.success.all()
    logits, rows = np.asarray(model(start)), np.arange(len(start))
    labels = logits.argmax(-1)
    ahead = logits[rows, labels][:, None] - logits
    slopes = np.linalg.norm(WEIGHTS.T[labels][:, None] - WEIGHTS.T[None], axis=-1)
    ahead[rows, labels] = np.inf
    exact = (ahead / np.where(slopes > 0, slopes, 1)).min(1)  # of a linear model
    away = attacks.distance(result.adversarial, start)
    assert abs(np.median(away / exact) - 1) < 0.01
