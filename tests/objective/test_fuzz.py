"""A seeded fuzz for numbers that are wrong without a word.

Oracle: central differences of float64 gradients, and of values, computed without the library (`fuzz_oracle.py`); that
oracle against Hessians on paper. What has to be found is planted first.

One case alone, or a whole family of them, with what was wrong:

    PYTHONPATH=tests python tests/objective/test_fuzz.py 'layer/GRU/0' 'special/InfoNCE/3'
    PYTHONPATH=tests python tests/objective/test_fuzz.py function
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lowhanging as lh
from fuzz_cases import FAMILIES, LOSSES_WITH_WEIGHTS, SPECIALS, TASKS, cases, mean_of, scene_of
from fuzz_layers import EXCLUDED, FUNCTIONS, LAYERS
from fuzz_oracle import Outcome, Reference, Scene, judged, summary

D = torch.float64


def outcomes(names: list[str]) -> list[Outcome]:
    found = []
    for name in names:
        make, seed = scene_of(name)
        found.append(judged(name, make, seed=seed))
    return found


# What is covered ------------------------------------------------------------------------------------------------------


def test_every_layer_of_torch_is_covered_or_excluded() -> None:
    classes = {name for name, kind in vars(nn).items() if inspect.isclass(kind) and issubclass(kind, nn.Module)}
    losses = {name for task in TASKS.values() for name in task.classes}
    covered = {*LAYERS, *losses, *LOSSES_WITH_WEIGHTS}
    assert set(LOSSES_WITH_WEIGHTS) <= set(SPECIALS)
    assert classes - covered - set(EXCLUDED) == set(), "neither in LAYERS, TASKS nor EXCLUDED"
    assert (covered | set(EXCLUDED)) - classes == set(), "no longer in torch.nn"
    assert not covered & set(EXCLUDED)
    assert all(EXCLUDED.values())
    assert len(FUNCTIONS) >= 60


# The oracle -----------------------------------------------------------------------------------------------------------


def test_reference_equals_softmax_regression_on_paper() -> None:
    x, y = torch.randn(7, 4, dtype=D), torch.randint(0, 3, (7,))
    net = nn.Linear(4, 3, bias=False).double()
    reference = Reference(net, lambda model: F.cross_entropy(model(x), y))
    q = (x @ net.weight.detach().T).softmax(1)
    curvature = torch.diag_embed(q) - q[:, :, None] * q[:, None]  # (7, 3, 3), of each example in its logits
    hessian = torch.einsum("nab,ni,nj->aibj", curvature, x, x).reshape(12, 12) / 7
    gradient = ((q - F.one_hot(y, 3)).T @ x / 7).reshape(-1)
    here, v = torch.zeros(12, dtype=D), torch.randn(12, dtype=D)
    assert reference.gradient_is_derivative(here, v)
    assert torch.allclose(reference.gradient(here, by_values=False), gradient, rtol=1e-12)
    assert torch.allclose(reference.gradient(here, by_values=True), gradient, rtol=1e-7, atol=1e-9)
    for by_values, rtol in ((False, 1e-8), (True, 1e-5)):
        product, error = reference.product(here, v, by_values=by_values)
        apart = float((product - hessian @ v).norm())
        assert apart <= rtol * float(product.norm())
        assert apart <= error + 1e-9 * float(product.norm())


def test_reference_sees_that_a_gradient_of_torch_is_not_the_derivative() -> None:
    tokens, y = torch.randint(0, 3, (8, 2)), torch.randn(8, 2, dtype=D)
    net = nn.Embedding(3, 2, padding_idx=0).double()
    nn.init.normal_(net.weight)
    weight = net.weight.detach().clone()
    here, v = torch.zeros(6, dtype=D), torch.randn(6, dtype=D)
    padded = Reference(net, lambda model: F.mse_loss(model(tokens).sum(1), y))
    assert not padded.gradient_is_derivative(here, v)
    hot = F.one_hot(tokens, 3).double().sum(1)  # (8, 3)
    gradient = hot.T @ (hot @ weight - y) / 8
    product = hot.T @ hot @ v.view(3, 2) / 8
    assert torch.allclose(padded.gradient(here, by_values=True), gradient.reshape(-1), rtol=1e-7)
    assert torch.allclose(padded.product(here, v, by_values=True)[0], product.reshape(-1), rtol=1e-5)


# What is planted is found ---------------------------------------------------------------------------------------------


def scene(**options: Any) -> Scene:
    data = torch.randn(12, 3, dtype=D), torch.randint(0, 3, (12,))
    return Scene(
        lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double(), data, mean_of(F.cross_entropy),
        **options,
    )  # fmt: skip


def spoiled(method: str, change: Callable[..., Any]) -> Callable[[nn.Module], Any]:
    """An Objective one of whose methods gives something else."""

    def make(model: nn.Module) -> Any:
        class Spoiled(lh.Objective):
            pass

        own = getattr(lh.Objective, method)
        setattr(Spoiled, method, lambda self, *arguments: change(own(self, *arguments), self, *arguments))
        torch.manual_seed(0)
        return Spoiled(model, (torch.randn(12, 3, dtype=D), torch.randint(0, 3, (12,))))

    return make


def fail(message: str) -> Callable[..., Any]:
    def change(*_: Any) -> Any:
        raise RuntimeError(message)

    return change


def second_only(number: Tensor, loss: Any, *_: Any) -> Tensor:
    loss.calls = getattr(loss, "calls", 0) + 1
    return number * (1 + 1e-4) if loss.calls == 2 else number


def write(number: Tensor, loss: Any, *_: Any) -> Tensor:
    with torch.no_grad():
        loss.user[0].weight.add_(1e-3)
    return number


PLANTED: dict[str, tuple[Callable[[nn.Module], Any], str, str]] = {
    "nothing": (spoiled("hvp", lambda got, *_: got), "right", ""),
    "a value": (spoiled("__call__", lambda got, *_: got + 1e-4), "wrong", "value off"),
    "a gradient": (spoiled("gradient", lambda got, *_: got * (1 + 1e-4)), "wrong", "gradient off"),
    "a product": (spoiled("hvp", lambda got, *_: got * (1 + 1e-4)), "wrong", "product off"),
    "the second product": (spoiled("hvp", second_only), "wrong", "second product off"),
    "a product of zero": (spoiled("hvp", lambda got, *_: 0 * got), "wrong", "product off by 1"),
    "a product that is not finite": (spoiled("hvp", lambda got, *_: got * float("nan")), "wrong", "product off by nan"),
    "an error of torch's": (spoiled("hvp", fail("mat1 and mat2 shapes cannot be multiplied")), "raw", "mat1"),
    "a refusal": (spoiled("hvp", fail("k is 0, expected 1.\nPass 1.")), "valid but refused", "expected"),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_found(fault: str) -> None:
    objective, kind, words = PLANTED[fault]
    outcome = judged("planted", lambda: scene(objective=objective))
    assert outcome.kind == kind, str(outcome)
    assert words in outcome.words


def test_what_may_be_refused_is_no_fault_when_it_is() -> None:
    refusal = PLANTED["a refusal"][0]
    assert judged("planted", lambda: scene(objective=refusal, may_refuse="so")).kind == "refused"
    wrong = PLANTED["a product"][0]
    assert judged("planted", lambda: scene(objective=wrong, may_refuse="so")).kind == "wrong"


def test_what_is_no_function_of_the_weights_must_be_refused() -> None:
    def noisy(**options: Any) -> Scene:
        made = scene(may_refuse="it is random", **options)
        mean = made.mean
        made.mean = lambda model, batches: mean(model, batches) + torch.rand(())
        return made

    assert judged("planted", noisy).kind == "wrong"
    assert judged("planted", lambda: noisy(objective=PLANTED["a refusal"][0])).kind == "wrong"  # its products only
    refusal = fail("model is random, expected a function.\nDraw once.")
    assert judged("planted", lambda: noisy(objective=refusal)).kind == "refused"


def test_a_changed_model_of_the_users_is_found() -> None:
    def make(model: nn.Module) -> Any:
        loss = spoiled("hvp", write)(model)
        loss.user = model
        return loss

    outcome = judged("planted", lambda: scene(objective=make))
    assert outcome.kind == "left changed", str(outcome)


def test_a_model_that_holds_weights_twice_is_found() -> None:
    reference = lambda: nn.Linear(3, 3, bias=False).double()  # noqa: E731
    outcome = judged("planted", lambda: scene(reference=reference))
    assert outcome.kind == "wrong"
    assert "theta has" in outcome.words


# The fuzz -------------------------------------------------------------------------------------------------------------


def check(names: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """No number is wrong, nothing is left changed, and what has to be taken is; torch's own errors are shown."""
    found = outcomes(names)
    raw = [outcome for outcome in found if outcome.kind == "raw"]
    faults = [outcome for outcome in found if outcome.kind not in ("right", "refused", "raw")]
    with capsys.disabled():
        print(f"\n{summary(found)}", *raw, sep="\n")
    assert not faults, "\n".join([summary(found), *map(str, faults)])


def ordinary(family: str) -> list[str]:
    """Every layer, loss, loader and special scene once, and every fourth function."""
    return cases(family, range(1))[:: 4 if family == "function" else 1]


@pytest.mark.parametrize("family", FAMILIES)
def test_no_number_is_wrong(family: str, capsys: pytest.CaptureFixture[str]) -> None:
    check(ordinary(family), capsys)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1, 6))
@pytest.mark.parametrize("family", FAMILIES)
def test_no_number_is_wrong_with_other_seeds(family: str, seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    check(cases(family, range(seed, seed + 1)), capsys)


def main(arguments: list[str]) -> None:
    """Judge cases by name, or all of a family; print each that is not right."""
    torch.set_num_threads(1)
    names = [name for given in arguments for name in (ordinary(given) if given in FAMILIES else [given])]
    found = []
    for name in names:
        found += outcomes([name])
        if found[-1].kind != "right" or len(names) == 1:
            print(found[-1], flush=True)
    print(summary(found))


if __name__ == "__main__":
    main(sys.argv[1:] or list(FAMILIES))
