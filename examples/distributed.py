# %% [markdown]
# # One loss on many processes
#
# Alone, `python distributed.py`, this is an ordinary script. Started with
#
# ```bash
# torchrun --nproc-per-node 2 distributed.py
# ```
#
# each process holds half of the examples, and all of them return the same eigenpairs: the loss, its gradient and its
# Hessian products are sums over examples, and the processes add theirs up.

# %%
import torch
import torch.nn as nn
from torch import distributed as dist

import lowhanging as lh

# %% [markdown]
# The only line that is about processes. gloo is for CPUs; on GPUs it is `"cpu:gloo,cuda:nccl"`, and each process takes
# a device of its own, `model.to(f"cuda:{local_rank}")`.

# %%
if dist.is_torchelastic_launched() and not dist.is_initialized():
    dist.init_process_group("gloo")

# %% [markdown]
# The same model and the same data on every process: both come from seeds.

# %%
generator = torch.Generator().manual_seed(0)
inputs = torch.randn(301, 8, generator=generator)
targets = (inputs[:, 0] * inputs[:, 1] > 0).long()

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2))

# %% [markdown]
# Every process makes the objective and makes the same calls. It says which part it holds.

# %%
loss = lh.Objective(model, (inputs, targets))
print(loss)
pairs = lh.top_hessian_eigs(loss, k=5)

# %% [markdown]
# All have the same result, so one of them prints it. Inside this `if` there must be no call of the loss: the others
# would not hear of it.

# %%
if not dist.is_initialized() or dist.get_rank() == 0:
    print(pairs)
    print("eigenvalues", [round(float(value), 4) for value in pairs.values])

# %% [markdown]
# A loss of one process alone, whatever the others do:

# %%
mine = lh.Objective(model, (inputs[:50], targets[:50]), distributed=False)
print(f"{float(mine(mine.theta0)):.4f} on the first 50 examples")
