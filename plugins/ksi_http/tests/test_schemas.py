"""What the OpenAPI page says is so: made-up requests to all routes are answered as it says."""

import asyncio
from typing import Any

import hypothesis
import pytest
import schemathesis
from schemathesis.checks import load_all_checks
from schemathesis.config import SchemathesisConfig
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from ksi_daemon.loader import EntryPoint
from ksi_daemon.testing import installed_plugins
from ksi_http.testing import HttpServer

NEEDED = ("postgres", "workflows", "tools", "models", "completion", "agents", "memory", "http")
CHECKS = (content_type_conformance, response_schema_conformance, status_code_conformance)
# What never ends by itself, or speaks something else.
LEFT_OUT = ("/v1/events/stream", "/v1/socket")
EXAMPLES = 1
TIMEOUT_S = 10.0


@pytest.fixture(scope="session")
def database_template(engine_template: str) -> str:
    """Copy a database that has the engine's tables."""
    return engine_template


@pytest.fixture
def ksi_settings() -> list[str]:
    """Fetch no model, and wait for nothing."""
    return ["memory.embedder=none"]


@pytest.fixture
def http_settings() -> dict[str, Any]:
    """What would wait for long ends as a time-out; all requests come from one client."""
    return {"request_timeout_s": 0.5, "requests_per_s": 0.0}


@pytest.fixture
def ksi_plugins() -> list[EntryPoint]:
    """Everything that has routes."""
    return installed_plugins(*NEEDED)


def tried(document: dict[str, Any], url: str, headers: dict[str, str]) -> tuple[int, list[str]]:
    """Send made-up requests to every route; return how many there were, and what was wrong."""
    load_all_checks()
    schema = schemathesis.openapi.from_dict(document, config=SchemathesisConfig())
    wrong: list[str] = []
    sent = 0
    for found in schema.get_all_operations():
        assert isinstance(found, Ok), found
        operation = found.ok()
        if operation.path in LEFT_OUT:
            continue

        @hypothesis.settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[hypothesis.Phase.generate],
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(case=operation.as_strategy())
        def send(case: Any) -> None:
            nonlocal sent
            sent += 1
            response = case.call(base_url=url, headers=headers, timeout=TIMEOUT_S)
            if response.status_code == 500:
                wrong.append(f"{case.as_curl_command()} -> {response.text}")
            try:
                case.validate_response(response, checks=CHECKS)
            except (Failure, FailureGroup) as error:
                wrong.append(f"{case.method} {case.path}: {str(error)[:1500]}")

        send()
    return sent, wrong


@pytest.mark.filterwarnings("ignore:Do not use the `random` module")  # schemathesis does
@pytest.mark.timeout(120)
async def test_made_up_requests_are_answered_as_the_page_says(http: HttpServer) -> None:
    _, document = await http.get("/openapi.json")

    sent, wrong = await asyncio.to_thread(tried, document, http.url, http.authorization())

    assert sent >= EXAMPLES * len(document["paths"]) / 2
    assert not wrong, "\n".join(wrong)
