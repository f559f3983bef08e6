"""What does the basin of a network that adds modulo p look like? One table: the blocked MLP, and the transformer.

    python benchmarks/basins.py [--networks births transformer] [--seed 0] [--results FOLDER] [--quick]

A row for each question, a column for each network; below the table, what the cells leave out.

* circuits: which formed, and what the loss rises by when one of them alone is ablated;
* minimum: the anchored minimum next to the trained weights, and its proof;
* spectrum and effective dimension of the training loss, and of each circuit's (the others ablated);
* steering between the two circuits that are worth most, both ways, by both methods;
* slices: the plane of two of these directions;
* price: the least loss at which one circuit's own loss is kept below a level;
* canyons on spheres, in the span of the eigenvectors 21 to 35 and in all of weight space;
* valley: does a circuit that forms later do so where the loss of the circuits formed before is flat?

What was found lies in `--results`, one folder per network; a later call goes on. `--quick` takes tiny networks.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import lowhanging as lh
from lowhanging.landscape import Minimum
from lowhanging.training import PRESETS, StackRun

CIRCLE, POWER = 0.75, 0.1  # from which a block's circle score, or a frequency's share of power, is a circuit's
METHODS = ("project", "ratio")


@dataclass(frozen=True)
class Sizes:
    """How much is asked of one network."""

    preset: Any
    anchor: float
    num_pairs: int = 40
    num_removed: int = 30  # eigenvectors of the kept loss, for "project"
    axes: tuple[int, int] = (20, 35)  # the authors' space: the eigenvectors after the first, up to the second
    dims: tuple[int, ...] = (10, 20, 40)
    num_probes: int = 4
    num_steps: int = 60
    step: float = 4.0
    shares: tuple[float, ...] = (0.5, 0.25)  # of the kept circuit's loss
    radii: tuple[float, ...] = (15.0, 25.0, 40.0)
    num_starts: int = 6
    near: tuple[float, float] = (3.0, 1e-5)  # radius in all of weight space, relative residual that can be reached
    far: tuple[float, float] = (15.0, 3e-3)
    full_starts: int = 2
    max_gradients: int = 400  # of a point of the price
    max_products: int = 300


def sizes_of(name: str, is_quick: bool) -> Sizes:
    """Those of a network."""
    preset, is_mlp = PRESETS[name], name == "births"
    if not is_quick:  # a gradient of the transformer takes ten times as long
        return Sizes(preset, 1e-2) if is_mlp else Sizes(preset, 1e-3, num_starts=2, full_starts=1)
    model = {"p": 29, "width": 10, "hidden": 16} if is_mlp else {"p": 23, "width": 16, "hidden": 32}
    tiny = dataclasses.replace(
        preset,
        model_arguments={**preset.model_arguments, **model},
        data_arguments={**preset.data_arguments, "p": model["p"]},
        training_arguments={**preset.training_arguments, "num_steps": 600 if is_mlp else 400},
    )
    return Sizes(
        tiny, 1e-2, num_pairs=12, num_removed=8, axes=(4, 8), dims=(4, 12), num_probes=2, num_steps=20, shares=(0.8,),
        radii=(4.0,), num_starts=2, near=(1.0, 1e-5), far=(2.0, 3e-3), full_starts=1, max_gradients=100,
        max_products=100,
    )  # fmt: skip


class Network:
    """One trained network at its minimum, with what was found before."""

    def __init__(self, name: str, seed: int, sizes: Sizes, folder: Path):
        preset, data = sizes.preset, sizes.preset.data()
        self.sizes, self.details, self.train = sizes, [f"\n## {name}, seed {seed}"], data.train
        self.is_blocked, self.p = name == "births", preset.model_arguments["p"]
        self.folder = folder / f"{name}-{seed}-{self.p}"
        self.folder.mkdir(parents=True, exist_ok=True)

        def trained() -> StackRun:
            return lh.train_stack(
                preset.factory, data.train, (seed,), evaluate={"held out": data.test}, snapshots="*", log_every=10,
                progress=False, **preset.training_arguments,
            )  # fmt: skip

        self.run: StackRun = self.kept("run", trained)
        self.model = self.run.model(seed, preset.factory).double()
        loss = lh.Objective(self.model, data.train)
        self.kept("minimum", lambda: lh.polish(loss, anchor=sizes.anchor, gtol=1e-8, progress=False))
        self.minimum = Minimum.load(self.folder / "minimum.npz", loss)
        self.theta, self.total = self.minimum.theta, self.minimum.unanchored
        self.held_out = lh.Objective(self.model, data.test).at(self.theta)
        polished = self.total.model_at(self.theta)
        numbers = polished.embedding[: self.p]
        if self.is_blocked:
            labels = (lh.circuits.circle_score(numbers).score >= CIRCLE).nonzero()[:, 0].tolist()
        else:
            labels = lh.circuits.key_frequencies(numbers, POWER).tolist()
        if len(labels) < 2:
            raise SystemExit(f"{name}, seed {seed}: fewer than two circuits formed; take another --seed.")
        self.ablation = self.kept(
            "ablation",
            lambda: lh.circuits.ablate_circuits(polished, data.train, circuits=labels, progress=False),
        )
        self.circuits = lh.circuits.circuit_losses(polished, data.train, circuits=labels)
        self.pair = [str(labels[i]) for i in self.ablation.nats.argsort(descending=True).tolist()[:2]]

    def kept(self, name: str, make: Callable[[], Any]) -> Any:
        """A result from its file, else made and written; of a search that did not converge, as far as it came."""
        file = self.folder / f"{name}.npz"
        if not file.exists():
            try:
                found = make()
            except lh.NotConvergedError as error:
                found = error.result
                file.with_suffix(".txt").write_text(str(error))
            found.save(file)
        return lh.load(file)

    def note(self, name: str) -> str:
        """What a search that did not converge said."""
        file = self.folder / f"{name}.txt"
        return f" (NOT CONVERGED: {file.read_text().splitlines()[0]})" if file.exists() else ""

    def pairs(self, name: str, loss: Any, k: int) -> lh.curvature.Eigenpairs:
        """Top eigenpairs of a loss at its theta0."""
        return self.kept(name, lambda: lh.top_eigs(lh.hessian(loss), k=k, tol=1e-3, progress=False))

    def own_pairs(self, name: str) -> lh.curvature.Eigenpairs:
        """Those of the training loss, "all", or of a circuit's, at the minimum."""
        return self.pairs(f"pairs-{name}", self.circuits.get(name, self.total), self.sizes.num_pairs)

    def dimension(self, name: str) -> tuple[lh.curvature.EffectiveDimension, float]:
        """Counts above a tenth and a hundredth of the top of one of these losses, and its top."""
        pairs, sizes = self.own_pairs(name), self.sizes
        H = lh.hessian(self.circuits.get(name, self.total))
        probes = {"num_steps": sizes.num_steps, "num_probes": sizes.num_probes, "progress": False}
        density = self.kept(f"density-{name}", lambda: lh.spectral_density(H, deflate=pairs, **probes))
        top = float(pairs.values[0])
        return lh.effective_dimension(density, thresholds=(0.1 * top, 0.01 * top)), top

    # The cells, each a line ------------------------------------------------------------------------------------------

    def cell_circuits(self) -> str:
        """Which there are, and what each is worth."""
        kind = "blocks with a circle" if self.is_blocked else "frequencies with a tenth of the embedding's power"
        worth = [f"{c} +{short(x)}" for c, x in zip(self.circuits, self.ablation.nats, strict=True)]
        alone = [f"{c} {short(loss(self.theta))}" for c, loss in self.circuits.items()]
        without = f"without all of them {short(self.ablation.losses[0])}"
        return f"{kind}; nats that its ablation costs: {', '.join(worth)}; loss with it alone: {joined(alone, without)}"

    def cell_minimum(self) -> str:
        """Where, and the proof."""
        m, accuracy = self.minimum, self.held_out.evaluate(self.theta)[1]
        verdict = "a minimum" if m.is_minimum else "NOT SHOWN TO BE A MINIMUM"
        return (
            f"{verdict}: p = {len(m.theta):,}, anchor {m.anchor:g}, "
            f"moved {short(m.distance)} of {short(m.start.norm())}, gradient {m.gradient_norm_before:.1e} to "
            f"{m.gradient_norm:.1e}, lowest eigenvalue {m.smallest:.2e} ± {m.smallest_residual:.0e}; loss "
            f"{short(m.loss_before)} to {short(m.loss)}, held-out accuracy "
            f"{float(self.run.accuracies['held out'][0, -1]):.1%} to {accuracy:.1%}{self.note('minimum')}"
        )

    def cell_spectrum(self) -> str:
        """Its top, its size, its lower end, all without the anchor."""
        values, (found, _) = self.own_pairs("all").values, self.dimension("all")
        ranks = [i for i in (1, 2, 3, 5, 10, 20, 40) if i <= len(values)]
        top = ", ".join(short(values[i - 1]) for i in ranks)
        tenth, hundredth = (
            f"{n:.0f} ± {error:.0f}" for n, error in zip(found.counts, found.count_standard_errors, strict=True)
        )
        lowest = self.minimum.smallest - self.minimum.anchor
        return (
            f"eigenvalues number {', '.join(map(str, ranks))}: {top}; above a tenth of the top {tenth}, above a "
            f"hundredth {hundredth}; lowest, without the anchor, {lowest:.2e}{self.note('pairs-all')}"
        )

    def cell_dimension(self) -> str:
        """Of every loss; a circuit's own bends down, too, so that its participation ratio would say nothing."""
        parts = []
        for name in ("all", *self.circuits):
            found, top = self.dimension(name)
            counts = " / ".join(f"{n:.0f}" for n in found.counts)
            degrees, title = short(found.degrees_of_freedom[0]), "all circuits" if name == "all" else f"{name} alone"
            text = f"{title}: {counts} eigenvalues above a tenth / hundredth of the top {short(top)}"
            parts.append(f"{text}, {degrees} degrees of freedom at a tenth, lowest seen {found.smallest:.2g}")
        return joined(
            parts, f"participation ratio of all circuits {short(self.dimension('all')[0].participation_ratio)}"
        )

    def direction(self, keep: str, ablate: str, method: str) -> Tensor | None:
        """Unit vector, or None where there is none. The kept loss is no minimum: "ratio" takes its Gauss-Newton."""
        name, options = f"direction-{method}-{keep}", {"tol": 1e-3, "progress": False, "k": self.sizes.num_removed}
        if method == "project":
            options |= {"preserve_pairs": self.own_pairs(keep), "ablate_pairs": self.own_pairs(ablate)}
        else:
            options["metric"] = "gauss_newton"
        losses = {"preserve": self.circuits[keep], "ablate": self.circuits[ablate], "method": method}
        try:
            found = self.kept(name, lambda: lh.Subspace(lh.steering_direction(**losses, **options)[None]))
        except ValueError as error:  # nothing is left of the eigenvector
            (self.folder / f"{name}.txt").write_text(str(error))
            return None
        return found.basis[0].to(self.theta) if isinstance(found, lh.Subspace) else None

    def cell_steering(self) -> str:
        """Losses at one step; the others below the table."""
        parts = []
        for method in METHODS:
            for keep, ablate in (self.pair, self.pair[::-1]):
                u, title = self.direction(keep, ablate, method), f"{method}, keep {keep}"
                if u is None:
                    parts.append(f"{title}: no direction{self.note(f'direction-{method}-{keep}')}")
                    continue
                losses = {keep: self.circuits[keep], ablate: self.circuits[ablate], "all": self.total}
                scan = lh.line_slice(losses, u, extent=(0.0, 2 * self.sizes.step), num=9, progress=False)
                rows = [f"{name} {', '.join(map(short, scan.losses[name]))}" for name in losses]
                self.details.append(f"steering, {title}; steps {', '.join(map(short, scan.alphas))}: {joined(rows)}")
                at = [f"{name} {short(scan.losses[name][0])} to {short(scan.losses[name][4])}" for name in losses]
                parts.append(f"{title}: {', '.join(at)}")
        return f"losses at step {self.sizes.step:g}; {joined(parts)}"

    def cell_slices(self) -> str:
        """The plane of both directions of one method."""
        (a, b), far = self.pair, 2 * self.sizes.step
        found = {method: (self.direction(a, b, method), self.direction(b, a, method)) for method in METHODS}
        method = next((name for name, each in found.items() if all(u is not None for u in each)), None)
        if method is None:
            return "no plane: one of the two directions is missing, see steering"
        plane = lh.plane_slice({"all": self.total}, found[method], extent=far, num=9, progress=False)
        grid = plane.losses["all"]
        between = [float(grid[8 - i, 4 + i]) for i in range(5)]  # from (far, 0) to (0, far)
        corners = ", ".join(short(grid[i, j]) for i in (8, 0) for j in (8, 0))
        self.details.append(f"plane, {method}, rows keep {a}, columns keep {b}, -{far:g} to {far:g}:\n{grid}")
        return (
            f"plane of the two {method} directions, {plane.angle:.0f}° apart: loss {short(grid[4, 4])} at the minimum, "
            f"{short(between[0])} at {far:g} along keep {a}, {short(between[-1])} along keep {b}, barrier between "
            f"these ends {short(max(between) - max(between[0], between[-1]))}; corners {corners}"
        )

    def cell_price(self) -> str:
        """Of each of the two, at falling levels of its own loss."""
        sizes, parts = self.sizes, []
        for keep, other in (self.pair, self.pair[::-1]):
            start = float(self.circuits[keep](self.theta))

            def made(keep: str = keep, other: str = other, start: float = start) -> lh.steering.AblationCurve:
                return lh.ablation_curve(
                    self.minimum.objective, keep=self.circuits[keep], levels=[share * start for share in sizes.shares],
                    report={"all": self.total, other: self.circuits[other], "held out": self.held_out}, num_starts=1,
                    second_order=False, max_gradients=sizes.max_gradients, max_products=sizes.max_products,
                    on_failure="warn", resume=self.folder / f"resume-{keep}.npz", progress=False,
                )  # fmt: skip

            with warnings.catch_warnings():
                warnings.simplefilter(
                    "ignore", UserWarning
                )  # of a point that is not stationary: its kkt is in the cell
                curve = self.kept(f"price-{keep}", made)
            self.details.append(f"price, keep {keep}:\n{curve}")
            rows = [f"{keep} alone {short(start)}: {at(curve.report, 0)}"]
            for i, kept in enumerate(curve.kept):
                where = f"at |Δ| {short(curve.distances[i])}, kkt {float(curve.kkt[i]):.0e}"
                rows.append(f"{short(kept)} {where}: {at(curve.report, i + 1)}")
            parts.append(" → ".join(rows))
        return joined(parts)

    def cell_canyons(self) -> str:
        """On spheres, where the authors looked, and in all of weight space."""
        sizes, (first, last), parts = self.sizes, self.sizes.axes, []
        span = lh.Subspace(self.own_pairs("all").vectors[first:last])
        searches = [("span", f"eigenvectors {first + 1} to {last}", span, sizes.radii, sizes.num_starts, None)]
        for name, (radius, rtol) in (("near", sizes.near), ("far", sizes.far)):
            title = f"all of weight space, residual {rtol:g} of the gradient"
            searches.append((name, title, "full", (radius,), sizes.full_starts, rtol))
        for name, title, space, radii, num_starts, rtol in searches:
            options = {"levels": radii, "num_starts": num_starts, "rtol": rtol, "progress": False}
            options |= {"space": space, "metric": "euclidean", "evaluate": {**self.circuits, "all": self.total}}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                found = self.kept(
                    f"canyons-{name}", lambda options=options: lh.find_canyons(self.minimum.objective, **options)
                )
            self.details += [f"canyons, {title}: {found!r}", *(f"  {p!r} {at(p.losses)}" for p in found)]
            for radius in found.levels:
                points, lost = found.at_level(radius), found.num_lost.get(f"{radius:g}", found.num_starts)
                certified, canyons = ([p for p in points if getattr(p, q)] for q in ("is_certified", "is_canyon"))
                text = f"{title}, r = {radius:g}: {len(certified)} of {len(points)} points certified, {len(canyons)} "
                text += f"below the bowl, {lost} of {found.num_starts} starts lost"
                if points:
                    low, high = (short(f(p.losses["all"] for p in points)) for f in (min, max))
                    risen = [f"{c} in {sum(p.losses[c] > 2 * found.losses[c] for p in points)}" for c in self.circuits]
                    text += f", loss {low} to {high}, more than doubled: {', '.join(risen)}"
                parts.append(text)
            parts[-1] += self.note(f"canyons-{name}")
        return joined(parts)

    # The valley ------------------------------------------------------------------------------------------------------

    def theta_at(self, log: int) -> Tensor:
        """The weights (p,) at a log of training."""
        assert self.total.space is not None
        return self.total.space.flatten({name: rows[0, log] for name, rows in self.run.snapshots.items()}).double()

    def keeping(self, circuits: list[int], log: int) -> Any:
        """The loss of the network at a log with these circuits alone: every other block or frequency is ablated."""
        labels = range(self.model.width // 2) if self.is_blocked else range(1, self.p // 2 + 1)
        others = tuple(label for label in labels if label not in circuits)
        ablate = lh.circuits.ablate_blocks if self.is_blocked else lh.circuits.ablate_frequencies
        losses = lh.circuits.circuit_losses(
            self.total.model_at(self.theta_at(log)), self.train, circuits=circuits[:1],
            ablation=lambda model, inputs, _: ablate(model, inputs, others),
        )  # fmt: skip
        return losses[str(circuits[0])]

    def cell_valley(self) -> str:
        """Where do the steps go in which a later circuit forms? And, a control, those in which none does?"""
        rows, steps = self.run.snapshots["embedding"][:, :, : self.p], self.run.steps.tolist()
        scores = lh.circuits.circle_score(rows).score if self.is_blocked else lh.circuits.fourier_modes(rows)
        found = lh.circuits.births(scores, steps, threshold=CIRCLE if self.is_blocked else POWER)
        first = 0 if self.is_blocked else 1  # blocks are counted from 0, frequencies from 1
        birth = {i + first: int(found.step[0, i]) for i in found.is_dated[0].nonzero()[:, 0].tolist()}
        rise = {label: int(found.rise_time[0, label - first]) for label in birth}
        self.details.append(f"births at steps {birth}, rising for {rise}")
        order, spans = sorted(birth, key=lambda label: birth[label]), []
        for label in order[1:]:
            begun = max(birth[label] - rise[label], birth[order[0]])
            spans.append((str(label), [other for other in order if birth[other] <= begun], begun, birth[label]))
        if order and birth[order[-1]] < steps[-1]:
            spans.append(("none", order, birth[order[-1]], steps[-1]))
        parts = [
            f"{label} forms at the same log as {formed[0]}: not asked" if begun == end
            else self.along(label, formed, steps.index(begun), steps.index(end))
            for label, formed, begun, end in spans
        ]  # fmt: skip
        return joined(parts) or "no circuit is seen to form"

    def along(self, label: str, formed: list[int], start: int, end: int) -> str:
        """Shares of the way in the stiff directions of the circuits formed before, and of the whole loss."""
        before, whole = self.keeping(formed, start), self.total.at(self.theta_at(start))
        delta, top = self.theta_at(end) - self.theta_at(start), max(self.sizes.dims)
        stiff = [
            self.pairs(f"valley-{label}-{n}", loss, top).vectors for n, loss in (("formed", before), ("whole", whole))
        ]
        # Not a seed of weights: generators of equal seeds draw equal numbers, and delta holds initial weights.
        generator = torch.Generator().manual_seed(2**31 + 7)
        when = f"{label} forms, steps {self.run.steps[start]} to {self.run.steps[end]}, after {formed}"
        shares = []
        for m in self.sizes.dims:
            of_formed, of_whole = (lh.Subspace(vectors[:m]).overlap(delta) for vectors in stiff)
            draws = (torch.randn(m, len(delta), generator=generator, dtype=delta.dtype) for _ in range(20))
            drawn = [lh.Subspace.span(rows).overlap(delta) for rows in draws]
            mean = m / len(delta)
            shares.append(f"m = {m}: {short(of_formed / mean)} × random, whole loss {short(of_whole / mean)} ×")
            self.details.append(
                f"valley, {when}, m = {m}: {of_formed:.4%}, of the whole loss {of_whole:.4%}; random {mean:.4%}, 20 "
                f"drawn {min(drawn):.4%} to {max(drawn):.4%}"
            )
        ends = f"{short(before(self.theta_at(start)))} to {short(before(self.theta_at(end)))}"
        return f"{when}: {', '.join(shares)}; |Δ| {short(delta.norm())}, loss of {formed} alone {ends}"


def short(number: Any) -> str:
    """Three digits."""
    return f"{float(number):.3g}"


def joined(parts: Iterable[str], *more: str) -> str:
    """Parts of a cell."""
    return "; ".join([*parts, *more])


def at(losses: dict[str, Any], index: int | None = None) -> str:
    """Named losses, or entry `index` of each."""
    return ", ".join(f"{name} {short(x if index is None else x[index])}" for name, x in losses.items())


ROWS = ("circuits", "minimum", "spectrum", "dimension", "steering", "slices", "price", "canyons", "valley")


def table_of(columns: dict[str, dict[str, str]]) -> str:
    """The table in Markdown, a row per question and a column per network."""
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    cells = {row: [cell[row].replace("|", "\\|") for cell in columns.values()] for row in ROWS}
    return "\n".join([*lines, *(f"| {row} | {' | '.join(cells[row])} |" for row in ROWS)])


def main(arguments: list[str] | None = None) -> dict[str, dict[str, str]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=("births", "transformer"), default=["births", "transformer"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "basins")
    parser.add_argument("--quick", action="store_true", help="tiny networks")
    options = parser.parse_args(arguments)
    columns: dict[str, dict[str, str]] = {}
    details: list[str] = []
    for name in options.networks:
        network = Network(name, options.seed, sizes_of(name, options.quick), options.results)
        cells = columns[f"{name}, seed {options.seed}"] = {}
        for row in ROWS:
            begun = time.perf_counter()
            cells[row] = getattr(network, f"cell_{row}")()
            print(f"{name}, {row} ({time.perf_counter() - begun:.0f} s): {cells[row]}", flush=True)
        details += network.details
    print(f"\n{table_of(columns)}", *details, sep="\n")
    return columns


if __name__ == "__main__":
    main()
