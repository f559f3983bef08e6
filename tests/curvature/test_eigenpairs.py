"""`top_eigs` and `top_hessian_eigs` through the public calls.

Oracles, strongest first: closed forms (diagonal and Kronecker spectra, the softmax-regression Hessian on paper); the
dense float64 eigendecomposition of NumPy; `scipy.sparse.linalg.eigsh` as an independent implementation; residuals by
dense products. Budgets are counted inside the map.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import scipy.sparse
import torch
import torch.nn.functional as F
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn

from eigen_scene import Counted, check_pairs, diagonal, nearest, network_spectrum, symmetric, wanted
from lowhanging.curvature import eigenpairs
from lowhanging.curvature.eigenpairs import Eigenpairs, _with_canonical_signs, top_eigs, top_hessian_eigs
from lowhanging.curvature.eigensolver import least_rows
from lowhanging.curvature.operators import hessian
from lowhanging.errors import NotConvergedError
from lowhanging.objective.objective import FunctionObjective, Objective


def wishart(p: int, n: int, spikes: tuple[float, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    samples = torch.randn(n, p, generator=generator, dtype=torch.float64)
    samples[:, : len(spikes)] *= torch.tensor(spikes, dtype=torch.float64).sqrt()
    return samples.T @ samples / n


INTEGERS = np.arange(1.0, 6.0)
ZOO: dict[str, Tensor] = {
    "cluster": symmetric(np.r_[1, 1 - 1e-6, 1 - 2e-6, np.linspace(-0.5, 0.9, 97)]),
    "identity": torch.eye(60, dtype=torch.float64),
    "kronecker": torch.kron(symmetric(INTEGERS), symmetric(np.r_[1.0, 1.0, 1.0, 0.5, 0.5, -2.0], seed=1)),
    "indefinite": symmetric(np.linspace(-1, 1, 100) ** 3),
    "negative": symmetric(-np.geomspace(1e-3, 10, 100)),
    "rank deficient": symmetric(np.r_[4.0, 3, 2, np.zeros(97)]),
    "zero": torch.zeros(50, 50, dtype=torch.float64),
    "tiny": symmetric(5e-12 * np.arange(1, 101) ** -1.3),
    "huge": symmetric(5e8 * np.arange(1, 101) ** -1.3),
    "wishart": wishart(120, 80, spikes=(25.0, 16.0, 9.0)),
    "smaller than the basis": symmetric([3.0, -1.0, 2.0, 0.5, -4.0, 0.1]),
    "one by one": torch.tensor([[-2.5]], dtype=torch.float64),
}


@pytest.mark.parametrize("which", ["LA", "SA", "LM", "BE"])
@pytest.mark.parametrize("name", ZOO)
def test_zoo_equals_the_dense_eigendecomposition(name: str, which: str) -> None:
    H = ZOO[name]
    p = len(H)
    spectrum = np.linalg.eigvalsh(H.numpy())
    size = float(np.abs(spectrum).max())
    for k in {1, min(6, p), p}:
        exact = wanted(spectrum, which, k)
        counted = Counted(lambda v: H @ v, p)
        pairs = top_eigs(counted, k=k, which=which, tol=1e-11, progress=False)
        key = np.abs if which == "LM" else np.asarray  # +-x tie under LM
        assert np.abs(key(pairs.values.numpy()) - key(exact[:k])).max() <= 1e-10 * size
        check_pairs(pairs, H)
        assert bool((nearest(pairs.values.numpy(), spectrum) <= pairs.bounds.numpy()).all())
        assert pairs.num_products == counted.count
        assert pairs.num_products <= p + 2  # what finds its space full needs no probe


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_answers_scale_with_the_map(scale: float, dtype: torch.dtype) -> None:
    values = np.r_[5 * np.arange(1, 301) ** -1.3, -0.2]
    pairs, unscaled = (top_eigs(diagonal(c * values, dtype), k=8, tol=1e-5) for c in (scale, 1.0))
    assert np.abs(pairs.values.numpy() / scale - values[:8]).max() < 1e-5
    assert pairs.num_products == unscaled.num_products
    assert pairs.vectors.dtype == dtype
    assert pairs.values.dtype == torch.float64


def test_other_end_comes_free() -> None:
    H = symmetric(np.r_[7.0, 6.0, np.linspace(-0.1, 0.1, 60), -3.0])
    for which, other in (("LA", -3.0), ("SA", 7.0), ("LM", -3.0)):
        pairs = top_eigs(H, k=1, which=which, tol=1e-6)
        assert abs(pairs.other_end - other) <= pairs.other_end_residual + 1e-12


def test_identity_of_any_size_gives_k_pairs() -> None:
    pairs = top_eigs(diagonal(np.ones(2000)), k=7)
    assert np.abs(pairs.values.numpy() - 1).max() < 1e-12
    assert pairs.num_products == 7 + 3 + 1
    assert pairs.missed_probability == 1.0  # three steps exclude nothing for certain
    assert top_eigs(diagonal(np.ones(2000)), k=7, num_probes=8).num_products == 7 + 8 + 1


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_budgets_on_a_network_spectrum(seed: int, dtype: torch.dtype) -> None:
    values = network_spectrum()
    for k, max_steps, max_products in ((10, 28, 40), (50, 115, 130)):
        counted = diagonal(values, dtype)
        pairs = top_eigs(counted, k=k, tol=1e-4, seed=seed)
        assert pairs.num_steps <= max_steps
        assert pairs.num_products == counted.count <= max_products
        assert counted.count == pairs.num_steps + pairs.num_probe_steps + 1
        assert np.abs(pairs.values.numpy() - values[:k]).max() <= 1e-4 * values[0]


def test_scipy_eigsh_agrees() -> None:
    H = scipy.sparse.random(400, 400, density=0.02, random_state=np.random.default_rng(0))
    H = (H + H.T + scipy.sparse.diags(np.r_[np.linspace(5, 9, 8), np.zeros(392)])).tocsr()
    for which in ("LA", "SA", "LM", "BE"):
        theirs = wanted(eigsh(H, k=6, which=which, tol=1e-13)[0], which)
        assert np.abs(top_eigs(H, k=6, which=which, tol=1e-11).values.numpy() - theirs).max() < 1e-11


def test_every_kind_of_map_gives_the_same() -> None:
    H = symmetric(5 * np.arange(1, 101) ** -1.3)
    array = H.numpy()
    maps = {
        "tensor": H,
        "array": array,
        "array that can't be written": np.broadcast_to(array, array.shape),
        "scipy matrix": scipy.sparse.csr_array(array),
        "linear operator": LinearOperator((100, 100), matvec=lambda v: array @ v, dtype=np.float64),
        "needs gradients": H.clone().requires_grad_(),
        "our own": Counted(lambda v: H @ v, 100),
    }
    answers = {name: top_eigs(map_, k=5, tol=1e-10) for name, map_ in maps.items()}
    for pairs in answers.values():
        assert np.abs(pairs.values.numpy() - 5 * np.arange(1, 6) ** -1.3).max() < 1e-10
        assert float((pairs.vectors - answers["tensor"].vectors).abs().max()) < 1e-9


def test_same_seed_same_answer_and_other_seeds_agree_with_signs() -> None:
    H = symmetric(5 * np.arange(1, 201) ** -1.3)
    first, again, other = (top_eigs(H, k=6, tol=1e-11, seed=seed) for seed in (0, 0, 5))
    assert torch.equal(first.vectors, again.vectors)
    assert not torch.equal(first.vectors, other.vectors)
    assert float((first.vectors - other.vectors).abs().max()) < 1e-9


def test_canonical_sign_is_of_the_first_entry_near_the_largest() -> None:
    rows = torch.tensor([[0.1, -0.999, 1.0], [-0.5, 0.2, 1.0], [1.0, -1.0, 0.0], [-0.98, 1.0, 0.0]])
    expected = torch.tensor([[-0.1, 0.999, -1.0], [-0.5, 0.2, 1.0], [1.0, -1.0, 0.0], [-0.98, 1.0, 0.0]])
    assert torch.equal(_with_canonical_signs(rows), expected)


def test_global_random_states_are_untouched() -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    top_eigs(symmetric(np.arange(1.0, 31.0)), k=3)
    assert torch.equal(torch_state, torch.get_rng_state())
    assert np.array_equal(numpy_state, np.random.get_state()[1])  # noqa: NPY002


# ---- what did not get there ---------------------------------------------------------------------------------------


def test_spent_products_raise_with_everything_found() -> None:
    values = network_spectrum()
    with pytest.raises(NotConvergedError, match=r"max_products is 20, spent with [1-9] of 10 pairs") as caught:
        top_eigs(diagonal(values), k=10, max_products=20)
    pairs = caught.value.result
    assert pairs.num_products <= 20
    assert (len(pairs), pairs.vectors.shape) == (10, (10, 3340))
    assert 0 < int(pairs.is_converged.sum()) < 10
    true = (torch.from_numpy(values) * pairs.vectors - pairs.values[:, None] * pairs.vectors).norm(dim=1)
    assert float((true - pairs.residuals).abs().max()) < 1e-13
    assert torch.equal(pairs.is_converged, pairs.residuals + pairs.noise <= pairs.tol * pairs.scale)
    assert "CONVERGED" in repr(pairs)
    with pytest.warns(RuntimeWarning, match="max_products is 20"):
        warned = top_eigs(diagonal(values), k=10, max_products=20, on_failure="warn")
    assert torch.equal(warned.vectors, pairs.vectors)


def test_float32_floor_is_named_with_a_reachable_tolerance() -> None:
    H = symmetric(5 * np.arange(1, 301) ** -1.3)
    with pytest.raises(NotConvergedError, match=r"tol is 1e-09, below the float32 floor of .*e-0[678]") as caught:
        top_eigs(H.float(), k=10, tol=1e-9)
    assert "use float64 (objective.double(), or model.double()" in str(caught.value)
    assert caught.value.result.num_products < 100  # stopped by the floor, not by the limit
    reachable = float(str(caught.value).split("at least ")[1].split(".\n")[0])
    pairs = top_eigs(H.float(), k=10, tol=reachable)
    assert np.abs(pairs.values.numpy() - 5 * np.arange(1, 11) ** -1.3).max() < 5e-6
    with pytest.raises(NotConvergedError, match="below the float64 floor"):
        top_eigs(H, k=10, tol=1e-18)


def test_float32_products_are_recognised_inside_a_float64_map() -> None:
    H = symmetric(5 * np.arange(1, 101) ** -1.3)
    rounded = Counted(lambda v: (H.float() @ v.float()).double(), 100)
    assert 1e-9 < top_eigs(rounded, k=3, tol=1e-5).noise < 1e-5
    with pytest.raises(NotConvergedError, match="floor of"):
        top_eigs(rounded, k=3, tol=1e-9)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_products_that_are_not_finite_end_it_at_once(bad: float) -> None:
    counted = Counted(lambda v: v * (bad if counted.count == 5 else 2.0) + v.roll(1) + v.roll(-1), 50)
    with pytest.raises(FloatingPointError, match="H @ v has NaN or infinite entries at product 5, expected finite"):
        top_eigs(counted, k=3)


def test_asymmetric_maps_are_refused() -> None:
    matrix = torch.randn(80, 80, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    slightly = symmetric(np.arange(1.0, 81.0)) + 1e-3 * matrix
    for H in (matrix, slightly, matrix.numpy()):
        with pytest.raises(ValueError, match=r"H differs from its transpose by .*, expected a symmetric map"):
            top_eigs(H, k=3)
    for H in (matrix, slightly):
        with pytest.raises(ValueError, match=r"H has an antisymmetric part, .*, expected a symmetric map"):
            top_eigs(Counted(lambda v, H=H: H @ v, 80), k=3)
        with pytest.raises(ValueError, match="H has an antisymmetric part"):
            top_eigs(Counted(lambda v, H=H: H @ v, 80), k=3, method="dense")


SMALL = symmetric([3.0, 2.0, 1.0])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"k": 0}, ValueError, r"k is 0, expected an integer from 1 to 3\.\nThe map has 3 eigenpairs\."),
        ({"k": 4}, ValueError, r"k is 4, expected an integer from 1 to 3"),
        ({"k": 2.0}, TypeError, r"k is 2\.0, expected an integer"),
        ({"k": True}, TypeError, r"k is True, expected an integer"),
        ({"which": "LR"}, ValueError, r"which is 'LR', expected one of 'LA', 'SA', 'LM', 'BE'"),
        ({"tol": 0.0}, ValueError, r"tol is 0, expected a finite number in \(0, 1\)"),
        ({"tol": -1e-4}, ValueError, r"tol is -0.0001, expected"),
        ({"tol": math.nan}, ValueError, r"tol is nan, expected"),
        ({"seed": -1}, ValueError, r"seed is -1, expected an integer from 0"),
        ({"max_products": 2}, ValueError, r"max_products is 2, expected an integer of at least 3"),
        ({"num_probes": -1}, ValueError, r"num_probes is -1, expected an integer of at least 0"),
        ({"max_products": 2, "method": "dense"}, ValueError, r"max_products is 2, expected an integer of at least 3"),
        ({"method": "power"}, ValueError, r"method is 'power', expected one of 'lanczos', 'dense'"),
        ({"on_failure": "hide"}, ValueError, r"on_failure is 'hide', expected one of 'raise', 'warn'"),
        ({"memory": 10}, ValueError, r"memory is 10 bytes, expected at least 72 bytes for 2 pairs of 3 entries"),
        ({"memory": -1}, ValueError, r"memory is -1, expected a finite number"),
        ({"H": torch.ones(3, 4)}, ValueError, r"H is a Tensor of shape \(3, 4\), expected a symmetric map"),
        ({"H": torch.ones(3)}, ValueError, r"H is a Tensor of shape \(3,\), expected a symmetric map"),
        ({"H": nn.Linear(2, 2)}, TypeError, r"H is a Linear, expected .*\n.*for a model use top_hessian_eigs"),
        ({"H": torch.eye(3, dtype=torch.long)}, ValueError, r"H has dtype torch.int64, expected float32 or float64"),
        ({"H": torch.eye(3, dtype=torch.complex64)}, ValueError, r"H has dtype torch.complex64, expected"),
        ({"H": np.eye(3, dtype=np.complex128)}, ValueError, r"H has dtype complex128, expected"),
        ({"H": torch.full((3, 3), math.nan)}, ValueError, r"H holds NaN or infinite entries, expected finite numbers"),
        ({"H": Counted(lambda v: v[:2], 3)}, ValueError, r"H @ v has shape \(2,\), expected \(3,\) = \(p,\)"),
        ({"H": diagonal(np.ones(5001)), "method": "dense"}, ValueError, r'method is "dense" for p = 5001, expected'),
    ],
)
def test_messages(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        top_eigs(**({"H": SMALL, "k": 2} | arguments))


# ---- dense, results, progress -------------------------------------------------------------------------------------


def test_dense_method_agrees_and_costs_p_products() -> None:
    H = symmetric(np.r_[np.linspace(1, 2, 40), -3.0])
    for which in ("LA", "SA", "LM", "BE"):
        counted = Counted(lambda v: H @ v, 41)
        dense, lanczos = (
            top_eigs(counted, 5, which=which, tol=1e-12, method="dense"),
            top_eigs(H, 5, which=which, tol=1e-12),
        )
        assert dense.num_products == counted.count == 41
        assert float((dense.values - lanczos.values).abs().max()) < 1e-12
        assert float((dense.vectors - lanczos.vectors).abs().max()) < 1e-9
        assert abs(dense.other_end - lanczos.other_end) < 1e-9
        check_pairs(dense, H)
    rounded = Counted(lambda v: H.float() @ v, 41, torch.float32)  # there is no telling its products in float64
    with pytest.raises(NotConvergedError, match="below the float32 floor") as caught:
        top_eigs(rounded, 5, tol=1e-12, method="dense")
    assert len(caught.value.result) == 5
    with pytest.raises(FloatingPointError, match="H @ v has NaN or infinite entries"):
        top_eigs(Counted(lambda v: v * math.nan, 3), 1, method="dense")


def test_result_saves_loads_iterates_and_prints_one_line(tmp_path: object) -> None:
    pairs = top_eigs(symmetric(np.r_[9.0, 4.0, 1.0, np.zeros(20)]), k=3)
    loaded = Eigenpairs.load(pairs.save(f"{tmp_path}/pairs"))
    for field in dataclasses.fields(Eigenpairs):
        one, two = getattr(pairs, field.name), getattr(loaded, field.name)
        assert torch.equal(one, two) if isinstance(one, Tensor) else one == two
    assert repr(loaded) == repr(pairs)
    assert repr(pairs).startswith("Eigenpairs(3 LA: 9 ... 1; residuals <= ")
    assert "\n" not in repr(pairs)
    assert [round(float(value)) for value, vector in pairs if vector.shape == (23,)] == [9, 4, 1]
    assert torch.equal(pairs.subspace(2).basis, pairs.vectors[:2])
    assert pairs.subspace().dim == len(pairs) == 3
    with pytest.raises(ValueError, match="k is 4, expected an integer from 1 to 3"):
        pairs.subspace(4)
    with pytest.raises(dataclasses.FrozenInstanceError):
        pairs.tol = 1.0  # type: ignore[misc]


@pytest.mark.parametrize("method", ["lanczos", "dense"])
def test_progress_bar_shows_on_request_only(method: str, capsys: pytest.CaptureFixture[str]) -> None:
    top_eigs(SMALL, 2, method=method)  # short: no bar
    top_eigs(SMALL, 2, method=method, progress=False)
    assert capsys.readouterr().err == ""
    top_eigs(SMALL, 2, method=method, progress=True)
    assert {"lanczos": "2 of 2 pairs", "dense": "all columns"}[method] in capsys.readouterr().err


# ---- Hessians -----------------------------------------------------------------------------------------------------


def softmax_regression() -> tuple[nn.Linear, Tensor, Tensor, Tensor]:
    """Model, inputs (8, 4), targets (8,) and the Hessian on paper: mean of (diag(q) - q q^T) kron x x^T."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(8, 4, generator=generator, dtype=torch.float64)
    model = nn.Linear(4, 3).double()
    with torch.no_grad():
        model.weight.copy_(torch.randn(3, 4, generator=generator))
        model.bias.copy_(torch.randn(3, generator=generator))
        q = model(inputs).softmax(dim=1)
    outer = torch.diag_embed(q) - q[:, :, None] * q[:, None, :]
    blocks = [torch.einsum("nab,nd,ne->adbe", outer, inputs, inputs).reshape(12, 12)]
    blocks += [torch.einsum("nab,nd->adb", outer, inputs).reshape(12, 3), outer.sum(dim=0)]
    H = torch.cat([torch.cat([blocks[0], blocks[1]], dim=1), torch.cat([blocks[1].T, blocks[2]], dim=1)])
    return model, inputs, torch.arange(8) % 3, H / 8


def test_hessian_of_softmax_regression_is_the_one_on_paper() -> None:
    model, inputs, targets, H = softmax_regression()
    exact = np.linalg.eigvalsh(H.numpy())[::-1]
    ragged = [(inputs[:5], targets[:5]), (inputs[5:], targets[5:])]
    for k in (1, 10, 15):
        for data in (ragged, (inputs, targets)):
            pairs = top_hessian_eigs(model, data, k=k, tol=1e-11)
            assert np.abs(pairs.values.numpy() - exact[:k]).max() < 1e-9
            check_pairs(pairs, H)
    from_objective = top_hessian_eigs(Objective(model, ragged), k=15, tol=1e-11)
    assert float((from_objective.values - pairs.values).abs().max()) < 1e-12
    assert pairs.engine
    assert pairs.operator.startswith("Hessian(15 x 15 of Objective(Linear")


def test_hessian_of_a_function() -> None:
    A = symmetric(np.r_[5.0, 2.0, np.linspace(-1, 1, 20)])
    f = FunctionObjective(lambda theta: 0.5 * theta @ A @ theta, torch.zeros(22, dtype=torch.float64))
    pairs = top_hessian_eigs(f, k=2, tol=1e-10)
    assert np.abs(pairs.values.numpy() - [5, 2]).max() < 1e-10
    assert torch.equal(pairs.vectors, top_eigs(hessian(f), k=2, tol=1e-10).vectors)


def test_hessian_with_another_loss_and_options() -> None:
    """Mean of squares of a linear model: H = 2 X^T X / n."""
    inputs = torch.randn(9, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = nn.Linear(5, 1, bias=False).double()
    exact = np.linalg.eigvalsh((2 * inputs.T @ inputs / 9).numpy())
    pairs = top_hessian_eigs(
        model, (inputs, torch.zeros(9, 1).double()), k=2, loss_fn=F.mse_loss, which="SA", method="dense"
    )
    assert np.abs(pairs.values.numpy() - exact[:2]).max() < 1e-10
    assert (pairs.which, pairs.method) == ("SA", "dense")


def test_a_ready_objective_takes_no_data() -> None:
    model, inputs, targets, _ = softmax_regression()
    ready = Objective(model, (inputs, targets))
    with pytest.raises(ValueError, match="data is given with a ready objective, expected nothing"):
        top_hessian_eigs(ready, (inputs, targets))
    for keyword in ({"loss_fn": F.cross_entropy}, {"mode": "as_is"}, {"device": "cpu"}, {"cache": False}):
        with pytest.raises(ValueError, match=f"{next(iter(keyword))} is given with a ready objective"):
            top_hessian_eigs(ready, **keyword)
    with pytest.raises(TypeError, match=r"model is a Tensor, expected an nn\.Module or an objective"):
        top_hessian_eigs(torch.eye(3))


def test_the_default_memory_follows_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of it, or what k pairs need, if that is less than half."""
    values = network_spectrum()
    row, k = 8 * len(values), 10
    needed = least_rows(k, 0) * row
    restarts = []
    for total in (10 * needed, 2.5 * needed, 1.2 * needed):
        monkeypatch.setattr(eigenpairs, "machine_memory", lambda device, total=total: total)
        if total < 2 * needed:
            with pytest.raises(ValueError, match="memory is"):
                top_eigs(diagonal(values), k=k, tol=1e-8)
            continue
        pairs = top_eigs(diagonal(values), k=k, tol=1e-8)
        assert np.abs(pairs.values.numpy() - values[:k]).max() < 1e-8 * values[0]
        restarts.append(pairs.num_restarts)
    assert restarts[0] == 0 < restarts[1]
