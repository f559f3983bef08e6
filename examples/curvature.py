# %% [markdown]
# # The curvature of my model
#
# A model and a loader of your own: the largest eigenvalues of the Hessian, the smallest, all of them at once, how many
# matter, and what can be believed about each. Nothing is registered, subclassed or changed.

# %%
import torch
import torch.nn as nn
from torch.utils.data import DataLoader, TensorDataset

import lowhanging as lh

# %% [markdown]
# Any smooth `nn.Module`, any loader. Here: two spirals, a small network with dropout, and a shuffled loader with a
# ragged last batch, trained for a while.

# %%
generator = torch.Generator().manual_seed(0)
turns = torch.rand(500, generator=generator) * 3
targets = torch.arange(500) % 2
angle = 3 * turns + torch.pi * targets
inputs = torch.stack([turns * angle.cos(), turns * angle.sin()], 1)

torch.manual_seed(0)
model = nn.Sequential(
    nn.Linear(2, 32),
    nn.Tanh(),
    nn.Dropout(0.1),
    nn.Linear(32, 32),
    nn.Tanh(),
    nn.Linear(32, 2),
)
loader = DataLoader(TensorDataset(inputs, targets), batch_size=64, shuffle=True)
print(lh.train(model, loader, num_epochs=150, lr=0.01, progress=False))

# %% [markdown]
# ## The top
#
# One call. The loader is read once, dropout is evaluated as after `model.eval()`, and every example counts the same,
# also those of the smaller last batch. The cost is counted in *products* of the Hessian with a vector.
#
# *Expect* a few large eigenvalues and a quick fall: most of the curvature of a small classifier lies in about as many
# directions as there are things to tell apart.

# %%
pairs = lh.top_hessian_eigs(model, loader, k=10)
print(pairs)
for value, bound in zip(pairs.values, pairs.bounds, strict=True):
    print(f"{float(value):9.4f}   an eigenvalue lies within {float(bound):.1e} of this")

# %% [markdown]
# What had not converged would have raised an error. Is the loss the smooth function of the weights that it should be?
# `check_model` looks, and names the layer if not.

# %%
print(lh.testing.check_model(model, loader))

# %% [markdown]
# ## The bottom, and is this a minimum?
#
# An `Objective` is the loss as a function of flat weights, and its Hessian a map that every tool takes; `which="BE"`
# asks for both ends of its spectrum. Training stopped somewhere on a slope: *expect* a gradient that is not zero, and
# negative eigenvalues.

# %%
loss = lh.Objective(model, loader)
ends = lh.top_eigs(lh.hessian(loss), k=6, which="BE")
print(ends)
print(f"gradient norm {float(loss.gradient(loss.theta0).norm()):.2g}")

# %% [markdown]
# `polish` goes to a minimum of the loss plus a weak anchor, and proves it by the smallest eigenvalue there. The model
# is not written to: the minimum is a vector of weights, `minimum.theta`. How firm the anchor should be for your loss:
# [Which k, which anchor, how far?](../docs/choosing.md#which-anchor)

# %%
minimum = lh.polish(loss, anchor=1e-2, progress=False)
print(minimum)

# %% [markdown]
# ## All of them at once
#
# A thousand eigenvalues are seldom asked for one by one. Random vectors ("probes") estimate how they are spread; the
# ten that are known are taken out first, and drawn as stems. It takes `steps` × `probes` products, so begin with few.

# %%
density = lh.spectral_density(lh.hessian(loss), steps=40, probes=4, deflate=pairs)
print(density)
ax = lh.plots.spectral_density({"spirals": density})

# %% [markdown]
# *Expect* a peak at zero, as wide as the smoothing: most directions hardly change the loss. How many do? That depends
# on where the line is drawn, so it is a curve; the band is two standard errors and what 40 steps leave open.

# %%
dimension = lh.effective_dimension(density, thresholds=torch.logspace(-3, 0, 25))
ax = lh.plots.effective_dimension({"spirals": dimension})

# %% [markdown]
# ## Along an eigenvector
#
# An eigenvector is a direction in weight space, and a step is a unit of Euclidean length.

# %%
scan = lh.line_slice({"spirals": loss}, pairs.vectors[0], extent=(-1, 1), num=21)
ax = lh.plots.line_slice(scan)

# %% [markdown]
# ## A part of the weights, another matrix, another loss
#
# One layer alone; the Gauss-Newton matrix, which leaves out how the network itself bends (see
# [Hessian or Gauss-Newton?](../docs/hessian-or-gauss-newton.md)); and a loss of your own, here with class weights,
# which returns its sum and its count.

# %%
print("last layer  ", lh.top_hessian_eigs(model, loader, k=3, parameters="5.*"))
print("Gauss-Newton", lh.top_eigs(lh.gauss_newton(loss), k=3))

weights = torch.tensor([1.0, 3.0])


def weighted(model, batch):
    x, y = batch
    total = nn.functional.cross_entropy(model(x), y, weight=weights, reduction="sum")
    return total, weights[y].sum()


print("weighted    ", lh.top_hessian_eigs(model, loader, k=3, batch_loss=weighted))

# %% [markdown]
# Next: [slices](slices.py) of a loss along such directions, and what each of the errors above promises:
# [How far can I trust this number?](../docs/how-far-can-i-trust-this-number.md)
