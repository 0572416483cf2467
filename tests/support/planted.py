"""Linear regression, whose signal and noise have closed forms.

x ~ N(0, I_d), y = ⟨w*, x⟩ + σξ and half the squared error: with δ = w − w* the gradients have
E g = δ and tr Cov(g) = (d + 1)‖δ‖² + dσ².
"""

import jax
import jax.numpy as jnp
import numpy as np

DIM, SIGMA = 5, 0.7
DELTA = jnp.array([0.5, -0.3, 0.0, 0.8, 0.2])
SIGNAL = float(DELTA @ DELTA)
NOISE = (DIM + 1) * SIGNAL + DIM * SIGMA**2


def apply_linear(w, x):
    return (x @ w)[:, None]


def square(z, y):
    return 0.5 * (z[:, 0] - y) ** 2


def draw(key, size):
    """Inputs and targets of w* = 0, so that a model's weights are δ."""
    key_x, key_y = jax.random.split(key)
    return jax.random.normal(key_x, (size, DIM)), SIGMA * jax.random.normal(key_y, (size,))


def z_score(values, expected):
    values = np.asarray(values, np.float64)
    return (values.mean() - expected) / (values.std(ddof=1) / np.sqrt(len(values)))
