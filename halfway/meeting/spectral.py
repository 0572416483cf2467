"""The spectral law (P10): what two kernel regressions share, in values and in input gradients.

A kernel has eigenvalues λ_i and eigenfunctions φ_i that are orthonormal under the data, so that a
function is the list of its coefficients, its place in *mode space*. Kernel ridge regression on n
examples learns a share L_i of the target's coefficient on mode i, and adds noise to it. Values
weight modes equally and gradients by their roughness, which is why models that agree transfer less.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.linalg import cho_factor, cho_solve
from jax.typing import ArrayLike

from halfway.meeting.replicates import map_replicates
from halfway.types import Array, Key, is_traced

_CHUNK = 2**22
"""How many numbers of features `simulate_kernel_regression` holds at a time."""
_NUM_BISECTIONS = 64
_NUM_NEWTON_STEPS = 3


class SpectralLaw(NamedTuple):
    """Expectations over two kernel regressions on independent halves of n examples.

    Attributes:
      error: E, the squared error on fresh examples summed over outputs, noise included.
      function_coefficient: μ_f = signal_function / (signal_function + noise_function).
      input_coefficient: μ_J, the same of the input gradients; NaN without weights.
      signal_function: E⟨f_A, f_B⟩.
      noise_function: E‖f_A‖² − E⟨f_A, f_B⟩.
      signal_input: E⟨∂f_A, ∂f_B⟩; NaN without weights.
      noise_input: E‖∂f_A‖² − E⟨∂f_A, ∂f_B⟩; NaN without weights.
      learnabilities: `[K]`, L_i, the share of the target's coefficient on mode i that is learned.
      effective_ridge: ϰ, in the unit of the eigenvalues; modes far above it are learned.
    """

    error: Array
    function_coefficient: Array
    input_coefficient: Array
    signal_function: Array
    noise_function: Array
    signal_input: Array
    noise_input: Array
    learnabilities: Array
    effective_ridge: Array


def spectral_law(
    eigenvalues: ArrayLike,
    coefficients: ArrayLike,
    num_examples: ArrayLike,
    *,
    ridge: ArrayLike = 0.0,
    noise: ArrayLike = 0.0,
    weights: ArrayLike | None = None,
) -> SpectralLaw:
    """Returns how far two kernel ridge regressions on independent halves agree (P10).

    With ϰ ≥ 0 solving `Σ λ_i/(λ_i + ϰ) + δ/ϰ = n` and learnabilities L_i = λ_i/(λ_i + ϰ)

        E = n/(n − Σ L_i²) · (Σ (1 − L_i)² ‖v_i‖² + σ²)
        signal_f = Σ_i L_i² ‖v_i‖²                   noise_f = Σ_i L_i² E/n
        signal_J = Σ_ij W_ij L_i L_j ⟨v_i, v_j⟩      noise_J = Σ_i W_ii L_i² E/n

    and μ = signal / (signal + noise) in both. For δ = 0 and n above the number of positive
    eigenvalues ϰ is 0, and L_i is 1 where λ_i is positive.

    The law is asymptotic in n. From `simulate_kernel_regression` it differs, relatively, by at most
    1.3 % in μ_f and 1.6 % in μ_J (10 % where μ_J is below .1) for 400 Gaussian features with
    eigenvalues that fall as a power, n from 30 to 200, σ² up to 1 and δ up to .01. Fourier modes on
    the circle are further from it: 6 % in μ_f and 37 % in μ_J at n = 20 and 60 with σ² up to .1 and
    δ = .01; with σ² = 1 up to 20 % in μ_f, and with δ = .001 up to 65 % in μ_J.

    The learning curve is that of Canatar, Bordelon and Pehlevan, *Spectral bias and task-model
    alignment* (2021), and Simon et al., *The eigenlearning framework* (2023).

    Works under `jit` and `grad` of any order, and under `vmap` over any argument.

    Args:
      eigenvalues: λ `[K]` ≥ 0, in any unit and any order.
      coefficients: v, those of the target on the eigenfunctions: `[K]`, or `[K, C]` for C outputs.
      num_examples: n ≥ 1, the number of examples of each half, a scalar.
      ridge: δ ≥ 0, what is added to the kernel matrix's diagonal, in the unit of the eigenvalues.
      noise: σ² ≥ 0, the variance of the noise of the labels, summed over outputs.
      weights: W_ij = E⟨∇φ_i, ∇φ_j⟩, the modes' roughness: its diagonal `[K]` where the gradients of
        different modes are uncorrelated (Fourier modes: k²), otherwise all of it, `[K, K]`.

    Returns:
      Scalars, and learnabilities `[K]`. A coefficient is NaN where signal and noise are 0; all are
      NaN where n is the number of positive eigenvalues, δ = 0, and arguments are traced.

    Raises:
      ValueError: if an argument is out of range, or δ = 0 and n is the number of positive
        eigenvalues, where the error is infinite; only where arguments are not traced. If shapes do
        not fit.

    Examples:
      >>> modes = jnp.ones(10)
      >>> law = meeting.spectral_law(modes, modes, 30, noise=4.0, weights=modes)
      >>> print(law.function_coefficient, law.effective_ridge)  # equal modes: as for P7
      0.8333333 0.0
    """
    _check(eigenvalues, coefficients, num_examples, ridge, noise, weights)
    lam, v, n, ridge, noise = map(
        jnp.asarray, (eigenvalues, coefficients, num_examples, ridge, noise)
    )
    dtype = jnp.promote_types(jnp.result_type(lam, v, ridge, noise), jnp.float32)
    lam, v, n, ridge, noise = (array.astype(dtype) for array in (lam, v, n, ridge, noise))

    # The law knows no unit. In that of the largest number nothing overflows.
    unit = lax.stop_gradient(jnp.maximum(lam.max(initial=0.0), ridge))
    unit = jnp.where(unit > 0, unit, 1)
    lam, ridge = lam / unit, ridge / unit
    kappa = _effective_ridge(lam, n, ridge)
    rank = (lam > 0).sum()
    # A factor, not a `where` around the results: derivatives are NaN too.
    defined = jnp.where((ridge == 0) & (n == rank), jnp.nan, 1).astype(dtype)

    v = v.reshape(lam.shape[0], -1)
    squares = jnp.sum(v**2, 1)
    learned = _learnabilities(lam, kappa)
    missed = _learnabilities(kappa, lam) + (lam + kappa == 0)  # 1 − L, in all digits
    # n − Σ L², by the equation of ϰ without its cancellation.
    is_free = kappa > 0
    spread = ridge / jnp.where(is_free, kappa, 1) + jnp.sum(learned * missed)
    freedom = jnp.where(is_free, spread, n - jnp.sum(learned**2))
    bias = jnp.sum(missed**2 * squares)
    error = defined * n / jnp.where(freedom == 0, 1, freedom) * (bias + noise)

    signal_function = defined * jnp.sum(learned**2 * squares)
    noise_function = jnp.sum(learned**2) * error / n
    if weights is None:
        signal_input = noise_input = jnp.full_like(error, jnp.nan)
    else:
        w = jnp.asarray(weights, dtype)
        mean = learned[:, None] * v
        signal_input = defined * _inner(w, mean, mean)
        noise_input = jnp.sum((w if w.ndim == 1 else jnp.diagonal(w)) * learned**2) * error / n
    return SpectralLaw(
        error=error,
        function_coefficient=_share(signal_function, noise_function),
        input_coefficient=_share(signal_input, noise_input),
        signal_function=signal_function,
        noise_function=noise_function,
        signal_input=signal_input,
        noise_input=noise_input,
        learnabilities=defined * learned,
        effective_ridge=defined * kappa * unit,
    )


def _learnabilities(eigenvalues: Array, kappa: Array) -> Array:
    """Returns λ/(λ + ϰ) `[K]`, 0 where both are 0."""
    total = eigenvalues + kappa
    return eigenvalues / jnp.where(total > 0, total, jnp.inf)


def _effective_ridge(eigenvalues: Array, n: Array, ridge: Array) -> Array:
    """Returns ϰ for eigenvalues and ridge of at most 1; 0 where nothing is left to learn.

    The equation times ϰ, `ϰ (Σ L_i − n) + δ = 0`, has its root, and the root its derivatives by the
    implicit function theorem, at ϰ = 0 too. It falls there with the slope −(n − Σ L_i²).
    """
    is_positive = eigenvalues > 0
    rank = is_positive.sum()
    has_root = (ridge > 0) | (n < rank)

    def excess(kappa):
        return kappa * (jnp.sum(_learnabilities(eigenvalues, kappa)) - n) + ridge

    def solve(excess, _):
        # From Σ L ≥ r λ_min/(λ_min + ϰ), from δ/ϰ ≤ n, and from L ≤ λ/ϰ.
        smallest = jnp.min(jnp.where(is_positive, eigenvalues, jnp.inf), initial=jnp.inf)
        spare = jnp.where(n < rank, smallest * (rank / n - 1), 0)
        low = jnp.maximum(ridge / n, spare)
        high = (jnp.sum(eigenvalues) + ridge) / n
        bracket = (jnp.log(jnp.where(has_root, end, 1)) for end in (low, high))

        def halve(_, ends):
            low, high = ends
            middle = (low + high) / 2
            above = excess(jnp.exp(middle)) > 0
            return jnp.where(above, middle, low), jnp.where(above, high, middle)

        low, high = lax.fori_loop(0, _NUM_BISECTIONS, halve, tuple(bracket))

        # ϰ has more digits than its logarithm.
        def step(_, kappa):
            learned = _learnabilities(eigenvalues, kappa)
            slope = ridge / kappa + jnp.sum(learned * (1 - learned))
            return kappa + excess(kappa) / jnp.where(slope > 0, slope, jnp.inf)

        kappa = lax.fori_loop(0, _NUM_NEWTON_STEPS, step, jnp.exp((low + high) / 2))
        return jnp.where(has_root, kappa, 0)

    return lax.custom_root(
        excess, jnp.ones_like(n), solve, lambda slope_fn, y: y / slope_fn(jnp.ones_like(y))
    )


def _inner(weights: Array | None, left: Array, right: Array) -> Array:
    """Returns Σ_ij W_ij ⟨a_i, b_j⟩ of coefficients `[K, C]`; W is 1 where it is None."""
    if weights is not None:
        is_diagonal = weights.ndim == 1
        right = weights[:, None] * right if is_diagonal else _product(weights, right)
    return jnp.sum(left * right)


def _product(left: Array, right: Array) -> Array:
    """Returns a matrix product in all digits, not the 10 bits of tensor cores."""
    return jnp.matmul(left, right, precision="highest")


def _share(signal: Array, noise: Array) -> Array:
    """Returns signal / (signal + noise), NaN where both are 0."""
    total = signal + noise
    return jnp.where(total == 0, jnp.nan, signal / jnp.where(total == 0, 1, total))


def _check(
    eigenvalues: ArrayLike,
    coefficients: ArrayLike,
    num_examples: ArrayLike,
    ridge: ArrayLike,
    noise: ArrayLike,
    weights: ArrayLike | None,
) -> None:
    """Checks shapes, and ranges of what is not traced."""
    _check_modes(eigenvalues, coefficients, weights)
    sizes = {"num_examples": num_examples, "ridge": ridge, "noise": noise}
    for name, size in sizes.items():
        if np.ndim(size):
            raise ValueError(f"{name} must be a scalar, got shape {np.shape(size)}: use jax.vmap")
    _check_sizes(num_examples, ridge, noise)
    if any(map(is_traced, (eigenvalues, num_examples, ridge))):
        return
    rank = np.count_nonzero(np.asarray(eigenvalues))
    if np.asarray(ridge) == 0 and np.asarray(num_examples) == rank:
        raise ValueError(
            f"num_examples must not be the number of positive eigenvalues, {rank}, without ridge: "
            "the error is infinite; give a ridge above 0"
        )


def _check_modes(
    eigenvalues: ArrayLike, coefficients: ArrayLike, weights: ArrayLike | None
) -> None:
    """Checks the shapes of a spectrum, and that eigenvalues are at least 0 unless traced."""
    if np.ndim(eigenvalues) != 1 or not np.size(eigenvalues):
        raise ValueError(f"eigenvalues must have shape [K], got {np.shape(eigenvalues)}")
    (size,) = np.shape(eigenvalues)
    if np.ndim(coefficients) not in (1, 2) or np.shape(coefficients)[0] != size:
        raise ValueError(
            f"coefficients must have shape [{size}] or [{size}, C] as there are {size} "
            f"eigenvalues, got {np.shape(coefficients)}"
        )
    if weights is not None and np.shape(weights) not in ((size,), (size, size)):
        raise ValueError(
            f"weights must have shape [{size}] or [{size}, {size}] as there are {size} "
            f"eigenvalues, got {np.shape(weights)}"
        )
    if not is_traced(eigenvalues):
        values = np.asarray(eigenvalues)
        if np.any(wrong := ~(np.isfinite(values) & (values >= 0))):
            raise ValueError(
                f"eigenvalues must be finite and at least 0, got {values[wrong][0]}: set those "
                "that rounding made negative to 0"
            )


def _check_sizes(num_examples: ArrayLike, ridge: ArrayLike, noise: ArrayLike) -> None:
    """Checks that n is at least 1, and δ and σ² finite and at least 0, unless traced."""
    if not is_traced(num_examples) and not np.asarray(num_examples) >= 1:
        raise ValueError(f"num_examples must be at least 1, got {num_examples}")
    for name, size in (("ridge", ridge), ("noise", noise)):
        if not is_traced(size) and not 0 <= np.asarray(size) < np.inf:
            raise ValueError(f"{name} must be finite and at least 0, got {size}")


def label_noise_terms(
    coefficients: ArrayLike, noise_rate: ArrayLike, num_classes: int
) -> tuple[Array, Array]:
    """Returns (coefficients, noise) of one-hot targets whose labels are noisy at rate ρ (P10).

    A label is replaced, with probability ρ, by a uniform draw over all C classes. The mean of the
    noisy one-hot target, centred over classes, is (1 − ρ) times the clean one, and its variance
    summed over classes `(1 − 1/C)(1 − (1 − ρ)²)`, whatever the class.

    Args:
      coefficients: v `[K, C]`, those of the clean one-hot target minus 1/C on the eigenfunctions.
      noise_rate: ρ in [0, 1]; broadcasts against the coefficients.
      num_classes: C, the number of classes.

    Returns:
      (1 − ρ) v `[K, C]` and σ², of the shape of ρ: `coefficients` and `noise` of `spectral_law`.

    Raises:
      ValueError: if `noise_rate` is outside [0, 1], unless traced, or `num_classes` below 2.

    Examples:
      >>> coefficients, noise = meeting.label_noise_terms(jnp.ones((3, 2)), 0.5, 2)
      >>> print(coefficients[0], noise)
      [0.5 0.5] 0.375
    """
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes}")
    if not is_traced(noise_rate):
        rates = np.asarray(noise_rate)
        if np.any(wrong := ~((rates >= 0) & (rates <= 1))):
            raise ValueError(f"noise_rate must be in [0, 1], got {rates[wrong][0]}")
    kept = 1 - jnp.asarray(noise_rate)
    return kept * jnp.asarray(coefficients), (1 - 1 / num_classes) * (1 - kept**2)


class KernelSimulation(NamedTuple):
    """A simulation of kernel ridge regression; R replicates of two independent halves.

    The means over replicates are what `SpectralLaw` predicts, where a norm is signal plus noise. A
    coefficient is a ratio of means, `signal.mean() / norm.mean()`.

    Attributes:
      error: `[R]`, ½(‖f_A − f*‖² + ‖f_B − f*‖²) + σ², over the data's distribution.
      signal_function: `[R]`, ⟨f_A, f_B⟩.
      norm_function: `[R]`, ½(‖f_A‖² + ‖f_B‖²).
      signal_input: `[R]`, ⟨∂f_A, ∂f_B⟩; NaN without weights.
      norm_input: `[R]`, ½(‖∂f_A‖² + ‖∂f_B‖²); NaN without weights.
    """

    error: Array
    signal_function: Array
    norm_function: Array
    signal_input: Array
    norm_input: Array


def simulate_kernel_regression(
    features_fn: Callable[[Key, int], Array],
    key: Key,
    eigenvalues: ArrayLike,
    coefficients: ArrayLike,
    *,
    num_examples: int,
    num_replicates: int,
    ridge: ArrayLike = 0.0,
    noise: ArrayLike = 0.0,
    weights: ArrayLike | None = None,
) -> KernelSimulation:
    """Returns the quantities of P10, measured on replicates of two independent halves.

    With features Φ of n examples, y = Φ v + noise and kernel matrix Φ Λ Φᵀ, the predictor's
    coefficients are `Λ Φᵀ (Φ Λ Φᵀ + δ I)⁻¹ y`. Inner products of functions are those of their
    coefficients, so no test examples are needed. The noise is Gaussian, σ²/C in each output.

    It is solved by Cholesky factors of the smaller Gram matrix with one step of refinement. Without
    ridge that matrix must be well conditioned: with float32, eigenvalues that fall as a power.

    Args:
      features_fn: a key and a number N to the eigenfunctions `[N, K]` at N new examples, such as
        `gaussian_features` or `fourier_features`.
      key: a PRNG key, which is consumed.
      eigenvalues: λ `[K]` ≥ 0.
      coefficients: v `[K]` or `[K, C]`.
      num_examples: n, the number of examples of each half; static.
      num_replicates: R, the number of replicates; static.
      ridge: δ ≥ 0, a scalar.
      noise: σ² ≥ 0, the variance of the noise, summed over outputs, a scalar.
      weights: W, its diagonal `[K]` or all of it, `[K, K]`.

    Raises:
      ValueError: if an argument is out of range, or shapes do not fit.

    Examples:
      >>> spectrum = 1 / jnp.arange(1.0, 51) ** 1.5
      >>> features = functools.partial(meeting.gaussian_features, num_modes=50)
      >>> options = {"num_examples": 20, "noise": 0.1}
      >>> measured = meeting.simulate_kernel_regression(
      ...     features, jax.random.key(0), spectrum, spectrum, num_replicates=500, **options)
      >>> predicted = meeting.spectral_law(spectrum, spectrum, **options).function_coefficient
      >>> mean = measured.signal_function.mean() / measured.norm_function.mean()
      >>> f"{mean:.1f} {predicted:.1f}"
      '0.9 0.9'
    """
    if num_replicates < 1:
        raise ValueError(f"num_replicates must be at least 1, got {num_replicates}")
    _check_modes(eigenvalues, coefficients, weights)
    _check_sizes(num_examples, ridge, noise)
    eigenvalues = jnp.asarray(eigenvalues)
    num_modes = eigenvalues.shape[0]
    target = jnp.asarray(coefficients, eigenvalues.dtype).reshape(num_modes, -1)
    weights = None if weights is None else jnp.asarray(weights, eigenvalues.dtype)
    scale = jnp.sqrt(jnp.asarray(noise) / target.shape[1]).astype(eigenvalues.dtype)
    roots = jnp.sqrt(eigenvalues)

    def fit(key):
        x_key, noise_key = jax.random.split(key)
        features = features_fn(x_key, num_examples).astype(eigenvalues.dtype)
        shape = (num_examples, target.shape[1])
        y = features @ target + scale * jax.random.normal(noise_key, shape, eigenvalues.dtype)
        return roots[:, None] * _ridge_fit(features * roots[None], y, jnp.asarray(ridge))

    def replicate(key):
        a, b = jax.vmap(fit)(jax.random.split(key))

        def products(weights):
            norm = (_inner(weights, a, a) + _inner(weights, b, b)) / 2
            return _inner(weights, a, b), norm

        signal, norm = products(None)
        undefined = jnp.full_like(signal, jnp.nan)
        signal_input, norm_input = (undefined,) * 2 if weights is None else products(weights)
        error = (jnp.sum((a - target) ** 2) + jnp.sum((b - target) ** 2)) / 2 + noise
        return KernelSimulation(error, signal, norm, signal_input, norm_input)

    chunk = max(1, min(num_replicates, _CHUNK // (2 * num_examples * num_modes)))
    keys = jax.random.split(key, num_replicates)
    # Not the tensor cores' 10 bits, which JAX takes for products of float32 on some devices.
    with jax.default_matmul_precision("highest"):
        return map_replicates(replicate, keys, at_once=chunk)


def _ridge_fit(x: Array, y: Array, ridge: Array) -> Array:
    """Returns the ridge solution `[K, C]` of x `[N, K]` and y `[N, C]`, at ridge 0 the shortest."""
    is_tall = x.shape[0] >= x.shape[1]
    gram = x.T @ x if is_tall else x @ x.T
    factor = cho_factor(gram + ridge * jnp.eye(gram.shape[0], dtype=gram.dtype), lower=True)
    if is_tall:
        solution = cho_solve(factor, x.T @ y)
        return solution + cho_solve(factor, x.T @ (y - x @ solution) - ridge * solution)
    dual = cho_solve(factor, y)
    return x.T @ (dual + cho_solve(factor, y - x @ (x.T @ dual) - ridge * dual))


def gaussian_features(key: Key, num_examples: int, num_modes: int) -> Array:
    """Returns eigenfunctions `[N, K]` that are independent standard normal numbers.

    They are the coordinates of x ~ N(0, diag λ), each over its standard deviation, with the linear
    kernel ⟨x, x'⟩. So W is diagonal with W_ii = 1/λ_i; other weights stand for other notions of
    roughness.

    Args:
      key: a PRNG key, which is consumed.
      num_examples: N, the number of examples.
      num_modes: K, the number of modes.

    Examples:
      >>> meeting.gaussian_features(jax.random.key(0), 5, 3).shape
      (5, 3)
    """
    return jax.random.normal(key, (num_examples, num_modes))


def fourier_features(key: Key, num_examples: int, num_modes: int) -> Array:
    """Returns Fourier modes `[N, K]` at points of the circle that are drawn uniformly.

    They are 1, √2 cos x, √2 sin x, √2 cos 2x, √2 sin 2x, ... with x in [0, 2π). W is diagonal,
    W_ii = k² with the frequencies k of `fourier_frequencies`.

    Args:
      key: a PRNG key, which is consumed.
      num_examples: N, the number of examples.
      num_modes: K, the number of modes.

    Examples:
      >>> meeting.fourier_features(jax.random.key(0), 5, 3).shape
      (5, 3)
    """
    return fourier_modes(jax.random.uniform(key, (num_examples,), maxval=2 * jnp.pi), num_modes)


def fourier_modes(x: ArrayLike, num_modes: int) -> Array:
    """Returns Fourier modes `[N, K]` at given points of the circle.

    Args:
      x: `[N]`, angles.
      num_modes: K, the number of modes.

    Examples:
      >>> print(meeting.fourier_modes(jnp.zeros(1), 3))
      [[1.        1.4142135 0.       ]]
    """
    frequencies = fourier_frequencies(num_modes)
    angles = jnp.asarray(x)[:, None] * frequencies[None]
    is_cosine = jnp.arange(num_modes) % 2 == 1
    waves = jnp.where(is_cosine[None], jnp.cos(angles), jnp.sin(angles))
    return jnp.where(frequencies[None] == 0, 1, jnp.sqrt(2.0) * waves)


def fourier_frequencies(num_modes: int) -> Array:
    """Returns the frequency k of each Fourier mode `[K]`: 0, 1, 1, 2, 2, ...

    Args:
      num_modes: K, the number of modes.

    Examples:
      >>> print(meeting.fourier_frequencies(5))
      [0. 1. 1. 2. 2.]
    """
    return jnp.ceil(jnp.arange(num_modes) / 2)
