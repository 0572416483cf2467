"""The grid of interventions: one base condition, and what changes one factor of it.

G3, T3 and T12 read it, and the figure of the law. Interventions are designed: they are no sample,
and no test resamples or permutes them.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from scipy import special

from halfway import attacks, landscapes, losses, meeting, populations
from halfway.keys import named_key
from halfway.lab.config.settings import RunConfig
from halfway.lab.measurements.context import Context, Pair, Program, Shared
from halfway.lab.study.conditions import condition
from halfway.lab.study.records import Measurement
from halfway.populations import Condition
from halfway.types import Array, Key, Params, Sample

FACTORS = (
    "n",
    "ρ",
    "training length",
    "width",
    "depth",
    "weight decay",
    "learning rate",
    "batch",
    "optimizer",
    "activation",
    "architecture",
    "shared data",
    "start",
)
"""What interventions change. The last two move how far two models agree, and leave accuracy, n, ρ
and training as they are."""
AGREEMENT_ONLY = FACTORS[-2:]
SGD_RATE = 0.1
"""Learning rate of SGD: chosen once on digits so that ρ = 0 is fitted, from training accuracy."""
EARLY = 20
"""The step at which coherence is measured."""
CLIPPED = (0.005, 0.995)
"""Where shares are clipped before a logit."""
NO_CHANGE = "no change"
"""The rival of every prediction over the grid: each intervention leaves what its base has."""
MLP, CNN = "mlp", "cnn"
"""Bases by architecture."""


def clipped_logit(shares: np.ndarray) -> np.ndarray:
    """Returns the logits of shares, which are clipped first so that each is finite.

    Args:
      shares: of any shape.
    """
    return special.logit(np.clip(shares, *CLIPPED))


class Intervention(NamedTuple):
    """A condition that differs from its base in one factor.

    Attributes:
      name: what is changed, e.g. "n ÷4"; unique.
      factor: of `FACTORS`.
      base: the architecture whose base it is compared with where a study compares within one.
      condition: the changed condition.
      is_fitted: whether lines from which n or ρ is predicted are fitted to it.
    """

    name: str
    factor: str
    base: str
    condition: Condition
    is_fitted: bool = True


class Grid(NamedTuple):
    """The base of each architecture, and all interventions.

    Attributes:
      bases: by architecture.
      interventions: in the order of `FACTORS`.
    """

    bases: Mapping[str, Condition]
    interventions: tuple[Intervention, ...]

    @property
    def conditions(self) -> list[Condition]:
        """All conditions, the MLP's base first; the CNN's base is an intervention."""
        return [self.bases[MLP], *(changed.condition for changed in self.interventions)]

    @property
    def factors(self) -> np.ndarray:
        """The factor of each intervention, as text."""
        return np.array([changed.factor for changed in self.interventions])


def design(config: RunConfig) -> Grid:
    """Returns the grid of a config: 28 interventions on 13 factors.

    The base is the config's first MLP with the config's n and training at ρ = 0; the CNN is the
    config's first, or that of digits.

    Args:
      config: of the run.

    Raises:
      ValueError: if no architecture of the config is an MLP with a hidden layer.
    """
    mlp_name, cnn_name = (_first(config, kind) for kind in (MLP, CNN))
    if mlp_name is None:
        raise ValueError(
            "the grid of G3, T3 and T12 is of MLPs: config.models must have one with a hidden layer"
        )
    mlp = condition(config, mlp_name)
    cnn = (
        dataclasses.replace(mlp, architecture=CNN, model=_CNN)
        if cnn_name is None
        else condition(config, cnn_name)
    )
    num_examples, last = mlp.num_examples, mlp.probe_steps[-1]
    widths = dict(mlp.model)["widths"]

    def sized(base: Condition, share: float, **fields: Any) -> Condition:
        number = max(1, round(share * num_examples))
        return dataclasses.replace(base, num_examples=number, capacity=num_examples, **fields)

    def trained(base: Condition, num_steps: int) -> Condition:
        steps = [step for step in base.probe_steps if step < num_steps]
        return dataclasses.replace(base, probe_steps=(*steps, num_steps))

    def built(name: str, **fields: Any) -> Condition:
        model = dict(mlp.model) | fields
        return dataclasses.replace(mlp, architecture=f"{mlp.architecture} {name}", model=model)

    def scaled(factor: float) -> tuple[int, ...]:
        return tuple(max(1, round(factor * width)) for width in widths)

    replaced = dataclasses.replace
    linear = replaced(mlp, architecture="linear", model={"kind": "linear"})
    listed = [
        ("n ÷4", "n", MLP, sized(mlp, 1 / 4)),
        ("n ÷2", "n", MLP, sized(mlp, 1 / 2)),
        ("CNN, n ÷4", "n", CNN, sized(cnn, 1 / 4)),
        *((f"ρ = {rate:g}", "ρ", MLP, replaced(mlp, noise_rate=rate)) for rate in (0.2, 0.4, 0.8)),
        *((f"CNN, ρ = {rate:g}", "ρ", CNN, replaced(cnn, noise_rate=rate)) for rate in (0.2, 0.4)),
        ("n ÷4, ρ = 0.4", "ρ", MLP, sized(mlp, 1 / 4, noise_rate=0.4)),
        ("50 steps", "training length", MLP, trained(mlp, 50)),
        ("150 steps", "training length", MLP, trained(mlp, 150)),
        ("steps ×4", "training length", MLP, trained(mlp, 4 * last)),
        ("CNN, 150 steps", "training length", CNN, trained(cnn, 150)),
        ("width ÷8", "width", MLP, built("÷8 wide", widths=scaled(1 / 8))),
        ("width ×4", "width", MLP, built("×4 wide", widths=scaled(4))),
        ("depth 4", "depth", MLP, built("of depth 4", widths=(widths[0],) * 4)),
        ("weight decay", "weight decay", MLP, replaced(mlp, weight_decay=1.0)),
        ("CNN, weight decay", "weight decay", CNN, replaced(cnn, weight_decay=1.0)),
        (
            "learning rate ÷8",
            "learning rate",
            MLP,
            replaced(mlp, learning_rate=mlp.learning_rate / 8),
        ),
        ("batch 16", "batch", MLP, replaced(mlp, batch_size=16)),
        ("SGD", "optimizer", MLP, replaced(mlp, optimizer="sgd", learning_rate=SGD_RATE)),
        ("tanh", "activation", MLP, built("of tanh", activation="tanh")),
        ("linear", "architecture", MLP, linear),
        ("CNN", "architecture", MLP, cnn),
        ("overlap ½", "shared data", MLP, replaced(mlp, overlap=0.5)),
        ("overlap 1", "shared data", MLP, replaced(mlp, overlap=1.0)),
        ("n ÷4, overlap 1", "shared data", MLP, sized(mlp, 1 / 4, overlap=1.0)),
        ("one start", "start", MLP, replaced(mlp, shared_start=True)),
    ]
    changed = tuple(
        Intervention(name, factor, base, made, is_fitted=name != "n ÷4, ρ = 0.4")
        for name, factor, base, made in listed
    )
    return Grid({MLP: mlp, CNN: cnn}, changed)


_CNN = {"kind": "cnn", "features": (16, 32), "stride": 2, "widths": (64,)}


def _first(config: RunConfig, kind: str) -> str | None:
    """Returns the name of the config's first model of a kind, an MLP with a hidden layer."""
    for name, model in config.models.items():
        if model["kind"] == kind and (kind != MLP or model.get("widths")):
            return name
    return None


RIVALS = {
    "parameter_norm": "parameter norm",
    "distance": "distance from initialization",
    "log_frobenius_product": "product of Frobenius norms",
    "log_spectral_product": "product of spectral norms",
    "early_loss": "training loss at step 20",
    "path_norm": "path norm",
    "margin": "margin, lower tenth",
    "margin_over_norms": "margin over spectral norms",
    "gradient_norm": "gradient norm",
    "sharpness": "sharpness, largest curvature",
    "worst_case": "sharpness, worst case nearby",
    "flatness": "PAC-Bayes flatness",
}
"""Measures of a trained model, or of its early training, that are said to predict its gap."""
_RADIUS = 0.05
"""Of the ball of `worst_case`, as a share of ‖θ‖."""


def _early(
    program: Condition, key: Key, params: Params, samples: Mapping[str, Sample], images: Array
) -> dict[str, Any]:
    """Returns tr Cov(g), ‖g_A‖² and the loss of the own half, and the parameters; a `Probe`."""
    del key
    half = samples["own"]
    x = images[half.indices]
    scale = meeting.noise_scale(program.apply_fn, params, x, half.labels, half.mask)
    means, gradient = populations.losses_and_gradient(program.apply_fn, params, images, half)
    return {
        "early_noise": scale.noise,
        "early_square": populations.inner_products(gradient, gradient)["own_own"],
        "early_loss": means["cross_entropy"],
        "params": params,
    }


def _trained(pair: Pair, shared: Shared, program: Program) -> dict[str, Array]:
    """Returns measures `[2]` of both trained models, each inside its own half.

    `pair.extra` are the parameters at step 0 and what each model trained on, leaves `[2, ...]`.
    """
    apply_fn, images = program.apply_fn, shared.images

    def model(key, params, start, half):
        def loss_fn(params):
            losses = populations.landscape_losses(apply_fn, params, images, half)
            return losses["cross_entropy"]

        keys = jax.random.split(key, 3)
        norm = landscapes.parameter_norm(params)
        spectral = landscapes.log_spectral_product(params)
        margin = landscapes.margin_quantile(
            apply_fn(params, images[half.indices]), half.labels, half.mask
        )
        return {
            "parameter_norm": norm,
            "distance": landscapes.parameter_distance(params, start),
            "log_frobenius_product": landscapes.log_frobenius_product(params),
            "log_spectral_product": spectral,
            "path_norm": landscapes.path_norm(apply_fn, params, jnp.ones_like(images[:1])),
            "margin": margin,
            # Of its sign, and monotone in the bound where it is positive.
            "margin_over_norms": margin * jnp.exp(-spectral),
            "gradient_norm": landscapes.parameter_norm(jax.grad(loss_fn)(params)),
            "sharpness": landscapes.sharpness(loss_fn, params, keys[0]),
            "worst_case": landscapes.worst_case_sharpness(
                loss_fn, params, keys[1], radius=_RADIUS * norm, num_steps=10
            ),
            "flatness": landscapes.flatness(loss_fn, params, keys[2]),
        }

    return jax.vmap(model)(jax.random.split(pair.key), pair.params, *pair.extra)


def _measure_complexity(context: Context) -> xr.Dataset:
    """Returns what is told of each model inside its own half.

    `rivals` (pair, model, measure); and `early_noise`, tr Cov(g), and `early_square`, ‖g_A‖² of the
    half's whole gradient (pair, model), at step `EARLY`.
    """
    watched = context.along_training(_early, steps=(0, EARLY))
    start = jax.tree.map(lambda leaf: leaf[:, :, 0], watched.pop("params"))
    trained_on, _ = context.population.samples()
    values = context.over_pairs(_trained, extra=(start, trained_on))
    values |= {name: np.asarray(walk)[..., 1] for name, walk in watched.items()}
    rivals = np.stack([values.pop(name) for name in RIVALS], -1)
    numbers = {name: (("pair", "model"), value) for name, value in values.items()}
    return context.dataset(
        numbers | {"rivals": (("pair", "model", "measure"), rivals)}, measure=list(RIVALS)
    )


COMPLEXITY = Measurement("complexity", _measure_complexity)

TERMS = meeting.FunctionTerms._fields
"""Sums of a pair that coefficients in function space are ratios of."""
SPACES = ("values", "jacobians", "noise images", "input gradients")
"""Where two models are compared: logits on S, their Jacobians, logits on images of uniform noise,
and input gradients of the margin loss on S."""


def _agreement(pair: Pair, shared: Shared, program: Program) -> dict[str, Array]:
    """Returns how far both models agree, and what each model's margins and gradients are.

    `shared.extra` are rows of the pool on which margins are read.
    """
    apply_fn, rows = program.apply_fn, pair.halves.s.indices
    x, labels = shared.images[rows], shared.labels[rows]
    fn_a, fn_b = (
        functools.partial(apply_fn, jax.tree.map(lambda leaf, i=i: leaf[i], pair.params))
        for i in (0, 1)
    )
    noise = jax.random.uniform(pair.key, x.shape, x.dtype)
    logits, on_noise = ((fn_a(points), fn_b(points)) for points in (x, noise))

    def margin_gradient(fn: Any) -> tuple[Array, Array]:
        def total(points):
            values = losses.margin(fn(points), labels)
            return values.sum(), values

        slope, values = jax.grad(total, has_aux=True)(x)
        return values, slope.reshape(len(x), -1)

    (loss_a, slope_a), (loss_b, slope_b) = map(margin_gradient, (fn_a, fn_b))
    terms = [
        meeting.function_terms(*logits),
        meeting.jacobian_coefficient(fn_a, fn_b, x).terms,
        meeting.function_terms(*on_noise),
        meeting.FunctionTerms((slope_a * slope_b).sum(), (slope_a**2).sum(), (slope_b**2).sum()),
    ]
    centred = [z - z.mean(-1, keepdims=True) for z in logits]
    lengths = [jnp.linalg.norm(z, axis=-1) for z in centred]
    cosine = (centred[0] * centred[1]).sum(-1) / (lengths[0] * lengths[1])
    predictions = [z.argmax(-1) for z in logits]
    threat = attacks.linf(shared.epsilon)

    def alignment(attacked: Array, moved: Array) -> Array:
        """Returns the mean of τ over examples where it is defined, see P5."""
        dual = threat.dual_norm(moved)
        score = (threat.steepest(attacked) * moved).sum(-1)
        return losses.masked_mean(score / jnp.where(dual > 0, dual, 1.0), dual > 0)

    size = jnp.stack(
        [
            jnp.abs(slope).sum(-1).mean() / jnp.abs(loss).mean()
            for loss, slope in ((loss_a, slope_a), (loss_b, slope_b))
        ]
    )
    examined = shared.extra

    def margins(fn: Any) -> Array:
        return -losses.margin(fn(shared.images[examined]), shared.labels[examined])

    def unseen(half: Sample) -> Array:
        trained_on = jnp.where(half.mask, half.indices, -1)
        return ~jnp.isin(examined, trained_on)

    return {
        "terms": jnp.stack([jnp.stack(space) for space in terms]),
        "cka": _cka(*centred),
        "cosine": cosine.mean(),
        "agreement": (predictions[0] == predictions[1]).mean(),
        "accuracy": jnp.stack([(p == labels).mean() for p in predictions]),
        "tau": jnp.stack([alignment(slope_a, slope_b), alignment(slope_b, slope_a)]),
        "size": size,
        "margin": jnp.stack([margins(fn) for fn in (fn_a, fn_b)]),
        "unseen": jnp.stack([unseen(half) for half in (pair.halves.a, pair.halves.b)]),
    }


def _cka(a: Array, b: Array) -> Array:
    """Returns linear CKA of two sets of logits `[B, C]`, centred over examples."""
    a, b = (z - z.mean(0, keepdims=True) for z in (a, b))
    return (
        (a.T @ b).ravel()
        @ (a.T @ b).ravel()
        / jnp.sqrt(jnp.square(a.T @ a).sum() * jnp.square(b.T @ b).sum())
    )


def examined_rows(config: RunConfig, num_images: int) -> np.ndarray:
    """Returns the rows of the pool on which margins of all models are read, as many as S has.

    They are the same for every condition, so that a margin's variance over models is that of one
    example. A model that has trained on a row does not count there.

    Args:
      config: of the run.
      num_images: N, the number of images of the pool.
    """
    key = named_key(jax.random.key(config.seed), "examined rows")
    number = min(config.num_holdout, num_images)
    return np.sort(np.asarray(jax.random.choice(key, num_images, (number,), replace=False)))


def _measure_agreement(context: Context) -> xr.Dataset:
    """Returns how far the models of a pair agree on S, labels clean, and what T12 compares.

    `terms` (pair, space, term) are the sums of `SPACES`; `cka`, the mean `cosine` of logits and the
    share `agreement` of equal predictions (pair); `accuracy` (pair, model); `tau` (pair,
    surrogate), the mean of τ on the other model; `size` (pair, model), mean ‖∇ margin‖₁ over mean
    |margin|. Of each of the `examined_rows`, `margin` and whether the model has not seen it,
    `unseen` (pair, model, example).
    """
    rows = examined_rows(context.config, len(context.pool.images))
    arrays = context.over_pairs(_agreement, shared_extra=jnp.asarray(rows))
    dims = {
        "terms": ("pair", "space", "term"),
        "accuracy": ("pair", "model"),
        "size": ("pair", "model"),
        "tau": ("pair", "surrogate"),
    }
    cells = "pair", "model", "example"
    outcomes = {
        "margin": (cells, arrays.pop("margin").astype(np.float32)),
        "unseen": (cells, arrays.pop("unseen")),
    }
    numbers = {name: (dims.get(name, ("pair",)), values) for name, values in arrays.items()}
    return context.dataset(numbers, outcomes, space=SPACES, term=TERMS)


AGREEMENT = Measurement("function_space", _measure_agreement)
