"""What several test modules share: the reference network, trained once and polished."""

import os

os.environ.setdefault("MPLBACKEND", "Agg")  # before anything imports matplotlib

import pytest
import torch

from lowhanging.objective import hvp
from lowhanging.reproduce.themes.learning import Learning, learn

LONGEST = ("test_learning.py", "test_pipeline.py", "test_fuzz.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that two workers end together (`--dist loadfile --no-loadscope-reorder`)."""
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(LONGEST)))


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


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products are recorded from the first on, as if that paid at once."""
    monkeypatch.setattr(hvp, "products_until_recorded", lambda *_: 0)
