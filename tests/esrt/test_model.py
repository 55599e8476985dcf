"""The torch model: batches, windows of tokens, tensor names, greedy decoding."""

import dataclasses

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoTokenizer,
    Gemma3ForCausalLM,
    PreTrainedTokenizerFast,
    WhisperConfig,
)
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from esrt.checkpoint import Checkpoint, random_checkpoint
from esrt.config import ModelConfig, named_config
from esrt.languages import direction
from esrt.model import (
    EdgeModel,
    Projector,
    QFormerAdapter,
    SpeechEncoder,
    generate_greedy,
    join_features_and_text,
)
from esrt.prompt import separator, target_text
from tests.tiny_checkpoint import DIRECTIONS, SENTENCES, TINY, features

MIXED = (8, 80, 16, 400, 88)


def lively(config: ModelConfig, seed: int = 0) -> EdgeModel:
    """A model with random weights so large that its features depend on the input."""
    torch.manual_seed(seed)
    model = EdgeModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn_like(parameter) * parameter[0].numel() ** -0.5)
    return model


def mixed_batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    frames = torch.tensor(MIXED)
    random = torch.Generator().manual_seed(seed)
    return torch.randn(len(MIXED), 128, max(MIXED), generator=random), frames


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "offset bias"])
def model(request: pytest.FixtureRequest) -> EdgeModel:
    q_former = dataclasses.replace(TINY.q_former, layers=2, offset_bias=request.param)
    return lively(dataclasses.replace(TINY, q_former=q_former))


@torch.inference_mode()
def test_each_row_of_a_mixed_batch_is_as_alone(model: EdgeModel) -> None:
    mel, frames = mixed_batch()
    together = model(mel, frames)
    assert together.isfinite().all()
    for row, length in enumerate(MIXED):
        alone = model(mel[row : row + 1, :, :length])
        tokens = model.config.tokens(length)
        assert alone.shape[1] == tokens
        torch.testing.assert_close(together[row, :tokens], alone[0], rtol=0, atol=1e-5)


@torch.inference_mode()
def test_learned_queries_in_a_mixed_batch_are_as_alone() -> None:
    q_former = dataclasses.replace(
        TINY.q_former, queries=5, stride=None, overlap=0, offset_bias=False
    )
    model = lively(dataclasses.replace(TINY, q_former=q_former))
    mel, frames = mixed_batch()
    together = model(mel, frames)
    for row, length in enumerate(MIXED):
        alone = model(mel[row : row + 1, :, :length])
        torch.testing.assert_close(together[row], alone[0], rtol=0, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("content", [0.0, 1.0, -1e4])
def test_padding_does_not_change_the_output(model: EdgeModel, content: float) -> None:
    mel, frames = mixed_batch()
    other = mel.clone()
    for row, length in enumerate(MIXED):
        other[row, :, length:] = content
    expected, found = model(mel, frames), model(other, frames)
    for row, length in enumerate(MIXED):
        tokens = model.config.tokens(length)
        torch.testing.assert_close(found[row, :tokens], expected[row, :tokens], rtol=0, atol=1e-6)


@torch.inference_mode()
def test_features_follow_the_speech(model: EdgeModel) -> None:
    """Features differ between inputs; otherwise no tolerance in this file could fail."""
    one, other = (torch.randn(1, 128, 160) for _ in range(2))
    assert (model.features(one) - model.features(other)).std() > 0.1


def test_a_token_reads_its_window_of_states_and_no_other() -> None:
    # With one layer, states reach a token only through its window: self-attention comes first.
    adapter = lively(TINY).q_former
    states = torch.randn(1, 40, TINY.encoder.width, requires_grad=True)
    tokens = adapter(states)[0]
    stride, overlap = 4, TINY.q_former.overlap
    for token in range(10):
        (gradient,) = torch.autograd.grad(tokens[token].square().sum(), states, retain_graph=True)
        read = set(gradient[0].abs().amax(-1).nonzero().flatten().tolist())
        first, last = stride * token - overlap, stride * token + stride + overlap
        assert read == set(range(max(0, first), min(40, last)))


def test_heads_begin_with_different_states_of_a_token() -> None:
    q_former = dataclasses.replace(TINY.q_former, width=32, heads=4, offset_bias=True)
    bias = QFormerAdapter(q_former, 8).bias(40)
    assert bias is not None
    assert bias.shape == (4, 10, 40)
    for head in range(4):
        assert bias[head, 5].argmax() == 4 * 5 + head


def test_an_offset_bias_decides_which_states_are_read() -> None:
    q_former = dataclasses.replace(TINY.q_former, offset_bias=True)
    adapter = lively(dataclasses.replace(TINY, q_former=q_former)).q_former
    assert adapter.offset_bias is not None
    with torch.no_grad():
        adapter.offset_bias.fill_(-1e4)
        adapter.offset_bias[:, 6] = 0  # the third state of the four, after an overlap of four
    states = torch.randn(1, 40, TINY.encoder.width, requires_grad=True)
    (gradient,) = torch.autograd.grad(adapter(states)[0, 5].square().sum(), states)
    assert gradient[0].abs().amax(-1).nonzero().flatten().tolist() == [4 * 5 + 2]


@torch.inference_mode()
def test_encoder_equals_transformers_at_full_length() -> None:
    config = TINY.encoder
    ours = lively(TINY).encoder
    theirs = WhisperEncoder(
        WhisperConfig(
            d_model=config.width,
            encoder_layers=config.layers,
            encoder_attention_heads=config.heads,
            encoder_ffn_dim=config.inner_width,
            num_mel_bins=config.mel_bins,
            max_source_positions=config.max_positions,
        )
    ).eval()
    theirs.load_state_dict(ours.state_dict())
    mel = torch.randn(2, config.mel_bins, 2 * config.max_positions)
    torch.testing.assert_close(ours(mel), theirs(mel).last_hidden_state, rtol=0, atol=1e-5)


def test_positions_start_as_whispers_sinusoids() -> None:
    config = TINY.encoder
    expected = WhisperEncoder(
        WhisperConfig(
            d_model=config.width,
            encoder_layers=1,
            encoder_attention_heads=2,
            max_source_positions=config.max_positions,
        )
    ).embed_positions.weight
    torch.testing.assert_close(
        SpeechEncoder(config).embed_positions.weight, expected, rtol=0, atol=1e-5
    )


def test_projector_is_linear1_relu_linear2_norm() -> None:
    projector = Projector(6, 10, 8)
    assert [name for name, _ in projector.named_children()] == [
        "linear1",
        "relu",
        "linear2",
        "norm",
    ]
    features = torch.randn(3, 5, 6)
    inner = (features @ projector.linear1.weight.T + projector.linear1.bias).clamp(min=0)
    outer = inner @ projector.linear2.weight.T + projector.linear2.bias
    centred = outer - outer.mean(-1, keepdim=True)
    expected = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(projector(features), expected, rtol=0, atol=1e-5)


def test_weights_have_the_published_names() -> None:
    names = EdgeModel(TINY).state_dict().keys()
    assert {name.split(".")[0] for name in names} == {"encoder", "q_former", "mlp"}
    assert {
        "encoder.conv1.weight",
        "encoder.embed_positions.weight",
        "encoder.layers.0.self_attn.q_proj.weight",
        "encoder.layer_norm.weight",
        "q_former.query",
        "q_former.qformer.layernorm.weight",
        "q_former.qformer.encoder.layer.0.crossattention.attention.key.weight",
        "mlp.linear1.weight",
        "mlp.norm.bias",
    } <= names


def test_embeddings_are_projected_features(model: EdgeModel) -> None:
    mel = torch.randn(1, 128, 80)
    torch.testing.assert_close(model(mel), model.mlp(model.features(mel)), rtol=0, atol=0)


def test_random_models_follow_their_seed_alone() -> None:
    before = torch.get_rng_state()
    nano = named_config("esrt-nano")
    one, again = (random_checkpoint(nano).edge_model() for _ in range(2))
    other = random_checkpoint(nano, seed=1).edge_model()
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.q_former.query, again.q_former.query)
    assert not torch.equal(one.q_former.query, other.q_former.query)
    assert one.config == nano


def test_join_puts_the_padding_in_front() -> None:
    embeddings = torch.tensor([[1.0, 2, 3], [4, 0, 0], [5, 6, 0]])[..., None]
    text = torch.tensor([[10.0, 11], [12, 13], [14, 15]])[..., None]
    sequence, mask = join_features_and_text(embeddings, torch.tensor([3, 1, 2]), text)
    assert mask.tolist() == [[True] * 5, [False] * 2 + [True] * 3, [False] + [True] * 4]
    rows = [row[kept].flatten().tolist() for row, kept in zip(sequence, mask, strict=True)]
    assert rows == [[1, 2, 3, 10, 11], [4, 12, 13], [5, 6, 14, 15]]


@pytest.fixture(scope="module")
def tokenizer(tiny: Checkpoint) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(tiny.decoder)


@torch.inference_mode()
def test_greedy_decoding_of_a_batch_equals_one_by_one(
    tiny: Checkpoint, tokenizer: PreTrainedTokenizerFast
) -> None:
    decoder = Gemma3ForCausalLM.from_pretrained(tiny.decoder).eval()
    projector = tiny.projector()
    counts = (3, 25, 1, 9, 50, 4, 17, 6)
    pairs = [direction(*DIRECTIONS[row % 2]) for row in range(len(SENTENCES))]
    prompts = [separator(*pair) for pair in pairs]
    rows = [
        projector(torch.from_numpy(features(sentence, tokens)))
        for sentence, tokens in enumerate(counts)
    ]
    # Large numbers in the padding, so that an access to the padding changes the output.
    padded = torch.full((len(rows), max(counts), TINY.decoder_width), 100.0)
    for row, embeddings in enumerate(rows):
        padded[row, : len(embeddings)] = embeddings
    together = generate_greedy(decoder, tokenizer, padded, torch.tensor(counts), prompts, 80)
    alone = [
        generate_greedy(
            decoder, tokenizer, embeddings[None], torch.tensor([len(embeddings)]), [prompt], 80
        )[0]
        for embeddings, prompt in zip(rows, prompts, strict=True)
    ]
    assert together == alone
    expected = [
        target_text(*(sentence if row % 2 == 0 else sentence[::-1]), *pairs[row])
        for row, sentence in enumerate(SENTENCES)
    ]
    assert sum(a == b for a, b in zip(together, expected, strict=True)) >= 6


def test_greedy_decoding_stops_at_the_limit(
    tiny: Checkpoint, tokenizer: PreTrainedTokenizerFast
) -> None:
    decoder = Gemma3ForCausalLM.from_pretrained(tiny.decoder).eval()
    embeddings = tiny.projector()(torch.from_numpy(features(2, 5)))[None]
    prompt = separator(*direction("eng", "deu"))
    (text,) = generate_greedy(decoder, tokenizer, embeddings, torch.tensor([5]), [prompt], 3)
    assert 0 < len(tokenizer(text, add_special_tokens=False).input_ids) <= 3
