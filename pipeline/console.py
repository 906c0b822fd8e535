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

if TYPE_CHECKING:
    from pipeline.local_runner import NodeEvent
    from pipeline.recommend import Recommendations

_console = Console()


def say(text: Any) -> None:
    """Prints text or anything that rich can draw."""
    _console.print(text, highlight=False)


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
        """See `pipeline.local_runner.NodeProgress`."""
        if event == "starts":
            self._started = time.monotonic()
            say(f"[bold cyan]{node}[/]")
        elif event == "executed":
            say(f"  [green]done[/] in {time.monotonic() - self._started:.1f} s")
        else:
            say("  [dim]unchanged, taken from the cache[/]")


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
        say("[red]Anomalies in the data:[/]")
        for line in summary["anomalies"]:
            say(f"  {line}")
    if summary["blessed"] is False:
        _show_failed(summary["failed_checks"])
        say("[red bold]Not blessed: nothing was pushed.[/]")
    elif summary["pushed_version"] is not None:
        say(f"[green bold]Blessed and pushed as version {summary['pushed_version']}.[/]")
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
            table.add_row(check["name"], f"{check['value']:.4f}", f"{check['threshold']:.4f}")
        else:
            table.add_row(check["name"], check["detail"], "")
    say(table)


def show_recommendations(result: Recommendations) -> None:
    """Prints one column per weighting."""
    table = Table(
        title=f"Recommendations for user {result.user}, {result.model} version {result.version}"
    )
    table.add_column("#", justify="right")
    for weighting in result.weightings:
        table.add_column(weighting)
    for place, row in enumerate(result.rows, start=1):
        table.add_row(str(place), *row)
    say(table)
