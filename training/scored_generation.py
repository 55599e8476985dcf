"""Greedy decoding with the scores of each answer's tokens."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Gemma3ForCausalLM, PreTrainedTokenizerFast

from esrt.model import generate_ids


@dataclass(frozen=True)
class Scores:
    """Scores of an answer, in nats; each is higher for a more certain answer.

    Attributes:
        mean: the lower of the mean log-probabilities of transcript and translation.
        minimum: lowest log-probability of a token.
        margin: smallest difference of the log-probabilities of a token and its closest rival.
        agreement: how well the transcript fits the features (`training.ctc_heads.TranscriptCtc`);
            0 without that head.
    """

    mean: float
    minimum: float
    margin: float
    agreement: float = 0.0


@dataclass(frozen=True)
class Answer:
    """Text of an answer with its special tokens, and its scores."""

    text: str
    scores: Scores


@torch.inference_mode()
def generate_scored(
    decoder: Gemma3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    embeddings: Tensor,
    tokens: Tensor,
    prompts: list[str],
    max_new_tokens: int,
) -> list[Answer]:
    """Decode a batch greedily, as `esrt.model.generate_greedy`, and score the answers.

    Args:
        decoder: the language model.
        tokenizer: the decoder's tokenizer.
        embeddings: (batch, tokens, decoder width), rows padded at the end.
        tokens: (batch,) valid tokens of each row.
        prompts: two language tags for each row, which separate transcript and translation.
        max_new_tokens: largest number of generated tokens.
    """
    ids = [tokenizer(prompt, add_special_tokens=False).input_ids for prompt in prompts]
    eos = tokenizer.eos_token_id
    generated = generate_ids(
        *(decoder, tokenizer, embeddings, tokens, prompts, max_new_tokens),
        return_dict_in_generate=True,
        output_logits=True,
    )
    best = torch.stack(
        [step.float().log_softmax(-1).topk(2).values for step in generated.logits], 1
    )
    answers = []
    for row, scores, separator in zip(generated.sequences.tolist(), best, ids, strict=True):
        length = row.index(eos) if eos in row else len(row)
        # The end token counts: an answer may stop too early.
        scored = scores[: length + 1].cpu()
        answers.append(
            Answer(
                tokenizer.decode(row[:length], skip_special_tokens=False),
                Scores(
                    _lowest_mean(row[:length], scored[:, 0], separator),
                    float(scored[:, 0].min()),
                    float((scored[:, 0] - scored[:, 1]).min()),
                ),
            )
        )
    return answers


def _lowest_mean(row: list[int], scores: Tensor, separator: list[int]) -> float:
    """The lower mean of the two parts, as `cloud_vllm.engines.output_grammar` counts tokens.

    The first tag of the separator belongs to the transcript, the end token to the translation. The
    second tag follows from the first.
    """
    first = row.index(separator[0]) if separator[0] in row else len(row)
    parts = scores[: first + 1], scores[first + 2 :]
    return min(float(part.mean()) for part in parts if len(part))
