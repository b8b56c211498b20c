"""The interface of the authors' code: both examples of its write-up, and no side effects."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from interp_plugin import LayerInformationLoss
from interp_plugin.interpreter import Interpreter, calculate_regularization
from interp_plugin.method.perturbation import LayerCall

WEIGHT = torch.tensor([10.0, 20.0, 5.0, -20.0, -10.0])


def linear_state(x: Tensor) -> Tensor:
    return WEIGHT.to(x) @ x  # (256,)


@pytest.fixture(scope="module")
def linear() -> tuple[Tensor, np.ndarray]:
    """The sentence and the regularization of the write-up's linear example."""
    generator = torch.Generator().manual_seed(0)
    corpus = 0.01 * torch.randn(1000, 5, 256, generator=generator)
    return 0.01 * torch.randn(5, 256, generator=generator), calculate_regularization(corpus, linear_state)


def linear_optimum(regularization: np.ndarray, rate: float = 0.1) -> np.ndarray:
    """sigma_i^2 = rate / (2 n c_i), with c_i = W_i^2 mean(1 / v^2)."""
    c = WEIGHT.numpy() ** 2 * np.mean(regularization**-2.0)
    return np.sqrt(rate / (2 * len(c) * c))


@pytest.fixture(scope="module")
def bert() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=16,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: nn.Module = transformers.AutoModel.from_config(config)
    return model.eval()


class FirstLayers(nn.Module):
    """The seed's Phi for BERT: embeddings of one sentence in, hidden states of layer 3 out."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(bert.encoder.layer[:3])  # type: ignore[union-attr, index]

    def forward(self, x: Tensor) -> Tensor:
        hidden = x.unsqueeze(0)
        for layer in self.layers:
            out = layer(hidden)
            hidden = out[0] if isinstance(out, tuple) else out
        return hidden.squeeze(0)  # (words, 32)


def embed(bert: nn.Module, ids: list[int]) -> Tensor:
    with torch.no_grad():
        embeddings: Tensor = bert.embeddings(input_ids=torch.tensor([ids]))[0]  # type: ignore[operator]
    return embeddings


def test_solver_reaches_the_exact_optimum_of_the_linear_example(linear):
    x, regularization = linear
    interpreter = Interpreter(x, linear_state, regularization=regularization, words=list("abcde"))
    interpreter.optimize()
    np.testing.assert_allclose(interpreter.get_sigma(), linear_optimum(regularization), rtol=0.005)
    assert interpreter.fit_ is not None
    assert bool(interpreter.fit_.converged.all())
    np.testing.assert_allclose(interpreter.fit_.regime_index.item(), 1.0, rtol=0.05)


def test_adam_reaches_the_exact_optimum_of_the_linear_example(linear):
    x, regularization = linear
    interpreter = Interpreter(x, linear_state, regularization=regularization)
    interpreter.optimize(iteration=600, lr=0.05)
    np.testing.assert_allclose(interpreter.get_sigma(), linear_optimum(regularization), rtol=0.03)
    assert interpreter.fit_ is None


def test_rate_moves_sigma_by_its_square_root(linear):
    x, regularization = linear
    interpreter = Interpreter(x, linear_state, rate=0.4, regularization=regularization)
    interpreter.optimize()
    np.testing.assert_allclose(interpreter.get_sigma(), 2 * linear_optimum(regularization), rtol=0.005)


def test_scale_caps_sigma(linear):
    x, regularization = linear
    interpreter = Interpreter(x, linear_state, scale=0.002, regularization=regularization)
    interpreter.optimize()
    expected = np.minimum(linear_optimum(regularization), 0.002)
    np.testing.assert_allclose(interpreter.get_sigma(), expected, rtol=0.005)


def test_solver_and_adam_agree_on_bert_at_layer_3(bert):
    Phi = FirstLayers(bert)
    generator = torch.Generator().manual_seed(1)
    lengths = [3, 7, 5, 9, 4] * 6
    corpus = (embed(bert, torch.randint(50, (n,), generator=generator).tolist()) for n in lengths)
    regularization = calculate_regularization(corpus, Phi, reduced_axes=[0])
    assert regularization.shape == (1, 32)

    scale = 10 * bert.embeddings.word_embeddings.weight.std().item()  # type: ignore[union-attr, operator]
    x = embed(bert, [2, 17, 30, 8, 3])
    sigmas = []
    for budget in ({}, {"iteration": 150, "lr": 0.1}):
        interpreter = Interpreter(x, Phi, scale=scale, regularization=regularization)
        interpreter.optimize(**budget)
        sigmas.append(interpreter.get_sigma())
    assert sigmas[0].shape == (5,)
    assert (sigmas[0] < scale).all()
    np.testing.assert_allclose(sigmas[0], sigmas[1], rtol=0.1)


@pytest.mark.parametrize("budget", [{}, {"iteration": 5}])
@pytest.mark.parametrize("training", [True, False])
def test_a_module_and_the_global_generator_are_left_as_they_were(bert, budget, training):
    Phi = FirstLayers(bert)
    Phi.layers[0].requires_grad_(False)
    for module in Phi.modules():
        module.training = training
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    x = embed(bert, [2, 17, 3])
    before = [(p, p.detach().clone(), p.requires_grad) for p in Phi.parameters()]
    rng = torch.get_rng_state()

    interpreter = Interpreter(x, Phi)
    interpreter.optimize(**budget)

    for parameter, value, requires_grad in before:
        assert parameter.grad is None
        assert parameter.requires_grad == requires_grad
        assert torch.equal(parameter, value)
    assert all(module.training == training for module in Phi.modules())
    if not training:  # older torch draws for a dropout of probability 0 too
        assert torch.equal(rng, torch.get_rng_state())
    Phi.requires_grad_()


@pytest.mark.parametrize("budget", [{}, {"iteration": 20}])
def test_two_runs_agree_to_the_bit_also_under_no_grad(linear, budget):
    x, regularization = linear
    sigmas = []
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            interpreter = Interpreter(x, linear_state, regularization=regularization)
            interpreter.optimize(**budget)
        sigmas.append(interpreter.get_sigma())
    np.testing.assert_array_equal(*sigmas)


@pytest.mark.parametrize("budget", [{}, {"iteration": 20}])
def test_a_scalar_state_and_no_regularization_work(budget):
    interpreter = Interpreter(torch.ones(3, 4), lambda x: x.sum())
    interpreter.optimize(**budget)
    assert interpreter.get_sigma().shape == (3,)


def test_to_returns_the_interpreter_and_keeps_phi(linear):
    x, _ = linear
    Phi = nn.Linear(256, 2)
    interpreter = Interpreter(x, Phi)
    assert interpreter.to("cpu") is interpreter
    assert interpreter.Phi is Phi


# calculate_regularization


def test_regularization_is_numpys_std_over_the_samples():
    samples = torch.randn(20, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = np.std(samples.numpy() ** 2, axis=0)
    np.testing.assert_allclose(calculate_regularization(samples, torch.square), expected, rtol=1e-5)


@pytest.mark.parametrize("axes", [[0], [-2]])
def test_reduced_axes_are_averaged_first_and_may_be_ragged(axes):
    generator = torch.Generator().manual_seed(0)
    samples = [torch.randn(n, 4, generator=generator) for n in (2, 5, 3, 9)]
    expected = np.std([sample.mean(0, keepdim=True).numpy() for sample in samples], axis=0)
    actual = calculate_regularization(samples, lambda x: x, reduced_axes=axes, device="cpu")
    assert actual.shape == (1, 4)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_regularization_never_holds_two_states():
    alive: list[int] = []

    class Counted(Tensor):
        def __del__(self) -> None:
            alive.pop()

    def samples() -> Iterator[Tensor]:
        for i in range(10):
            assert len(alive) <= 2  # the state just folded in may still have a name
            yield torch.full((2, 3), float(i))

    def Phi(x: Tensor) -> Tensor:
        alive.append(1)
        return x.as_subclass(Counted)

    with torch._C.DisableTorchFunctionSubclass():
        calculate_regularization(samples(), Phi)


@pytest.mark.parametrize(
    ("samples", "axes", "match"),
    [
        ([], None, "0 sentence"),
        ([torch.ones(2, 3)], None, "1 sentence"),
        ([torch.ones(2, 3), torch.ones(4, 3)], None, "sentence 2.*reduced_axes"),
        ([torch.ones(2, 3), torch.ones(4, 3)], [1], "sentence 2"),
        ([torch.ones(2, 3)] * 2, [2], "has 2, but"),
    ],
)
def test_regularization_refuses(samples, axes, match):
    with pytest.raises(ValueError, match=match):
        calculate_regularization(samples, lambda x: x, reduced_axes=axes)


# token ids: the write-up's second example

IDS = [2, 17, 30, 8, 3]


def tables(bert: nn.Module) -> nn.Embedding:
    table: nn.Embedding = bert.get_input_embeddings()  # type: ignore[operator]
    return table


def corpus_of_ids(lengths: list[int]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(50, (n,), generator=generator).tolist() for n in lengths]


def test_the_second_example_of_the_write_up_runs_unchanged(bert):
    bert_model, input_ids, tokens = bert, IDS, list("abcde")
    bert_dataset = corpus_of_ids([5] * 20)

    def Phi_bert(x):
        with torch.no_grad():
            return bert_model(x, output_hidden_states=True)[2][3]

    interpreter = Interpreter(
        x=input_ids,
        Phi=Phi_bert,
        regularization=calculate_regularization(bert_dataset, Phi_bert),
        scale=10 * 0.1,
        words=tokens,
    )
    interpreter.optimize()

    states = [bert(torch.tensor([ids]), output_hidden_states=True)[2][3].tolist() for ids in bert_dataset]
    method = LayerInformationLoss(bert, tables(bert), bert.encoder.layer[2])
    expected = method.attribute(
        torch.tensor([IDS]),
        state_std=torch.tensor(np.std(states, axis=0)).float(),
        max_sigma=1.0,
        score="sigma",
        return_input_shape=False,
    )
    np.testing.assert_allclose(interpreter.get_sigma(), expected[0], rtol=0.05)  # standard errors are 1 %
    assert interpreter.fit_ is not None
    assert bool(interpreter.fit_.converged.all())


@pytest.mark.parametrize("budget", [{}, {"iteration": 20}])
@pytest.mark.parametrize(
    "form",
    [list, tuple, np.array, torch.tensor, lambda ids: torch.tensor([ids]), lambda ids: [ids]],
    ids=["list", "tuple", "array", "vector", "row", "list of one"],
)
def test_every_form_of_the_ids_gives_the_same_sigma_as_the_embeddings(bert, form, budget):
    corpus = corpus_of_ids([3, 5, 7])
    Phi = lambda ids: bert(ids, output_hidden_states=True).hidden_states[3]  # noqa: E731
    regularization = calculate_regularization(map(form, corpus), Phi, reduced_axes=[1])
    states = [bert(torch.tensor([ids]), output_hidden_states=True)[2][3].mean(1).tolist() for ids in corpus]
    np.testing.assert_allclose(regularization[:, 0], np.std(states, axis=0), rtol=1e-4)

    interpreter = Interpreter(form(IDS), Phi, scale=0.2, regularization=regularization)
    interpreter.optimize(**budget)
    of_embeddings = Interpreter(
        tables(bert)(torch.tensor(IDS)),
        lambda x: bert(inputs_embeds=x.unsqueeze(0), output_hidden_states=True).hidden_states[3],
        scale=0.2,
        regularization=regularization,
    )
    of_embeddings.optimize(**budget)
    assert torch.equal(interpreter.x, of_embeddings.x)
    np.testing.assert_allclose(interpreter.get_sigma(), of_embeddings.get_sigma(), rtol=1e-4)
    assert (interpreter.get_sigma() < 0.2).any()


def test_a_phi_that_takes_a_list_gets_a_list(bert):
    given = []

    def Phi(ids):
        given.append(ids)
        return bert(torch.tensor([ids])).last_hidden_state[0]

    interpreter = Interpreter(IDS, Phi)
    interpreter.optimize(iteration=2)
    assert all(ids is IDS for ids in given)
    assert interpreter.to("cpu").get_sigma().shape == (5,)


def test_the_hooks_are_gone_also_when_phi_fails(bert):
    calls = []

    def Phi(ids):
        calls.append(ids)
        if len(calls) > 4:
            raise RuntimeError("enough")
        return bert(ids)[0]

    with pytest.raises(RuntimeError, match="enough"):
        Interpreter(torch.tensor([IDS]), Phi).optimize()
    assert not tables(bert)._forward_hooks
    assert not torch.nn.modules.module._global_forward_hooks
    assert not torch.nn.modules.module._global_forward_pre_hooks


def test_a_plain_model_without_names_has_its_embedding_found_among_others():
    words, places, head = nn.Embedding(50, 8), nn.Embedding(9, 8), nn.Linear(8, 3)

    def Phi(ids):
        return head((words(ids) + places(torch.arange(len(ids)))).tanh())

    interpreter = Interpreter(torch.tensor(IDS), Phi)
    assert torch.equal(interpreter.x, words.weight[IDS])
    assert (interpreter.s, interpreter.d) == (5, 8)


def test_of_several_embeddings_that_see_the_ids_one_must_be_named(bert):
    word, other = nn.Embedding(50, 8), nn.Embedding(50, 4)
    model = nn.ModuleDict({"word": word, "other": other})
    Phi = lambda ids: torch.cat([word(ids), other(ids)], -1)  # noqa: E731
    with pytest.raises(
        ValueError, match=r"2 embeddings.*Embedding\(50, 8\), Embedding\(50, 4\).*`embedding`"
    ):
        Interpreter(torch.tensor(IDS), Phi)
    assert Interpreter(torch.tensor(IDS), Phi, embedding=model["other"]).d == 4

    twice = lambda ids: word(ids) + 2 * word(ids)  # noqa: E731
    with pytest.raises(ValueError, match=r"runs 2 times.*LayerCall\(module, call=0\)"):
        Interpreter(torch.tensor(IDS), twice)
    sigmas = []
    for call in (0, 1):
        interpreter = Interpreter(
            torch.tensor(IDS), twice, embedding=LayerCall(word, call), regularization=1.0
        )
        interpreter.optimize()
        sigmas.append(interpreter.get_sigma())
    np.testing.assert_allclose(sigmas[0], 2 * sigmas[1], rtol=1e-3)

    block = bert.embeddings
    assert torch.equal(Interpreter(IDS, lambda x: bert(x)[0], embedding=block).x, embed(bert, IDS))


@pytest.mark.parametrize(
    ("ids", "Phi", "embedding", "error", "match"),
    [
        (torch.tensor(IDS), lambda x: x.float(), None, ValueError, "no nn.Embedding.*`embedding`"),
        (
            IDS,
            lambda x: 1 / 0,
            None,
            TypeError,
            r"neither unchanged, as a list.*nor as a tensor of shape \(1, 5\)",
        ),
        (torch.tensor([IDS]), lambda x: 1 / 0, None, ZeroDivisionError, "division"),
        (IDS, lambda x: torch.ones(2), "word", TypeError, "`embedding` is 'word'"),
        (IDS, lambda x: torch.ones(2), nn.Embedding(2, 2), ValueError, "Embedding runs 0 times"),
    ],
)
def test_ids_that_cannot_be_embedded_are_refused(ids, Phi, embedding, error, match):
    with pytest.raises(error, match=match):
        Interpreter(ids, Phi, embedding=embedding)


def test_gradients_that_phi_cuts_off_for_good_are_named(bert):
    @torch.inference_mode()
    def inference(ids):
        return bert(ids)[0]

    with pytest.raises(ValueError, match="inference_mode"):
        Interpreter(IDS, inference).optimize()
    for budget in ({}, {"iteration": 2}):
        with pytest.raises(ValueError, match=r"without a gradient.*detach"):
            Interpreter(IDS, lambda ids: bert(ids)[0].detach()).optimize(**budget)


@pytest.mark.parametrize("budget", [{}, {"iteration": 50}])
def test_no_grad_inside_phi_changes_nothing(linear, budget):
    x, regularization = linear
    sigmas = []
    for Phi in (linear_state, torch.no_grad()(linear_state)):
        interpreter = Interpreter(x, Phi, regularization=regularization)
        interpreter.optimize(**budget)
        sigmas.append(interpreter.get_sigma())
    np.testing.assert_array_equal(*sigmas)


@pytest.mark.parametrize("budget", [{}, {"iteration": 600, "lr": 0.05}])
def test_elements_of_the_state_that_never_change_do_not_count(linear, budget):
    x, regularization = linear
    dead = torch.arange(256) % 4 == 0

    def Phi(x: Tensor) -> Tensor:
        return torch.where(dead, 0.0, linear_state(x))

    generator = torch.Generator().manual_seed(0)
    found = calculate_regularization(0.01 * torch.randn(1000, 5, 256, generator=generator), Phi)
    assert (found == 0).tolist() == dead.tolist()
    interpreter = Interpreter(x, Phi, regularization=found)
    interpreter.optimize(**budget)
    # each of a token's 256 elements has noise, and 3 in 4 of them affect the mean over the 192
    np.testing.assert_allclose(
        interpreter.get_sigma(), linear_optimum(regularization[~dead.numpy()]), rtol=0.03
    )


def test_a_model_in_training_mode_is_named_at_the_users_line(bert):
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1))
    with pytest.warns(UserWarning, match="training mode") as caught:
        Interpreter(torch.ones(3, 4), lambda x: model(x)).optimize(iteration=1)
    assert caught[0].filename == __file__


# the unit tests of the authors' code (microsoft/nlp-recipes, tests/unit/test_interpreter.py)


def fixed_length_Phi(x: Tensor) -> Tensor:
    return x[0] * 10 + x[1] * 20 - x[2] * 20 - x[3] * 10


def variable_length_Phi(function):
    return lambda x: function(x.unsqueeze(0))[0][0]


@pytest.fixture(params=["fixed", "variable"])
def upstream(request) -> Interpreter:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x, function = torch.randn(4, 10), nn.LSTM(10, 10)
        if request.param == "fixed":
            return Interpreter(x, fixed_length_Phi, regularization=torch.randn(10))  # negative numbers too
        return Interpreter(x, variable_length_Phi(function), regularization=torch.randn(1, 10))


def test_upstream_fixed_length_regularization():
    dataset = torch.randn(10, 4, 10, generator=torch.Generator().manual_seed(0))
    expected = np.std([fixed_length_Phi(x).tolist() for x in dataset], axis=0)
    regular = calculate_regularization(dataset, fixed_length_Phi)
    assert np.sum(np.abs(regular - expected)) < 1e-5


def test_upstream_variable_length_regularization():
    Phi = variable_length_Phi(nn.LSTM(10, 10))
    dataset = [torch.randn(length, 10) for length in (5, 8, 6, 9, 7)]
    expected = np.std([np.mean(Phi(x).tolist(), axis=0, keepdims=True) for x in dataset], axis=0)
    assert np.sum(np.abs(calculate_regularization(dataset, Phi, reduced_axes=[0]) - expected)) < 1e-5


def test_upstream_attributes():
    x, regular = torch.randn(4, 10), torch.randn(10)
    interpreter = Interpreter(x, fixed_length_Phi, regularization=regular)
    assert interpreter.s == 4
    assert interpreter.d == 10
    assert interpreter.regular.tolist() == regular.tolist()


@pytest.mark.parametrize("budget", [{"iteration": 10}, {}])
def test_upstream_training_moves_the_ratio_and_not_the_regularization(upstream, budget):
    init_ratio, init_regular = upstream.ratio + 0.0, upstream.regular + 0.0
    upstream.optimize(**budget)
    assert torch.sum(torch.abs(upstream.ratio - init_ratio)) > 1e-5
    assert torch.sum(torch.abs(upstream.regular - init_regular)) < 1e-5
    sigma = upstream.get_sigma()
    assert sigma.shape == (4,)
    np.testing.assert_allclose(torch.sigmoid(upstream.ratio)[:, 0] * upstream.scale, sigma, rtol=1e-5)


# errors


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"x": torch.ones(1, 3, 4)}, ValueError, r"\(1, 3, 4\)"),
        ({"x": torch.ones(0, 4)}, ValueError, r"\(0, 4\)"),
        ({"x": torch.ones(3, 4, dtype=torch.long)}, ValueError, r"\(3, 4\).*one sentence"),
        ({"x": torch.ones(3, 4, dtype=torch.bool)}, TypeError, "bool"),
        ({"x": np.ones((3, 4))}, TypeError, "ndarray"),
        ({"x": []}, TypeError, "list"),
        ({"x": [[1, 2], [3]]}, TypeError, "list"),
        ({"embedding": nn.Embedding(3, 4)}, ValueError, "`embedding`.*leave it out"),
        ({"x": torch.full((3, 4), torch.nan)}, ValueError, "NaN"),
        ({"scale": 0.0}, ValueError, "`scale` is 0.0"),
        ({"scale": float("inf")}, ValueError, "`scale` is inf"),
        ({"rate": -1.0}, ValueError, "`rate` is -1.0"),
        ({"words": ["a", "b"]}, ValueError, "2 entries for 3 rows"),
        ({"regularization": np.zeros(4)}, ValueError, "zero everywhere"),
        ({"regularization": np.full(4, np.nan)}, ValueError, "NaN"),
    ],
)
def test_constructor_refuses(arguments, error, match):
    with pytest.raises(error, match=match):
        Interpreter(**({"x": torch.ones(3, 4), "Phi": lambda x: x.sum(0)} | arguments))


@pytest.mark.parametrize("budget", [{}, {"iteration": 2}])
def test_regularization_that_does_not_broadcast_is_refused(budget):
    interpreter = Interpreter(torch.ones(3, 4), lambda x: x.sum(0), regularization=np.ones((3, 4)))
    with pytest.raises(ValueError, match=r"\(3, 4\) does not broadcast to the state's \(4,\)"):
        interpreter.optimize(**budget)


@pytest.mark.parametrize("budget", [{"iteration": 0}, {"lr": 0.0}, {"iteration": 3, "lr": -1.0}])
def test_budget_must_be_positive(budget):
    with pytest.raises(ValueError, match="must be positive"):
        Interpreter(torch.ones(3, 4), lambda x: x).optimize(**budget)


@pytest.mark.parametrize("budget", [{}, {"iteration": 2}])
def test_nan_from_the_model_and_a_state_that_is_no_float_tensor_are_errors(budget):
    with pytest.raises(ValueError, match="NaN"):
        Interpreter(torch.ones(3, 4), lambda x: x * torch.nan).optimize(**budget)
    with pytest.raises(ValueError, match="NaN"):
        Interpreter(torch.zeros(3, 4), lambda x: 1 + torch.sqrt(x)).optimize(**budget)
    with pytest.raises(TypeError, match="tuple"):
        Interpreter(torch.ones(3, 4), lambda x: (x,)).optimize(**budget)
    with pytest.raises(TypeError, match="int64"):
        Interpreter(torch.ones(3, 4), lambda x: x.long()).optimize(**budget)


def test_sigma_before_optimize_is_an_error():
    interpreter = Interpreter(torch.ones(3, 4), lambda x: x)
    with pytest.raises(RuntimeError, match="optimize"):
        interpreter.get_sigma()
    with pytest.raises(RuntimeError, match="optimize"):
        interpreter.visualize()


# the picture


@pytest.mark.parametrize("words", [["a", "$x_", "<b>"], None])
def test_visualize_returns_a_figure_with_the_words_and_shows_nothing(words, monkeypatch):
    shown: list[bool] = []
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: shown.append(True))
    monkeypatch.delattr("sys.ps1", raising=False)
    interpreter = Interpreter(torch.ones(3, 4), lambda x: x, words=words)
    interpreter.optimize(iteration=2)
    with (
        matplotlib.rc_context({"interactive": False}),
        pytest.warns(UserWarning, match=r"returns the figure.*savefig") as caught,
    ):
        figure = interpreter.visualize()
    assert caught[0].filename == __file__
    assert isinstance(figure, Figure)
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == (words or ["0", "1", "2"])
    figure.canvas.draw()
    assert not shown


def test_visualize_shows_in_an_interactive_session(monkeypatch):
    import matplotlib.pyplot as plt

    shown: list[bool] = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(True))
    monkeypatch.setattr("sys.ps1", ">>> ", raising=False)
    interpreter = Interpreter(torch.ones(3, 4), lambda x: x)
    interpreter.optimize(iteration=2)
    with matplotlib.rc_context({"backend": "agg"}):
        plt.close(interpreter.visualize())
    assert shown
