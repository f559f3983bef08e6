"""Theme 3: does a direction keep one circuit and ablate the other, and what does the joint loss say?"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from lowhanging.basin.conflict import AnswerShift, ConflictControl
from lowhanging.basin.eigenpairs import Eigenpairs
from lowhanging.basin.slices import LineSlice, line_slice
from lowhanging.basin.steering import SteeringReport, steering_direction, steering_report
from lowhanging.reproduce.claims import Claim, judged, percent
from lowhanging.reproduce.curvature import NUM_PAIRS
from lowhanging.reproduce.learning import CUES, Learning

REMOVED = 50  # eigenvectors of the preserved loss, the post's k
EXTENT, NUM_STEPS = 4.0, 33
RATIO_STEPS = (1.0, 2.0, 3.0, 4.0)
STEP = 2.0  # where losses, accuracies and answers are compared


@dataclass(frozen=True)
class Steered:
    """One direction that keeps one cue and ablates the other."""

    preserved: str
    ablated: str
    direction: Tensor  # (p,)
    report: SteeringReport
    scan: LineSlice
    shift: AnswerShift  # from the minimum to STEP, away from the ablated cue

    @property
    def followed(self) -> dict[str, float]:
        """Share of conflict images answered after "number", "pattern", "neither", at STEP."""
        return self.shift.after

    def at(self, name: str, step: float) -> float:
        """A loss at a step of the scan."""
        return float(self.scan.losses[name][self._index(step)])

    def accuracy(self, name: str, step: float) -> float:
        """An accuracy at a step of the scan."""
        return float(self.scan.accuracies[name][self._index(step)])

    def rise(self, name: str) -> float:
        """Change of a loss from the minimum to STEP."""
        return self.at(name, STEP) - self.at(name, 0.0)

    def ratio(self, step: float) -> float:
        """Loss of the ablated task over the loss of the mixed task."""
        return self.at(self.ablated, step) / self.at("mixed", step)

    @property
    def curvature_ratio(self) -> float:
        """Curvature of the ablated loss over curvature of the mixed one."""
        return self.report.quotients[self.ablated] / self.report.quotients["mixed"]

    def _index(self, step: float) -> int:
        return int((self.scan.alphas - step).abs().argmin())


def measure(learning: Learning, pairs: dict[str, Eigenpairs]) -> tuple[dict[str, float], list[Steered]]:
    """Answers on the conflict images at the minimum, and the two steering directions."""
    losses, theta0, found = learning.losses, learning.minimum.theta, []
    control = ConflictControl(losses["mixed"], learning.views.conflict.inputs, learning.views.conflict.answers)
    for preserved, ablated in (CUES, CUES[::-1]):
        direction = steering_direction(
            preserve=losses[preserved],
            ablate=losses[ablated],
            k=REMOVED,
            preserve_pairs=pairs[preserved],
            ablate_pairs=pairs[ablated],
        )
        report = steering_report(direction, losses, pairs=pairs)
        scan = line_slice(
            losses, direction, (-EXTENT, EXTENT), NUM_STEPS, name="steering direction", engine="point by point"
        )
        shift = control.shift(theta0 + STEP * direction, theta0, towards=preserved, away=ablated)
        found.append(Steered(preserved, ablated, direction, report, scan, shift))
    return control(theta0), found


def claims(before: dict[str, float], steered: list[Steered]) -> list[Claim]:
    """Steering, the joint loss, ranks, eigenvectors, conflict images."""
    return [_keeps_one(steered), _joint(steered), _rank(steered), _no_eigenvector(steered), _conflict(before, steered)]


def _keeps_one(steered: list[Steered]) -> Claim:
    texts, kept = [], []
    for s in steered:
        losses = ", ".join(
            f"{name} {s.at(name, 0.0):.3g} → {s.at(name, STEP):.3g} "
            f"({percent(s.accuracy(name, 0.0))} → {percent(s.accuracy(name, STEP))})"
            for name in (s.preserved, s.ablated, "mixed")
        )
        texts.append(f"keeping {s.preserved}: {losses}")
        kept.append(s.rise(s.ablated) >= 0.5 and s.rise(s.preserved) <= 0.2 * s.rise(s.ablated))
    return Claim(
        "steering keeps one circuit and ablates the other",
        "directions from single-task Hessians ablate one task and keep the other",
        f"losses (and accuracies) from the minimum to step {STEP:g}: " + "; ".join(texts),
        f"at step {STEP:g} the ablated loss has risen by at least 0.5 nats, and the preserved one by at most a fifth "
        "of that; each of the two directions is a part",
        judged(*kept),
    )


def _joint(steered: list[Steered]) -> Claim:
    texts, is_below, is_half_of_ten = [], [], []
    for s in steered:
        ratios = [s.ratio(step) for step in RATIO_STEPS]
        mean = math.prod(ratios) ** (1 / len(ratios))
        is_below.append(min(ratios) > 1.0)
        is_half_of_ten.append(mean >= 5.0)
        listed = " / ".join(f"{ratio:.1f}" for ratio in ratios)
        texts.append(
            f"ablating {s.ablated}: loss ratio {listed} at steps 1 / 2 / 3 / 4 (geometric mean {mean:.1f}), "
            f"curvature ratio {s.curvature_ratio:.1f}"
        )
    return Claim(
        "the joint loss lies below the ablated one",
        "by a factor of about ten (the authors' own files give 4 to 6)",
        "; ".join(texts),
        "three parts: the mixed loss is the lower one at all four steps of both directions; the geometric mean of the "
        "factor is at least 5, half of what is claimed, for the one direction; and for the other",
        judged(all(is_below), *is_half_of_ten),
    )


def _rank(steered: list[Steered]) -> Claim:
    texts = [
        f"keeping {s.preserved}: {s.report.quotients['mixed']:.3g}, rank {s.report.rank_text('mixed')} "
        f"(10th eigenvalue {float(s.report.eigenvalues['mixed'][9]):.3g})"
        for s in steered
    ]
    return Claim(
        "steering curvature lies within the top of the mixed spectrum",
        "the mixed loss's curvature along them is as large as its top ten eigenvalues",
        "curvature of the mixed loss along the direction, " + "; ".join(texts),
        "its rank among the mixed Hessian's eigenvalues is at most 10; each of the two directions is a part",
        judged(*(s.report.ranks["mixed"] <= 10 for s in steered)),
    )


def _no_eigenvector(steered: list[Steered]) -> Claim:
    texts, largest = [], []
    for s in steered:
        overlap = {name: float(squares.max()) for name, squares in s.report.overlaps.items()}
        largest.append(max(overlap.values()))
        texts.append(f"keeping {s.preserved}: " + ", ".join(f"{name} {value:.2f}" for name, value in overlap.items()))
    return Claim(
        "steering directions are not eigenvectors",
        "they are no eigenvectors of the mixed Hessian",
        f"largest squared overlap with one of the top {NUM_PAIRS} eigenvectors of each loss, " + "; ".join(texts),
        "no eigenvector of the mixed Hessian holds half of the direction; each of the two directions is a part",
        judged(*(float(s.report.overlaps["mixed"].max()) < 0.5 for s in steered)),
    )


def _conflict(before: dict[str, float], steered: list[Steered]) -> Claim:
    def text(shares: dict[str, float]) -> str:
        return " / ".join(percent(share) for share in shares.values())

    texts = [f"ablating {s.ablated} {text(s.followed)} (difference of shares {s.shift.text})" for s in steered]
    drops = [s.followed[s.ablated] <= 0.5 * before[s.ablated] for s in steered]
    meaning = (
        "the answers leave the ablated cue"
        if all(drops)
        else "where the share of the ablated cue hardly falls, “ablated” only means “broken on single-cue images”"
    )
    return Claim(
        "an ablated cue is no longer followed",
        "ablation removes a circuit (implied: the network stops answering after that cue)",
        f"conflict images answered after number / pattern / neither: at the minimum {text(before)}; at step {STEP:g} "
        + "; ".join(texts)
        + f"; paired 95 % intervals: {meaning}",
        f"at step {STEP:g} at most half as many conflict images as at the minimum are answered after the ablated cue; "
        "each of the two directions is a part",
        judged(*drops),
    )


def numbers(before: dict[str, float], steered: list[Steered]) -> dict[str, object]:
    """What goes into results.json."""
    return {
        "conflict_at_minimum": before,
        "directions": [
            {
                "preserve": s.preserved,
                "ablate": s.ablated,
                "alphas": s.scan.alphas.tolist(),
                "losses": {name: row.tolist() for name, row in s.scan.losses.items()},
                "accuracies": {name: row.tolist() for name, row in s.scan.accuracies.items()},
                "rayleigh_quotients": s.report.quotients,
                "ranks": {name: s.report.rank_text(name) for name in s.report.ranks},
                "largest_squared_overlap": {name: float(row.max()) for name, row in s.report.overlaps.items()},
                "curvature_ratio": s.curvature_ratio,
                "conflict": s.followed,
                "conflict_shift": {"towards": s.shift.towards, "away": s.shift.away, "shift": s.shift.shift}
                | {"interval": [s.shift.low, s.shift.high], "num_images": s.shift.num_examples},
            }
            for s in steered
        ],
    }
