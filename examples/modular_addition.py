# %% [markdown]
# # Modular addition: several circuits at once
#
# A network that learns a + b modulo p may lay its tokens out on circles: adding is then turning. One circle is enough
# for the task, and yet networks grow several, of different frequencies. When does each form, do they come in pairs, do
# they last, and what is each worth? The tools work on any embedding whose planes you can name.

# %%
import lowhanging as lh

# %% [markdown]
# ## Many seeds at once
#
# Statements about when circuits form need many runs. `train_stack` trains them in one go, each exactly as if it were
# alone. Any module will do: a function from a seed to a module, and tensors. Here p = 23, twelve seeds, five planes
# each; `lh.train_stack("births")` is the setting of the report, with p = 37 and 64 seeds.

# %%
p = 23
sums = lh.modular_addition(p=p, train_fraction=0.9)  # (a, b) and (b, a) stay together


def factory(seed):
    return lh.ModularMLP(p, width=10, hidden=16, seed=seed)


stack = lh.train_stack(
    factory,
    sums.train,
    seeds=range(12),
    num_steps=800,
    lr=0.01,
    batch_size=128,
    penalty=1e-3,
    evaluate={"held out": sums.test},
    snapshots="embedding",
    log_every=20,
    progress=False,
)
print(stack)
held_out = stack.accuracies["held out"][:, -1]
print("held-out accuracy by seed", [round(float(share), 2) for share in held_out])

# %% [markdown]
# So small a task is learned by heart in some seeds, and held-out pairs are then answered badly; those seeds have few
# circles.
#
# ## Is it a circle?
#
# Two coordinates of the embedding are a plane; over the tokens 0, 1, ..., p - 1 they draw a curve. Its circle score is
# the share of its power in the strongest signed frequency: 1 for a circle walked f times, 1/2 for a line. *Expect*
# both: a circle reads (a, b) by turning, a line is half of that.

# %%
embeddings = stack.snapshots["embedding"]  # (seeds, logs, p, width)
scores = lh.circuits.circle_score(embeddings)  # (seeds, logs, planes)
most = int((scores.score[:, -1] >= 0.75).sum(1).argmax())
last = embeddings[most, -1]
ax = lh.plots.circles(last, lh.circuits.circle_score(last))

# %% [markdown]
# The same seed over training: how strong is each frequency?

# %%
ax = lh.plots.modes(lh.circuits.fourier_modes(embeddings[most]), stack.steps)

# %% [markdown]
# ## When does each form?
#
# A birth is the first log from which a plane's score stays above 3/4. *Expect* several per seed, most within a few
# hundred steps of each other.

# %%
births = lh.circuits.births(scores.score, stack.steps, frequency=scores.frequency)
print(births)
ax = lh.plots.births(births)

# %% [markdown]
# ## In pairs?
#
# Births crowd together for a simple reason: all seeds learn at about the same time. So the question is whether births
# *of one seed* lie closer together than births dealt out across the seeds. The test says what it counts, and warns
# where a window is shorter than a birth itself takes. Twelve seeds are far too few for an answer; they show the call.

# %%
test = lh.circuits.pairing_test(births, windows=(200, 400), num_resamples=500)
print(test)

# %% [markdown]
# How many seeds would an answer take? `lh.circuits.pairing_power` simulates it before anything is trained.
#
# ## Do they last?

# %%
ax = lh.plots.survival(lh.circuits.survival(births))

# %% [markdown]
# ## What is each worth?
#
# The loss with every subset of the circles kept, the others replaced by their mean over all pairs. *Expect* each added
# circle to lower the loss further, in any order: they add up at the logits, and none of them is the whole solution.

# %%
ablation = lh.circuits.ablate_circuits(stack.model(most), sums.test)
print(ablation)
ax = lh.plots.circuit_ablation(ablation)

# %% [markdown]
# ## And the rest of the library
#
# `stack.model(seed)` is a plain module: every other tool takes it. `lh.circuits.circuit_losses` makes one loss per
# circle, that of the network with this circle alone, so that circuits can be preserved and ablated, as in
# [steering between two behaviours](steering.py).

# %%
model = stack.model(most)
print(lh.top_hessian_eigs(model, sums.train, k=5))
