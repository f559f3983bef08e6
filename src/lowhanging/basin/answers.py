"""How does a descent go on after an interruption? By the answers that the loss gave before it.

SciPy's L-BFGS keeps its state to itself, so it can't be written down. But all that a descent does follows from what it
asks the loss and what it is told: given the same answers it takes the same steps, to the last bit. So the answers are
kept, in order. A run that goes on asks again from the start, and what was asked before costs only the arithmetic in
between. The first gradient and the last one are computed anew and compared, so that the file of another loss is found
out: two losses may agree in one point, as one with an anchor there and one without.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowhanging.basin.operators import Hessian
from lowhanging.errors import explain
from lowhanging.loss import Loss, around
from lowhanging.results import digest
from lowhanging.resume_file import ResumeFile

_Answer = tuple[float, Tensor]  # value (NaN for a product), gradient or product (p,)


class Answers:
    """A loss whose gradients and products are kept in a file, as far as a descent asks for them.

    Args:
        loss: the loss, around the point where the descent starts.
        resume: path of the file.
        anchor: of the loss, for the message where the file has another.
    """

    def __init__(self, loss: Loss, resume: str | Path, anchor: float):
        if getattr(loss, "ranks", None) is not None:
            received = "is given with a loss whose examples several processes share"
            raise ValueError(explain("resume", received, "a loss of one process", "Leave resume= out."))
        self._loss, self._like = loss, loss.theta0
        identity = {"theta0": digest(loss.theta0), "anchor": repr(anchor)}
        self._file = ResumeFile(resume, identity, kind="a polish", run="polish")
        self._questions: list[str] = []  # digests
        self._answers: list[_Answer] = []
        self._next = 0  # number of the next question
        self._is_written = True
        self._read()
        gradients = [i for i, question in enumerate(self._questions) if question.startswith("gradient")]
        self._compared = {*gradients[:1], *gradients[-1:]}  # numbers of the answers that are computed anew
        self.num_gradients = sum(question.startswith("gradient") for question in self._questions)

    @property
    def theta0(self) -> Tensor:
        """Where the descent starts, (p,)."""
        return self._loss.theta0

    def at(self, theta: Tensor) -> Loss:
        """The loss itself, around another point."""
        return around(self._loss, theta)

    def value_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """As of the loss."""

        def ask() -> _Answer:
            value, gradient = self._loss.value_and_gradient(theta)
            return float(value), gradient

        value, gradient = self._answer(f"gradient {digest(theta)}", ask)
        return torch.tensor(value, dtype=torch.float64), gradient

    def hvp(self, theta: Tensor, v: Tensor) -> Tensor:
        """As of the loss."""
        return self._answer(f"product {digest(theta, v)}", lambda: (float("nan"), self._loss.hvp(theta, v)))[1]

    def matrix(self, H: Hessian) -> _Answered:
        """A Hessian of the loss whose products are kept, too."""
        return _Answered(self, H)

    def product(self, H: Hessian, v: Tensor) -> Tensor:
        """H v, (p,)."""
        return self._answer(f"matrix {digest(H.theta, v)}", lambda: (float("nan"), H @ v))[1]

    def exact(self, H: Hessian, row: Tensor, by_differences: bool) -> Tensor:
        """H row in float64, (p,); kept as two vectors in the dtype of the others, what is rounded and what remains."""
        fresh: list[Tensor] = []

        def image() -> Tensor:
            if not fresh:
                found = H.exact_products(row[None], by_differences=by_differences)
                if found is None:
                    raise TypeError("the loss has no float64 form")
                fresh.append(found[0])
            return fresh[0]

        name = f"{digest(H.theta, row)} {by_differences}"
        high = self._answer(f"exact {name}", lambda: (float("nan"), image().to(self._like)))[1].double()
        rest = self._answer(f"rest {name}", lambda: (float("nan"), (image() - high.to(image())).to(self._like)))[1]
        return high + rest.double()

    def flush(self) -> None:
        """Write what is not written yet, on the way out: a full disk is not the error to report."""
        with contextlib.suppress(OSError):
            self._write()

    def _answer(self, question: str, ask: Callable[[], _Answer]) -> _Answer:
        number, self._next = self._next, self._next + 1
        if number < len(self._questions) and self._questions[number] == question:
            value, row = self._answers[number]
            if number in self._compared:
                self._compared.discard(number)
                fresh, other = ask()
                if repr(fresh) != repr(value) or not torch.equal(row, other.cpu()):
                    remedy = "Name another file, or repeat the call that made this one, with as many threads."
                    self._file.refuse(["loss"], remedy)
            return value, row.to(self._like, copy=True)
        # From here on other questions follow, as where a limit was raised: what was answered to the old ones is no use.
        del self._questions[number:], self._answers[number:]
        value, row = ask()
        self._questions.append(question)
        self._answers.append((value, row.detach().cpu().clone()))
        self._is_written = False
        if self._file.is_due:
            self._write()
        return value, row

    def _read(self) -> None:
        stored = self._file.read()
        if stored is None:
            return
        try:
            arrays = stored[0]
            rows, values = torch.from_numpy(arrays["rows"]), arrays["values"].tolist()
            questions = [str(question) for question in arrays["questions"]]
            if rows.shape != (len(questions), len(self._like)) or len(values) != len(questions):
                raise ValueError(f"{len(questions)} questions, {len(values)} values, rows {tuple(rows.shape)}")
        except (ValueError, TypeError, KeyError) as error:
            raise self._file.damaged() from error
        self._questions, self._answers = questions, list(zip(values, rows, strict=True))

    def _write(self) -> None:
        if not self._is_written:
            values, rows = zip(*self._answers, strict=True)
            arrays: dict[str, Any] = {"rows": torch.stack(rows).numpy(), "values": np.array(values)}
            self._file.write(arrays | {"questions": np.array(self._questions)}, {})
            self._is_written = True


class _Answered:
    """A symmetric map (p, p) that asks through `Answers`."""

    def __init__(self, answers: Answers, H: Hessian):
        self._answers, self._H = answers, H
        self.shape, self.dtype, self.device = H.shape, H.dtype, H.device

    def exact_products(self, rows: Tensor, *, by_differences: bool) -> Tensor | None:
        """As of the matrix; raises where it has none."""
        return torch.stack([self._answers.exact(self._H, row, by_differences) for row in rows])

    def __matmul__(self, v: Tensor) -> Tensor:
        return self._answers.product(self._H, v)
