"""Is one cue another example's, and everything else as it was?

Oracles: the formula, written again; the permutation's own properties; a task in which each cue alone says the target,
where after resampling only the one that was kept still does.
"""

import numpy as np
import pytest
import torch

import lowhanging as lh
from lowhanging.datasets import resample
from lowhanging.datasets.resampling import derangement


@pytest.fixture(scope="module")
def views():
    digits = lh.mnist()
    few = lh.datasets.MNIST(lh.datasets.DigitImages(*digits.train[:300]), lh.datasets.DigitImages(*digits.test[:100]))
    return lh.paired_mnist(few, opacity=0.3, number_only=0.3, seed=3)


@pytest.mark.parametrize("num", [2, 3, 10, 501])
def test_every_cue_is_moved_once(num):
    source = derangement(num, np.random.default_rng(num))
    assert source.sort().values.tolist() == list(range(num))
    assert not (source == torch.arange(num)).any()


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_views_are_blends_of_two_examples(views, split):
    number, pattern = getattr(views.number, split), getattr(views.pattern, split)
    kept, moved = getattr(views.number_resampled, split), getattr(views.pattern_resampled, split)
    assert torch.equal(kept.inputs, number.inputs + pattern.inputs[kept.source])
    assert torch.equal(moved.inputs, pattern.inputs + number.inputs[moved.source])
    assert torch.equal(kept.targets, number.targets)
    assert torch.equal(moved.targets, pattern.targets)
    assert not (kept.source == torch.arange(len(kept))).any()
    assert 0 < float((kept.targets[kept.source] == kept.targets).float().mean()) < 0.3  # by chance a tenth
    image, target = kept[5]
    assert torch.equal(image, kept.inputs[5])
    assert int(target) == int(kept.targets[5])


def test_the_views_are_made_once_from_the_seed_and_move_no_other_draw(views):
    assert views.number_resampled is views.number_resampled
    again = lh.paired_mnist(lh.mnist(), seed=3).number_resampled.train
    other = lh.paired_mnist(lh.mnist(), seed=4).number_resampled.train
    same = lh.paired_mnist(lh.mnist(), seed=3).number_resampled.train
    assert torch.equal(again.source, same.source)
    assert not torch.equal(again.source, other.source)


def test_only_the_kept_cue_still_says_the_target():
    """Two columns of which each is the target: after a replacement of the second it is guessed, the first is not."""
    y = torch.randint(0, 10, (2000,), generator=torch.Generator().manual_seed(0))
    x = torch.stack([y, y], 1).double()
    moved = resample((x, y), replace=1, seed=2)
    assert torch.equal(moved.inputs[:, 0].long(), y)
    assert abs(float((moved.inputs[:, 1].long() == y).double().mean()) - 0.1) < 0.03
    assert moved.inputs[:, 1].sort().values.equal(x[:, 1].sort().values)  # the cue looks as before


def test_channels_masks_and_functions_agree():
    x = torch.rand(6, 3, 4, 4)
    y = torch.arange(6)
    mask = torch.zeros(3, 4, 4, dtype=torch.bool)
    mask[1:] = True
    made = [
        resample((x, y), [1, 2]),
        resample(lh.datasets.resampling.Examples(x, y), mask),
        resample((x, y), lambda own, other: torch.cat([own[:, :1], other[:, 1:]], 1)),
        resample((x, y), torch.tensor([2, 1])),
    ]
    for one in made:
        assert torch.equal(one.inputs, made[0].inputs)
        assert torch.equal(one.inputs[:, 1:], x[one.source][:, 1:])
    assert "6 examples" in repr(made[0])


def test_nothing_of_the_callers_is_changed():
    x, y = torch.rand(5, 2), torch.arange(5)
    before, state = x.clone(), torch.get_rng_state()
    moved = resample((x, y), lambda own, other: own.mul_(0) + other)
    assert torch.equal(x, before)
    assert torch.equal(torch.get_rng_state(), state)
    moved.inputs.zero_()
    whole = resample((x, y), lambda own, other: other)
    whole.inputs.zero_()
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    ("data", "replace", "kind", "parts"),
    [
        (torch.rand(4, 2), [0], TypeError, ("data", "Tensor")),
        ((torch.rand(1, 2), torch.zeros(1)), [0], ValueError, ("data", "(1, 2)")),
        ((torch.rand(4, 2), torch.zeros(3)), [0], ValueError, ("data", "(3,)")),
        ((torch.rand(4, 2), torch.zeros(4)), [2], ValueError, ("replace", "0 to 1")),
        ((torch.rand(4, 2), torch.zeros(4)), [-1], ValueError, ("replace", "0 to 1")),
        ((torch.rand(4, 3), torch.zeros(4)), torch.tensor([0, 1, 1], dtype=torch.uint8), ValueError, ("different",)),
        ((torch.rand(4, 2), torch.zeros(4)), [0.5], ValueError, ("replace", "indices")),
        ((torch.rand(4, 2), torch.zeros(4)), [0, 1], ValueError, ("replace", "all of an example")),
        ((torch.rand(4, 2), torch.zeros(4)), torch.ones(3, dtype=torch.bool), ValueError, ("mask", "(2,)")),
        ((torch.rand(4), torch.zeros(4)), [0], ValueError, ("replace",)),
        ((torch.rand(4, 2), torch.zeros(4)), lambda x, other: x[:, :1], ValueError, ("replace", "(4, 1)")),
        ((torch.rand(4, 2), torch.zeros(4)), "second", TypeError, ("replace", "function")),
    ],
)
def test_bad_input(data, replace, kind, parts):
    with pytest.raises(kind) as found:
        resample(data, replace)
    assert all(part in str(found.value) for part in parts)
