"""What the folder of a run holds, for tests of the whole command."""

import json

import pandas as pd


def read(folder, name):
    path = folder / name
    return json.loads(path.read_text()) if name.endswith("json") else pd.read_parquet(path)


def assert_same(first, second):
    """The same numbers to the last bit, and the same verdicts."""
    for name in ("records.parquet", "conditions.parquet"):
        pd.testing.assert_frame_equal(read(first, name), read(second, name), check_exact=True)
    assert read(first, "verdicts.json") == read(second, "verdicts.json")
