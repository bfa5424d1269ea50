"""Draw the figure of :func:`.plot` from plain numbers, by matplotlib without pyplot."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from paraminit_ext.models.plot_data import Depth, Histogram, Panel, Panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

T = TypeVar("T")
# Colours of Okabe and Ito, which colour-blind readers can distinguish. Bars are a light shade of the dots.
_BARS, _DOTS, _ASKED, _BEFORE, _ODD = "#8fbfe0", "#0072b2", "#d55e00", "#303030", "#c00000"
_QUIET = "#555555"
_HOLLOW: dict[str, Any] = {"color": _BEFORE, "marker": "o", "ms": 4.5, "mfc": "none", "mew": 0.8, "ls": ""}
# Lengths are in inches, positions from the upper left corner. A panel with its labels: the width, the maximum
# width for long names, the height with densities, the height with deviations; the margins around its axes;
# the indent of its name.
_WIDTH, _WIDEST, _HEIGHT, _LOW_HEIGHT = 2.55, 3.8, 1.7, 1.3
_LEFT, _RIGHT, _TOP, _BOTTOM = 0.5, 0.12, 0.38, 0.3
_INDENT = 0.08
# The figure: its margin, the height of title and legend, the height of a line below the panels, the minimum
# width inside the margins.
_EDGE, _HEAD, _LINE, _NARROWEST = 0.12, 0.46, 0.14, 5.4
_SMALL, _NORMAL, _LARGE = 7.0, 7.5, 10.0
_DPI = 150


class _Page:
    """A figure with text and axes at absolute positions."""

    def __init__(self) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.figure: Figure = Figure(dpi=_DPI)
        self.width, self.height = 0.0, 0.0
        self._renderer = FigureCanvasAgg(self.figure).get_renderer()  # type: ignore[no-untyped-call]

    def length(self, text: str, size: float = _SMALL) -> float:
        """Return the width of a text in inches."""
        from matplotlib.font_manager import FontProperties

        width, _, _ = self._renderer.get_text_width_height_descent(text, FontProperties(size=size), False)
        return float(width) / _DPI

    def shortened(self, text: str, room: float, size: float = _SMALL) -> str:
        """Return the text, with its middle left out if it is longer than ``room``.

        More of the end is kept, because the names of layers have their beginnings in common.
        """
        shown, kept = text, len(text)
        while kept > 3 and self.length(shown, size) > room:
            kept -= 1
            shown = f"{text[: kept // 3]}\u2026{text[kept // 3 - kept :]}"
        return shown

    def write(self, x: float, y: float, text: str, size: float = _SMALL, **how: Any) -> None:
        """Write text on a baseline. Dollar signs in names are not parsed as formulas."""
        self.figure.text(
            x / self.width, 1 - y / self.height, text, fontsize=size, parse_math=False, va="baseline", **how
        )

    def lines(self, begin: str, items: Sequence[str]) -> list[str]:
        """Return the items as wrapped lines, the first of which starts with ``begin``."""
        room, lines = self.width - 2 * _EDGE, [begin]
        for place, item in enumerate(items):
            text = self.shortened(item, room - 0.3) + ("," if place + 1 < len(items) else "")
            if self.length(f"{lines[-1]} {text}") > room:
                lines.append(f"    {text}")
            else:
                lines[-1] = f"{lines[-1]} {text}"
        return lines


class _Cell(NamedTuple):
    """The position and size of a panel on the page."""

    page: _Page
    x: float
    y: float
    width: float
    height: float

    def axes(self) -> Axes:
        left, width = self.x + _LEFT, self.width - _LEFT - _RIGHT
        low, height = self.page.height - self.y - self.height + _BOTTOM, self.height - _TOP - _BOTTOM
        whole_width, whole_height = self.page.width, self.page.height
        axes = self.page.figure.add_axes(
            (left / whole_width, low / whole_height, width / whole_width, height / whole_height)
        )
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(_QUIET)
        axes.tick_params(labelsize=_SMALL, colors=_QUIET, length=2.5, pad=2)
        # Align the labels of all panels, whatever the widths of their tick labels.
        axes.yaxis.set_label_coords(-(_LEFT - 0.1) / width, 0.5)
        return axes

    def head(self, name: str, number: int, facts: Sequence[str], odd: str = "") -> None:
        """Write the two lines above the axes: the name, then the facts that fit and a note on odd values."""
        page, left, right = self.page, self.x + _INDENT, self.x + self.width - _RIGHT
        times = f" \u00d7 {number}" if number > 1 else ""
        room = right - left - page.length(times, _NORMAL)
        page.write(left, self.y + 0.15, page.shortened(name, room, _NORMAL) + times, _NORMAL)
        room = right - left - (page.length(odd) + 0.1 if odd else 0)
        lines = [", ".join(facts[:shown]) for shown in range(len(facts), -1, -1)]
        fitting = next(line for line in lines if not line or page.length(line) <= room)
        page.write(left, self.y + 0.28, fitting, color=_QUIET)
        page.write(right, self.y + 0.28, odd, color=_ODD, ha="right")


def draw(found: Panels) -> Figure:
    """Return the figure. Save it under the same settings of matplotlib."""
    page = _Page()
    columns, width = _columns(page, found)
    page.width = max(columns * width, _NARROWEST) + 2 * _EDGE
    foot = [line for begin, items in _foot(found) for line in page.lines(begin, items)]
    rows = [math.ceil(len(cells) / columns) for cells in (found.panels, found.depths)]
    page.height = 2 * _EDGE + _HEAD + rows[0] * _HEIGHT + rows[1] * _LOW_HEIGHT + len(foot) * _LINE
    page.figure.set_size_inches(page.width, page.height)

    title = f"{found.title}: {found.elements:,} elements"
    page.write(_EDGE, _EDGE + 0.14, page.shortened(title, page.width - 2 * _EDGE, _LARGE), _LARGE)
    _legend(page, found, _EDGE + 0.24)
    y = _EDGE + _HEAD
    _grid(page, y, _HEIGHT, columns, found.panels, _show_panel, ("value", "density"))
    y += rows[0] * _HEIGHT
    _grid(page, y, _LOW_HEIGHT, columns, found.depths, _show_depth, ("layer", "std"))
    y += rows[1] * _LOW_HEIGHT
    for place, line in enumerate(foot):
        page.write(_EDGE, y + (place + 1) * _LINE, line, color=_QUIET)
    return page.figure


def _columns(page: _Page, found: Panels) -> tuple[int, float]:
    """Return the number of columns and the width of a panel."""
    number = [len(found.panels), len(found.depths)]
    # The number of empty cells in the last rows.
    empty = {columns: sum(-count % columns for count in number) for columns in (3, 4)}
    most = 3 if max(number) <= 9 and empty[3] < empty[4] else 4
    names = [(panel.pattern, len(panel.names)) for panel in found.panels]
    names += [(depth.pattern, len(depth.layers)) for depth in found.depths]
    # 0.02 for a pixel or two: the parts of a line, measured one by one, are longer than the line.
    margins = _INDENT + _RIGHT + 0.02
    longest = max((page.length(_times(*name), _NORMAL) for name in names), default=0.0) + margins
    if longest > _WIDTH:
        # Use fewer and wider panels, so that the page does not get wider.
        most = 3
    return min(max(*number, 1), most), min(max(longest, _WIDTH), _WIDEST)


def _grid(
    page: _Page,
    y: float,
    height: float,
    columns: int,
    cells: Sequence[T],
    show: Callable[[_Cell, T], Axes],
    units: tuple[str, str],
) -> None:
    width = (page.width - 2 * _EDGE) / columns
    for place, data in enumerate(cells):
        row, column = divmod(place, columns)
        axes = show(_Cell(page, _EDGE + column * width, y + row * height, width, height), data)
        if column == 0:
            axes.set_ylabel(units[1], fontsize=_SMALL, color=_QUIET)
        if place + columns >= len(cells):
            axes.set_xlabel(units[0], fontsize=_SMALL, color=_QUIET, labelpad=1)


def _legend(page: _Page, found: Panels, y: float) -> None:
    """Add one legend for all panels, with the marks that occur in the figure."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    now = " now" if any(panel.before for panel in found.panels) else ""
    handles: list[Any] = [Patch(color=_BARS, label=f"density{now}")]
    if now:
        handles.append(Line2D([], [], color=_BEFORE, lw=0.9, label="density before"))
    handles.append(Line2D([], [], color=_BEFORE, marker="|", ms=6, ls="", label=f"min and max{now}"))
    if found.depths:
        handles.append(Line2D([], [], color=_DOTS, marker="o", ms=3.5, ls="", label=f"std of a layer{now}"))
    if found.depths and now:
        handles.append(Line2D([], [], **_HOLLOW, label="std before"))
    if any(panel.laws for panel in found.panels):
        handles.append(Line2D([], [], color=_ASKED, lw=1.4, label="asked for"))
    page.figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(_EDGE / page.width, 1 - y / page.height),
        ncols=len(handles),
        frameon=False,
        fontsize=_SMALL,
        borderpad=0,
        borderaxespad=0,
        handlelength=1.4,
        handletextpad=0.5,
        columnspacing=1.5,
    )


def _foot(found: Panels) -> Iterator[tuple[str, list[str]]]:
    """Yield the notes below the panels: the constants by value, and the parts that are not drawn."""
    by_value: dict[str, list[str]] = {}
    for constant in found.constants:
        value = f"{constant.value:.4g}"
        if constant.before not in (None, constant.value):
            value += f" (before {constant.before:.4g})"
        by_value.setdefault(value, []).append(_times(constant.pattern, constant.number))
    for value, names in by_value.items():
        yield f"Constant, {value}:", names
    left_out = [
        f"{what} ({number})"
        for what, number in (
            ("the kinds of layers with the fewest elements", found.more_panels),
            ("the std by layer of the kinds with the fewest elements", found.more_depths),
            ("parameters that are complex or have no values, on meta for example", found.unread),
        )
        if number
    ]
    if left_out:
        yield "Not drawn:", left_out


def _times(name: str, number: int) -> str:
    return f"{name} \u00d7 {number}" if number > 1 else name


# ----------------------------------------------------------------------------------------
# Panels
# ----------------------------------------------------------------------------------------


def _show_panel(cell: _Cell, panel: Panel) -> Axes:
    """Draw densities on a logarithmic scale that starts at a third of one element in a bin."""
    from matplotlib.collections import PolyCollection

    axes = cell.axes()
    cell.head(panel.pattern, len(panel.names), _facts(panel), _odd(panel))
    bins, edges = panel.bins, panel.bins.edges
    reach = 0.03 * (bins.high - bins.low)
    line = _asked_line(panel, bins.low - reach, bins.high + reach)
    densities = panel.now.densities(bins)
    states = [state for state in (panel.now, panel.before) if state is not None]
    tops = [max(state.densities(bins)) for state in states] + [max(line[1], default=0.0)]
    elements = max(state.statistics.finite for state in states) or 1
    foot = 1 / (3 * elements * bins.width)
    if line[1]:
        # With few elements, one element in a bin can exceed the requested density. Show that density as well.
        foot = min(foot, max(line[1]) / 3)
    # A density of zero is below the scale.
    axes.set_yscale("log", nonpositive="clip")
    axes.set_ylim(foot, 2 * max(*tops, 2 * foot))
    axes.set_xlim(bins.low - reach, bins.high + reach)

    bars = [
        [(left, foot), (left, density), (right, density), (right, foot)]
        for left, right, density in zip(edges, edges[1:], densities, strict=False)
        if density
    ]
    # The edge makes bars visible that are narrower than a point.
    axes.add_collection(PolyCollection(bars, facecolor=_BARS, edgecolor=_BARS, linewidth=0.7, zorder=1))
    if panel.before is not None:
        axes.stairs(
            panel.before.densities(bins), edges, baseline=foot / 2, color=_BEFORE, linewidth=0.9, zorder=2
        )
    axes.plot(*line, color=_ASKED, linewidth=1.4, zorder=3)
    for law in panel.laws:
        if law.is_constant:
            axes.axvline(law.mean, color=_ASKED, linewidth=1.4, zorder=3)
    if any(state.statistics.finite for state in states):
        _mark_extremes(axes, panel)
        _label_powers(axes)
    else:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.minorticks_off()
    return axes


def _facts(panel: Panel) -> list[str]:
    """Return the facts about the panel, the most important ones first."""
    now, before = panel.now, panel.before
    facts = []
    if now.zeros is not None:
        states = [state for state in (now, before) if state is not None]
        shares = [
            f"{100 * state.statistics.zeros / max(state.statistics.finite, 1):.3g} %" for state in states
        ]
        facts.append(f"zeros {', before '.join(shares)}")
    facts.append("\u00d7".join(map(str, panel.shape)) or "scalar")
    if now.statistics.std is not None:
        facts.append(f"std {_short(now.statistics.std)}")
    stds = {_short(law.std) for law in panel.laws}
    if len(stds) == 1 and math.isclose(sum(panel.laws.values()), 1):
        facts.append(f"asked {stds.pop()}")
    return facts


def _odd(panel: Panel) -> str:
    """Return a note on the number of NaN and infinite elements; empty if there are none."""

    def count(state: Histogram | None) -> str:
        if state is None:
            return ""
        counts = (state.statistics.nans, "NaN"), (state.statistics.infinities, "inf")
        return ", ".join(f"{int(number):,} {what}" for number, what in counts if number)

    now, before = count(panel.now), count(panel.before)
    return f"{now or 'none'}, before {before}" if before else now


def _asked_line(panel: Panel, low: float, high: float) -> tuple[list[float], list[float]]:
    """Return the points of the requested density, spaced more closely around the mean of each law."""
    laws = [law for law in panel.laws if not law.is_constant]
    if not laws:
        return [], []
    places = {low + (high - low) * step / 200 for step in range(201)}
    for law in laws:
        places |= {law.mean + law.std * step / 10 for step in range(-60, 61)}
        # At a bound of the density, include a point on both sides of the step.
        for end, outward in ((law.low, -math.inf), (law.high, math.inf)):
            if math.isfinite(end):
                places |= {end, math.nextafter(end, outward)}
    shown = sorted(place for place in places if low <= place <= high)
    return shown, [panel.asked_density(place) for place in shown]


def _mark_extremes(axes: Axes, panel: Panel) -> None:
    """Set ticks at the minimum, the maximum and other values if there is room for their labels."""
    from matplotlib.markers import TICKDOWN

    states = [state.statistics for state in (panel.now, panel.before) if state and state.statistics.finite]
    low, high = axes.get_xlim()
    wanted = [end for state in states for end in (state.least, state.greatest)]
    wanted.insert(2, 0.0)
    ticks: list[float] = []
    for place in wanted:
        if low <= place <= high and all(abs(place - tick) > 0.26 * (high - low) for tick in ticks):
            ticks.append(place)
    # Use enough digits to distinguish the ends of the axis.
    digits = 3 + max(0, math.ceil(math.log10(max(abs(low), abs(high)) / (high - low) / 10)))
    axes.set_xticks(ticks, [_short(tick, digits) for tick in ticks])
    if digits > 5:
        for label, tick in zip(axes.get_xticklabels(), ticks, strict=True):
            label.set_horizontalalignment("left" if tick < (low + high) / 2 else "right")
    axes.tick_params(axis="x", length=4)
    if panel.now.statistics.finite:
        ends = [panel.now.statistics.least, panel.now.statistics.greatest]
        across = axes.get_xaxis_transform()
        style: dict[str, Any] = {"marker": TICKDOWN, "ms": 4, "ls": "", "color": _BEFORE, "clip_on": False}
        axes.plot(ends, [0, 0], **style, transform=across, zorder=4)


def _show_depth(cell: _Cell, depth: Depth) -> Axes:
    axes = cell.axes()
    cell.head(depth.pattern, len(depth.layers), ["std by layer"])
    series = [depth.now, depth.before or (), depth.asked]
    stds = [std for values in series for std in values if std is not None]
    if any(std is not None for std in depth.asked):
        line = sorted(zip(depth.layers, map(_nan_if_unknown, depth.asked), strict=True))
        # If a layer has several values (experts, for example), do not join them by a line.
        style = "-" if len(set(depth.layers)) == len(depth.layers) else "_"
        axes.plot(*zip(*line, strict=True), style, color=_ASKED, linewidth=1.4, ms=9, mew=1.4, zorder=1)
    if depth.before is not None:
        axes.plot(depth.layers, list(map(_nan_if_unknown, depth.before)), **_HOLLOW, zorder=2)
    axes.plot(depth.layers, list(map(_nan_if_unknown, depth.now)), "o", ms=3.5, color=_DOTS, zorder=3)
    low, high = min(stds), max(stds)
    if low > 0 and high > 20 * low:
        axes.set_yscale("log")
        axes.set_ylim(low / 2, high * 2)
        _label_powers(axes)
    else:
        # Do not let differences of one per cent fill the axis.
        reach = max(0.6 * (high - low), 0.15 * high)
        axes.set_ylim(max((low + high) / 2 - reach, -0.05 * high), (low + high) / 2 + reach)
        _label_evenly(axes.yaxis, 4)
    _label_evenly(axes.xaxis, 6, integer=True)
    return axes


def _nan_if_unknown(std: float | None) -> float:
    return math.nan if std is None else std


def _label_powers(axes: Axes) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axes.get_ylim()
    subs = (1.0, 2.0, 5.0) if high < 50 * low else (1.0,)
    axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=5))
    axes.yaxis.set_major_formatter(lambda value, _: _short(value))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_minor_locator(LogLocator(numticks=1))


def _label_evenly(axis: Any, number: int, integer: bool = False) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(number, integer=integer))
    axis.set_major_formatter(lambda value, _: _short(value))


def _short(number: float, digits: int = 3) -> str:
    """Return the number with that many significant digits and without trailing zeros."""
    if 1000 <= abs(number) < 100_000:
        return f"{number:.{max(digits - 4, 0)}f}"
    if not 0 < abs(number) < 1e-3 and "e" not in f"{number:.{digits}g}":
        return f"{number:.{digits}g}"
    # Python's "g" format gives 0.0001, which is longer than 1e-4.
    mantissa, _, power = f"{number:.{digits - 1}e}".partition("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(power)}"
