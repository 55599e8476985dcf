"""The whole model as it is trained: edge, decoder, and auxiliary heads that are not kept."""

from copy import deepcopy
from dataclasses import replace

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
from esrt.model import EdgeModel, join
from training.corpus.build import Corpus
from training.data import IGNORE, Batch, Collator, alphabet_of
from training.recipe import Recipe, RecipeError
from training.tokenizer import train_tokenizer


class TrainingModel(nn.Module):
    """The model of a recipe.

    Raises:
        RecipeError: a pretrained part does not fit the recipe's model.
    """

    def __init__(self, recipe: Recipe, corpus: Corpus) -> None:
        super().__init__()
        languages = tuple(corpus.examples[0].texts)
        self.config = replace(named_config(recipe.model), languages=languages)
        if recipe.piece_ctc and self.config.q_former.stride is None:
            raise RecipeError(
                f"piece_ctc needs a Q-Former whose tokens follow time, unlike {recipe.model}'s.",
                "Set piece_ctc: 0.",
            )
        self.tokenizer = _tokenizer(recipe, corpus)
        self.edge = EdgeModel(self.config)
        if recipe.initial:
            load_strictly(self.edge, open_checkpoint(recipe.initial).edge_model().state_dict())
        if recipe.encoder:
            _load_encoder(self.edge, recipe.encoder)
        if recipe.speaker_invariance:
            self.teacher = deepcopy(self.edge).requires_grad_(False)
        self.decoder = _decoder(recipe, self.config, self.tokenizer)
        alphabet = alphabet_of(corpus.examples)
        self.collator = Collator(self.config, self.tokenizer, alphabet)
        self.letter_weight, self.piece_weight = recipe.letter_ctc, recipe.piece_ctc
        self.voice_weight = recipe.speaker_invariance
        if recipe.letter_ctc:
            self.letters = nn.Linear(self.config.encoder.width, 1 + len(alphabet))
        if recipe.piece_ctc:
            self.pieces = nn.Linear(self.config.q_former.width, len(self.tokenizer))
        for part in recipe.frozen:
            (self.decoder if part == "decoder" else getattr(self.edge, part)).requires_grad_(False)
        if not torch.cuda.is_available():  # SDPA's backward is slow on a CPU
            for model in (self.edge.encoder, self.edge.q_former.qformer, self.decoder):
                model.set_attn_implementation("eager")

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The losses of a batch, each a mean in nats, and their weighted sum as ``total``."""
        losses: dict[str, Tensor] = {}
        spoken = len(batch.frames)
        text = self.decoder.get_input_embeddings()(batch.text)
        # Rows without speech are shorter, and cost less by themselves.
        written = []
        if spoken:
            positions = batch.frames // 2
            states = self.edge.encoder(batch.mel, batch.frames)
            features = self.edge.q_former(states, positions)
            stride = self.config.q_former.stride
            tokens = torch.full_like(positions, features.shape[1])
            tokens = tokens if stride is None else positions // stride
            if self.letter_weight:
                losses["letters"] = _ctc(
                    self.letters(states), batch.letters, positions, batch.letter_counts
                )
            if self.piece_weight:
                losses["pieces"] = _ctc(
                    self.pieces(features), batch.pieces, tokens, batch.piece_counts
                )
            if self.voice_weight:
                with torch.no_grad():
                    wanted = self.teacher.features(batch.twin, batch.frames)
                losses["voice"] = _unexplained(features, wanted, tokens)
            embeddings = self.edge.mlp(features)
            written.append(self._written(embeddings, tokens, text[:spoken], batch.labels[:spoken]))
        if len(text) > spoken:
            none = torch.zeros_like(batch.text[spoken:, 0])
            written.append(
                self._written(text[spoken:, :0], none, text[spoken:], batch.labels[spoken:])
            )
        hidden, labels = (torch.cat(parts) for parts in zip(*written, strict=True))
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

    def _written(
        self, embeddings: Tensor, tokens: Tensor, text: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The decoder's states before each token that counts, and those tokens' ids."""
        counted = labels != IGNORE
        length = int(counted.any(0).nonzero().max()) + 1
        # Labels never begin a text: what a text begins with is given.
        labels, counted = labels[:, 1:length], counted[:, 1:length]
        sequence, mask = join(embeddings, tokens, text[:, :length])
        hidden = self.decoder.model(inputs_embeds=sequence, attention_mask=mask.long())
        return hidden.last_hidden_state[:, embeddings.shape[1] : -1][counted], labels[counted]


def _unexplained(found: Tensor, wanted: Tensor, tokens: Tensor) -> Tensor:
    """The share of the wanted features' variance that is missed, a mean over dimensions.

    Args:
        found: (batch, tokens, width).
        wanted: likewise.
        tokens: (batch,) valid tokens of each row.
    """
    valid = torch.arange(found.shape[1], device=found.device) < tokens[:, None]
    found, wanted = found[valid].float(), wanted[valid].float()
    return (nn.functional.mse_loss(found, wanted, reduction="none").mean(0) / wanted.var(0)).mean()


def _ctc(logits: Tensor, targets: Tensor, lengths: Tensor, target_lengths: Tensor) -> Tensor:
    """CTC per target symbol; rows too short for their target count as zero."""
    return nn.functional.ctc_loss(
        logits.float().log_softmax(-1).transpose(0, 1),
        targets,
        lengths,
        target_lengths,
        zero_infinity=True,
    )


def _tokenizer(recipe: Recipe, corpus: Corpus) -> PreTrainedTokenizerFast:
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
            f"{recipe.decoder} is {decoder.config.hidden_size} wide, and {recipe.model} asks for "
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
    """A Gemma 3 of four layers over the tokenizer's vocabulary."""
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
