"""The conflict control against answers on paper, an interval by another route, and a planted false positive.

Oracles: a linear model whose answer to each input is known by hand; SciPy's one-sample t-test on differences listed in
plain Python; and a small trained network in which it is known what was done to it: a hidden unit that is active only
where no pattern is shown ruins number-only inputs and nothing else (no circuit is gone), or the weights that read one
cue are set to zero (that circuit is gone).
"""

import copy
import math
import random
from typing import ClassVar

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from torch import nn

import lowhanging as lh
from lowhanging.canyons.point import Evaluations
from lowhanging.steering import cues

# Inputs (number's strength on its class, pattern's strength on its class), and what a linear model of equal weights
# answers: the stronger cue, or class 2, shown by neither, where both are negative.
STRENGTHS = ((2.0, 1.0), (1.0, 2.0), (3.0, 1.0), (-1.0, -2.0), (0.5, 1.0))
FOLLOWED = (0, 1, 0, -1, 1)
NUMBER, PATTERN = torch.tensor([0, 0, 1, 0, 1]), torch.tensor([1, 1, 0, 1, 0])


def linear(repeats: int = 1, dtype: torch.dtype = torch.float64) -> tuple[lh.ConflictControl, lh.Objective]:
    """Outputs a * number + b * pattern of one-hot cues in three classes: theta = the weights (3, 6), a = b = 1."""
    inputs = torch.zeros(len(STRENGTHS), 6, dtype=dtype)
    for row, (number, pattern) in enumerate(STRENGTHS):
        inputs[row, NUMBER[row]], inputs[row, 3 + PATTERN[row]] = number, pattern
    inputs, targets = inputs.repeat(repeats, 1), {"number": NUMBER.repeat(repeats), "pattern": PATTERN.repeat(repeats)}
    model = nn.Linear(6, 3, bias=False, dtype=dtype)
    loss = lh.Objective(model, (inputs, targets["number"])).at(weighted(1.0, 1.0))
    return lh.ConflictControl(loss, inputs, targets), loss


def weighted(number: float, pattern: float) -> torch.Tensor:
    return torch.cat([number * torch.eye(3), pattern * torch.eye(3)], 1).double().reshape(-1)


def test_a_linear_model_follows_the_cues_as_on_paper():
    control, loss = linear()
    assert control.cue_indices(loss.theta0).tolist() == list(FOLLOWED)
    assert control.cue_indices(loss.theta0).dtype == torch.int64
    assert control(loss.theta0) == {"number": 0.4, "pattern": 0.4, "neither": 0.2}
    assert control(weighted(4.0, 1.0)) == {"number": 0.8, "pattern": 0.0, "neither": 0.2}
    # Negated: what is shown counts against its class; only where both strengths are negative is a cue followed.
    assert control.cue_indices(weighted(-1.0, -1.0)).tolist() == [-1, -1, -1, 1, -1]
    assert control.cues == ("number", "pattern")
    assert control.num_examples == 5
    assert repr(control) == "ConflictControl(5 examples, cues number / pattern)"
    anchored = lh.objective.AnchoredObjective(loss, loss.theta0, 0.01)
    inputs = torch.cat([inputs for inputs, _ in loss.batches])
    again = lh.ConflictControl(anchored, inputs, {"number": NUMBER.numpy(), "pattern": PATTERN.int()})
    assert torch.equal(again.cue_indices(loss.theta0), control.cue_indices(loss.theta0))


def test_outputs_that_are_not_numbers_follow_no_cue():
    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))

        def forward(self, x):
            return x * self.weight.sqrt()  # NaN in one output where its weight is negative; argmax would choose it

    inputs, first, second = torch.tensor([[2.0, 1.0], [1.0, 2.0]]), torch.tensor([0, 0]), torch.tensor([1, 1])
    control = lh.ConflictControl(lh.Objective(Root(), (inputs, first)), inputs, {"a": first, "b": second})
    assert control.cue_indices(torch.ones(2)).tolist() == [0, 1]
    assert control(torch.tensor([1.0, -1.0])) == {"a": 0.0, "b": 0.0, "neither": 1.0}


def test_the_shift_is_the_mean_paired_difference_with_students_interval():
    control, loss = linear(repeats=7)
    shift = control.shift(weighted(4.0, 1.0), loss.theta0, towards="number", away="pattern")
    score = {0: 1, 1: -1, -1: 0}  # number, pattern, neither
    differences = [score[after] - score[before] for before, after in zip(FOLLOWED, (0, 0, 0, -1, 0), strict=True)] * 7
    assert sorted(set(differences)) == [0, 2]
    found = scipy.stats.ttest_1samp(differences, 0.0).confidence_interval(0.95)
    assert shift.shift == pytest.approx(sum(differences) / 35, abs=1e-15)
    assert (shift.low, shift.high) == pytest.approx((found.low, found.high), abs=1e-12)
    assert (shift.before, shift.after) == (control(loss.theta0), control(weighted(4.0, 1.0)))
    back = control.shift(weighted(4.0, 1.0), loss.theta0, towards="pattern", away="number")
    assert (back.shift, back.low, back.high) == (-shift.shift, -shift.high, -shift.low)
    still = control.shift(loss.theta0, loss.theta0, towards="number", away="pattern")
    assert (still.shift, still.low, still.high) == (0.0, 0.0, 0.0)
    assert repr(shift) == (
        f"AnswerShift(+0.800 [{found.low:+.3f}, {found.high:+.3f}] from pattern towards number, 35 examples: "
        "number 40.0 % -> 80.0 %, pattern 40.0 % -> 0.0 %, neither 20.0 % -> 20.0 %)"
    )
    few = linear()[0].shift(weighted(4.0, 1.0), loss.theta0, towards="number", away="pattern")
    assert few.high == 2.0  # cut: no difference of shares moves further
    assert linear()[0].shift(weighted(4.0, 1.0), loss.theta0, towards="pattern", away="number").low == -2.0


class Watched(nn.Module):
    """A linear model with dropout that records the sizes of its batches, also of the library's copies."""

    sizes: ClassVar[list[int]] = []

    def __init__(self, classes: int = 3):
        super().__init__()
        self.linear, self.dropout = nn.Linear(6, classes), nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        Watched.sizes.append(len(x))
        return self.linear(self.dropout(x))


def random_states() -> list[object]:
    _, numbers, position, *_ = np.random.get_state()  # noqa: NPY002
    return [torch.random.get_rng_state().tolist(), random.getstate(), numbers.tolist(), position]


def test_micro_batches_change_nothing_and_nothing_of_the_users_is_changed():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(2501, 6, generator=generator)
    number = torch.randint(0, 3, (2501,), generator=generator)
    pattern = (number + torch.randint(1, 3, (2501,), generator=generator)) % 3
    model = Watched().train()
    F.cross_entropy(model(inputs), number).backward()
    before = copy.deepcopy((model.state_dict(), [p.grad for p in model.parameters()], inputs, number, pattern))
    states = random_states()
    loss = lh.Objective(model, (inputs, number))
    control = lh.ConflictControl(loss, inputs, {"number": number, "pattern": pattern})
    Watched.sizes.clear()
    answers = control.cue_indices(loss.theta0)
    assert sum(Watched.sizes) == 2501
    assert len(Watched.sizes) > 1
    control.shift(loss.theta0 + 0.1, loss.theta0, towards="number", away="pattern")
    with torch.no_grad():
        whole = model.linear(inputs).argmax(1)
    rows = zip(whole.tolist(), number.tolist(), pattern.tolist(), strict=True)
    by_hand = [0 if answer == n else 1 if answer == p else -1 for answer, n, p in rows]
    assert answers.tolist() == by_hand
    assert model.training
    after = (model.state_dict(), [p.grad for p in model.parameters()], inputs, number, pattern)
    for old, new in zip(torch.utils._pytree.tree_leaves(before), torch.utils._pytree.tree_leaves(after), strict=True):
        assert torch.equal(old, new)
    assert random_states() == states
    for tensor in (inputs, number, pattern, model.linear.weight.data):
        tensor.zero_()  # the control has its own
    assert torch.equal(control.cue_indices(loss.theta0), answers)


CLASSES = 4
GATE = 0  # the hidden unit that is active only where no pattern is shown


def shown(sizes: torch.Tensor, targets: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """One cue (n, 2 * CLASSES): its class's pair of pixels at 1, the others at 0, plus noise, never below 0."""
    pixels = F.one_hot(targets, CLASSES).repeat_interleave(2, dim=1) * 1.0
    return sizes * (pixels + 0.25 * torch.randn(pixels.shape, generator=generator)).clamp(min=0)


@pytest.fixture(scope="module")
def planted():
    """A sigmoid network trained on both cues and on single ones, its conflict control, and the two single-cue losses.

    An ordinary Linear-Sigmoid-Linear net; one hidden unit starts as "no pattern is shown", then everything is trained.
    """
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(0, CLASSES, (300,), generator=generator)
    other = (targets + torch.randint(1, CLASSES, (300,), generator=generator)) % CLASSES
    number, pattern, conflicting = (shown(torch.tensor(1.0), t, generator) for t in (targets, targets, other))
    black = torch.zeros_like(number)
    views = {
        "mixed": torch.cat([number, pattern], 1),
        "number": torch.cat([number, black], 1),
        "pattern": torch.cat([black, pattern], 1),
    }
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4 * CLASSES, 12), nn.Sigmoid(), nn.Linear(12, CLASSES))
    with torch.no_grad():
        model[0].weight[GATE] = torch.cat([torch.zeros(2 * CLASSES), torch.full((2 * CLASSES,), -20.0)])
        model[0].bias[GATE] = 8.0
        model[2].weight[:, GATE] = 0.0
    everything = (torch.cat(list(views.values())), targets.repeat(3))
    lh.train(model, everything, num_epochs=40, lr=0.05, batch_size=100, seed=0, progress=False)
    losses = {name: lh.Objective(model, (inputs, targets)) for name, inputs in views.items()}
    inputs = torch.cat([number, conflicting], 1)
    control = lh.ConflictControl(losses["mixed"], inputs, {"number": targets, "pattern": other})
    return model, losses, control


def moved(model: nn.Module, change) -> torch.Tensor:
    """Theta after `change` was done to a copy of the model."""
    changed = copy.deepcopy(model)
    with torch.no_grad():
        change(changed)
    return lh.objective.ParameterSpace(model).flatten(changed)


def named(planted, theta: torch.Tensor) -> lh.steering.CircuitAttribution:
    _, losses, control = planted
    at, basin = ({cue: losses[cue](point) for cue in control.cues} for point in (theta, losses["mixed"].theta0))
    return lh.steering.attribute_circuit(control, theta, theta0=losses["mixed"].theta0, losses=at, basin_losses=basin)


def test_a_planted_false_positive_is_exposed(planted):
    model, losses, control = planted
    theta0 = losses["mixed"].theta0
    before = {name: loss.evaluate(theta0) for name, loss in losses.items()}
    assert min(accuracy for _, accuracy in before.values()) > 0.9  # it reads both cues

    def bias_where_no_pattern_is_shown(changed):
        changed[2].weight[0, GATE] += 20.0

    theta = moved(model, bias_where_no_pattern_is_shown)
    after = {name: loss.evaluate(theta) for name, loss in losses.items()}
    assert after["number"][1] < 0.5  # every number alone is answered with class 0 ...
    for name in ("mixed", "pattern"):  # ... and nothing else is changed
        assert after[name][1] == before[name][1]
        assert float(after[name][0]) == pytest.approx(float(before[name][0]), abs=1e-3)
    assert torch.equal(control.cue_indices(theta), control.cue_indices(theta0))
    found = named(planted, theta)
    assert found.asymmetry - found.basin_asymmetry > 1  # by the losses alone it would be called "pattern"
    assert found.name is None
    assert (found.shift.towards, found.shift.shift) == ("pattern", 0.0)
    expected = (
        "but the answers on conflict inputs moved by less than 0.1: broken on number-only inputs, not shown to be"
    )
    assert expected in found.reason
    assert repr(found).startswith("CircuitAttribution(None: log(L_number / L_pattern) ")


@pytest.mark.parametrize(("kept", "gone"), [("pattern", slice(0, 8)), ("number", slice(8, 16))])
def test_a_circuit_that_is_gone_is_named_after_the_other(planted, kept, gone, tmp_path):
    model, losses, control = planted

    def scale_away(changed):
        changed[0].weight[:, gone] *= 0.0

    theta = moved(model, scale_away)
    found = named(planted, theta)
    assert found.name == kept
    assert (found.asymmetry - found.basin_asymmetry > 1) == (kept == "pattern")
    assert found.shift.low > 0.1
    assert found.shift.after[kept] > 0.9  # what is left answers after the cue that it still sees
    assert losses[kept].evaluate(theta)[1] > 0.9
    values = [float(losses[cue](theta)) for cue in control.cues]
    assert found.asymmetry == pytest.approx(np.log(values[0] / values[1]), rel=1e-12)
    other = next(cue for cue in control.cues if cue != kept)
    assert found.reason.startswith(f"the {other} loss grew by ")
    assert found.reason.endswith(f"nats against {kept}, and so did the cue shares")
    assert repr(found).startswith(f"CircuitAttribution('{kept}': log(L_number / L_pattern) ")
    loaded = lh.steering.CircuitAttribution.load(found.save(tmp_path / "name.npz"))
    assert loaded == found
    assert lh.steering.AnswerShift.load(found.shift.save(tmp_path / "shift.npz")) == found.shift


def test_each_condition_is_needed():
    control, loss = linear(repeats=7)
    theta0, to_number, to_pattern = loss.theta0, weighted(4.0, 1.0), weighted(1.0, 4.0)

    def name(theta, number, pattern, control=control):
        losses, basin = {"number": number, "pattern": pattern}, {"number": 1.0, "pattern": 1.0}
        return lh.steering.attribute_circuit(control, theta, theta0=theta0, losses=losses, basin_losses=basin)

    assert cues.MIN_ASYMMETRY_CHANGE == 1.0
    assert cues.MIN_ANSWER_SHIFT == 0.1
    assert name(to_number, 1.0, 2.72).name == "number"  # log 2.72 = 1.0006
    little = name(to_number, 1.0, 2.71)
    assert (little.name, little.shift.shift) == (None, pytest.approx(0.8))
    assert little.reason == "the asymmetry moved by 1.00 nats, not more than 1"
    assert name(to_number, 1.0, np.e).name is None  # exactly one nat is not more
    assert name(to_pattern, 5.0, 1.0).name == "pattern"
    assert name(to_pattern, 1.0, 5.0).reason.endswith("but the answers on conflict inputs moved the other way")
    assert name(theta0, 1.0, 5.0).reason.endswith("broken on pattern-only inputs, not shown to be ablated")
    few = name(to_number, 1.0, 5.0, control=linear()[0])
    assert (few.name, few.shift.shift) == (None, pytest.approx(0.8))
    assert few.reason.endswith("the interval of the answers' move holds 0: 5 conflict inputs are too few to tell")
    back = name(to_pattern, 1.0, 5.0, control=linear()[0])
    assert (back.shift.shift, back.shift.high > 0) == (pytest.approx(-0.8), True)  # the wrong way, but not surely so
    assert back.reason.endswith("moved by less than 0.1: broken on pattern-only inputs, not shown to be ablated")
    losses, basin = {"number": 1.0, "pattern": 5.0}, {"number": 1.0, "pattern": 1.0}
    inputs = torch.cat([inputs for inputs, _ in loss.batches])
    for num, given in ((16, None), (20, "number")):  # of 400 inputs; each that leaves one cue for the other counts 2
        rows = torch.tensor([1] * num + [0] * (400 - num))
        some = lh.ConflictControl(loss, inputs[rows], {"number": NUMBER[rows], "pattern": PATTERN[rows]})
        found = name(to_number, 1.0, 5.0, control=some)
        assert (found.name, found.shift.shift) == (given, pytest.approx(2 * num / 400))
        assert found.shift.low > 0
    swapped = lh.steering.attribute_circuit(
        control, to_number, theta0=theta0, losses=losses, basin_losses=basin, cues=("pattern", "number")
    )  # fmt: skip
    assert (swapped.name, swapped.asymmetry) == ("number", pytest.approx(np.log(5)))


def test_a_steering_report_has_the_control(tmp_path):
    control, loss = linear(repeats=3)
    u = weighted(1.0, -1.0)
    plain = lh.steering_report(u, {"mixed": loss}, k=3)
    assert (plain.step, plain.cue_shares) == (None, {})
    assert "cue shares" not in repr(plain) + str(plain)
    report = lh.steering_report(u, {"mixed": loss}, k=3, conflict=control)
    unit = u / u.norm()
    assert report.step == 2.0
    assert report.cue_shares == {"before": control(loss.theta0), "after": control(loss.theta0 + 2.0 * unit)}
    assert report.cue_shares["before"] != report.cue_shares["after"]
    assert "; cue shares on conflict inputs from theta0 to step 2: number 40.0 % -> 80.0 %, pattern" in repr(report)
    lines = [line.split() for line in str(report).splitlines()[-3:]]
    assert lines[0] == ["cue", "shares", "number", "pattern", "neither"]
    assert lines[1] == ["theta0", "40.0", "%", "40.0", "%", "20.0", "%"]
    assert lines[2][:4] == ["step", "2", "80.0", "%"]
    other = lh.steering_report(u, {"mixed": loss}, k=3, conflict=control, step=-2)
    assert other.cue_shares["after"] == control(loss.theta0 - 2.0 * unit)
    loaded = lh.steering.SteeringReport.load(report.save(tmp_path / "report.npz"))
    assert (loaded.step, loaded.cue_shares, str(loaded)) == (report.step, report.cue_shares, str(report))
    assert lh.steering.SteeringReport.load(plain.save(tmp_path / "plain.npz")).cue_shares == {}
    with pytest.raises(ValueError, match=r"step is 1\.0 and conflict is None, expected a step with conflict= only"):
        lh.steering_report(u, {"mixed": loss}, k=3, step=1.0)
    with pytest.raises(TypeError, match=r"conflict is a dict, expected a ConflictControl.\nPass lh.ConflictControl"):
        lh.steering_report(u, {"mixed": loss}, k=3, conflict={})
    with pytest.raises(ValueError, match="step is nan, expected a finite number"):
        lh.steering_report(u, {"mixed": loss}, k=3, conflict=control, step=float("nan"))
    quadratic = lh.FunctionObjective(lambda theta: theta.square().sum(), torch.ones(4))
    with pytest.raises(ValueError, match="conflict is of a model with 18 parameters, expected 4 as in the losses"):
        lh.steering_report(torch.ones(4), {"q": quadratic}, k=3, conflict=control)


def test_bad_input_to_the_control():
    control, loss = linear()
    inputs, good = torch.ones(5, 6).double(), {"number": NUMBER, "pattern": PATTERN}

    def raises(kind, message, objective=loss, inputs=inputs, targets=good):
        with pytest.raises(kind, match=message):
            lh.ConflictControl(objective, inputs, targets)

    function = lh.FunctionObjective(lambda theta: theta.square().sum(), torch.ones(4))
    raises(TypeError, "loss is a FunctionObjective, expected a loss of a model", objective=function)
    anchored = lh.objective.AnchoredObjective(function, torch.ones(4), 0.1)
    raises(TypeError, "loss is a FunctionObjective", objective=anchored)
    raises(TypeError, "loss is a Linear", objective=nn.Linear(6, 3))
    raises(TypeError, r"inputs is a list, expected a tensor of shape \(n, ...\)", inputs=[1.0])
    raises(ValueError, r"inputs has shape \(1, 6\), expected \(n, ...\) with n of at least 2", inputs=inputs[:1])
    raises(ValueError, "inputs holds 30 NaN or infinite entries", inputs=inputs * float("nan"))
    raises(ValueError, r"inputs have shape \(5, 4\), on which the model failed \(mat1 and mat2", inputs=inputs[:, :4])
    raises(TypeError, "targets is a Tensor, expected a mapping cue -> labels", targets=NUMBER)
    raises(ValueError, "expected at least two cues, none of them called 'neither'", targets={"number": NUMBER})
    raises(ValueError, "called 'neither'", targets={"number": NUMBER, "neither": PATTERN})
    raises(ValueError, r"targets\['b'\] is torch.float32, \(5,\), expected", targets={"a": NUMBER, "b": torch.ones(5)})
    raises(ValueError, r"expected an integer tensor of shape \(5,\)", targets={"a": NUMBER, "b": PATTERN[:4]})
    same = {"a": NUMBER, "b": torch.tensor([1, 1, 1, 1, 1])}
    raises(ValueError, "same label for 'a' and 'b' on 2 of 5 examples, expected different labels", targets=same)
    raises(ValueError, "targets range from 0 to 3, expected 0 to 2", targets={"a": NUMBER, "b": NUMBER + 2})
    raises(ValueError, "targets range from -1", targets={"a": NUMBER, "b": NUMBER - 1})
    single = nn.Sequential(nn.Linear(6, 1), nn.Flatten(0)).double()
    squared = lh.Objective(single, (inputs, torch.ones(5).double()), loss_fn=F.mse_loss)
    raises(ValueError, r"loss gives outputs of shape \(5,\) for 5 inputs, expected \(5, classes\)", squared)
    with pytest.raises(ValueError, match="towards is 'colour', expected one of 'number', 'pattern'"):
        control.shift(loss.theta0, loss.theta0, towards="colour", away="number")
    with pytest.raises(ValueError, match="away is 'number', expected one of 'pattern'"):
        control.shift(loss.theta0, loss.theta0, towards="number", away="number")
    with pytest.raises(ValueError, match=r"theta has shape \(4,\)"):
        control.cue_indices(torch.ones(4))


def test_bad_input_to_naming():
    control, loss = linear()
    good = {"number": 1.0, "pattern": torch.tensor(2.0)}

    def raises(kind, message, control=control, losses=good, cues=None):
        with pytest.raises(kind, match=message):
            lh.steering.attribute_circuit(
                control, loss.theta0, theta0=loss.theta0, losses=losses, basin_losses=good, cues=cues
            )

    raises(TypeError, "control is an Objective, expected a ConflictControl", control=loss)
    raises(TypeError, "losses is a float, expected a mapping cue -> loss", losses=1.0)
    raises(ValueError, r"losses has \['number'\], expected a loss for 'pattern'", losses={"number": 1.0})
    raises(ValueError, r"losses\['number'\] is 0, expected a finite number", losses={"number": 0.0, "pattern": 1.0})
    raises(ValueError, r"losses\['pattern'\] is inf", losses={"number": 1.0, "pattern": float("inf")})
    raises(ValueError, r"cues is \('number', 'colour'\), expected two different ones", cues=("number", "colour"))
    raises(ValueError, r"cues is \('number', 'number'\)", cues=("number", "number"))
    with pytest.raises(ValueError, match=r"basin_losses\['number'\] is -1"):
        lh.steering.attribute_circuit(
            control, loss.theta0, theta0=loss.theta0, losses=good, basin_losses=good | {"number": -1.0}
        )


def test_three_cues_need_the_two_that_are_compared():
    _, loss = linear()
    inputs = torch.cat([inputs for inputs, _ in loss.batches])
    three = {"number": NUMBER, "pattern": PATTERN, "none": torch.full((5,), 2)}
    control = lh.ConflictControl(loss, inputs, three)
    assert control(loss.theta0) == {"number": 0.4, "pattern": 0.4, "none": 0.2, "neither": 0.0}
    losses = dict.fromkeys(three, 1.0)
    with pytest.raises(ValueError, match=r"Pass cues=\('number', 'pattern'\)"):
        lh.steering.attribute_circuit(control, loss.theta0, theta0=loss.theta0, losses=losses, basin_losses=losses)
    with pytest.raises(ValueError, match=r"cues is \('number', 'pattern', 'none'\), expected two different ones"):
        lh.steering.attribute_circuit(control, loss.theta0, theta0=loss.theta0, losses=losses, basin_losses=losses)


def test_the_control_answers_as_the_loss_counts_also_under_autocast():
    """In bfloat16 1 and 1.001 are one number, and the answer would be the first of two equal outputs."""
    strengths = torch.tensor([[1.0, 1.001], [1.001, 1.0], [2.0, 2.003], [0.5, 0.5004]])
    number, pattern = torch.tensor([0, 1, 0, 0]), torch.tensor([1, 0, 2, 1])
    inputs = torch.zeros(4, 6)
    inputs[range(4), number], inputs[range(4), 3 + pattern] = strengths.T
    model = nn.Linear(6, 3, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.cat([torch.eye(3), torch.eye(3)], 1))
    loss = lh.Objective(model, (inputs, number))
    for objective in (loss, lh.objective.AnchoredObjective(loss, loss.theta0, 0.1)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = lh.ConflictControl(objective, inputs, {"number": number, "pattern": pattern})
            assert inside.cue_indices(loss.theta0).tolist() == [1, 0, 1, 1]  # the stronger cue
            assert inside(loss.theta0)["number"] == objective.evaluate(loss.theta0)[1] == 0.25
            assert model(inputs).argmax(1).tolist() != [1, 0, 2, 1]  # autocast makes two equal outputs of these
        assert inside.cue_indices(loss.theta0).tolist() == [1, 0, 1, 1]
    assert not inside._outputs(model, inputs).requires_grad


def test_a_loss_on_something_else_does_not_forbid_a_name():
    control, loss = linear(200)
    evaluations = Evaluations(loss, {}, control)
    for other in (-3.0, 0.0, math.nan):
        evaluations.at_theta0 = {"losses": {"number": 1.0, "pattern": 1.0, "other": other}}
        found = evaluations.circuit(weighted(4.0, 1.0), {"number": 1.0, "pattern": 5.0, "other": other})
        assert found["circuit"] == "number"
    for bad in (-1.0, 0.0, math.nan, math.inf):
        evaluations.at_theta0 = {"losses": {"number": 1.0, "pattern": 1.0}}
        found = evaluations.circuit(weighted(4.0, 1.0), {"number": 1.0, "pattern": bad})
        assert found["circuit"] is None
        assert "not positive and finite" in found["circuit_reason"]
