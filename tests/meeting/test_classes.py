"""Meeting matrices from gradients, from the tangent kernel and from dense Jacobians."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from halfway import landscapes, losses, meeting, models, populations
from halfway.types import Sample

RNG = np.random.default_rng(0)
POOL = jnp.asarray(RNG.uniform(size=(60, 4, 4, 1)), jnp.float32)
LABELS = jnp.asarray(RNG.integers(0, 3, 60), jnp.int32)
MODULE = models.build({"kind": "mlp", "widths": (7,), "activation": "tanh"}, num_classes=3)
PARAMS = jax.jit(MODULE.init)(jax.random.key(0), POOL)["params"]


def apply_fn(params, x):
    return jnp.asarray(MODULE.apply({"params": params}, x))


def sample(start, size, valid):
    rows = jnp.arange(start, start + size)
    return Sample(rows, LABELS[rows], jnp.arange(size) < valid)


A, B = sample(0, 23, 20), sample(30, 17, 17)


def close(result, expected, relative=1e-4):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(result, expected, atol=relative * scale, rtol=0)


def each_class(values, a, b):
    """Sums `[C, C]` of `[N, M]` over the valid examples of each class."""
    left, right = (np.eye(3)[s.labels] * np.asarray(s.mask)[:, None] for s in (a, b))
    return left.T @ np.asarray(values, np.float64) @ right


@pytest.fixture(scope="module")
def dense():
    """The matrix of A and B from the whole kernel."""

    @jax.jit
    def run(p):
        x, z = POOL[A.indices], POOL[B.indices]
        r, q = (
            jax.nn.softmax(apply_fn(p, POOL[s.indices])) - jax.nn.one_hot(s.labels, 3)
            for s in (A, B)
        )
        kernel = landscapes.empirical_ntk(apply_fn, p, x, z)
        return jnp.einsum("ic,ijce,je->ij", r, kernel, q)

    return each_class(run(PARAMS), A, B) / (20 * 17)


@pytest.mark.parametrize("chunk_size, block_size", [(None, 32), (5, 4)])
def test_gradients_and_the_kernel_make_one_matrix(chunk_size, block_size, dense):
    by_gradients = jax.jit(
        lambda p: meeting.meeting_matrix(apply_fn, p, POOL, A, B, chunk_size=chunk_size)
    )(PARAMS)
    by_kernel = jax.jit(
        lambda p: meeting.meeting_matrix_by_kernel(apply_fn, p, POOL, A, B, block_size=block_size)
    )(PARAMS)
    close(by_gradients, by_kernel)
    close(by_kernel, dense)


def test_the_matrix_sums_to_what_the_halves_share():
    @jax.jit
    def run(p):
        matrices = [meeting.meeting_matrix(apply_fn, p, POOL, *s) for s in ((A, B), (B, A))]
        return matrices, populations.gradient_products(apply_fn, p, POOL, A, B)

    (matrix, swapped), products = run(PARAMS)
    assert float(matrix.sum()) == pytest.approx(float(products["own_other"]), rel=1e-4)
    # The other half seen first is the transpose.
    close(swapped, matrix.T)


def test_any_loss_per_example():
    def gradients(params, s):
        example_loss = lambda p, x, y: losses.brier(apply_fn(p, x[None]), y[None])[0]  # noqa: E731
        leaves = jax.vmap(jax.grad(example_loss), (None, 0, 0))(params, POOL[s.indices], s.labels)
        return jnp.concatenate([g.reshape(g.shape[0], -1) for g in jax.tree.leaves(leaves)], 1)

    matrix, products = jax.jit(
        lambda p: (
            meeting.meeting_matrix(apply_fn, p, POOL, A, B, loss_fn=losses.brier),
            gradients(p, A) @ gradients(p, B).T,
        )
    )(PARAMS)
    close(matrix, each_class(products, A, B) / (20 * 17))


@pytest.mark.parametrize("chunk_size", [None, 6])
def test_the_residual_free_matrix_is_the_mean_of_the_kernel(chunk_size):
    matrix = jax.jit(
        lambda p: meeting.residual_free_matrix(apply_fn, p, POOL, A, B, chunk_size=chunk_size)
    )(PARAMS)
    x, z = POOL[A.indices], POOL[B.indices]
    kernel = jax.jit(lambda p: landscapes.trace_ntk(apply_fn, p, x, z))(PARAMS)
    close(matrix, each_class(kernel, A, B) / each_class(np.ones((23, 17)), A, B), 1e-5)


@pytest.mark.parametrize("name", ["meeting_matrix", "residual_free_matrix"])
def test_layers_sum_to_the_whole(name):
    fns = [getattr(meeting, name), getattr(meeting, f"{name}_by_layer")]
    whole, by_layer = jax.jit(lambda p: [fn(apply_fn, p, POOL, A, B) for fn in fns])(PARAMS)
    assert list(by_layer) == ["Dense_0", "Dense_1"]
    close(sum(by_layer.values()), whole, 1e-6)
    for layer, layer_matrix in by_layer.items():
        of_layer = lambda part, x, layer=layer: apply_fn(PARAMS | {layer: part}, x)  # noqa: E731
        fn = meeting.meeting_matrix_by_kernel if name == "meeting_matrix" else fns[0]
        close(
            layer_matrix, jax.jit(lambda p, fn=fn, f=of_layer: fn(f, p, POOL, A, B))(PARAMS[layer])
        )


def test_classes_that_do_not_occur():
    a = A._replace(labels=jnp.where(A.labels == 1, 0, A.labels))
    fns = meeting.residual_free_matrix, meeting.meeting_matrix
    run = jax.jit(lambda p: [fn(apply_fn, p, POOL, a, B) for fn in fns])
    free, whole = map(np.asarray, run(PARAMS))
    np.testing.assert_array_equal(np.isnan(free), [[False] * 3, [True] * 3, [False] * 3])
    np.testing.assert_array_equal(whole[1], 0)
    diagonal, others = free[[0, 2], [0, 2]], free[[0, 0, 2, 2], [1, 2, 0, 1]]
    expected = (diagonal.mean() - others.mean()) / np.abs(free[[0, 2]]).mean()
    assert float(meeting.diagonal_contrast(jnp.asarray(free))) == pytest.approx(expected, rel=1e-5)


@pytest.mark.quick
def test_contrast_by_hand():
    matrix = jnp.array([[4.0, -1.0, jnp.nan], [0.0, jnp.nan, -1.0], [2.0, jnp.nan, 2.0]])
    expected = (3 - 0) / (10 / 6)
    assert float(meeting.diagonal_contrast(matrix)) == pytest.approx(expected)
    both = jax.jit(meeting.diagonal_contrast)(jnp.stack([matrix, -matrix]))
    np.testing.assert_allclose(both, [expected, -expected], rtol=1e-6)
    assert np.isnan(meeting.diagonal_contrast(jnp.full((2, 2), jnp.nan)))
    assert float(meeting.diagonal_contrast(jnp.ones((3, 3)))) == 0


def test_classes_meet_at_initialization(digits):
    """Residuals make the diagonal of digits; shuffled labels have none to speak of."""
    pool = digits.pool("all")
    images, labels = jnp.asarray(pool.images), jnp.asarray(pool.labels, jnp.int32)
    module = models.build({"kind": "mlp", "widths": (16,)}, num_classes=10)
    params = jax.jit(module.init)(jax.random.key(1), images[:1])["params"]
    run = lambda p, x: module.apply({"params": p}, x)  # noqa: E731

    @jax.jit
    def contrasts(labels):
        rows = jnp.arange(400)
        a, b = (Sample(r, labels[r], jnp.ones(400, bool)) for r in (rows, rows + 400))
        return meeting.diagonal_contrast(
            jnp.stack(
                [
                    fn(run, params, images, a, b)
                    for fn in (meeting.meeting_matrix, meeting.residual_free_matrix)
                ]
            )
        )

    true, shuffled = contrasts(labels), contrasts(jax.random.permutation(jax.random.key(2), labels))
    assert true[1] > 5 * abs(shuffled[1])
    assert true[0] > shuffled[0] > 0.5  # r alone makes the diagonal


@pytest.mark.parametrize(
    "name",
    [
        "meeting_matrix",
        "residual_free_matrix",
        pytest.param("meeting_matrix_by_kernel", marks=pytest.mark.slow),
    ],
)
def test_matrices_under_vmap(name):
    members = jax.tree.map(lambda leaf: np.stack([leaf, np.float32(-0.5) * leaf]), PARAMS)
    run = jax.jit(lambda p: getattr(meeting, name)(apply_fn, p, POOL, A, B))
    mapped = np.asarray(jax.jit(jax.vmap(run))(members))
    for i in range(2):
        close(mapped[i], np.asarray(run(jax.tree.map(lambda v, i=i: v[i], members))))


def test_the_sum_of_a_matrix_has_the_gradient_of_the_product():
    total = lambda p: meeting.meeting_matrix(apply_fn, p, POOL, A, B).sum()  # noqa: E731
    product = lambda p: populations.gradient_products(apply_fn, p, POOL, A, B)["own_other"]  # noqa: E731
    gradients, expected = jax.jit(lambda p: [jax.grad(fn)(p) for fn in (total, product)])(PARAMS)
    for name in PARAMS:
        close(gradients[name]["kernel"], expected[name]["kernel"], 1e-3)


def test_chunks_hold_an_example_at_least():
    with pytest.raises(ValueError, match="chunk_size must be at least 1, got 0"):
        meeting.meeting_matrix(apply_fn, PARAMS, POOL, A, B, chunk_size=0)
    with pytest.raises(ValueError, match="block_size must be at least 1, got 0"):
        meeting.meeting_matrix_by_kernel(apply_fn, PARAMS, POOL, A, B, block_size=0)
