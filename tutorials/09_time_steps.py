# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Words x time steps: an LSTM forgets what it has said
#
# The network reads five letters and then says them backwards, one at each dot: "a c e g i . . . . ." becomes
# "i g e c a".  What does its hidden state hold of each letter at each step?  Once a letter is said, it is of no more
# use.

# %%
# %matplotlib inline
import torch
from matplotlib.figure import Figure
from scipy import stats
from torch import nn
from torch.nn import functional as F

from interp_plugin import PlainModel, Solver, TextExplainer

LETTERS = list("abcdefghijkl")
LENGTH, GO = 5, len(LETTERS)


class Reverser(nn.Module):
    """In training the embeddings and the hidden state are noisy: to remember costs something."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(len(LETTERS) + 1, 32)
        self.lstm = nn.LSTM(32, 96, batch_first=True)
        self.head = nn.Linear(96, len(LETTERS))

    def forward(self, ids):
        vectors = self.noisy(self.embedding(ids))
        states, _ = self.lstm(vectors)
        return self.head(self.noisy(states))  # (B, 2 * LENGTH, letters)

    def noisy(self, values):
        return values + 0.5 * torch.randn_like(values) if self.training else values


def sequences(count):
    """Letters (count, LENGTH), and what the network reads: the letters and as many dots."""
    letters = torch.randint(len(LETTERS), (count, LENGTH))
    return letters, torch.cat([letters, torch.full_like(letters, GO)], dim=1)


# %% [markdown]
# ## The model

# %%
torch.manual_seed(0)
STEPS = 1500
model = Reverser()
adam = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.02)
schedule = torch.optim.lr_scheduler.OneCycleLR(adam, 8e-3, total_steps=STEPS)
for _ in range(STEPS):
    letters, ids = sequences(64)
    loss = F.cross_entropy(model(ids)[:, LENGTH:].flatten(0, 1), letters.flip(1).flatten())
    adam.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    adam.step()
    schedule.step()
model.eval()
letters, ids = sequences(1000)
with torch.no_grad():
    accuracy = float((model(ids)[:, LENGTH:].argmax(-1) == letters.flip(1)).float().mean())
print(f"accuracy on fresh sequences: {accuracy:.3f}")
assert accuracy > 0.97

# %% [markdown]
# ## Words x time steps
#
# A plain PyTorch network comes in as a `PlainModel`; `positions` picks the steps at which its hidden state is watched.
# Step 4 reads the last letter, and steps 5 to 9 say the letters, the last one first.

# %%
VOCABULARY = [*LETTERS, "."]


def ids_of(text):
    return [VOCABULARY.index(letter) for letter in text.split()]


def text_of(letters):
    return " ".join([VOCABULARY[number] for number in letters] + ["."] * LENGTH)


explainer = TextExplainer(PlainModel(model, ids_of, model.embedding, {"state": model.lstm}))
texts = [text_of(row) for row in letters[:124].tolist()]
explainer.calibrate(texts[:100], show_progress=False)
STEPS_WATCHED = range(LENGTH - 1, 2 * LENGTH)
# one rate for all rows, also where a vector saturates at it: nats of different rates do not compare
explanation = explainer.explain(texts[100:], positions=list(STEPS_WATCHED), solver=Solver(lower_rate=False))
kept = torch.stack([scores.values[:, :LENGTH] for scores in explanation.scores()])  # (24, steps, letters)
print(f"{'nats kept at step':<20}" + "".join(f"{step:>7}" for step in STEPS_WATCHED))
for place, values in enumerate(kept.mean(0).T):
    said = 2 * LENGTH - 1 - place
    print(f"{f'letter {place + 1}, said at {said}':<20}" + "".join(f"{value:>7.1f}" for value in values))

# %% [markdown]
# Letters 3 to 5 are held less at the end than when they were said, and the last letter read, the first to be said,
# fades from the start.  The first letter read grows until it is said at the very end.

# %%


def interval(values):
    """Mean and its 95 % interval, by Student's t."""
    low, high = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
    return float(values.mean()), float(low), float(high)


def at(step):
    return step - STEPS_WATCHED[0]


for place in range(1, LENGTH):
    said = 2 * LENGTH - 1 - place
    lost, low, high = interval((kept[:, at(said), place] - kept[:, -1, place]).numpy())
    print(f"letter {place + 1} loses {lost:5.1f} nats [{low:.1f}, {high:.1f}] from step {said} to the end")
    assert low > 0 or place == 1  # letter 2 has one step only to be forgotten in
gained, low, high = interval((kept[:, -1, 0] - kept[:, 0, 0]).numpy())
print(f"letter 1 gains {gained:.1f} nats [{low:.1f}, {high:.1f}] on its way")
assert low > 10

# %% [markdown]
# So the order turns round: when all is read, the state holds the last letter best and the first one least; at the
# end the two letters that were said last lead.

# %%
first, last = ((values.argsort(descending=True) + 1).tolist() for values in kept.mean(0)[[0, -1]])
print("letters from the best held to the least: at step 4", first, "and at step 9", last)
assert first == [5, 4, 3, 2, 1] and set(last[:2]) == {1, 2}

# %% [markdown]
# ## Is it true?
#
# A linear probe reads each letter from the hidden state, through as much noise as the network was trained with.
# It knows nothing of noise that is learned, and says the same: letters get harder to read once they are said.

# %%
letters, ids = sequences(4000)
with torch.no_grad():
    states, _ = model.lstm(model.embedding(ids))


def probe_accuracy(step, place):
    noisy = states[:, step] + 0.5 * torch.randn_like(states[:, step])
    given = torch.cat([noisy, torch.ones(len(noisy), 1)], dim=1)  # (4000, 97)
    wanted = F.one_hot(letters[:, place], len(LETTERS)).float()
    weights = torch.linalg.lstsq(given[:3000], wanted[:3000]).solution
    return float(((given[3000:] @ weights).argmax(1) == letters[3000:, place]).float().mean())


for place in range(1, LENGTH):
    said = 2 * LENGTH - 1 - place
    then, end = probe_accuracy(said, place), probe_accuracy(2 * LENGTH - 1, place)
    print(f"letter {place + 1}: read right {then:.2f} when said, {end:.2f} at the end")
    assert end < then - 0.1

# %%
figure = Figure(figsize=(6, 3.2), layout="constrained")
axes = figure.subplots()
for place, values in enumerate(kept.mean(0).T):
    said = 2 * LENGTH - 1 - place
    axes.plot(list(STEPS_WATCHED), values, color=f"C{place}", label=f"letter {place + 1}")
    axes.plot(said, values[at(said)], "o", color=f"C{place}")
axes.set(xlabel="time step (dots: where the letter is said)", ylabel="information kept, nats")
axes.legend()
figure
