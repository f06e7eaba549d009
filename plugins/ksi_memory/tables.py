"""Names the tables that are always there, and says what they hold."""

from typing import Final

TABLES: Final = {
    "resources": "chunks of documents, each with where it stands in which",
    "ontologies": "knowledge as Markdown: a page, its headings and its links",
    "entities": "people, projects, things, and how they hang together",
    "moments": "what happened when: parts of conversations, notes, uploads, dreams",
    "facts": "what always holds of a user or a project, and is always in a model's context",
    "associations": "how strongly two entities hang together",
    "patterns": "what recurs, with the confidence that it does",
    "schemas": "what is registered: models, agents, tools, tables, with their JSON Schemas",
    "files": "what was uploaded or loaded, whole",
    "feedback": "what people said of answers",
    "servers": "where tools and models are served",
    "tools": "what agents can call",
    "users": "who talks to the agents",
}
