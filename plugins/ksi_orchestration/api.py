"""What a plugin imports that brings patterns of its own.

    from ksi_orchestration.api import Patterns

    PANEL = '''
    name: panel
    description: Two experts answer, and a host sums up.
    roles:
      expert: { agent: researcher, count: 2 }
      host: { agent: summarizer }
    stages:
      - { name: answers, kind: parallel, members: [expert] }
      - { name: summary, kind: judge, members: [host] }
    '''

In the plugin's lifespan, with ``requires=("orchestration",)``:

    with plugin.service(Patterns).offered(PANEL, provider=plugin.name):
        yield

A `Pattern` made in Python may stand for the text.
"""

from ksi_orchestration.pattern import (
    Condition,
    OnFailure,
    Pattern,
    PatternLimits,
    Role,
    Route,
    Stage,
    Until,
)
from ksi_orchestration.patterns import Found, Patterns

__all__ = [
    "Condition",
    "Found",
    "OnFailure",
    "Pattern",
    "PatternLimits",
    "Patterns",
    "Role",
    "Route",
    "Stage",
    "Until",
]
