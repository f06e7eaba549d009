"""The test kit of the durable engine, as a pytest plugin: ``engine_template``.

The engine makes its tables when a daemon first uses a database, which takes a second. Tests that
run many daemons spare it by copying a database that has them, in their ``conftest.py``:

    @pytest.fixture(scope="session")
    def database_template(engine_template):
        return engine_template
"""

from typing import Any
from urllib.parse import urlsplit

import pytest

from ksi_postgres.testing import TestServer, fresh_database

__all__ = ["engine_template"]


@pytest.fixture(scope="session")
def engine_template(_postgres_loop: Any, postgres_server: TestServer) -> str:
    """The name of a database that has the engine's tables already, to be copied."""
    from ksi_workflows.engine import make_tables  # noqa: PLC0415  it takes a second, and few need it

    logins = _postgres_loop.run(fresh_database(postgres_server))
    make_tables(logins.admin)
    return str(urlsplit(logins.admin).path).removeprefix("/")
