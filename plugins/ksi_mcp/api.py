"""What a plugin imports whose tools, prompts or resources say more in MCP than text.

A tool may return content of any kind. Other programs get it as it is; models are told the texts,
and of what kind and how large the rest is, which is kept as the call's output:

    return Content(blocks=[{"type": "image", "data": base64, "mimeType": "image/png"}])

A tool that is called by another program may ask that program for something: for words of the
person in front of it (``elicitation/create``), an answer of its model
(``sampling/createMessage``), or its roots (``roots/list``). It is then called again with what was
answered, so it asks before it does anything:

    exchange = current_exchange()
    if exchange is None or exchange.answers is None:
        return asking(who={"method": "elicitation/create", "params": {...}})
    name = exchange.answers["who"]["content"]["name"]

Prompts and resources are added in the plugin's lifespan, with ``requires=("mcp",)``:

    with plugin.service(Offers).add(prompts=[...], resources=[...]):
        yield
"""

from ksi_mcp.exchange import Content, Exchange, asking, current_exchange
from ksi_mcp.offers import Offers, Prompt, Resource, ResourceTemplate

__all__ = [
    "Content",
    "Exchange",
    "Offers",
    "Prompt",
    "Resource",
    "ResourceTemplate",
    "asking",
    "current_exchange",
]
