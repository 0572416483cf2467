"""What a grid of transfer says: rates with intervals and controls, and a long table."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from halfway import stats, transfer
from halfway.transfer import TransferGrid, TransferMatrix

NUM_RESAMPLES = 2000
SUBSET: transfer.Denominator = "both_correct"
"""Of the rates that stand first: examples that both models have right when clean."""
_KINDS = ("clean", *transfer.KINDS)
Triple = tuple[float, float, float]


class Summary(NamedTuple):
    """Transfer between one set of surrogates and one of targets; a triple has its interval.

    Attributes:
      rate: fooled, of examples that both have right; `beyond`: minus that of matched noise.
      noise, other: fooled by the controls, of the same examples.
      of_target, of_all: the rate over the other denominators.
      clean: error of the targets on clean examples.
      same, different: shares of the two kinds of mistakes among those examples.
      coefficient: M_x; `coefficient_noise`: that of matched noise.
      surrogate_fooled: share of what a surrogate has right on which its own attack fools it.
      matched: share of examples on which both norms of the noise could be matched.
      num_examples: that both have right, mean over cells.
      num_cells: surrogates and targets, without models attacked through themselves.
      shares: of the variance of the rate, from models and from examples.
    """

    rate: Triple
    beyond: Triple
    noise: float
    other: float
    of_target: float
    of_all: float
    clean: float
    same: float
    different: float
    coefficient: Triple
    coefficient_noise: float
    surrogate_fooled: float
    matched: float
    num_examples: float
    num_cells: int
    shares: Mapping[str, float]


Cells = Mapping[tuple[str, float], Mapping[tuple[str, str], Summary]]
"""(attack, budget) to (kind of surrogate, kind of target) to what happened."""


class FirstBudget(NamedTuple):
    """The smallest of the budgets asked at which something happens; NaN where it never does.

    Attributes:
      beyond_noise: the attack fools more than noise of equal norm does, by a 95 % interval.
      half: it fools at least half of the examples that both have right.
    """

    beyond_noise: float
    half: float


def first_budgets(cells: Cells) -> dict[tuple[str, str, str], FirstBudget]:
    """Returns the first budgets by kind of surrogate, kind of target, and attack.

    Args:
      cells: summaries by kinds of models; a pair without any rate is left out.
    """
    budgets: dict[tuple[str, str, str], FirstBudget] = {}
    for (attack, budget), by_pair in sorted(cells.items(), key=lambda item: item[0][1]):
        for pair, summary in by_pair.items():
            if not summary.num_cells or math.isnan(summary.rate[0]):
                continue
            before = budgets.get((*pair, attack), FirstBudget(math.nan, math.nan))
            holds = summary.beyond[1] > 0, summary.rate[0] >= 0.5
            budgets[(*pair, attack)] = FirstBudget(
                *(
                    budget if math.isnan(first) and is_so else first
                    for first, is_so in zip(before, holds, strict=True)
                )
            )
    order = {attack: place for place, (attack, _) in enumerate(cells)}
    return dict(sorted(budgets.items(), key=lambda item: order[item[0][2]]))


def itself(cell: TransferMatrix) -> np.ndarray:
    """Returns `[K, M]` whether a target is the surrogate: equal losses on all clean examples.

    Args:
      cell: of a grid.
    """
    surrogates, targets = (np.asarray(side["clean"].loss) for side in (cell.surrogate, cell.target))
    rows = [np.isclose(targets, losses, rtol=1e-4, atol=1e-5).all(-1) for losses in surrogates]
    return np.array(rows)


def groups(names: Sequence[str]) -> dict[str, list[int]]:
    """Returns the places of models that differ after a "/" only, which count as one kind.

    Args:
      names: of models.

    Examples:
      >>> groups(["mlp/0", "mlp/1", "cnn"])
      {'mlp': [0, 1], 'cnn': [2]}
    """
    places: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        places.setdefault(name.partition("/")[0], []).append(place)
    return places


def select(cell: TransferMatrix, rows: Sequence[int], columns: Sequence[int]) -> TransferMatrix:
    """Returns the part of a matrix that some surrogates and targets make.

    Args:
      cell: of a grid.
      rows: places of surrogates.
      columns: places of targets.
    """
    rows, columns = list(rows), list(columns)

    def part(outcome: Any, *where: Any) -> Any:
        return type(outcome)(*(np.asarray(leaf)[where] for leaf in outcome))

    target = {name: part(cell.target[name], *np.ix_(rows, columns)) for name in transfer.KINDS}
    return TransferMatrix(
        {name: part(result, rows) for name, result in cell.surrogate.items()},
        {"clean": part(cell.target["clean"], columns)} | target,
        {name: np.asarray(share)[rows] for name, share in cell.matched.items()},  # pyright: ignore
        np.asarray(cell.norm)[rows],  # pyright: ignore
    )


def summarize(cell: TransferMatrix) -> Summary:
    """Returns what all surrogates of a matrix do to all of its targets but themselves.

    Args:
      cell: of a grid, or a part of it.
    """
    left_out = itself(cell)
    shared = left_out.shape[0] == left_out.shape[1] and bool(
        np.array_equal(left_out, np.eye(len(left_out), dtype=bool)) and len(left_out) > 1
    )
    kept = ~left_out[:, :, None]
    options: dict[str, Any] = {"num_resamples": NUM_RESAMPLES, "shared_models": shared}

    def counts(denominator: transfer.Denominator, points: str) -> tuple[np.ndarray, np.ndarray]:
        outcomes = transfer.outcomes(cell, denominator, points)
        fooled, counted = (np.asarray(values) & kept for values in outcomes)
        return fooled.astype(float), counted.astype(float)

    def rate(denominator: transfer.Denominator, points: str = "attack") -> float:
        fooled, counted = counts(denominator, points)
        return float(fooled.sum() / counted.sum()) if counted.sum() else math.nan

    attacked, noisy = counts(SUBSET, "attack"), counts(SUBSET, "noise")
    bootstrap = stats.bounded(transfer.crossed_bootstrap(*attacked, _rng(), **options))
    triple: Triple = bootstrap[:3]
    if left_out.size == 1 and attacked[1].sum():
        # One pair of models is a binomial share, of which no example need be fooled.
        alone = stats.share(attacked[0] > 0, attacked[1] > 0)
        triple = (bootstrap.estimate, alone.low, alone.high)
    beyond = stats.bounded(transfer.paired_bootstrap(attacked, noisy, _rng(), **options), -1.0)
    own_rise = np.asarray(transfer.own_increase(cell), float)[:, None] * kept
    rise = {
        name: np.asarray(transfer.increase(cell, name), float) * kept for name in transfer.KINDS
    }
    coefficient = transfer.crossed_bootstrap(rise["attack"], own_rise, _rng(), **options)
    total = float(np.broadcast_to(own_rise, rise["noise"].shape).sum())
    kinds = transfer.mistakes(cell, SUBSET)
    number = attacked[1].sum()
    same, different = (
        float((np.asarray(kind) * kept[..., 0]).sum() / number) if number else math.nan
        for kind in (kinds.same, kinds.different)
    )
    right = np.asarray(cell.surrogate["clean"].correct)
    fooled = right & ~np.asarray(cell.surrogate["attack"].correct)
    used = kept[..., 0].any(0)
    return Summary(
        triple,
        beyond[:3],
        rate(SUBSET, "noise"),
        rate(SUBSET, "other_example"),
        rate("target_correct"),
        rate("all"),
        float(np.asarray(transfer.clean_error(cell))[used].mean()) if used.any() else math.nan,
        same,
        different,
        coefficient[:3],
        float(rise["noise"].sum() / total) if total else math.nan,
        float(fooled.sum() / max(1, right.sum())),
        float(np.mean(cell.matched["noise"])),
        float(number / max(1, kept.sum())),
        int(kept.sum()),
        bootstrap.shares,
    )


def long_table(grid: TransferGrid) -> pd.DataFrame:
    """Returns one row for each number: sums over examples for every surrogate and target.

    Columns: `surrogate, target, attack, budget, points, subset, quantity, value`. Quantities are
    `num_fooled`, `num_examples`, `num_same_mistake`, `increase` and `own_increase` of the margin
    loss, and the `coefficient` M_x; points are "clean", "attack", "noise", "other_example".

    Args:
      grid: of `transfer.transfer_grid`.
    """
    parts = []
    for (attack, budget), cell in grid.cells.items():
        whole = np.ones((len(grid.surrogates), len(grid.targets)))
        for points in _KINDS:
            values: dict[tuple[str, str], Any] = {}
            for subset in transfer.DENOMINATORS:
                rate = transfer.success(cell, subset, points)
                values["num_fooled", subset] = rate.num_fooled
                values["num_examples", subset] = rate.num_examples
                same = transfer.mistakes(cell, subset, points).same
                values["num_same_mistake", subset] = same
            if points != "clean":
                values["increase", "all"] = transfer.increase(cell, points).sum(-1)
                values["coefficient", "all"] = transfer.coefficient(cell, points)
            if points == "attack":
                own_rise = np.asarray(transfer.own_increase(cell).sum(-1))
                values["own_increase", "all"] = own_rise[:, None] * whole
            for (quantity, subset), matrix in values.items():
                index = pd.MultiIndex.from_product(
                    [grid.surrogates, grid.targets], names=["surrogate", "target"]
                )
                frame = index.to_frame(index=False)
                parts.append(
                    frame.assign(
                        attack=attack,
                        budget=budget,
                        points=points,
                        subset=subset,
                        quantity=quantity,
                        value=np.asarray(matrix, float).reshape(-1),
                    )
                )
    return pd.concat(parts, ignore_index=True)


def summary_table(whole: Mapping[tuple[str, float], Summary], cells: Cells) -> pd.DataFrame:
    """Returns the numbers of the page's tables: one row for each attack, budget and pair of kinds.

    Columns: `attack, budget, surrogate, target`, "all" for the row over all models; the fields of
    `Summary` but its shares, `X, X_low, X_high` for those with an interval; `first_beyond_noise`
    and `first_half`, of `FirstBudget`, the same at each budget.

    Args:
      whole: over all models, by attack and budget.
      cells: the same by kinds of models.
    """
    firsts = first_budgets(cells)
    rows = []
    for (attack, budget), summary in whole.items():
        pairs = {("all", "all"): summary} | dict(cells[attack, budget])
        for pair, part in pairs.items():
            row: dict[str, Any] = dict(zip(("surrogate", "target"), pair, strict=True))
            row |= {"attack": attack, "budget": budget}
            for name, value in part._asdict().items():
                if isinstance(value, tuple):
                    row |= dict(zip((name, f"{name}_low", f"{name}_high"), value, strict=True))
                elif name != "shares":
                    row[name] = value
            first = firsts.get((*pair, attack), FirstBudget(math.nan, math.nan))
            row |= {f"first_{name}": value for name, value in first._asdict().items()}
            rows.append(row)
    return pd.DataFrame(rows)


def arrays(grid: TransferGrid, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Returns every outcome by name: ATTACK_BUDGET/target_POINTS_predicted `[K, M, B]` and so on.

    Args:
      grid: of `transfer.transfer_grid`.
      labels: `[B]`.
    """
    result = {
        "labels": labels,
        "surrogates": np.array(grid.surrogates),
        "targets": np.array(grid.targets),
    }
    for (attack, budget), cell in grid.cells.items():
        for side in ("surrogate", "target"):
            for points, outcome in getattr(cell, side).items():
                name = f"{attack}_{budget:g}/{side}_{points}"
                result |= {f"{name}_predicted": outcome.predicted, f"{name}_loss": outcome.loss}
        result[f"{attack}_{budget:g}/norm"] = np.asarray(cell.norm)
        for name, matched in cell.matched.items():
            result[f"{attack}_{budget:g}/matched_{name}"] = np.asarray(matched)
    return result


def _rng() -> np.random.Generator:
    """Returns a generator from a fixed seed: the same grid has the same intervals."""
    return np.random.default_rng(0)
