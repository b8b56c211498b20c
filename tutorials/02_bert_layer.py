# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # What layer 3 of a BERT knows of each word
#
# The model is the sentiment classifier that ships with the package: a BERT of 4 layers, 192 wide.

# %%
from importlib.util import find_spec

import torch
from captum.attr import visualization

from interp_plugin import LayerInformationLoss, TextExplainer, huggingface

TEXTS = [
    "rare bird has more than enough charm to make it memorable.",
    "The quick brown fox jumps over the lazy dog",
]
with huggingface.quiet():  # no progress bars
    model, tokenizer = huggingface.load(huggingface.default_model_path())
explainer = TextExplainer(model, tokenizer)

# %% [markdown]
# ## Words x layers
#
# Three lines from import to picture: load, explain, show.  Layers are counted from 1; a word of several tokens shows
# the mean of their nats.

# %%
explanation = explainer.explain(TEXTS)
explanation.show(granularity="word")

# %% [markdown]
# At layer 3 "rare", "charm" and "memorable" keep more than "than", "to" and "it", but look before you tell a story:
# the full stop keeps more than all three.  What is kept is how exactly the state still holds a word, not whether the
# word speaks for the class.  Nats add up: "bird" and "fox" have the largest sums of their sentences, because they are
# two and three tokens; token by token they are like the others.

# %%
scores = explanation[0].scores("kept", "word", "mean").at(3)


def clearly_more(one, other):
    """By more than two standard errors of the difference, as if the two errors were independent."""
    one, other = scores.of(one), scores.of(other)
    return one.values - other.values > 2 * one.standard_error.hypot(other.standard_error)


for word in ("rare", "charm", "memorable"):
    for other in ("than", "to", "it"):
        assert clearly_more(word, other)
    assert clearly_more(".", word)
assert [len(tokenizer.tokenize(word)) for word in ("bird", "fox", "charm")] == [2, 3, 1]
for item, word in zip(explanation, ("bird", "fox")):
    whole, mean = (item.scores("kept", "word", how).at(3) for how in ("sum", "mean"))
    assert whole.units[int(whole.values.argmax())] == word
    assert mean.units[int(mean.values.argmax())] != word

# %% [markdown]
# ## What one token's vector knows
#
# The clearest picture is that of single vectors, which `positions="each"` gives: a row for each of them.  The vector of
# a word knows its own word best; what it keeps of others is what attention has brought there.  Some of these states
# saturate at the usual rate: they are solved at a tenth of it, and their nats compare within the row only.

# %%
each = explainer.explain("a funny film with charm", layers=2, positions="each")
own = 0
for row, scores in zip(each[0].rows, each[0].scores().values):
    token, best = each[0].tokens[row.position], each[0].tokens[int(scores.argmax())]
    own += token == best
    print(
        f"the vector of {token:<8}keeps most of {best:<8}rate {row.rate:.2g}", scores.round().int().tolist()
    )
assert own == 6  # all but that of [CLS], which keeps most of another
each.plot("layers")

# %% [markdown]
# "The" stands twice in the second text.  Every layer keeps less of the later one.

# %%
twice = explanation[1].scores("kept", "word").of("The", "the")
print("nats of the two articles at layers 1 to 4:", twice.values.round().int().tolist())
first, second = twice.values.T
assert (first - second > 4 * twice.standard_error[:, 0]).all()

# %% [markdown]
# Deeper layers keep less.  The numbers above let each text be its own yardstick; to compare layers, give them a unit:
# the spread of each state over some texts of the kind.  Here these are sentences made on the spot.

# %%
ADJECTIVES = ["funny", "dull", "quick", "lazy", "clever", "tired"]
NOUNS = ["film", "story", "bird", "dog", "cast", "plot"]
VERBS = ["jumps over", "outdoes", "follows", "looks like"]
corpus = [
    f"the {a} {noun} {verb} a {b} {NOUNS[(i + 2) % 6]}"
    for i, noun in enumerate(NOUNS)
    for a, b in zip(ADJECTIVES, reversed(ADJECTIVES))
    for verb in VERBS
]
explainer.calibrate(corpus[::2], show_progress=False)
calibrated = explainer.explain(TEXTS)
for item in calibrated:
    nats, errors = item.total()
    print("kept by layers 1 to 4:", [f"{value:.0f} ± {se:.0f}" for value, se in zip(nats, errors)])
    assert ((nats[:-1] - nats[1:]) > 4 * errors[1:]).all()

# %% [markdown]
# ## The drop-in Captum form
#
# The same question in the form of `LayerIntegratedGradients`: ids in, something shaped like the embeddings out, and
# `sum(dim=-1)` is the score of a token.  `state_layer` says what is watched.

# %%
method = LayerInformationLoss(
    model, model.get_input_embeddings(), state_layer=model.base_model.encoder.layer[2]
)
alone = TextExplainer(model, tokenizer).explain(TEXTS, layers=3)
for item in alone:
    encoded = tokenizer(item.text, return_tensors="pt")
    attributions = method.attribute(
        encoded["input_ids"], additional_forward_args=(encoded["attention_mask"],), score="kept"
    )
    dropped_in = attributions.sum(dim=-1)[0]
    explained = item.scores().values[0]
    print(f"largest difference in {len(explained)} tokens: {(dropped_in - explained).abs().max():.1e} nats")
    assert attributions.shape == (1, len(item.tokens), 192)
    assert torch.allclose(dropped_in.double(), explained, atol=0.01)

# %% [markdown]
# Layers asked for together start from one another and share noise: layer 3 of the table above is not bit for bit
# layer 3 alone, but the same within standard errors.

# %%
together, alone = explanation[0].scores().at(3), alone[0].scores()
away = (together.values - alone.values).abs()
allowed = together.standard_error.hypot(alone.standard_error)
print("differences in standard errors:", [f"{value:.1f}" for value in (away / allowed)[0].tolist()])
assert (away < 4 * allowed).all()

# %% [markdown]
# ## Captum's picture
#
# `to_captum` gives records for `visualize_text`: one for each text, at one layer.

# %%
records = explanation.to_captum(layer=3, granularity="word")
for record, item in zip(records, explanation):
    darkest = max(zip(record.word_attributions.tolist(), record.raw_input_ids))
    print(f"{record.pred_class} {record.pred_prob:.2f}, darkest: {darkest[1]}")
    assert len(record.raw_input_ids) == len(record.word_attributions)
    assert record.word_attributions.min() >= 0 and record.word_attributions.max() == 1
    assert abs(record.attr_score - float(item.scores().at(3).values.sum())) < 1e-3
if find_spec("IPython"):  # Captum draws in notebooks
    visualization.visualize_text(records)

# %% [markdown]
# And ours, of all layers at once, token by token.

# %%
figure = explanation.plot("layers")
figure
