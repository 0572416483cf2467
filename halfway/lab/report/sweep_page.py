"""The page of a sweep: every setting with its verdicts."""

import pandas as pd

from halfway.lab.report.page import Page
from halfway.lab.study import wording
from halfway.lab.study.protocol import Table


def page(table: pd.DataFrame, *, name: str, command: str) -> Page:
    """Returns the page of a sweep.

    Args:
      table: of `sweep_table.tabulate`.
      name: of the sweep.
      command: as typed.
    """
    columns = [
        "Setting",
        "Hypothesis",
        "Verdict",
        "Effect [95 %]",
        "p adjusted",
        "Pairs",
        "Evidence",
    ]
    rows = []
    for row in table.astype(object).where(table.notna(), None).to_dict("records"):
        cells = [row["status"], "", "", "", ""]
        if row["status"] == "finished":
            effect = wording.format_stored(row["effect"], row["low"], row["high"])
            p_value = wording.format_p(row["p_adjusted"])
            cells = [row["verdict"], effect, p_value, str(row["num_pairs"]), row["evidence"]]
        rows.append([row["setting"], row["id"], *cells])
    finished = table[table["status"] == "finished"]["setting"].nunique()
    total = table["setting"].nunique()
    content = {
        "lead": f"{finished} of {total} settings are finished.",
        "table": Table("Settings and verdicts", "", columns, rows),
        "command": command,
    }
    return Page("sweep", f"halfway: sweep {name}", f"Sweep {name}", content)
