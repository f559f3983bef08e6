"""What is the loss as a function of the weights?

Three kinds of objective, one interface (`Loss`): `Objective` (a model on a data set), `FunctionObjective` (any torch
function of theta) and `AnchoredObjective` (either plus a quadratic). All are pure functions of a flat vector theta
(p,): the user's model is copied once and never written to, and what a value depends on besides theta is fixed when the
objective is made. Every tool of the library takes any of the three.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Collection
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lowhanging.batch_matrices import GaussNewtonOfBatch
from lowhanging.batches import draws_so_far, untouched_random_state
from lowhanging.curvature import Curvature, Kind
from lowhanging.errors import check_choice, check_finite, check_real, check_vector, explain
from lowhanging.layers import differentiable_kernels
from lowhanging.loss import check_rows, own_vector
from lowhanging.model_loss import BatchLoss, LossFn, ModelLoss
from lowhanging.output_loss import OutputLoss
from lowhanging.products import DEFAULT_KEEP_BYTES, ENGINES, Engine, Products
from lowhanging.ranks import find_ranks
from lowhanging.shards import SHARDS, Shards, agree, check_given, check_unwrapped


class Objective:
    r"""Mean loss of a model over one data set, as a function of its flat trainable parameters.

    L(theta) = (sum over batches of the batch's loss sum) / (number of loss terms), so that ragged, permuted or re-cut
    batches give the same loss, gradient and Hessian.

    Args:
        model: any nn.Module; copied, never written to. Frozen parameters and buffers are constants.
        data: DataLoader, iterable of batches, map-style Dataset, or one data set as a tuple (inputs, targets). It is
            read once, here (a `generator=` of the loader's own advances by that one pass, as it must). Batches are
            (x, y), (x1, x2, y), named tuples, or mappings with a key such as "labels", the rest passed by keyword.
        loss_fn: (outputs, targets) -> *mean* loss, as torch's losses are by default. Floating-point targets need an
            explicit one: cross-entropy would read them as class probabilities.
        batch_loss: (model, batch) -> (sum, count) instead of `loss_fn`, where the count isn't the number of targets
            (`ignore_index`, class weights) or the batch has another form. It gets batches as `data` yields them, a
            BatchEncoding as such.
        mode: "eval" evaluates as after `model.eval()`, whatever the flags; "as_is" respects the flags and refuses, by
            name, the layers that are then random or mix examples. The model's own flags are not changed.
        device: where to compute; by default where the model is.
        cache: False re-reads `data` on each pass (data too large to keep) and checks that the passes agree.
        micro_batch: examples evaluated at once; by default what fits a processor's cache.
        engine: how Hessian products are computed, see `products.py`; `objective.engine` says what runs.
        keep_bytes: budget in bytes for what is kept between products at one theta; Gauss-Newton products have another
            one of the same size.
        distributed: None shares the examples among all ranks where `torch.distributed` is initialised; True does, or
            raises; False keeps them all in this process; a process group shares them among its members. With shared
            examples, *every rank makes the objective and makes the same calls*, and gets the same numbers.
        shards: "split" where every rank has all of the data: rank r of n takes example r, r + n, ... of them, or these
            batches where they can't be joined or `cache=False`. "given" where every rank has its own part.

    Attributes:
        theta0: (p,) the weights when the objective was made.
        space: the ParameterSpace, theta <-> named tensors.
        batches: the micro-batches, the same on every pass; with several ranks, those of this one.
        num_examples: examples in the data set, those of all ranks.
        ranks: the processes that share them, "rank 0 of 2"; None where this one has all.

    Raises:
        ValueError, TypeError: empty or unusable data, NaN or inf in data or weights, targets out of range, nothing
            trainable, a random or batch-dependent layer in use, a device that isn't there, a loss that is not a mean;
            ranks whose model, weights, loss or data do not fit together (on every rank).
        RuntimeError: another rank failed, or did not make the objective within ten minutes.

    Warns:
        NotSmoothWarning: once per objective, naming the layers with kinks (ReLU, max-pool).

    Cost:
        one read of the data, a gradient and four values on the first micro-batch; three values on every other one where
        a `loss_fn` of your own meets integer targets, which it may ignore or weigh. Products: see `hvp`. With several
        ranks, a SHA-256 of the data, and for each product a message of 56 bytes and 8 p bytes from every rank.

    Source:
        Pearlmutter (1994), "Fast exact multiplication by the Hessian".
    """

    def __init__(
        self,
        model: nn.Module,
        data: Any,
        *,
        loss_fn: LossFn | None = None,
        batch_loss: BatchLoss | None = None,
        mode: Literal["eval", "as_is"] = "eval",
        device: torch.device | str | None = None,
        cache: bool = True,
        micro_batch: int | None = None,
        engine: Engine = "auto",
        keep_bytes: int = DEFAULT_KEEP_BYTES,
        distributed: bool | torch.distributed.ProcessGroup | None = None,
        shards: Shards = "split",
    ):
        check_choice("mode", mode, ("eval", "as_is"))
        check_choice("engine", engine, ENGINES)
        check_real("keep_bytes", keep_bytes, minimum=0, remedy="Pass bytes: 2 * 2**30 is the default.")
        check_choice("shards", shards, SHARDS)
        self.ranks = find_ranks(distributed)
        shard = None if self.ranks is None else (self.ranks.rank, self.ranks.size) if shards == "split" else (0, 1)
        together = contextlib.nullcontext() if self.ranks is None else self.ranks.making()
        with together, torch.inference_mode(False):  # tensors made in inference mode could enter no gradient
            check_unwrapped(model)
            if shards == "given":
                check_given(data)
            self._terms = ModelLoss(
                model,
                data,
                loss_fn=loss_fn,
                batch_loss=batch_loss,
                mode=mode,
                device=device,
                cache=cache,
                micro_batch=micro_batch,
                ranks=self.ranks,
                shard=shard,
            )
        self.batches, self.num_examples = self._terms.batches, self._terms.num_examples
        if self.ranks is not None:
            self.num_examples = agree(self.ranks, self._terms, shards)
        self._settings: dict[str, Any] = {"engine": engine, "keep_bytes": keep_bytes}
        self._take(self._terms)

    def _take(self, terms: ModelLoss) -> None:
        """Be the loss that these terms add up to, around their theta0."""
        self._terms, self.space, self._theta0 = terms, terms.space, terms.theta0
        self._outputs = OutputLoss(terms)
        summed = functools.partial(
            Products, terms, terms.batches, context=terms.context, ranks=terms.ranks, **self._settings
        )
        self._products, self._gauss_newton = summed(), summed(matrix=GaussNewtonOfBatch(self._outputs))

    def __repr__(self) -> str:
        size = f"{self.num_params:,} parameters, {self.num_examples:,} examples"
        size += f", {self.ranks}" if self.ranks is not None else ""
        how = f"{self._terms.name}, mode={self._terms.mode!r}, engine={self.engine!r}"
        return f"Objective({self.space.owner}, {size}, {how})"

    @property
    def theta0(self) -> Tensor:
        """The point around which the loss is studied, (p,); a copy of its own each time."""
        return own_vector(self._theta0)

    @property
    def num_params(self) -> int:
        """The length of theta, p."""
        return self.space.num_params

    @property
    def engine(self) -> str:
        """How products are computed; chosen, and tested on every micro-batch, at the first product."""
        return self._products.engine

    @property
    def fallback_reason(self) -> str | None:
        """Why `engine` is not the fastest one; None where it is, or before the first product."""
        return self._products.fallback_reason

    def __call__(self, theta: Tensor) -> Tensor:
        """L(theta), a float64 scalar; theta (p,)."""
        return self._products.value(self._checked(theta))

    def gradient(self, theta: Tensor) -> Tensor:
        """Gradient of L at theta, (p,)."""
        return self.value_and_gradient(theta)[1]

    def value_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """L(theta), a float64 scalar, and its gradient (p,)."""
        return self._products.value_and_gradient(self._checked(theta))

    def hvp(self, theta: Tensor, v: Tensor) -> Tensor:
        """Hessian of L at theta times v (p,): one product.

        From the second product at one theta on, what does not depend on v is kept (`keep_bytes`); then a product costs
        about 1.3 to 1.8 gradients, against 3 to 4 of a double backward (`benchmarks/products.py`).
        """
        return self._products.product(self._checked(theta), self._checked(v, "v"))

    def curvature(self, kind: Kind) -> Curvature:
        """The Hessian or the Gauss-Newton matrix as products, for `hessian` and `gauss_newton`, which check vectors.

        Raises:
            ValueError: "gauss_newton" of a loss that is no function of the model's outputs.
        """
        if kind == "gauss_newton":
            self._outputs.check()
        return Curvature(self._products if kind == "hessian" else self._gauss_newton)

    def evaluate(self, theta: Tensor) -> tuple[Tensor, float | None]:
        """L(theta), bit for bit the objective's value, and the accuracy (None unless targets are classes).

        The accuracy is the share of targets equal to the argmax of the outputs over dimension 1.
        """
        return self._terms.evaluate(self._checked(theta))

    def evaluate_many(self, thetas: Tensor) -> tuple[Tensor, Tensor | None]:
        """`evaluate` at every row of thetas (b, p) at once, (b,) each, by `torch.vmap`: equal to rounding only.

        Quick where one evaluation leaves the processor idle (GPUs, tiny models); b times the memory.
        """
        return self._terms.evaluate_many(check_rows("thetas", thetas, like=self.theta0))

    def at(self, theta: Tensor) -> Objective:
        """The same loss around another point: a cheap copy whose `theta0` is theta (p,)."""
        other = copy.copy(self)
        other._theta0 = self._checked(theta)
        return other

    def restricted(self, names: Collection[str]) -> Objective:
        """The same loss as a function of the named parameters (q,) alone, the others fixed as in `theta0`.

        Costs a copy of the model, and products choose their engine anew.
        """
        other = copy.copy(self)
        other._take(self._terms.restricted(names, self._theta0))
        return other

    def model_at(self, theta: Tensor) -> nn.Module:
        """A copy of the model, on its device and with the train/eval flags used here, with the weights theta (p,)."""
        return self._terms.model_at(self._checked(theta))

    def double(self) -> Objective:
        """The same loss in float64, around the same point: a copy of the model and of the data; products cost more."""
        other = copy.copy(self)
        with torch.inference_mode(False):
            other._take(self._terms.in_double())
        other.batches, other._theta0 = other._terms.batches, self._theta0.double()
        return other

    def in_double(self) -> Callable[[Tensor], Tensor]:
        """L as a float64 torch function of theta (p,), differentiable by autograd: for the oracles of `testing`.

        Raises:
            ValueError: other ranks hold a part of the data.
        """
        if self.ranks is not None:
            received = f"is shared ({self.ranks})"
            raise ValueError(explain("the loss", received, "all data in one process", "Pass distributed=False."))
        with torch.inference_mode(False):
            return self._terms.in_double().mean

    def _checked(self, theta: Tensor, name: str = "theta") -> Tensor:
        remedy = "Build vectors from named tensors with objective.space.flatten({...})."
        return own_vector(
            check_vector(name, theta, self.num_params, owner=self.space.owner, remedy=remedy, like=self.theta0)
        )


class FunctionObjective:
    """Any scalar torch function of theta as an objective: every tool of the library takes it.

    Args:
        function: theta (p,) -> scalar tensor, twice differentiable with torch operations.
        theta0: (p,) floating-point, the point around which it is studied.
        engine: as in `Objective`.

    Raises:
        ValueError: theta0 is no finite vector, or the function does not return a finite scalar there.

    Example:
        >>> f = FunctionObjective(lambda theta: (theta**4).sum(), torch.ones(3))
        >>> f.hvp(f.theta0, torch.ones(3))
        tensor([12., 12., 12.])
    """

    def __init__(self, function: Callable[[Tensor], Tensor], theta0: Tensor, *, engine: Engine = "auto"):
        check_choice("engine", engine, ENGINES)
        if not isinstance(theta0, Tensor) or theta0.ndim != 1 or not theta0.numel() or not theta0.is_floating_point():
            received = f"is {tuple(theta0.shape) if isinstance(theta0, Tensor) else type(theta0).__name__}"
            raise ValueError(
                explain(
                    "theta0",
                    received,
                    "a floating-point tensor of shape (p,)",
                    "Use tensor.reshape(-1), torch.from_numpy(array) for an array.",
                )
            )
        check_finite("theta0", theta0, remedy="Start from a finite point.")
        self._theta0 = own_vector(theta0)
        self._function = function
        kernels = functools.partial(differentiable_kernels, None)
        self._products = Products(lambda theta, _: (function(theta), 1), [()], engine=engine, context=kernels)
        if not callable(function):
            received = f"is a {type(function).__name__}"
            raise TypeError(explain("function", received, "a function theta (p,) -> scalar", "Pass lambda theta: ..."))
        point = own_vector(theta0)
        with kernels(), torch.enable_grad(), untouched_random_state():
            draws = draws_so_far()
            point = point.requires_grad_().clone()  # no leaf: writing into it is found below, in our words
            value = function(point)
            is_random = draws_so_far() != draws or not _is_same(
                value, function(own_vector(theta0).requires_grad_().clone())
            )
        point = point.detach()
        if is_random:
            received = "gives another value at the same theta"
            raise ValueError(
                explain("function", received, "a function of theta alone", "Draw what is random once, outside.")
            )
        if not torch.equal(point, self.theta0):
            remedy = "Start it with theta = theta.clone()."
            raise ValueError(explain("function", "writes into theta", "a pure function of theta", remedy))
        if not isinstance(value, Tensor) or value.ndim:
            received = f"returned {tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__}"
            raise ValueError(explain("function", received, "a scalar tensor, shape ()", "Sum or average its terms."))
        if not value.requires_grad:
            received = "returned a value that does not depend on theta"
            remedy = "Use torch operations throughout: no float(...), no .detach(), no torch.tensor(...)."
            raise ValueError(explain("function", received, "a differentiable function of theta", remedy))
        check_finite("function(theta0)", value.detach(), remedy="Check it for overflow or log(0).")

    def __repr__(self) -> str:
        name = getattr(self._function, "__name__", type(self._function).__name__)
        return f"FunctionObjective({name}, {self.num_params:,} parameters, engine={self.engine!r})"

    @property
    def theta0(self) -> Tensor:
        """The point around which the loss is studied, (p,); a copy of its own each time."""
        return own_vector(self._theta0)

    @property
    def num_params(self) -> int:
        """The length of theta, p."""
        return self.theta0.numel()

    @property
    def engine(self) -> str:
        """How products are computed; chosen at the first product."""
        return self._products.engine

    def __call__(self, theta: Tensor) -> Tensor:
        """f(theta), a float64 scalar."""
        return self._products.value(self._checked(theta))

    def gradient(self, theta: Tensor) -> Tensor:
        """Gradient of f at theta, (p,)."""
        return self.value_and_gradient(theta)[1]

    def value_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """f(theta), a float64 scalar, and its gradient (p,)."""
        return self._products.value_and_gradient(self._checked(theta))

    def hvp(self, theta: Tensor, v: Tensor) -> Tensor:
        """Hessian of f at theta times v (p,): one product."""
        return self._products.product(self._checked(theta), self._checked(v, "v"))

    def curvature(self, kind: Kind) -> Curvature:
        """The Hessian as products; a function has no outputs, and so no Gauss-Newton matrix."""
        if kind == "gauss_newton":
            received = "is a FunctionObjective, which knows no outputs"
            remedy = "Use hessian(), or an Objective of a model, its data and a loss_fn."
            raise TypeError(explain("loss", received, "the loss of a model's outputs", remedy))
        return Curvature(self._products)

    def evaluate(self, theta: Tensor) -> tuple[Tensor, float | None]:
        """f(theta) and None: a function has no accuracy."""
        return self(theta), None

    def evaluate_many(self, thetas: Tensor) -> tuple[Tensor, Tensor | None]:
        """`evaluate` at every row of thetas (b, p) at once, by `torch.vmap`: equal to rounding only."""
        thetas = check_rows("thetas", thetas, like=self.theta0)
        with differentiable_kernels(None), torch.no_grad():
            return torch.vmap(self._function)(thetas).double(), None

    def at(self, theta: Tensor) -> FunctionObjective:
        """The same function around another point."""
        other = copy.copy(self)
        other._theta0 = self._checked(theta)
        return other

    def double(self) -> FunctionObjective:
        """The same function of a float64 theta, around the same point."""
        return FunctionObjective(self._function, self._theta0.double())

    def in_double(self) -> Callable[[Tensor], Tensor]:
        """The function itself, for float64 vectors."""
        return self._function

    def _checked(self, theta: Tensor, name: str = "theta") -> Tensor:
        remedy = "Pass vectors as long as theta0."
        return own_vector(check_vector(name, theta, self.num_params, owner="theta0", remedy=remedy, like=self.theta0))


def _is_same(a: Any, b: Any) -> bool:
    is_pair = isinstance(a, Tensor) and isinstance(b, Tensor)
    return not is_pair or torch.equal(a.nan_to_num(), b.nan_to_num())
