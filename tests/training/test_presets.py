"""The presets against the settings they stand for, written out by hand, and `train_stack` with a preset's name."""

import functools

import pytest
import torch

import lowhanging as lh

SIZES = {  # name: p, width, blocks, activation, hidden bias, training pairs, steps, penalty
    "redundant": (53, 24, False, "silu", False, 0.8, 1500, 7e-4),
    "circles": (53, 20, True, "silu", False, 0.9, 1000, 1e-3),
    "births": (37, 14, True, "silu", False, 0.8, 1000, 1e-3),
    "sigmoid": (53, 20, True, "sigmoid", True, 0.8, 1500, 3e-4),
}

TRANSFORMERS = {  # name: p, width, hidden units, training pairs, split, steps
    "transformer": (53, 64, 256, 0.8, "unordered", 500),
    "grokking": (53, 64, 256, 0.6, "unordered", 1500),
    "nanda": (113, 128, 512, 0.3, "ordered", 1000),
}


def few(name, data=None, seeds=(0, 1), **arguments) -> lh.training.StackRun:
    return lh.train_stack(name, data, seeds, progress=False, **{"num_steps": 3, **arguments})


@pytest.mark.parametrize("name", SIZES)
def test_a_preset_is_what_its_settings_say(name):
    p, width, is_blocked, activation, has_bias, fraction, steps, penalty = SIZES[name]
    preset = lh.training.PRESETS[name]
    model, data = preset.factory(3), preset.data()
    assert (model.p, model.width, model.is_blocked, model.activation) == (p, width, is_blocked, activation)
    assert (model.bias is not None) == has_bias
    assert (data.p, data.train_fraction, data.split, data.operation) == (p, fraction, "unordered", "add")
    assert preset.training_arguments == {"num_steps": steps, "lr": 0.01, "batch_size": 256, "penalty": penalty}
    assert torch.equal(model.embedding, preset.factory(3).embedding)
    assert not torch.equal(model.embedding, preset.factory(4).embedding)
    assert not torch.equal(data.train.inputs, preset.data(seed=1).train.inputs)
    assert preset.name == name
    assert repr(preset).startswith(
        f"Preset({name!r}: modular_addition(p={p}, train_fraction={fraction}); ModularMLP(p="
    )


@pytest.mark.filterwarnings("ignore:split='ordered'")
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_transformer_s_preset_is_what_its_settings_say(name):
    p, width, hidden, fraction, split, steps = TRANSFORMERS[name]
    preset = lh.training.PRESETS[name]
    model, data, training = preset.factory(3), preset.data(), preset.training_arguments
    assert (model.p, model.width, model.num_heads, model.first.shape) == (p, width, 4, (width, hidden))
    assert (data.p, data.train_fraction, data.split, model.activation) == (p, fraction, split, "gelu")
    assert training["num_steps"] == steps
    assert training["batch_size"] >= len(data.train)  # the whole set, every step
    stepper = training["optimizer"](model.parameters())
    assert type(stepper) is torch.optim.AdamW
    assert {key: stepper.defaults[key] for key in ("lr", "weight_decay", "betas")} == {
        "lr": 0.01, "weight_decay": 1.0, "betas": (0.9, 0.98),
    }  # fmt: skip
    num = 500
    assert [training["schedule"](k / num) for k in range(11)] == pytest.approx([0.1 * k for k in range(1, 11)] + [1.0])
    assert "AdamW(lr=0.01, weight_decay=1.0, betas=(0.9, 0.98)), schedule=warm_up)" in repr(preset)


def histories(name: str, seeds: tuple[int, ...], **arguments) -> lh.training.StackRun:
    sums = lh.training.PRESETS[name].data()
    sets = {"seen": sums.train, "held out": sums.test}
    return lh.train_stack(name, seeds=seeds, evaluate=sets, log_every=50, progress=False, **arguments)


def first_step(run: lh.training.StackRun, name: str) -> list[float]:
    """At which 99 % are right."""
    return lh.circuits.first_crossing(run.steps, run.accuracies[name], threshold=0.99, is_rising=True).tolist()


def test_the_transformer_generalises():
    assert max(first_step(histories("transformer", (0, 1)), "held out")) <= 500


@pytest.mark.slow
def test_with_fewer_sums_it_memorises_long_before_it_generalises():
    run = histories("grokking", (1, 2), num_steps=1000)
    memorised, generalised = first_step(run, "seen"), first_step(run, "held out")
    assert max(generalised) <= 1000
    assert all(late >= early + 400 for early, late in zip(memorised, generalised, strict=True))


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:split='ordered'")
def test_nanda_s_transformer_generalises():
    assert max(first_step(histories("nanda", (0,)), "held out")) <= 1000


def test_the_names_and_that_nothing_can_be_changed():
    assert list(lh.training.PRESETS) == [*SIZES, *TRANSFORMERS]
    assert lh.training.PRESETS["redundant"].factory(0).hidden == 96
    with pytest.raises(TypeError, match="does not support item assignment"):
        lh.training.PRESETS["births"].training_arguments["num_steps"] = 1
    assert repr(lh.training.PRESETS["births"]) == (
        "Preset('births': modular_addition(p=37, train_fraction=0.8); ModularMLP(p=37, width=14, hidden=24); "
        "num_steps=1000, lr=0.01, batch_size=256, penalty=0.001)"
    )


@pytest.mark.parametrize("name", SIZES)
def test_a_name_is_its_factory_data_and_training(name):
    preset = lh.training.PRESETS[name]
    run = few(name)
    written_out = few(preset.factory, preset.data().train, **{**preset.training_arguments, "num_steps": 3})
    assert torch.equal(run.thetas, written_out.thetas)
    assert torch.equal(run.losses["train"][:, 1:], written_out.losses["train"][:, 1:])
    assert (run.preset, written_out.preset) == (name, None)
    assert not torch.equal(run.model(0).embedding, preset.factory(0).embedding)


def test_what_is_given_wins():
    preset, name = lh.training.PRESETS["births"], "births"
    train = preset.data().train
    assert int(few(name, num_steps=2).steps[-1]) == 2
    ours = {"lr": 0.003, "batch_size": 100, "penalty": 0.0}
    run = few(name, **ours)
    assert torch.equal(run.thetas, few(preset.factory, train, **ours).thetas)
    for argument in ours:
        assert not torch.equal(run.thetas, few(name, **{**ours, argument: None}).thetas), argument
    random = lh.modular_addition(37, operation="random").train
    run = few(name, random)
    assert torch.equal(run.thetas, few(preset.factory, random, **{**preset.training_arguments, "num_steps": 3}).thetas)


def test_an_optimizer_of_the_callers_brings_its_own_rate():
    preset = lh.training.PRESETS["births"]
    run = few("births", optimizer=torch.optim.SGD)  # its default rate, 1e-3
    same = few(preset.factory, preset.data().train, optimizer="sgd", lr=1e-3, penalty=1e-3)
    assert torch.allclose(run.thetas, same.thetas)


def test_a_rate_of_the_callers_goes_to_the_optimizer_of_a_preset():
    preset = lh.training.PRESETS["transformer"]
    slower = functools.partial(preset.training_arguments["optimizer"], lr=1e-3)
    arguments = {"batch_size": 64, "num_steps": 2}
    run = few("transformer", lr=1e-3, **arguments)
    same = few("transformer", optimizer=slower, **arguments)
    assert torch.equal(run.thetas, same.thetas)
    assert not torch.equal(run.thetas, few("transformer", **arguments).thetas)
    plain = few("transformer", optimizer="sgd", schedule="constant", **arguments)
    written_out = few(preset.factory, preset.data().train, optimizer="sgd", **arguments)
    assert torch.equal(plain.thetas, written_out.thetas)


def test_a_loaded_run_gives_models(tmp_path):
    run = few("births", seeds=(4, 2))
    loaded = lh.training.StackRun.load(run.save(tmp_path / "run"))
    assert loaded.preset == "births"
    assert loaded.factory is None
    for seed in (2, 4):
        assert torch.equal(loaded.model(seed).unembedding, run.model(seed).unembedding)
    other = lh.training.PRESETS["births"].factory
    assert torch.equal(loaded.model(2, other).embedding, run.model(2).embedding)


def test_messages():
    with pytest.raises(ValueError, match="model_factory is 'circle', expected one of 'redundant', 'circles', 'births'"):
        lh.train_stack("circle")
    with pytest.raises(ValueError, match=r"data is missing, expected a tuple .* of tensors, or a data set"):
        lh.train_stack(lh.training.PRESETS["births"].factory)
    with pytest.raises(TypeError, match="model_factory is a Preset, expected seed -> module, or the name of a preset"):
        lh.train_stack(lh.training.PRESETS["births"], lh.training.PRESETS["births"].data().train)
    with pytest.raises(ValueError, match="num_steps is 0"):
        few("births", num_steps=0)
