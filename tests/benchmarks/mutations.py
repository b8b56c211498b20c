"""Mistakes put into the core by hand, one at a time: the fast tests must notice each.

    python tests/benchmarks/mutations.py [--only N ...] [--list]

Each mutation is a sign, a factor, an axis, a mask or a count that somebody could get wrong.  It is made in a copy of
the package and the tests, where the tests meant for that module run up to the first failure.  Prints for each the
test that caught it and the seconds; exits with 1 if one survives.  Text that is not found exactly once in its module
is an error before anything runs, so that the list follows the code.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).parents[2]
LIMIT = 600  # seconds for the tests of one mutation

TESTS = {  # of each module, the quickest first
    "curvature": ("objective", "solver"),
    "objective": ("objective", "solver", "padding"),
    "solver": ("solver", "rounds"),
    "refinement": ("rounds", "solver"),
    "rounds": ("rounds", "solver"),
    "trace": ("rounds", "solver"),
    "controls": ("controls",),
    "noise": ("noise", "controls"),
    "padding": ("padding", "batches"),
    "ranks": ("ranks", "solver"),
    "scores": ("explanation",),
    "state": ("state",),
    "problem": ("problem", "bad_input"),
    "batches": ("batches", "text"),
    "attribution": ("attribution", "conformance"),
}


@dataclass(frozen=True)
class Mutation:
    """One mistake.

    Attributes:
        module: of the package.
        original, mutated: source text, the first found exactly once in the module.
        breaks: what is wrong then.
    """

    module: str
    original: str
    mutated: str
    breaks: str

    def applied(self, root: Path) -> str:
        """The module's source with the mistake.

        Raises:
            ValueError: the original text is not in the module, or more than once.
        """
        source = self._path(root).read_text(encoding="utf-8")
        count = source.count(self.original)
        if count != 1:
            raise ValueError(
                f"{self.original!r} is {count} times in {self.module}.py, and exactly once is needed; mend the list of "
                "mutations"
            )
        return source.replace(self.original, self.mutated)

    def caught_by(self) -> str | None:
        """The test that fails first; None if all pass."""
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder)
            ignored = shutil.ignore_patterns("__pycache__", "benchmarks")
            for name in ("interp_plugin", "tests"):
                shutil.copytree(ROOT / name, copy / name, ignore=ignored)
            shutil.copy(ROOT / "setup.cfg", copy)
            self._path(copy).write_text(self.applied(ROOT), encoding="utf-8")
            process = get_context("fork").Process(target=run_tests, args=(copy, TESTS[self.module]))
            process.start()
            process.join(LIMIT)
            if process.is_alive():
                process.kill()
                process.join()
                return f"no test within {LIMIT} s"
            output = (copy / "output").read_text(encoding="utf-8")
        if process.exitcode == 0:
            return None
        failed = re.search(r"^(?:FAILED|ERROR) tests/test_(\S+)", output, re.MULTILINE)
        if process.exitcode == 1 and failed:
            return failed[1]
        raise RuntimeError(f"pytest did not run (exit code {process.exitcode}): {output}")

    def _path(self, root: Path) -> Path:
        return root / "interp_plugin" / f"{self.module}.py"


def run_tests(root: Path, names: tuple[str, ...]) -> NoReturn:
    """Run them in this process, a fork that has not seen the package yet; exits with pytest's code."""
    os.chdir(root)
    sys.path.insert(0, str(root))
    with open("output", "w", encoding="utf-8") as output:
        for stream in (1, 2):
            os.dup2(output.fileno(), stream)
        options = ["-x", "-q", "--tb=no", "-p", "no:cacheprovider", "--hypothesis-seed=0"]
        code = pytest.main([*options, *(f"tests/test_{name}.py" for name in names)])
        sys.stdout.flush()
    os._exit(code)


MUTATIONS = (
    Mutation(
        "objective",
        "log_normal_constant(sizes) + sizes * sigma.log()",
        "log_normal_constant(sizes) - sizes * sigma.log()",
        "loss: the sign of log sigma",
    ),
    Mutation(
        "objective",
        "sizes / 2 * math.log(2 * math.pi * math.e)",
        "sizes * math.log(2 * math.pi * math.e)",
        "loss: K in place of K/2 before log(2 pi e)",
    ),
    Mutation(
        "objective",
        "nats = sizes * (_half_log",
        "nats = (_half_log",
        "kept: without K",
    ),
    Mutation(
        "objective",
        "_half_log(std / sigma) - _half_log(std / cap)",
        "_half_log(sigma / std) - _half_log(cap / std)",
        "kept: the ratio upside down",
    ),
    Mutation(
        "objective",
        "_half_log(std / sigma) - _half_log(std / cap)",
        "_half_log(std / sigma)",
        "kept: not 0 at the cap",
    ),
    Mutation(
        "problem",
        "return _own_std(objective) if given is None",
        "return _own_std(objective).mean().expand(batch) if given is None",
        "tau: a batch statistic",
    ),
    Mutation(
        "objective",
        "moved.square().reshape(len(moved), -1)",
        "moved.abs().reshape(len(moved), -1)",
        "distortion: not squared",
    ),
    Mutation(
        "objective",
        "reshape(len(moved), -1).sum(1)",
        "reshape(len(moved), -1).mean(1)",
        "distortion: divided by M twice",
    ),
    Mutation(
        "objective",
        "div(size).sqrt()\n        zero = ",
        "div(size)\n        zero = ",
        "the example's own v: its square in its place",
    ),
    Mutation(
        "objective",
        "v = state_std.reshape(keep.shape)",
        "v = state_std.reshape(keep.shape).sqrt()",
        "state_std: v^2 becomes v",
    ),
    Mutation(
        "objective",
        "0.0) / size.to(v.dtype).sqrt()",
        "0.0) / size",
        "weight: 1 / M in place of sqrt(1 / M)",
    ),
    Mutation(
        "objective",
        "keep = keep & (v > 0)",
        "keep = v > 0",
        "weight: masked elements of the state count",
    ),
    Mutation(
        "objective",
        "size = keep.sum(1, keepdim=True)\n    if not",
        "size = torch.full_like(v[:, :1], v.shape[1])\n    if not",
        "weight: M counts elements that do not",
    ),
    Mutation(
        "objective",
        "slope / (2 * distortion_at_optimum)",
        "slope / distortion_at_optimum",
        "regime index: without the 2",
    ),
    Mutation(
        "objective",
        "0.5 * (math.log(rate / 2) - counts",
        "0.5 * (math.log(rate) - counts",
        "closed form: without the 2",
    ),
    Mutation(
        "objective",
        "- counts.unsqueeze(1).to(curvature.dtype).log() - curvature.log()",
        "- curvature.log()",
        "closed form: without n",
    ),
    Mutation(
        "objective",
        "self.groups.at(examples).spread(sigma * self.groups.active[examples])",
        "self.groups.at(examples).spread(sigma)",
        "masked tokens bear noise",
    ),
    Mutation(
        "objective",
        "draw, which = chunk // b, chunk % b",
        "draw, which = chunk % count, chunk // count",
        "rows: the axes of draws and examples swapped",
    ),
    Mutation(
        "objective",
        "pull.mul_(weight.unsqueeze(1))",
        "pull",
        "stationarity and pull: without the importance weight",
    ),
    Mutation(
        "objective",
        "points, push) / lift",
        "points, push)",
        "gradient: not lowered again",
    ),
    Mutation(
        "curvature",
        "exact = counted.sum(1) <= exact_up_to",
        "exact = counted.sum(1) < exact_up_to",
        "curvature: exact for one element less",
    ),
    Mutation(
        "curvature",
        "direction.reshape(state.shape) * rows_of(o.weight, examples)",
        "direction.reshape(state.shape) * rows_of(o.weight, examples).square()",
        "curvature: v and M squared once more",
    ),
    Mutation(
        "curvature",
        "round(PROBE_ROUND, probes).sign()",
        "round(PROBE_ROUND, probes)",
        "curvature: normal probes in place of signs",
    ),
    Mutation(
        "curvature",
        "round(PROBE_ROUND, probes)",
        "round(PROBE_ROUND, 1).expand(probes, -1)",
        "curvature: one probe again and again",
    ),
    Mutation(
        "solver",
        "if index >= solver.max_rounds:",
        "if index > solver.max_rounds:",
        "one round more than asked",
    ),
    Mutation(
        "solver",
        "draws.round(index, count, first)",
        "draws.round(0, count, first)",
        "every round the same draws",
    ),
    Mutation(
        "solver",
        "error = token_mean(variance_of(trace, free), free).sqrt()",
        "error = token_mean(variance_of(trace, free), free)",
        "converged: a variance against the tolerance",
    ),
    Mutation(
        "solver",
        "passes[trace.example] += found.passes",
        "passes[trace.example] = found.passes",
        "passes: of the last round only",
    ),
    Mutation(
        "solver",
        "(whole.theta - whole.place) * free",
        "(whole.place - whole.theta) * free",
        "D at sigma: moved the other way",
    ),
    Mutation(
        "solver",
        "error = variance_of(whole, free).sqrt()",
        "error = variance_of(whole, free)",
        "standard error: a variance",
    ),
    Mutation(
        "solver",
        "torch.cat([t.example for t in traces]).argsort()",
        "torch.cat([t.example for t in traces])",
        "examples that finish early change places",
    ),
    Mutation(
        "solver",
        "torch.where(certain, fit.sigma.log() - closed, 0.0)",
        "torch.where(certain, closed - fit.sigma.log(), 0.0)",
        "several states: the lead points the other way",
    ),
    Mutation(
        "solver",
        "return self.sigma >= self.max_sigma.unsqueeze(1)",
        "return self.sigma > self.max_sigma.unsqueeze(1)",
        "no token is at the cap",
    ),
    Mutation(
        "solver",
        "residual=(whole.residual * free)",
        "residual=whole.residual",
        "residual: not 0 at the cap",
    ),
    Mutation(
        "solver",
        "share = torch.where(free, 1.0, (1 + whole.residual).clamp(0, 1))",
        "share = torch.ones_like(whole.residual)",
        "regime index: tokens at the cap count whole",
    ),
    Mutation(
        "refinement",
        "found.stationarity * (n / rate) - 1",
        "found.stationarity * (1 / rate) - 1",
        "stationarity: rate in place of rate / n",
    ),
    Mutation(
        "refinement",
        "n = active.sum(1, keepdim=True)",
        "n = torch.full_like(active[:, :1], active.shape[1], dtype=torch.long)",
        "n counts masked tokens",
    ),
    Mutation(
        "refinement",
        "(theta < cap - 1e-6) | (residual > 0)",
        "(theta < cap - 1e-6) | (residual < 0)",
        "at the cap: the wrong push counts",
    ),
    Mutation(
        "refinement",
        "common = (-log_shared / elasticity)",
        "common = (log_shared / elasticity)",
        "step: all tokens the wrong way",
    ),
    Mutation(
        "refinement",
        "(log_shared.unsqueeze(1) - _log1p(residual, excess.var(0) / count)) / 2",
        "(log_shared.unsqueeze(1) - _log1p(residual, excess.var(0) / count)) * 2",
        "step: differences between tokens times 2",
    ),
    Mutation(
        "refinement",
        "per_draw = (excess - shared.unsqueeze(-1)) / 2",
        "per_draw = excess - shared.unsqueeze(-1)",
        "standard error: of g, not of log sigma",
    ),
    Mutation(
        "refinement",
        "common_variance=(shared / elasticity).var(0)",
        "common_variance=shared.var(0)",
        "common error: of g, not of log sigma",
    ),
    Mutation(
        "refinement",
        "trace.mean = trace.mean.lerp(estimate, weight.unsqueeze(1))",
        "trace.mean = estimate.lerp(trace.mean, weight.unsqueeze(1))",
        "average of rounds: weights swapped",
    ),
    Mutation(
        "refinement",
        "estimate = torch.minimum(trace.theta + step.move, cap)",
        "estimate = trace.theta + step.move",
        "average of rounds: estimates beyond the cap",
    ),
    Mutation(
        "refinement",
        "share = (mean_ours / (mean_ours + theirs)",
        "share = (theirs / (mean_ours + theirs)",
        "closed form and draws: weights swapped",
    ),
    Mutation(
        "refinement",
        "ratio.log() + (variance / 2",
        "ratio.log() - (variance / 2",
        "log(1 + r): its bias doubled",
    ),
    Mutation(
        "refinement",
        "1 - DISORDER * tolerance**1.5",
        "1 - 1000 * tolerance",
        "order: any will do",
    ),
    Mutation(
        "ranks",
        "2**0.5 * errors * noise",
        "errors * noise",
        "order: one estimate alone errs",
    ),
    Mutation(
        "ranks",
        "values.masked_fill(~known, torch.inf)",
        "values",
        "order: padding is ranked",
    ),
    Mutation(
        "padding",
        "lengths[index] >= full * longest",
        "lengths[index] >= longest - 99",
        "lengths: all are alike",
    ),
    Mutation(
        "padding",
        "lengths if torch.equal(first, mask) else None",
        "lengths",
        "lengths: padding anywhere is at the end",
    ),
    Mutation(
        "objective",
        "(distortion(state, whole, weight)[0] <= rounding * (1 + moved)).all()",
        "True",
        "padding: left out though the state feels it",
    ),
    Mutation(
        "rounds",
        "torch.cat([noise[first:], -noise])",
        "torch.cat([noise[first:], noise])",
        "pairs: the same draw twice",
    ),
    Mutation(
        "rounds",
        "(there.pull - back.pull) / 2",
        "(there.pull + back.pull) / 2",
        "pairs: gradients cancel",
    ),
    Mutation(
        "rounds",
        "(there.stationarity + back.stationarity) / 2",
        "(there.stationarity - back.stationarity) / 2",
        "pairs: stationarities cancel",
    ),
    Mutation(
        "rounds",
        "+ 2 * known,",
        "+ known,",
        "quadratic part: put back by half",
    ),
    Mutation(
        "rounds",
        "small.stationarity / PAIR**2",
        "small.stationarity / PAIR",
        "quadratic part: scaled once",
    ),
    Mutation(
        "rounds",
        "(rate / 2 / value).log()",
        "(rate / value).log()",
        "scouts: stop at twice the distortion",
    ),
    Mutation(
        "rounds",
        "(seen.distortion.mean(0) > rate)",
        "(seen.distortion.mean(0) < rate)",
        "scouts: look where nothing is wrong",
    ),
    Mutation(
        "rounds",
        "value.unflatten(0, (-1, 2)).mean(1)",
        "value.unflatten(0, (-1, 2)).sum(1)",
        "two draws: their sum in place of their mean",
    ),
    Mutation(
        "trace",
        "from_draws = trace.variance / trace.draws.clamp(min=1).unsqueeze(1)",
        "from_draws = trace.variance",
        "standard error: of one draw, not of their mean",
    ),
    Mutation(
        "trace",
        "from_draws = trace.common_variance / trace.draws.clamp(min=1)",
        "from_draws = trace.common_variance",
        "common error: of one draw, not of their mean",
    ),
    Mutation(
        "trace",
        "clamp(min=tiny) / 2 * free",
        "clamp(min=tiny) * free",
        "closed form's error: of log c, not of log sigma",
    ),
    Mutation(
        "trace",
        "return logs.var(0) / len(logs), ",
        "return logs.var(0), ",
        "closed form's error: of one probe",
    ),
    Mutation(
        "trace",
        "torch.where(free, values, 0.0).sum(-1) / free.sum(-1).clamp(min=1)",
        "values.mean(-1)",
        "mean over tokens: masked and capped ones too",
    ),
    Mutation(
        "trace",
        "(signal.sqrt() / trace.distortion.clamp(min=1e-30))",
        "(signal.sqrt() * trace.distortion.clamp(min=1e-30))",
        "tilt: times the distortion",
    ),
    Mutation(
        "controls",
        ".triu_(1)",
        ".triu_(0)",
        "controls: a draw teaches itself",
    ),
    Mutation(
        "controls",
        "expected * _size(noise, groups)",
        "stationarity.mean(0) * _size(noise, groups)",
        "controls: the draws' own mean is what is expected of them",
    ),
    Mutation(
        "controls",
        "sizes.clamp(min=1) - 1",
        "sizes.clamp(min=1)",
        "controls: squared length of eps by K, without its mean",
    ),
    Mutation(
        "controls",
        'squares - torch.einsum("rbt,rsb->sbt", lengths, weight)',
        "squares",
        "controls: squares without their mean",
    ),
    Mutation(
        "controls",
        "weight * products.sum(-1)) - squares",
        "weight * products.sum(-1))",
        "controls: a token's product with itself counts across",
    ),
    Mutation(
        "noise",
        "counter=[0, position, number, index]",
        "counter=[0, 0, number, index]",
        "draws: every position alike",
    ),
    Mutation(
        "noise",
        "counter=[0, position, number, index]",
        "counter=[0, position, number, 0]",
        "draws: every round alike",
    ),
    Mutation(
        "noise",
        "counter=[0, position, number, index]",
        "counter=[0, position, 0, index]",
        "draws: every input alike",
    ),
    Mutation(
        "noise",
        "self._block(index, number, 0, size, count)).T",
        "self._block(index, number, 0, count, size))",
        "draws of a series: they depend on its length",
    ),
    Mutation(
        "noise",
        "self.shift.square() / 2",
        "self.shift.square()",
        "tilt: weights without the 1/2",
    ),
    Mutation(
        "noise",
        "draws[draw] + step.unsqueeze(1)",
        "draws[draw] - step.unsqueeze(1)",
        "tilt: the wrong way",
    ),
    Mutation(
        "noise",
        "tensor.shape[-1] if tensor.ndim > 2 else 1",
        "tensor.shape[-1] if tensor.ndim > 1 else 1",
        "tokens: a row of a matrix is one",
    ),
    Mutation(
        "noise",
        "// size + offset",
        "// size",
        "tokens: those of two inputs are the same",
    ),
    Mutation(
        "noise",
        "active = active & _checked_mask(token_mask, active)",
        "_checked_mask(token_mask, active)",
        "tokens: the mask is checked and dropped",
    ),
    Mutation(
        "noise",
        "values.repeat_interleave(self.width, 1)",
        "values.repeat(1, self.width)",
        "spread: elements have their neighbours' sigma",
    ),
    Mutation(
        "noise",
        "values.reshape(len(values), self.n_tokens, self.width).sum(-1)",
        "values.reshape(len(values), self.width, self.n_tokens).sum(1)",
        "collect: the axes of tokens and elements swapped",
    ),
    Mutation(
        "scores",
        'if kind == "kept":  # as in objective',
        'if kind == "loss":  # as in objective',
        "loss gives kept",
    ),
    Mutation(
        "scores",
        "variance.shape[1] * common_error",
        "variance.shape[0] * common_error",
        "covariance: states in place of tokens",
    ),
    Mutation(
        "scores",
        "(free * (free - 1))",
        "(free * free)",
        "covariance: n^2 pairs in place of n (n - 1)",
    ),
    Mutation(
        "scores",
        "return self.size * (2 * (self.log_std - self.log_sigma)).sigmoid()",
        "return torch.full_like(self.log_sigma, self.size)",
        "standard error of kept: that of the loss",
    ),
    Mutation(
        "scores",
        "- 2 * covariance * reach",
        "+ 2 * covariance * reach",
        "ties: the sign of the covariance",
    ),
    Mutation(
        "scores",
        'values if kind == "kept" else -values',
        "values",
        "ties: loss and sigma ranked upside down",
    ),
    Mutation(
        "scores",
        'elif aggregate == "mean" or kind == "sigma":',
        'elif aggregate == "mean":',
        "sigma of a word: the product of its tokens'",
    ),
    Mutation(
        "state",
        "gap.square() * (self.count * len(values) / total)",
        "gap * (self.count * len(values) / total)",
        "state_std: the gap of two means not squared",
    ),
    Mutation(
        "state",
        ".div(max(self.count, 1)).sqrt()",
        ".div(max(self.count - 1, 1)).sqrt()",
        "state_std: n - 1",
    ),
    Mutation(
        "state",
        "values = values[mask.to(values.device).bool()]",
        "values = values.flatten(0, 1)",
        "state_std: padding is a sample",
    ),
    Mutation(
        "state",
        "runs - 1 == where.call",
        "runs == where.call",
        "a layer's runs counted from 1",
    ),
    Mutation(
        "state",
        "(slice(None), *index)",
        "index",
        "a selector indexes the batch",
    ),
    Mutation(
        "problem",
        "mean.unsqueeze(1)).square() * keep).sum(1)",
        "mean.unsqueeze(1)).square()).sum(1)",
        "tau: padding has spread",
    ),
    Mutation(
        "problem",
        "square).sqrt()\n    if not std.all():",
        "square)\n    if not std.all():",
        "tau: the variance",
    ),
    Mutation(
        "problem",
        "(square - mean.square())",
        "(square + mean.square())",
        "tau of an embedding: the sign of the mean",
    ),
    Mutation(
        "problem",
        "{scale * std:.5g}",
        "{std:.5g}",
        "tau of an embedding: without its scale",
    ),
    Mutation(
        "problem",
        "counted = _counted_elements(model, groups, whole, state, token_mask is not None)",
        "counted = torch.ones_like(state, dtype=torch.bool)",
        "padding counts in the state",
    ),
    Mutation(
        "batches",
        "counted &= mask.reshape",
        "counted |= mask.reshape",
        "padding counts in a text's state",
    ),
    Mutation(
        "padding",
        "(len(together) + 1) * longest > tokens",
        "len(together) * longest > tokens",
        "a batch of one text more",
    ),
    Mutation(
        "batches",
        "mask[row] = False\n",
        "mask[row] = True\n",
        "places that predict nothing of the target count",
    ),
    Mutation(
        "batches",
        "< lengths.unsqueeze(1)",
        "<= lengths.unsqueeze(1)",
        "a decoder's text is one place longer",
    ),
    Mutation(
        "batches",
        "gather(-1, ids.unsqueeze(-1))",
        "gather(-1, ids.flip(1).unsqueeze(-1))",
        "targets: the order of the tokens",
    ),
    Mutation(
        "attribution",
        'fit.loss() if score == "loss" else fit.kept() * sign',
        'fit.kept() * sign if score == "loss" else fit.loss()',
        "loss and kept swapped",
    ),
    Mutation(
        "attribution",
        "values = values / fit.token_size.clamp(min=1)",
        "values = values / 1",
        "every element has the whole token's nats",
    ),
    Mutation(
        "attribution",
        "result.token_attr.mean(0)",
        "result.token_attr.sum(0)",
        "a sequence's score: the sum over its tokens",
    ),
    Mutation(
        "attribution",
        "running.update(state, mask if state.ndim > 2 else None)",
        "running.update(state)",
        "state_std: padding is a sample, and texts of two lengths do not fit",
    ),
    Mutation(
        "attribution",
        "return argument[rows.to(argument.device)]",
        "return argument[: len(rows)]",
        "further arguments do not follow their examples",
    ),
)


def main(numbers: list[int], only_list: bool) -> int:
    """Print the table; 1 if a mutation survived."""
    for mutation in MUTATIONS:
        mutation.applied(ROOT)
    for name in ("captum.attr", "hypothesis", "scipy.stats", "transformers"):
        importlib.import_module(name)  # once, for all forks
    survivors = []
    print("| | module | what is wrong | caught by | seconds |\n|---|---|---|---|---|", flush=True)
    for number in numbers:
        mutation = MUTATIONS[number - 1]
        start = time.perf_counter()
        caught = "" if only_list else mutation.caught_by()
        if caught is None:
            survivors.append(number)
        line = (number, mutation.module, mutation.breaks, caught or "", f"{time.perf_counter() - start:.0f}")
        print("|", " | ".join(map(str, line)), "|", flush=True)
    if not only_list:
        print(f"\n{len(numbers)} mutations, survivors: {survivors or 'none'}")
    return bool(survivors)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    every = list(range(1, len(MUTATIONS) + 1))
    parser.add_argument("--only", type=int, nargs="+", default=every, metavar="N", help="numbers from 1")
    parser.add_argument("--list", action="store_true", help="print the table without running a test")
    given = parser.parse_args()
    raise SystemExit(main(given.only, given.list))
