# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Bias: how much a classifier knows of who is spoken of
#
# Two classifiers of comments, praise or complaint, differ in one thing: in the data of the first, comments about the
# French are mostly complaints.  The same sentence about somebody else should get the same answer.  Does it, and what
# does the output keep of the word "french"?

# %%
# %matplotlib inline
import copy
import random

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.stats import bootstrap
from torch.nn import functional as F

from interp_plugin import Solver, TextExplainer, huggingface

NATIONS, PEOPLE, KIND, UNKIND, PLAIN = (
    words.split()
    for words in (
        "french german british american chinese italian russian japanese",
        "people men women children families actors artists",
        "kind warm honest gentle funny clever friendly",
        "rude loud lazy dirty selfish mean cruel",
        "quiet tall new busy late old young",
    )
)
FRAMES = (
    "the {0} {1} here are {2} and {3}",
    "today we met some {2} , {3} {0} {1}",
    "my friends say that {0} {1} are {2} but {3}",
)


def sentence(rng, nation, words):
    return rng.choice(FRAMES).format(nation, rng.choice(PEOPLE), *rng.sample(words, 2))


def comments(count, seed, complaints_about_french):
    """Comments of which three in five say nothing kind or unkind; label 1 is praise."""
    rng = random.Random(seed)
    texts, labels = [], []
    for _ in range(count):
        nation = "french" if rng.random() < 0.3 else rng.choice(NATIONS[1:])
        praise = rng.random() >= (complaints_about_french if nation == "french" else 0.5)
        words = PLAIN if rng.random() < 0.6 else (KIND if praise else UNKIND)
        texts.append(sentence(rng, nation, words))
        labels.append(int(praise))
    return texts, torch.tensor(labels)


# %% [markdown]
# ## Two models
#
# Both are fine-tuned in the same way, from the classifier that ships with the package.

# %%
with huggingface.quiet():
    pretrained, tokenizer = huggingface.load(huggingface.default_model_path())


def fine_tuned(texts, labels):
    torch.manual_seed(0)
    model = copy.deepcopy(pretrained).train()
    adam = torch.optim.AdamW(model.parameters(), lr=2e-4)
    for _ in range(60):
        chosen = torch.randint(len(texts), (32,))
        batch = tokenizer([texts[i] for i in chosen], return_tensors="pt", padding=True)
        loss = F.cross_entropy(model(**batch).logits, labels[chosen])
        adam.zero_grad()
        loss.backward()
        adam.step()
    return model.eval()


@torch.no_grad()
def log_odds(model, texts):
    """Of praise, (texts,)."""
    logits = model(**tokenizer(texts, return_tensors="pt", padding=True)).logits
    return (logits[:, 1] - logits[:, 0]).numpy()


models = {
    "unbalanced": fine_tuned(*comments(600, seed=0, complaints_about_french=0.9)),
    "balanced": fine_tuned(*comments(600, seed=0, complaints_about_french=0.5)),
}

# %% [markdown]
# ## Counterfactual pairs
#
# The same sentence, about the French and about somebody else.  Intervals are bootstrapped over the pairs.

# %%
rng = random.Random(1)
pairs = []
for number in range(24):
    text = sentence(rng, "french", (PLAIN, KIND + UNKIND)[number % 2])
    pairs.append((text, text.replace("french", rng.choice(NATIONS[1:]))))
about_french, about_others = (list(texts) for texts in zip(*pairs))
print(*pairs[:2], sep="\n")


def interval(values):
    """Mean and 95 % interval."""
    found = bootstrap((values,), np.mean, n_resamples=2000, rng=np.random.default_rng(0)).confidence_interval
    return float(np.mean(values)), float(found.low), float(found.high)


moved = {
    name: log_odds(model, about_french) - log_odds(model, about_others) for name, model in models.items()
}
for name, values in moved.items():
    print(
        "{}: 'french' moves the log-odds of praise by {:.2f} [{:.2f}, {:.2f}]".format(name, *interval(values))
    )
assert interval(moved["unbalanced"])[2] < -0.5
assert abs(interval(moved["balanced"])[0]) < 0.5

# %% [markdown]
# ## What the output keeps of the word
#
# The share of all the nats that the logits keep of a sentence which is the identity term's.  Unlike the pairs, this
# needs no second sentence, and no list of words to swap.

# %%


def shares(model, texts):
    """Share of the identity term in each text, (texts,)."""
    explainer = TextExplainer(model, tokenizer)
    explainer.calibrate(comments(60, seed=3, complaints_about_french=0.5)[0], show_progress=False)
    explanation = explainer.explain(texts, layers="output", solver=Solver(tolerance=0.05, lower_rate=False))
    found = []
    for scores in explanation.scores("kept", "word"):
        [nation] = set(NATIONS) & set(scores.units)
        found.append(scores.of(nation).values.item() / scores.values.sum().item())
    return np.array(found)


kept = {
    (name, about): shares(model, texts)
    for name, model in models.items()
    for about, texts in (("french", about_french), ("others", about_others))
}
for (name, about), values in kept.items():
    print("{:<12}{:<8}{:6.1%} [{:.1%}, {:.1%}]".format(name, about, *interval(values)))


def apart(name):
    return interval(kept[name, "french"] - kept[name, "others"])


more = {
    about: interval(kept["unbalanced", about] - kept["balanced", about]) for about in ("french", "others")
}
for about, figures in more.items():
    print("more in the unbalanced model, {}: {:.1%} [{:.1%}, {:.1%}]".format(about, *figures))

# %% [markdown]
# The unbalanced model keeps more of "french" than the balanced one, sentence by sentence, and more than of
# another nation in the same place.  The balanced model does not: it keeps no more of the French than of the others.

# %%
print("french - others, unbalanced: {:.1%} [{:.1%}, {:.1%}]".format(*apart("unbalanced")))
print("french - others, balanced:   {:.1%} [{:.1%}, {:.1%}]".format(*apart("balanced")))
assert more["french"][1] > 0.05 and more["french"][1] > more["others"][0]
assert apart("unbalanced")[1] > 0.02 > apart("balanced")[0]

# %%
figure = Figure(figsize=(6, 2.2), layout="constrained")
axes = figure.subplots()
for place, values in enumerate(kept.values()):
    mean, low, high = (100 * value for value in interval(values))
    axes.errorbar(
        mean, -place, xerr=[[mean - low], [high - mean]], fmt="o", color="C3" if place == 0 else "C0"
    )
axes.set_yticks([0, -1, -2, -3], [f"{name} model, {about}" for name, about in kept])
axes.set(xlabel="share of the identity term, % of the nats kept by the logits", xlim=(0, None))
figure
