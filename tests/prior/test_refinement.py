"""A second cue offered after a first: closed forms of the delay, cues that do not meet, an overhaul that was planted.

Oracles: gradient flow of exp(-(a + b)), whose second weight is later by a factor of exactly 1 + T; a loss in which the
two cues do not meet, where nothing is later; a second task that contradicts the first, whose circuit must go.
"""

import math

import pytest
import torch
from torch import nn

from lowhanging.prior import Refinement, TwoCueTask, cue_evidence, paired_digits_task, parities_task, refinement


class Weights(nn.Module):
    """a x_1 + b x_2, or both products side by side."""

    def __init__(self, *, is_sum=True):
        super().__init__()
        self.weights, self.is_sum = nn.Parameter(torch.zeros(2, dtype=torch.float64)), is_sum

    def forward(self, x):
        parts = x * self.weights
        return parts.sum(1, keepdim=True) if self.is_sum else parts


def exponential(outputs, targets):
    return (-outputs).exp().sum(1).mean()


def two_weights(both=(1.0, 1.0), *, is_sum=True):
    """Cue a is coordinate 0, cue b coordinate 1; scores are the weights themselves."""

    def data(*x):
        return torch.tensor([x], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)

    def task(seed):
        return TwoCueTask(
            model=Weights(is_sum=is_sum),
            alone={"a": data(1.0, 0.0), "b": data(0.0, 1.0)},
            both=data(*both),
            scores={"a": lambda model: float(model.weights[0]), "b": lambda model: float(model.weights[1])},
        )

    return task


def descent(task, **options):
    flow = {"seeds": [0], "first_steps": 100, "then_steps": 300, "log_every": 1, "lr": 0.02, "optimizer": "sgd"}
    flow |= {"loss_fn": exponential, "threshold": 0.5, "progress": False}
    return refinement(task, **flow | options)


def test_the_delay_of_two_weights_is_that_of_the_closed_form():
    """b(t) = log(1 + 2 t / (1 + T)) / 2 after a time T on a: later by 1 + T = 3 than fresh, at any threshold."""
    found = descent(two_weights())
    fresh = (math.exp(1) - 1) / 2 / 0.02  # steps until log(1 + 2 t) / 2 = 1/2
    assert float(found.time("b", "both")) == pytest.approx(fresh, abs=2)
    assert float(found.time("b", "a then both")) == pytest.approx(3 * fresh, rel=0.03)
    assert float(found.delay("b").ratio) == pytest.approx(3.0, rel=0.04)
    # Alone, b(t) = log(1 + t): the time is sqrt(e) - 1.
    alone = (math.sqrt(math.e) - 1) / 0.02
    assert float(found.delay("b", than="alone").ratio) == pytest.approx(3 * fresh / alone, rel=0.05)
    assert float(found.time("b", "a alone")) == math.inf
    assert float(found.kept("a")) > 1
    at = float(found.scores["a then both"][0, 0, 100])
    assert at == pytest.approx(math.log(3), rel=0.01)


def test_cues_that_do_not_meet_are_not_late():
    found = descent(two_weights(is_sum=False), loss_fn=exponential)
    assert float(found.delay("b").ratio) == 1.0
    assert float(found.delay("b").p_value) == 1.0
    assert "1 [1, 1] times as late as fresh" in repr(found)


def test_an_overhaul_is_seen():
    """Where the second task contradicts the first cue, its weight goes down."""
    found = descent(two_weights(both=(-1.0, 1.0)))
    assert float(found.kept("a")) < 0.7
    assert float(found.kept("b")) > 1
    assert found.num_learned("b", "a then both") == 1


def test_what_is_never_learned_is_censored():
    found = descent(two_weights(), first_steps=3000, then_steps=60, lr=0.1)
    assert float(found.time("b", "a then both")) == math.inf
    assert found.num_learned("b", "a then both") == 0
    assert "not within the budget, in which fresh networks learn it" in repr(found)


def test_a_log_at_the_offer_belongs_to_both_parts_once():
    found = descent(two_weights(), log_every=20)
    assert found.steps.tolist() == list(range(0, 401, 20))
    assert all(rows.shape == (2, 1, 21) for rows in found.scores.values())
    assert torch.equal(found.scores["a then both"][..., :6], found.scores["a alone"][..., :6])
    assert math.isnan(found.losses["both"][0, 0]) and bool(found.losses["both"][0, 1:].isfinite().all())


def test_a_parity_is_learned_later_after_a_harder_one_and_the_harder_one_stays(tmp_path):
    """2 bits after 4, which a fresh network learns first: it refines what it has."""
    options = {"seeds": range(3), "first_steps": 600, "then_steps": 600, "lr": 0.01, "progress": False}
    found = refinement(parities_task(4, 2, hidden=32), batch_size=64, **options)
    assert found.num_learned("second", "both") == 3
    assert float(found.delay("second").ratio) > 1.5
    assert bool((found.kept("first") > 1).all())
    found.save(tmp_path / "refinement.npz")
    assert repr(Refinement.load(tmp_path / "refinement.npz")) == repr(found)


def test_digits_run_and_leave_everything_alone():
    state = torch.get_rng_state()
    task = paired_digits_task(num_train=100, num_test=50, channels=2, patterns_per_class=2)
    before = {name: weight.clone() for name, weight in task(3).model.state_dict().items()}
    found = refinement(task, seeds=[3], first_steps=20, then_steps=20, log_every=10, progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert found.cues == ("number", "pattern")
    fresh = {cue: cue_evidence(task(3).model.eval(), data) for cue, data in task(3).scores.items()}
    assert found.scores["both"][:, 0, 0].tolist() == pytest.approx([*fresh.values()])
    assert all(torch.equal(before[name], weight) for name, weight in task(3).model.state_dict().items())


def test_the_evidence_of_added_logits_is_that_of_each_part():
    """Logits that are a sum of one table for each cue: evidence is the table's, whatever the other one says."""
    tables = torch.randn(2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    class Sum(nn.Module):
        def forward(self, x):
            return tables[0, x[:, 0]] + tables[1, x[:, 1]]

    pairs = torch.cartesian_prod(torch.arange(4), torch.arange(4))  # every value of the other cue equally often
    own = tables[0].diagonal() - (tables[0].sum(1) - tables[0].diagonal()) / 3
    others = tables[1].mean(0)  # which says nothing of the first cue's class on average over classes
    expected = own.mean() + (others - (others.sum() - others) / 3).mean()
    assert cue_evidence(Sum(), (pairs, pairs[:, 0])) == pytest.approx(float(expected))
    assert float(expected - own.mean()) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: refinement(parities_task(), first_steps=30), "first_steps is 30, expected a multiple of log_every"),
        (lambda: refinement(parities_task(), seeds=[1, 1]), r"seeds are \[1, 1\]"),
        (lambda: refinement(parities_task(), log_every=0), "log_every is 0"),
        (lambda: refinement(lambda seed: 3), "task returned an int"),
        (lambda: parities_task(absent="gone"), "absent is 'gone'"),
        (lambda: parities_task(9, 9), "n and m add up to 18"),
        (lambda: paired_digits_task(num_train=1), "num_train is 1"),
        (lambda: descent(two_weights()).delay("c"), "cue is 'c'"),
        (lambda: descent(two_weights()).final("a", "c alone"), "training is 'c alone'"),
        (lambda: cue_evidence(Weights(), (torch.ones(2, 2), torch.ones(2))), "one integer class for each example"),
        (lambda: cue_evidence(Weights(), 3), "data is an int"),
        (lambda: cue_evidence(Weights(), (torch.ones(2, 2), torch.ones(2).long())), "gives outputs of shape"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_a_task_names_two_cues_that_have_scores():
    def task(seed):
        given = two_weights()(seed)
        return TwoCueTask(given.model, given.alone, given.both, {"a": given.scores["a"]})

    with pytest.raises(ValueError, match=r"task has the cues \['a', 'b'\] and scores of \['a'\]"):
        descent(task)


def test_a_network_with_batch_norm_and_dropout_is_measured_in_eval_mode():
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(
                nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Tanh(), nn.Dropout(0.2), nn.Linear(12, 2)
            )

        def forward(self, x):
            return self.body(x)

    def task(seed):
        given = parities_task(3, 3)(seed)
        torch.manual_seed(0)
        return TwoCueTask(Normed(), given.alone, given.both, given.scores)

    found = refinement(task, seeds=[0], first_steps=40, then_steps=40, progress=False)
    again = refinement(task, seeds=[0], first_steps=40, then_steps=40, progress=False)
    assert torch.equal(found.scores["both"], again.scores["both"])


def test_an_interrupted_refinement_ends_as_it_would_have(tmp_path):
    file, whole = tmp_path / "refinement.npz", descent(two_weights(), seeds=[0, 1, 2])
    inner, calls = two_weights(), []

    def task(seed):
        calls.append(seed)
        if seed == 2 and calls.count(2) == 1:
            raise KeyboardInterrupt
        return inner(seed)

    with pytest.raises(KeyboardInterrupt):
        descent(task, seeds=[0, 1, 2], resume=file)
    assert file.exists()
    again = descent(task, seeds=[0, 1, 2], resume=file)
    assert calls == [0, 1, 2, 2]
    assert all(torch.equal(again.scores[name], whole.scores[name]) for name in whole.scores)
    assert torch.equal(descent(task, seeds=[0, 1, 2], resume=file).losses["both"][:, 1:], whole.losses["both"][:, 1:])
    with pytest.raises(ValueError, match="resume"):
        descent(task, seeds=[0, 1], resume=file)
