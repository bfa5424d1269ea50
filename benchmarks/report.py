"""Tables and figures from rows: on the screen, in Markdown, between markers of the README, as SVG."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.cases import FILLS
from benchmarks.rows import Row, by_group, read

CONTENDERS = ("ours", "stock", "fill")
MODELS = {"llama": "Llama", "vit": "ViT"}
# The ways to initialise a whole model, by case of their rows.
WAYS = {
    "patch": "built under `patch()`",
    "deferred": "`deferred_init` and `materialize_module`",
    "apply": "`plan.apply` to existing tensors",
}
# A block of a page: the name of its table, the path of its results relative to the page, the generated text.
BLOCK = re.compile(r"(<!-- benchmarks: begin (\S+) (\S+) -->\n)(.*?)(<!-- benchmarks: end -->)", re.DOTALL)


@dataclass(frozen=True)
class Table:
    """Headers and cells; the first column is text."""

    title: str
    headers: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        lines = ["| " + " | ".join(self.headers) + " |", "|---|" + "---:|" * (len(self.headers) - 1)]
        lines += ["| " + " | ".join(cells) + " |" for cells in self.rows]
        return "\n".join(lines) + "\n"


# ----------------------------------------------------------------------------------------
# Tables
# ----------------------------------------------------------------------------------------


def duration(seconds: float) -> str:
    """Return a duration as text, with three digits and a suitable unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{_digits(seconds / size)} {unit}"
    return f"{_digits(seconds * 1e9)} ns"


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def per_element(row: Row, name: str) -> str:
    """Return nanoseconds per element as text: two decimals, or two significant digits below 0.1."""
    value = row.seconds[name] / row.numel * 1e9
    return f"{value:.2f}" if value >= 0.1 or value == 0 else f"{value:.{1 - math.floor(math.log10(value))}f}"


def label(row: Row, rows: Sequence[Row]) -> str:
    """Return the label of a row: its case, and the parameters in which the rows of the table differ."""
    case = row.case.removesuffix("_peak")
    if row.group == "model":
        family, _, preset = case.partition("_")
        name = f"{MODELS.get(family, family)}-{preset}, {row.numel / 1e6:,.1f} M parameters"
    elif case == "normal_of_1000":
        name = "`normal_` on 1,000 tensors"
    elif row.group == "whole-model":
        name = WAYS[case]
    elif case in FILLS:
        name = FILLS[case].kind
    else:
        name = case
    parts = [name]
    always = {
        "fill": "dtype",
        "whole-model": "dtype",
        "small": "shape",
        "many": "shape",
        "orthogonal": "shape",
        "sparse": "shape",
    }.get(row.group)
    for key in ("dtype", "numel", "shape", "sparsity", "threads"):
        value = row.parameters.get(key)
        if value is None or (row.group == "model" and key == "numel"):
            continue
        if key == always or len({other.parameters.get(key) for other in rows}) > 1:
            plural = "thread" if value == "1" else "threads"
            parts.append({"sparsity": f"sparsity {value}", "threads": f"{value} {plural}"}.get(key, value))
    return ", ".join(parts)


def times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}" if value < 1 else f"{value:.1f}"


def share(value: float | None) -> str:
    return "" if value is None else f"{value * 100:.0f} %"


def spreads(row: Row) -> str:
    shown = {name: row.spread.get(name) for name in CONTENDERS if name in row.seconds}
    return "/".join("once" if value is None else f"{value:.0%}" for value in shown.values())


def others(rows: Iterable[Row]) -> list[str]:
    """Return the contenders other than ours, stock and fill, in order of appearance."""
    return list(dict.fromkeys(name for row in rows for name in row.seconds if name not in CONTENDERS))


def timed_table(
    title: str, header: str, rows: list[Row], *, by_element: bool, peers: bool, full: bool
) -> Table:
    """Return a table of the times of ours and stock, their ratio, and the share of a plain fill's speed.

    Args:
        title: the title above the table on a screen
        header: the header of the first column
        rows: the rows of one group
        by_element: show nanoseconds per element instead of the time of a call
        peers: add a column for each other contender
        full: add rates and spreads
    """

    def cost(row: Row, name: str) -> str:
        if name not in row.seconds:
            return ""
        return per_element(row, name) if by_element else duration(row.seconds[name])

    def error(row: Row, name: str) -> str:
        return f"{row.measured[name]:.1e}" if name in row.measured else ""

    columns: list[tuple[str, Callable[[Row], str]]] = [
        ("ours, ns per element" if by_element else "ours", partial(cost, name="ours")),
        *((name, partial(cost, name=name)) for name in (others(rows) if peers else [])),
        ("stock", partial(cost, name="stock")),
        ("speedup over stock", lambda row: times(row.against("stock"))),
    ]
    if full or any(
        row.group != "orthogonal" for row in rows
    ):  # a plain fill is no reference for matrix products
        columns.append(("speed, of `fill_`", lambda row: share(row.against("fill"))))
    for name in ("ours", "stock"):
        if any(name in row.measured for row in rows):
            columns.append((f"max abs(Q'Q - I), {name}", partial(error, name=name)))
    if full:
        columns.append(("GB/s", lambda row: "" if row.gb_s is None else f"{row.gb_s:.1f}"))
    if any(row.share_of_ceiling for row in rows) and all(row.group != "orthogonal" for row in rows):
        columns.append(("of the store ceiling", lambda row: share(row.share_of_ceiling)))
    if full:
        columns.append(("spread ours/stock/fill_", spreads))
    headers = [header, *(name for name, _ in columns)]
    return Table(title, headers, [[label(row, rows), *(cell(row) for _, cell in columns)] for row in rows])


def peers_table(rows: list[Row], *, full: bool = False) -> Table:  # noqa: ARG001
    """Return a table of ours and other generators, in nanoseconds per element."""
    names = ["ours", "stock", *others(rows)]
    shown = [row for row in rows if len(row.seconds) > len(CONTENDERS)]

    def cost(row: Row, name: str) -> str:
        return per_element(row, name) if name in row.seconds else ""

    cells = [[label(row, shown), *(cost(row, name) for name in names)] for row in shown]
    return Table("other generators, ns per element", ["ns per element", *names], cells)


def peak_table(rows: list[Row], *, full: bool = False) -> Table:  # noqa: ARG001
    """Return a table of peak memory beyond the tensor's own bytes."""

    def over(row: Row, name: str) -> str:
        bytes_over = row.measured.get(name)
        return (
            ""
            if bytes_over is None
            else f"{bytes_over / (1 << 20):,.1f} MiB ({share(bytes_over / row.bytes)})"
        )

    headers = ["peak memory beyond the tensor's own", *CONTENDERS]
    cells = [[label(row, rows), *(over(row, name) for name in CONTENDERS)] for row in rows]
    return Table("peak memory, fresh processes", headers, cells)


def facts_line(rows: Sequence[Row]) -> str:
    """Return one line about the machine and the build."""
    facts = rows[0].facts
    threads = max(int(row.facts.get("threads", 0)) for row in rows)
    parts = [str(facts.get("machine", "")), f"{threads} threads", str(facts.get("cpu_capability", ""))]
    parts += [
        f"torch {facts.get('torch', '')}",
        str(facts.get("compiler", "")),
        f"commit {facts.get('commit', '')}",
    ]
    return ", ".join(part for part in parts if part)


# By name: title, header of the first column, whether per element, whether with columns of other contenders.
TIMED: dict[str, tuple[str, str, bool, bool]] = {
    "fill": ("fills, pages already touched", "fill", True, False),
    "model": ("all parameters of a model", "model", False, False),
    "whole-model": ("a Llama of transformers' own code", "what", False, False),
    "fresh-memory": ("fresh memory: allocation and page faults included", "fresh tensor", False, True),
    "small": ("one call, from Python to Python", "call", False, True),
    "many": ("1,000 tensors in one call of fill_many", "fill", False, True),
    "scaling": ("over threads and sizes", "fill", True, False),
    "orthogonal": ("orthogonal_", "matrix", False, False),
    "sparse": ("sparse_", "matrix", False, False),
}
# The tables that a block may name, each with the group of its rows.
TABLES = {**{name: name for name in TIMED}, "peers": "fill", "peak-memory": "fresh-memory"}
# A part of the table of fills, for the README.
FP32 = "fill-fp32"


def table(name: str, rows: Iterable[Row], *, full: bool = False) -> Table:
    """Return the named table of the rows of its group. It is empty if there are no such rows."""
    if name == FP32:
        return table("fill", [row for row in rows if row.parameters.get("dtype") == "fp32"], full=full)
    if name not in TABLES:
        raise ValueError(f"benchmarks: expected a table among {', '.join(TABLES)}, got {name!r}")
    of_group = [row for row in rows if row.group == TABLES[name]]
    if name == "peers":
        return peers_table(of_group)
    if name == "peak-memory":
        return peak_table([row for row in of_group if not row.seconds])
    title, header, by_element, peers = TIMED[name]
    timed = [row for row in of_group if row.seconds]
    return timed_table(title, header, timed, by_element=by_element, peers=peers, full=full)


def tables(rows: Sequence[Row], *, full: bool = False) -> list[Table]:
    """Return all tables that have rows, ordered by group."""
    present = by_group(rows)
    names = [name for group in present for name, its_group in TABLES.items() if its_group == group]
    return [drawn for drawn in (table(name, rows, full=full) for name in names) if drawn.rows]


def markdown(rows: Sequence[Row], *, full: bool = False) -> str:
    """Return all tables, each under its title."""
    parts = [facts_line(rows) + "\n"] if rows else []
    return "\n".join(parts + [f"### {t.title}\n\n{t.markdown()}" for t in tables(rows, full=full)])


# ----------------------------------------------------------------------------------------
# Blocks of a page
# ----------------------------------------------------------------------------------------


def updated(page: str, folder: Path) -> str:
    """Return the page with each block regenerated from its results, whose path is relative to the folder."""
    begins, ends = page.count("<!-- benchmarks: begin"), page.count("<!-- benchmarks: end -->")
    found = BLOCK.findall(page)
    if not len(found) == begins == ends:
        raise ValueError(
            f"benchmarks: expected each block as <!-- benchmarks: begin TABLE RESULTS --> ... "
            f"<!-- benchmarks: end -->, got {begins} begins, {ends} ends, {len(found)} whole blocks"
        )

    def block(match: re.Match[str]) -> str:
        name, results = match.group(2), folder / match.group(3)
        if not results.exists():
            raise ValueError(
                f"benchmarks: expected results for the block {name}, got no file {match.group(3)}"
            )
        rows = read(results)
        text = facts_line(rows) + ".\n" if name == "machine" else table(name, rows).markdown()
        return f"{match.group(1)}\n{text}\n{match.group(5)}"

    return BLOCK.sub(block, page)


# ----------------------------------------------------------------------------------------
# Figures
# ----------------------------------------------------------------------------------------

# Mid tones, which are visible on a white and on a dark page.
INK = "#7d8590"
COLOURS = {"ours": "#2f81f7", "stock": "#db6d28", "fill": "#7d8590"}
WORDS = {"ours": "ours", "stock": "stock", "fill": "plain fill_"}


def _canvas(width: float, height: float) -> tuple[Any, Any]:
    """Return a figure without a background, and its axes."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # The first two make the ids and texts of a file independent of the run and of the fonts.
    style: Any = {"svg.hashsalt": "paraminit_ext", "svg.fonttype": "none", "font.size": 11}
    for part in ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"):
        style[part] = INK
    mpl.rcParams.update(style)
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0.0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0.0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, which="major", alpha=0.25, color=INK)
    return figure, axes


def _lines(axes: Any, rows: Sequence[Row], x: Callable[[Row], int], y: Callable[[Row, str], float]) -> None:
    """Draw one line for each case and contender. Colours show contenders, line styles show cases."""
    cases = list(dict.fromkeys(row.case for row in rows))
    for style, case in zip(("-", "--", ":", "-."), cases, strict=False):
        of_case = sorted((row for row in rows if row.case == case), key=x)
        for name in CONTENDERS:
            points = [(x(row), y(row, name)) for row in of_case if name in row.seconds]
            if name == "fill" and case != cases[0]:
                continue  # the plain fill is the same for all cases
            words = WORDS[name] if name == "fill" else f"{WORDS[name]}, {case}_"
            xs, ys = zip(*points, strict=True)
            axes.plot(xs, ys, style, marker="o", markersize=3.5, color=COLOURS[name], label=words)
    axes.figure.legend(loc="outside upper center", ncols=3, frameon=False, labelcolor="linecolor")


def size_figure(rows: Sequence[Row]) -> Any:
    """Return a figure of the time per element against size, on all threads, with the plain fill."""
    most = max((row.parameters.get("threads", "0") for row in rows), key=int, default="0")
    shown = [row for row in rows if row.parameters.get("threads", "0") == most]
    if len({row.numel for row in shown}) < 2:
        return None
    figure, axes = _canvas(7.0, 4.2)
    _lines(axes, shown, lambda row: row.numel, lambda row, name: row.seconds[name] / row.numel * 1e9)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("elements")
    axes.set_ylabel("ns per element")
    return figure


def threads_figure(rows: Sequence[Row]) -> Any:
    """Return a figure of elements per second against threads, at the size with the most thread counts."""
    by_numel: dict[int, list[Row]] = {}
    for row in rows:
        if "threads" in row.parameters:
            by_numel.setdefault(row.numel, []).append(row)
    shown = max(by_numel.values(), key=len, default=[])
    if len({row.parameters["threads"] for row in shown}) < 2:
        return None
    figure, axes = _canvas(7.0, 4.2)
    _lines(
        axes,
        shown,
        lambda row: int(row.parameters["threads"]),
        lambda row, name: row.numel / row.seconds[name] / 1e9,
    )
    axes.set_xticks(sorted({int(row.parameters["threads"]) for row in shown}))
    axes.set_yscale("log")
    axes.set_xlabel("threads")
    axes.set_ylabel("1e9 elements a second")
    return figure


def ratio_figure(rows: Sequence[Row]) -> Any:
    """Return a figure with bars: how many times as fast as stock."""
    shown = [row for row in rows if row.against("stock") is not None]
    if not shown:
        return None
    figure, axes = _canvas(7.0, 0.9 + 0.28 * len(shown))
    ratios = [row.against("stock") for row in shown]
    bars = axes.barh([label(row, shown).replace("`", "") for row in shown], ratios, color=COLOURS["ours"])
    axes.bar_label(bars, labels=[times(ratio) for ratio in ratios], padding=3, color=INK)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.axvline(1.0, color=COLOURS["stock"])
    axes.margins(x=0.15)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("times as fast as torch.nn.init")
    return figure


def whole_model_figure(rows: Sequence[Row]) -> Any:
    """Draw bars: the seconds to initialise a model in bfloat16: stock, our ways, and plain fills."""
    by_case = {row.case: row.seconds for row in rows if row.parameters["dtype"] == "bf16"}
    if not by_case.keys() >= WAYS.keys():
        return None
    bars = {
        "torch.nn.init": ("stock", by_case["patch"]["stock"]),
        "patch()": ("ours", by_case["patch"]["ours"]),
        "deferred_init,\nmaterialize_module": ("ours", by_case["deferred"]["ours"]),
        "new tensors, filled\nwith a constant": ("fill", by_case["deferred"]["fill"]),
        "plan.apply to\nexisting tensors": ("ours", by_case["apply"]["ours"]),
        "the same, filled\nwith a constant": ("fill", by_case["apply"]["fill"]),
    }
    figure, axes = _canvas(7.0, 3.2)
    colours = [COLOURS[contender] for contender, _ in bars.values()]
    drawn = axes.barh(list(bars), [seconds for _, seconds in bars.values()], color=colours)
    axes.bar_label(drawn, fmt="%.2f s", padding=3, color=INK)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("seconds to initialise a Llama of 1.1 billion parameters in bfloat16")
    return figure


FIGURES: dict[str, tuple[str, Callable[[Sequence[Row]], Any]]] = {
    "ratio": ("fill", ratio_figure),
    "size": ("scaling", size_figure),
    "threads": ("scaling", threads_figure),
    "whole-model": ("whole-model", whole_model_figure),
}


def draw(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write the figures that have rows to DEVICE-NAME.svg. The same rows give the same bytes."""
    written = []
    for device in dict.fromkeys(row.parameters["device"] for row in rows):
        for name, (group, make) in FIGURES.items():
            figure = make([row for row in rows if row.parameters["device"] == device and row.group == group])
            if figure is not None:
                folder.mkdir(parents=True, exist_ok=True)
                written.append(folder / f"{device}-{name}.svg")
                figure.savefig(written[-1], metadata={"Date": None})
    return written


# ----------------------------------------------------------------------------------------


def main(
    results: Annotated[
        list[Path] | None, typer.Argument(help="files of --json; default: all of benchmarks/results")
    ] = None,
    figures: Annotated[Path, typer.Option(help="the folder for figures")] = Path("docs/figures"),
    update: Annotated[Path | None, typer.Option(help="a page whose blocks are regenerated")] = None,
) -> None:
    """Print the tables of results in Markdown, draw their figures, and update the blocks of a page."""
    try:
        paths = results or sorted((Path(__file__).parent / "results").glob("*.jsonl"))
        # If rows have the same name, keep the last one.
        rows = list({row.name: row for path in paths for row in read(path)}.values())
        typer.echo(markdown(rows))
        if update is not None:
            update.write_text(updated(update.read_text(), update.parent))
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from None
    for path in draw(rows, figures):
        typer.echo(f"drawn: {path}", err=True)
