"""The settings of the memory."""

from typing import Annotated

from msgspec import Meta, Struct

from ksi_daemon.settings import Positive, Seconds


class MemorySettings(Struct, frozen=True, kw_only=True):
    """The section ``[memory]``.

    Attributes:
        max_attributes_bytes: Size of an item's attributes, as JSON.
        max_item_characters: Length of an item's title and body; what is longer is loaded in chunks.
        max_item_links: How many edges, sources or persons an item may name, of each.
        max_why_steps: How far, and how wide, the chain of an item's sources is followed.
        chunk_characters: How long a chunk of a document is, unless a load says otherwise.
        overlap_characters: How much of a chunk the next one repeats.
        max_file_bytes: Size of a file that is loaded.
        max_document_characters: Length of a document's text.
        max_unpacked_bytes: What a packed document, such as a DOCX, may come to.
        max_load_files: Files of one load.
        reader_timeout_s: How long reading a PDF, a DOCX and their like may take.
        reader_memory_mb: What that may take, in megabytes of address space.
        max_upload_bytes: Size of a file that is uploaded.
        max_open_uploads: Uploads of a tenant that may be under way.
        upload_keep_s: How long an upload is kept that nobody goes on with.
        remember: Whether what is said in conversations is remembered, and summed up in moments.
        remember_after_s: How long after a turn that begins; turns that end meanwhile are read
            together.
        sweep_interval_s: How often is looked for turns that a daemon left unread when it died.
        compact_tokens: From how many tokens on, that no moment covers, a conversation is summed up
            in one.
        moment_tokens: How long that is.
        summary_model: The model that writes moments; none unless given: the best sentences stand
            for what was said.
        extraction_model: The model that looks for facts besides the rules; none unless given.
        model_timeout_s: How long a model may take for either.
        model_tokens_per_day: What such models may take of a tenant's day, in tokens.
        model_usd_per_day: The same in dollars.
        recall_timeout_s: How long is looked for what a turn should know; what is late is left out.
        recall_results: How many things are found for a prompt, at most.
        max_recalled_facts: How many facts are told before each turn.
        max_recalled_patterns: How many patterns are.
        pattern_days: How long a pattern that is not seen again counts.
        dream_schedule: When to dream, as five fields of cron, in UTC; never unless given.
        dream_days: How far back a dream goes.
        max_dream_items: How many items of an owner a dream reads.
        max_dream_tokens: How many tokens of them.
        dream_usd: What models may cost in one dream.
        embedder: What makes vectors: ``auto`` (MiniLM by fastembed, where that is installed),
            ``none``, a folder with an ONNX model, a provider's ``provider:model``, or ``test``.
        embedder_threads: Of an embedder that runs here; 0: as many as there are processors.
        embed_batch_texts: How many texts are embedded at once.
        embed_timeout_s: How long that may take.
        embed_lease_s: After how long texts are another's to embed, when their daemon has gone.
        question_timeout_s: How long embedding a question may take; then it is searched by words.
        association_half_life_days: After how many days a mention together counts half.
        max_query_chars: Length of a question, in the dialect or in SQL.
        max_answer_chars: Length of all texts of an answer together; bodies are left out first.
        traverse_max_depth: How many steps a walk along edges goes.
        traverse_max_nodes: How many nodes it comes to.
        traverse_max_edges: How many edges it looks at in a step.
        traverse_max_time_s: How long it begins further steps.
    """

    max_attributes_bytes: Positive = 64 * 1024
    max_item_characters: Positive = 200_000
    max_item_links: Positive = 1000
    max_why_steps: Positive = 200
    chunk_characters: Annotated[int, Meta(ge=100, le=100_000)] = 1500
    overlap_characters: Annotated[int, Meta(ge=0, le=50_000)] = 200
    max_file_bytes: Positive = 64 * 1024 * 1024
    max_document_characters: Positive = 5_000_000
    max_unpacked_bytes: Positive = 256 * 1024 * 1024
    max_load_files: Positive = 1_000_000
    reader_timeout_s: Annotated[float, Meta(gt=0)] = 60.0
    reader_memory_mb: Annotated[int, Meta(ge=256)] = 1024
    max_upload_bytes: Positive = 64 * 1024 * 1024
    max_open_uploads: Positive = 32
    upload_keep_s: Annotated[float, Meta(ge=60)] = 24 * 3600.0
    remember: bool = True
    remember_after_s: Seconds = 1.0
    sweep_interval_s: Annotated[float, Meta(gt=0)] = 300.0
    compact_tokens: Annotated[int, Meta(ge=200)] = 4000
    moment_tokens: Annotated[int, Meta(ge=50)] = 300
    summary_model: Annotated[str, Meta(max_length=200)] = ""
    extraction_model: Annotated[str, Meta(max_length=200)] = ""
    model_timeout_s: Annotated[float, Meta(gt=0)] = 60.0
    model_tokens_per_day: Annotated[int, Meta(ge=0)] = 500_000
    model_usd_per_day: Annotated[float, Meta(ge=0)] = 1.0
    recall_timeout_s: Seconds = 0.5
    recall_results: Annotated[int, Meta(ge=0, le=100)] = 10
    max_recalled_facts: Annotated[int, Meta(ge=0, le=1000)] = 40
    max_recalled_patterns: Annotated[int, Meta(ge=0, le=100)] = 5
    pattern_days: Annotated[float, Meta(gt=0)] = 30.0
    dream_schedule: Annotated[str, Meta(max_length=200)] = ""
    dream_days: Annotated[float, Meta(gt=0)] = 7.0
    max_dream_items: Annotated[int, Meta(ge=1, le=20_000)] = 2000
    max_dream_tokens: Positive = 200_000
    dream_usd: Annotated[float, Meta(ge=0)] = 0.25
    embedder: Annotated[str, Meta(min_length=1, max_length=4096)] = "auto"
    embedder_threads: Annotated[int, Meta(ge=0)] = 0
    embed_batch_texts: Annotated[int, Meta(ge=1, le=2048)] = 256
    embed_timeout_s: Annotated[float, Meta(gt=0)] = 120.0
    embed_lease_s: Annotated[float, Meta(gt=0)] = 300.0
    question_timeout_s: Annotated[float, Meta(gt=0)] = 5.0
    association_half_life_days: Annotated[float, Meta(gt=0)] = 30.0
    max_query_chars: Positive = 10_000
    max_answer_chars: Positive = 500_000
    traverse_max_depth: Positive = 10
    traverse_max_nodes: Positive = 1000
    traverse_max_edges: Positive = 20_000
    traverse_max_time_s: Seconds = 1.0
