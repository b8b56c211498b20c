"""What the amortised head records in a forward pass, against the model's attention weights and plain sums."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModel, BertConfig, GPT2Config, LlamaConfig, PretrainedConfig

from interp_plugin.amortised.head import LEAST_ATTENTION, Recorder

TOKENS, HEADS = 7, 4
MASK = torch.ones(3, TOKENS, dtype=torch.bool)
MASK[1, 5:] = False
IDS = torch.randint(0, 50, (3, TOKENS), generator=torch.Generator().manual_seed(0))
SPECIAL = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}

CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "bert": lambda: BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=HEADS, intermediate_size=64, vocab_size=50
    ),
    "llama, heads share keys": lambda: LlamaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=HEADS, num_key_value_heads=2, intermediate_size=64,
        vocab_size=50, **SPECIAL,
    ),
    "gpt2": lambda: GPT2Config(n_embd=32, n_layer=2, n_head=HEADS, vocab_size=50, **SPECIAL),
}  # fmt: skip


def seen(model: nn.Module, *batches: slice) -> Tensor:
    with torch.no_grad(), Recorder(model, MASK) as inside:
        for rows in batches or (slice(None),):
            model(IDS[rows], attention_mask=MASK[rows].long())
    return inside.numbers()


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("name", CONFIGS)
def test_recorded_attention_equals_the_models_output(name: str, kernel: str) -> None:
    torch.manual_seed(0)
    plain = AutoModel.from_config(CONFIGS[name](), attn_implementation="eager").eval()
    model = AutoModel.from_config(CONFIGS[name](), attn_implementation=kernel).eval()
    model.load_state_dict(plain.state_dict())
    found = seen(model)
    given = plain(IDS, attention_mask=MASK.long(), output_attentions=True).attentions
    for weights in given:
        got = torch.zeros(3, TOKENS, HEADS)
        own = torch.zeros(3, TOKENS, HEADS)
        for b, i in MASK.nonzero().tolist():
            queries = MASK[b].nonzero()[:, 0]
            got[b, i] = weights[b, :, queries, i].square().sum(1).sqrt()
            own[b, i] = weights[b, :, i, i]
        expected = (torch.cat([got, own], -1) + LEAST_ATTENTION).log()[MASK]
        gaps = [(part - expected).abs().max() for part in found[MASK].unfold(1, 2 * HEADS, 1).unbind(1)]
        assert min(gaps) < 1e-5


def test_the_spread_before_every_normalisation_is_recorded() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Tanh(), nn.RMSNorm(4))
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1))
    with Recorder(net, torch.ones(2, 3, dtype=torch.bool)) as inside:
        net(x)
    first = net[0](x)
    then = net[2](net[1](first))
    expected = torch.stack(
        [(y - y.mean(-1, keepdim=True)).square().mean(-1).sqrt() for y in (first, then)], -1
    )
    torch.testing.assert_close(inside.numbers(), expected.log())


def test_several_forwards_are_rows_of_one_batch() -> None:
    torch.manual_seed(0)
    model = AutoModel.from_config(CONFIGS["bert"]()).eval()
    parts = seen(model, slice(0, 2), slice(2, 3))
    torch.testing.assert_close(parts[MASK], seen(model)[MASK])


def test_padding_changes_nothing() -> None:
    torch.manual_seed(0)
    model = AutoModel.from_config(CONFIGS["bert"]()).eval()
    with torch.no_grad(), Recorder(model, MASK[1:2, :5]) as alone:
        model(IDS[1:2, :5], attention_mask=torch.ones(1, 5, dtype=torch.long))
    torch.testing.assert_close(seen(model)[1, :5], alone.numbers()[0])


@pytest.mark.parametrize("way", ["causal", "bool", "scale"])
def test_arguments_of_the_fused_kernel_are_respected(way: str) -> None:
    q, k, v = torch.randn(3, 1, 2, 4, 8, generator=torch.Generator().manual_seed(2))
    mask = torch.ones(4, 4, dtype=torch.bool).tril()
    arguments = {"causal": {"is_causal": True}, "bool": {"attn_mask": mask}, "scale": {"scale": 0.3}}[way]

    class Attend(nn.Module):
        def forward(self, value: Tensor) -> Tensor:
            return scaled_dot_product_attention(q, k, value, **arguments)

    model = Attend()
    with Recorder(model, torch.ones(1, 4, dtype=torch.bool)) as inside:
        model(v)
    # the kernel's weights are its output for unit vectors as values
    weights = scaled_dot_product_attention(q, k, torch.eye(4).expand(1, 2, 4, 4), **arguments)
    got, own = weights.square().sum(2).sqrt(), weights.diagonal(dim1=2, dim2=3)
    expected = (torch.cat([got, own], 1) + LEAST_ATTENTION).log().transpose(1, 2)
    torch.testing.assert_close(inside.numbers(), expected)


def test_a_model_without_either_gives_no_numbers_and_keeps_no_hooks() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    with Recorder(net, torch.ones(2, 3, dtype=torch.bool)) as inside:
        net(torch.zeros(2, 3, 4))
    assert inside.numbers().shape == (2, 3, 0)
    assert not net._forward_pre_hooks and not net._forward_hooks


def test_hooks_are_gone_after_an_error() -> None:
    net = nn.Sequential(nn.LayerNorm(4))
    with pytest.raises(RuntimeError), Recorder(net, torch.ones(2, 3, dtype=torch.bool)):
        net(torch.zeros(2, 3, 5))
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in net.modules())
