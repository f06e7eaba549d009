"""What a plugin imports that has durable work: workflows, steps, and what starts them.

    from ksi_workflows.api import Retry, Workflows, step, workflow

    @step(retries=Retry(on=(Unavailable,), max_attempts=5), timeout_s=30.0)
    async def fetch(url: str) -> str: ...

    @workflow("report")
    async def report(args: ReportArgs) -> Report:
        page = await fetch(args.url)
        ...

In the plugin's lifespan, with ``requires=("workflows",)``:

    workflows = plugin.service(Workflows)
    workflows.register(report)

and later ``run_id = await workflows.start(report, ReportArgs(url=…))``.
"""

from typing import Any

from ksi_daemon.protocol import InvalidData
from ksi_workflows.definitions import ACTIVE_RUN, Retry, Step, Workflow, step, workflow
from ksi_workflows.runs import Run
from ksi_workflows.schedules import next_time
from ksi_workflows.workflows import Workflows

__all__ = [
    "Retry",
    "Run",
    "Step",
    "Workflow",
    "Workflows",
    "current_run",
    "next_time",
    "receive",
    "sleep",
    "step",
    "workflow",
]


def current_run() -> Run:
    """Return the run whose body is executed here.

    Raises:
        InvalidData: None is; a step's function is no body.
    """
    run = ACTIVE_RUN.get()
    if not isinstance(run, Run):
        raise InvalidData("this is to be called in the body of a workflow that was started")
    return run


async def sleep(seconds: float) -> None:
    """Wait in a workflow's body, until a time that a recovery does not put off."""
    await current_run().sleep(seconds)


async def receive(topic: str, kind: Any = Any, *, timeout_s: float | None = None) -> Any:
    """Return the next signal on a topic that was sent to this run, in the order of sending.

    Raises:
        TimedOut: None came in time, recoveries included.
    """
    return await current_run().receive(topic, kind, timeout_s)
