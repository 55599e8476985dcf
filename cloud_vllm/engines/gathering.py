"""vLLM's scheduler, with what a request's ``stream_interval`` asks done before anything is sent.

vLLM sends every token to the process that asked for it, and gathers them there. Where an answer is
wanted whole, a message for each of its tokens is most of what that process has to do.

Of what is held, tokens, log-probabilities and events are kept: all that the gateway's requests
have. What vLLM takes from each message, `vllm:inter_token_latency_seconds` and
`vllm:iteration_tokens_total`, is of messages then and not of tokens.

Runs in the engine's process; written against vLLM 0.32.0.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.outputs import LogprobsLists, ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus


class GatheringScheduler(Scheduler):  # type: ignore[misc]  # vLLM has no types here
    """Sends a request's first token at once, then every so many together, the last with its end."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._held: dict[str, _Held] = {}
        self._told: tuple[int, ...] | None = None

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        """What is to be sent after a step, by client."""
        messages: dict[int, EngineCoreOutputs] = super().update_from_output(
            scheduler_output, model_runner_output
        )
        for client, message in list(messages.items()):
            message.outputs = [one for one in message.outputs if self._is_due(one)]
            told = _requests(message.scheduler_stats)
            if message.outputs or message.finished_requests or told != self._told:
                self._told = told
            else:
                # How full the cache is goes with the next one.
                del messages[client]
        return messages

    def finish_requests(
        self, request_ids: str | Iterable[str] | None, finished_status: RequestStatus
    ) -> list[Request]:
        """End requests whose clients have gone, or that failed."""
        finished: list[Request] = super().finish_requests(request_ids, finished_status)
        for request in finished:
            self._held.pop(request.request_id, None)
        return finished

    def _is_due(self, output: EngineCoreOutput) -> bool:
        """Whether an output is to be sent, with those before it in it; else it is kept."""
        name = output.request_id
        cleanup = self._held.get(name)
        if cleanup is None:
            # The first, of whose request nothing is held yet.
            interval = 1 if output.finished else self._interval(name)
            if interval > 1:
                self._held[name] = _Held(interval)
            return True
        cleanup.add(output)
        if output.finish_reason is not None:
            del self._held[name]
        elif len(cleanup.tokens) < cleanup.interval:
            return False
        cleanup.release(output)
        return True

    def _interval(self, name: str) -> int:
        request = self.requests.get(name)
        # One that failed in this very step is known no more.
        if request is None or request.sampling_params is None:
            return 1
        least: int = self.scheduler_config.stream_interval
        return max(request.sampling_params.stream_interval or 1, least)


class AsyncGatheringScheduler(GatheringScheduler, AsyncScheduler):  # type: ignore[misc]
    """The same for where steps are scheduled ahead, as on a GPU."""


def _requests(stats: Any) -> tuple[int, ...] | None:
    """How many requests there are of each kind, where that is told."""
    if stats is None:
        return None
    return stats.num_running_reqs, stats.num_waiting_reqs, stats.num_skipped_waiting_reqs


class _Held:
    """A request's tokens that were not sent; in a step there is time for little."""

    __slots__ = ("chances", "events", "ids", "interval", "ranks", "tokens")

    def __init__(self, interval: int) -> None:
        self.interval = interval
        self.tokens: list[int] = []
        self.ids: list[Any] = []
        self.chances: list[Any] = []
        self.ranks: list[Any] = []
        self.events: list[Any] = []

    def add(self, output: EngineCoreOutput) -> None:
        self.tokens += output.new_token_ids
        if (found := output.new_logprobs) is not None:
            self.ids.append(found.logprob_token_ids)
            self.chances.append(found.logprobs)
            self.ranks.append(found.sampled_token_ranks)
        if output.events:
            self.events += output.events

    def release(self, output: EngineCoreOutput) -> None:
        output.new_token_ids, self.tokens = self.tokens, []
        if self.ids:
            each = (self.ids, self.chances, self.ranks)
            output.new_logprobs = LogprobsLists(*(np.concatenate(some) for some in each))
            self.ids, self.chances, self.ranks = [], [], []
        if self.events:
            output.events, self.events = self.events, []
