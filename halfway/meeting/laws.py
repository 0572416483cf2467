"""The two laws of what gradients share, measurements of them, and memorization (P3, P4).

Where all vectors share a signal and each has noise of its own, the means of two sets of n vectors
have the local coefficient n / (n + half). Here half = noise / signal is the n at which signal and
noise of a mean are equal; `signals` estimates it. A law is checked on *other* examples or models
than those that gave its constant: on the same ones agreement is an algebraic identity.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jax import lax

from halfway import losses
from halfway.meeting import signals
from halfway.types import ApplyFn, Array, LossFn, Params


class BlockTerms(NamedTuple):
    """Numerator and denominator of a measured μ_θ(n); scalars at one θ, to sum over draws of θ.

    Attributes:
      numerator: mean of ⟨g_r, g_s⟩ over all pairs r ≠ s of blocks.
      denominator: mean of ‖g_r‖² over blocks.
    """

    numerator: Array
    denominator: Array


class SurrogateTerms(NamedTuple):
    """The terms of a measured μ_x(k) and its alignment, summed over examples.

    Attributes:
      products: `[M]`, ⟨h̄, h_m⟩ for each target, the mean over all blocks of surrogates.
      surrogate: scalar, the mean of ‖h̄‖² over blocks.
      targets: `[M]`, ‖h_m‖².
      coefficient: scalar, μ_x(k): the mean product over `surrogate`.
      alignment: scalar, the mean product over the root of both mean squares.
    """

    products: Array
    surrogate: Array
    targets: Array
    coefficient: Array
    alignment: Array


class Memorization(NamedTuple):
    """κ of a population of pairs; `stats.fieller(numerators, denominators)` is its interval.

    Attributes:
      estimate: scalar, the ratio of sums over pairs.
      numerators: `[P]`, tr Cov(g) − n (‖g_A‖² − ⟨g_A, g_B⟩).
      denominators: `[P]`, tr Cov(g).
    """

    estimate: Array
    numerators: Array
    denominators: Array


def first_law(num_examples: Array | float, n_half: Array | float) -> Array:
    """Returns μ_θ(n) = n / (n + n_half), what a gradient of n examples shares with n others (P3).

    It holds at a θ that depends on neither half. Over draws of θ, n_half is Σ noise / Σ signal.

    Args:
      num_examples: n, the number of examples of a gradient.
      n_half: the gradient noise scale, from `meeting.noise_scale`.

    Source: McCandlish et al., arXiv 1812.06162, for n_half.

    Examples:
      >>> print(meeting.first_law(jnp.array([14.0, 56.0, 168.0]), 56.0))
      [0.2  0.5  0.75]
    """
    return jnp.asarray(num_examples / (num_examples + n_half))


def second_law(num_surrogates: Array | float, k_half: Array | float) -> Array:
    """Returns μ_x(k) = k / (k + k_half), what the mean of k models shares with another one (P4).

    Args:
      num_surrogates: k, the number of models in the mean.
      k_half: the ratio of noise to signal, from `meeting.ensemble_noise`.
    """
    return first_law(num_surrogates, k_half)


def second_law_alignment(num_surrogates: Array | float, k_half: Array | float) -> Array:
    """Returns √(k / (k + k_half)) / √(1 + k_half), the alignment of k surrogates and a target (P4).

    It saturates at 1 / √(1 + k_half): the noise of the target remains.

    Args:
      num_surrogates: k, the number of models in the mean.
      k_half: the ratio of noise to signal, from `meeting.ensemble_noise`.

    Examples:
      >>> print(meeting.second_law(2.0, 2.0), meeting.second_law_alignment(1.0, 1.0))
      0.5 0.5
    """
    return jnp.sqrt(second_law(num_surrogates, k_half) / (1 + k_half))


def block_terms(
    apply_fn: ApplyFn,
    params: Params,
    x: Array,
    labels: Array,
    *,
    num_examples: int,
    loss_fn: LossFn = losses.cross_entropy,
    chunk_size: int | None = None,
) -> BlockTerms:
    """Returns the terms of the measured μ_θ(n), from all pairs of disjoint blocks (P3).

    With g_r the gradient of block r of n examples, `Σ_{r≠s} ⟨g_r, g_s⟩ = ‖Σ g_r‖² − Σ ‖g_r‖²`, so
    that only two sums are kept. μ is the ratio of sums over draws of θ.

    Args:
      apply_fn: parameters and inputs to logits.
      params: θ, chosen without looking at x.
      x: inputs `[N, ...]`, all of which count; the last N mod n are left out.
      labels: `[N]` integers.
      num_examples: n, the number of examples of a block; static.
      loss_fn: logits and labels to a loss per example.
      chunk_size: number of examples of a block at once, which bounds the memory; None: all.

    Raises:
      ValueError: if there are fewer than two blocks.

    Examples:
      >>> x, labels = jnp.eye(4), jnp.array([0, 1, 0, 1])
      >>> terms = meeting.block_terms(
      ...     lambda w, x: x @ w, jnp.zeros((4, 2)), x, labels, num_examples=2)
      >>> print(terms)  # inputs that share nothing: neither do gradients
      BlockTerms(numerator=Array(0., dtype=float32), denominator=Array(0.25, dtype=float32))
    """
    num_blocks = x.shape[0] // num_examples if num_examples > 0 else 0
    if num_blocks < 2:
        raise ValueError(f"{x.shape[0]} examples make no two blocks of num_examples={num_examples}")

    def sums(x, labels, mask):
        def total(params):
            return jnp.where(mask, loss_fn(apply_fn(params, x), labels), 0).sum()

        return jax.grad(total)(params)

    def add(total, block):
        whole_block = jnp.ones(num_examples, bool)
        gradient = losses.chunked_sum(sums, block, whole_block, chunk_size=chunk_size)
        gradient = optax.tree.scale(1 / num_examples, gradient)
        square = jnp.asarray(optax.tree.vdot(gradient, gradient))
        return jax.tree.map(jnp.add, total, gradient), square

    blocks = [
        a[: num_blocks * num_examples].reshape(num_blocks, num_examples, *a.shape[1:])
        for a in (x, labels)
    ]
    total, squares = lax.scan(add, optax.tree.zeros_like(params), blocks)
    whole = jnp.asarray(optax.tree.vdot(total, total))
    return BlockTerms(signals.unbiased_signal(num_blocks, whole, squares.sum())[0], squares.mean())


def surrogate_terms(surrogates: Array, targets: Array, *, num_surrogates: int) -> SurrogateTerms:
    """Returns the measured μ_x(k) and alignment of blocks of k surrogates and of targets (P4).

    Args:
      surrogates: input gradients `[K, B, ...]` of surrogates; the last K mod k are left out.
      targets: input gradients `[M, B, ...]` of models that are not among the surrogates.
      num_surrogates: k, the number of surrogates of a block; static.

    Raises:
      ValueError: unless 1 <= k <= K.

    Examples:
      >>> surrogates, target = jnp.array([[[1.0, 1.0]], [[1.0, -1.0]]]), jnp.array([[[1.0, 0.0]]])
      >>> single = meeting.surrogate_terms(surrogates, target, num_surrogates=1)
      >>> double = meeting.surrogate_terms(surrogates, target, num_surrogates=2)
      >>> print(single.coefficient, double.coefficient)
      0.5 1.0
    """
    if not 1 <= num_surrogates <= surrogates.shape[0]:
        raise ValueError(
            f"num_surrogates must lie in [1, {surrogates.shape[0]}], got {num_surrogates}"
        )
    num_blocks = surrogates.shape[0] // num_surrogates
    used = surrogates[: num_blocks * num_surrogates]
    means = used.reshape(num_blocks, num_surrogates, -1).mean(1)
    vectors = targets.reshape(targets.shape[0], -1)
    products = jnp.matmul(vectors, means.mean(0), precision="highest")
    squares = (vectors**2).sum(1)
    surrogate = (means**2).sum(1).mean()
    alignment = products.mean() / jnp.sqrt(surrogate * squares.mean())
    return SurrogateTerms(products, surrogate, squares, products.mean() / surrogate, alignment)


def memorization(
    own_own: Array, own_other: Array, trace_cov: Array, *, num_examples: int
) -> Memorization:
    """Returns κ = 1 − n (E‖g_A‖² − E⟨g_A, g_B⟩) / tr Cov(g) at one step of training on A (P3).

    κ is 0 in expectation where θ depends on neither half, as with fresh data, and 1 where g_A = 0.
    It is a rate, not a size, and has no bounds.

    Args:
      own_own: `[P]`, ‖g_A‖² of each pair, as in `populations.gradient_products`.
      own_other: `[P]`, ⟨g_A, g_B⟩ of each pair.
      trace_cov: `[P]`, tr Cov(g) at the same θ: `meeting.noise_scale(...).noise` on S.
      num_examples: n, the number of examples of A.

    Examples:
      >>> own_own, own_other = jnp.array([3.0, 2.5]), jnp.array([1.0, 1.5])
      >>> kappa = meeting.memorization(own_own, own_other, jnp.array([30.0, 30.0]), num_examples=10)
      >>> print(kappa.estimate, kappa.numerators)
      0.5 [10. 20.]
    """
    chex.assert_rank([own_own, own_other, trace_cov], 1)  # steps are not pooled
    numerators = trace_cov - num_examples * (own_own - own_other)
    return Memorization(numerators.sum() / trace_cov.sum(), numerators, trace_cov)


def gap_rate(
    kappa: Array, trace_cov: Array, *, num_examples: int, learning_rate: Array | float
) -> Array:
    """Returns η (1 − κ) tr Cov(g) / n, what a full-batch step −η g_A adds to the expected gap (P3).

    It holds to first order in η: the gap grows while little is memorized.

    Args:
      kappa: the memorization κ.
      trace_cov: tr Cov(g), its mean over the pairs of κ.
      num_examples: n, the number of examples of A.
      learning_rate: η, the learning rate of the step.
    """
    return learning_rate * (1 - kappa) * trace_cov / num_examples
