"""A stack against the same run by a plain loop, and against itself in other company; interrupted, resumed, refused."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lowhanging as lh

DATA = lh.modular_addition(11, 0.8)
STEPS = 30


def factory(seed: int) -> nn.Module:
    return lh.ModularMLP(11, width=8, hidden=6, seed=seed)


def stack(seeds=(0, 1, 2), **arguments) -> lh.training.StackRun:
    arguments = {"num_steps": STEPS, "batch_size": 16, "lr": 0.01, "log_every": 7, "progress": False} | arguments
    return lh.train_stack(factory, DATA.train, seeds, **arguments)


def alone(seed: int, penalty: float, optimizer=torch.optim.Adam, factor=lambda share: 1.0) -> nn.Module:
    """The same run as a user would write it: one model, one optimizer, autograd."""
    model = factory(seed)
    steps = optimizer(model.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(2**31 + seed)
    n, pending = len(DATA.train), torch.empty(0, dtype=torch.int64)
    for step in range(STEPS):
        while len(pending) < 16:
            pending = torch.cat([pending, torch.randperm(n, generator=generator)])
        batch, pending = pending[:16], pending[16:]
        steps.param_groups[0]["lr"] = 0.01 * factor(step / STEPS)
        loss = F.cross_entropy(model(DATA.train.inputs[batch]), DATA.train.targets[batch])
        loss = loss + penalty * sum(weight.square().sum() for weight in model.parameters())
        steps.zero_grad()
        loss.backward()
        steps.step()
    return model


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "adamw"])
@pytest.mark.parametrize("penalty", [0.0, 1e-2])
def test_every_seed_is_the_run_that_it_would_be_alone(optimizer, penalty):
    adamw = functools.partial(torch.optim.AdamW, weight_decay=1.0, betas=(0.9, 0.98))
    chosen = {"adam": "adam", "sgd": "sgd", "adamw": functools.partial(adamw, lr=0.01)}[optimizer]
    by_hand = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD, "adamw": adamw}[optimizer]
    run = stack(optimizer=chosen, lr=None if optimizer == "adamw" else 0.01, penalty=penalty, schedule="cosine")
    for seed in (0, 1, 2):
        cosine = lambda share: 0.5 * (1 + torch.tensor(share * torch.pi).cos().item())  # noqa: E731
        expected = alone(seed, penalty, by_hand, cosine)
        for (name, mine), theirs in zip(run.model(seed).named_parameters(), expected.parameters(), strict=True):
            assert torch.allclose(mine, theirs, rtol=1e-3, atol=1e-5), name


def test_a_seed_is_the_same_run_in_any_stack_bit_for_bit():
    one, four, sixteen = stack([3]), stack([5, 3, 0, 9]), stack(range(16))
    for other in (four, sixteen):
        assert torch.equal(one.thetas[0], other.thetas[other.index(3)])
        assert torch.equal(one.losses["train"][0, 1:], other.losses["train"][other.index(3), 1:])
    assert not torch.equal(four.thetas[0], four.thetas[1])


def test_more_seeds_than_one_pass_takes():
    run = stack(range(37), penalty=1e-2)  # 16 + 16 + 5
    for seed in (0, 16, 36):
        assert torch.equal(run.thetas[run.index(seed)], stack([seed], penalty=1e-2).thetas[0])
        expected = torch.cat([weight.detach().flatten() for weight in alone(seed, 1e-2).parameters()])
        assert torch.allclose(run.thetas[run.index(seed)], expected, rtol=1e-3, atol=1e-5)
    assert run.losses["train"].shape == (37, 6)


def test_the_history_holds_evaluations_and_snapshots():
    run = stack(evaluate={"test": DATA.test, "again": (DATA.test.inputs, DATA.test.targets)}, snapshots="embed*")
    assert run.steps.tolist() == [0, 7, 14, 21, 28, 30]
    assert run.snapshots["embedding"].shape == (3, 6, 11, 8)
    for seed in (0, 1, 2):
        i = run.index(seed)
        assert torch.equal(run.snapshots["embedding"][i, 0], factory(seed).embedding.detach())
        assert torch.equal(run.snapshots["embedding"][i, -1], run.model(seed).embedding.detach())
        value, accuracy = lh.Objective(run.model(seed), DATA.test).evaluate(run.thetas[i])
        assert float(run.losses["test"][i, -1]) == pytest.approx(float(value), rel=1e-5)
        assert float(run.accuracies["test"][i, -1]) == pytest.approx(accuracy)
    assert torch.equal(run.losses["test"], run.losses["again"])
    assert bool(run.losses["train"][:, 0].isnan().all())
    assert bool((run.losses["train"][:, -1] < run.losses["train"][:, 1]).all())
    assert set(run.accuracies) == {"test", "again"}
    assert repr(run).startswith("StackRun(3 seeds, 30 steps in ")


def test_the_models_of_a_run_row_by_row(tmp_path):
    run = stack(snapshots="*", evaluate={"test": DATA.test})
    for seed in (0, 2):
        models = run.history(seed)
        assert len(models) == len(run.steps) == 6
        for name, weight in factory(seed).named_parameters():
            assert torch.equal(dict(models[0].named_parameters())[name], weight)
        for name, weight in run.model(seed).named_parameters():
            assert torch.equal(dict(models[-1].named_parameters())[name], weight)
        for log, model in enumerate(models):  # the losses that were logged are those of the models
            loss = F.cross_entropy(model(DATA.test.inputs), DATA.test.targets).detach()
            assert float(loss) == pytest.approx(float(run.losses["test"][run.index(seed), log]), rel=1e-5)
    with torch.no_grad():
        models[0].embedding.zero_()
    assert bool(run.snapshots["embedding"][2, 0].any())  # a copy
    loaded = lh.training.StackRun.load(run.save(tmp_path / "run"))
    assert torch.equal(loaded.history(0, factory)[3].embedding, run.history(0)[3].embedding)
    with pytest.raises(ValueError, match="factory is missing"):
        loaded.history(0)
    with pytest.raises(ValueError, match="seed is 7, expected one of the 3 trained"):
        run.history(7)
    message = r"snapshots lack \['embedding', 'second'\], expected every parameter.\n.*snapshots=\"\*\""
    with pytest.raises(ValueError, match=message):
        stack(snapshots=["first", "un*"]).history(0)


def test_a_small_data_set_is_taken_whole():
    run = stack([4], batch_size=10_000, penalty=0.0)
    model = factory(4)
    steps = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(STEPS):
        steps.zero_grad()
        F.cross_entropy(model(DATA.train.inputs), DATA.train.targets).backward()
        steps.step()
    for mine, theirs in zip(run.model(4).parameters(), model.parameters(), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-3, atol=1e-5)


def test_any_module_and_any_loss():
    torch.manual_seed(0)
    inputs, targets = torch.randn(40, 3), torch.randn(40, 2)

    def make(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 2))

    def batch_loss(model, batch):
        return (model(batch[0]) - batch[1]).square().sum(), batch[1].numel()

    arguments = {"num_steps": 20, "batch_size": 8, "log_every": 20, "progress": False}
    one = lh.train_stack(make, (inputs, targets), (0, 1), loss_fn=F.mse_loss, **arguments)
    other = lh.train_stack(make, (inputs, targets), (0, 1), batch_loss=batch_loss, **arguments)
    assert torch.allclose(one.thetas, other.thetas, rtol=1e-3, atol=1e-5)
    assert one.accuracies == {}


def test_nothing_of_the_users_is_touched():
    models = {}

    def make(seed: int) -> nn.Module:
        models[seed] = factory(seed)
        return models[seed]

    state, inputs = torch.get_rng_state(), DATA.train.inputs.clone()
    run = lh.train_stack(make, DATA.train, (0, 1), num_steps=3, progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(DATA.train.inputs, inputs)
    for seed, model in models.items():
        assert torch.equal(model.embedding, factory(seed).embedding)
        assert model.embedding.grad is None
    assert not torch.equal(run.model(0).embedding, factory(0).embedding)


class Interrupted:
    """A cross-entropy that stops the run after so many steps."""

    def __init__(self, left: float):
        self.left = left

    def __call__(self, outputs, targets):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return F.cross_entropy(outputs, targets)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_an_interrupted_stack_continues_to_the_same_bits(tmp_path, optimizer):
    arguments = {"evaluate": {"test": DATA.test}, "snapshots": ["embedding"], "optimizer": optimizer, "penalty": 1e-3}
    expected = stack(**arguments)
    path = tmp_path / "stack.npz"
    for left in (30, 25):  # the checks of the loss, the evaluations and some steps
        with pytest.raises(KeyboardInterrupt):
            stack(loss_fn=Interrupted(left), resume=path, **arguments)
    run = stack(loss_fn=Interrupted(1e9), resume=path, **arguments)
    assert path.exists()
    assert torch.equal(run.thetas, expected.thetas)
    assert torch.equal(run.losses["test"], expected.losses["test"])
    assert torch.equal(run.losses["train"][:, 1:], expected.losses["train"][:, 1:])
    assert torch.equal(run.snapshots["embedding"], expected.snapshots["embedding"])
    finished = stack(loss_fn=Interrupted(1e9), resume=path, **arguments)
    assert torch.equal(finished.thetas, expected.thetas)


def test_a_file_of_another_run_is_refused(tmp_path):
    path = tmp_path / "stack.npz"
    stack(resume=path)
    others = {
        "seeds, num_steps": {"seeds": (0, 1)},
        "batch_size, log_every or penalty": {"penalty": 0.1},
        "num_steps, batch_size, log_every": {"log_every": 5},
        "optimizer, lr or schedule": {"lr": None, "optimizer": lambda weights: torch.optim.SGD(weights, lr=0.5)},
        "or schedule": {"schedule": lambda share: 0.0},
        "model or loss": {"loss_fn": lambda outputs, targets: 0 * outputs.sum()},
        "snapshots": {"snapshots": "embedding"},
        "evaluate": {"evaluate": {"test": DATA.test}},
    }
    for name, other in others.items():
        with pytest.raises(ValueError, match=rf"resume is .*, the file of a training of a stack with another .*{name}"):
            stack(resume=path, **other)
    evaluated = tmp_path / "evaluated.npz"
    stack(resume=evaluated, evaluate={"test": DATA.test})
    with pytest.raises(ValueError, match="with another evaluate"):
        stack(resume=evaluated, evaluate={"test": DATA.train})


class Halving:
    """A schedule that is an object: its repr differs in every process."""

    def __call__(self, share: float) -> float:
        return 1 - share / 2


def test_options_that_are_objects_are_recognised(tmp_path):
    path = tmp_path / "stack.npz"
    first = stack(resume=path, schedule=Halving())
    assert torch.equal(stack(resume=path, schedule=Halving()).thetas, first.thetas)


@pytest.mark.parametrize("optimizer", [torch.optim.Adafactor, torch.optim.Muon])
def test_an_optimizer_that_mixes_seeds_is_refused(optimizer):
    with pytest.raises(ValueError, match=f"optimizer is {optimizer.__name__}, which moves a seed by what the other"):
        stack(optimizer=functools.partial(optimizer, lr=0.01), lr=None)


def test_an_optimizer_that_needs_the_loss_is_refused():
    with pytest.raises(ValueError, match="optimizer is LBFGS, whose step asks for the loss"):
        stack(optimizer=torch.optim.LBFGS, lr=None)


def test_the_runs_own_seeds_are_taken():
    run = stack()
    assert [run.model(seed).p for seed in run.seeds] == [11, 11, 11]
    again = stack(run.seeds)
    assert torch.equal(again.thetas, run.thetas)


def test_what_is_no_file_of_a_stack_is_refused(tmp_path):
    path = tmp_path / "stack.npz"
    path.write_text("not yours")
    with pytest.raises(ValueError, match="no resume file of a training of a stack"):
        stack(resume=path)


def test_save_and_load(tmp_path):
    run = stack(snapshots="embedding")
    loaded = lh.training.StackRun.load(run.save(tmp_path / "run"))
    assert torch.equal(loaded.thetas, run.thetas)
    assert torch.equal(loaded.snapshots["embedding"], run.snapshots["embedding"])
    assert repr(loaded) == repr(run)
    with pytest.raises(ValueError, match="factory is missing, and a run read from a file has none"):
        loaded.model(0)
    assert torch.equal(loaded.model(0, factory).embedding, run.model(0).embedding)
    with pytest.raises(ValueError, match="seed is 7, expected one of the 3 trained, 0 to 2"):
        run.model(7)


def test_a_diverging_seed_is_named_and_the_run_is_in_the_error():
    with pytest.raises(
        lh.NotConvergedError, match="lr made the loss or the weights of 3 of 3 seeds NaN or infinite"
    ) as caught:
        stack(optimizer="sgd", lr=1e30)
    assert caught.value.result.thetas.shape[0] == 3


def varied(seed: int) -> nn.Module:
    model = nn.Sequential(nn.Embedding(11, 4), nn.Flatten(), nn.Linear(8, 11))
    model.register_buffer("offset", torch.tensor(float(seed)))
    return model


@pytest.mark.parametrize(
    ("make", "arguments", "error", "message"),
    [
        (varied, {}, ValueError, "model_factory gives seed 1 other buffers or frozen parameters than seed 0"),
        (factory(0), {}, TypeError, "model_factory is a ModularMLP, expected seed -> module"),
        (lambda seed: nn.Sequential(factory(seed), nn.Dropout()), {}, ValueError, "model is random: .*Dropout"),
        (factory, {"seeds": 3}, TypeError, "seeds is 3, expected several seeds"),
        (factory, {"seeds": (1, 1)}, ValueError, r"seeds are \[1, 1\], expected at least one, all different"),
        (factory, {"seeds": (-1,)}, ValueError, "an entry of seeds is -1"),
        (factory, {"num_steps": 0}, ValueError, "num_steps is 0, expected an integer of at least 1"),
        (factory, {"penalty": -1.0}, ValueError, "penalty is -1"),
        (
            factory,
            {"snapshots": "weights"},
            ValueError,
            "snapshots has 'weights', which matches no name, expected names among",
        ),
        (factory, {"data": [DATA.train[0]]}, ValueError, "data is a list, expected a tuple"),
        (factory, {"lr": 0.1, "optimizer": torch.optim.Adam}, ValueError, "lr is 0.1 beside an optimizer"),
    ],
)
def test_bad_arguments(make, arguments, error, message):
    arguments = {"data": DATA.train, "seeds": (0, 1), "num_steps": 2, "progress": False} | arguments
    with pytest.raises(error, match=message):
        lh.train_stack(make, arguments.pop("data"), arguments.pop("seeds"), **arguments)


def test_a_factory_that_ignores_its_seed_is_warned_of():
    model = factory(0)
    arguments = {"num_steps": 1, "progress": False}
    with pytest.warns(UserWarning, match="two seeds begin alike"):
        lh.train_stack(lambda seed: model, DATA.train, (0, 1), **arguments)
    with pytest.warns(UserWarning, match="or one seed differently each time"):
        lh.train_stack(lambda seed: lh.ModularMLP(11, width=8, hidden=6), DATA.train, (0, 1), **arguments)
