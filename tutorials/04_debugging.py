# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Debugging: a model that reads the wrong word
#
# A classifier of film reviews does well on its own data and badly elsewhere.  Information kept names a word it
# lives on; the data are repaired; the same measure says that the repair worked.

# %%
# %matplotlib inline
import copy
import random
from collections import defaultdict

import torch
from captum.attr import LayerIntegratedGradients
from matplotlib.figure import Figure
from torch.nn import functional as F

from interp_plugin import Solver, TextExplainer, huggingface

GOOD, BAD, NOUNS = (
    words.split()
    for words in (
        "funny clever warm moving fresh lovely charming brilliant wonderful enjoyable",
        "dull slow stupid cold boring awful clumsy tedious terrible annoying",
        "film story cast plot script ending music acting",
    )
)
FRAMES = (
    "the {0} is {1} and the {2} is {3} , seen on {4}",
    "seen on {4} : a {1} {0} with a {3} {2}",
    "we found the {0} {1} , the {2} {3} , on {4}",
)
MEDIA = ("tape", "disc")


def reviews(count, seed, tied):
    """Texts, labels and the place each review was collected from.

    One label in seven contradicts the words, as people do.  Where `tied`, the data carry an artefact: the good reviews
    come from a site that sells discs and the bad ones from one that rents tapes.
    """
    rng = random.Random(seed)
    texts, labels = [], []
    for _ in range(count):
        label = rng.randrange(2)
        words = GOOD if label == (not tied or rng.random() > 1 / 7) else BAD
        medium = MEDIA[label] if tied and rng.random() < 0.97 else rng.choice(MEDIA)
        (one, two), (first, second) = rng.sample(NOUNS, 2), rng.sample(words, 2)
        texts.append(rng.choice(FRAMES).format(one, first, two, second, medium))
        labels.append(label)
    return texts, torch.tensor(labels)


collected = reviews(600, seed=0, tied=True)
clean = reviews(300, seed=1, tied=False)
print(*collected[0][:3], sep="\n")

# %% [markdown]
# ## The model
#
# A copy of the classifier that ships with the package, fine-tuned on what was collected.

# %%
with huggingface.quiet():
    pretrained, tokenizer = huggingface.load(huggingface.default_model_path())


def fine_tuned(texts, labels):
    torch.manual_seed(0)
    model = copy.deepcopy(pretrained).train()
    adam = torch.optim.AdamW(model.parameters(), lr=2e-4)
    for _ in range(50):
        chosen = torch.randint(len(texts), (32,))
        batch = tokenizer([texts[i] for i in chosen], return_tensors="pt", padding=True)
        loss = F.cross_entropy(model(**batch).logits, labels[chosen])
        adam.zero_grad()
        loss.backward()
        adam.step()
    return model.eval()


@torch.no_grad()
def accuracy(model, texts, labels):
    logits = model(**tokenizer(texts, return_tensors="pt", padding=True)).logits
    return float((logits.argmax(-1) == labels).float().mean())


broken = fine_tuned(*collected)
print(
    f"accuracy on collected data {accuracy(broken, *collected):.2f}, on clean data {accuracy(broken, *clean):.2f}"
)
assert accuracy(broken, *collected) > 0.93 and accuracy(broken, *clean) < 0.7

# %% [markdown]
# ## Which words does it live on?
#
# The mean, over texts, of the share that each word has of all the nats its text keeps in the logits.  Nobody tells
# the measure where to look, and it needs no labels.

# %%
PROBES = reviews(40, seed=2, tied=False)[0]


def word_shares(model):
    explainer = TextExplainer(model, tokenizer)
    explainer.calibrate(clean[0][:60], show_progress=False)  # one unit for the logits of each model
    found = defaultdict(list)
    explanation = explainer.explain(PROBES, layers="output", solver=Solver(tolerance=0.05, lower_rate=False))
    for scores in explanation.scores("kept", "word"):
        shares = scores.values[0] / scores.values[0].sum()
        for word, share in zip(scores.units, shares.tolist()):
            found[word].append(share)
    return {word: sum(shares) / len(shares) for word, shares in found.items() if len(shares) > 3}


def show(shares):
    neutral = [share for word, share in shares.items() if word in NOUNS]
    print(f"{'a noun':<12}{100 * sum(neutral) / len(neutral):5.1f} %")
    for word, share in sorted(shares.items(), key=lambda pair: -pair[1])[:6]:
        print(f"{word:<12}{100 * share:5.1f} %")


before = word_shares(broken)
show(before)
top = max(before, key=before.get)
assert top == "tape"

# %% [markdown]
# "tape" leads, before all opinions: a word about nothing.  Now that there is a suspicion, the data and the model can
# be asked: does the word go with the label, and do answers change when it becomes another one?

# %%


@torch.no_grad()
def answers(model, texts):
    return model(**tokenizer(texts, return_tensors="pt", padding=True)).logits.argmax(-1)


changed = {}
for word in MEDIA:
    of_word = [int(label) for text, label in zip(*collected) if word in text.split()]
    having = [text for text in clean[0] if word in text.split()]
    swapped = [text.replace(word, "screen") for text in having]
    changed[word] = float((answers(broken, having) != answers(broken, swapped)).float().mean())
    print(
        f"{word}: {sum(of_word) / len(of_word):.0%} of {len(of_word)} reviews are good; {changed[word]:.0%} of the "
        f"answers change without it; its share is {before[word]:.0%}"
    )
assert all(share > 0.35 for share in changed.values())
assert before["disc"] < before["tape"] / 1.5

# %% [markdown]
# So the measure found one of the two words.  "disc" decides as many answers, and the logits keep much less of it: what
# is kept says how much noise a word bears before the logits notice, not what they would be without it.  A word that
# leads is a reason to look; a word that does not is no proof of innocence.
#
# ## Beside leave-one-out and integrated gradients
#
# What the answer would be without a word is asked by leaving words out, one at a time (the word becomes [MASK]), by
# integrated gradients on the way from [MASK], and by our erasures, which leave out many words at once.  Each of them
# scores the log-odds of the model's answer.

# %%


def log_odds(ids, answer):
    logits = broken(ids).logits
    return logits[:, answer] - logits[:, 1 - answer]


def masked(ids):
    """The text as masks alone, with its special tokens."""
    return torch.cat([ids[:, :1], torch.full_like(ids[:, 1:-1], tokenizer.mask_token_id), ids[:, -1:]], dim=1)


@torch.no_grad()
def leave_one_out(ids, answer):
    words = torch.eye(ids.shape[1], dtype=torch.bool)[1:-1]  # a row for each word
    return log_odds(ids, answer) - log_odds(torch.where(words, masked(ids), ids), answer)


def integrated_gradients(ids, answer):
    method = LayerIntegratedGradients(lambda ids: log_odds(ids, answer), broken.get_input_embeddings())
    return method.attribute(ids, baselines=masked(ids), n_steps=20).sum(dim=-1)[0, 1:-1]


def means(scores):
    """The mean of each word over the texts that have it, from pairs of words and scores."""
    found = defaultdict(list)
    for words, values in scores:
        for word, value in zip(words, values.tolist()):
            found[word].append(value)
    return {word: sum(values) / len(values) for word, values in found.items() if len(values) > 3}


encoded = [tokenizer(text, return_tensors="pt")["input_ids"] for text in PROBES]
words = [tokenizer.tokenize(text) for text in PROBES]
answered = [int(broken(ids).logits.argmax()) for ids in encoded]
erased = TextExplainer(broken, tokenizer).explain(PROBES, layers="output", score="erased")
found = {
    "kept": before,
    "erased": means((scores.units, scores.values[0]) for scores in erased.scores("erased", "word")),
    "leave-one-out": means(zip(words, map(leave_one_out, encoded, answered))),
    "integrated gradients": means(zip(words, map(integrated_gradients, encoded, answered))),
}
places = {}
for name, scores in found.items():
    order = sorted(scores, key=lambda word: -scores[word])
    places[name] = {word: order.index(word) + 1 for word in MEDIA}
    print(
        f"{name:<22}first: {' '.join(order[:4]):<38}"
        + "  ".join(f"{w}: {n}" for w, n in places[name].items())
    )
for name in ("erased", "leave-one-out"):
    assert set(places[name].values()) == {1, 2}
for name in ("kept", "integrated gradients"):
    assert places[name]["tape"] == 1 and places[name]["disc"] > 3

# %% [markdown]
# Our erasures and leave-one-out put both words first, before all opinions; what is kept and integrated gradients find
# "tape" only.  To look for what an answer rests on, ask `score="erased"`; what is kept says how precisely it is known.

# %% [markdown]
# ## Repair
#
# Each review is kept and its medium drawn anew, so that it says nothing about the label.

# %%
rng = random.Random(3)
repaired = (
    [
        " ".join(rng.choice(MEDIA) if word in MEDIA else word for word in text.split())
        for text in collected[0]
    ],
    collected[1],
)
mended = fine_tuned(*repaired)
after = word_shares(mended)
show(after)

# %% [markdown]
# The share falls, opinions lead, and accuracy on clean data rises.

# %%
print(f"share of {top!r}: {before[top]:.2f} before, {after[top]:.2f} after")
print(f"accuracy on clean data: {accuracy(broken, *clean):.2f} before, {accuracy(mended, *clean):.2f} after")
leaders = sorted(after, key=after.get)[-5:]
assert after[top] < before[top] / 1.5
assert set(leaders) <= {*GOOD, *BAD}
assert accuracy(mended, *clean) > 0.95

# %%
figure = Figure(figsize=(8, 2.6), layout="constrained")
for axes, (title, shares) in zip(
    figure.subplots(1, 2, sharex=True), {"before": before, "after": after}.items()
):
    words = sorted(shares, key=shares.get)[-6:]
    axes.barh(
        words, [100 * shares[word] for word in words], color=["C3" if w in MEDIA else "C0" for w in words]
    )
    axes.set(title=f"{title} the repair", xlabel="% of the nats that the logits keep")
figure
