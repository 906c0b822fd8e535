"""What people read in the terminal: progress, tables, quiet logs."""

from __future__ import annotations

import logging
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from pipeline.local.runner import NodeEvent

# Titles and messages are data: nothing in them is markup or the name of an emoji.
_console = Console(emoji=False)
_WIDE = 165


def say(what: Any, style: str | None = None) -> None:
    """Prints text as it is, or anything that rich can draw."""
    _console.print(what, style=style, markup=False, highlight=False)


def say_wide(table: Table) -> None:
    """Prints a table that needs more columns than most terminals have."""
    Console(emoji=False, width=max(_console.width, _WIDE)).print(table, markup=False)


def set_up_logging(verbose: bool) -> None:
    """Our own progress always; the libraries' logs only if asked for."""
    level = logging.INFO if verbose else logging.ERROR
    logging.basicConfig(level=level, format="%(name)s: %(message)s", force=True)
    for root_handler in logging.getLogger().handlers:
        root_handler.setLevel(level)  # loggers with a level of their own reach it, too
    ours = logging.getLogger("csmf")
    ours.setLevel(logging.INFO)
    ours.propagate = False
    handler = RichHandler(console=_console, show_time=False, show_path=False, show_level=False)
    handler.setFormatter(logging.Formatter("  %(message)s"))
    ours.handlers = [handler]
    if not verbose:
        warnings.filterwarnings("ignore")


class NodeProgress:
    """Prints a line when a node starts and how long it took when it ends."""

    def __init__(self) -> None:
        self._started = 0.0

    def __call__(self, node: str, event: NodeEvent) -> None:
        """See `pipeline.local.runner.NodeProgress`."""
        if event == "starts":
            self._started = time.monotonic()
            say(node, "bold cyan")
        elif event == "executed":
            say(f"  done in {time.monotonic() - self._started:.1f} s", "green")
        else:
            say("  unchanged, taken from the cache", "dim")


def show_summary(summary: dict[str, Any], path: Path) -> None:
    """Prints the result of a run, and a table of what failed if anything did."""
    if rows := summary["rows"]:
        dropped = ", ".join(f"{n:,} {rule}" for rule, n in sorted(rows["dropped"].items()))
        say(
            f"Interactions: {rows['read']:,} rows read, {rows['used']:,} used, "
            f"{rows['dead_letters']:,} dead letters, dropped: {dropped or 'none'}."
        )
    if summary["metrics"]:
        _show_metrics(summary)
    if summary["anomalies"]:
        say("Anomalies in the data:", "red")
        for line in summary["anomalies"]:
            say(f"  {line}")
    if summary["blessed"] is False:
        _show_failed(summary["failed_checks"])
        say("Not blessed: nothing was pushed.", "red bold")
    elif summary["pushed_version"] is not None:
        say(f"Blessed and pushed as version {summary['pushed_version']}.", "green bold")
        if summary["newest_version"] != summary["pushed_version"]:
            say(
                f"That was an earlier run; the newest version is {summary['newest_version']}. To "
                "push this model again: csmf run .. --from-node RetrievalEvaluator --no-cache",
                "yellow",
            )
    executed = len(summary["executed"])
    say(
        f"{executed} nodes executed, {len(summary['cached'])} taken from the cache, "
        f"{summary['seconds_total']:.0f} s in all. Details: {path}"
    )


def _show_metrics(summary: dict[str, Any]) -> None:
    table = Table(title="Retrieval on held-out events, in brackets that of popularity")
    table.add_column("objective")
    metrics = [name for name in next(iter(summary["metrics"].values())) if "@" in name]
    for name in metrics:
        table.add_column(name, justify="right")
    for objective, values in summary["metrics"].items():
        popular = summary["popularity"][objective]
        table.add_row(objective, *(f"{values[m]:.4f} ({popular[m]:.4f})" for m in metrics))
    say(table)
    say(f"ScaNN finds {summary['ann_recall@100']:.2%} of the exact top 100.")


def _show_failed(checks: list[dict[str, Any]]) -> None:
    table = Table(title="Failed checks", title_style="red bold")
    for column in ("check", "measured", "asked for"):
        table.add_column(column)
    for check in checks:
        if "value" in check:
            table.add_row(Text(check["name"]), f"{check['value']:.4f}", f"{check['threshold']:.4f}")
        else:
            table.add_row(Text(check["name"]), Text(check["detail"]), "")
    say(table)
