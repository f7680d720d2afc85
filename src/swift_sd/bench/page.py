"""`report.html`: one page that needs nothing else, for a phone, a desk and a printer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swift_sd.bench import plots
from swift_sd.bench.catalogue import METHODS
from swift_sd.bench.results import write_atomically
from swift_sd.bench.settings import short_name
from swift_sd.bench.table import groups_of, rounding_of, set_up_seconds
from swift_sd.errors import ConfigError

NAME = "report.html"
TEMPLATE = Path(__file__).with_name("page.html.jinja")
SHOWN = ("cpu", "cores", "threads", "memory", "accelerator", "device", "dtype", "system")
VERSIONS = ("python", "torch", "transformers", "swift_sd", "commit", "date")


@dataclass(frozen=True)
class Plot:
    """A plot with its words.

    Attributes:
        svg: None if there is nothing to show, which `caption` then says.
    """

    name: str
    title: str
    caption: str
    svg: str | None


def write_page(path: Path, results: dict[str, Any]) -> None:
    """Write the page of `results` to `path`: all of it, or nothing.

    Raises:
        ConfigError: jinja2 or matplotlib is missing, or nothing was timed yet.
    """
    write_atomically(path, render(results))


def render(results: dict[str, Any]) -> str:
    """The page of `results` as HTML; see `write_page`."""
    try:
        import jinja2
    except ImportError:
        raise ConfigError("the page needs jinja2: run pip install 'swift-sd[bench]'") from None
    if not results["summary"]:
        raise ConfigError("nothing was timed yet, so there is nothing for a page to show")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    settings = results["settings"]
    return template.render(
        settings=settings,
        model=short_name(settings["model"]),
        greedy=settings["temperature"] == 0,
        summary=results["summary"],
        groups=groups_of(results["summary"]),
        about={name: METHODS[name].about for name in results["summary"] if name in METHODS},
        plots=_plots(results),
        note=settings.get("note"),
        warnings=results.get("warnings", []),
        views=_draft_views(results),
        rounding=rounding_of(results),
        facts=_facts(results),
        set_up=set_up_seconds(results),
        version=results["environment"].get("swift_sd"),
    )


def _plots(results: dict[str, Any]) -> list[Plot]:
    stream = (
        "One Swift object answered all questions in this order, as in a service."
        if results["settings"]["stream"]
        else "Each question met a fresh Swift object, which knew nothing of those before."
    )
    accepted, time = plots.accepted_plot(results), plots.time_plot(results)
    search = plots.search_plot(results)
    drafts = "Longer is better: each accepted token saves a forward of the full model."
    split = "Milliseconds per new token of swift-sd, by what they were spent on, and of hf."
    return [
        Plot(
            "speedup",
            "Speedup by group",
            "Each dot is a question, the line spans them, the bar is the group as a whole. Left of "
            "1 a method is slower than the model alone.",
            plots.speedup_plot(results),
        ),
        Plot(
            "accepted",
            "Accepted tokens of a draft",
            drafts if accepted else "No method with drafts that can be counted was timed.",
            accepted,
        ),
        Plot(
            "time",
            "Where the time goes",
            split if time else "None of the timed methods tells what its time is spent on.",
            time,
        ),
        Plot(
            "stream",
            "From question to question",
            f"{stream} Dots are questions, lines the median of each and the four before it.",
            plots.stream_plot(results),
        ),
        Plot(
            "search",
            "What the search did meanwhile",
            "Its share of the time of each answer, and the sublayers that drafts skipped then."
            if search
            else "No method that was timed searched for sublayers to skip.",
            search,
        ),
    ]


def _draft_views(results: dict[str, Any]) -> list[tuple[str, str]]:
    """What the drafts of each method read, in words."""
    found = {}
    for record in results["records"]:
        view = record.get("draft_view")
        if view is None:
            continue
        reason = view.get("why_not_rounded")
        words = "the model's own weights" + (f", as {reason}" if reason else "")
        if view["bits"] < 16:
            words = (
                f"copies in {view['bits']} bits, made in {view['seconds']:.1f} s, "
                f"{view['bytes'] / 2**20:,.0f} MiB beside the model; "
                f"relative error of the logits {view['relative_error']:.1%}"
            )
            if reason := view.get("why_not_compiled"):
                words += f"; in torch's kernels, as {reason}"
        if view.get("step_seconds"):
            words += f"; a step of a draft takes {1e3 * view['step_seconds']:.1f} ms"
        found[record["method"]] = words
    return list(found.items())


def _facts(results: dict[str, Any]) -> list[tuple[str, str]]:
    """What to know to repeat the run."""
    environment, settings = results["environment"], results["settings"]
    model = environment.get("model") or {}
    parameters = f", {model['parameters'] / 1e6:,.0f} M parameters" if model else ""
    facts = [("model", short_name(settings["model"]) + parameters)]
    facts += [
        (name.replace("_", " "), _shown(name, environment[name]))
        for name in (*SHOWN, *VERSIONS)
        if environment.get(name) is not None
    ]
    facts += [
        (name.replace("_", " "), _shown(name, value))
        for name, value in settings.items()
        if value is not None and name not in ("model", "dtype", "device", "note")
    ]
    if results.get("drift") is not None:
        facts.append(("drift of the machine's speed", f"{results['drift']:.0%}"))
    return facts


def _shown(name: str, value: Any) -> str:
    if name == "draft_model":
        return short_name(value)
    if name == "memory":
        return f"{value / 2**30:.0f} GiB"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(value) if isinstance(value, list) else str(value)
