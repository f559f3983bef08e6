# %% [markdown]
# # Slices of a loss
#
# What does the loss look like around these weights, along that line, on this plane? Several losses and accuracies at
# once, at the same points, each evaluated exactly: nothing is smoothed, rescaled or made orthogonal unasked.

# %%
import matplotlib.pyplot as plt
import torch
import torch.nn as nn

import lowhanging as lh

# %% [markdown]
# Your model and your data here. This one learns which of two rings a point lies in, and keeps its weights every ten
# epochs.

# %%
rng = torch.Generator().manual_seed(0)


def rings(num):
    labels = torch.arange(num) % 2
    radius = 1.0 + labels + 0.3 * torch.randn(num, generator=rng)
    angle = 2 * torch.pi * torch.rand(num, generator=rng)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1), labels


train, test = rings(300), rings(300)


def network(seed):
    torch.manual_seed(seed)
    layers = nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 2)
    return nn.Sequential(*layers)


model = network(seed=0)
run = lh.train(
    model,
    train,
    num_epochs=60,
    lr=0.01,
    evaluate={"test": test},
    checkpoints=10,
    progress=False,
)
losses = {"train": lh.Objective(model, train), "test": lh.Objective(model, test)}
print(run)

# %% [markdown]
# ## A line
#
# Along the top eigenvector of the training loss, and along a random direction of the same length. *Expect* a narrow
# valley in the first picture and nearly a straight line in the second: one of hundreds of directions is like most of
# them, and most do next to nothing.

# %%
steep = lh.top_hessian_eigs(losses["train"], k=2)
line = lh.line_slice(losses, steep.vectors[0], extent=2, num=33, name="top eigenvector")
u = lh.random_direction(losses["train"], seed=0)
random = lh.line_slice(losses, u, extent=2, num=33, name="random")
print(line)

figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
lh.plots.line_slice(line, axes[0])
ax = lh.plots.line_slice(random, axes[1])

# %% [markdown]
# The numbers themselves: `line.alphas` are the steps, `line.losses["test"]` the losses, `line.accuracies["test"]` the
# accuracies. Step 0 is the loss at the center, bit for bit.

# %%
middle = len(line.alphas) // 2
assert line.alphas[middle] == 0
at = losses["test"].theta0
assert float(line.losses["test"][middle]) == float(losses["test"](at))

# %% [markdown]
# Does the line bend as its second derivative says? Close to the center it must: that is a check of both. *Expect* two
# numbers that agree to a percent at the smallest step, and a loss that falls behind its parabola further out.

# %%
slope = float(losses["train"].gradient(at).double() @ steep.vectors[0].double())
near = lh.line_slice(losses, steep.vectors[0], extent=0.003, num=3)
for scan, i in ((near, -1), (line, middle + 1), (line, middle + 4), (line, -1)):
    step = float(scan.alphas[i])
    rise = float(scan.losses["train"][i] - scan.losses["train"][len(scan.alphas) // 2])
    parabola = step * slope + 0.5 * step**2 * float(steep.values[0])
    print(f"step {step:.3f}: up by {rise:.3g}, the parabola by {parabola:.3g}")

# %% [markdown]
# ## A plane, with the path of training on it
#
# The two directions in which the weights moved most during training. Off the plane, the path had other losses than the
# ground below it, and the second picture says how different. *Expect* a valley that the path walks along.

# %%
principal = lh.principal_directions(run.checkpoints)
plane = lh.plane_slice(losses, principal.directions, extent=((-2, 9), (-4, 4)), num=25)
trajectory = lh.plane_trajectory(plane, run.checkpoints, losses=losses)
print(plane)

ax = lh.plots.plane_slice(plane, name="test", trajectory=trajectory)

# %%
ax = lh.plots.trajectory(trajectory, log=True)

# %% [markdown]
# ## A path
#
# Straight segments through all checkpoints, by distance travelled.

# %%
ax = lh.plots.path_slice(lh.path_slice(losses, run.checkpoints, num=41), log=True)

# %% [markdown]
# ## Through three points
#
# Two trainings from other weights, and the plane through all three solutions. *Expect* three separate basins.

# %%
ends = [losses["train"].theta0]
for seed in (1, 2):
    again = network(seed)
    lh.train(again, train, num_epochs=60, lr=0.01, progress=False)
    ends.append(lh.Objective(again, train).theta0)

through = lh.plane_through(*ends, names=("seed 0", "seed 1", "seed 2"))
ax = lh.plots.plane_slice(lh.plane_slice(losses, through, num=21), name="train")

# %% [markdown]
# ## Any function
#
# A loss need not belong to a model. Every tool takes any torch function of a vector:

# %%
origin, x_and_y = torch.zeros(2).double(), torch.eye(2).double()
saddle = lh.FunctionObjective(lambda theta: theta[0] ** 2 - theta[1] ** 2, origin)
ground = lh.plane_slice({"saddle": saddle}, x_and_y, extent=1.0, num=21, names=("x", "y"))
ax = lh.plots.plane_slice(ground)

# %% [markdown]
# Long slices show a bar, and continue from a file after an interruption: [how to resume](../docs/resume.md). Whether a
# slicer, ours or another, draws the right picture can be tested:
# [Is this picture right?](../docs/is-this-picture-right.md)
