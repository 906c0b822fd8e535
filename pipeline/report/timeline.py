"""Puts the rounds of all stages on one time axis."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline.report.figures.training import Curve
from pipeline.report.recorded import Fitted, Stage

SPREAD = (
    "This run did not record when its rounds ended: they are spread evenly over the seconds of "
    "their phase, and the stages stand end to end."
)
END_TO_END = "The stages were not trained in one go: they stand end to end."


def curves(stages: Sequence[Stage]) -> tuple[list[Curve], str]:
    """The phases of all stages.

    Args:
      stages: in funnel order, those that were trained and have phases.

    Returns:
      Curves in the order of time, and a note on the time axis where one is due.
    """
    recorded = all(
        stage.started is not None
        and all(phase.fitted.round_seconds is not None for phase in stage.phases or ())
        for stage in stages
    )
    begins = _begins(stages) if recorded else None
    note = "" if begins is not None else END_TO_END if recorded else SPREAD
    found: list[Curve] = []
    now = 0.0
    for place, stage in enumerate(stages):
        if begins is not None:
            now = begins[place]
        for phase in stage.phases or ():
            fitted = phase.fitted
            found.append(
                Curve(
                    stage.stage,
                    stage.objective,
                    phase.name,
                    now,
                    tuple(now + end for end in _round_ends(fitted)),
                    tuple(fitted.losses),
                    tuple(fitted.recalls),
                    fitted.kept_round,
                )
            )
            now += fitted.seconds
    return found, note


def _begins(stages: Sequence[Stage]) -> list[float] | None:
    """Seconds since the first stage began; None if a stage is from another run.

    A stage out of the cache began at another time: before the one that it follows, or so long
    after it that waiting would be most of the axis.
    """
    starts = [stage.started or 0.0 for stage in stages]
    trained = list(_trained(stages))
    for place in range(1, len(starts)):
        gap = starts[place] - starts[place - 1] - trained[place - 1]
        if gap < -1.0 or gap > sum(trained):
            return None
    return [start - starts[0] for start in starts]


def _trained(stages: Sequence[Stage]) -> Iterator[float]:
    for stage in stages:
        yield sum(phase.fitted.seconds for phase in stage.phases or ())


def _round_ends(fitted: Fitted) -> list[float]:
    if fitted.round_seconds is not None:
        return list(fitted.round_seconds)
    n = len(fitted.losses)
    return [fitted.seconds * number / n for number in range(1, n + 1)]
