"""Comparison of the first product of each engine with an independent one, on every micro-batch.

No method of differentiating twice is right for every loss: a recording is wrong where a model branches on its data,
torch's second derivatives in reverse are wrong for some operations (2.13: `_weight_norm_interface` leaves out a term)
and NaN for others (a norm at zero), and forward derivatives are missing for many. So no engine is used before its
product with a vector that leaves nothing out (the first that is asked for, or a random one) agreed with one of another
kind:

    reverse over reverse   of a recording (forward over reverse)
    forward over reverse   of an autograd graph (reverse over reverse)
    central differences    of first derivatives, where those two disagree or only one exists

The differences are taken in float64 where the model can be widened, at steps of several lengths; a product is right if
it agrees with one of them within the rounding of both. In float32 they are good to about one percent.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from lowhanging.errors import argument_message
from lowhanging.objective.checks import Precision, SingularOperations
from lowhanging.objective.split_graph import CannotSplitError

# Two right routes differ by rounding only; a recording of the wrong branch differs by percents.
RTOL = {torch.float64: 1e-9, torch.float32: 1e-3}
# Against central differences, by the dtype of the product and that of the differences.
_RTOL_DIFFERENCES = {(torch.float64, torch.float64): 1e-5, (torch.float32, torch.float64): 1e-3}
_RTOL_NARROW = 1e-2
_MOST_ROUNDING = 0.3  # of a float32 product, relative: one that is coarser says nothing of the eigenvectors
# Lengths of a step relative to |theta|: the shorter ones miss the kinks of a loss that has some.
_STEPS = {torch.float64: (1e-5, 1e-7, 1e-3, 1e-8), torch.float32: (1e-2, 1e-3, 1e-1)}

_FAILURES = Exception  # whatever a model says to another route or precision
_AT_ZERO = (
    "Norms, sqrt, pow, std and atan2 have no derivative at zero, det has none at singular matrices: use squares, "
    "(x * x).sum() for norm(x) ** 2, or add a small constant below the root, (x.square().sum() + 1e-12).sqrt()."
)
_EXPECTED = "one that autograd differentiates twice correctly"
_REWRITE = "Write that operation with others, such as products, sums, exp and log; lh.testing.check_model says more."


class BatchMatrix(Protocol):
    """A symmetric (p, p) matrix of one batch's sum, by three routes that share nothing."""

    def run(self, theta: Tensor, batch: Any) -> None:
        """Evaluate what is differentiated, once and for nothing."""

    def product(self, theta: Tensor, v: Tensor, batch: Any) -> Tensor:
        """Times v (p,), forward over reverse."""

    def graph(self, theta: Tensor, batch: Any) -> Any:
        """What does not depend on the vector, as an autograd graph."""

    def from_graph(self, graph: Any, v: Tensor, *, again: bool) -> Tensor:
        """Times v (p,), in reverse; afterwards the graph serves another vector only if `again`."""

    def magnitude(self, graph: Any, v: Tensor) -> Tensor:
        """The size of what cancels where the product nearly vanishes: its rounding is relative to this."""

    def differences(self, theta: Tensor, v: Tensor, batch: Any, step: float) -> tuple[Tensor, float]:
        """Times v (p,), by central differences along `step` v; and the size of what was subtracted, over the step."""


class ProductEngine(Protocol):
    """One method to compute the products of a batch's matrix."""

    @property
    def name(self) -> str: ...
    @property
    def keeps(self) -> bool:
        """Whether what is prepared serves several vectors."""

    @property
    def route(self) -> str:
        """How it differentiates: "recorded" or "forward" (both forward over reverse), or "reverse"."""

    def prepare(self, theta: Tensor, batch: Any) -> tuple[Any, int]:
        """What does not depend on the vector, and its size in bytes."""

    def product(self, prepared: Any, v: Tensor, *, again: bool = True) -> Tensor:
        """The batch's product with v (p,); `again` if what was prepared is to serve another vector."""


# () -> the same matrix in float64 and what makes a batch of it; raises where the loss can't be widened.
Widened = Callable[[], tuple[Any, Callable[[Any], Any]]]


@dataclass(frozen=True, eq=False)
class Kept:
    """What an engine has prepared at one theta, for as many of the first batches as may be kept."""

    theta: Tensor  # (p,)
    engine: str  # its name
    prepared: tuple[Any, ...] = ()  # of batches 0, 1, 2, ...
    num_bytes: int = 0

    def is_of(self, engine: ProductEngine | None, theta: Tensor) -> bool:
        """Whether it was prepared by this engine, there."""
        is_same = engine is not None and self.engine == engine.name
        return is_same and (self.theta is theta or torch.equal(self.theta, theta))


@dataclass(frozen=True, eq=False)
class Verified:
    """What an engine that is right has prepared, and its product."""

    kept: Kept
    total: Tensor  # (p,) the sum over the batches; float64, if there are several


@dataclass(frozen=True)
class Fault:
    """Why an engine's product can't be used."""

    reason: str
    is_finite: bool = True
    rounding: float = 0.0  # of a product that is right but for float32's rounding, relative


class Verification:
    """Whether the products of an engine at theta (p,) are right, on every one of some batches."""

    def __init__(
        self,
        matrix: BatchMatrix,
        batches: Iterable[Any],
        theta: Tensor,
        *,
        v: Tensor | None = None,  # (p,) to compare with; by default a random one
        reverse: Callable[[Any], ProductEngine],  # (matrix) -> an engine that differentiates it in reverse
        forward: ProductEngine,  # for this matrix, forward over reverse
        widened: Widened | None = None,
        is_smooth: bool = True,  # as far as is known
        prefers_differences: bool = False,  # in float64, for a smooth loss in float32: as exact as another product
        name_of: Callable[[Tensor], str] = lambda vector: "",  # the parameter in which a vector is largest
    ):
        self._matrix, self._batches, self._theta = matrix, batches, theta
        self._widened, self._name_of = widened, name_of
        # On the CPU by name: a default device set for the process must not change the vector.
        generator = torch.Generator("cpu").manual_seed(0)
        drawn = torch.randn(theta.numel(), generator=generator, dtype=torch.float64, device="cpu")
        self._v = drawn.to(theta) if v is None else v
        self._reverse_of, self._reverse, self._forward = reverse, reverse(matrix), forward
        self._has_forward = True  # until an operation has shown to have no forward derivative
        self._is_smooth = is_smooth
        self._precision = self._narrowest()
        self._is_narrow = self._precision != torch.float64
        is_single = theta.dtype == torch.float32
        self._prefers_differences = prefers_differences and is_smooth and is_single and widened is not None

    def verified(self, engine: ProductEngine, keep_bytes: int, graphs: dict[int, Any]) -> Verified | Fault:
        """What the engine has prepared for the first batches, and its product; or what is wrong with that.

        `graphs` are those of some batches in reverse, by number: each is used once and let go.

        Raises:
            CannotSplitError: the engine can't record the loss.
            ValueError: the engine can't differentiate it twice.
        """
        kept: list[Any] = []
        used, total = 0, None
        for index, batch in enumerate(self._batches):
            try:
                prepared, size = engine.prepare(self._theta, batch)
                ours = engine.product(prepared, self._v)
            except CannotSplitError:
                raise
            except (RuntimeError, IndexError) as failure:  # sizes of another batch, written into the recording
                if engine.route != "recorded":
                    raise
                raise CannotSplitError(f"the recording fails on batch {index}: {failure}") from failure
            fault = self._fault_on(engine, prepared, ours, index, batch, graphs.pop(index, None))
            if fault is not None:
                return fault
            total = ours if total is None else total.double().add_(ours)  # in float64 where there is a sum
            if engine.keeps and used + size <= keep_bytes and len(kept) == index:
                kept.append(prepared)
                used += size
        assert total is not None  # data without a batch are refused
        return Verified(Kept(self._theta, engine.name, tuple(kept), used), total)

    def fault_of_both(self, batch: Any) -> Fault | None:
        """What is wrong on some examples though two kinds of product agree on it.

        Both use the derivative that torch gives at a point where it has none, such as 0 for the determinant of a
        singular matrix. Only for losses without kinks: at one, differences are between two Hessians.
        """
        matrix, theta, wide, v = self._wide(batch, self._theta)
        casts = self._theta.dtype == torch.float64 and self._is_narrow
        if theta.dtype != torch.float64 or casts:  # rounding inside the loss is the same at all steps
            return None
        reverse = self._reverse_of(matrix)
        try:
            ours = reverse.product(reverse.prepare(theta, wide)[0], v)
        except _FAILURES:
            return None
        if not bool(ours.isfinite().all()):
            return None
        errors: list[Tensor] = []
        for differences, noise in self._differences(batch):
            error = differences - ours
            if float(error.norm()) <= _RTOL_DIFFERENCES[ours.dtype, ours.dtype] * float(differences.norm()) + noise:
                return None
            errors.append(error)
        least = min(errors, key=lambda error: float(error.norm()), default=torch.zeros(()))
        for other in errors:  # rounding, a kink and steps that are too long differ from step to step
            if other is not least and float((least - other).norm()) <= 0.1 * float(least.norm()):
                error = least
                names = self._name_of(error.abs()) or "theta"
                words = f"by {_relative(error.norm(), ours)} from central differences, most in {names}"
                return Fault(f"the product on some examples is off {words}")
        return None

    def _fault_on(
        self, engine: ProductEngine, prepared: Any, ours: Tensor, index: int, batch: Any, graph: Any
    ) -> Fault | None:
        if not bool(ours.isfinite().all()):
            return Fault(f"the product of batch {index} has NaN or infinite entries", is_finite=False)
        by_differences = self._prefers_differences and engine.route == "reverse" and self._is_wide_enough(batch)
        if by_differences and self._off_from_differences(self._theta, ours, None, 0.0, batch) is None:
            return None
        theirs, rounding = self._other(engine, prepared, batch, graph)
        is_finite = theirs is None or bool(theirs.isfinite().all())
        words = "has none of another kind beside it"
        if theirs is not None and is_finite:
            error = (ours - theirs).norm()
            if bool(error <= RTOL.get(self._precision, 1e-3) * theirs.norm() + rounding):
                return None
            words = f"is off by {_relative(error, theirs)} from one of another kind"
        more = self._off_from_differences(self._theta, ours, theirs if is_finite else None, rounding, batch)
        if more is None or (not self._is_smooth and self._is_right_nearby(engine, batch)):
            return None
        share = None if engine.route == "recorded" else self._rounding_of(engine, ours, batch)
        if share is not None and share <= _MOST_ROUNDING:
            return None
        return Fault(f"the product of batch {index} {words}{more}", is_finite, share or 0.0)

    def _rounding_of(self, engine: ProductEngine, ours: Tensor, batch: Any) -> float | None:
        """The rounding of a float32 product, relative; None where the same route in float64 is not right either.

        Of a nearly perfect classifier the derivatives by the logits, p - 1, are lost in the rounding of p itself.
        """
        matrix, theta, wide, v = self._wide(batch, self._theta)
        if self._theta.dtype == theta.dtype:
            return None
        try:
            if engine.route == "reverse":
                other = self._reverse_of(matrix)
                exact = other.product(other.prepare(theta, wide)[0], v)
            else:
                exact = matrix.product(theta, v, wide)
        except _FAILURES:
            return None
        rtol = _RTOL_DIFFERENCES[torch.float64, torch.float64]
        if not any(
            float((found - exact).norm()) <= rtol * float(found.norm()) + noise
            for found, noise in self._differences(batch)
        ):
            return None
        return float((ours.to(exact) - exact).norm() / exact.norm().clamp(min=1e-300))

    def _is_right_nearby(self, engine: ProductEngine, batch: Any) -> bool:
        """Whether the engine agrees with differences at a point near theta: at a kink there are two Hessians."""
        nearby = self._theta + self._v.cos() * (0.01 * (float(self._theta.norm()) or 1.0) / len(self._v) ** 0.5)
        ours = engine.product(engine.prepare(nearby, batch)[0], self._v)
        return bool(ours.isfinite().all()) and self._off_from_differences(nearby, ours, None, 0.0, batch) is None

    def _off_from_differences(
        self, theta: Tensor, ours: Tensor, theirs: Tensor | None, rounding: float, batch: Any
    ) -> str | None:
        """How far a product is from central differences, in words; None where it agrees with them.

        Where another product disagrees with it, both may be near; then the nearer one is right. In float32 both may be
        off alike, by the rounding inside the loss.
        """
        is_near, nearest, others, words = False, math.inf, math.inf, ""
        for differences, noise in self._differences(batch, theta):
            gap = ours.to(differences) - differences
            error, size = float(gap.norm()), float(differences.norm())
            rtol = _RTOL_DIFFERENCES.get((self._precision, differences.dtype), _RTOL_NARROW)
            is_near = is_near or error <= rtol * size + noise + rounding
            if is_near and theirs is None:
                return None
            if theirs is not None:
                others = min(others, float((theirs.to(differences) - differences).norm()))
                is_near = is_near or (self._is_narrow and error <= min(1e-2 * size, 3 * others))
            if error < nearest:
                nearest, where = error, self._name_of(gap.abs()) or "theta"
                words = f", and by {_relative(gap.norm(), differences)} from central differences, most in {where}"
        return None if is_near and (nearest <= others or self._is_narrow) else words

    def _other(
        self, engine: ProductEngine, prepared: Any, batch: Any, graph: Any = None
    ) -> tuple[Tensor | None, float]:
        """A product of another kind, if there is one, and the size of the rounding of one that nearly vanishes."""
        eps, other = torch.finfo(self._precision).eps, None
        try:
            if engine.route == "reverse":
                other, graph = self._forward_product(batch), prepared
            else:
                graph = self._reverse.prepare(self._theta, batch)[0] if graph is None else graph
                other = self._reverse.product(graph, self._v)
            size = float(self._matrix.magnitude(graph, self._v))
        except _FAILURES:
            size = 0.0
        return other, 1e3 * eps * size if math.isfinite(size) else 0.0

    def _narrowest(self) -> torch.dtype:
        """In what the loss is computed: a float64 model may cast to float32 inside (norms and softmax often do)."""
        if self._theta.dtype != torch.float64:
            return self._theta.dtype
        try:
            with Precision() as watch, torch.enable_grad():
                self._matrix.graph(self._theta, next(iter(self._batches)))
            return cast(torch.dtype, watch.dtype)
        except _FAILURES:
            return self._theta.dtype

    def _forward_product(self, batch: Any) -> Tensor | None:
        if self._has_forward:
            try:
                with torch.no_grad():
                    return self._forward.product((self._theta, batch), self._v)
            except _FAILURES:  # an operation has no forward derivative
                self._has_forward = False
        return None

    def _differences(self, batch: Any, at: Tensor | None = None) -> Iterator[tuple[Tensor, float]]:
        """Central differences at several steps, and the size of the rounding in each."""
        matrix, theta, batch, v = self._wide(batch, self._theta if at is None else at)
        size = float(theta.norm()) or 1.0
        casts = self._theta.dtype == torch.float64 and self._is_narrow
        dtype = self._precision if casts else theta.dtype  # in which first derivatives are computed
        for relative in _STEPS.get(dtype, _STEPS[torch.float32]):
            step = relative * size / float(v.norm())
            try:
                with torch.enable_grad():
                    found, scale = matrix.differences(theta, v, batch, step)
            except _FAILURES:
                return
            if bool(found.isfinite().all()):
                yield found, 50 * torch.finfo(dtype).eps * scale

    def _wide(self, batch: Any, theta: Tensor) -> tuple[BatchMatrix, Tensor, Any, Tensor]:
        """Matrix, theta, batch and v in float64, or as they are where the loss does not run in it."""
        if self._theta.dtype != torch.float64 and self._wide_matrix is not None:
            matrix, widen = self._wide_matrix
            try:
                wide = widen(batch)
                with torch.no_grad():
                    matrix.run(theta.double(), wide)
                return matrix, theta.double(), wide, self._v.double()
            except _FAILURES:
                pass
        return self._matrix, theta, batch, self._v

    def _is_wide_enough(self, batch: Any) -> bool:
        """Whether differences are taken in float64."""
        return self._wide(batch, self._theta)[1].dtype == torch.float64

    @functools.cached_property
    def _wide_matrix(self) -> tuple[BatchMatrix, Callable[[Any], Any]] | None:
        try:
            return None if self._widened is None else self._widened()
        except _FAILURES:
            return None

    def refusal(self, faults: Sequence[Fault]) -> ValueError:
        """The error for a loss of which no engine's products are right."""
        if rounded := [fault.rounding for fault in faults if fault.rounding]:
            received = f"has products that float32 rounds by {min(rounded):.0%} of their size at this theta"
            remedy = "Use float64: objective.double(), or model.double() before the objective is made."
            return ValueError(argument_message("the loss", received, f"at most {_MOST_ROUNDING:.0%}", remedy))
        reasons = "; ".join(dict.fromkeys(fault.reason for fault in faults))
        singular = self._singular_operations()
        if all(fault.is_finite for fault in faults) and not singular:
            received = f"has no second derivative that could be confirmed ({reasons})"
            return ValueError(argument_message("the loss", received, _EXPECTED, _REWRITE))
        received = f"is not twice differentiable by autograd at theta ({reasons}"
        received += f"; {singular} where it has no derivative)" if singular else ")"
        return ValueError(argument_message("the loss", received, _EXPECTED, _AT_ZERO))

    def _singular_operations(self) -> str:
        """The operations that torch can't differentiate where they are, by their names in torch.ops.aten."""
        with SingularOperations() as watch, torch.no_grad():
            for batch in self._batches:
                self._matrix.run(self._theta, batch)
        return ", ".join(watch.found)


def _relative(error: Tensor, reference: Tensor) -> str:
    return f"{float(error / reference.norm().clamp(min=1e-300)):.1e}"
