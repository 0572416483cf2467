"""Check the laws of the framework and draw them: predicted on one set, measured on another.

What it takes is in `halfway.lab.flags.laws`.
"""

import time
from pathlib import Path

import jax

from halfway import sharding
from halfway.data import Split
from halfway.keys import named_key
from halfway.lab.config.settings import RunConfig
from halfway.lab.entry import launch
from halfway.lab.flags.laws import CONFIG, DATA_DIR, MAX_READ, PLACE, WORKDIR
from halfway.lab.measurements import laws
from halfway.lab.report import laws_page
from halfway.lab.report.page import write
from halfway.lab.runtime import datasets, devices, pipeline, processes, progress
from halfway.lab.study import conditions
from halfway.populations import Condition


def main() -> None:
    """Draws one page of laws."""
    started = time.monotonic()
    config = CONFIG.load().config
    devices.start(PLACE.value)
    dataset = datasets.load_for(config, DATA_DIR.value, max_gb=MAX_READ.value)
    pool = datasets.pool_for(config, dataset)
    models = {name: conditions.condition(config, name) for name in config.architectures}
    pipeline.check_conditions(models.values(), pool)
    layout = devices.lay_out(PLACE.value, models.values(), pool)
    with sharding.use(layout):
        first, second, gaussian = _measure(config, models, pool)
    lead = (
        f"First law on a Gaussian mixture, second on {config.dataset}; {', '.join(models)}; "
        f"{time.monotonic() - started:.0f} s on {layout.mesh.size} devices. Estimated on one set "
        "of examples or models, measured on another: on the same set agreement would be arithmetic."
    )
    page, tables = laws_page.page(first, second, gaussian, lead=lead, command=launch.command_line())
    processes.shared(lambda: write(Path(WORKDIR.value), page))
    if processes.is_first():
        for table in tables:
            print(f"{table}\n")
        print(Path(WORKDIR.value) / "laws.html")


def _measure(config: RunConfig, models: dict[str, Condition], pool: Split):
    """Returns the first law by steps and architecture, the second law by architecture, and P7."""
    keys = jax.random.split(named_key(jax.random.key(config.seed), "laws page"), 3)
    first: dict[int, dict[str, laws.Law]] = {}
    for steps in (0, laws.TRAINED):
        pipeline.stop_if_asked()
        key = jax.random.fold_in(keys[0], steps)
        shape = tuple(pool.images.shape[1:])
        words = f"first law, at {laws.NUM_THETAS} draws of θ, {steps} steps"
        with progress.doing(words, aloud=True):
            first[steps] = {
                name: laws.first_law(
                    laws.first_law_terms(
                        jax.random.fold_in(key, index), model, shape, num_steps=steps
                    )
                )
                for index, (name, model) in enumerate(models.items())
            }
    pipeline.stop_if_asked()
    name = config.architectures[0]
    with progress.doing(f"second law, {3 * max(laws.ENSEMBLE_SIZES)} models", aloud=True):
        second = {name: laws.second_law(models[name], pool)}
    with progress.doing("linear-Gaussian model", aloud=True):
        return first, second, laws.linear_gaussian(keys[2])
