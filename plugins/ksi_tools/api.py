"""What a plugin imports that brings tools.

    from ksi_tools.api import ToolContext, Tools, tool

    @tool(effects="effectful", timeout_s=30.0)
    async def send_mail(to: str, text: str, context: ToolContext) -> str:
        \"\"\"Send a mail.\"\"\"
        ...

In the plugin's lifespan, with ``requires=("tools",)``:

    tools = plugin.service(Tools)
    with tools.add(send_mail, provider=plugin.name):
        yield
"""

from ksi_tools.bearers import Scopes, scopes_of
from ksi_tools.functions import tool
from ksi_tools.registry import (
    ProviderRegistration,
    Registration,
    ToolProvider,
    Tools,
    ToolSpec,
    gathered,
)
from ksi_tools.text import Output
from ksi_tools.tool import Progress, Question, ToolContext

__all__ = [
    "Output",
    "Progress",
    "ProviderRegistration",
    "Question",
    "Registration",
    "Scopes",
    "ToolContext",
    "ToolProvider",
    "ToolSpec",
    "Tools",
    "gathered",
    "scopes_of",
    "tool",
]
