# %% [markdown]
# # Modular addition: several circuits at once
#
# A network that learns a + b modulo p may lay its numbers out on circles: adding is then turning. One circle is enough
# for the task, and yet networks grow several, of different frequencies. Grok a transformer in ten seconds, look at its
# circles, ablate one, see the basin; then ask of many seeds when circles form, whether in pairs, and whether they last.

# %%
import lowhanging as lh

# %% [markdown]
# ## A transformer that generalises
#
# `lh.train_stack` trains many seeds in one go, each exactly as if it were alone; a name stands for models, data and
# settings that were tried. This is one layer, p = 53, four fifths of the sums. *Expect* it to know the sums that it
# trains on long before the others.

# %%
sums = lh.training.PRESETS["transformer"].data()  # (a, b) and (b, a) stay together
stack = lh.train_stack(
    "transformer",
    seeds=(3,),
    evaluate={"held out": sums.test},
    snapshots="*",  # all weights, so that every row of the history is a model
    log_every=25,
    progress=False,
)
print(stack)
model, p = stack.model(3), sums.p

# %% [markdown]
# ## Is it a circle?
#
# For each frequency f the embedding has a plane in which it walks f times around; the circle score is the share of that
# plane's power which is this walk, 1 for a circle and 1/2 for a line. Whether a score is more than chance is read off
# the same rows, dealt out to other numbers. *Expect* three to five circles, and nothing before training.

# %%
rows = stack.snapshots["embedding"][0, :, :p]  # (logs, p, width), without the token "="
scores = lh.circuits.circle_score(rows, planes="frequencies")
print("before training:", scores[0])
print("at the end:     ", scores[-1])

# %% [markdown]
# The same frequencies carry the logits, as waves cos 2πf(a + b − c)/p, and the heads look at a in their rhythm.

# %%
waves = lh.circuits.logit_waves(model, p)
pairs = lh.modular_addition(p, 1.0).train.inputs  # all of them
attention = model.attention(pairs)[..., 0].reshape(p, p, -1)
figure = lh.plots.inside_network(rows[-1], scores[-1], waves, attention=attention)

# %% [markdown]
# Is the circuit there before the held-out loss shows it? The restricted loss keeps only the key waves of the logits.
# *Expect* it to fall first: circuit and memory are there together for a while.

# %%
progress = lh.circuits.progress_measures(stack.history(3), p, data=sums.train, held_out=sums.test, steps=stack.steps)
ax = lh.plots.progress_measures(progress)

# %% [markdown]
# ## What is each worth?
#
# The loss with every subset of the circles kept, the others taken out of the embedding. *Expect* that without any one
# of them many answers are wrong: they share the work, and none of them is the whole solution.

# %%
ablation = lh.circuits.ablate_circuits(model, sums.test)
print(ablation)
ax = lh.plots.circuit_ablation(ablation)

# %% [markdown]
# ## The basin
#
# `stack.model(seed)` is a plain module: every other tool takes it. `lh.circuits.circuit_losses` makes a loss of each
# circuit, that of the network with this circuit alone, so that one can be kept and another ablated, as in
# [steering between two behaviours](steering.py). *Expect* a narrow basin: a step of length 1 along a steep direction
# costs most of the answers. What canyons and prices look like here stands in
# [basins of modular addition](../docs/basins-of-modular-addition.md).

# %%
loss = lh.Objective(model, sums.train)
circuits = ablation.circuits[:2].tolist()
losses = lh.circuits.circuit_losses(model, sums.train, circuits=circuits)
keep, ablate = (losses[str(f)] for f in circuits)
direction = lh.steering_direction(preserve=keep, ablate=ablate, k=5, tol=1e-2)
named = {"all sums": loss, f"f = {circuits[0]} alone": keep, f"f = {circuits[1]} alone": ablate}
scan = lh.line_slice(named, direction, extent=(-1, 1), num=17)
ax = lh.plots.line_slice(scan, log=True)

# %% [markdown]
# ## When does each form?
#
# Statements about when circuits form need many runs. Any module will do: a function from a seed to a module, and
# tensors. Here p = 23, twelve seeds of a network in 2-D blocks, whose planes are two columns of its embedding each;
# `lh.train_stack("births")` is the setting of the report, with p = 37 and 64 seeds. A birth is the first log from which
# a plane's score stays above 3/4. *Expect* several per seed, most within a few hundred steps of each other.

# %%
small = lh.modular_addition(p=23, train_fraction=0.9)
many = lh.train_stack(
    lambda seed: lh.ModularMLP(23, width=10, hidden=16, seed=seed),
    small.train,
    seeds=range(12),
    num_steps=800,
    lr=0.01,
    batch_size=128,
    penalty=1e-3,
    snapshots="embedding",
    log_every=20,
    progress=False,
)
births = lh.circuits.births(lh.circuits.circle_score(many.snapshots["embedding"]), many.steps)
print(births)
ax = lh.plots.births(births)

# %% [markdown]
# ## In pairs?
#
# Births crowd together for a simple reason: all seeds learn at about the same time. So the question is whether births
# *of one seed* lie closer together than births dealt out across the seeds. The test says what it counts, and warns
# where a window is shorter than a birth itself takes. Twelve seeds are far too few for an answer; they show the call.
# What was found with hundreds of them stands in [births of circuits](../docs/births-of-circuits.md).

# %%
test = lh.circuits.pairing_test(births, windows=(200, 400), num_resamples=500)
print(test)

# %% [markdown]
# How many seeds would an answer take? `lh.circuits.pairing_power` simulates it before anything is trained.
#
# ## Do they last?

# %%
ax = lh.plots.survival(lh.circuits.survival(births))
