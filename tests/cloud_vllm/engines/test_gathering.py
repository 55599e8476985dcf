"""The engine's scheduler: what it sends, and when; vLLM's own, fed by hand."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from cloud_vllm import env_defaults
from esrt.checkpoint import Checkpoint

pytestmark = pytest.mark.vllm

END = 1
LENGTH = 40
LOST = 99


@dataclass
class Engine:
    """A scheduler without a model: what each request is to write is given.

    With ``ahead`` a step is always under way while the one before it is taken in.
    """

    scheduler: Any
    ahead: bool
    steps: deque[Any] = field(default_factory=deque)
    sent: list[list[Any]] = field(default_factory=list)

    def ask(self, name: str, interval: int | None) -> None:
        from vllm.sampling_params import SamplingParams
        from vllm.v1.request import Request

        sampling = SamplingParams(
            temperature=0, max_tokens=LENGTH, logprobs=0, detokenize=False, stream_interval=interval
        )
        sampling.update_from_generation_config({}, END)
        self.scheduler.add_request(Request(name, [5, 6, 7], sampling, None))

    def write(self, tokens: dict[str, int]) -> dict[int, Any]:
        """One step, in which each of the requests that run gets its next token; its messages."""
        from vllm.v1.outputs import LogprobsLists, ModelRunnerOutput

        while len(self.steps) < 1 + self.ahead:
            self.steps.append(self.scheduler.schedule())
        step = self.steps.popleft()
        names = list(step.num_scheduled_tokens)
        # What is under way for a request that has ended counts for nothing.
        ids = np.array([[tokens.get(name, LOST)] for name in names]).reshape(-1, 1)
        found = ModelRunnerOutput(
            names,
            {name: place for place, name in enumerate(names)},
            sampled_token_ids=ids.tolist(),
            logprobs=LogprobsLists(ids, -ids / 100, np.ones(len(ids), np.int64)),
        )
        messages = self.scheduler.update_from_output(step, found)
        self.sent.append([one for message in messages.values() for one in message.outputs])
        return dict(messages)

    def all(self, name: str) -> list[list[int]]:
        """The tokens of each of a request's outputs, step by step; nothing where none was sent."""
        return [
            next((one.new_token_ids for one in step if one.request_id == name), [])
            for step in self.sent
        ]


@pytest.fixture(params=[False, True], ids=["in turn", "ahead"])
def engine(checkpoint: Checkpoint, request: pytest.FixtureRequest) -> Engine:
    env_defaults.prepare()
    import torch
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.executor.uniproc_executor import UniProcExecutor
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.structured_output import StructuredOutputManager

    from cloud_vllm.engines import gathering

    config = AsyncEngineArgs(
        str(checkpoint.decoder),
        dtype="bfloat16",
        max_model_len=64,
        enable_prefix_caching=False,
        distributed_executor_backend=UniProcExecutor,
    ).create_engine_config()
    config.cache_config.num_gpu_blocks = 100
    pages = FullAttentionSpec(block_size=16, num_kv_heads=1, head_size=8, dtype=torch.float32)
    return Engine(
        (gathering.AsyncGatheringScheduler if request.param else gathering.GatheringScheduler)(
            vllm_config=config,
            kv_cache_config=KVCacheConfig(100, [], [KVCacheGroupSpec(["layer"], pages)]),
            structured_output_manager=StructuredOutputManager(config),
            block_size=16,
            log_stats=True,
        ),
        request.param,
    )


def written(engine: Engine, names: Iterable[str], tokens: Iterable[int]) -> None:
    for token in tokens:
        engine.write(dict.fromkeys(names, token))


def test_without_an_interval_each_token_is_sent(engine: Engine) -> None:
    engine.ask("a", None)
    written(engine, "a", [10, 11, 12, END])
    assert engine.all("a") == [[10], [11], [12], [END]]


def test_the_first_comes_at_once_and_then_so_many_together(engine: Engine) -> None:
    engine.ask("a", 3)
    written(engine, "a", [10, 11, 12, 13, 14, 15, 16, 17, END])
    assert engine.all("a") == [[10], [], [], [11, 12, 13], [], [], [14, 15, 16], [], [17, END]]


def test_what_is_wanted_whole_comes_with_its_end(engine: Engine) -> None:
    engine.ask("a", LENGTH)
    engine.ask("b", None)
    engine.ask("c", LENGTH)
    written(engine, "abc", [10, 11])
    engine.write({"a": 12, "b": END, "c": 12})
    engine.write({"a": END, "c": 13})
    written(engine, "c", range(14, 10 + LENGTH))
    assert engine.all("a") == [[10], [], [], [11, 12, END], *[[]] * (LENGTH - 4)]
    assert engine.all("b") == [[10], [11], [END], *[[]] * (LENGTH - 3)]
    assert engine.all("c") == [[10], *[[]] * (LENGTH - 2), list(range(11, 10 + LENGTH))]
    ends = {one.request_id: str(one.finish_reason) for step in engine.sent for one in step}
    assert ends == {"a": "stop", "b": "stop", "c": "length"}


def test_an_answer_of_one_token_is_its_end(engine: Engine) -> None:
    engine.ask("a", LENGTH)
    engine.write({"a": END})
    assert engine.all("a") == [[END]]


def test_each_token_keeps_its_log_probability(engine: Engine) -> None:
    engine.ask("a", LENGTH)
    written(engine, "a", [10, 11, 12, END])
    *_, (last,) = engine.sent
    assert last.new_logprobs.logprob_token_ids.tolist() == [[11], [12], [END]]
    assert last.new_logprobs.logprobs.tolist() == [[-0.11], [-0.12], [-END / 100]]
    assert last.new_logprobs.sampled_token_ranks.tolist() == [1, 1, 1]


def test_no_message_is_sent_for_what_is_held(engine: Engine) -> None:
    engine.ask("a", LENGTH)
    assert [len(engine.write({"a": token})) for token in (10, 11, 12, END)] == [1, 0, 0, 1]
    assert engine.write({}) == {}


def test_who_is_no_longer_running_is_told_without_tokens(engine: Engine) -> None:
    from vllm.v1.request import RequestStatus

    engine.ask("a", LENGTH)
    written(engine, "a", [10, 11])
    engine.scheduler.finish_requests("a", RequestStatus.FINISHED_ABORTED)
    told = [message.scheduler_stats for message in engine.write({}).values()]
    assert [stats.num_running_reqs for stats in told] == [0]
    assert engine.write({}) == {}


def test_of_a_client_that_has_gone_nothing_is_kept(engine: Engine) -> None:
    from vllm.v1.request import RequestStatus

    engine.ask("a", LENGTH)
    written(engine, "a", [10, 11, 12])
    engine.scheduler.finish_requests("a", RequestStatus.FINISHED_ABORTED)
    engine.scheduler.schedule()
    engine.ask("a", LENGTH)
    written(engine, "a", [20, 21, END])
    assert engine.all("a") == [[10], [], [], [20], [], [21, END]]


def test_a_request_that_fails_ends_without_what_was_held(engine: Engine) -> None:
    engine.ask("a", LENGTH)
    written(engine, "a", [10, 11, 12])
    engine.scheduler.grammar_compile_error_reqs.add("a")
    engine.write({"a": 13})
    last, failed = engine.sent[-1]
    assert (last.new_token_ids, failed.new_token_ids) == ([13], [])
    assert str(failed.finish_reason) == "error"
