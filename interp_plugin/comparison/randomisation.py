"""Models whose weights are drawn anew, from the top down."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence

import torch
from torch import nn

from interp_plugin.comparison.inputs import Inputs
from interp_plugin.method.perturbation import in_this_thread, module_of, no_fastpath
from interp_plugin.text.models import Label, TextModel

HEAD = "head"
EMBEDDINGS = "embeddings"


def stages(inputs: Inputs) -> dict[Label, tuple[str, ...]]:
    """The parameters of a model by name, from the top down: "head", the last layer, ..., the first, "embeddings".

    A layer's are those of all that runs before its output and after that of the layer below; what runs
    several times belongs to its last run; the word embeddings are a stage of their own, and the last one.

    Args:
        inputs: a text, to see in which order things run.

    Examples::
        >>> from interp_plugin import huggingface
        >>> model = huggingface.HuggingFaceModel(*huggingface.load(huggingface.default_model_path()))
        >>> found = stages(Inputs(model, model.encode("a good film")))
        >>> list(found), found["embeddings"]
        (['head', 4, 3, 2, 1, 'embeddings'], ('bert.embeddings.word_embeddings.weight',))
    """
    model = inputs.model
    labels = list(model.layers)
    below = _layers_below(inputs)
    words = {id(p) for p in _word_embedding(model).parameters()}
    found: dict[Label, list[str]] = {label: [] for label in (HEAD, *reversed(labels), EMBEDDINGS)}
    for name, parameter in model.module.named_parameters():
        owner = name.rpartition(".")[0]
        while owner and owner not in below:  # attention may use a child's weight without calling it
            owner = owner.rpartition(".")[0]
        level = below.get(owner, len(labels))
        stage = EMBEDDINGS if id(parameter) in words else HEAD if level == len(labels) else labels[level]
        found[stage].append(name)
    return {stage: tuple(names) for stage, names in found.items() if names}


def randomised(model: TextModel, names: Sequence[str], seed: int = 0) -> TextModel:
    """A copy of the model in which these parameters are drawn from normal distributions.

    Each has the mean and the standard deviation of the parameter's own elements, so that signals keep
    their size.  All other parameters are the model's own, not copies.

    Args:
        names: in the order in which they are drawn: the beginnings of two lists that agree are drawn alike.
        seed: of the draws.

    Raises:
        ValueError: there is no such parameter.
    """
    parameters = dict(model.module.named_parameters())
    unknown = [name for name in names if name not in parameters]
    if unknown:
        raise ValueError(
            f"{model.name} has no parameter {unknown[0]!r}; take the names from its named_parameters"
        )
    drawn = set(names)
    shared = {id(value): value for name, value in parameters.items() if name not in drawn}
    other = copy.deepcopy(model, dict(shared))
    _draw(other.module, names, seed)
    return other


@torch.no_grad()
def _draw(module: nn.Module, names: Sequence[str], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    parameters = dict(module.named_parameters())
    for name in names:
        value = parameters[name]
        noise = torch.randn(value.shape, generator=generator, dtype=torch.float32).to(value)
        value.copy_(value.mean() + value.std(correction=0) * noise)


def upper(found: dict[Label, tuple[str, ...]], last: Collection[Label]) -> list[str]:
    """The parameters of some stages in one list, from the top down."""
    return [name for stage, names in found.items() if stage in last for name in names]


@torch.no_grad()
def _layers_below(inputs: Inputs) -> dict[str, int]:
    """Of each module that runs, by name, how many layers have given their output when it last begins."""
    model, ended = inputs.model, 0
    below: dict[str, int] = {}
    runs: dict[int, int] = {}
    ends = {(id(site.layer), site.call) for site in model.layers.values()}
    name_of = {id(module): name for name, module in model.module.named_modules()}

    def begin(module: nn.Module, args: object) -> None:
        below[name_of[id(module)]] = ended

    def end(module: nn.Module, args: object, output: object) -> None:
        nonlocal ended
        run = runs.get(id(module), 0)
        runs[id(module)] = run + 1
        ended += (id(module), run) in ends

    handles = [
        handle
        for module in model.module.modules()
        for handle in (
            module.register_forward_pre_hook(in_this_thread(begin)),
            module.register_forward_hook(in_this_thread(end)),
        )
    ]
    try:
        with no_fastpath():  # which calls no children
            model(*inputs.arguments)
    finally:
        for handle in handles:
            handle.remove()
    return below


def _word_embedding(model: TextModel) -> nn.Module:
    module = module_of(model.embedding)
    assert module is not None
    return module
