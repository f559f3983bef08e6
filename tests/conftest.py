"""What several test modules share: the reference network, trained once and polished."""

import os

os.environ.setdefault("MPLBACKEND", "Agg")  # before anything imports matplotlib

import pytest
import torch

from lowhanging.reproduce.themes.learning import Learning, learn

LONGEST = ("test_learning.py", "test_pipeline.py", "test_fuzz.py")


def is_slow(item: pytest.Item) -> bool:
    return item.get_closest_marker("slow") is not None


def pytest_itemcollected(item: pytest.Item) -> None:
    """A file is one group, made by one worker, so that what its tests share is made once; slow tests go one by one.

    (`--dist loadgroup --no-loadscope-reorder`; pytest-xdist reads the groups before conftests may sort the items.)
    """
    if not is_slow(item):
        item.add_marker(pytest.mark.xdist_group(str(item.path)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first and what is slow last, so that two workers end together."""
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: (is_slow(item), rank.get(item.path.name, len(LONGEST))))


@pytest.fixture(scope="session")
def reference() -> Learning:
    """Seed 0 of `lowhanging reproduce` with its defaults: nothing shrunk."""
    return learn(source="bundled", seed=0)


@pytest.fixture(autouse=True)
def same_random_state_and_threads():
    """Each test begins from the same global random state; and none may leave a changed number of threads behind."""
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    yield
    assert torch.get_num_threads() == threads
