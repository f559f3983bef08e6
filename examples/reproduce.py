# %% [markdown]
# # Reproduce the write-up
#
# One command measures every claim of [the write-up](../docs/what-was-found.md) and writes a report with figures, tables
# and the numbers behind them:
#
# ```bash
# lowhanging reproduce --out report
# ```
#
# It takes about seven minutes on two idle cores, and goes on where it was stopped; `--seeds 3` adds intervals over
# networks, and `--only canyons` measures one theme alone. `report/index.html` is the page to read.
#
# This page takes the central experiment apart, at a size that runs in seconds: a small network learns digits that can
# be read in two ways, and directions in weight space are to keep one reading and ablate the other. An eighth of the
# bundled digits, three patterns per class and ten eigenpairs make it quick; its numbers are not those of the report.

# %%
import matplotlib.pyplot as plt

import lowhanging as lh

# %% [markdown]
# ## The task
#
# Every image blends a digit with a black and white pattern, and both have the same label.

# %%
digits = lh.mnist()
few = lh.datasets.MNIST(
    train=lh.datasets.DigitImages(*digits.train[:500]), test=lh.datasets.DigitImages(*digits.test[:200])
)
views = lh.paired_mnist(few, patterns_per_class=3, seed=0)
ax = lh.plots.paired_images(views)

# %% [markdown]
# ## Claim: both cues are learned, at comparable rates
#
# Trained on the blends, among which are a few images with one cue alone. *Expect* accuracies on single cues far above
# chance (10 %).

# %%
model = lh.SigmoidCNN(seed=0)
held_out = {
    "mixed": views.mixed.test,
    "number": views.number.test,
    "pattern": views.pattern.test,
}
run = lh.train(
    model,
    views.mixed.train,
    num_epochs=40,
    batch_size=32,
    evaluate=held_out,
    progress=False,
)
print(run)
ax = lh.plots.training_run(run)

# %% [markdown]
# ## To a minimum
#
# Second-order geometry belongs to a minimum of a fixed loss. The anchor keeps the solution from running to infinity.

# %%
loss = lh.Objective(model, views.mixed.train)
minimum = lh.polish(loss, anchor=3e-2, progress=False)
print(minimum)

# %% [markdown]
# ## Claim: each task has a small effective dimension
#
# Three losses around that minimum, each a pure function of the weights, and the top of their Hessians' spectra.
# *Expect* a fall within ten of the 3,340 eigenvalues.

# %%
losses = {name: lh.Objective(model, view).at(minimum.theta) for name, view in held_out.items()}
pairs = {name: lh.top_hessian_eigs(loss, k=10) for name, loss in losses.items()}
for name, found in pairs.items():
    print(f"{name:>8}", found)
ax = lh.plots.spectra(pairs)

# %% [markdown]
# ## Claim: steering keeps one circuit and ablates the other
#
# The rule: the eigenvector along which the ablated loss curves most, minus what the preserved loss notices of it.


# %%
def steer(preserve, ablate):
    return lh.steering_direction(
        preserve=losses[preserve],
        ablate=losses[ablate],
        k=10,
        preserve_pairs=pairs[preserve],
        ablate_pairs=pairs[ablate],
    )


directions = {
    "keep number": steer("number", "pattern"),
    "keep pattern": steer("pattern", "number"),
}
figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
for ax, (name, direction) in zip(axes, directions.items(), strict=True):
    name = f"direction to {name}"
    scan = lh.line_slice(losses, direction, extent=(-3, 3), num=13, name=name)
    lh.plots.line_slice(scan, ax)

# %% [markdown]
# *Expect* the kept loss to stay where it was, the ablated one to rise towards positive steps, and the mixed one below
# both: the network still has the other cue. Left, the rise is modest: with the ten directions that the number loss
# notices most, most of what curves the pattern loss is gone too.
#
# ## The control: is a circuit gone?
#
# On images whose number and pattern have different labels, a circuit that is gone is no longer followed.

# %%
conflict = views.conflict
control = lh.ConflictControl(losses["mixed"], conflict.inputs, conflict.answers)
report = lh.steering_report(directions["keep number"], losses, pairs=pairs, conflict=control)
print(report)

# %% [markdown]
# Read the last two lines. Where the share of answers that follow the pattern hardly falls, "ablated" only means "broken
# on pattern-only images".
#
# ## Claim: these directions are not eigenvectors, and their curvature lies within the top
#
# The same report has both: the largest squared overlap with one eigenvector of each loss, and the position that the
# curvature along the direction would have among the eigenvalues. *Expect* no overlap near 1. And the second claim?
# "> 10" in the row of the mixed loss says that it does not hold for this direction;
# [nor does it in the report](../docs/what-was-found.md).

# %%
ax = lh.plots.overlaps(report)

# %% [markdown]
# ## Claim: near the minimum the loss is quadratic, further out it is not
#
# On the plane of both directions, the mixed loss. Ellipses are what a quadratic would draw. The lowest point is not
# quite the center: that is the minimum of the training loss, and this is the loss on held-out images.

# %%
plane = lh.plane_slice(
    {"mixed": losses["mixed"]},
    tuple(directions.values()),
    extent=3.0,
    num=11,
    names=tuple(directions),
)
ax = lh.plots.plane_slice(plane)

# %% [markdown]
# ## The other claims
#
# [Canyons](canyons.py) are searched and followed as on that page; the circuits of
# [modular addition](modular_addition.py) likewise. All twenty claims, how each is measured and against what, and the
# verdicts: [What the write-up claims and what was found](../docs/what-was-found.md).
