"""Two cues along training: one offered after the other, and what each adds to the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowhanging.errors import check_choice
from lowhanging.plots.style import axes, check_kind, color_of, label_of, legend_above
from lowhanging.prior.independent_bits import BOTH, IndependentBits
from lowhanging.prior.refinement import Refinement

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def refinement(result: Refinement, cue: str, ax: Axes | None = None) -> Axes:
    """The score of a cue since it was offered: after the other cue, with it from the start, and alone; and the other's.

    Lines are means over seeds, thin lines the seeds, the dotted level is the threshold from which a cue counts as
    learned. All curves begin at the step at which the cue was offered.

    Args:
        result: what `lh.prior.refinement` returned.
        cue: offered second.
        ax: where to draw; None makes a figure.

    Raises:
        ValueError, TypeError: an unknown cue, another kind of result.
    """
    check_kind("result", result, Refinement, "Pass what lh.prior.refinement returned.")
    first = result.other(cue)
    ax = axes(ax)
    own, others = color_of(cue, 0), color_of(first, 1)
    late = result.steps >= result.offered_at
    since, row = result.steps[late] - result.offered_at, result.cues.index(cue)
    after, num = f"{first} then both", len(since)
    shown = [
        (f"{cue}, after {first}", result.scores[after][row][:, late], own, "-"),
        (f"{cue}, both offered at once", result.scores["both"][row][:, :num], own, "--"),
        (f"{cue} alone", result.scores[f"{cue} alone"][row][:, :num], own, ":"),
        (f"{first}, when {cue} joins", result.scores[after][1 - row][:, late], others, "-"),
    ]
    for label, curves, color, style in shown:
        ax.plot(since, curves.mean(0), style, color=color, linewidth=2.0, label=label_of(label))
        ax.plot(since, curves.T, style, color=color, linewidth=0.6, alpha=0.35)
    ax.axhline(result.threshold, color="0.5", linewidth=0.8, linestyle=":", zorder=0)
    ax.set(xlabel=f"steps since {cue} was offered", ylabel="score (evidence in nats, where scores are data)")
    ax.grid(alpha=0.3)
    legend_above(ax)
    return ax


def independent_bits(result: IndependentBits, ax: Axes | None = None) -> Axes:
    """Bits that both cues tell, that each tells alone, and that each adds to the other, along training.

    Bands are 95 % intervals over examples of what is added.

    Args:
        result: what `lh.prior.independent_bits` returned.
        ax: where to draw; None makes a figure.

    Raises:
        TypeError: another kind of result.
    """
    check_kind("result", result, IndependentBits, "Pass what lh.prior.independent_bits returned.")
    ax = axes(ax)
    ax.axhline(result.entropy, color="0.5", linewidth=0.8, linestyle=":", label="all there is to tell")
    ax.plot(result.steps, result.bits(BOTH), color="black", linewidth=2.0, label="both cues")
    for i, cue in enumerate(result.cues):
        color, interval = color_of(cue, i), result.adds_interval(cue)
        ax.plot(result.steps, result.bits(cue), ":", color=color, linewidth=1.6, label=label_of(f"{cue} alone"))
        ax.plot(result.steps, result.adds(cue), "-", color=color, linewidth=2.0, label=label_of(f"{cue} adds"))
        ax.fill_between(result.steps, interval[:, 0], interval[:, 1], color=color, alpha=0.2, linewidth=0)
    ax.set(xlabel="training (steps or epochs)", ylabel="bits about the class")
    ax.set_ylim(bottom=max(ax.get_ylim()[0], -0.5 * result.entropy))
    ax.grid(alpha=0.3)
    legend_above(ax)
    return ax


def newly_solved(result: IndependentBits, ax: Axes | None = None, *, style: str = "cumulative") -> Axes:
    """Examples solved for the first time since the checkpoint before, by the cue that solves them then.

    Args:
        result: what `lh.prior.independent_bits` returned.
        ax: where to draw; None makes a figure.
        style: "cumulative" adds up the checkpoints so far, "each" shows each by itself. An example that is lost and
            solved again counts again.

    Raises:
        ValueError, TypeError: an unknown style, a single checkpoint, another kind of result.
    """
    check_kind("result", result, IndependentBits, "Pass what lh.prior.independent_bits returned.")
    check_choice("style", style, ("cumulative", "each"))
    ax = axes(ax)
    shares = 100 * result.newly_solved()
    shares = shares.cumsum(0) if style == "cumulative" else shares
    first, second = result.cues
    labels = (f"{first}, not {second}", f"{second}, not {first}", "either of them", "only both together")
    colors = (color_of(first, 0), color_of(second, 1), "0.72", "0.25")
    ax.stackplot(result.steps[1:], shares.T, labels=[label_of(label) for label in labels], colors=colors)
    ax.set(xlabel="training (steps or epochs)", ylabel="newly solved examples (%)")
    ax.set_ylim(0, None)
    legend_above(ax, ceiling=1.02 * float(shares.sum(1).max()) or 1.0)
    return ax
