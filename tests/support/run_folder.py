"""What the folder of a run holds, for tests of the whole command."""

import json

import pandas as pd
from support import commands, launcher

G1 = (f"{launcher.SMALL}:g1", *launcher.FOLDERS)
"""Arguments of the smallest run: one hypothesis, one architecture."""


def make(folder):
    """The folder of a run of G1 that nobody disturbed, and how the command ended."""
    result = commands.call(folder, "reproduce", *G1, "--workdir=run")
    assert result.code == 0, result.err
    return folder / "run", result


def read(folder, name):
    path = folder / name
    return json.loads(path.read_text()) if name.endswith("json") else pd.read_parquet(path)


def assert_same(first, second):
    """The same numbers to the last bit, and the same verdicts."""
    for name in ("records.parquet", "conditions.parquet"):
        pd.testing.assert_frame_equal(read(first, name), read(second, name), check_exact=True)
    assert read(first, "verdicts.json") == read(second, "verdicts.json")
