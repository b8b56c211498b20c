"""Where the state is read, and its spread over a corpus."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from interp_plugin.method.perturbation import LayerCall, NoisyModel, RunningStd, gradients_on, select


@given(sizes=st.lists(st.integers(0, 6), min_size=1, max_size=6), seed=st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_running_std_equals_numpy_over_all_samples(sizes, seed):
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randn(n, 3, generator=generator) * 5 + 100 for n in [*sizes, 2]]
    running = RunningStd()
    for part in parts:
        running.update(part)
    everything = torch.cat(parts).double().numpy()
    assert np.allclose(running.std().numpy(), everything.std(0), rtol=1e-5, atol=1e-6)
    assert np.allclose(running.mean().numpy(), everything.mean(0), rtol=1e-6)


def test_running_std_takes_the_unmasked_positions_of_ragged_texts():
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(2, length, 4, generator=generator) for length in (3, 5)]
    masks = [torch.rand(2, length, generator=generator) < 0.7 for length in (3, 5)]
    running = RunningStd()
    for state, mask in zip(states, masks):
        running.update(state, mask)
    samples = torch.cat([state[mask] for state, mask in zip(states, masks)])
    assert torch.allclose(running.std(), samples.std(0, unbiased=False))


def test_running_std_holds_no_list_of_states():
    running = RunningStd()
    for _ in range(3):
        running.update(torch.randn(10, 4))
    held = sum(v.numel() for v in vars(running).values() if isinstance(v, torch.Tensor))
    assert held == 2 * 4


def test_ragged_states_without_a_mask_are_refused():
    running = RunningStd()
    running.update(torch.zeros(1, 3, 4))
    with pytest.raises(ValueError, match="give a mask"):
        running.update(torch.zeros(1, 5, 4))


def test_the_forward_stops_where_the_state_is_read():
    calls = []

    class Tail(nn.Module):
        def forward(self, x):
            calls.append(1)
            return x

    layer, tail = nn.Linear(3, 2), Tail()
    model = NoisyModel(lambda inputs, rows: tail(layer(*inputs)), (torch.randn(2, 3),), state_layer=layer)
    model.clean()
    assert len(calls) == 1  # once in full, to see that the layer fires exactly once
    state = model.perturb((torch.randn(2, 3),), torch.arange(2))
    assert len(calls) == 1
    assert state.shape == (2, 2)
    assert not layer._forward_hooks


def test_noise_at_a_layer_replaces_its_output_and_keeps_the_rest_of_a_tuple():
    class Pair(nn.Module):
        def forward(self, x):
            return x * 2, "kept"

    pair = Pair()

    def forward(inputs, rows):
        value, word = pair(*inputs)
        assert word == "kept"
        return value + 1

    model = NoisyModel(forward, (torch.ones(2, 3),), noise_layer=pair)
    model.clean()
    assert torch.equal(model.origin[0], torch.full((2, 3), 2.0))
    state = model.perturb((torch.full((1, 3), 7.0),), torch.tensor([1]))
    assert torch.equal(state, torch.full((1, 3), 8.0))


def test_selectors_index_after_the_batch_dimension():
    state = torch.arange(24.0).reshape(2, 3, 4)
    assert torch.equal(select(state, 1), state[:, 1])
    assert torch.equal(select(state, (slice(0, 2), 3)), state[:, 0:2, 3])
    assert torch.equal(select(state, lambda s: s[:, -1]), state[:, -1])


class Twice(nn.Module):
    """One block that runs twice, as ALBERT's runs many times."""

    def __init__(self):
        super().__init__()
        self.block = nn.Linear(3, 3)
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.block(torch.tanh(self.block(x))))


def test_a_layer_call_reads_one_run_of_a_shared_layer():
    model, x = Twice(), torch.randn(2, 3)
    for call, expected in enumerate([model.block(x), model.block(torch.tanh(model.block(x)))]):
        noisy = NoisyModel(
            lambda inputs, rows: model(*inputs), (x,), state_layer=LayerCall(model.block, call)
        )
        assert torch.equal(noisy.clean()[0], expected)
        assert torch.equal(noisy.perturb((x,), torch.arange(2)), expected)


def test_noise_at_one_run_of_a_shared_layer_leaves_the_other_alone():
    model, x = Twice(), torch.randn(2, 3)
    noisy = NoisyModel(
        lambda inputs, rows: model(*inputs), (x,), LayerCall(model.block, 0), LayerCall(model.block, 1)
    )
    noisy.clean()
    moved = noisy.origin[0] + 1
    assert torch.equal(noisy.perturb((moved,), torch.arange(2)), model.block(torch.tanh(moved)))


def test_the_input_of_a_layer_is_a_site():
    model, x = Twice(), torch.randn(2, 3)
    noisy = NoisyModel(
        lambda inputs, rows: model(*inputs), (x,), state_layer=LayerCall(model.head, side="input")
    )
    assert torch.equal(noisy.clean()[0], model.block(torch.tanh(model.block(x))))


def test_a_run_that_does_not_happen_is_refused():
    model, x = Twice(), torch.randn(2, 3)
    noisy = NoisyModel(lambda inputs, rows: model(*inputs), (x,), state_layer=LayerCall(model.block, 2))
    with pytest.raises(ValueError, match="no run 2"):
        noisy.clean()


def test_several_sites_are_read_in_one_forward():
    model, x = Twice(), torch.randn(2, 3)
    noisy = NoisyModel(lambda inputs, rows: model(*inputs), (x,))
    sites = [LayerCall(model.block, 0), LayerCall(model.block, 1), None]
    singly = [noisy.at(site).clean()[0] for site in sites]
    assert all(map(torch.equal, noisy.read(sites), singly))
    assert all(map(torch.equal, noisy.perturbed((x,), torch.arange(2), sites), singly))


@pytest.mark.parametrize("start", [True, False])
def test_gradients_stay_on_and_are_as_they_were_afterwards(start: bool) -> None:
    @torch.no_grad()
    def decorated(x: Tensor) -> Tensor:
        return 2 * x

    x = torch.ones(2, requires_grad=True)
    with torch.set_grad_enabled(start):
        with gradients_on():
            with torch.no_grad():
                assert (2 * x).requires_grad
            assert decorated(x).requires_grad
            with torch.set_grad_enabled(False), torch.enable_grad():
                assert (2 * x).requires_grad
            torch.set_grad_enabled(mode=False)
            assert (2 * x).requires_grad
            with torch.inference_mode():
                assert (2 * x).is_inference()
        assert torch.is_grad_enabled() == start
        with pytest.raises(KeyError), gradients_on(), torch.no_grad():
            raise KeyError
        assert torch.is_grad_enabled() == start
