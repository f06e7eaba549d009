"""The tools that are always there."""

from datetime import UTC, datetime
from typing import Annotated
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from msgspec import Meta

from ksi_daemon.protocol import InvalidData
from ksi_tools.events import ToolName
from ksi_tools.functions import tool


@tool(effects="read_only", interactive=True)
def ask_user(
    question: Annotated[str, Meta(min_length=1, max_length=10_000)],
    choices: Annotated[tuple[str, ...], Meta(max_length=50)] = (),
) -> str:
    """Ask the person a question, and wait for the answer, however long that takes.

    Use it when only a person can know or decide. Offer choices where there are only a few; the
    answer may be another all the same.
    """
    return "\n".join([question, *(f"- {each}" for each in choices)])


@tool(effects="read_only", interactive=True)
def client_tool(
    name: ToolName, arguments: Annotated[str, Meta(max_length=1_000_000)] = "{}"
) -> str:
    """Have the program that a person uses do something, and wait for what it says.

    It is called in the place of a tool that a turn's client has; models are offered those by their
    own names.
    """
    return name


@tool(effects="read_only", timeout_s=5.0)
async def current_time(timezone: Annotated[str, Meta(max_length=100)] = "UTC") -> str:
    """Tell the date and the time, in a time zone such as Europe/Berlin."""
    try:
        now = datetime.now(UTC).astimezone(ZoneInfo(timezone))
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise InvalidData(f"there is no time zone {timezone!r}") from error
    return f"{now:%A} {now.isoformat(timespec='seconds')}"
