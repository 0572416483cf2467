"""What a run holds in memory, and what its page is told of its data set."""

import gc
import shutil
import weakref

import pytest
from support import run_folder, tiny_run

from halfway.lab.runtime import pipeline


@pytest.mark.quick
@pytest.mark.parametrize(
    ("num_examples", "subset", "given"),
    [(600, "all", 1797), (600, "train", 1437), (89, "all", None), (90, "all", 1797)],
)
def test_a_small_pool_is_named_as_what_is_given(num_examples, subset, given):
    config = tiny_run.digits(num_examples=num_examples, num_holdout=100, subset=subset)
    assert pipeline._given({"train": 1437, "test": 360}, config) == given
    # Runs of before noted the sizes as a text.
    assert pipeline._given("1437 train, 360 test", config) is None


def test_a_population_leaves_the_memory_once_nothing_needs_it(tmp_path, monkeypatch):
    parts_before, alive = [], []
    measured = pipeline.measured

    def watched(request, parts, *others):
        gc.collect()
        alive.append([name for name, part in parts_before if part() is not None])
        parts_before.extend((each.condition.id, weakref.ref(each)) for each in parts)
        return measured(request, parts, *others)

    monkeypatch.setattr(pipeline, "measured", watched)
    folder, _ = run_folder.make(tmp_path)
    assert alive == [[], []]  # the halves' labels as they are, and permuted
    # Those that were read from a disk go too.
    shutil.rmtree(folder / "measurements")
    parts_before.clear()
    run_folder.make(tmp_path)
    assert alive == [[], []] * 2
