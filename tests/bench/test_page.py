"""The page as a document; `test_browser.py` looks at it in a browser."""

import io
import re

import pytest
from matplotlib.axes import Axes
from rich.console import Console

from swift_sd.bench import table
from swift_sd.bench.compare import compare, comparison_table
from swift_sd.bench.page import render, write_page
from swift_sd.bench.plots import PHASES, time_plot
from swift_sd.bench.table import live_progress, print_results
from swift_sd.errors import ConfigError

PLOTS = ("speedup", "accepted", "time", "stream", "search")


@pytest.fixture
def results(results_of, record_of):
    split = {"prefill": 1.0, "draft": 1.0, "verify": 2.0, "accept": 0.1, "adapt": 0.2, "other": 0.1}
    records = [
        record_of(
            i,
            name,
            group="qa" if i % 2 else "math_reasoning",
            mine=(4.0 + i + len(name), 10),
            accepted_histogram={"0": 3, "2": i + 1} if name == "swift" else {},
            time_split=split if name != "hf" else None,
            layer_set={"depth": 4, "attention": [1], "mlp": [1, 2]} if name == "swift" else None,
        )
        for i in range(6)
        for name in ("hf", "plain", "swift")
    ]
    return results_of(records, methods=("hf", "plain", "swift"))


def test_all_plots_are_in_the_page_with_words_for_those_who_cannot_see(results):
    page = render(results)
    for name in PLOTS:
        assert f'id="plot-{name}"' in page
    images = re.findall(r'<svg [^>]*role="img"[^>]*>', page)
    assert len(images) == len(PLOTS)
    assert all(re.search(r'aria-label="[^"]{10,}"', image) for image in images)


def test_nothing_is_loaded_from_anywhere(results):
    page = render(results)
    assert "http:" not in page
    assert "https:" not in page
    assert "<script" not in page
    assert "@import" not in page
    assert not re.search(r'\b(src|srcset)=|url\((?!#)|href="(?!#|data:)', page)


def test_ids_are_unique(results):
    ids = re.findall(r'\bid="([^"]+)"', render(results))
    assert len(ids) == len(set(ids))


def test_references_inside_a_plot_lead_somewhere(results):
    page = render(results)
    ids = set(re.findall(r'\bid="([^"]+)"', page))
    used = re.findall(r'(?:url\(#|href="#)([^")]+)', page)
    assert used
    assert set(used) <= ids


def test_the_figures_are_those_of_the_summary(results):
    page = render(results)
    for method in ("hf", "plain", "swift"):
        for group in ("qa", "math_reasoning", "overall"):
            assert f"{results['summary'][method][group]['speedup']:.2f}" in page
    assert "same 6 of 6" in page


def test_figures_below_one_look_like_all_others(results, results_of, record_of):
    slow = results_of([record_of(i, mine=(50.0, 10)) for i in range(3)])
    page = render(slow)
    assert "<td>0.20" in page
    assert 'class="slow' not in page


def test_without_drafts_the_page_says_so(results_of, record_of):
    page = render(results_of([record_of(1, "hf")]))
    assert "No method with drafts" in page
    assert page.count("<svg") == 2


def test_warnings_stand_on_the_page(results):
    results["warnings"] = ["The machine's speed drifted by 20%"]
    assert "drifted by 20%" in render(results)


def test_the_note_stands_on_the_page(results):
    assert "<strong>Note.</strong>" not in render(results)
    results["settings"]["note"] = "the checkpoint was dequantised"
    assert "<strong>Note.</strong> the checkpoint was dequantised" in render(results)


def test_what_drafts_read_is_told(results):
    assert "What drafts of the model read" not in render(results)
    view = {"bits": 4, "relative_error": 0.186, "bytes": 262 * 2**20, "seconds": 2.84}
    for record in results["records"]:
        if record["method"] == "swift":
            record["draft_view"] = view
    page = render(results)
    assert "copies in 4 bits, made in 2.8 s, 262 MiB" in page
    assert "relative error of the logits 18.6%" in page
    view["bits"] = 16
    assert "the model&#39;s own weights" in render(results)


def test_what_is_done_once_for_a_model_is_told_apart(results):
    assert "Not included" not in render(results)
    for record in results["records"]:
        record["set_up_seconds"] = 3.25 if record["method"] == "swift" else 0.001
    page = " ".join(render(results).split())
    assert "Not included is what is done once for a model: swift 3.2 s." in page


def test_names_are_escaped(results):
    results["settings"]["model"] = "<b>model</b>"
    page = render(results)
    assert "<b>" not in page
    assert "&lt;b&gt;" in page


def test_the_page_is_the_same_each_time_it_is_made(results, tmp_path):
    write_page(tmp_path / "report.html", results)
    assert (tmp_path / "report.html").read_text() == render(results)


def test_nothing_timed_makes_no_page(results_of):
    with pytest.raises(ConfigError, match="nothing was timed"):
        render(results_of([]))


def test_strange_names_and_gaps_are_shown_as_they_are(results_of, record_of):
    names = [f"m{number}" for number in range(10)]  # more than there are colours
    groups = ("[rag]", "[/x]", "$a$ & <b>", "qa")
    records = [record_of(i, name, group=groups[i]) for i in range(4) for name in names]
    records += [record_of(0, "partly", group=groups[0])]  # of one group only
    results = results_of(records)
    page = render(results)
    assert "$a$ &amp; &lt;b&gt;" in page
    console = Console(width=200, record=True, file=io.StringIO())
    print_results(results, console)
    printed = console.export_text()
    assert all(group in printed for group in groups)
    assert "–" in printed
    console.print(comparison_table(compare(results, results)))
    compared = console.export_text()
    assert all(group in compared for group in groups)


def test_beside_figures_of_rounded_drafts_stands_how_far_these_are_off(results_of, record_of):
    view = {"bits": 4, "relative_error": 0.173, "seconds": 1.0, "bytes": 2**20}
    records = [
        record_of(1, "swift", draft_view={**view, "step_seconds": 0.031}),
        record_of(1, "hf"),
    ]
    page = render(results_of(records, note="These weights were dequantised."))
    header = page[page.index("<thead>") : page.index("</thead>")]
    assert "drafts in 4 bits, logits off by 17%, see the note" in header
    assert header.count("<small>") == 1
    assert "a step of a draft takes 31.0 ms" in page
    console = Console(width=100, record=True, file=io.StringIO())
    print_results(results_of(records), console)
    assert "swift: drafts in 4 bits, logits off by 17%." in console.export_text()


def test_all_of_our_time_is_shown_as_all_of_hfs_is(results_of, record_of, monkeypatch):
    drawn, draw = [], Axes.barh

    def barh(axes, places, widths, *rest, **options):
        drawn.append(widths)
        return draw(axes, places, widths, *rest, **options)

    monkeypatch.setattr(Axes, "barh", barh)
    split = dict.fromkeys(PHASES, 0.1)
    record = {**record_of(1, mine=(1.0, 10)), "time_split": split}
    time_plot(results_of([record]))
    assert sum(one[0] for one in drawn if isinstance(one, list)) == pytest.approx(100)


def test_a_folder_is_not_named_in_public(results_of, record_of):
    page = render(results_of([record_of(1)], model="/home/me/models/tiny", draft_model="../x/y"))
    assert "tiny" in page
    assert "/home" not in page
    assert "../x" not in page


def test_progress_shows_what_is_done_and_what_is_left(monkeypatch):
    written = io.StringIO()
    monkeypatch.setattr(table, "Console", lambda **_: Console(file=written, force_terminal=True))
    with live_progress() as bar:
        task = bar.add_task("swift on qa", total=4)
        bar.update(task, advance=1)
        bar.refresh()
    assert "1/4" in written.getvalue()
    assert "left" in written.getvalue()
