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
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lowhanging.batch_matrices import BatchMatrix, GaussNewtonOfBatch, HessianOfBatch
from lowhanging.curvature import Curvature, Kind
from lowhanging.errors import check_choice, check_real, check_vector, explain
from lowhanging.loss import check_rows, own_vector
from lowhanging.model_loss import BatchLoss, LossFn, ModelLoss, widened_batch
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
            self._terms.settle_cut()
        self._settings: dict[str, Any] = {"engine": engine, "keep_bytes": keep_bytes}
        self._take(self._terms)

    def _take(self, terms: ModelLoss) -> None:
        """Be the loss that these terms add up to, around their theta0."""
        self._terms, self.space, self._theta0 = terms, terms.space, terms.theta0
        self._outputs = OutputLoss(terms)

        def summed(matrix: Callable[[ModelLoss], BatchMatrix]) -> Products:
            return Products(
                terms,
                terms.batches,
                context=terms.context,
                matrix=matrix(terms),
                ranks=terms.ranks,
                widened=lambda: (matrix(terms.widened()), widened_batch),
                check_gradient=terms.check_gradient,
                sample=lambda batch: terms.sample(batch) if terms.is_smooth else None,
                name_of=terms.space.name_of_largest,
                **self._settings,
            )

        self._products = summed(HessianOfBatch)
        self._gauss_newton = summed(
            lambda given: GaussNewtonOfBatch(self._outputs if given is terms else OutputLoss(given))
        )

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
