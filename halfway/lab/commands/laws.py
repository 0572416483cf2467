"""Check the laws of the framework and draw them: predicted on one set, measured on another.

The first law (P3) at initialization and after 100 steps, the second (P4) on trained models, the
linear-Gaussian model (P7), with the equivalence tests of the first two. Identities and laws get no
verdict.

Example: halfway laws --config=digits --workdir=runs/laws
"""

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from halfway import losses, meeting, plots, populations, sharding, stats, storage
from halfway.data import Split, synthetic
from halfway.lab.commands import launch, shared
from halfway.lab.config.settings import RunConfig
from halfway.lab.config.user import LOG, UserError
from halfway.lab.report import landscape_page, report
from halfway.lab.report.document import document
from halfway.lab.report.elements import Drawing, Table, figure, table, text
from halfway.lab.runtime import datasets, devices, pipeline, processes
from halfway.lab.study import conditions, rules
from halfway.lab.study.protocol import Figure
from halfway.lab.study.wording import format_estimate, format_p
from halfway.populations import Condition
from halfway.types import Key

FLAGS = flags.FlagValues()
CONFIG = shared.config(FLAGS)
WORKDIR = flags.DEFINE_string("workdir", "runs/laws", "where the page goes", flag_values=FLAGS)
DATA_DIR = shared.data_dir(FLAGS)
PLACE = shared.place(FLAGS)

NUM_THETAS, TRAINED = 320, 100
"""Draws of θ, and the steps of training after which the first law is looked at again."""
SIZES = (5, 20, 80, 320)
SURROGATES = (1, 2, 4, 8, 16)
MARGIN, SMALL, SHARE = 0.03, 0.2, 0.15
"""Agreement: within .03, and within 15 % where the prediction is below .2."""
DIMENSION, NOISE, NUM_REPLICATES = 40, 1.0, 400
SAMPLES = (4, 8, 12, 16, 22, 28, 34, 46, 52, 60, 80, 120, 200, 400, 800)
"""n of the linear-Gaussian settings: n/d from .1 to 20, |n − d| ≥ 6."""


class Checked(NamedTuple):
    """A law at one size: predicted, measured with its interval, and the p-value of agreement."""

    size: int
    predicted: float
    measured: tuple[float, float, float]
    p_value: float


def check(size: int, predicted: float, numerators: np.ndarray, denominators: np.ndarray) -> Checked:
    """Returns the equivalence test (TOST) of a measured ratio of sums with its prediction.

    Args:
      size: n or k.
      predicted: μ by the law.
      numerators: `[P]` of the measured μ.
      denominators: `[P]`.
    """
    margin = SHARE * predicted if predicted < SMALL else MARGIN
    decision = stats.ratio_equivalence(
        numerators, denominators, predicted - margin, predicted + margin
    )
    return Checked(size, predicted, rules.triple(decision), decision.p_value)


def first_law(
    key: Key,
    condition: Condition,
    shape: tuple[int, ...],
    *,
    num_steps: int = 0,
    num_thetas: int = NUM_THETAS,
) -> tuple[float, list[Checked]]:
    """Returns n_half after some steps of training, and the first law (P3) at every size.

    Every θ comes from an initialization and batches of its own and meets further examples of its
    own, all fresh from a Gaussian mixture: signal and noise come from 512, μ from blocks of 1,920
    others. On a finite data set a few blocks of 320 would be all there is, and their chance the
    same for every θ.

    Args:
      key: consumed.
      condition: for its model and its optimizer.
      shape: of an image.
      num_steps: of training, on fresh batches; 0: at initialization.
      num_thetas: draws of θ; trained ones vary more.
    """
    key_law, key_runs = jax.random.split(key)
    law = synthetic.gaussian_mixture(key_law, num_classes=condition.num_classes, shape=shape)
    number = 6 * SIZES[-1]
    optimizer = populations.make_optimizer(condition.optimizer, condition.learning_rate)

    def one(key, law):
        key_init, key_known, key_new, key_walk = jax.random.split(key, 4)
        params = condition.module.init(key_init, jnp.zeros((1, *shape)))["params"]

        def step(index, state):
            batch = law.sample(jax.random.fold_in(key_walk, index), condition.batch_size)
            return populations.train_step(condition.apply_fn, optimizer, state, *batch)

        params = jax.lax.fori_loop(
            0, num_steps, step, populations.init_state(params, optimizer)
        ).params
        scale = meeting.noise_scale(condition.apply_fn, params, *law.sample(key_known, 512))
        images, labels = law.sample(key_new, number)
        terms = [
            meeting.block_terms(condition.apply_fn, params, images, labels, num_examples=n)
            for n in SIZES
        ]
        return scale.signal, scale.noise, terms

    run = sharding.jit(sharding.spread(one, at_once=1))
    signal, noise, terms = run(jax.random.split(key_runs, num_thetas), law)
    n_half = float(noise.mean() / signal.mean())
    found = [
        check(n, float(meeting.first_law(n, n_half)), *(np.asarray(v, np.float64) for v in one))
        for n, one in zip(SIZES, terms, strict=True)
    ]
    return n_half, found


def second_law(condition: Condition, pool: Split) -> tuple[float, list[Checked]]:
    """Returns k_half of trained models, and the second law (P4) at every k; unit: the target.

    48 models θ_A of as many pairs, each trained on its own draw of the pool: 16 estimate k_half, 16
    others are surrogates, 16 further ones targets. Input gradients of margin loss.

    Args:
      condition: of the population; its number of pairs is set here.
      pool: the examples.
    """
    size = max(SURROGATES)
    condition = dataclasses.replace(condition, num_pairs=3 * size)
    population = populations.train(condition, pool)
    number = min(500, len(pool.labels))
    images = jnp.asarray(pool.images[:number], jnp.float32)
    labels = jnp.asarray(pool.labels[:number], jnp.int32)

    def gradient(params, images, labels):
        total = lambda x: losses.margin(condition.apply_fn(params, x), labels).sum()  # noqa: E731
        return jax.grad(total)(images)

    run = sharding.jit(sharding.spread(gradient, at_once=1))
    first = jax.tree.map(lambda leaf: leaf[:, 0], population.params)
    known, surrogates, targets = jnp.split(run(first, images, labels), 3)
    k_half = float(meeting.ensemble_noise(known).k_half)
    found = []
    for k in SURROGATES:
        terms = meeting.surrogate_terms(surrogates, targets, num_surrogates=k)
        products = np.asarray(terms.products, np.float64)
        own = np.full(products.shape, float(terms.surrogate))
        found.append(check(k, float(meeting.second_law(k, k_half)), products, own))
    return k_half, found


def linear_gaussian(key: Key) -> dict[str, np.ndarray]:
    """Returns simulated and exact R/s² and μ_x over n/d on both sides of n = d (P7).

    Args:
      key: consumed.
    """
    risks, measured, exact = [], [], []
    for index, n in enumerate(SAMPLES):
        setting = {"num_examples": n, "dimension": DIMENSION, "signal": 1.0, "noise": NOISE}
        found = meeting.simulate_linear_gaussian(
            jax.random.fold_in(key, index), **setting, num_replicates=NUM_REPLICATES
        )
        values = [np.asarray(v, np.float64) for v in (found.risk, found.overlap, found.norm)]
        risks.append(rules.triple(stats.mean_test(values[0], alternative="greater")))
        measured.append(rules.triple(stats.fieller(values[1], values[2])))
        known = meeting.linear_gaussian(**setting)
        exact.append((float(known.risk), float(known.coefficient)))
    return {
        "ratios": np.array(SAMPLES) / DIMENSION,
        "risks": np.array(risks),
        "measured": np.array(measured),
        "exact": np.array(exact),
    }


def main() -> None:
    """Draws one page of laws."""
    started = time.monotonic()
    file = CONFIG.load()
    devices.start(PLACE.value)
    dataset = datasets.load_for(file.config, DATA_DIR.value)
    pool = dataset.pool(file.config.subset)
    models = _models(file.config)
    pipeline.check_conditions(models.values(), pool)
    layout = devices.lay_out(PLACE.value, models.values(), pool)
    with sharding.use(layout):
        _page(file.config, pool, layout, Path(WORKDIR.value), started)


def _page(
    config: RunConfig, pool: Split, layout: sharding.Layout, folder: Path, started: float
) -> None:
    keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), _SALT), 3)
    every = _models(config)
    first: dict[int, dict[str, tuple[float, list[Checked]]]] = {}
    for steps in (0, TRAINED):
        pipeline.stop_if_asked()
        LOG.info("first law, at %d draws of θ of each architecture, %d steps", NUM_THETAS, steps)
        key = jax.random.fold_in(keys[0], steps)
        shape = tuple(pool.images.shape[1:])
        first[steps] = {
            name: first_law(jax.random.fold_in(key, index), one, shape, num_steps=steps)
            for index, (name, one) in enumerate(every.items())
        }
    pipeline.stop_if_asked()
    LOG.info("second law, %d models", 3 * max(SURROGATES))
    name = config.architectures[0]
    second = {name: second_law(every[name], pool)}
    LOG.info("linear-Gaussian model")
    gaussian = linear_gaussian(keys[2])
    drawn = [
        _law_figure("first_law", "n", first[0], meeting.first_law),
        _law_figure("first_law_trained", "n", first[TRAINED], meeting.first_law),
        _law_figure("second_law", "k", second, meeting.second_law),
        _gaussian_figure(gaussian),
    ]
    tables = [
        _law_table("First law (P3), at initialization", "n", first[0]),
        _law_table(f"First law (P3), after {TRAINED} steps", "n", first[TRAINED]),
        _law_table("Second law (P4)", "k", second),
        _gaussian_table(gaussian),
    ]
    lead = (
        f"First law on a Gaussian mixture, second on {config.dataset}; {', '.join(every)}; "
        f"{time.monotonic() - started:.0f} s on "
        f"{layout.mesh.size} devices. Estimated on one set of examples or models, "
        "measured on another: on the same set agreement would be arithmetic."
    )
    command = launch.command_line()
    processes.shared(lambda: _write(folder, lead, drawn, tables, command))
    if processes.is_first():
        for one in tables:
            print(f"{one.title}\n{landscape_page.as_text(one)}\n")
        print(folder / "laws.html")


def _models(config: RunConfig) -> dict[str, Condition]:
    return {name: conditions.condition(config, name) for name in config.architectures}


_SALT = 11
"""Folded into a run's key, which no measurement shares."""


def _law_figure(
    name: str, symbol: str, found: Mapping[str, tuple[float, list[Checked]]], law: Any
) -> Figure:
    sizes = [one.size for one in next(iter(found.values()))[1]]
    grid = np.geomspace(sizes[0] / 1.5, sizes[-1] * 1.5, 100)
    axes = plots.law(
        sizes,
        {n: [one.measured for one in checked] for n, (_, checked) in found.items()},
        {n: (grid, np.asarray(law(grid, half))) for n, (half, _) in found.items()},
        half={n: half for n, (half, _) in found.items()},
        xlabel={"n": "n, examples of a half", "k": "k, surrogates whose gradients are averaged"}[
            symbol
        ],
        ylabel={"n": "μ_θ, what the other half shares", "k": "μ_x, what the target shares"}[symbol],
    )
    holds = all(one.p_value < 0.05 for _, checked in found.values() for one in checked)
    caption = (
        f"Lines: {symbol}/({symbol} + {symbol}_half), with {symbol}_half from other "
        f"{'examples' if symbol == 'n' else 'models'}; ticks mark {symbol}_half, where signal "
        f"equals noise and one meets halfway. Points: measured, 95 % intervals. "
        f"{'They agree everywhere' if holds else 'They do not agree everywhere'} by the "
        "equivalence test."
    )
    return Figure(name, caption, rules.figure_of(axes))


def _gaussian_figure(found: Mapping[str, np.ndarray]) -> Figure:
    risk = np.geomspace(found["exact"][:, 0].min() / 1.3, found["exact"][:, 0].max() * 1.3, 200)
    few = np.arange(2, DIMENSION - 1)
    known = meeting.linear_gaussian(few, DIMENSION, 1.0, NOISE)
    axes = plots.transfer_against_risk(
        found["ratios"],
        found["risks"],
        found["measured"],
        {
            "n > d + 1: 1/(1 + R/s²)": (risk, 1 / (1 + risk)),
            "n < d − 1": (np.asarray(known.risk), np.asarray(known.coefficient)),
        },
    )
    caption = (
        f"Least squares on n Gaussian examples of dimension {DIMENSION}, σ² = s²: for n > d "
        "transfer is a function of generalization alone; for n < d it lies on the other branch. "
        f"Points: {NUM_REPLICATES} simulated pairs of halves each."
    )
    return Figure("linear_gaussian", caption, rules.figure_of(axes))


def _law_table(title: str, symbol: str, found: Mapping[str, tuple[float, list[Checked]]]) -> Table:
    rows = [
        [
            name,
            f"{half:.3g}",
            str(one.size),
            f"{one.predicted:.3f}",
            format_estimate(*one.measured),
            format_p(one.p_value),
        ]
        for name, (half, checked) in found.items()
        for one in checked
    ]
    caption = (
        "p of the equivalence test: below .05, measured and predicted agree within .03, within "
        "15 % where the prediction is below .2."
    )
    names = ["model", f"{symbol}_half", symbol, "predicted", "measured, 95 % interval", "p (TOST)"]
    return Table(title, caption, names, rows)


def _gaussian_table(found: Mapping[str, np.ndarray]) -> Table:
    rows = [
        [
            f"{ratio:.2f}",
            f"{risk:.3f}",
            format_estimate(*risks),
            f"{mu:.3f}",
            format_estimate(*measured),
        ]
        for ratio, (risk, mu), risks, measured in zip(
            found["ratios"], found["exact"], found["risks"], found["measured"], strict=True
        )
    ]
    names = ["n/d", "R/s², exact", "R/s², simulated", "μ_x, exact", "μ_x, simulated"]
    return Table("Linear-Gaussian model (P7)", "Means and 95 % intervals.", names, rows)


def _write(folder: Path, lead: str, drawn: list[Figure], tables: list[Table], command: str) -> None:
    sections = {}
    titles = (
        "The first law, at initialization",
        f"The first law, after {TRAINED} steps",
        "The second law",
        "Transfer and generalization, exactly",
    )
    for index, (title, one, numbers) in enumerate(zip(titles, drawn, tables, strict=True)):
        svg = report.inline_svg(one.figure, f"f{index}", one.caption)
        body = f'<p class="ran">{text(lead)}</p>' if index == 0 else ""
        body += f'<div class="figures">{figure(Drawing(one.caption, svg, False))}</div>'
        body += f"<p>{text(numbers.caption)}</p>{table(numbers.columns, numbers.rows, title)}"
        sections[one.name] = (title, body)
    sections["repeat"] = ("To repeat it", f"<pre><code>{text(command)}</code></pre>")
    page = document("halfway: the laws", "Signal, noise, and half of the way", sections)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        report.save_figures(folder / "figures", drawn)
        storage.write_whole(folder / "laws.html", page.encode())
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}): choose another") from error


def run() -> None:
    """Runs the command with the arguments of the process."""
    launch.run(main, FLAGS)
