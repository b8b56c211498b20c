# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # A state whose answer is known
#
# Five words of 256 numbers each, and the state `W @ x` of the original write-up, with W = (10, 20, 5, -20, -10).
# The state is linear, so the best noise has a closed form: there is a truth to be right or wrong about.

# %%
import time

import torch
from torch import nn

from interp_plugin import InformationLoss, Interpreter, calculate_regularization

WEIGHT = torch.tensor([10.0, 20.0, 5.0, -20.0, -10.0])
RATE, CAP = 0.1, 0.1  # the cap is 10 standard deviations of the words, as the write-up advises
torch.manual_seed(0)
corpus = 0.01 * torch.randn(1000, 5, 256)
x = 0.01 * torch.randn(5, 256)


def Phi(x):
    return WEIGHT @ x


regularization = calculate_regularization(corpus, Phi)  # v, the spread of the state: (256,)
v = torch.from_numpy(regularization)

# %% [markdown]
# ## The exact optimum
#
# Noise of standard deviation sigma_i on word i moves every element of the state by W_i sigma_i eps, so
#
# * D(sigma) = sum_i c_i sigma_i^2 with c_i = W_i^2 mean(1 / v^2),
# * L(sigma) = D(sigma) - (rate / n) sum_i log sigma_i is least where 2 c_i sigma_i^2 = rate / n.

# %%
n, K = x.shape
c = WEIGHT.square() * v.pow(-2).mean()
exact = (RATE / (2 * n * c)).sqrt()


def L(sigma):
    return float((c * sigma.square()).sum() - RATE * sigma.log().mean())


torch.manual_seed(1)
others = [exact * (1 + 0.05 * torch.randn(5)) for _ in range(200)]
print("exact sigma:", [f"{value:.5f}" for value in exact.tolist()])
assert all(L(exact) < L(other) for other in others)  # it is the minimum
assert torch.allclose(exact * WEIGHT.abs(), (exact * WEIGHT.abs()).mean())  # sigma is inverse to |W|

# %% [markdown]
# ## Four ways to it
#
# * the class that takes the place of Captum's `IntegratedGradients`;
# * the seed's interface, `Interpreter`, with the same solver behind it;
# * the same interface with Adam, one draw of noise a step, asked for by `iteration` and `lr`;
# * the loop as it was published: the same Adam, but from a random start, and the step with the lowest loss wins,
#   which is the step whose draw was luckiest.

# %%


def by_attribution():
    method = InformationLoss(lambda rows: torch.einsum("n,bnk->bk", WEIGHT, rows))
    sigma = method.attribute(
        x.unsqueeze(0), state_std=v, rate=RATE, max_sigma=CAP, score="sigma", return_input_shape=False
    )
    return sigma[0]


def by_interpreter(**settings):
    interpreter = Interpreter(x, Phi, scale=CAP, rate=RATE, regularization=regularization)
    interpreter.optimize(**settings)
    return torch.from_numpy(interpreter.get_sigma())


def published(iteration, lr):
    ratio = torch.randn(len(x), 1).requires_grad_()
    optimizer, best, lowest = torch.optim.Adam([ratio], lr=lr), None, float("inf")
    for _ in range(iteration):
        share = ratio.sigmoid()
        moved = Phi(x + CAP * share * torch.randn_like(x)) - Phi(x)
        loss = (moved / v).square().mean() - RATE * share.log().mean()
        if loss.item() < lowest:
            best, lowest = CAP * share.detach().squeeze(1), loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return best


ways = {
    "InformationLoss": by_attribution,
    "Interpreter": by_interpreter,
    "Interpreter, 5000 steps of Adam": lambda: by_interpreter(iteration=5000, lr=0.01),
    "the published loop, 5000 steps": lambda: published(iteration=5000, lr=0.01),
}
print(f"{'error of sigma in %, W =':<32}" + "".join(f"{weight:>9.0f}" for weight in WEIGHT.tolist()))
worst, seconds = {}, {}
for name, way in ways.items():
    start = time.perf_counter()
    error = 100 * (way() / exact - 1)
    seconds[name], worst[name] = time.perf_counter() - start, float(error.abs().max())
    print(f"{name:<32}" + "".join(f"{value:>9.3f}" for value in error.tolist()) + f"  {seconds[name]:.3f} s")

# %% [markdown]
# The solver is exact here, and it takes its noise from a private generator, so both interfaces give the same
# numbers.  Adam gets within a few tenths of a per cent, because `Interpreter` starts it from little noise and returns
# the mean of log sigma over the later half of the steps.  The luckiest step is several per cent off.

# %%
assert worst["InformationLoss"] < 0.01 and worst["Interpreter"] < 0.01  # per cent
assert torch.allclose(by_attribution(), by_interpreter(), rtol=1e-5)
assert worst["Interpreter, 5000 steps of Adam"] < 1 < 3 < worst["the published loop, 5000 steps"]
assert seconds["Interpreter"] < seconds["the published loop, 5000 steps"]

# %% [markdown]
# ## From sigma to nats
#
# Information kept is K/2 log(1 + tau^2 / sigma^2), less the same at the cap; tau is the spread of the words' numbers.
# A word with twice the weight bears half the noise: where that is small against tau, it keeps nearly K log 2 = 177.4
# nats more.  The sign of the weight plays no part: what is kept says how exactly the state still knows a word, not
# where it pushes.
# A word that the state does not use bears all the noise it is given, and keeps nothing.

# %%
module = nn.Linear(5, 1, bias=False)
module.weight.data = torch.cat([WEIGHT[:4], torch.zeros(1)]).unsqueeze(0)  # the last word is cut off
kept = InformationLoss(lambda rows: module(rows.transpose(1, 2)).squeeze(-1)).attribute(
    x.unsqueeze(0), state_std=v, max_sigma=CAP, score="kept", return_input_shape=False
)[0]
print("W    ", [f"{value:7.0f}" for value in module.weight[0].tolist()])
print("nats ", [f"{value:7.1f}" for value in kept.tolist()])
sigma = (RATE / (2 * 5 * (module.weight[0] ** 2).detach() * (1 / v**2).mean())).sqrt()  # the exact optimum
tau = x.std(unbiased=False)
expected = K / 2 * ((1 + (tau / sigma) ** 2) / (1 + (tau / CAP) ** 2)).log()
assert torch.allclose(kept[:4], expected[:4].float(), atol=0.1)
assert 0.9 * K * torch.tensor(2.0).log() < kept[1] - kept[0] < K * torch.tensor(2.0).log()
assert abs(float(kept[1] - kept[3])) < 0.1  # 20 and -20
assert kept[4] == 0
