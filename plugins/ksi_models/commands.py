"""Which models there are and what they have cost: ``ksi model`` and ``ksi usage``."""

import os
import re
import shutil
from collections.abc import Iterator
from typing import Annotated, Final, get_args

import typer

from ksi_cli import completion, output
from ksi_cli.connection import connect, show_answer
from ksi_cli.findings import Finding, ok, warn
from ksi_cli.output import JsonFlag, UsageError
from ksi_cli.times import time_of
from ksi_daemon.protocol.errors import error_from
from ksi_daemon.protocol.names import did_you_mean
from ksi_daemon.protocol.paths import home_directory
from ksi_models import events as e

app = typer.Typer(rich_markup_mode=None, help="List models, check a login, see prices.")

AN_EXAMPLE: Final = "2026-01-31, or 7d for a week ago"
MAX_SHOWN: Final = 40

Model = Annotated[
    str | None,
    typer.Argument(
        metavar="[MODEL]", help="provider:model, or an alias.", autocompletion=completion.models
    ),
]
By = Annotated[
    str,
    typer.Option(
        metavar="KEYS",
        help=f"What to sum up by, with commas between: {', '.join(get_args(e.UsageKey))}.",
    ),
]
Since = Annotated[
    str, typer.Option(metavar="TIME", help="Not before: 2026-01-31, or 2h, 7d, 4w ago.")
]
Until = Annotated[str, typer.Option(metavar="TIME", help="Before.")]


# -- list ----------------------------------------------------------------------------------------


@app.command("list")
def list_models(
    provider: Annotated[
        str | None, typer.Argument(metavar="[PROVIDER]", help="Of this provider alone.")
    ] = None,
    *,
    all_models: Annotated[
        bool, typer.Option("--all", help=f"More than {MAX_SHOWN}, where there are.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """List the models that can be asked, and why others can't.

    Prices are US dollars for a million tokens in and out.
    """

    def text(listed: e.ModelListed) -> str:
        return list_text(listed, provider, None if all_models else MAX_SHOWN)

    show_answer("model:list", e.ModelList(provider=provider), e.ModelListed, text, as_json=as_json)


def list_text(listed: e.ModelListed, provider: str | None, limit: int | None) -> str:
    """Lay models and providers out."""
    rows = [
        (
            each.id + (" *" if each.is_default else ""),
            thousands(each.context_tokens),
            price(each.input_usd),
            price(each.output_usd),
        )
        for each in listed.models[:limit]
    ]
    parts = []
    if rows:
        parts.append(output.table(("MODEL", "READS", "IN", "OUT"), rows))
    else:
        parts.append("no model can be asked" + (f" of {provider}" if provider else ""))
    if limit is not None and len(listed.models) > limit:
        parts[-1] += f"\n… and {len(listed.models) - limit} more: --all, or name a provider"
    parts.append(f"* the default: {listed.default}")
    if listed.aliases:
        aliases = [(name, " → ".join(chain)) for name, chain in sorted(listed.aliases.items())]
        parts.append(output.table(("ALIAS", "MEANS"), aliases))
    parts.append(provider_table(listed.providers))
    if listed.hint:
        parts.append(output.paragraphs(listed.hint))
    return "\n\n".join(filter(None, parts))


def provider_table(providers: tuple[e.ProviderInfo, ...]) -> str:
    """Lay providers out, those that can be used first."""
    ordered = sorted(providers, key=lambda each: (not each.is_usable, each.name))
    rows = [(each.name, "yes" if each.is_usable else "no", state(each)) for each in ordered]
    return output.table(("PROVIDER", "USABLE", "STATE"), rows) if rows else ""


def state(provider: e.ProviderInfo) -> str:
    """Say how a provider is doing."""
    if not provider.is_usable:
        return provider.why_not or "it can't be used"
    parts = []
    if provider.state != "closed":
        parts.append("it failed again and again, and is left alone for a while")
    if provider.running or provider.waiting:
        bound = f" of {provider.max_concurrent}" if provider.max_concurrent else ""
        parts.append(f"{provider.running}{bound} running, {provider.waiting} waiting")
    return "; ".join(parts)


# -- check ---------------------------------------------------------------------------------------


@app.command()
def check(
    model: Model = None,
    *,
    timeout_s: Annotated[
        float, typer.Option(min=1, max=600, metavar="SECONDS", help="How long it may take.")
    ] = 30.0,
    as_json: JsonFlag = False,
) -> None:
    """Make one real, tiny call, which proves that a model can be used.

    It may cost a fraction of a cent. Exit code 0: it answered.
    """
    ask = e.ModelCheck(model=model, timeout_s=timeout_s)
    with connect(timeout_s=timeout_s + 30) as client:
        checked = client.request("model:check", ask, result_type=e.ModelChecked)
    output.show(checked, check_text, as_json=as_json)
    if not checked.ok:
        error = None if checked.error is None else error_from(checked.error)
        raise typer.Exit(output.FAILED if error is None else output.exit_code(error))


def check_text(checked: e.ModelChecked) -> str:
    """Say whether a model answered."""
    if checked.ok:
        served = checked.served
        as_what = f" as {served}" if served and not checked.model.endswith(served) else ""
        return f"{checked.model} answers{as_what}, in {checked.latency_ms / 1000:.2f} s"
    why = checked.error.message if checked.error else "no reason is known"
    told = f"{checked.model} does not answer: {why.removeprefix(f'{checked.model}: ')}"
    if checked.next_step and checked.next_step not in why:
        told += f"\nnext: {checked.next_step}"
    return told


# -- for ksi doctor ------------------------------------------------------------------------------


def logins() -> Iterator[Finding]:
    """Look which providers this environment has a login for; keys themselves are never shown."""
    from ksi_models.settings import KEY_VARIABLES  # noqa: PLC0415  only ksi doctor needs it

    found = [f"${name}" for name in KEY_VARIABLES if os.environ.get(name)]
    folder = home_directory() / "keys"
    found += [f"keys/{output.displayed(path.name)}" for path in sorted(folder.glob("*"))]
    if shutil.which("claude"):
        found.append("the claude command")
    if found:
        yield ok("logins", f"there are: {', '.join(found)}")
    else:
        what = "there is no key, and no claude command, unless the daemon has others or a keyring"
        yield warn("logins", what, "export ANTHROPIC_API_KEY=…")


# -- prices --------------------------------------------------------------------------------------


@app.command()
def prices(model: Model = None, *, as_json: JsonFlag = False) -> None:
    """Show prices: US dollars for a million tokens.

    Without a model, those of the models that have been used.
    """
    ask = e.ModelPrices(model=model)
    show_answer("model:prices", ask, e.ModelPriced, prices_text, as_json=as_json)


def prices_text(priced: e.ModelPriced) -> str:
    """Lay prices out."""
    rows = [
        (
            each.model,
            price(each.input_usd),
            price(each.output_usd),
            price(each.cache_read_usd),
            price(each.cache_write_usd),
        )
        for each in priced.prices
    ]
    if not rows:
        return "no model has been used yet; name one: ksi model prices MODEL"
    return output.table(("MODEL", "IN", "OUT", "CACHE READ", "CACHE WRITE"), rows)


# -- usage ---------------------------------------------------------------------------------------


@app.command("usage")
def model_usage(
    *, by: By = "model", since: Since = "", until: Until = "", as_json: JsonFlag = False
) -> None:
    """Show what models have cost; as `ksi usage`."""
    usage(by=by, since=since, until=until, as_json=as_json)


def usage(
    *,
    by: By = "model",
    since: Since = "",
    until: Until = "",
    model: Annotated[str | None, typer.Option(metavar="MODEL", help="Of this model.")] = None,
    agent: Annotated[str | None, typer.Option(metavar="AGENT", help="Of this agent.")] = None,
    conversation: Annotated[
        str | None, typer.Option(metavar="ID", help="Of this conversation.")
    ] = None,
    run: Annotated[str | None, typer.Option(metavar="ID", help="Of this turn.")] = None,
    limit: Annotated[
        int, typer.Option("--lines", "-n", min=1, max=1000, metavar="N", help="How many rows.")
    ] = 20,
    as_json: JsonFlag = False,
) -> None:
    """Show what models have been used for, and what that cost.

    A cost whose price is not known is left out of the sum, and said to be.
    """
    ask = e.ModelUsage(
        by=keys(by),
        since=time_of(since, AN_EXAMPLE),
        until=time_of(until, AN_EXAMPLE),
        model=model,
        agent=agent,
        conversation=conversation,
        run=run,
        limit=limit,
    )
    show_answer("model:usage", ask, e.ModelUsed, usage_text, as_json=as_json)


def keys(text: str) -> tuple[e.UsageKey, ...]:
    """Read what to sum up by.

    Raises:
        UsageError: It is none of the keys there are.
    """
    known = get_args(e.UsageKey)
    found = tuple(filter(None, re.split(r"[,\s]+", text)))
    for key in found:
        if key not in known:
            hint = did_you_mean(key, known) or f"; there are: {', '.join(known)}"
            raise UsageError(f"usage can't be summed up by {key!r}{hint}")
    if not found:
        raise UsageError(f"--by needs one of: {', '.join(known)}")
    return found


def usage_text(used: e.ModelUsed) -> str:
    """Lay usage out, and its sum."""
    if not used.rows:
        return 'no model has been called; begin with: ksi ask "What is a daemon?"'
    names = list(used.rows[0].by)
    rows = [(*(each.by.get(name) or "-" for name in names), *figures(each)) for each in used.rows]
    if len(used.rows) > 1:
        rows.append(("all", *[""] * (len(names) - 1), *figures(used.total)))
    headings = (*(name.upper() for name in names), "CALLS", "IN", "OUT", "COST")
    told = [output.table(headings, rows)]
    if used.total.failed_calls:
        told.append(f"{used.total.failed_calls} of the calls failed")
    if used.total.unpriced_calls:
        told.append(f"+ {used.total.unpriced_calls} calls whose price is not known")
    return "\n".join(told)


def figures(row: e.UsageRow) -> tuple[str, str, str, str]:
    """Return the columns with figures."""
    cost = dollars(row.cost_usd)
    if row.unpriced_calls:
        cost = f"{cost} +" if row.cost_usd else "unknown"
    return (
        str(row.calls), thousands(row.input_tokens), thousands(row.output_tokens), cost
    )  # fmt: skip


def thousands(number: int | None) -> str:
    """Write a number of tokens short."""
    if number is None:
        return "?"
    for size, unit in ((1_000_000, "M"), (1_000, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)


def price(amount: float | None) -> str:
    """Write a price; one that is not known is not nothing."""
    return "?" if amount is None else f"${amount:.4g}"


def dollars(amount: float) -> str:
    """Write a cost, a small one to where it differs from nothing."""
    if amount == 0:
        return "$0"
    return f"${amount:.4f}" if amount < 0.1 else f"${amount:,.2f}"
