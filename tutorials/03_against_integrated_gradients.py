# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # The same call sites, two methods
#
# Everything below is ordinary Captum code, written once and run twice: with `LayerIntegratedGradients` and with
# `LayerInformationLoss`.  Scores, pictures, `NoiseTunnel`, `infidelity`, `sensitivity_max` and language models.

# %%
from importlib.util import find_spec

import torch
from captum.attr import (
    IntegratedGradients,
    LayerIntegratedGradients,
    LLMGradientAttribution,
    NoiseTunnel,
    TextTokenInput,
    visualization,
)
from captum.metrics import infidelity, sensitivity_max
from scipy.stats import spearmanr
from transformers import GPT2Config, GPT2LMHeadModel

from interp_plugin import InformationLoss, InformationLossLLMAttribution, LayerInformationLoss, huggingface

model, tokenizer = huggingface.load(huggingface.default_model_path())
embedding = model.get_input_embeddings()
TEXTS = ["a gripping and wonderfully acted film", "it is dull , slow and far too long"]


def logits(ids, mask):
    return model(ids, attention_mask=mask).logits


# %% [markdown]
# ## One call site
#
# `score="kept"` makes high mean important; the default, `"loss"`, is the paper's entropy, where high means forgotten.

# %%
METHODS = {
    "integrated gradients": (LayerIntegratedGradients(logits, embedding), {}),
    "information kept": (LayerInformationLoss(logits, embedding), {"score": "kept"}),
}


def word_scores(text, name):
    """A score for each token, and the class that it is about."""
    method, settings = METHODS[name]
    encoded = tokenizer(text, return_tensors="pt")
    mask = encoded["attention_mask"]
    target = int(logits(encoded["input_ids"], mask).argmax())
    scores = method.attribute(
        encoded["input_ids"], target=target, additional_forward_args=(mask,), **settings
    )
    return scores.sum(dim=-1)[0].detach(), target


for text in TEXTS:
    tokens = tokenizer.tokenize(text, add_special_tokens=True)
    found = {name: word_scores(text, name)[0] for name in METHODS}
    print(f"{'token':<12}" + "".join(f"{name:>22}" for name in METHODS))
    for place, token in enumerate(tokens):
        print(f"{token:<12}" + "".join(f"{scores[place]:>22.2f}" for scores in found.values()))
    assert (found["information kept"] >= 0).all()

# %% [markdown]
# ## One picture
#
# `visualize_text` takes what lies in [-1, 1]; both methods go through the same record.

# %%
records = []
for text in TEXTS:
    for name in METHODS:
        scores, target = word_scores(text, name)
        encoded = tokenizer(text, return_tensors="pt")
        share = logits(encoded["input_ids"], encoded["attention_mask"]).softmax(-1)[0, target]
        records.append(
            visualization.VisualizationDataRecord(
                word_attributions=scores / scores.abs().max(),
                pred_prob=share.item(),
                pred_class=model.config.id2label[target],
                true_class="-",
                attr_class=name,
                attr_score=float(scores.sum()),
                raw_input_ids=tokenizer.tokenize(text, add_special_tokens=True),
                convergence_score=0.0,
            )
        )
if find_spec("IPython"):  # Captum draws in notebooks
    visualization.visualize_text(records)

# %% [markdown]
# ## Where they agree, and where not
#
# Integrated gradients have a sign and a baseline: which words speak for the class, compared with a text of zeros.
# Information kept has neither: how exactly the output still knows each word.  Their ranks agree in part, and more in
# absolute value than with the sign.

# %%
agreement = {"signed": [], "absolute": []}
for text in [
    *TEXTS,
    "the plot is thin but the cast is warm and funny",
    "nothing here is worth two hours of your life",
]:
    kept, integrated = word_scores(text, "information kept")[0], word_scores(text, "integrated gradients")[0]
    agreement["signed"].append(spearmanr(kept[1:-1], integrated[1:-1]).statistic)
    agreement["absolute"].append(spearmanr(kept[1:-1], integrated[1:-1].abs()).statistic)
for name, values in agreement.items():
    print(f"rank correlation with {name} integrated gradients: {sum(values) / len(values):.2f}")
assert all(-1 <= value <= 1 for values in agreement.values() for value in values)

# %% [markdown]
# A hidden state has no class and no sign, and integrated gradients need a single number: ask them about a layer and
# they need somebody to choose one.  Information kept is asked about the layer itself.

# %%
layer = model.base_model.encoder.layer[1]
ids = tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
of_layer = LayerInformationLoss(model, embedding, state_layer=layer).attribute(ids, score="kept").sum(-1)[0]
print("layer 2 keeps", [f"{value:.0f}" for value in of_layer.tolist()], "nats")
assert of_layer.min() > 0

# %% [markdown]
# ## Captum's NoiseTunnel and metrics
#
# Both want floating point inputs: the same model from its embeddings on.

# %%
encoded = tokenizer(TEXTS[0], return_tensors="pt")
mask = encoded["attention_mask"]
vectors = embedding(encoded["input_ids"]).detach()


def from_vectors(vectors, mask):
    return model(inputs_embeds=vectors, attention_mask=mask.expand(len(vectors), -1)).logits


def nudge(inputs):
    """A small change and the inputs after it."""
    change = 0.02 * torch.randn_like(inputs)
    return change, inputs - change


for name, method in {
    "integrated gradients": IntegratedGradients(from_vectors),
    "information kept": InformationLoss(from_vectors),
}.items():
    settings = {"target": 1, "additional_forward_args": (mask,)} | METHODS[name][1]
    torch.manual_seed(0)
    scores = method.attribute(vectors, **settings)
    smooth = NoiseTunnel(method).attribute(
        vectors, nt_type="smoothgrad", nt_samples=4, stdevs=0.02, **settings
    )
    unfaithful = infidelity(
        from_vectors,
        nudge,
        vectors,
        scores,
        additional_forward_args=(mask,),
        target=1,
        n_perturb_samples=20,
        normalize=True,
    )
    moved = sensitivity_max(method.attribute, vectors, perturb_radius=0.01, n_perturb_samples=4, **settings)
    print(f"{name}: infidelity {unfaithful.item():.1e}, max-sensitivity {moved.item():.3f}")
    assert scores.shape == smooth.shape == vectors.shape
    assert torch.isfinite(unfaithful).all() and torch.isfinite(moved).all()

# %% [markdown]
# ## A language model
#
# `InformationLossLLMAttribution` is Captum's `LLMGradientAttribution`, open to our layer class.  The model is a small
# one made on the spot, with random weights.

# %%
torch.manual_seed(0)
gpt2 = GPT2LMHeadModel(
    GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=64)
).eval()
prompt = TextTokenInput("the film was very", tokenizer)
words = gpt2.get_input_embeddings()
for wrapper, method in (
    (LLMGradientAttribution, LayerIntegratedGradients(gpt2, words)),
    (InformationLossLLMAttribution, LayerInformationLoss(gpt2, words)),
):
    result = wrapper(method, tokenizer).attribute(prompt, target="good and bad")
    print(f"{type(method).__name__}: {tuple(result.token_attr.shape)} output tokens x prompt tokens")
    assert result.token_attr.shape[1] == result.seq_attr.shape[0] == len(result.input_tokens)
