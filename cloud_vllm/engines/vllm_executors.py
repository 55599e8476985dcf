"""vLLM's executors, in an engine process that ends with the gateway, even if that is killed.

multiprocessing passes an executor's class to the engine's process by its name, so that process
imports this module before it runs any code of vLLM's engine.
"""

from vllm.v1.executor import UniProcExecutor
from vllm.v1.executor.multiproc_executor import MultiprocExecutor

from cloud_vllm.engines.parent_death import end_with_parent

end_with_parent()


class OneProcess(UniProcExecutor):  # type: ignore[misc]
    """The decoder runs in the engine's process."""


class SeveralProcesses(MultiprocExecutor):  # type: ignore[misc]
    """Each GPU has a process of its own, which vLLM ends with the engine's process."""
