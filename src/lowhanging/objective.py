"""What is the loss of a model on a data set, as a function of the weights?

Three kinds of objective, one interface (`Loss`): `Objective` here, `FunctionObjective` (any torch function of theta)
and `AnchoredObjective` (either plus a quadratic). All are pure functions of a flat vector theta (p,): the user's model
is copied once and never written to, and what a value depends on besides theta is fixed when the objective is made.
Every tool of the library takes any of the three.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lowhanging.batch_matrices import BatchMatrix, GaussNewtonOfBatch, HessianOfBatch
from lowhanging.batches import MAX_BATCHES
from lowhanging.checkpoints import Checkpoint, Point, read_point, refuse_plain
from lowhanging.curvature import Curvature, Kind
from lowhanging.errors import check_choice, check_real, check_vector, explain
from lowhanging.loss import batched_evaluation, check_rows, own_vector
from lowhanging.model_loss import BatchLoss, LossFn, ModelLoss, widened_batch
from lowhanging.output_loss import OutputLoss
from lowhanging.products import DEFAULT_KEEP_BYTES, ENGINES, Engine, Products
from lowhanging.ranks import find_ranks
from lowhanging.shards import SHARDS, Shards, agree, check_given, check_unwrapped


@dataclass(frozen=True)
class _Checks:
    """What the check of a product asks of a loss; a class and no closures, so that objectives can be pickled."""

    terms: ModelLoss
    make: Callable[[ModelLoss], BatchMatrix]

    def widened(self) -> tuple[BatchMatrix, Callable[[Any], Any]]:
        """The matrix of the loss in float64, and what makes a batch of it."""
        return self.make(self.terms.widened()), widened_batch

    def sample(self, batch: Any) -> Any:
        """A few examples; None where a float64 copy of the model would be dear."""
        return self.terms.sample(batch) if self.terms.can_be_widened else None

    def is_smooth(self) -> bool:
        """Whether no kink was seen."""
        return self.terms.is_smooth


def _gauss_newton_of(terms: ModelLoss) -> BatchMatrix:
    return GaussNewtonOfBatch(OutputLoss(terms))


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
        micro_batch: examples evaluated at once; by default what fits a processor's cache, where joining and cutting
            changes neither the value nor the gradient of any batch, and else the batches as they come. A `batch_loss`
            is cut only on request.
        max_batches: of data that do not tell how many batches they have; more are taken for a loader that never ends.
            None for no bound.
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
        one read of the data, a gradient on the first batch, two gradients on all where batches are joined or cut, and
        one pass where the loss is a `loss_fn` of your own, which may ignore or weigh targets. Products: see `hvp`. With
        several ranks, a SHA-256 of the data, and for each product a message of 56 bytes and 8 p bytes from every rank.

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
        max_batches: int | None = MAX_BATCHES,
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
                max_batches=max_batches,
                ranks=self.ranks,
                shard=shard,
            )
        self.batches, self.num_examples = self._terms.batches, self._terms.num_examples
        if self.ranks is not None:
            self.num_examples = agree(self.ranks, self._terms, shards)
            self._terms.settle_cut()
        self._settings: dict[str, Any] = {"engine": engine, "keep_bytes": keep_bytes}
        self._whose_buffers = "own"
        self._take(self._terms)

    def _take(self, terms: ModelLoss) -> None:
        """Be the loss that these terms add up to, around their theta0."""
        self._terms, self.space, self._theta0 = terms, terms.space, terms.theta0
        self._outputs = OutputLoss(terms)

        self._products = self._summed(terms, HessianOfBatch(terms), HessianOfBatch)
        self._gauss_newton = self._summed(terms, GaussNewtonOfBatch(self._outputs), _gauss_newton_of)

    def _summed(self, terms: ModelLoss, matrix: BatchMatrix, make: Callable[[ModelLoss], BatchMatrix]) -> Products:
        """The products of a matrix; `make` makes the same of another form of the loss."""
        checks = _Checks(terms, make)
        return Products(
            terms,
            terms.batches,
            context=terms.context,
            matrix=matrix,
            ranks=terms.ranks,
            widened=checks.widened,
            check_gradient=terms.check_gradient,
            sample=checks.sample,
            is_smooth=checks.is_smooth,
            name_of=terms.space.name_of_largest,
            **self._settings,
        )

    def __repr__(self) -> str:
        size = f"{self.num_params:,} parameters, {self.num_examples:,} examples"
        size += f", {self.ranks}" if self.ranks is not None else ""
        how = f"{self._terms.name}, mode={self._terms.mode!r}, engine={self.engine!r}"
        how += "" if self._whose_buffers == "own" or self.buffers == "none" else f", buffers={self.buffers!r}"
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
        thetas = check_rows("thetas", thetas, like=self.theta0)
        with batched_evaluation():
            return self._terms.evaluate_many(thetas)

    @property
    def buffers(self) -> str:
        """Where the buffers come from that training moves (BatchNorm's statistics): "none" where the model has none.

        "own": they came with theta0; "fixed": from the point that the loss was at before; "recalibrate": recomputed.
        """
        return self._whose_buffers if self._terms.moving_buffers else "none"

    @property
    def moving_names(self) -> tuple[str, ...]:
        """Names of the buffers that training moves: those that a forward pass in training mode writes."""
        return self._terms.moving_buffers

    @property
    def checkpoint(self) -> Checkpoint:
        """Theta0 with all buffers of the model as they are used here: a point for every tool that takes points."""
        with torch.inference_mode(False):
            buffers = {name: buffer.detach().clone() for name, buffer in self._terms.model.named_buffers()}
        return Checkpoint(self.theta0, buffers)

    def as_checkpoint(self, point: Point, *, argument: str = "point") -> Checkpoint:
        """A module, a state_dict, a checkpoint, a minimum or a vector as theta (p,) and the buffers that it brings.

        Raises:
            ValueError, TypeError: names, shapes or tied weights are not those of this model, or a frozen parameter,
                which is a constant of the loss, has another value; only some of the buffers that training moves.
        """
        with torch.inference_mode(False):
            found = read_point(argument, point, self._terms.model, self.space)
            missing = {name for name, _ in self._terms.model.named_buffers()} - set(found.buffers)
            lost = [name for name in self._terms.moving_buffers if name in missing] if missing and found.buffers else []
        lost = [name for name in lost if name.rpartition(".")[2] != "num_batches_tracked"]  # it decides nothing
        if lost:
            received, remedy = f"lacks the buffers {lost[:4]}", "Pass the module, or its whole state_dict()."
            raise ValueError(explain(argument, received, "all buffers that training moves, or none", remedy))
        return found

    def at(
        self, theta: Point, *, buffers: Literal["fixed", "recalibrate"] | None = None, recalibrate_on: Any = None
    ) -> Objective:
        """The same loss around another point: a cheap copy whose `theta0` is that point.

        As a function of theta, a loss holds its buffers fixed. Where training moves some (BatchNorm's statistics), they
        belong to the point as much as the weights, so a vector from elsewhere needs a word on which are meant.

        Args:
            theta: a module, its state_dict, a checkpoint, or a minimum, whose buffers come along: to values, products,
                `model_at`, `double`, `restricted`. Or a vector (p,).
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
                raise ValueError(explain("recalibrate_on", received, "buffers='recalibrate'", "Leave one of them out."))
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

    def model_at(
        self, theta: Point, *, buffers: Literal["fixed", "recalibrate"] | None = None, recalibrate_on: Any = None
    ) -> nn.Module:
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
