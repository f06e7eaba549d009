"""What a plugin declares: workflows, steps, and how steps are retried."""

import asyncio
import functools
import inspect
import random
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import (
    Any,
    Final,
    Generic,
    ParamSpec,
    Protocol,
    TypeVar,
    get_type_hints,
    overload,
)

from msgspec import Struct

from ksi_daemon.protocol import Busy, InvalidData, KsiError, TimedOut, Unavailable
from ksi_daemon.protocol.names import check_name

P = ParamSpec("P")
R = TypeVar("R")
A = TypeVar("A")


class Retry(Struct, frozen=True, kw_only=True):
    """When a step is tried again, and how long after.

    The delay is drawn evenly between nothing and a bound that doubles from ``first_delay_s`` to
    ``max_delay_s`` ("full jitter"), so that what failed together does not come back together; an
    error's own ``retry_after_s`` is the least. Source: Exponential Backoff And Jitter, AWS
    Architecture Blog, 2015.

    Attributes:
        on: The classes of errors that may pass. Any other ends the step at once.
        max_attempts: How often the step is tried in all.
        first_delay_s: The bound of the first delay.
        max_delay_s: The bound of any delay.
    """

    on: tuple[type[Exception], ...] = (Unavailable, TimedOut, Busy)
    max_attempts: int = 3
    first_delay_s: float = 1.0
    max_delay_s: float = 60.0

    def delay_s(self, attempt: int, error: Exception) -> float | None:
        """Return how long to wait after that failed attempt (from 1); ``None`` to give up."""
        if attempt >= self.max_attempts or not isinstance(error, self.on):
            return None
        bound = min(self.max_delay_s, self.first_delay_s * 2.0 ** min(attempt - 1, 60))
        least = error.retry_after_s if isinstance(error, KsiError) else None
        return max(random.uniform(0.0, bound), least or 0.0)


ONCE: Final = Retry(max_attempts=1)


class StepCaller(Protocol):
    """Calls steps so that their outcome is recorded: a run."""

    async def call_step(self, step: "Step[Any, Any]", call: Callable[[], Any]) -> Any:
        """Return what the step returned, now or before."""


# The run whose body is executed here; none while a step is, since steps are not nested.
ACTIVE_RUN: Final[ContextVar[StepCaller | None]] = ContextVar("ksi_workflows_run", default=None)


class Workflow(Generic[A, R]):
    """A declared workflow; calling it runs its body as it is, which is good for tests.

    Made by `workflow`.
    """

    def __init__(
        self,
        function: Callable[..., Awaitable[R]],
        *,
        name: str,
        version: int,
        accepts: tuple[int, ...] = (),
        queue: str | None = None,
        timeout_s: float | None = None,
    ) -> None:
        self.function = function
        self.name = name
        self.version = version
        self.accepts = accepts
        self.queue = queue
        self.timeout_s = timeout_s
        self.args_type, self.result_type = _types_of(function)
        functools.update_wrapper(self, function)

    def __call__(self, *args: Any) -> Awaitable[R]:
        """Run the body as it is, without a record."""
        return self.function(*args)

    def __get__(self, instance: object, owner: type | None = None) -> "Workflow[A, R]":
        if instance is None:
            return self
        return Workflow(
            self.function.__get__(instance, owner),
            name=self.name,
            version=self.version,
            accepts=self.accepts,
            queue=self.queue,
            timeout_s=self.timeout_s,
        )


def workflow(
    name: str,
    *,
    version: int = 1,
    accepts: tuple[int, ...] = (),
    queue: str | None = None,
    timeout_s: float | None = None,
) -> Callable[[Callable[..., Awaitable[R]]], Workflow[Any, R]]:
    """Declare a coroutine function to be a workflow.

    It takes one argument, or none, of any type that msgspec can read, and its result is such a
    type. Between its steps it must do the same each time: no clock, no chance, no input and
    output but in steps.

    Args:
        name: How it is started; stable for ever.
        version: Raise it when steps are added, removed or put in another order, and keep the old
            function registered until its runs have ended.
        accepts: Older versions whose runs this function can go on with.
        queue: The queue that its runs go to, unless the starter names another.
        timeout_s: How long a run may take from its first start on, recoveries included.
    """
    check_name(f"workflow:{name}")
    if version < 1:
        raise InvalidData("a workflow's version is 1 or more")

    def declare(function: Callable[..., Awaitable[R]]) -> Workflow[Any, R]:
        if not inspect.iscoroutinefunction(function):
            raise TypeError(f"the workflow {name} must be a coroutine function")
        return Workflow(
            function,
            name=name,
            version=version,
            accepts=accepts,
            queue=queue,
            timeout_s=timeout_s,
        )

    return declare


class Step(Generic[P, R]):
    """A declared step; inside of a run its outcome is recorded, outside it is just called.

    Made by `step`.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        name: str,
        retries: Retry,
        timeout_s: float | None,
        preemptible: bool,
    ) -> None:
        self.function = function
        self.name = name
        self.retries = retries
        self.timeout_s = timeout_s
        self.preemptible = preemptible
        self.is_plain = not inspect.iscoroutinefunction(function)
        self.result_type = get_type_hints(function).get("return", Any)
        if self.is_plain and (timeout_s is not None or preemptible):
            raise TypeError(f"the step {name} runs in a thread, which nothing can end early")
        functools.update_wrapper(self, function)

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Return what the function does; inside of a run, what is recorded of it."""
        run = ACTIVE_RUN.get()
        call = functools.partial(self.function, *args, **kwargs)
        if run is not None:
            result: R = await run.call_step(self, call)
        elif self.is_plain:
            result = await asyncio.to_thread(call)
        else:
            result = await call()
        return result

    def __get__(self, instance: object, owner: type | None = None) -> Callable[..., Awaitable[R]]:
        return self if instance is None else functools.partial(self.__call__, instance)  # type: ignore[arg-type]  # the instance is the first of P.args


class StepDecorator(Protocol):
    """Makes a step of a coroutine function, or of a plain one."""

    @overload
    def __call__(self, function: Callable[P, Awaitable[R]], /) -> Step[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Step[P, R]: ...


@overload
def step(function: Callable[P, Awaitable[R]], /) -> Step[P, R]: ...
@overload
def step(function: Callable[P, R], /) -> Step[P, R]: ...
@overload
def step(
    *,
    name: str | None = None,
    retries: Retry = ONCE,
    timeout_s: float | None = None,
    preemptible: bool = False,
) -> StepDecorator: ...


def step(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    retries: Retry = ONCE,
    timeout_s: float | None = None,
    preemptible: bool = False,
) -> Any:
    """Declare a function to be a step of workflows.

    Its outcome is recorded when it ends: what it returned or raised comes back whenever the run is
    begun again, without a call. A step that was interrupted before that is called again, so it
    should be idempotent, or look first. A plain function is called in a thread.

    Args:
        function: The function, where the decorator is used without arguments.
        name: What it is recorded as; the function's qualified name unless given. Stable.
        retries: Which errors are tried again; none unless given.
        timeout_s: How long each try may take.
        preemptible: Whether cancelling the run ends the step at once, rather than after it.
    """

    def declare(declared: Callable[..., Any]) -> Step[Any, Any]:
        return Step(
            declared,
            name=name or declared.__qualname__,
            retries=retries,
            timeout_s=timeout_s,
            preemptible=preemptible,
        )

    return declare if function is None else declare(function)


def _types_of(function: Callable[..., Any]) -> tuple[Any, Any]:
    """Return the type of a workflow's only argument, ``None`` for no argument, and its result's."""
    hints = get_type_hints(function)
    parameters = list(inspect.signature(function).parameters.values())
    if parameters and parameters[0].name == "self" and not hasattr(function, "__self__"):
        parameters = parameters[1:]
    if len(parameters) > 1:
        raise TypeError(f"{function.__qualname__} must take one argument at most: a Struct")
    args_type = hints.get(parameters[0].name, Any) if parameters else None
    return args_type, hints.get("return", Any)
