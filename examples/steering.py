# %% [markdown]
# # Steering between two behaviours of my model
#
# Your model can do a thing in two ways, and you have data on which only one of them works. Is there a direction in
# weight space that keeps one behaviour and removes the other? This page finds such directions for a small network,
# and then asks the question that the losses alone do not answer: is the behaviour gone, or did
# the network merely break?
#
# Replace the first three cells by your own: one model, and one data set per behaviour.

# %%
import torch
import torch.nn as nn

import lowhanging as lh

# %% [markdown]
# ## A model with two behaviours
#
# Six classes, each with a typical shape and a typical colour of twelve numbers. An example shows both, so either is
# enough to name the class. A few training examples show only one; the other is blank.

# %%
rng = torch.Generator().manual_seed(0)
SHAPES, COLOURS = torch.randn(2, 6, 12, generator=rng)


def noisy(prototypes, labels):
    return prototypes[labels] + 0.9 * torch.randn(len(labels), 12, generator=rng)


def drawn(num):
    labels = torch.randint(0, 6, (num,), generator=rng)
    return noisy(SHAPES, labels), noisy(COLOURS, labels), labels


shape, colour, labels = drawn(900)
few, blank = slice(0, 90), torch.zeros(90, 12)
pieces = [(shape, colour), (shape[few], blank), (blank, colour[few])]
inputs = torch.cat([torch.cat(pair, 1) for pair in pieces])
targets = torch.cat([labels, labels[few], labels[few]])

# %% [markdown]
# The held-out data: with both cues, and with each alone. They have the same labels.

# %%
shape, colour, labels = drawn(600)
blank = torch.zeros_like(shape)
held_out = {
    "both": (torch.cat([shape, colour], 1), labels),
    "shape": (torch.cat([shape, blank], 1), labels),
    "colour": (torch.cat([blank, colour], 1), labels),
}

torch.manual_seed(0)
layers = nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 6)
model = nn.Sequential(*layers)
run = lh.train(model, (inputs, targets), num_epochs=30, lr=0.01, evaluate=held_out, progress=False)
print(run)
ax = lh.plots.training_run(run)

# %% [markdown]
# *Expect* both single-cue accuracies far above chance (17 %): two behaviours were learned, though each alone would do.
#
# ## Go to a minimum
#
# A Hessian belongs to a point, and "this direction changes nothing" only means something where the gradient is zero.
# `polish` goes from the trained weights to a minimum of the training loss plus a weak spring to where it started (the
# anchor), and says how well it got there. Then: the three losses around that point, and the top of their spectra.

# %%
loss = lh.Objective(model, (inputs, targets))
minimum = lh.polish(loss, anchor=1e-2, progress=False)
print(minimum)

losses = {name: lh.Objective(model, data).at(minimum.theta) for name, data in held_out.items()}
pairs = {name: lh.top_hessian_eigs(loss, k=30) for name, loss in losses.items()}
for name, found in pairs.items():
    print(f"{name:>6}", found)

# %% [markdown]
# ## Two steering directions
#
# The write-up's rule: take the direction in which the loss to be ablated curves most, and remove from it the 30
# directions in which the loss to be kept curves most.


# %%
def steer(preserve, ablate):
    return lh.steering_direction(
        preserve=losses[preserve],
        ablate=losses[ablate],
        k=30,
        preserve_pairs=pairs[preserve],
        ablate_pairs=pairs[ablate],
    )


keep_shape, keep_colour = steer("shape", "colour"), steer("colour", "shape")
print(lh.steering_report(keep_shape, losses, pairs=pairs))

# %% [markdown]
# *Expect* a large curvature of the colour loss along the first one, near the top of its spectrum, and nearly none of
# the shape loss: both are what the rule asked for. How far that carries shows only on a slice. Why 30, and what for
# your model: [How many directions to remove?](../docs/choosing.md#how-many-directions-to-remove)

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
directions = {"keep shape": keep_shape, "keep colour": keep_colour}
for ax, (aim, direction) in zip(axes, directions.items(), strict=True):
    name = f"direction that should {aim}"
    scan = lh.line_slice(losses, direction, extent=(-4, 4), num=17, name=name)
    lh.plots.line_slice(scan, ax)

# %% [markdown]
# Within about two units of distance the kept loss (left: shape, right: colour) stays where it was, while the other one
# rises by nats. The loss on both cues rises less: the network still has the other way.
#
# ## Gone, or broken?
#
# A loss that rises on inputs with a single cue has two explanations: the network no longer reads that cue, or it reads
# something wrong into its absence. Inputs on which the cues *disagree* tell them apart. If colour is no longer read,
# answers there must move from colour to shape.

# %%
other = (labels + torch.randint(1, 6, labels.shape, generator=rng)) % 6
disagreeing = torch.cat([shape, noisy(COLOURS, other)], 1)
answers = {"shape": labels, "colour": other}
control = lh.ConflictControl(losses["both"], disagreeing, answers)


def shares_text(theta):
    return ", ".join(f"{cue} {share:.1%}" for cue, share in control(theta).items())


steered = minimum.theta + 3 * keep_shape
print("answers at the minimum:", shares_text(minimum.theta))
print("answers, steered:      ", shares_text(steered))
print(control.shift(steered, minimum.theta, towards="shape", away="colour"))

# %% [markdown]
# Is the shift above zero, with its whole interval? Then colour lost influence. Is it not, as here? Then the direction
# breaks the network on colour-only inputs, and nothing shows that a circuit was removed. `attribute_circuit` puts both
# findings into one answer, and calls nothing after a circuit that the answers do not confirm.

# %%
single = ("shape", "colour")
verdict = lh.steering.attribute_circuit(
    control,
    steered,
    theta0=minimum.theta,
    losses={name: float(losses[name](steered)) for name in single},
    basin_losses={name: float(losses[name](minimum.theta)) for name in single},
)
print(verdict)

# %% [markdown]
# ## Resample the other cue, do not blank it
#
# The colour-only loss rose because the network broke on blank shapes. So take the other cue from *another example*:
# inputs look as in training, and the loss of one cue can only rise if the network listens less to it.
# [Blanking or resampling?](../docs/blanking-or-resampling.md) shows on networks with known circuits what that changes.
# With "ratio" the direction curves most in the loss to be ablated per curvature of the loss to be kept; there is no
# number of eigenvectors to choose.

# %%
train = (inputs[:900], targets[:900])  # those that show both cues
columns = {"shape": range(12), "colour": range(12, 24)}
resampled = {
    "shape": lh.Objective(model, lh.datasets.resample(train, columns["colour"])).at(minimum.theta),
    "colour": lh.Objective(model, lh.datasets.resample(train, columns["shape"])).at(minimum.theta),
}
keep_shape = lh.steering_direction(preserve=resampled["shape"], ablate=resampled["colour"], method="ratio", k=30)
steered = minimum.theta + 6 * keep_shape
print("answers, steered:", shares_text(steered))
print(control.shift(steered, minimum.theta, towards="shape", away="colour"))

# %% [markdown]
# *Expect* a shift above zero: colour loses influence. But a straight line is only a guess.
#
# ## What does keeping one behaviour cost?
#
# Ask for the least loss at which the shape behaviour alone is as good as we want, over all weights there are. See
# [What does keeping a circuit cost?](../docs/price-of-a-circuit.md)

# %%
start = float(resampled["shape"](minimum.theta))
curve = lh.ablation_curve(
    minimum.objective,
    keep=resampled["shape"],
    levels=[0.7 * start, 0.4 * start, 0.2 * start],
    conflict=control,
    report={"held out": losses["both"]},
    num_starts=2,
    second_order=False,
    progress=False,
)
print(curve)
print("held-out loss on both cues:", curve.report["held out"])
ax = lh.plots.ablation_curve(curve)

# %% [markdown]
# *Expect* answers that leave colour almost entirely, while the held-out loss on both cues hardly rises: in this network
# one behaviour can be kept and the other removed, cheaply, though no top eigenvector showed the way.

# %% [markdown]
# ## A control that must succeed
#
# Would the control notice if colour were really gone? Here is a direction that removes it for certain: along it, the
# weights that read the colour inputs shrink to zero. Every direction can be built like this, from named tensors.

# %%
space = losses["both"].space
weights = space.unflatten(minimum.theta)
reading = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
reading["0.weight"][:, 12:] = -weights["0.weight"][:, 12:]
blind = minimum.theta + space.flatten(reading)

print("answers, colour-blind: ", shares_text(blind))
print(control.shift(blind, minimum.theta, towards="shape", away="colour"))

# %% [markdown]
# That is what a behaviour that is gone looks like. For your own model: the same three losses, the same control, and
# believe the answers rather than the losses. [Reproduce the write-up](reproduce.py) does all of this for digits, and
# the [reference](../docs/reference/steering.md) has what else can be asked, such as whole subspaces of directions.
