"""The control variates that draws get from earlier ones: mean 0, less variance, nobody else's business."""

import pytest
import torch

from interp_plugin.method.controls import quadratic_controls
from interp_plugin.method.sampling import TokenGroups, token_groups

TOKENS, WIDTH, DRAWS = 4, 24, 12
EVEN = torch.ones(1, TOKENS)  # the g that is foreseen


def quadratic(rank: int = 3) -> torch.Tensor:
    """A of D = eps^T A eps, of few directions, (N, N)."""
    root = torch.randn(rank, TOKENS * WIDTH, generator=torch.Generator().manual_seed(9))
    return root.T @ root / root.square().sum()


def regular(batch: int = 1, mask: torch.Tensor | None = None) -> TokenGroups:
    return token_groups([torch.zeros(batch, TOKENS, WIDTH)], token_mask=mask)


def sample(matrix: torch.Tensor, draws: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Stationarity (S, 1, T), gradient (S, 1, N) and noise (S, N)."""
    noise = torch.randn(draws, len(matrix), generator=torch.Generator().manual_seed(seed))
    pull = 2 * noise @ matrix
    return (pull * noise).reshape(draws, 1, TOKENS, WIDTH).sum(-1), pull.unsqueeze(1), noise


def test_the_mean_stays_and_the_variance_falls() -> None:
    matrix, groups = quadratic(), regular()
    truth = 2 * torch.stack([block.trace() for block in blocks(matrix)])
    plain, left = [], []
    for seed in range(400):
        stationarity, pull, noise = sample(matrix, DRAWS, seed)
        removed = quadratic_controls(stationarity, pull, noise, groups, pull[:0], EVEN)
        plain.append(stationarity.mean(0)[0] - truth)
        left.append((stationarity - removed).mean(0)[0] - truth)
    before, after = torch.stack(plain), torch.stack(left)
    assert after.square().mean() < 0.8 * before.square().mean()
    assert (after.mean(0).abs() < 4 * after.std(0) / len(after) ** 0.5).all()


def test_tokens_of_one_element_keep_their_mean() -> None:
    """sum_i a_i eps_i^2 has the stationarities 2 a_i; a control made of the draws' own g left 8 % too much."""
    weights = torch.tensor([1.0, 2.0, 3.0])
    groups = token_groups([torch.zeros(1, 3, 1)])
    noise = torch.randn(3000, 6, 3, generator=torch.Generator().manual_seed(0))
    left = []
    for draws in noise:
        pull = (2 * weights * draws).unsqueeze(1)
        stationarity = pull * draws.unsqueeze(1)
        removed = quadratic_controls(stationarity, pull, draws, groups, pull[:0], 2 * weights[None])
        left.append((stationarity - removed).mean(0)[0] / (2 * weights))
    assert torch.stack(left).mean().item() == pytest.approx(1, abs=0.03)  # standard error 0.003
    assert torch.stack(left).std() < 0.5 * (noise.square().mean(1)).std()


def test_a_token_of_which_nothing_is_expected_gets_no_noise_of_its_own_size() -> None:
    stationarity, pull, noise = sample(quadratic(), DRAWS, 0)
    stationarity[..., 1], pull[..., WIDTH : 2 * WIDTH] = 0, 0
    expected = torch.tensor([[1.0, 0.0, 1.0, 1.0]])
    removed = quadratic_controls(stationarity, pull, noise, regular(), pull[:0], expected)
    assert not removed[..., 1].any()
    assert removed[..., [0, 2, 3]].all()


def blocks(matrix: torch.Tensor) -> list[torch.Tensor]:
    steps = range(0, TOKENS * WIDTH, WIDTH)
    return [matrix[start : start + WIDTH, start : start + WIDTH] for start in steps]


def test_earlier_gradients_help() -> None:
    matrix, groups = quadratic(rank=12), regular()
    left = []
    for count in (0, 40):
        spreads = []
        for seed in range(40):
            stationarity, pull, noise = sample(matrix, DRAWS, seed)
            teachers = sample(matrix, 40, 1000 + seed)[1][:count]
            removed = quadratic_controls(stationarity, pull, noise, groups, teachers, EVEN)
            spreads.append((stationarity - removed).var(0).mean())
        left.append(torch.stack(spreads).mean())
    assert left[1] < 0.85 * left[0]


def test_what_the_draws_do_not_explain_is_left_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    stationarity = torch.randn(DRAWS, 1, TOKENS, generator=generator)
    pull = torch.randn(DRAWS, 1, TOKENS * WIDTH, generator=generator)
    noise = torch.randn(DRAWS, TOKENS * WIDTH, generator=generator)
    removed = quadratic_controls(stationarity, pull, noise, regular(), pull[:0], EVEN)
    assert (stationarity - removed).var(0).sum() <= stationarity.var(0).sum()


@pytest.mark.parametrize("draws", [1, 2])
def test_too_few_draws_teach_nothing(draws: int) -> None:
    stationarity, pull, noise = sample(quadratic(), draws, 0)
    assert not quadratic_controls(stationarity, pull, noise, regular(), pull[:0], EVEN).any()


def test_an_example_does_not_see_its_neighbours_or_masked_tokens() -> None:
    matrix = quadratic()
    stationarity, pull, noise = sample(matrix, DRAWS, 0)
    alone = quadratic_controls(stationarity, pull, noise, regular(), pull[:0], EVEN)
    # a neighbour of another scale, and a token more, masked: its gradient and stationarity are 0
    more = torch.cat([noise, torch.randn(DRAWS, WIDTH, generator=torch.Generator().manual_seed(5))], 1)
    longer = torch.nn.functional.pad(pull, (0, WIDTH)).repeat(1, 2, 1)
    wider = torch.nn.functional.pad(stationarity, (0, 1)).repeat(1, 2, 1)
    longer[:, 1] *= 100
    wider[:, 1] *= 7
    mask = torch.tensor([[True] * TOKENS + [False]]).expand(2, -1)
    groups = token_groups([torch.zeros(2, TOKENS + 1, WIDTH)], token_mask=mask)
    both = quadratic_controls(wider, longer, more, groups, longer[:0], torch.ones(2, TOKENS + 1) * mask)
    assert torch.allclose(both[:, :1, :TOKENS], alone, rtol=1e-4, atol=1e-6)
    assert not both[:, :, TOKENS].any()


def test_groups_of_any_shape_are_multiplied_alike() -> None:
    index = torch.arange(TOKENS).repeat_interleave(WIDTH)
    left, right = torch.randn(3, 2, len(index)), torch.randn(5, len(index))
    even = regular(2)
    mixed = TokenGroups(index.flip(0).repeat(2, 1), even.active)
    assert even.width == WIDTH
    assert mixed.width is None
    assert torch.allclose(mixed.products(left, right), even.products(left, right).flip(-1), atol=1e-4)
    assert torch.allclose(mixed.squares(left), even.squares(left).flip(-1), atol=1e-4)


def test_rounding_is_no_control_where_one_token_alone_matters() -> None:
    matrix = quadratic()
    matrix[WIDTH:], matrix[:, WIDTH:] = 0, 0
    stationarity, pull, noise = sample(matrix, DRAWS, 0)
    removed = quadratic_controls(stationarity, pull, noise, regular(), pull[:0], EVEN)
    shaken = quadratic_controls(
        stationarity * (1 + 1e-6), pull * (1 + 1e-6), noise, regular(), pull[:0], EVEN
    )
    assert torch.allclose(removed, shaken, rtol=1e-3, atol=1e-6)
