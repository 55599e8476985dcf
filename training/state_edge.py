"""The edge model after its frozen encoder, for training on cached states.

Training reads standardized states: dimensions of Whisper's states differ in scale by orders of
magnitude. `standardize` moves the standardization into the weights of the finished Q-Former.
"""

import torch
from torch import Tensor, nn

from esrt.config import ModelConfig
from esrt.model import EdgeModel, Projector, QFormerAdapter
from esrt.pretrained_encoder import encoder_tensors
from training.recipe import RecipeError
from training.state_corpus import Statistics


class StateEdge(nn.Module):
    """Q-Former and projector."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.q_former = QFormerAdapter(config.q_former, config.encoder.width)
        self.mlp = Projector(config.q_former.width, config.projector_width, config.decoder_width)
        # transformers' first values are so small that hardly anything of the states passes.
        for layer in self.q_former.qformer.encoder.layer:
            cross = layer.crossattention
            for linear in (cross.attention.value, cross.output.dense):
                nn.init.normal_(linear.weight, std=linear.in_features**-0.5)

    def features(self, states: Tensor, frames: Tensor) -> Tensor:
        """States (batch, frames / 2, width) to Q-Former output (batch, tokens, width).

        Args:
            states: padded at the end.
            frames: (batch,), valid mel frames of each row: two for a state.
        """
        adapted: Tensor = self.q_former(states, frames // 2)
        return adapted

    def forward(self, states: Tensor, frames: Tensor) -> Tensor:
        """States (batch, frames / 2, width) to embeddings (batch, tokens, decoder width)."""
        embeddings: Tensor = self.mlp(self.features(states, frames))
        return embeddings


def split_edge(model: EdgeModel, statistics: Statistics | None = None) -> StateEdge:
    """Take Q-Former and projector out of an edge model.

    Args:
        model: the edge model.
        statistics: by which the states will be standardized; ``None`` for states as they are.
    """
    edge = StateEdge(model.config)
    edge.q_former.load_state_dict(model.q_former.state_dict())
    edge.mlp.load_state_dict(model.mlp.state_dict())
    if statistics is not None:
        standardize(edge.q_former, statistics.inverse)
    return edge


def join_edge(edge: StateEdge, statistics: Statistics) -> EdgeModel:
    """Put Q-Former and projector, trained on standardized states, after the published encoder.

    Raises:
        CheckpointError: the encoder's packages are missing or damaged.
    """
    model = EdgeModel(edge.config)
    model.encoder.load_state_dict(published_encoder(edge.config))
    model.q_former.load_state_dict(edge.q_former.state_dict())
    model.mlp.load_state_dict(edge.mlp.state_dict())
    standardize(model.q_former, statistics)
    return model.eval()


def published_encoder(config: ModelConfig) -> dict[str, Tensor]:
    """Weights of the encoder that a model's configuration names, in float32.

    Raises:
        RecipeError: the model has no published encoder.
        CheckpointError: the encoder's packages are missing or damaged.
    """
    if config.encoder_weights is None:
        raise RecipeError(
            f"{config.name} has no published encoder, whose states could be cached.",
            "Use model: esrt-mini, or a recipe without states.",
        )
    return {
        name: tensor.float() for name, tensor in encoder_tensors(config.encoder_weights).items()
    }


@torch.no_grad()
def standardize(q_former: QFormerAdapter, statistics: Statistics) -> None:
    """Change the weights so that states give what standardized states gave before.

    Keys and values of the cross-attention are linear in the states. With mean m and deviation s,
    W ((x - m) / s) + b = (W / s) x + (b - (W / s) m).
    """
    mean, deviation = (
        torch.from_numpy(array).double() for array in (statistics.mean, statistics.deviation)
    )
    for layer in q_former.qformer.encoder.layer:
        for linear in (layer.crossattention.attention.key, layer.crossattention.attention.value):
            weight = linear.weight.double() / deviation
            linear.bias.copy_(linear.bias.double() - weight @ mean)
            linear.weight.copy_(weight)
