"""What can be declared, and how retries are spread."""

import pytest

from ksi_daemon.protocol import Conflict, Unavailable
from ksi_workflows.api import Retry, step, workflow
from ksi_workflows.codec import decode_error, encode_error, error_of
from ksi_workflows.runs import Definitions


def test_delays_are_spread_over_all_of_a_bound_that_doubles() -> None:
    retry = Retry(on=(ValueError,), max_attempts=50, first_delay_s=1.0, max_delay_s=8.0)

    for attempt, bound in ((1, 1.0), (2, 2.0), (4, 8.0), (40, 8.0)):
        delays = [retry.delay_s(attempt, ValueError()) or 0.0 for _ in range(400)]
        assert max(delays) <= bound
        assert max(delays) > 0.9 * bound
        assert min(delays) < 0.1 * bound


def test_an_error_that_says_when_to_come_back_is_heard() -> None:
    retry = Retry(on=(Unavailable,), first_delay_s=0.001)

    assert (retry.delay_s(1, Unavailable("later", retry_after_s=5.0)) or 0.0) >= 5.0


def test_other_errors_and_the_last_attempt_are_not_tried_again() -> None:
    retry = Retry(on=(ValueError,), max_attempts=3)

    assert retry.delay_s(1, KeyError()) is None
    assert retry.delay_s(3, ValueError()) is None
    assert retry.delay_s(2, ValueError()) is not None


def test_a_limit_that_can_not_be_kept_is_refused() -> None:
    with pytest.raises(TypeError, match="runs in a thread"):

        @step(timeout_s=1.0)
        def plain() -> None: ...


def test_a_workflow_is_a_coroutine_function_of_one_argument() -> None:
    with pytest.raises(TypeError, match="coroutine function"):

        @workflow("plain")  # type: ignore[arg-type]  # that is wrong
        def plain() -> None: ...

    with pytest.raises(TypeError, match="one argument"):

        @workflow("two")
        async def two(a: int, b: int) -> None: ...


async def test_a_method_can_be_a_workflow_and_a_step() -> None:
    class Shop:
        def __init__(self) -> None:
            self.sold = 0

        @step
        async def sell(self, count: int) -> int:
            self.sold += count
            return self.sold

        @workflow("trade")
        async def trade(self, count: int) -> int:
            return await self.sell(count)

    shop = Shop()

    assert shop.trade.args_type is int
    assert await shop.trade(2) == 2
    assert shop.sold == 2


async def test_a_run_goes_on_with_its_version_or_with_one_that_accepts_it() -> None:
    definitions = Definitions()

    async def body() -> None: ...

    async def other() -> None: ...

    one, three = workflow("w")(body), workflow("w", version=3, accepts=(2,))(other)
    definitions.add(one)
    definitions.add(three)

    assert definitions.find("w", 1) is one
    assert definitions.find("w", 2) is three
    assert definitions.find("w", 4) is None
    assert definitions.newest("w") is three
    assert definitions.runnable() == [("w", 1), ("w", 2), ("w", 3)]
    with pytest.raises(Conflict):
        definitions.add(workflow("w")(other))


def test_an_error_keeps_its_class_code_and_details() -> None:
    made = Unavailable("later", retry_after_s=2.0, details={"why": "rain"})

    back = error_of(decode_error(encode_error(made)))

    assert isinstance(back, Unavailable)
    assert (back.message, back.retry_after_s, back.details) == ("later", 2.0, {"why": "rain"})
