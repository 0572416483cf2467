"""Grids of architectures, attacks and budgets against loops; planted transfer; bounded memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.programs import compiled

from halfway import attacks, losses, transfer
from halfway.transfer import grid as module

SIZE, CLASSES, NUMBER = 12, 3, 11
LABELS = jnp.asarray(np.random.default_rng(5).integers(0, CLASSES, NUMBER), jnp.int32)
X = jnp.asarray(np.random.default_rng(0).uniform(0, 1, (NUMBER, 3, 4, 1)), jnp.float32)
pgd = functools.partial(attacks.pgd, loss_fn=losses.margin, num_steps=3)
traces = []


def flat(x):
    return x.reshape(x.shape[0], -1)


def linear(params, x):
    traces.append(("linear", x.shape))
    return flat(x) @ params


def mlp(params, x):
    traces.append(("mlp", x.shape))
    return jnp.tanh(flat(x) @ params["v"]) @ params["w"]


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


LINEAR, MLP = draw(1, 2, SIZE, CLASSES), {"v": draw(2, 3, SIZE, 8), "w": draw(3, 3, 8, CLASSES)}
ALONE = draw(4, SIZE, CLASSES)


def alone(x):
    return flat(x) @ ALONE


SURROGATES = {"linear": (linear, LINEAR), "alone": alone}
TARGETS = {"alone": alone, "mlp": (mlp, MLP)}


def run(surrogates=SURROGATES, **options):
    given = {"attack_fns": {"pgd": pgd}, "budgets": [0.1, 0.3], "chunk_size": 4, "num_at_once": 3}
    return transfer.transfer_grid(
        surrogates, TARGETS, jax.random.key(0), X, LABELS, **given | options
    )


@pytest.fixture(scope="module")
def grid():
    return run()


def jitted(surrogate, key, x, labels, *, threat):
    return jax.jit(functools.partial(pgd, surrogate))(key, x, labels, threat=threat)


def models(groups):
    for name, model in groups.items():
        if isinstance(model, tuple):
            apply_fn, params = model
            for index in range(jax.tree.leaves(params)[0].shape[0]):
                member = jax.tree.map(lambda leaf: leaf[index], params)  # noqa: B023
                yield f"{name}/{index}", functools.partial(apply_fn, member)
        else:
            yield name, model


def test_names_and_shapes(grid):
    assert grid.surrogates == ("linear/0", "linear/1", "alone")
    assert grid.targets == ("alone", "mlp/0", "mlp/1", "mlp/2")
    assert grid.attacks == ("pgd",) and set(grid.cells) == {("pgd", 0.1), ("pgd", 0.3)}
    cell = grid.cells["pgd", 0.3]
    assert (
        cell.target["noise"].predicted.shape == (3, 4, NUMBER) == cell.target["attack"].loss.shape
    )
    assert cell.target["clean"].correct.shape == (4, NUMBER)
    assert cell.surrogate["other_example"].loss.shape == (3, NUMBER) == cell.norm.shape


@pytest.mark.parametrize("epsilon", [0.1, 0.3])
def test_a_grid_is_a_loop_over_surrogates_and_targets(grid, epsilon):
    cell, threat, attack = grid.cells["pgd", epsilon], attacks.linf(epsilon), jitted
    for k, (_, surrogate) in enumerate(models(SURROGATES)):
        adversarial = attack(surrogate, jax.random.key(0), X, LABELS, threat=threat).adversarial
        np.testing.assert_allclose(
            cell.norm[k], np.linalg.norm(flat(np.asarray(adversarial - X)), axis=-1), rtol=1e-4
        )
        for kind, points in (("clean", X), ("attack", adversarial)):
            expected = transfer.evaluate(surrogate, points, LABELS)
            np.testing.assert_allclose(cell.surrogate[kind].loss[k], expected.loss, atol=1e-4)
        for m, (_, target) in enumerate(models(TARGETS)):
            expected, clean = (transfer.evaluate(target, z, LABELS) for z in (adversarial, X))
            evaluation = cell.target["attack"]
            np.testing.assert_allclose(evaluation.loss[k, m], expected.loss, atol=1e-4)
            np.testing.assert_array_equal(evaluation.predicted[k, m], expected.predicted)
            np.testing.assert_array_equal(evaluation.correct[k, m], expected.correct)
            np.testing.assert_allclose(cell.target["clean"].loss[m], clean.loss, atol=1e-4)


def test_controls_move_as_far_as_the_attack(grid):
    # A linear target's loss says how far its points went; noise of other surrogates goes elsewhere.
    cell = grid.cells["pgd", 0.3]
    assert cell.matched["noise"].mean() > 0.9
    noise, clean = cell.target["noise"].loss[:, 0], cell.target["clean"].loss[0]
    assert (np.abs(noise - clean) > 1e-4).mean() > 0.9
    assert np.abs(noise[0] - noise[1]).max() > 1e-3
    assert np.isfinite(noise).all()
    # Draws belong to a surrogate and a chunk: another budget has the same signs, larger.
    other = grid.cells["pgd", 0.1].target["noise"].loss[:, 0]
    assert np.corrcoef((noise - clean).ravel(), (other - clean).ravel())[0, 1] > 0.5


def test_every_surrogate_and_chunk_draws_its_own_noise():
    x, labels = jnp.tile(X[:1], (8, 1, 1, 1)), jnp.tile(LABELS[:1], 8)
    noise_grid = transfer.transfer_grid(
        {"linear": (linear, jnp.stack([ALONE, ALONE]))},
        {"alone": alone},
        jax.random.key(0),
        x,
        labels,
        attack_fns={"pgd": pgd},
        budgets=[0.1],
        chunk_size=4,
    )
    cell = noise_grid.cells["pgd", 0.1]
    # One image and one model throughout: the attack has one answer, noise another each time.
    assert np.ptp(cell.target["attack"].loss) < 1e-4
    assert len(set(cell.target["noise"].loss.ravel().round(5).tolist())) == 16


def test_blocks_and_the_order_of_targets_do_not_matter(grid):
    fns = {"pgd": pgd, "fgsm": attacks.fgsm}
    again = run(
        {"linear": (linear, LINEAR)}, num_at_once=8, vectorized=False, budgets=[0.3], attack_fns=fns
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[: len(b)], b, atol=1e-4),
        grid.cells["pgd", 0.3],
        again.cells["pgd", 0.3],
    )
    # Another attack has a cell of its own: one whole step, as far as the box allows.
    whole = again.cells["fgsm", 0.3]
    assert set(again.cells) == {("pgd", 0.3), ("fgsm", 0.3)}
    first = functools.partial(linear, LINEAR[0])
    threat = attacks.linf(0.3)
    adversarial = compiled(
        attacks.fgsm, first, jax.random.key(0), X, LABELS, threat=threat
    ).adversarial
    expected = transfer.evaluate(alone, adversarial, LABELS)
    np.testing.assert_allclose(whole.target["attack"].loss[0, 0], expected.loss, atol=1e-4)


def test_programs_are_of_architectures_and_serve_all_budgets_and_sizes():
    # Functions of this test alone, so that nothing is compiled yet.
    def first(params, x):
        return linear(params, x)

    def second(params, x):
        return linear(params, x)

    def go(num_models, number, budgets):
        groups = {
            name: (fn, draw(6, num_models, SIZE, CLASSES))
            for name, fn in (("first", first), ("second", second))
        }
        x, labels = jnp.tile(X[:8], (number // 8, 1, 1, 1)), jnp.tile(LABELS[:8], number // 8)
        return transfer.transfer_grid(
            groups,
            groups,
            jax.random.key(0),
            x,
            labels,
            attack_fns={"pgd": pgd},
            budgets=budgets,
            chunk_size=4,
            num_at_once=4,
        )

    traces.clear()
    go(2, 16, [0.1, 0.2])
    # Each function in its attack program and in its two of evaluation, clean and attacked; tracing
    # an attack calls it a few times.
    once = len(traces)
    # A chunk of 4 as such, or with three kinds of points: never all examples.
    assert {shape[0] for _, shape in traces} <= {4, 12}
    go(2, 16, [0.3])
    assert len(traces) == once


def memory(number, num_models, chunk_size, num_at_once=4, *, programs=(0, 1)):
    """Bytes of temporaries and of results of the programs that attack (0) and evaluate (1)."""
    width = 32
    params = {"v": draw(7, num_models, SIZE, width), "w": draw(8, num_models, width, CLASSES)}
    x, labels = jnp.zeros((number, SIZE)), jnp.zeros(number, jnp.int32)
    member, rows = np.zeros(num_at_once, int), np.zeros((num_at_once, chunk_size), int)
    shared = {"apply_fn": mlp, "loss_fn": losses.margin}
    keys = jax.random.split(jax.random.key(0), num_at_once)
    lower = [
        lambda: jax.jit(
            module._perturb_program.__wrapped__,
            static_argnames=("apply_fn", "attack_fn", "loss_fn"),
        ).lower(
            (keys, member, rows), params, x, labels, attacks.linf(0.1), attack_fn=pgd, **shared
        ),
        lambda: jax.jit(
            module._evaluate_program.__wrapped__,
            static_argnames=("apply_fn", "at_once", "loss_fn"),
        ).lower(
            (jnp.zeros((num_at_once, 3, chunk_size, SIZE)), rows),
            params,
            labels,
            at_once=True,
            **shared,
        ),
    ]
    analyses = [lower[index]().compile().memory_analysis() for index in programs]
    return [(analysis.temp_size_in_bytes, analysis.output_size_in_bytes) for analysis in analyses]


def test_memory_is_that_of_a_block_whatever_the_size():
    small = memory(64, 4, 16)
    assert memory(4096, 4, 16) == small
    # The widest layer of one piece on each device, [3 chunk, M, 32] floats, and little beside it.
    ((_, _), (used, _)), widest = small, 4 * 3 * 16 * 4 * 32
    assert widest <= used <= 4 * widest
    # Twice the targets, or twice the chunk, is twice of that.
    ((twice, _),) = memory(64, 8, 16, programs=(1,))
    assert 1.5 * used < twice < 2.5 * used
    # More surrogates cost the program of attacks nothing: they are looked up one by one.
    ((many, _),) = memory(64, 64, 16, programs=(0,))
    assert many == pytest.approx(small[0][0], rel=0.05)


# Planted transfer


def centred(weight, x):
    """Logits of two classes; the margin loss of label 0 is w·(x − ½)."""
    value = flat(x - 0.5) @ weight
    return jnp.stack([jnp.zeros_like(value), value], -1)


def planted(targets, epsilon, threat_fn, number=24):
    x = jnp.asarray(np.random.default_rng(9).uniform(0.35, 0.65, (number, SIZE)), jnp.float32)
    labels = jnp.zeros(number, jnp.int32)
    weights = jnp.asarray(np.eye(SIZE)[:4] * 2 + np.eye(SIZE)[4:8], jnp.float32)
    planted_grid = transfer.transfer_grid(
        {"planted": (centred, weights)},
        {"target": (centred, targets(weights))},
        jax.random.key(0),
        x,
        labels,
        attack_fns={"pgd": pgd},
        budgets=[epsilon],
        threat_fn=threat_fn,
        chunk_size=9,
    )
    return planted_grid.cells["pgd", epsilon]


@pytest.mark.parametrize(
    "threat_fn", [attacks.l2, pytest.param(attacks.linf, marks=pytest.mark.slow)]
)
def test_copies_are_fooled_wherever_the_attack_succeeds(threat_fn):
    cell = planted(lambda weights: weights, 0.12, threat_fn)
    fooled = ~cell.surrogate["attack"].correct
    assert 0.2 < fooled.mean() < 1
    for k in range(4):
        np.testing.assert_array_equal(~cell.target["attack"].correct[k, k], fooled[k])
        mistakes = transfer.mistakes(cell, "all")
        assert int(mistakes.same[k, k]) == fooled[k].sum() and int(mistakes.different[k, k]) == 0
    np.testing.assert_allclose(np.diag(transfer.coefficient(cell)), 1.0, atol=1e-5)
    # Surrogates of different pixels are independent of each other: nothing moves.
    aside = np.asarray(transfer.coefficient(cell))[~np.eye(4, dtype=bool)]
    np.testing.assert_allclose(aside, 0.0, atol=1e-5)


@pytest.mark.parametrize("share", [-0.5, 0.0, 0.5])
def test_linear_models_meet_as_far_as_they_overlap(share):
    # w_B = share · w_A and the rest orthogonal to it: in l2, M_x = ⟨w_A, w_B⟩ / ‖w_A‖².
    def targets(weights):
        return share * weights + 3 * jnp.asarray(np.eye(SIZE)[8:12], jnp.float32)

    cell = planted(targets, 0.1, attacks.l2)
    np.testing.assert_allclose(np.diag(transfer.coefficient(cell)), share, atol=1e-4)
    rate = transfer.success(cell, "both_correct")
    if share == 0:
        assert int(np.diag(rate.num_fooled).sum()) == 0


def test_independent_models_are_fooled_as_often_as_by_noise():
    def many(seed):
        return draw(seed, 40, SIZE) / np.sqrt(SIZE)

    x = jnp.asarray(np.random.default_rng(3).uniform(0.3, 0.7, (40, SIZE)), jnp.float32)
    random_grid = transfer.transfer_grid(
        {"a": (centred, many(1))},
        {"b": (centred, many(2))},
        jax.random.key(0),
        x,
        jnp.zeros(40, jnp.int32),
        attack_fns={"pgd": pgd},
        budgets=[0.2],
        threat_fn=attacks.l2,
    )
    cell = random_grid.cells["pgd", 0.2]
    coefficients = np.asarray(transfer.coefficient(cell))
    error = np.sqrt(coefficients.mean(0).var() / 40 + coefficients.mean(1).var() / 40)
    assert abs(coefficients.mean()) < 3 * error < 0.15
    rates = [
        float(np.sum(rate.num_fooled) / np.sum(rate.num_examples))
        for rate in (transfer.success(cell, "both_correct", p) for p in ("attack", "noise"))
    ]
    assert rates[0] == pytest.approx(rates[1], abs=0.05) and 0.02 < rates[0] < 0.5


@pytest.mark.parametrize(
    "options", [{"chunk_size": 1}, {"num_at_once": 0}, {"budgets": []}, {"attack_fns": {}}]
)
@pytest.mark.quick
def test_grids_that_cannot_be(options):
    with pytest.raises(ValueError, match=r"needed|needs"):
        run(**options)
    with pytest.raises(ValueError, match="at least 2 examples"):
        transfer.transfer_grid(
            SURROGATES,
            TARGETS,
            jax.random.key(0),
            X[:1],
            LABELS[:1],
            attack_fns={"pgd": pgd},
            budgets=[0.1],
        )
