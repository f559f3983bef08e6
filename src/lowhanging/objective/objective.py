"""The three losses that every tool takes: of a model on a data set, of any torch function, and either plus a quadratic.

All are pure functions of a flat vector theta (p,): the user's model is copied once and never written to, and what a
value depends on besides theta is fixed when the objective is made. Vectors are checked and copied in the public methods
that the three have in common, once; what lies behind them takes vectors as they are.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, cast

import torch
from torch import Tensor, nn

from lowhanging.errors import (
    a_type,
    argument_message,
    check_choice,
    check_finite,
    check_real,
    check_vector,
    door,
)
from lowhanging.io import digest
from lowhanging.objective.batches import MAX_BATCHES, Batches
from lowhanging.objective.checkpoints import Checkpoint, Point, opened, read_point, refuse_plain, with_buffers
from lowhanging.objective.checks import check_derivative, findings
from lowhanging.objective.cost import machine_memory
from lowhanging.objective.distributed import SHARDS, Ranks, Shards, check_shards, find_ranks
from lowhanging.objective.hvp import (
    ENGINES,
    Engine,
    GaussNewtonOfBatch,
    HessianOfBatch,
    Products,
    ProductsAt,
)
from lowhanging.objective.kernels import ONE_AT_A_TIME, GraphWhereNeeded, differentiable_kernels
from lowhanging.objective.model_loss import BatchLoss, LossFn, MicroBatch, ModelLoss, widened_batch
from lowhanging.objective.output_loss import OutputLoss
from lowhanging.objective.parameters import ParameterSpace
from lowhanging.objective.protocol import (
    Block,
    BufferRule,
    Curvature,
    Kind,
    Loss,
    batched_evaluation,
    check_loss,
    check_rows,
    own_vector,
)
from lowhanging.objective.random_state import draws_so_far, untouched_random_state
from lowhanging.objective.verification import BatchMatrix


class _Loss(ABC):
    """What the three objectives have in common: the public methods, in which vectors are checked and copied once."""

    space: ParameterSpace | None = None
    batches: Iterable[Any] = ()
    ranks: Ranks | None = None
    _theta0: Tensor
    _products: Products  # which compute, where a subclass does not
    _last: tuple[Tensor, Curvature] | None = None  # where the last product was asked for: products there are counted
    _remedy: str  # for a vector that does not fit

    @property
    @abstractmethod
    def _owner(self) -> str:
        """Whose parameters vectors must fit."""

    @property
    def engine(self) -> str:
        """How products are computed; chosen, and tested on every micro-batch, at the first product."""
        return self._products.engine

    @property
    def theta0(self) -> Tensor:
        """The point around which the loss is studied, (p,); a copy of its own each time."""
        return own_vector(self._theta0)

    @property
    def num_params(self) -> int:
        """The length of theta, p."""
        return self._theta0.numel()

    def __call__(self, theta: Tensor) -> Tensor:
        """L(theta), a float64 scalar; theta (p,)."""
        return self._value(self._checked(theta))

    def gradient(self, theta: Tensor) -> Tensor:
        """Gradient of L at theta, (p,)."""
        return self.value_and_gradient(theta)[1]

    def value_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """L(theta), a float64 scalar, and its gradient (p,)."""
        return self._value_and_gradient(self._checked(theta))

    def hvp(self, theta: Tensor, v: Tensor) -> Tensor:
        """Hessian of L at theta times v (p,): one product.

        From the second product at one theta on, what does not depend on v is kept (`keep_bytes`); then a product costs
        about 2 gradients, against 3 to 4 of a double backward, and less once it is recorded (`benchmarks/products.py`).
        """
        theta, last = self._checked(theta), self._last
        if last is None or not torch.equal(last[0], theta):
            last = self._last = theta, self.curvature("hessian", theta)
        return last[1].product(self._checked(v, "v"))

    @abstractmethod
    def curvature(self, kind: Kind, theta: Tensor) -> Curvature:
        """The Hessian or the Gauss-Newton matrix at theta (p,), for tools: nothing behind it is checked or copied.

        Theta and the vectors must be finite, in the dtype and on the device of theta0, and stay as they are.

        Raises:
            ValueError, TypeError: "gauss_newton" of a loss that is no function of a model's outputs.
        """

    def evaluate(self, theta: Tensor) -> tuple[Tensor, float | None]:
        """L(theta), bit for bit the objective's value, and the accuracy: None unless targets are classes.

        The accuracy is the share of targets equal to the argmax of the outputs over dimension 1.
        """
        return self._evaluate(self._checked(theta))

    def evaluate_many(self, thetas: Tensor) -> tuple[Tensor, Tensor | None]:
        """`evaluate` at every row of thetas (b, p) at once, (b,) each, by `torch.vmap`: equal to rounding only.

        Quick where one evaluation leaves the processor idle (GPUs, tiny models); b times the memory.
        """
        thetas = check_rows("thetas", thetas, like=self._theta0)
        with batched_evaluation():
            return self._evaluate_many(thetas)

    @property
    def buffers(self) -> str:
        """Where the buffers come from that training moves (BatchNorm's statistics): "none" where the model has none.

        "own": they came with theta0; "fixed": from the point that the loss was at before; "recalibrate": recomputed.
        """
        return "none"

    @property
    def moving_names(self) -> tuple[str, ...]:
        """Names of the buffers that training moves: those that a forward pass in training mode writes."""
        return ()

    @property
    def checkpoint(self) -> Checkpoint:
        """Theta0 with all buffers of the model as they are used here: a point for every tool that takes points."""
        return Checkpoint(self.theta0)

    def as_checkpoint(self, point: Point, *, argument: str = "point") -> Checkpoint:
        """A module, a state_dict, a checkpoint, a minimum or a vector as theta (p,) and the buffers that it brings.

        Or the path of a file that `torch.save` wrote of a state_dict, alone or in a dict ("model_state_dict",
        "state_dict", "model"), which is read with `weights_only=True`; or of a saved `Checkpoint`.

        Raises:
            ValueError, TypeError: names, shapes or tied weights are not those of this model, or a frozen parameter,
                which is a constant of the loss, has another value; only some of the buffers that training moves.
        """
        argument, point = opened(argument, point)
        checkpoint = with_buffers(point)
        return Checkpoint(self._checked(point if checkpoint is None else checkpoint.theta, argument))

    def _checked(self, vector: Any, name: str = "theta") -> Tensor:
        like = self._theta0
        return own_vector(check_vector(name, vector, like.numel(), owner=self._owner, remedy=self._remedy, like=like))

    def _value(self, theta: Tensor) -> Tensor:
        return self._products.value(theta)

    def _value_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        return self._products.value_and_gradient(theta)

    @abstractmethod
    def _evaluate(self, theta: Tensor) -> tuple[Tensor, float | None]: ...
    @abstractmethod
    def _evaluate_many(self, thetas: Tensor) -> tuple[Tensor, Tensor | None]: ...


@door
class Objective(_Loss):
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
        micro_batch: examples evaluated at once; by default what fits a processor's cache, where joining and cutting
            changes neither the value nor the gradient of any batch, and else the batches as they come. A `batch_loss`
            is cut only on request. "measure" takes the quickest by a clock, so that the same call may give other bits;
            `repr` says how many it was.
        max_batches: of data that do not tell how many batches they have; more are taken for a loader that never ends.
            None for no bound.
        engine: how Hessian products are computed, see `lowhanging.objective.hvp`; `objective.engine` says what runs.
        keep_bytes: budget in bytes for what is kept between products at one theta, by default an eighth of what the
            machine has; Gauss-Newton products have another one of the same size.
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
        one read of the data, a gradient on the first batch, two gradients on all where batches are joined or cut, and
        one pass where the loss is a `loss_fn` of your own, which may ignore or weigh targets. Products: see `hvp`. With
        several ranks, a SHA-256 of the data, and for each product a message of 56 bytes and 8 p bytes from every rank.

    Source:
        Pearlmutter (1994), "Fast exact multiplication by the Hessian".
    """

    space: ParameterSpace
    _remedy = "Build vectors from named tensors with objective.space.flatten({...})."

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
        micro_batch: MicroBatch | None = None,
        max_batches: int | None = MAX_BATCHES,
        engine: Engine = "auto",
        keep_bytes: int | None = None,
        distributed: bool | torch.distributed.ProcessGroup | None = None,
        shards: Shards = "split",
    ):
        check_choice("mode", mode, ("eval", "as_is"))
        check_choice("engine", engine, ENGINES)
        if keep_bytes is not None:
            check_real("keep_bytes", keep_bytes, minimum=0, remedy="Pass bytes: 2 * 2**30 are 2 GiB.")
        check_choice("shards", shards, SHARDS)
        self.ranks = find_ranks(distributed)
        shard = None if self.ranks is None else (self.ranks.rank, self.ranks.size) if shards == "split" else (0, 1)
        together = contextlib.nullcontext() if self.ranks is None else self.ranks.making()
        with together, torch.inference_mode(False):  # tensors made in inference mode could enter no gradient
            check_shards(model, data, shards)
            terms = ModelLoss(
                model, data, loss_fn=loss_fn, batch_loss=batch_loss, mode=mode, device=device, cache=cache,
                micro_batch=micro_batch, max_batches=max_batches, ranks=self.ranks, shard=shard,
            )  # fmt: skip
        self.num_examples = terms.num_examples
        if self.ranks is not None:
            self.num_examples = self.ranks.agree_on_loss(_facts(terms), shards)
            terms.settle_cut()
        budget = machine_memory(terms.space.device) // 8 if keep_bytes is None else keep_bytes
        self._settings: dict[str, Any] = {"engine": engine, "keep_bytes": budget}
        self._whose_buffers = "own"
        self._take(terms)

    def excerpt(self) -> Objective:
        """The same loss of a few examples, to measure on; the loss itself where there are few. Products are its own."""
        terms = self._terms.excerpt()
        if terms is self._terms:
            return self
        other = copy.copy(self)
        other._terms, other.batches, other._outputs, other._last = terms, terms.batches, OutputLoss(terms), None
        other._products = self._products.of(terms.batches)
        other._gauss_newton = self._gauss_newton.of(terms.batches)
        return other

    def _take(self, terms: ModelLoss) -> None:
        """Be the loss that these terms add up to, around their theta0."""
        self._terms, self.space, self.batches, self._theta0 = terms, terms.space, terms.batches, terms.theta0
        self._outputs, self._last = OutputLoss(terms), None
        self._products, self._gauss_newton = self._products_of(HessianOfBatch), self._products_of(_gauss_newton_of)

    def _products_of(self, make: Callable[[ModelLoss], BatchMatrix]) -> Products:
        """Those of the matrix that `make` makes of the loss, or of another form of it."""
        terms = self._terms
        return Products(
            terms, terms.batches, matrix=make(terms), context=terms.context, ranks=terms.ranks,
            widened=functools.partial(_widened, make, terms), sample=functools.partial(_sample, terms),
            check_gradient=terms.check_gradient, is_smooth=terms.is_smooth, name_of=terms.space.name_of_largest,
            **self._settings,
        )  # fmt: skip

    @property
    def _owner(self) -> str:
        return self.space.owner

    def __repr__(self) -> str:
        size = f"{self.num_params:,} parameters, {self.num_examples:,} examples"
        largest = self._terms.largest_batch
        size += "" if largest is None else f" in batches of {largest:,}"
        size += f", {self.ranks}" if self.ranks is not None else ""
        how = f"{self._terms.name}, mode={self._terms.mode!r}, engine={self.engine!r}"
        how += "" if self._whose_buffers == "own" or self.buffers == "none" else f", buffers={self.buffers!r}"
        return f"Objective({self.space.owner}, {size}, {how})"

    @property
    def fallback_reason(self) -> str | None:
        """Why `engine` is not the fastest one; None where it is, or before the first product."""
        return self._products.fallback_reason

    def curvature(self, kind: Kind, theta: Tensor) -> Curvature:
        if kind == "gauss_newton":
            self._outputs.check()
        return ProductsAt(self._products if kind == "hessian" else self._gauss_newton, theta)

    def _evaluate(self, theta: Tensor) -> tuple[Tensor, float | None]:
        return self._terms.evaluate(theta)

    def _evaluate_many(self, thetas: Tensor) -> tuple[Tensor, Tensor | None]:
        return self._terms.evaluate_many(thetas)

    @property
    def buffers(self) -> str:
        return self._whose_buffers if self._terms.moving_buffers else "none"

    @property
    def moving_names(self) -> tuple[str, ...]:
        return self._terms.moving_buffers

    @property
    def checkpoint(self) -> Checkpoint:
        with torch.inference_mode(False):
            buffers = {name: buffer.detach().clone() for name, buffer in self._terms.model.named_buffers()}
        return Checkpoint(self.theta0, buffers)

    def as_checkpoint(self, point: Point, *, argument: str = "point") -> Checkpoint:
        with torch.inference_mode(False):
            found = read_point(argument, point, self._terms.model, self.space)
            missing = {name for name, _ in self._terms.model.named_buffers()} - set(found.buffers)
            lost = [name for name in self._terms.moving_buffers if name in missing] if missing and found.buffers else []
        lost = [name for name in lost if name.rpartition(".")[2] != "num_batches_tracked"]  # it decides nothing
        if lost:
            received, remedy = f"lacks the buffers {lost[:4]}", "Pass the module, or its whole state_dict()."
            raise ValueError(argument_message(argument, received, "all buffers that training moves, or none", remedy))
        return found

    def at(self, theta: Point, *, buffers: BufferRule | None = None, recalibrate_on: Any = None) -> Objective:
        """The same loss around another point: a cheap copy whose `theta0` is that point.

        As a function of theta, a loss holds its buffers fixed. Where training moves some (BatchNorm's statistics), they
        belong to the point as much as the weights, so a vector from elsewhere needs a word on which are meant.

        Args:
            theta: a module, its state_dict, a checkpoint, a minimum, or a file of one, whose buffers come along: to
                values, products, `model_at`, `double`, `restricted`. Or a vector (p,).
            buffers: "fixed" keeps those that the loss has now; "recalibrate" recomputes them at the point, once.
            recalibrate_on: the data for that, in any form that `Objective` takes, or an objective; by default the
                loss's own batches. The mean over the batches of each batch's statistics, dropout off.

        Raises:
            ValueError: a vector other than `theta0` without `buffers=`, where training moves buffers.

        Cost:
            for a vector and a model with buffers that are no norm's, once, a forward pass in training mode that shows
            whether training moves them. "recalibrate": a pass over the data.

        Source:
            Garipov et al. (2018), "Loss surfaces, mode connectivity, and fast ensembling of DNNs", for recalibration.
        """
        with torch.inference_mode(False):
            point, terms, whose = self.as_checkpoint(theta, argument="theta"), self._terms, self._whose_buffers
            if buffers is not None:
                check_choice("buffers", buffers, ("fixed", "recalibrate"))
            if recalibrate_on is not None and buffers != "recalibrate":
                received = f"is given, and buffers is {buffers!r}"
                raise ValueError(
                    argument_message("recalibrate_on", received, "buffers='recalibrate'", "Leave one of them out.")
                )
            if buffers is None and point.buffers:
                terms, whose = terms.with_buffers(point.buffers), "own"
            elif buffers == "recalibrate":
                if terms.moving_buffers:
                    terms = terms.with_buffers(terms.recalibrated(point.theta, recalibrate_on))
                whose = "recalibrate"
            elif not torch.equal(point.theta, self._theta0):
                if buffers is None and terms.moving_buffers:
                    choices = "say buffers='fixed' for those of the loss, buffers='recalibrate' to recompute them"
                    refuse_plain("theta", terms.moving_buffers, choices=choices)
                whose = "fixed"
            other = copy.copy(self)
            if terms is not self._terms:
                other._take(terms)
            other._theta0, other._whose_buffers = point.theta, whose
            return other

    def restricted(self, names: Collection[str]) -> Objective:
        """The same loss as a function of the named parameters (q,) alone, the others fixed as in `theta0`.

        Costs a copy of the model, and products choose their engine anew.
        """
        other = copy.copy(self)
        other._take(self._terms.restricted(names, self._theta0))
        return other

    def model_at(self, theta: Point, *, buffers: BufferRule | None = None, recalibrate_on: Any = None) -> nn.Module:
        """A copy of the model at a point, on its device and with the train/eval flags used here.

        Theta and the keywords as in `at`: a vector other than `theta0` needs `buffers=` where training moves buffers.
        """
        other = self.at(theta, buffers=buffers, recalibrate_on=recalibrate_on)
        return other._terms.model_at(other._theta0)

    def double(self) -> Objective:
        """The same loss in float64, around the same point: a copy of the model and of the data; products cost more."""
        other = copy.copy(self)
        with torch.inference_mode(False):
            other._take(self._terms.in_double())
        other._theta0 = self._theta0.double()
        return other

    def in_double(self) -> Callable[[Tensor], Tensor]:
        """L as a float64 torch function of theta (p,), differentiable by autograd: for the oracles of `testing`.

        Raises:
            ValueError: other ranks hold a part of the data.
        """
        if self.ranks is not None:
            received = f"is shared ({self.ranks})"
            raise ValueError(
                argument_message("the loss", received, "all data in one process", "Pass distributed=False.")
            )
        with torch.inference_mode(False):
            return self._terms.in_double().mean


@door
class FunctionObjective(_Loss):
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

    _remedy = "Pass vectors as long as theta0."

    def __init__(self, function: Callable[[Tensor], Tensor], theta0: Tensor, *, engine: Engine = "auto"):
        check_choice("engine", engine, ENGINES)
        if not isinstance(theta0, Tensor) or theta0.ndim != 1 or not theta0.numel() or not theta0.is_floating_point():
            received = f"is {tuple(theta0.shape) if isinstance(theta0, Tensor) else type(theta0).__name__}"
            remedy = "Use tensor.reshape(-1), torch.from_numpy(array) for an array."
            raise ValueError(argument_message("theta0", received, "a floating-point tensor of shape (p,)", remedy))
        check_finite("theta0", theta0, remedy="Start from a finite point.")
        if not callable(function):
            expected, remedy = "a function theta (p,) -> scalar", "Pass lambda theta: ..."
            raise TypeError(argument_message("function", f"is {a_type(function)}", expected, remedy))
        self._theta0, self._engine = own_vector(theta0), engine
        self._function, self._graphs = function, GraphWhereNeeded()
        self._rewrites, self._is_smooth = self._check_function()
        self._is_gradient_checked = False
        self._products = Products(
            self._terms, [()], engine=engine, context=self._kernels, check_gradient=self._check_gradient,
            widened=lambda: (HessianOfBatch(self._terms), lambda batch: batch), is_smooth=self._is_smooth,
        )  # fmt: skip

    def _check_function(self) -> tuple[bool, bool]:
        """Whether some of its operations are to be rewritten, and whether no kink is seen, in one watched call."""
        self._rewrites = False
        with self._kernels(), torch.enable_grad(), untouched_random_state():
            draws, values = draws_so_far(), []
            point = self.theta0.requires_grad_().clone()  # no leaf: writing into it is found below, in our words
            found = findings(nn.Module(), lambda: values.append(self._function(point)))
            kinds, value = {finding.kind for finding in found}, values[0]
            self._rewrites = "rewrite" in kinds
            is_random = draws_so_far() != draws
            is_random = is_random or not _is_same(value, self._function(self.theta0.requires_grad_().clone()))
        received = ""
        if is_random:
            received, expected = "gives another value at the same theta", "a function of theta alone"
            remedy = "Draw what is random once, outside."
        elif not torch.equal(point.detach(), self._theta0):
            received, expected = "writes into theta", "a pure function of theta"
            remedy = "Start it with theta = theta.clone()."
        elif not isinstance(value, Tensor) or value.ndim:
            received = f"returned {tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__}"
            expected, remedy = "a scalar tensor, shape ()", "Sum or average its terms."
        elif not value.requires_grad:
            received, expected = "returned a value that does not depend on theta", "a differentiable function of theta"
            remedy = "Use torch operations throughout: no float(...), no .detach(), no torch.tensor(...)."
        if received:
            raise ValueError(argument_message("function", received, expected, remedy))
        check_finite("function(theta0)", value.detach(), remedy="Check it for overflow or log(0).")
        return self._rewrites, "kinked" not in kinds

    @contextlib.contextmanager
    def _kernels(self) -> Iterator[None]:
        with ONE_AT_A_TIME, differentiable_kernels(None, rewrite=self._rewrites):
            yield

    def _at(self, theta: Tensor) -> Tensor:
        value: Tensor = self._graphs(lambda: self._function(theta))
        return value

    def _terms(self, theta: Tensor, _: Any) -> tuple[Tensor, int]:
        return self._at(theta), 1

    def _check_gradient(self) -> None:
        """Refuse, once, a function whose gradient in torch is not the derivative of its value."""
        if self._is_gradient_checked:
            return
        theta = self._theta0.double()
        drawn = torch.randn(len(theta), generator=torch.Generator("cpu").manual_seed(0), device="cpu").to(theta)
        nearby = theta + drawn * (1e-4 * (float(theta.norm()) or 1.0) / float(drawn.norm()))
        points = [nearby, theta] if self._is_smooth else [nearby]  # at a kink there is no derivative
        try:
            with torch.no_grad():
                self._at(nearby)
        except Exception:  # it does not run in float64
            points = []
        for point in points:
            check_derivative("function", self._at, point)
        self._is_gradient_checked = True

    def __repr__(self) -> str:
        name = getattr(self._function, "__name__", type(self._function).__name__)
        return f"FunctionObjective({name}, {self.num_params:,} parameters, engine={self.engine!r})"

    @property
    def _owner(self) -> str:
        return "theta0"

    def curvature(self, kind: Kind, theta: Tensor) -> Curvature:
        if kind == "gauss_newton":
            received = "is a FunctionObjective, which knows no outputs"
            remedy = "Use hessian(), or an Objective of a model, its data and a loss_fn."
            raise TypeError(argument_message("loss", received, "the loss of a model's outputs", remedy))
        return ProductsAt(self._products, theta)

    def _evaluate(self, theta: Tensor) -> tuple[Tensor, float | None]:
        return self._value(theta), None

    def _evaluate_many(self, thetas: Tensor) -> tuple[Tensor, Tensor | None]:
        with self._kernels(), torch.no_grad():
            return torch.vmap(self._at)(thetas).double(), None

    def at(self, theta: Point, *, buffers: BufferRule | None = None, recalibrate_on: Any = None) -> FunctionObjective:
        """The same function around another point; it has no buffers to be told about."""
        other = copy.copy(self)
        other._theta0 = self.as_checkpoint(theta, argument="theta").theta
        return other

    def excerpt(self) -> FunctionObjective:
        """The function itself."""
        return self

    def double(self) -> FunctionObjective:
        """The same function of a float64 theta, around the same point."""
        return FunctionObjective(self._function, self._theta0.double(), engine=self._engine)

    def in_double(self) -> Callable[[Tensor], Tensor]:
        """The function itself, for float64 vectors."""
        return self._function

    def restricted(self, names: Collection[str]) -> NoReturn:
        """Raises TypeError: there are no named parameters."""
        received = "are given with a FunctionObjective, which has no named parameters"
        raise TypeError(argument_message("parameters", received, "an objective of a model", "Leave them out."))

    def model_at(self, theta: Point, *, buffers: BufferRule | None = None, recalibrate_on: Any = None) -> NoReturn:
        """Raises TypeError: there is no model."""
        remedy = "Make one: lh.Objective(model, data)."
        raise TypeError(argument_message("loss", "is a FunctionObjective", "an objective of a model", remedy))


def _is_same(a: Any, b: Any) -> bool:
    is_pair = isinstance(a, Tensor) and isinstance(b, Tensor)
    return not is_pair or torch.equal(a.nan_to_num(), b.nan_to_num())


@dataclass
class _Shifted:
    """A matrix plus a multiple of the identity."""

    inner: Curvature
    shift: float

    @property
    def num_done(self) -> int:
        return self.inner.num_done

    @num_done.setter
    def num_done(self, num: int) -> None:
        self.inner.num_done = num

    @property
    def engine(self) -> str:
        return self.inner.engine

    def product(self, v: Tensor, block: Block = "auto") -> Tensor:
        return self.inner.product(v, block) + self.shift * v

    def block(self, wanted: Block = "auto") -> str:
        return self.inner.block(wanted)


@door
class AnchoredObjective(_Loss):
    r"""A loss plus a quadratic that keeps it near a point: L(theta) + epsilon/2 |theta - anchor|^2.

    Gradient and Hessian gain epsilon (theta - anchor) and epsilon I, the accuracy nothing. On spheres around theta0 the
    added term is a tilt plus a constant, epsilon <theta - theta0, theta0 - anchor>: it makes no canyon.

    Args:
        loss: any loss.
        anchor: (p,) the point.
        epsilon: >= 0, in units of loss per squared unit of theta.
    """

    _remedy = "Pass loss.theta0 or another theta."

    def __init__(self, loss: Loss, anchor: Tensor, epsilon: float):
        remedy = "Choose about a hundredth of the largest eigenvalue."
        self.epsilon = check_real("epsilon", epsilon, minimum=0.0, remedy=remedy)
        self.unanchored = check_loss("loss", loss)
        self.space, self.batches, self.ranks, self._theta0 = loss.space, loss.batches, loss.ranks, loss.theta0
        self.anchor = self._checked(anchor, "anchor")

    def __repr__(self) -> str:
        return f"AnchoredObjective({self.unanchored!r}, epsilon={self.epsilon:g})"

    @property
    def _owner(self) -> str:
        return str(self.unanchored)

    @property
    def engine(self) -> str:
        return self.unanchored.engine

    @property
    def buffers(self) -> str:
        return self.unanchored.buffers

    @property
    def moving_names(self) -> tuple[str, ...]:
        return self.unanchored.moving_names

    @property
    def checkpoint(self) -> Checkpoint:
        return self.unanchored.checkpoint

    def as_checkpoint(self, point: Point, *, argument: str = "point") -> Checkpoint:
        return self.unanchored.as_checkpoint(point, argument=argument)

    def _value(self, theta: Tensor) -> Tensor:
        return self.unanchored(theta) + self._penalty(theta)

    def _value_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = self.unanchored.value_and_gradient(theta)
        return value + self._penalty(theta), gradient + self.epsilon * (theta - self.anchor)

    def curvature(self, kind: Kind, theta: Tensor) -> Curvature:
        return _Shifted(self.unanchored.curvature(kind, theta), self.epsilon)

    def _evaluate(self, theta: Tensor) -> tuple[Tensor, float | None]:
        value, accuracy = self.unanchored.evaluate(theta)
        return value + self._penalty(theta), accuracy

    def _evaluate_many(self, thetas: Tensor) -> tuple[Tensor, Tensor | None]:
        values, accuracies = self.unanchored.evaluate_many(thetas)
        return values + self._penalty(thetas), accuracies

    def _penalty(self, theta: Tensor) -> Tensor:
        """Of theta (p,), or of each of rows (b, p)."""
        return 0.5 * self.epsilon * (theta - self.anchor).double().square().sum(-1)

    def at(self, theta: Point, *, buffers: BufferRule | None = None, recalibrate_on: Any = None) -> AnchoredObjective:
        """The same loss, with the same anchor, around another point; theta and the keywords as in `Objective.at`."""
        inner = self.unanchored.at(theta, buffers=buffers, recalibrate_on=recalibrate_on)
        return AnchoredObjective(inner, self.anchor, self.epsilon)

    def restricted(self, names: Collection[str]) -> AnchoredObjective:
        """The anchored loss of the named parameters alone, up to the constant that the others' anchor adds."""
        inner = self.unanchored.restricted(names)
        where = slice(0) if self.space is None else self.space.positions(names)
        return AnchoredObjective(inner, self.anchor[where], self.epsilon)

    def model_at(self, theta: Point, *, buffers: BufferRule | None = None, recalibrate_on: Any = None) -> nn.Module:
        """A copy of the model at a point, as `Objective.model_at`."""
        return self.unanchored.model_at(theta, buffers=buffers, recalibrate_on=recalibrate_on)

    def excerpt(self) -> AnchoredObjective:
        """A few examples of the loss, with the same anchor."""
        part = self.unanchored.excerpt()
        return self if part is self.unanchored else AnchoredObjective(part, self.anchor, self.epsilon)

    def double(self) -> AnchoredObjective:
        """The same anchored loss in float64, around the same point."""
        return AnchoredObjective(self.unanchored.double(), self.anchor.double(), self.epsilon)

    def in_double(self) -> Callable[[Tensor], Tensor]:
        """The loss, the anchor's included, as a float64 torch function of theta (p,)."""
        function = self.unanchored.in_double()
        return lambda theta: function(theta) + self._penalty(theta)


def _facts(terms: ModelLoss) -> dict[str, Any]:
    """What ranks that share a loss must have in common, and how many examples this one has."""
    data, space = cast(Batches, terms.batches), terms.space
    return {
        "model": f"{space.owner} with {space.num_params:,} parameters in {space.dtype}",
        "theta0": digest(terms.theta0),
        "constants": digest(*_constants(terms)),
        "loss": terms.name,
        "mode": terms.mode,
        "data": f"{data.num_read:,} examples ({data.digest})",
        "num_examples": data.num_examples,
    }


def _constants(terms: ModelLoss) -> Iterator[Tensor]:
    """What the loss depends on besides theta and the data."""
    for module in (terms.model, terms.loss_fn):
        if isinstance(module, nn.Module):
            yield from (weight for weight in module.parameters() if not weight.requires_grad)
            yield from module.buffers()


def _widened(make: Callable[[ModelLoss], BatchMatrix], terms: ModelLoss) -> tuple[BatchMatrix, Callable[[Any], Any]]:
    """The matrix of the loss in float64, and what makes a batch of it."""
    return make(terms.widened()), widened_batch


def _sample(terms: ModelLoss, batch: Any) -> Any:
    """A few examples; None where a float64 copy of the model would be dear."""
    return terms.sample(batch) if terms.can_be_widened else None


def _gauss_newton_of(terms: ModelLoss) -> BatchMatrix:
    return GaussNewtonOfBatch(OutputLoss(terms))
