# %% [markdown]
# # The top eigenvalues of your own model
#
# A model and a loader of your own, the ten largest eigenvalues of the Hessian, and what can be believed about them.

# %%
import torch
import torch.nn as nn
from torch.utils.data import DataLoader, TensorDataset

import lowhanging as lh

# %% [markdown]
# Any smooth `nn.Module`, any loader. Here: spirals, a small network with dropout, and a shuffled loader with a ragged
# last batch. Nothing of it is changed by what follows.

# %%
generator = torch.Generator().manual_seed(0)
turns = torch.rand(500, generator=generator) * 3
targets = torch.arange(500) % 2
angle = 3 * turns + torch.pi * targets
inputs = torch.stack([turns * angle.cos(), turns * angle.sin()], 1)

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Dropout(0.1), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 2))
loader = DataLoader(TensorDataset(inputs, targets), batch_size=64, shuffle=True)
lh.train(model, loader, epochs=40, lr=0.01)

# %% [markdown]
# One call. The loader is read once, dropout is evaluated as after `model.eval()`, and every batch counts by its size.

# %%
pairs = lh.top_hessian_eigs(model, loader, k=10)
print(pairs)
for value, residual in zip(pairs.values, pairs.residuals, strict=True):
    print(f"{float(value):9.4f}   an eigenvalue of the Hessian lies within {float(residual):.1e} of this")

# %% [markdown]
# Is the loss the smooth function of the weights that it should be? `check_model` looks, and names the layer if not.

# %%
print(lh.testing.check_model(model, loader))

# %% [markdown]
# The same for a loss of your own: a mean over examples goes into `loss_fn`; a loss that counts something else, here
# class weights, returns its sum and its count.

# %%
weights = torch.tensor([1.0, 3.0])


def weighted(model, batch):
    x, y = batch
    total = nn.functional.cross_entropy(model(x), y, weight=weights, reduction="sum")
    return total, weights[y].sum()


print(lh.top_hessian_eigs(model, loader, k=3, batch_loss=weighted))

# %% [markdown]
# An eigenvector is a direction in weight space. The loss along it, one step being a unit of Euclidean length:

# %%
loss = lh.Objective(model, loader)
scan = lh.line_slice({"spirals": loss}, pairs.vectors[0], extent=(-1, 1), num=21)
ax = lh.plots.line_slice(scan)
