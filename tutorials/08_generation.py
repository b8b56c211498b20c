# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Which words of the prompt does each generated word need?
#
# A small GPT-2 is trained on the spot on a task whose answer is known: five things, then two places, and it says which
# things stand there.  "drum bread egg hat coin fifth first :" is continued by "coin drum".  So "coin" needs the word
# "fifth" and the fifth thing, "drum" the word "first" and the first thing, and neither needs the rest.

# %%
# %matplotlib inline
import random

import torch
from matplotlib.figure import Figure
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from interp_plugin import Solver, TextExplainer

PLACES, THINGS = (
    words.split()
    for words in (
        "first second third fourth fifth",
        "apple bread coin drum egg flag glove hat",
    )
)
WORDS = {word: number for number, word in enumerate(["<pad>", ":", *PLACES, *THINGS])}
splitter = Tokenizer(models.WordLevel(WORDS, unk_token="<pad>"))
splitter.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=splitter, pad_token="<pad>")
rng = random.Random(0)


def example():
    """A prompt, its continuation, and the two places asked for, counted from 0."""
    things, asked = rng.sample(THINGS, 5), rng.sample(range(5), 2)
    prompt = [*things, *(PLACES[place] for place in asked), ":"]
    return " ".join(prompt), " ".join(things[place] for place in asked), asked


# %% [markdown]
# ## The model

# %%
torch.manual_seed(0)
STEPS = 800
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
settings = {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 16, "vocab_size": len(WORDS)}
config = GPT2Config(**settings, **NO_DROPOUT, bos_token_id=None, eos_token_id=None, pad_token_id=0)
model = GPT2LMHeadModel(config)
adam = torch.optim.AdamW(model.parameters(), lr=3e-3)
schedule = torch.optim.lr_scheduler.OneCycleLR(adam, 3e-3, total_steps=STEPS)


def lines(count):
    """Prompts with their continuations as ids, (count, 10)."""
    texts = [f"{prompt} {continuation}" for prompt, continuation, _ in (example() for _ in range(count))]
    return tokenizer(texts, return_tensors="pt")["input_ids"]


for _ in range(STEPS):
    ids = lines(64)
    loss = F.cross_entropy(model(ids).logits[:, -3:-1].flatten(0, 1), ids[:, -2:].flatten())
    adam.zero_grad()
    loss.backward()
    adam.step()
    schedule.step()
model.eval()
ids = lines(500)
with torch.no_grad():
    accuracy = float((model(ids).logits[:, -3:-1].argmax(-1) == ids[:, -2:]).float().mean())
print(f"accuracy on fresh prompts: {accuracy:.3f}")
assert accuracy > 0.98

# %% [markdown]
# ## One generated word at a time
#
# The target of a language model is what it says next; (continuation, (first, last character)) asks about a span of it,
# given all that stands before the span.  "output" watches its log probability, and a layer is watched where the span
# is predicted.  Calibrate first: a word that is said with certainty has a log probability near 0, which is a bad
# unit for itself.

# %%
explainer = TextExplainer(model, tokenizer)
explainer.calibrate(
    [f"{prompt} {answer}" for prompt, answer, _ in (example() for _ in range(100))], show_progress=False
)


def spans(continuation):
    gap = continuation.index(" ")
    return (0, gap), (gap + 1, len(continuation))


prompt, continuation, _ = example()
targets = [(continuation, span) for span in spans(continuation)]
solver = Solver(
    lower_rate=False
)  # by default the output would be solved at a smaller rate, where it is well known
explanation = explainer.explain([prompt] * 2, layers=["all", "output"], target=targets, solver=solver)
explanation.show()
assert [item.target for item in explanation] == continuation.split()

# %% [markdown]
# Look at `converged` before the map.  The log probability of a certain answer is a bad state to watch: noise can only
# lower it, and by a lot, so that single draws decide, and the fit does not converge.  The layers say where the answer
# comes from, the first to about a nat.

# %%
errors = torch.stack([scores.standard_error.mean(1) for scores in explanation.scores()]).mean(0)
print("mean error in nats at layer 1, layer 2 and the output:", [f"{error:.1f}" for error in errors.tolist()])
assert errors[0] < 0.5 * errors[2]
assert not all(item.row("output").converged for item in explanation)

# %% [markdown]
# ## Against the truth
#
# The same for forty prompts.  For each generated word two words of the prompt are needed, its place and its thing, and
# five are not: how often does a layer keep more of a needed word than of one that is not?  By chance in one half.

# %%
examples = [example() for _ in range(40)]
prompts, targets, thing, place = [], [], [], []
for prompt, continuation, asked in examples:
    for turn, span in enumerate(spans(continuation)):
        prompts.append(prompt)
        targets.append((continuation, span))
        thing.append(asked[turn])
        place.append(5 + turn)
explained = explainer.explain(prompts, [1, 2], targets)
kept = torch.stack(
    [scores.values[:, :7] for scores in explained.scores()]
)  # (80, layers, words of the prompt)
rows = torch.arange(len(prompts))
rest = torch.ones(len(prompts), 7, dtype=torch.bool)
rest[rows, thing] = rest[rows, place] = False


def more_than(values, others):
    """How often the first are larger, a tie counting half: (80, A) and (80, B)."""
    difference = values.unsqueeze(2) - others.unsqueeze(1)
    return float(((difference.sign() + 1) / 2).mean())


print(f"{'':<9}{'the thing':>11}{'its place':>11}{'the rest':>11}   needed above rest")
right = {}
for layer, values in zip([1, 2], kept.unbind(1)):
    needed = torch.stack([values[rows, thing], values[rows, place]], dim=1)  # (80, 2)
    others = values[rest].reshape(-1, 5)
    right[layer] = more_than(needed, others)
    means = [*needed.mean(0).tolist(), float(others.mean())]
    print(f"layer {layer:<3}" + "".join(f"{mean:>11.0f}" for mean in means) + f"{right[layer]:>12.0%}")

# %% [markdown]
# Layer 1 has not looked the thing up yet: it does not know where to look.  Layer 2 has.

# %%
assert right[2] > 0.8 and right[2] > right[1] + 0.1

# %% [markdown]
# ## Two questions to one prompt
#
# Each prompt asks for two things.  The state behind a generated word may well hold the other one too, being on its
# way to it, but it should hold its own more.

# %%
own, turn = kept[rows, 1, thing].reshape(-1, 2), torch.tensor(thing).reshape(-1, 2).flip(1).flatten()
other = kept[rows, 1, turn].reshape(-1, 2)
for number, word in enumerate(("first", "second")):
    share = float((own[:, number] > other[:, number]).double().mean())
    print(f"the {word} generated word: its own thing is kept more than the other in {share:.0%} of prompts")
    assert share > 0.7

# %%
figure = Figure(figsize=(6, 1.9), layout="constrained")
axes = figure.subplots()
picture = axes.imshow(kept[:2, 1], cmap="Blues", aspect="auto")
axes.set_xticks(range(7), explained[0].tokens[:7])
axes.set_yticks(range(2), [item.target for item in explained[:2]])
axes.set(xlabel="words of the prompt", ylabel="generated", title="information kept by layer 2")
figure.colorbar(picture, label="nats")
figure
