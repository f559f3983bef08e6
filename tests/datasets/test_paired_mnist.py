"""Do the views hold what the blend's formula says, aligned, and drawn once?

Oracles: the formula, recomputed here pixel by pixel from the digits, the patterns and the recorded indices; counts and
shares with their binomial deviations; the same call twice.
"""

import itertools
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from lowhanging.datasets import MNIST, DigitImages, mnist, paired_mnist

REAL = Path(__file__).resolve().parents[3] / "shared/data/mnist"


@pytest.fixture(scope="module")
def digits():
    return mnist()


@pytest.fixture(scope="module")
def few(digits):
    """300 + 100 digits, for the tests that draw often."""
    return MNIST(DigitImages(*digits.train[:300]), DigitImages(*digits.test[:100]))


@pytest.fixture(scope="module")
def views(digits):
    return paired_mnist(digits, opacity=0.3, seed=3)


def enlarged(squares):
    """(n, 4, 4) -> (n, 1, 28, 28): pixel (r, c) shows square (r // 7, c // 7)."""
    square = torch.arange(28) // 7
    return squares[:, square][:, :, square][:, None]


def everything(views):
    """Every tensor of a PairedMNIST, by name."""
    found = {"patterns": views.patterns}
    for name, split in itertools.product(("mixed", "number", "pattern"), ("train", "test")):
        images = getattr(getattr(views, name), split)
        found |= {f"{name}.{split}.{field}": value for field, value in vars(images).items()}
    return found | {f"conflict.{field}": value for field, value in vars(views.conflict).items()}


def differing(first, second):
    first, second = everything(first), everything(second)
    return {name for name in first if not torch.equal(first[name], second[name])}


def test_the_documented_call_works():
    views = paired_mnist(opacity=0.5, patterns_per_class=10, seed=0)
    assert repr(views) == (
        "PairedMNIST(train=4000, test=1000, patterns_per_class=10, opacity=0.5, number_only=0.2, pattern_only=0.05, "
        "noise=0, flip=0, seed=0, source='bundled')"
    )
    assert repr(views.mixed.train) == "PairedImages(4000 images: 3000 mixed, 800 number only, 200 pattern only)"
    assert repr(views.conflict) == "ConflictImages(1000 images whose number and pattern differ in class)"
    assert "\n" not in repr(views.number)


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_pixel_is_the_blend(digits, views, split):
    source = getattr(digits, split)
    number, pattern, mixed = (getattr(view, split) for view in (views.number, views.pattern, views.mixed))
    squares = views.patterns[source.targets, mixed.pattern_index]
    torch.testing.assert_close(number.inputs, 0.7 * source.inputs, rtol=0, atol=1e-7)
    torch.testing.assert_close(pattern.inputs, 0.3 * enlarged(squares), rtol=0, atol=1e-7)
    has_number, has_pattern = (has[:, None, None, None].float() for has in (mixed.has_number, mixed.has_pattern))
    assert torch.equal(mixed.inputs, has_number * number.inputs + has_pattern * pattern.inputs)
    for images in (number, pattern, mixed):
        assert torch.equal(images.targets, source.targets)
        assert torch.equal(images.pattern_index, mixed.pattern_index)
        assert images.inputs.dtype == torch.float32
        assert images.inputs.shape == source.inputs.shape
        assert images.inputs.min() >= 0
        assert images.inputs.max() <= 1
    assert number.has_number.all()
    assert not number.has_pattern.any()
    assert pattern.has_pattern.all()
    assert not pattern.has_number.any()


def test_shares_of_single_cues(views):
    train, test = views.mixed.train, views.mixed.test
    assert int((~train.has_pattern).sum()) == 800
    assert int((~train.has_number).sum()) == 200
    assert (train.has_number | train.has_pattern).all()
    assert test.has_number.all()
    assert test.has_pattern.all()
    for lacking, share in ((~train.has_pattern, 0.2), (~train.has_number, 0.05)):  # spread over classes and places
        counts = torch.bincount(train.targets[lacking], minlength=10).double()
        assert (counts - 400 * share).abs().max() < 4 * (400 * share) ** 0.5
        assert abs(lacking[:2000].double().mean().item() - share) < 4 * (share / 2000) ** 0.5


@pytest.mark.parametrize(
    ("number_only", "pattern_only", "expected"),
    [
        (0, 0, (0, 0)),
        (1, 0, (300, 0)),
        (0, 1, (0, 300)),
        (0.5, 0.5, (150, 150)),
        (0.995, 0.005, (298, 2)),
        (0.29, 0.1, (87, 30)),
    ],
)
def test_shares_at_their_ends(few, number_only, pattern_only, expected):
    train = paired_mnist(few, number_only=number_only, pattern_only=pattern_only).mixed.train
    assert (int((~train.has_pattern).sum()), int((~train.has_number).sum())) == expected


def test_patterns_are_distinct_and_used_evenly(views):
    assert views.patterns.shape == (10, 10, 4, 4)
    assert set(views.patterns.unique().tolist()) == {0, 1}
    assert len(views.patterns.reshape(100, 16).unique(dim=0)) == 100
    assert views.patterns.mean().item() == pytest.approx(0.5, abs=4 * 0.5 / 1600**0.5)
    for images in (views.mixed.train, views.mixed.test):
        counts = torch.bincount(images.targets * 10 + images.pattern_index, minlength=100).double()
        expected = len(images) / 100  # 40 and 10 uses of each pattern
        assert counts.min() > 0
        assert (counts - expected).abs().max() < 5 * expected**0.5


def test_every_pattern_there_is(few):
    patterns = paired_mnist(few, patterns_per_class=6553).patterns.reshape(-1, 16)
    assert len(patterns.unique(dim=0)) == 65_530
    assert patterns.any(dim=1).all()  # the all-black one is no cue
    assert paired_mnist(few, patterns_per_class=1).patterns.shape == (10, 1, 4, 4)


def test_conflict_images_disagree(digits, views):
    conflict = views.conflict
    assert isinstance(conflict, Dataset)
    assert len(conflict) == 1000
    assert (conflict.number_targets != conflict.pattern_targets).all()
    assert torch.equal(conflict.number_targets, digits.test.targets)
    assert list(conflict.answers) == ["number", "pattern"]
    assert conflict.answers["number"] is conflict.number_targets
    assert conflict.answers["pattern"] is conflict.pattern_targets
    squares = views.patterns[conflict.pattern_targets, conflict.pattern_index]
    blend = 0.7 * digits.test.inputs + 0.3 * enlarged(squares)
    torch.testing.assert_close(conflict.inputs, blend, rtol=0, atol=1e-7)
    assert conflict.inputs.max() <= 1
    shift = (conflict.pattern_targets - conflict.number_targets) % 10
    counts = torch.bincount(shift, minlength=10)[1:].double()
    assert (counts - 1000 / 9).abs().max() < 4 * (1000 / 9) ** 0.5  # the nine others equally often
    image, number, pattern = conflict[5]
    assert torch.equal(image, conflict.inputs[5])
    assert (number, pattern) == (conflict.number_targets[5], conflict.pattern_targets[5])


def test_views_are_map_style_datasets(views):
    train = views.mixed.train
    assert isinstance(train, Dataset)
    assert len(train) == 4000
    image, target = train[11]
    assert torch.equal(image, train.inputs[11])
    assert target == train.targets[11]
    assert torch.equal(image, train[11][0])  # reading twice
    with pytest.raises(IndexError):
        train[4000]
    images, targets = next(iter(DataLoader(train, batch_size=8)))
    assert torch.equal(images, train.inputs[:8])
    assert torch.equal(targets, train.targets[:8])
    with pytest.raises(AttributeError):
        train.inputs = None


def test_the_same_seed_gives_the_same_everything(few):
    call = {"noise": 0.2, "flip": 0.05}
    assert differing(paired_mnist(few, seed=5, **call), paired_mnist(few, seed=5, **call)) == set()


def test_the_seed_moves_every_draw_and_nothing_else(few):
    call = {"noise": 0.2, "flip": 0.05}
    drawn = {
        "patterns",
        "conflict.inputs",
        "conflict.pattern_targets",
        "conflict.pattern_index",
        "mixed.train.has_number",
        "mixed.train.has_pattern",
        "number.train.inputs",
    }
    drawn |= {f"{view}.{split}.pattern_index" for view in ("mixed", "number", "pattern") for split in ("train", "test")}
    drawn |= {f"{view}.{split}.inputs" for view in ("mixed", "pattern") for split in ("train", "test")}
    assert differing(paired_mnist(few, seed=5, **call), paired_mnist(few, seed=6, **call)) == drawn


def test_one_setting_moves_its_own_draw_only(few):
    plain = paired_mnist(few)
    assert differing(plain, paired_mnist(few, noise=0.2)) == {"mixed.train.inputs", "number.train.inputs"}
    assert differing(plain, paired_mnist(few, flip=0.05)) == {"mixed.train.inputs", "pattern.train.inputs"}
    shares = {"mixed.train.inputs", "mixed.train.has_number", "mixed.train.has_pattern"}
    assert differing(plain, paired_mnist(few, number_only=0.3)) == shares
    inputs = {f"{view}.{split}.inputs" for view in ("mixed", "number", "pattern") for split in ("train", "test")}
    assert differing(plain, paired_mnist(few, opacity=0.4)) == inputs | {"conflict.inputs"}


def test_another_training_split_moves_no_pattern_and_no_test_image(few):
    other = paired_mnist(MNIST(train=few.test, test=few.test))
    assert {name.split(".")[1] for name in differing(paired_mnist(few), other)} == {"train"}


def test_noise_is_gaussian_clipped_and_shared_by_the_views(few):
    noisy = paired_mnist(few, opacity=0.25, noise=0.2)
    number = noisy.number.train.inputs / 0.75
    ink = (number - few.train.inputs)[(few.train.inputs > 0.4) & (few.train.inputs < 0.6)]  # 2 deviations from a clip
    assert ink.mean().abs().item() < 0.01
    assert ink.std().item() == pytest.approx(0.2, rel=0.06)
    paper = number[few.train.inputs == 0]  # half of the noise is clipped away at 0
    assert (paper == 0).double().mean().item() == pytest.approx(0.5, abs=0.01)
    assert paper.mean().item() == pytest.approx(0.2 / (2 * np.pi) ** 0.5, rel=0.02)
    assert number.max().item() == pytest.approx(1)
    train = noisy.mixed.train
    assert torch.equal(train.inputs[~train.has_pattern], noisy.number.train.inputs[~train.has_pattern])
    both = train.has_number & train.has_pattern
    assert torch.equal(train.inputs[both], (noisy.number.train.inputs + noisy.pattern.train.inputs)[both])


def test_flip_inverts_squares(few):
    plain = paired_mnist(few).pattern.train.inputs
    flipped = paired_mnist(few, flip=0.05).pattern.train.inputs
    blocks = (plain != flipped).reshape(300, 4, 7, 4, 7).transpose(2, 3).reshape(300 * 16, 49)
    assert (blocks.all(dim=1) == blocks.any(dim=1)).all()  # whole squares
    assert blocks.any(dim=1).double().mean().item() == pytest.approx(0.05, abs=4 * (0.05 * 0.95 / 4800) ** 0.5)
    assert torch.equal(paired_mnist(few, flip=1).pattern.train.inputs, 0.5 - plain)


def test_opacity_at_its_ends(few):
    pattern = paired_mnist(few, opacity=1)
    assert torch.equal(pattern.mixed.test.inputs, pattern.pattern.test.inputs)
    number = paired_mnist(few, opacity=0)
    assert torch.equal(number.mixed.test.inputs, few.test.inputs)


@pytest.mark.parametrize("opacity", [0.1, 1 / 3, 0.7, 0.123456789])
def test_blend_never_exceeds_white(opacity):
    white = DigitImages(torch.ones(20, 1, 28, 28), torch.arange(20) % 10)
    views = paired_mnist(MNIST(white, white), opacity=opacity)
    assert views.mixed.test.inputs.max() <= 1
    assert views.conflict.inputs.max() <= 1


def random_states():
    name, *numbers = np.random.get_state()  # noqa: NPY002
    legacy = [name, *(np.asarray(part).tolist() for part in numbers)]
    return torch.random.get_rng_state().tolist(), legacy, random.getstate()


def test_nothing_of_the_callers_is_changed(few):
    images, states = (few.train.inputs.clone(), few.test.inputs.clone()), random_states()
    paired_mnist(few, noise=0.2, flip=0.05)
    mnist()
    assert random_states() == states
    assert torch.equal(few.train.inputs, images[0])
    assert torch.equal(few.test.inputs, images[1])


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the published test split is not at {REAL}")
def test_bundled_training_images_with_the_published_test_images(digits):
    published = mnist(REAL)
    views = paired_mnist(MNIST(train=digits.train, test=published.test))
    assert (len(views.mixed.train), len(views.mixed.test), len(views.conflict)) == (4000, 10_000, 10_000)
    assert torch.equal(views.mixed.train.inputs, paired_mnist(digits).mixed.train.inputs)
    with pytest.raises(ValueError, match=r"(?s)^train split is absent from source '.*MNIST\(train=lh\.mnist\(\)"):
        paired_mnist(REAL)


BAD_INPUT = [
    ({"opacity": 1.5}, ValueError, r"opacity is 1\.5, expected a finite number in \[0, 1\]\.\nPass the pattern's"),
    ({"opacity": float("nan")}, ValueError, r"opacity is nan, expected a finite number in \[0, 1\]"),
    ({"opacity": "half"}, TypeError, r"opacity is 'half', expected a finite number in \[0, 1\]"),
    ({"patterns_per_class": 0}, ValueError, r"patterns_per_class is 0, expected an integer from 1 to 6553\.\nThere"),
    ({"patterns_per_class": 6554}, ValueError, r"patterns_per_class is 6554, expected .* to 6553\.\nThere are 65,535"),
    ({"patterns_per_class": 2.0}, TypeError, r"patterns_per_class is 2\.0, expected an integer"),
    ({"number_only": -0.1}, ValueError, r"number_only is -0\.1, expected a finite number in \[0, 1\]\.\nPass a "),
    ({"pattern_only": 20}, ValueError, r"pattern_only is 20, expected a finite number in \[0, 1\]\.\nPass a share"),
    ({"number_only": 0.7, "pattern_only": 0.4}, ValueError, r"number_only and pattern_only add up to 1\.1, expected "),
    ({"noise": -1}, ValueError, r"noise is -1, expected a finite number in \[0, inf\]\.\nPass a standard deviation"),
    ({"flip": 2}, ValueError, r"flip is 2, expected a finite number in \[0, 1\]\.\nPass a probability per square"),
    ({"seed": -1}, ValueError, r"seed is -1, expected an integer of at least 0\.\nPass a whole number"),
    ({"seed": None}, TypeError, r"seed is None, expected an integer of at least 0"),
    ({"source": 3}, TypeError, r'source is an int, expected "bundled", "full" or a folder'),
]


@pytest.mark.parametrize(("keywords", "kind", "message"), BAD_INPUT)
def test_bad_input(keywords, kind, message):
    with pytest.raises(kind, match=f"^{message}"):
        paired_mnist(**keywords)
