"""layers: which operations keep a loss from being smooth, said with the layer's name; and the flags are put back.

Oracles: the layers' own documentation, written out as a table of smooth and kinked ones; the flags before and after.
"""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowhanging.objective.checks import findings
from lowhanging.objective.kernels import differentiable_kernels

SMOOTH = [nn.Sigmoid(), nn.Tanh(), nn.SiLU(), nn.GELU(), nn.Softplus(), nn.Mish(), nn.LogSigmoid(), nn.Softmax(1)]
SMOOTH += [nn.LayerNorm(6), nn.Unflatten(1, (2, 3)), nn.Identity(), nn.RMSNorm(6)]
KINKED = [nn.ReLU(), nn.ReLU(inplace=True), nn.LeakyReLU(), nn.PReLU(), nn.ELU(), nn.SELU(), nn.CELU(), nn.ReLU6()]
KINKED += [nn.Hardswish(), nn.Hardsigmoid(), nn.Hardtanh(), nn.Hardshrink(), nn.Softshrink(), nn.Threshold(0.1, 0.0)]
KINKED += [nn.RReLU().eval()]


class Calls(nn.Module):
    """A function as a layer."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)  # type: ignore[operator]


def found(layer: nn.Module, x: Tensor) -> list[tuple[str, str, str]]:
    """(kind, layer, class) of what a network with `layer` in the middle does."""
    model = nn.Sequential(nn.Linear(6, 6), nn.Sequential(layer)) if x.ndim == 2 else nn.Sequential(layer)
    return [(finding.kind, finding.layer, finding.class_name) for finding in findings(model, lambda: model(x))]


@pytest.mark.parametrize("layer", SMOOTH, ids=lambda layer: type(layer).__name__)
def test_smooth_layers_are_not_found(layer: nn.Module) -> None:
    assert found(layer, torch.randn(3, 6)) == []


@pytest.mark.parametrize("layer", KINKED, ids=str)
def test_kinked_layers_are_found_by_name(layer: nn.Module) -> None:
    assert found(layer, torch.randn(3, 6)) == [("kinked", "1.0", type(layer).__name__)]


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.MaxPool1d(2), (2, 1, 6)),
        (nn.MaxPool2d(2), (2, 1, 4, 4)),
        (nn.MaxPool3d(2), (1, 1, 4, 4, 4)),
        (nn.AdaptiveMaxPool2d(2), (2, 1, 4, 4)),
    ],
    ids=str,
)
def test_max_pools_are_found(layer: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, requires_grad=True)
    assert found(layer, x) == [("kinked", "0", type(layer).__name__)]
    assert found(nn.AvgPool2d(2), torch.randn(2, 1, 4, 4)) == []


def test_functional_calls_are_found_and_named_after_their_module() -> None:
    model = nn.Sequential(nn.Linear(6, 6), Calls(F.relu), Calls(lambda x: x.clamp(min=0)), Calls(torch.abs))
    x = torch.randn(2, 6)
    lines = [str(finding) for finding in findings(model, lambda: model(x))]
    assert lines == [
        "layer '1' (Calls) calls relu",
        "layer '2' (Calls) calls clamp",
        "layer '3' (Calls) calls abs",
    ]
    loss = [str(finding) for finding in findings(model[0], lambda: F.relu(model[0](x)))]
    assert loss == ["the loss function itself calls relu"]
    alone = Calls(F.relu)
    point = torch.ones(1, requires_grad=True)
    assert [str(f) for f in findings(alone, lambda: alone(point))] == ["Calls itself calls relu"]


def test_guards_and_data_are_no_kinks() -> None:
    """A clamp that keeps a division from zero, the distance of two positions, and what is done to the data alone."""
    assert found(Calls(lambda x: F.normalize(x)), torch.randn(3, 6)) == []
    assert found(Calls(lambda x: x * torch.arange(-3, 3).abs()), torch.randn(3, 6)) == []
    assert found(nn.MaxPool2d(2), torch.randn(2, 1, 4, 4)) == []
    assert found(Calls(lambda x: x + x.detach().abs()), torch.randn(3, 6)) == []


@pytest.mark.parametrize(
    "layer",
    [
        nn.Dropout(0.5),
        nn.AlphaDropout(0.5),
        Calls(lambda x: F.dropout(x, 0.5)),
        Calls(lambda x: x + torch.randn_like(x)),
        Calls(lambda x: x * torch.empty_like(x).uniform_()),
        Calls(lambda x: x[:, torch.randperm(6)]),
        Calls(lambda x: F.gumbel_softmax(x, dim=1)),
        Calls(lambda x: x + torch.randint(3, (6,))),
        Calls(lambda x: x + torch.empty(6).random_(3)),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_random_layers_are_found(layer: nn.Module) -> None:
    with torch.random.fork_rng(devices=[]):
        kinds = found(layer, torch.randn(3, 6))
    assert ("random", "1.0", type(layer).__name__) in kinds


def test_switched_off_randomness_is_not_found() -> None:
    for layer in (nn.Dropout(0.5).eval(), nn.Dropout(0.0), nn.LSTM(6, 6, dropout=0.0)):
        assert found(layer, torch.randn(3, 6)) == []


def test_batch_norm_mixes_examples_only_with_batch_statistics() -> None:
    x, images = torch.randn(3, 6), torch.randn(3, 2, 4, 4)
    assert found(nn.BatchNorm1d(6), x) == [("batch", "1.0", "BatchNorm1d")]
    assert found(nn.BatchNorm1d(6).eval(), x) == []
    assert found(nn.BatchNorm1d(6, track_running_stats=False).eval(), x) == [("batch", "1.0", "BatchNorm1d")]
    assert found(nn.BatchNorm2d(2), images[:1]) == [("batch", "0", "BatchNorm2d")]  # one example is a batch too
    # Per example, though torch computes it as a batch norm.
    assert found(nn.InstanceNorm2d(2), images) == []
    assert found(nn.GroupNorm(1, 2), images) == []


def test_hooks_are_taken_off_also_after_an_error() -> None:
    def fail(_: Tensor) -> Tensor:
        raise ZeroDivisionError

    model = nn.Sequential(nn.Linear(2, 2), Calls(fail))
    with pytest.raises(ZeroDivisionError):
        findings(model, lambda: model(torch.ones(1, 2)))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def flags() -> tuple[object, ...]:
    cuda = torch.backends.cuda
    return (
        torch.backends.mkldnn.enabled,
        torch.backends.cudnn.enabled,
        torch.backends.mha.get_fastpath_enabled(),
        (cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled(), cuda.cudnn_sdp_enabled()),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.is_grad_enabled(),
    )


def test_flags_are_set_inside_and_put_back() -> None:
    before = flags()
    with differentiable_kernels(nn.LSTM(2, 2)):
        assert flags()[:4] == (False, False, False, (False, False, True, False))
    assert flags() == before
    with differentiable_kernels(nn.Linear(2, 2)):
        assert flags()[:2] == before[:2]
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        outside = flags()
        with differentiable_kernels(None):
            assert flags()[4:6] == (False, False)
            assert not torch.backends.mkldnn.enabled  # any function may hold an LSTM
        assert flags() == outside


def test_flags_are_put_back_after_an_error_whatever_they_were() -> None:
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        torch.backends.mkldnn.enabled = False
        before = flags()
        with pytest.raises(ZeroDivisionError), differentiable_kernels(nn.GRU(2, 2)):
            raise ZeroDivisionError
        assert flags() == before
    finally:
        torch.backends.mkldnn.enabled = True
        torch.backends.mha.set_fastpath_enabled(True)


@pytest.mark.parametrize("fails", [False, True])
def test_no_product_is_rounded_to_ten_bits(fails: bool) -> None:
    """TensorFloat-32 is off in the block, whatever the user's flags, and these are as they were afterwards."""
    flags: Any = (torch.backends.cudnn.conv, torch.backends.cudnn.rnn, torch.backends.cuda.matmul)
    before = [kernels.fp32_precision for kernels in flags]
    assert "tf32" in before  # torch's default for convolutions
    try:
        for wanted in ("tf32", "ieee"):
            for kernels in flags:
                kernels.fp32_precision = wanted
            with contextlib.suppress(ZeroDivisionError), differentiable_kernels(None):
                assert [kernels.fp32_precision for kernels in flags] == ["ieee"] * 3
                if fails:
                    raise ZeroDivisionError
            assert [kernels.fp32_precision for kernels in flags] == [wanted] * 3
    finally:
        for kernels, value in zip(flags, before, strict=True):
            kernels.fp32_precision = value
