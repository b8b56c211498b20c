# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Compression: is the part that changes little the part to cut?
#
# Layers and heads of the sentiment classifier that ships with the package are chosen by what they keep of the words,
# cut off, and the rest is measured again: against every other choice of a layer, and against random heads and heads
# with small weights.

# %%
# %matplotlib inline
import copy
import random
import time

import torch
from matplotlib.figure import Figure
from torch import nn

from interp_plugin import Solver, TextExplainer, huggingface

GOOD, BAD, NOUNS = (
    words.split()
    for words in (
        "funny clever warm moving fresh lovely charming brilliant wonderful enjoyable",
        "dull slow stupid cold boring awful clumsy tedious terrible annoying",
        "film story cast plot script ending music acting",
    )
)
FRAMES = (  # words of the label's kind first, of the other kind after them
    "the {n} is {a} and the {m} is {b}",
    "the {n} is {x} but the {m} is so {a} and {b} that you forget it",
    "it could have been {x} , and yet it is a {a} and {b} {n}",
    "a {a} {n} with a {x} {m}",
    "not {x} at all , this {n} , but {a}",
    "what a {a} , {b} {n}",
)


def reviews(count, seed):
    rng = random.Random(seed)
    texts, labels = [], []
    for _ in range(count):
        label = rng.randrange(2)
        same, other = (GOOD, BAD) if label else (BAD, GOOD)
        (n, m), (a, b) = rng.sample(NOUNS, 2), rng.sample(same, 2)
        texts.append(rng.choice(FRAMES).format(n=n, m=m, a=a, b=b, x=rng.choice(other)))
        labels.append(label)
    return texts, torch.tensor(labels)


with huggingface.quiet():
    model, tokenizer = huggingface.load(huggingface.default_model_path())
TEXTS, LABELS = reviews(300, seed=0)
BATCH = tokenizer(TEXTS, return_tensors="pt", padding=True)
DEPTH, HEADS = model.config.num_hidden_layers, model.config.num_attention_heads


@torch.no_grad()
def scores_of(some):
    return some(**BATCH).logits


FULL = scores_of(model)


def judged(some):
    """Accuracy, and how far the log-odds move from the full model's (root mean square)."""
    scores = scores_of(some)
    moved = (scores - FULL)[:, 1] - (scores - FULL)[:, 0]
    return float((scores.argmax(-1) == LABELS).float().mean()), float(moved.square().mean().sqrt())


def time_share(some):
    """Of the full model's time: the fastest of five forward passes of each, taken in turn."""
    fastest = {model: float("inf"), some: float("inf")}
    for _ in range(5):
        for each in fastest:
            start = time.perf_counter()
            scores_of(each)
            fastest[each] = min(fastest[each], time.perf_counter() - start)
    return fastest[some] / fastest[model]


print(f"accuracy of the full model: {judged(model)[0]:.3f}")
assert judged(model)[0] > 0.7

# %% [markdown]
# ## Layers
#
# With one unit for all layers, a layer's effect is how much less, or more, is kept after it than before it.
# Layer 1 has nothing before it to compare with: the noise enters there.

# %%
explainer = TextExplainer(model, tokenizer)
explainer.calibrate(reviews(100, seed=1)[0], show_progress=False)
PROBES = reviews(10, seed=2)[0]
QUICK = Solver(tolerance=0.05)
explanation = explainer.explain(PROBES, solver=QUICK)
kept = torch.stack([item.total()[0] for item in explanation]).mean(0)  # (layers,)
effect = {layer: abs(float(kept[layer - 1] - kept[layer - 2])) for layer in range(2, DEPTH + 1)}


def without_layer(layer):
    smaller = copy.deepcopy(model)
    smaller.base_model.encoder.layer = nn.ModuleList(
        block for number, block in enumerate(smaller.base_model.encoder.layer, 1) if number != layer
    )
    return smaller


print(f"{'cut':<8}{'effect, nats':>14}{'accuracy':>10}{'log-odds moved':>16}{'time':>8}")
damage, spent = {}, {}
for layer, nats in effect.items():
    smaller = without_layer(layer)
    right, damage[layer] = judged(smaller)
    spent[layer] = time_share(smaller)
    print(f"layer {layer:<2}{nats:>14.0f}{right:>10.3f}{damage[layer]:>16.2f}{spent[layer]:>8.2f}")
chosen = min(effect, key=effect.get)
print(f"chosen: layer {chosen}; the one that does least harm: layer {min(damage, key=damage.get)}")
assert chosen == min(damage, key=damage.get)
assert judged(without_layer(chosen))[0] > judged(model)[0] - 0.03
assert spent[chosen] < 0.95

# %% [markdown]
# ## Heads
#
# What each of the 16 heads keeps of the words, by itself.  The heads that keep least go first; every layer keeps one.

# %%
information = {}
for head in range(HEADS):
    found = explainer.explain(PROBES[:6], heads=head, solver=QUICK)
    for place in range(DEPTH):
        information[place, head] = float(sum(item.total()[0][place] for item in found)) / len(found)


@torch.no_grad()
def weights(place, head):
    """Root mean square of all weights of a head."""
    attention, part = model.base_model.encoder.layer[place].attention, slice(head * WIDTH, (head + 1) * WIDTH)
    self = attention.self
    rows = [getattr(self, name).weight[part] for name in ("query", "key", "value")]
    return float(torch.cat([*rows, attention.output.dense.weight[:, part].T]).square().mean().sqrt())


WIDTH = model.config.hidden_size // HEADS
magnitude = {(place, head): weights(place, head) for place, head in information}


def first_to_go(order, count):
    """The first heads of an order, where every layer keeps one."""
    gone = []
    for place, head in order:
        if len(gone) < count and sum(p == place for p, _ in gone) < HEADS - 1:
            gone.append((place, head))
    return gone


def without_heads(gone):
    """A smaller model: the heads' rows and columns are cut out of its weights."""
    smaller = copy.deepcopy(model)
    for place, block in enumerate(smaller.base_model.encoder.layer):
        stay = [h * WIDTH + i for h in range(HEADS) if (place, h) not in gone for i in range(WIDTH)]
        for linear in (block.attention.self.query, block.attention.self.key, block.attention.self.value):
            linear.weight, linear.bias = nn.Parameter(linear.weight[stay]), nn.Parameter(linear.bias[stay])
        block.attention.output.dense.weight = nn.Parameter(block.attention.output.dense.weight[:, stay])
    return smaller


assert torch.equal(scores_of(without_heads([])), FULL)
rng = random.Random(0)
orders = {
    "least information": [sorted(information, key=information.get)],
    "most information": [sorted(information, key=information.get, reverse=True)],
    "least magnitude": [sorted(magnitude, key=magnitude.get)],
    "random, mean of 20": [rng.sample(list(information), len(information)) for _ in range(20)],
}
CUT = 6
print(f"{f'{CUT} of {DEPTH * HEADS} heads cut':<22}{'accuracy':>10}{'log-odds moved':>16}{'time':>8}")
right, harm = {}, {}
for name, some in orders.items():
    smaller = [without_heads(first_to_go(order, CUT)) for order in some]
    figures = torch.tensor([judged(each) for each in smaller])  # (models, 2)
    right[name], harm[name] = figures.mean(0).tolist()
    share = time_share(smaller[0])
    print(f"{name:<22}{right[name]:>10.3f}{harm[name]:>16.2f}{share:>8.2f}")
beaten = int((figures[:, 1] > harm["least information"]).sum())
print(f"random choices that move the log-odds more: {beaten} of {len(figures)}")

# %% [markdown]
# The heads that keep least are the ones to cut, if the model shall go on saying what it said: three of four random
# choices move it more.  But the choice is no better than small weights for accuracy, where the differences are within
# the error of 300 texts, and heads save little time: at these lengths most of it goes into the other weights.

# %%
assert harm["least information"] < harm["most information"] / 1.2
assert harm["least information"] < min(harm["random, mean of 20"], harm["least magnitude"]) / 1.1
assert beaten >= 15
assert abs(right["least information"] - right["least magnitude"]) < 0.07  # three standard errors

# %%
figure = Figure(figsize=(6, 2.2), layout="constrained")
axes = figure.subplots()
axes.barh(list(harm)[::-1], list(harm.values())[::-1], color=["C0", "C0", "C0", "C3"])
axes.set(xlabel=f"how far the log-odds move without {CUT} of {DEPTH * HEADS} heads")
figure
