"""How does one ask each tool for the top eigenpairs of a Hessian? One function per tool, by its documentation.

Each takes a `Problem` and returns `Pairs`; the import of the tool is inside, so that a missing one is found out by its
own process. All of them look for the algebraically largest eigenvalues of the mean loss, except PyHessian, whose power
iteration knows magnitude only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Product = Callable[[Tensor], Tensor]


@dataclass
class Problem:
    """What a tool is given: a model on the device, batches, and the number of pairs."""

    model: nn.Module
    batches: Any  # DataLoader or list of (inputs, targets)
    num_examples: int
    num_terms: int  # of the mean loss: examples times targets of each
    k: int
    tol: float  # residual to reach, relative to lambda_1
    eigsh_tol: float  # the loosest tolerance with which eigsh reaches that, found by trying
    device: str
    steps_known: int  # a number of Lanczos steps that is enough, found by trying
    products: int = field(default=0)  # counted while it runs
    facts: dict[str, Any] = field(default_factory=dict)  # what else the table says of a tool

    def counted(self, product: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """The same product, counted."""

        def count(v: Any) -> Any:
            self.products += 1
            return product(v)

        return count

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The trainable ones, in the order of theta."""
        return [weight for weight in self.model.parameters() if weight.requires_grad]

    @property
    def num_params(self) -> int:
        """How many numbers they hold."""
        return sum(weight.numel() for weight in self.parameters)


@dataclass(frozen=True)
class Pairs:
    """What a tool returned, on the CPU."""

    values: Tensor  # (k,) float64, or fewer
    vectors: Tensor  # (k, p)
    note: str = ""


@dataclass(frozen=True)
class Peer:
    """A tool with its settings: the search, and one product of it, (p,) -> (p,), to choose the batches by."""

    title: str
    solve: Callable[[Problem], Pairs]
    product: Callable[[Problem], Product] | None = None


# Ours -----------------------------------------------------------------------------------------------------------------


def lowhanging(problem: Problem) -> Pairs:
    """The call that README shows, at the wanted tolerance."""
    import lowhanging as lh

    note = ""
    try:
        found = lh.top_hessian_eigs(problem.model, problem.batches, k=problem.k, tol=problem.tol, progress=False)
    except lh.NotConvergedError as error:
        found, note = error.result, "did not converge"
    problem.products = found.num_products
    problem.facts = {"engine": found.engine, "num_probe_steps": found.num_probe_steps}
    return Pairs(found.values, found.vectors, note)


# A double backward by hand, and ARPACK --------------------------------------------------------------------------------


def double_backward(problem: Problem) -> Product:
    """H v over the batches, as one would write it."""
    weights = problem.parameters
    sizes = [weight.numel() for weight in weights]

    def product(v: Tensor) -> Tensor:
        parts = [part.view_as(weight) for part, weight in zip(v.split(sizes), weights, strict=True)]
        total = torch.zeros_like(v)
        for x, y in problem.batches:
            x, y = x.to(problem.device), y.to(problem.device)
            loss = F.cross_entropy(problem.model(x), y, reduction="sum")
            gradient = torch.autograd.grad(loss, weights, create_graph=True)
            total += torch.cat([part.flatten() for part in torch.autograd.grad(gradient, weights, parts)])
        return total / problem.num_terms

    return product


def double_backward_eigsh(problem: Problem) -> Pairs:
    """A double backward per product, in SciPy's eigsh."""
    from scipy.sparse.linalg import LinearOperator

    product, size = double_backward(problem), problem.num_params

    def apply(v: np.ndarray) -> np.ndarray:
        return product(torch.from_numpy(v.reshape(-1)).to(problem.device)).cpu().numpy()

    return _eigsh(problem, LinearOperator((size, size), matvec=apply, dtype=np.float32))


def _eigsh(problem: Problem, operator: Any) -> Pairs:
    """SciPy's eigsh with its default ncv. Its tol is relative to each eigenvalue, so a looser one than ours may do."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    counted = LinearOperator(operator.shape, matvec=problem.counted(operator.matvec), dtype=operator.dtype)
    start = np.random.default_rng(0).standard_normal(operator.shape[0]).astype(operator.dtype)
    values, vectors = eigsh(counted, k=problem.k, which="LA", tol=problem.eigsh_tol, v0=start)
    return Pairs(torch.from_numpy(values[::-1].copy()).double(), torch.from_numpy(vectors.T[::-1].copy()))


# Others ---------------------------------------------------------------------------------------------------------------


def _curvlinops(problem: Problem) -> Any:
    """Its Hessian, without the check for determinism (two gradients and two products), which is optional.

    It weighs the mean loss of each batch by the examples in it, so `num_data` are examples, not targets. Its product is
    `jvp(jacrev(...))`, which torch 2.13 computes wrongly for the weights of a LayerNorm: a percent off on the GPTs.
    """
    from curvlinops import HessianLinearOperator

    return HessianLinearOperator(
        problem.model,
        nn.CrossEntropyLoss(),
        problem.parameters,
        problem.batches,
        check_deterministic=False,
        num_data=problem.num_examples,
    )


def curvlinops_eigsh(problem: Problem) -> Pairs:
    """Its Hessian as a SciPy operator, in eigsh, as its documentation has it, but in float32: half the memory."""
    return _eigsh(problem, _curvlinops(problem).to_scipy(np.float32))


def curvlinops_product(problem: Problem) -> Product:
    """One product of its operator."""
    operator = _curvlinops(problem)
    return lambda v: operator @ v


def _eigenthings(problem: Problem) -> Any:
    from hessian_eigenthings import HessianOperator, supervised_loss

    return HessianOperator(problem.model, problem.batches, supervised_loss(F.cross_entropy))


def eigenthings_product(problem: Problem) -> Product:
    """One product of its operator."""
    return _eigenthings(problem).matvec  # type: ignore[no-any-return]


def eigenthings(settings: Callable[[Problem], dict[str, Any]]) -> Callable[[Problem], Pairs]:
    """Its `lanczos`, which takes a number of steps and stops nowhere before."""

    def solve(problem: Problem) -> Pairs:
        from hessian_eigenthings import lanczos

        operator = _eigenthings(problem)
        operator.matvec = problem.counted(operator.matvec)
        options = settings(problem)
        found = lanczos(operator, k=problem.k, which="LA", tol=problem.tol, seed=0, **options)
        said = f"{int(found.converged.sum())} of {len(found.converged)} converged by its own account"
        steps = f"max_iter={options['max_iter']}, " if "max_iter" in options else ""
        return Pairs(found.eigenvalues.double().cpu(), found.eigenvectors.cpu(), steps + said)

    return solve


def _pyhessian(problem: Problem) -> Any:
    from pyhessian import hessian

    is_cuda = problem.device.startswith("cuda")
    return hessian(problem.model, nn.CrossEntropyLoss(), dataloader=problem.batches, cuda=is_cuda)


def pyhessian(problem: Problem) -> Pairs:
    """Power iteration with deflation, at its defaults: 100 iterations a pair, or a change of 1e-3.

    A change of 1e-5 needs the 100 iterations for most pairs: 1,000 products for ten.
    """
    torch.manual_seed(0)
    tool = _pyhessian(problem)
    tool.dataloader_hv_product = problem.counted(tool.dataloader_hv_product)
    values, vectors = tool.eigenvalues(top_n=problem.k)
    rows = torch.stack([torch.cat([part.detach().flatten() for part in vector]) for vector in vectors])
    return Pairs(torch.tensor(values, dtype=torch.float64), rows.cpu())


def pyhessian_product(problem: Problem) -> Product:
    """One product of it."""
    tool, weights = _pyhessian(problem), problem.parameters
    sizes = [weight.numel() for weight in weights]

    def product(v: Tensor) -> Tensor:
        parts = [part.view_as(weight) for part, weight in zip(v.split(sizes), weights, strict=True)]
        return torch.cat([part.flatten() for part in tool.dataloader_hv_product(parts)[1]])

    return product


PEERS = {
    "ours": Peer("lowhanging", lowhanging),
    "script": Peer("double backward + eigsh", double_backward_eigsh, double_backward),
    "curvlinops": Peer("curvlinops + eigsh", curvlinops_eigsh, curvlinops_product),
    "eigenthings-default": Peer("hessian-eigenthings, defaults", eigenthings(lambda problem: {}), eigenthings_product),
    "eigenthings": Peer(
        "hessian-eigenthings, 4 k steps, reorthogonalized",
        eigenthings(lambda problem: {"max_iter": 4 * problem.k, "reorthogonalize": True}),
        eigenthings_product,
    ),
    "eigenthings-hindsight": Peer(
        "hessian-eigenthings, steps known beforehand",
        eigenthings(lambda problem: {"max_iter": problem.steps_known, "reorthogonalize": True}),
        eigenthings_product,
    ),
    "pyhessian": Peer("PyHessian, defaults", pyhessian, pyhessian_product),
}
PACKAGES = {"curvlinops": "curvlinops-for-pytorch", "eigenthings": "hessian-eigenthings", "pyhessian": "PyHessian"}
