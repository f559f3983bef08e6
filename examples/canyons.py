# %% [markdown]
# # Canyons
#
# Walk away from a minimum by a fixed amount, in any direction: where is the loss lowest? If the basin is a quadratic
# bowl, the answer is known beforehand. Where it is not, there may be *canyons*: isolated directions in which the loss
# stays lower than a bowl's would. This page finds some where the answer is on paper, then in a small network, and asks
# of each whether it is real and whether a behaviour of the network runs in it.

# %%
from functools import partial

import matplotlib.pyplot as plt
import torch
import torch.nn as nn

import lowhanging as lh

# %% [markdown]
# ## Where the answer is known
#
# The write-up's cartoon, L = x²y² + 0.1 (1 − exp(−x² − y²)): two behaviours, each worth something alone, both worth no
# more than one. *Expect* four canyons on a circle, the half-axes, at height 0.1 (1 − exp(−r²)).

# %%
cartoon = lh.toys.sloped_canyons()
found = lh.find_canyons(cartoon, space="full", metric="euclidean", levels=1.0, num_starts=16)
for point in found:
    x, y = point.theta.tolist()
    print(f"({x:+.3f}, {y:+.3f})  rise {point.rise:.6f}  slope {point.slope:.4f}")
    assert point.is_certified

# %%
x_and_y = torch.eye(2, dtype=torch.float64)
ground = lh.plane_slice({"cartoon": cartoon}, x_and_y, extent=2.0, num=31, names=("x", "y"))
starts = [1.6, 0.8], [-1.3, -0.6], [0.4, 1.8]
paths = [lh.toys.gradient_path(cartoon, start) for start in starts]
ax = lh.plots.descents(ground, paths)

# %% [markdown]
# Descent finds a canyon first, one behaviour, and then walks down its sloping floor to the joint minimum.
#
# A bowl has none. On an *energy shell*, all displacements by which a bowl rises equally, it is constant by
# construction. *Expect* "no isolated canyon", and a relative rise of 1, which is the bowl itself:

# %%
bowl = lh.toys.quadratic([3.0, 2.0, 1.0, 0.5], seed=0)
print(lh.find_canyons(bowl, space="full", levels=0.5, num_starts=8))

# %% [markdown]
# ## Your model
#
# A network, its data, and its minimum. The data of this one have two cues that say the same, in two columns each.

# %%
rng = torch.Generator().manual_seed(0)
targets = torch.arange(200) % 2
cues = (2.0 * targets[:, None] - 1.0) * torch.tensor([1.0, 0.3, 0.2, 1.0])
cues = cues + 0.7 * torch.randn(200, 4, generator=rng, dtype=torch.float64)
first, second = cues.clone(), cues.clone()
first[:, 2:], second[:, :2] = 0.0, 0.0  # one cue alone, the other blank

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 2)).double()
lh.train(model, (cues, targets), num_epochs=100, progress=False)
loss = lh.Objective(model, (cues, targets))
minimum = lh.polish(loss, anchor=1e-2, gtol=1e-9, progress=False)
basin = minimum.objective  # with its anchor: that is the loss whose minimum this is
print(minimum)

# %% [markdown]
# What else should be measured at every point: the loss on each cue alone, and, on inputs whose cues disagree, which of
# them the answers follow.

# %%
shown = {"both": cues, "first": first, "second": second}
losses = {name: lh.Objective(model, (inputs, targets)).at(minimum.theta) for name, inputs in shown.items()}
answers = {"first": targets, "second": 1 - targets}  # by the cues of `first - second`
conflict = lh.ConflictControl(losses["both"], first - second, answers)
watched = {"evaluate": losses, "conflict": conflict, "progress": False}

# %% [markdown]
# ## Find
#
# The space to look in: the three directions of largest curvature. The levels: energies, in units of loss, from that of
# the minimum (0.05) to most of the way to guessing (ln 2 = 0.69). From many random starts, descent on the shell; Newton
# steps make each end stationary; the eigenvalues of the Hessian across certify it. *Relative rise* is the rise of the
# loss over that of the bowl. *Expect* it to fall below 1 where the loss is not a bowl any more, and further below
# further out.

# %%
space = lh.top_hessian_eigs(basin, k=3).subspace()
levels = (0.05, 0.15, 0.45)
found = lh.find_canyons(basin, space=space, levels=levels, num_starts=16, **watched)
print(found)
ax = lh.plots.canyon_rises(found)

# %% [markdown]
# A filled point is a canyon: certified, and deeper than the bowl. One in full:

# %%
print(found.canyons[0])

# %% [markdown]
# E, r: its energy and its distance from the minimum. *Slope* is n·g, the rise per unit of distance along the way out.
# The three numbers with a sign are the smallest eigenvalues across, that is, the certificates. This one is a minimum on
# its *energy shell*, where it was searched (shell, positive); and none on the sphere of radius r (sphere, negative), on
# which the loss is lower to one side. Which of them a claim needs is up to the claim: "a minimum in all orthogonal
# directions" is about spheres, `metric="euclidean"`.
#
# Would any three directions have done? The same search in random three-dimensional subspaces of equal curvature:

# %%
stiff = lh.top_hessian_eigs(basin, k=12).subspace()
print(lh.canyons.depth_null(basin, found, within=stiff, num_subspaces=7, progress=False))

# %% [markdown]
# Read p with care: with seven random subspaces it cannot be smaller than 1/8. Ask for more where it matters.
#
# ## Follow
#
# Each canyon on the outermost shell, followed inwards and outwards. A *birth* is where it begins, coming from inside:
# there the canyon merges into the basin. Between 0 and the innermost radius means that none was met on the way in.

# %%
starts = {f"branch {i}": point for i, point in enumerate(found.at_level(0.45))}
branches = {name: lh.trace_canyon(basin, point, to=(0.02, 0.6), step=0.2, **watched) for name, point in starts.items()}
for name, branch in branches.items():
    low, high = branch.merge_radius
    print(f"{name}: a canyon down to a distance between {low:.2f} and {high:.2f};")
    print(f"    {branch}")

# %% [markdown]
# Left: how the floors rise; a floor below its own dashed line is lower than the bowl. Right: which of the two losses on
# single cues is the lower one along it, as log(L_first / L_second).

# %%
figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
draw = partial(lh.plots.canyon_floor, branches)
draw(axes[0], bowl=True)
ax = draw(axes[1], quantity="asymmetry")

# %% [markdown]
# ## Does a behaviour run in it?
#
# A low loss on one cue is not yet a behaviour: the answers to conflicting inputs must move the same way. `circuit` is
# the name of the cue if they do, else None with the reason.

# %%
for name, branch in branches.items():
    print(f"{name}: {branch[-1].circuit}; {branch[-1].circuit_reason}")

# %% [markdown]
# A certificate holds within the space that was searched. `full_certificates=True` asks all of weight space, where many
# a canyon of a subspace turns out to have a way down to the side. What else a number can and can't promise:
# [How far can I trust this number?](../docs/how-far-can-i-trust-this-number.md#minima-and-canyons) The words are in the
# [notation](../docs/notation.md#canyons).
