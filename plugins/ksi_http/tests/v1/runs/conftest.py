"""A daemon that has turns and agents, as that of the AG-UI tests."""

from ksi_http.tests.agui.conftest import (
    database_template,
    ksi_plugins,
    ksi_settings_of_models,
    script,
)

__all__ = ["database_template", "ksi_plugins", "ksi_settings_of_models", "script"]
