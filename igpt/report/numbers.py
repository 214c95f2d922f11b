"""How numbers, times and labels are written, the same on the page and in the terminal."""

from datetime import UTC, datetime

from igpt.report.content import Budget
from igpt.report.summary import known

MISSING = "–"


def percent(accuracy: float | None) -> str:
    """An accuracy in percent with one decimal, without the sign."""
    value = known(accuracy)
    return MISSING if value is None else f"{100 * value:.1f}"


def percent_with_spread(mean: float | None, spread: float | None) -> str:
    """Mean and standard deviation in percent."""
    value = known(spread)
    if known(mean) is None or value is None:
        return percent(mean)
    return f"{percent(mean)} ± {100 * value:.1f}"


def nats(loss: float | None) -> str:
    value = known(loss)
    return MISSING if value is None else f"{value:.4f}"


def whole(number: int | None) -> str:
    """With a comma between the thousands."""
    return MISSING if number is None else f"{number:,}"


def strength(l2: float) -> str:
    """An L2 strength as short as it can be: 0.001, 1e-05."""
    return f"{l2:g}"


def labels(budget: Budget) -> str:
    return "all labels" if budget == "all" else f"{budget:,} labels"


def layer_name(layer: int | None) -> str:
    return MISSING if layer is None else str(layer)


def moment(time: datetime | None) -> str:
    """To the minute, in UTC."""
    return MISSING if time is None else time.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def duration(start: datetime | None, end: datetime | None) -> str:
    """The two largest of days, hours, minutes, seconds."""
    if start is None or end is None:
        return MISSING
    seconds = max(0, round((end - start).total_seconds()))
    days, seconds = divmod(seconds, 86_400)
    hours, seconds = divmod(seconds, 3600)
    minutes, seconds = divmod(seconds, 60)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (seconds, "s")]
    first = next((place for place, (count, _) in enumerate(parts) if count), 3)
    return " ".join(f"{count} {unit}" for count, unit in parts[first : first + 2] if count) or "0 s"


def steps(first: int | None, last: int | None) -> str:
    """A range of steps."""
    if first is None and last is None:
        return MISSING
    return f"{whole(first)} to {whole(last)}"
