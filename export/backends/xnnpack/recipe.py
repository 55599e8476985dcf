"""Recipe of the ExecuTorch backend."""

from torch import nn

from esrt.manifest import Activations, Precision
from esrt.model import EdgeModel
from export.backends.xnnpack.inspect import inspect
from export.backends.xnnpack.lower import lower
from export.backends.xnnpack.rewrite import XnnpackGraph
from export.backends.xnnpack.runner import load_runner
from export.recipe import ExportRecipe, Settings
from export.tracing import Fp16Graph


def _graph(model: EdgeModel, settings: Settings) -> nn.Module:
    graph = XnnpackGraph(model, settings.split, half_attention=settings.precision is Precision.INT8)
    return Fp16Graph(graph) if settings.precision is Precision.FP16 else graph


RECIPE = ExportRecipe(
    kind="executorch",
    title="ExecuTorch",
    entry="model.pte",
    tools=("torch", "transformers", "torchao", "executorch"),
    activations=(Activations.DYNAMIC, Activations.STATIC),
    graph=_graph,
    lower=lower,
    load_runner=load_runner,
    inspect=inspect,
)
