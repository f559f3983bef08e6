"""`top_hessian_eigs` on networks, against dense float64 eigenvalues by another route.

Oracles: the softmax-regression Hessian on paper; `testing.dense_hessian`, decomposed by NumPy.
"""

import numpy as np
import pytest
import torch
from torch import nn

import lowhanging as lh


def batches(inputs: torch.Tensor, targets: torch.Tensor, *sizes: int) -> list:
    """The data as ragged batches."""
    return list(zip(inputs.split(list(sizes)), targets.split(list(sizes)), strict=True))


def softmax_hessian(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> np.ndarray:
    """(1/n) sum_i (diag(q_i) - q_i q_i^T) kron (x_i x_i^T), x extended by 1, reordered to (weight, bias)."""
    n, d = inputs.shape
    classes = len(bias)
    extended = np.hstack([inputs.numpy(), np.ones((n, 1))])
    logits = (inputs @ weight.T + bias).numpy()
    q = np.exp(logits - logits.max(1, keepdims=True))
    q /= q.sum(1, keepdims=True)
    H = sum(np.kron(np.diag(p) - np.outer(p, p), np.outer(x, x)) for p, x in zip(q, extended, strict=True)) / n
    order = [c * (d + 1) + i for c in range(classes) for i in range(d)] + [c * (d + 1) + d for c in range(classes)]
    return H[np.ix_(order, order)]


@pytest.mark.parametrize("k", [1, 10, 20])
def test_softmax_regression_equals_the_hessian_on_paper(k):
    torch.manual_seed(0)
    inputs, targets = torch.randn(8, 4, dtype=torch.float64), torch.arange(8) % 4
    model = nn.Linear(4, 4).double()
    H = softmax_hessian(inputs, model.weight.detach(), model.bias.detach())
    pairs = lh.top_hessian_eigs(model, batches(inputs, targets, 5, 3), k=k, tol=1e-11)
    assert np.allclose(pairs.values, np.linalg.eigvalsh(H)[::-1][:k], atol=1e-10)
    V = pairs.vectors.numpy()
    assert np.abs(H @ V.T - V.T * pairs.values.numpy()).max() < 1e-9


def mlp(dtype: torch.dtype) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """200 parameters."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(7, 16), nn.Sigmoid(), nn.Linear(16, 4, bias=True), nn.Linear(4, 1, bias=False))
    return model.to(dtype), torch.randn(8, 7, dtype=dtype), torch.randn(8, 1, dtype=dtype)


@pytest.mark.parametrize("k", [1, 10, 200])
def test_a_sigmoid_mlp_equals_the_dense_eigendecomposition_in_float64(k):
    model, inputs, targets = mlp(torch.float64)
    assert sum(weight.numel() for weight in model.parameters()) == 200
    loss = lh.Objective(model, batches(inputs, targets, 5, 3), loss_fn=nn.functional.mse_loss)
    dense = np.linalg.eigvalsh(lh.testing.dense_hessian(loss).numpy())[::-1]
    pairs = lh.top_hessian_eigs(loss, k=k, tol=1e-10)
    assert np.abs(pairs.values.numpy() - dense[:k]).max() <= 1e-9 * np.abs(dense).max()
    assert float(pairs.residuals.max()) <= 1e-10 * pairs.scale


def test_a_sigmoid_mlp_in_float32_is_right_to_its_floor():
    model, inputs, targets = mlp(torch.float32)
    loss = lh.Objective(model, batches(inputs, targets, 5, 3), loss_fn=nn.functional.mse_loss)
    dense = np.linalg.eigvalsh(lh.testing.dense_hessian(loss).numpy())[::-1]
    pairs = lh.top_hessian_eigs(loss, k=10, tol=1e-5)
    assert np.abs(pairs.values.numpy() - dense[:10]).max() <= 1e-5 * np.abs(dense).max()


@pytest.fixture(scope="module")
def cnn_on_64_images():
    """The 3,340-parameter CNN, briefly trained, on 64 images, and its dense Hessian's eigenvalues, descending.

    The rows of the 390 convolution weights by double backward in float64, one by one; the block of the linear layer,
    which is a softmax regression on its inputs, on paper.
    """
    view = lh.paired_mnist().mixed.train
    model = lh.SigmoidCNN(seed=0)
    lh.train(model, view, num_epochs=3, progress=False)
    model.double()
    inputs, targets = view.inputs[:64].double(), view.targets[:64]
    theta = nn.utils.parameters_to_vector(model.parameters()).detach().requires_grad_()
    space = lh.objective.ParameterSpace(model)
    outputs = torch.func.functional_call(model, space.unflatten(theta), (inputs,))
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(outputs, targets), theta, create_graph=True)
    linear = next(layer for layer in model.modules() if isinstance(layer, nn.Linear))
    convolutional = len(theta) - sum(weight.numel() for weight in linear.parameters())
    rows = [torch.autograd.grad(gradient[i], theta, retain_graph=True)[0] for i in range(convolutional)]
    features = []
    handle = linear.register_forward_pre_hook(lambda _, args: features.append(args[0].detach()))
    model(inputs)
    handle.remove()
    H = np.zeros((len(theta), len(theta)))
    H[:convolutional] = torch.stack(rows).numpy()
    H[convolutional:, :convolutional] = H[:convolutional, convolutional:].T
    H[convolutional:, convolutional:] = softmax_hessian(features[0], linear.weight.detach(), linear.bias.detach())
    return lh.Objective(model, batches(inputs, targets, 40, 24)), np.linalg.eigvalsh(H)[::-1]


@pytest.mark.parametrize("k", [1, 10])
def test_the_cnn_equals_the_dense_eigendecomposition_in_float64(cnn_on_64_images, k):
    loss, dense = cnn_on_64_images
    assert dense.shape == (3340,)
    pairs = lh.top_hessian_eigs(loss, k=k, tol=1e-10)
    assert np.abs(pairs.values.numpy() - dense[:k]).max() <= 1e-9 * dense[0]


def test_the_cnn_in_float32_is_right_to_its_floor(cnn_on_64_images):
    loss, dense = cnn_on_64_images
    view = lh.paired_mnist().mixed.train
    model = loss.model_at(loss.theta0).float()
    pairs = lh.top_hessian_eigs(model, batches(view.inputs[:64], view.targets[:64], 40, 24), k=10, tol=1e-5)
    assert np.abs(pairs.values.numpy() - dense[:10]).max() <= 2e-5 * dense[0]
