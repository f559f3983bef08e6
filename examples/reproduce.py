# %% [markdown]
# # Steering between two circuits
#
# A small network learns digits that can be read in two ways: by the number, or by a pattern that shares its label. Both
# ways are learned. We look for directions in weight space that keep one and ablate the other.
#
# A third of the bundled digits and three patterns per class keep this page quick; `lowhanging reproduce` takes all.

# %%
import lowhanging as lh

digits = lh.mnist()
few = lh.MNIST(train=lh.DigitImages(*digits.train[:1500]), test=lh.DigitImages(*digits.test[:500]))
views = lh.paired_mnist(few, patterns_per_class=3, seed=0)
lh.plots.paired_images(views)

# %% [markdown]
# Train on the mixed view, which has a few number-only and pattern-only images among its blends.

# %%
model = lh.SigmoidCNN(seed=0)
held_out = {"mixed": views.mixed.test, "number": views.number.test, "pattern": views.pattern.test}
run = lh.train(model, views.mixed.train, epochs=40, evaluate=held_out, seed=0)
print(run)
lh.plots.training_run(run)

# %% [markdown]
# Second-order geometry belongs to a minimum of a fixed loss. The anchor keeps the solution from running to infinity.

# %%
minimum = lh.polish(lh.Objective(model, views.mixed.train), anchor=1e-2)
print(minimum)

# %% [markdown]
# Three losses around that minimum, each a pure function of the weights, and the top of their Hessians' spectra.

# %%
losses = {name: lh.Objective(model, view).at(minimum.theta) for name, view in held_out.items()}
pairs = {name: lh.top_hessian_eigs(loss, k=20) for name, loss in losses.items()}
for name, found in pairs.items():
    print(name, found)
lh.plots.spectra(pairs)

# %% [markdown]
# The post's rule: an eigenvector of the ablated loss, minus what the preserved loss notices of it. The control counts
# which cue the answers follow on images whose cues disagree: a circuit that is gone is no longer followed.

# %%
direction = lh.steering_direction(
    preserve=losses["number"],
    ablate=losses["pattern"],
    k=20,
    preserve_pairs=pairs["number"],
    ablate_pairs=pairs["pattern"],
)
control = lh.ConflictControl(losses["mixed"], views.conflict.inputs, views.conflict.answers)
report = lh.steering_report(direction, losses, pairs=pairs, conflict=control)
print(report)

# %% [markdown]
# The three losses along it: number stays flat, pattern rises, and the mixed loss lies below what was ablated.

# %%
scan = lh.line_slice(losses, direction, extent=(-4, 4), num=17)
lh.plots.line_slice(scan)

# %% [markdown]
# The post speaks of a vector space of such directions. Here are three of them, the most ablating first.

# %%
space = lh.steering_subspace(
    preserve=losses["number"],
    ablate=losses["pattern"],
    k=20,
    num=3,
    preserve_pairs=pairs["number"],
    ablate_pairs=pairs["pattern"],
)
print(space, "holds", f"{space.overlap(direction):.3f} of the direction above")
