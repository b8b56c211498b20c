# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Knowledge: what a layer still knows after fine-tuning
#
# The classifier that ships with the package knows whether a review is kind.  It is fine-tuned on another question, food
# or clothes.  Which words does the first token, which the classes are read from, keep in each layer, before and
# after?  And is it true that what it keeps less of can be read from it less well?

# %%
# %matplotlib inline
import copy
import random

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F

from interp_plugin import Solver, TextExplainer, huggingface

KINDS = ("judgement", "goods", "colour", "name")
WORDS = {
    kind: words.split()
    for kind, words in zip(
        KINDS,
        (
            "funny warm lovely brilliant dull awful boring stupid",
            "bread cheese fish meat shirt shoes dress hat",
            "red blue green black white brown yellow pink",
            "john mary paul david peter george robert henry",
        ),
    )
}
CHOICES = 8
FRAMES = (
    "in the {colour} shop {name} bought the {judgement} {goods} .",
    "{name} says that the {goods} in the {colour} box was {judgement} .",
    "this {judgement} {goods} , writes {name} , is not {colour} .",
    "the {goods} here is {judgement} , and {name} will paint it {colour} .",
)
CLASSES = [*WORDS, "stop word", "punctuation", "special token"]


def sentences(count, seed):
    """Each says four things at random; which ones, (count, 4)."""
    rng = random.Random(seed)
    said = [[rng.randrange(CHOICES) for _ in WORDS] for _ in range(count)]
    texts = [
        rng.choice(FRAMES).format(**{kind: words[i] for (kind, words), i in zip(WORDS.items(), row)})
        for row in said
    ]
    return texts, torch.tensor(said)


def column(kind):
    return list(WORDS).index(kind)


# %% [markdown]
# ## Before and after fine-tuning
#
# The new question is about the goods alone.

# %%
SEED = 0
with huggingface.quiet():
    pretrained, tokenizer = huggingface.load(huggingface.default_model_path())


def encoded(texts):
    return tokenizer(texts, return_tensors="pt", padding=True)


def first_half(said, kind):
    """Whether a word is one of the first four: kind, or food."""
    return (said[:, column(kind)] < CHOICES // 2).long()


torch.manual_seed(SEED)
fine_tuned = copy.deepcopy(pretrained).train()
adam = torch.optim.AdamW(fine_tuned.parameters(), lr=2e-4)
texts, said = sentences(600, seed=SEED)
for _ in range(120):
    chosen = torch.randint(len(texts), (32,))
    logits = fine_tuned(**encoded([texts[i] for i in chosen])).logits
    loss = F.cross_entropy(logits, first_half(said[chosen], "goods"))
    adam.zero_grad()
    loss.backward()
    adam.step()
models = {"pre-trained": pretrained, "fine-tuned": fine_tuned.eval()}

texts, said = sentences(500, seed=SEED + 100)
right = {}
for name, model in models.items():
    with torch.no_grad():
        answers = model(**encoded(texts)).logits.argmax(-1)
    right[name] = {
        kind: float((answers == first_half(said, kind)).float().mean()) for kind in ("judgement", "goods")
    }
    print(
        f"{name:<12} kind or not: {right[name]['judgement']:.2f}   food or clothes: {right[name]['goods']:.2f}"
    )
assert right["pre-trained"]["judgement"] > 0.9 and right["fine-tuned"]["goods"] > 0.95

# %% [markdown]
# ## Word classes by layer
#
# The state is the first token's vector in each layer (`positions=0`), in the spread it has over 200 other sentences.  A
# word's nats are what that vector keeps of it.

# %%


def class_of(word):
    found = [kind for kind, words in WORDS.items() if word in words]
    if found:
        return found[0]
    return "special token" if word.startswith("[") else "punctuation" if word in ".," else "stop word"


def kept_by(model, texts):
    """Nats of a word of each class, (texts, layers, classes)."""
    explainer = TextExplainer(model, tokenizer)
    explainer.calibrate(sentences(200, seed=SEED + 200)[0], show_progress=False)
    # one rate for all rows, also where a vector saturates at it: nats of different rates do not compare
    explanation = explainer.explain(texts, positions=0, solver=Solver(tolerance=0.05, lower_rate=False))
    found = []
    for scores in explanation.scores("kept", "word"):
        classes = np.array([class_of(word) for word in scores.units])
        values = scores.values.numpy()  # (layers, words)
        found.append(np.stack([values[:, classes == kind].mean(1) for kind in CLASSES], axis=1))
    return np.stack(found)


texts, _ = sentences(24, seed=SEED + 300)
kept = {name: kept_by(model, texts) for name, model in models.items()}
for name, values in kept.items():
    print(
        f"{name + ', nats':<20}"
        + "".join(f"{f'layer {layer}':>9}" for layer in range(1, values.shape[1] + 1))
    )
    for place, kind in enumerate(CLASSES):
        print(f"  {kind:<18}" + "".join(f"{value:>9.0f}" for value in values.mean(0)[:, place]))

# %% [markdown]
# The pre-trained model's first layer takes up the word of judgement and hardly anything else.  Fine-tuning turns that
# round: the goods come to be kept best, and judgement, which the new question does not need, is let go.  It is the last
# layer that lets go; the one before still holds all four.

# %%
OTHERS = [column(kind) for kind in WORDS if kind != "goods"]
GOODS, JUDGEMENT = column("goods"), column("judgement")
before, after = kept["pre-trained"], kept["fine-tuned"]


def interval(what, values):
    """Mean and its 95 % interval over the sentences, by Student's t."""
    low, high = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
    print(f"{what:<72}{values.mean():>6.0f} nats [{low:.0f}, {high:.0f}]")
    return float(low), float(high)


def lead(values, layer, kind):
    """Of one kind over the mean of the other three, (texts,)."""
    rest = [place for place in range(len(WORDS)) if place != kind]
    return values[:, layer, kind] - values[:, layer, rest].mean(1)


assert interval("layer 1, pre-trained: judgement less the other three", lead(before, 0, JUDGEMENT))[0] > 25
assert (
    interval("last layer, pre-trained: judgement less the other three", lead(before, -1, JUDGEMENT))[0] > 100
)
assert interval("last layer, fine-tuned: goods less the other three", lead(after, -1, GOODS))[0] > 150
change = after[:, -1] - before[:, -1]  # (texts, classes)
assert interval("last layer, fine-tuned less pre-trained: judgement", change[:, JUDGEMENT])[1] < -150
assert interval("last layer, fine-tuned less pre-trained: goods", change[:, GOODS])[0] > 50
step = after[:, -1] - after[:, -2]
assert interval("fine-tuned, last layer less the one before: all but goods", step[:, OTHERS].mean(1))[1] < -20
left = [float(after[:, -1, kinds].mean() / after[:, -2, kinds].mean()) for kinds in (GOODS, OTHERS)]
print(
    f"of what the layer before keeps, the last one keeps {left[0]:.0%} of the goods and {left[1]:.0%} of the others"
)
assert left[0] > 0.8 and left[1] < 0.5

# %% [markdown]
# ## Is it true?
#
# A probe, a linear classifier that is trained on other sentences, reads from the same vector which of the eight words
# was said.  What it knows is in nats too: log 8 = 2.08 less its mean surprise.

# %%
texts, said = sentences(1500, seed=SEED + 400)
HELD_OUT = slice(1000, None)


def read_by_probe(model):
    """Nats that a probe reads of each kind of word, (layers, kinds), and its accuracy."""
    with torch.no_grad():
        states = model(**encoded(texts), output_hidden_states=True).hidden_states[1:]
    nats, accuracy = [], []
    for state in states:
        vectors = state[:, 0].numpy()
        for truth in said.T.numpy():
            probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300))
            probe.fit(vectors[:1000], truth[:1000])
            surprise = -probe.predict_log_proba(vectors[HELD_OUT])[np.arange(500), truth[HELD_OUT]]
            nats.append(np.log(CHOICES) - surprise.mean())
            accuracy.append(probe.score(vectors[HELD_OUT], truth[HELD_OUT]))
    return np.reshape(nats, (len(states), -1)), np.reshape(accuracy, (len(states), -1))


read, accuracy = {}, {}
for name, model in models.items():
    read[name], accuracy[name] = read_by_probe(model)
    print(
        f"{name + ', read right':<24}"
        + "".join(f"{f'layer {layer}':>9}" for layer in range(1, len(read[name]) + 1))
    )
    for place, kind in enumerate(WORDS):
        print(f"  {kind:<22}" + "".join(f"{value:>9.2f}" for value in accuracy[name][:, place]))

# %% [markdown]
# The probe says the same of each of these steps.  The last layer of the fine-tuned model is where judgement, colour and
# name can no longer be read; the goods always can.

# %%
last, before_last = read["fine-tuned"][-1], read["fine-tuned"][-2]
print(
    f"fine-tuned, read in the last two layers: goods {before_last[GOODS]:.2f} and {last[GOODS]:.2f} nats,",
    end=" ",
)
print(f"the others {before_last[OTHERS].mean():.2f} and {last[OTHERS].mean():.2f}")
assert last[GOODS] > max(last[OTHERS]) + 0.7
assert last[OTHERS].mean() < before_last[OTHERS].mean() - 0.4 and last[GOODS] > before_last[GOODS] - 0.2
assert last[JUDGEMENT] < read["pre-trained"][-1, JUDGEMENT] - 0.7
assert read["pre-trained"][0, JUDGEMENT] > max(read["pre-trained"][0, [*OTHERS[1:], GOODS]]) + 0.7

# %% [markdown]
# Over all layers, kinds and both models, what is kept less can be read less: in order, not in proportion.  The two
# measures are not the same thing.  A probe only asks which of the eight words it was; nats kept count every way in
# which noise on the word moves the vector, so a layer that merely checks that "red" is no food keeps some nats of it.

# %%
pairs = np.array([
    (kept[name].mean(0)[layer, place], read[name][layer, place])
    for name in models
    for layer in range(len(read[name]))
    for place in range(len(WORDS))
])  # fmt: skip
agreement = stats.spearmanr(*pairs.T)
print(f"rank correlation over {len(pairs)} points: {agreement.statistic:.2f} (p = {agreement.pvalue:.1g})")
assert agreement.statistic > 0.5

# %%
figure = Figure(figsize=(8, 3.2), layout="constrained")
left, right = figure.subplots(1, 2)
for style, (name, values) in zip(("o--", "o-"), kept.items()):
    for place, kind in enumerate(WORDS):
        label = kind if style == "o-" else None
        layers = range(1, values.shape[1] + 1)
        left.plot(layers, values.mean(0)[:, place], style, color=f"C{place}", markersize=4, label=label)
        right.plot(
            values.mean(0)[:, place],
            read[name][:, place],
            style[0],
            color=f"C{place}",
            mfc="none" if label is None else None,
        )
left.set(xlabel="layer (dashed: pre-trained)", ylabel="information kept of a word, nats", xticks=list(layers))
right.set(xlabel="information kept, nats (hollow: pre-trained)", ylabel="read by a probe, nats")
left.legend()
figure
