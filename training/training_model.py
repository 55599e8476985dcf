"""The complete model in training: edge model, decoder, and auxiliary CTC heads."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    PreTrainedTokenizerFast,
    WhisperModel,
)

from esrt.checkpoint import load_strictly, open_checkpoint
from esrt.config import ModelConfig, named_config
from esrt.languages import LANGUAGES
from esrt.model import EdgeModel, join_features_and_text
from training.corpus.build import Corpus
from training.ctc_heads import load_heads
from training.data import IGNORE, Batch, Collator, alphabet_of
from training.recipe import Recipe, RecipeError
from training.state_corpus import StateCorpus, Statistics
from training.state_edge import StateEdge, join_edge, split_edge
from training.tokenizer import train_tokenizer

# Frames of the characters' CTC for each token of the Q-Former, 80 ms; on the encoder's states they
# are 20 ms long.
_LETTER_FRAMES = 3


class TrainingModel(nn.Module):
    """Trainable model of a recipe. The auxiliary heads are not part of the checkpoint.

    On a corpus of states, the model has no encoder and reads standardized states.

    Raises:
        RecipeError: a pretrained part does not fit the recipe's model.
    """

    def __init__(self, recipe: Recipe, corpus: Corpus | StateCorpus) -> None:
        super().__init__()
        languages = max((tuple(example.texts) for example in corpus.examples), key=len)
        self.config = replace(named_config(recipe.model), languages=languages)
        if recipe.piece_ctc and self.config.q_former.stride is None:
            raise RecipeError(
                f"piece_ctc needs a Q-Former whose tokens follow time, unlike {recipe.model}'s.",
                "Set piece_ctc: 0.",
            )
        self.tokenizer = _tokenizer(recipe, corpus)
        self.statistics = corpus.statistics if isinstance(corpus, StateCorpus) else None
        self.edge = _edge(recipe, self.config, self.statistics)
        if recipe.speaker_invariance:
            self.teacher = deepcopy(self.edge).requires_grad_(False)
        self.decoder = _decoder(recipe, self.config, self.tokenizer)
        self.alphabet = alphabet = alphabet_of(corpus.examples)
        on_states = self.statistics is not None
        self.collator = Collator(self.config, self.tokenizer, alphabet, on_states)
        self.letter_weight, self.piece_weight = recipe.letter_ctc, recipe.piece_ctc
        self.voice_weight = recipe.speaker_invariance
        self.letters: nn.Linear | None = None
        self.pieces: nn.Linear | None = None
        if recipe.letter_ctc:
            self.letters = (
                nn.Linear(self.config.q_former.width, _LETTER_FRAMES * (1 + len(alphabet)))
                if on_states
                else nn.Linear(self.config.encoder.width, 1 + len(alphabet))
            )
        if recipe.piece_ctc:
            self.pieces = nn.Linear(self.config.q_former.width, len(self.tokenizer))
        if recipe.initial:
            same_tokens = recipe.decoder is not None and Path(recipe.decoder).parent == (
                recipe.initial
            )
            pieces = self.pieces if same_tokens else None
            load_heads(recipe.initial, self.letters, pieces, alphabet)
        for part in recipe.frozen:
            (self.decoder if part == "decoder" else getattr(self.edge, part)).requires_grad_(False)
        if not torch.cuda.is_available():  # the backward pass of SDPA is slow on a CPU
            models = [self.edge.q_former.qformer, self.decoder]
            if isinstance(self.edge, EdgeModel):
                models.append(self.edge.encoder)
            for model in models:
                model.set_attn_implementation("eager")

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Compute the losses of a batch, and their weighted sum as ``total``.

        ``letters``, ``pieces`` and ``text`` are means in nats per symbol; ``voice`` is a share of
        variance, of the items with parallel speech.
        """
        losses: dict[str, Tensor] = {}
        spoken = len(batch.frames)
        text = self.decoder.get_input_embeddings()(batch.text)
        # Rows without speech are shorter: a separate pass needs less padding.
        decoded = []
        if spoken:
            positions = batch.frames // 2
            states = batch.speech
            if isinstance(self.edge, EdgeModel):
                states = self.edge.encoder(states, batch.frames)
            features = self.edge.q_former(states, positions)
            stride = self.config.q_former.stride
            tokens = torch.full_like(positions, features.shape[1])
            tokens = tokens if stride is None else positions // stride
            if self.letters is not None:
                if isinstance(self.edge, EdgeModel):
                    logits, lengths = self.letters(states), positions
                else:
                    logits = self.letters(features).unflatten(-1, (_LETTER_FRAMES, -1))
                    logits, lengths = logits.flatten(1, 2), _LETTER_FRAMES * tokens
                losses["letters"] = _ctc(logits, batch.letters, lengths, batch.letter_counts)
            if self.pieces is not None:
                losses["pieces"] = _ctc(
                    self.pieces(features), batch.pieces, tokens, batch.piece_counts
                )
            if self.voice_weight and batch.paired.any():
                paired = batch.paired
                with torch.no_grad():
                    expected = self.teacher.features(batch.parallel, batch.frames[paired])
                own = features[paired][:, : expected.shape[1]]
                losses["voice"] = _unexplained_variance(own, expected, tokens[paired])
            embeddings = self.edge.mlp(features)
            decoded.append(self._decode(embeddings, tokens, text[:spoken], batch.labels[:spoken]))
        if len(text) > spoken:
            no_tokens = torch.zeros_like(batch.text[spoken:, 0])
            decoded.append(
                self._decode(text[spoken:, :0], no_tokens, text[spoken:], batch.labels[spoken:])
            )
        hidden, labels = (torch.cat(parts) for parts in zip(*decoded, strict=True))
        logits = self.decoder.lm_head(hidden).float()
        losses["text"] = nn.functional.cross_entropy(logits, labels)
        weights = {
            "letters": self.letter_weight,
            "pieces": self.piece_weight,
            "voice": self.voice_weight,
            "text": 1.0,
        }
        total = torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()
        return losses | {"total": total}

    def whole_edge(self) -> EdgeModel:
        """The edge model of a checkpoint: with its encoder, for states as the encoder gives them.

        Raises:
            CheckpointError: the encoder's packages are missing or damaged.
        """
        if isinstance(self.edge, EdgeModel):
            return self.edge
        assert self.statistics is not None
        return join_edge(self.edge, self.statistics)

    def _decode(
        self, embeddings: Tensor, tokens: Tensor, text: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Run the decoder; return its state before each token with loss, and the token's id."""
        counted = labels != IGNORE
        length = int(counted.any(0).nonzero().max()) + 1
        # The first token is never a label: every text begins with a prompt.
        labels, counted = labels[:, 1:length], counted[:, 1:length]
        sequence, mask = join_features_and_text(embeddings, tokens, text[:, :length])
        hidden = self.decoder.model(inputs_embeds=sequence, attention_mask=mask.long())
        return hidden.last_hidden_state[:, embeddings.shape[1] : -1][counted], labels[counted]


def _unexplained_variance(features: Tensor, expected: Tensor, tokens: Tensor) -> Tensor:
    """Compute the squared error as a share of the expected variance, averaged over dimensions.

    Args:
        features: (batch, tokens, width).
        expected: (batch, tokens, width).
        tokens: (batch,), number of valid tokens.
    """
    valid = torch.arange(features.shape[1], device=features.device) < tokens[:, None]
    features, expected = features[valid].float(), expected[valid].float()
    errors = nn.functional.mse_loss(features, expected, reduction="none").mean(0)
    return (errors / expected.var(0)).mean()


def _ctc(logits: Tensor, targets: Tensor, lengths: Tensor, target_lengths: Tensor) -> Tensor:
    """Compute the CTC loss per target symbol; rows too short for their target count as zero."""
    return nn.functional.ctc_loss(
        logits.float().log_softmax(-1).transpose(0, 1),
        targets,
        lengths,
        target_lengths,
        zero_infinity=True,
    )


def _edge(
    recipe: Recipe, config: ModelConfig, statistics: Statistics | None
) -> EdgeModel | StateEdge:
    if statistics is not None:
        if recipe.initial is None:
            return StateEdge(config)
        return split_edge(open_checkpoint(recipe.initial).edge_model(), statistics)
    edge = EdgeModel(config)
    if recipe.initial:
        load_strictly(edge, open_checkpoint(recipe.initial).edge_model().state_dict())
    if recipe.encoder:
        _load_encoder(edge, recipe.encoder)
    return edge


def _tokenizer(recipe: Recipe, corpus: Corpus | StateCorpus) -> PreTrainedTokenizerFast:
    if recipe.decoder is None:
        sentences = {id(example.texts): example.texts for example in corpus.examples}
        texts = [text for texts in sentences.values() for text in texts.values()]
        return train_tokenizer(texts, recipe.vocabulary)
    tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(recipe.decoder)
    tags = [language.tag for language in LANGUAGES.values()]
    tokenizer.add_special_tokens({"additional_special_tokens": tags})
    return tokenizer


def _decoder(
    recipe: Recipe, config: ModelConfig, tokenizer: PreTrainedTokenizerFast
) -> Gemma3ForCausalLM:
    if recipe.decoder is None:
        return Gemma3ForCausalLM(decoder_config(config, tokenizer))
    decoder = Gemma3ForCausalLM.from_pretrained(recipe.decoder, dtype=torch.float32)
    if decoder.config.hidden_size != config.decoder_width:
        raise RecipeError(
            f"{recipe.decoder} has width {decoder.config.hidden_size}, but {recipe.model} needs "
            f"{config.decoder_width}.",
            "Name a decoder of that width, or another model.",
        )
    if len(tokenizer) > decoder.config.vocab_size:
        decoder.resize_token_embeddings(len(tokenizer))
    return decoder


def _load_encoder(edge: EdgeModel, name: str) -> None:
    pretrained = WhisperModel.from_pretrained(name, dtype=torch.float32).encoder
    try:
        edge.encoder.load_state_dict(pretrained.state_dict())
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise RecipeError(
            f"The encoder of {name} does not fit {edge.config.name}: {reason}.",
            "Name a Whisper of the model's shape.",
        ) from error


def decoder_config(config: ModelConfig, tokenizer: PreTrainedTokenizerFast) -> Gemma3TextConfig:
    """Configure a Gemma 3 of four layers for the tokenizer's vocabulary."""
    return Gemma3TextConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.decoder_width,
        intermediate_size=3 * config.decoder_width,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        query_pre_attn_scalar=64,
        max_position_embeddings=512,
        sliding_window=512,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        attn_implementation="sdpa",
    )
