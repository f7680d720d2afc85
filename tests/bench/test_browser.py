"""The page in headless Chromium, at the width of a phone and of a desk."""

import html
import json
import re
import subprocess
from pathlib import Path

import pytest

from swift_sd.bench.page import render

PAGES = sorted((Path(__file__).parents[2] / "benchmarks" / "results").glob("*/report.html"))
assert PAGES
# Chromium takes seconds to start: one looks at several pages. It makes no window narrower than 500
# pixels, so each page stands in a frame of the width that is wanted.
FRAME = '<iframe style="border:0;width:{width}px;height:3000px" srcdoc="{page}"></iframe>'
PROBE = """
{frames}
<script>
function look(frame) {{
  const seen = {{}};
  const page = frame.contentDocument;
  const root = page.documentElement;
  seen.page = [root.clientWidth, root.scrollWidth];
  seen.plots = [...page.querySelectorAll("svg.plot")].map(svg => {{
    const box = svg.getBoundingClientRect();
    const inside = e => {{
      const b = e.getBoundingClientRect();
      return b.left >= box.left - 1 && b.right <= box.right + 1
        && b.top >= box.top - 1 && b.bottom <= box.bottom + 1;
    }};
    const texts = [...svg.querySelectorAll("text")];
    return {{
      width: box.width, height: box.height, right: box.right,
      cut: texts.filter(e => !inside(e)).map(e => e.textContent),
      lowest: Math.min(...texts.map(e => e.getBoundingClientRect().height)),
      texts: texts.length,
    }};
  }});
  const table = page.querySelector(".scroll").getBoundingClientRect();
  const right = e => e.getBoundingClientRect().right;
  seen.widest = Math.max(...[...page.querySelectorAll("table")].map(right));
  seen.table = [table.left, table.right];
  return seen;
}}
onload = () => {{
  const out = document.createElement("pre");
  out.id = "seen";
  out.textContent = JSON.stringify([...document.querySelectorAll("iframe")].map(look));
  document.body.append(out);
}};
</script>
"""


def _seen(chromium, pages, width, folder):
    """What a script found in each rendered page; nothing may be written on the console."""
    wrapper = folder / "wrapper.html"
    frames = [FRAME.format(width=width, page=html.escape(page)) for page in pages]
    wrapper.write_text(PROBE.format(frames="\n".join(frames)))
    command = [
        chromium,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        f"--user-data-dir={folder / 'profile'}",
        f"--window-size={max(width, 500)},3000",
        "--virtual-time-budget=2000",
        "--dump-dom",
        wrapper.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stdout[-500:]
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    return json.loads(html.unescape(found.group(1)))


@pytest.mark.parametrize("width", [360, 1280])
def test_reads_well_at_this_width(browser, tmp_path, results_of, record_of, width):
    split = {"prefill": 1.0, "draft": 1.0, "verify": 2.0, "adapt": 0.3}
    skipped = {"depth": 9, "attention": [1, 2, 3], "mlp": [4]}
    names = ("hf", "hf-lookup", "hf-assisted", "hf-early-exit", "swift", "swift-paper")
    groups = ("mt_bench", "math_reasoning", "summarization")
    records = [
        record_of(
            i,
            name,
            group=groups[i % 3],
            mine=(4.0 + i + len(name), 10),
            accepted_histogram={"0": 3, "2": i + 1} if name.startswith("swift") else {},
            time_split=split if name.startswith("swift") else None,
            layer_set=skipped if name.startswith("swift") else None,
        )
        for i in range(6)
        for name in names
    ]
    (seen,) = _seen(browser[0], [render(results_of(records, methods=names))], width, tmp_path)
    _reads_well(seen, width)


@pytest.mark.parametrize("width", [360, 1280])
def test_the_committed_pages_read_well(browser, tmp_path, width):
    pages = [page.read_text(encoding="utf-8") for page in PAGES]
    for page, seen in zip(PAGES, _seen(browser[0], pages, width, tmp_path), strict=True):
        print(page)  # shown where one does not
        _reads_well(seen, width)


def _reads_well(seen, width):
    shown, needed = seen["page"]
    assert needed <= shown <= width  # nothing to scroll sideways
    assert len(seen["plots"]) == 5
    for plot in seen["plots"]:
        assert plot["cut"] == []
        assert plot["width"] > 300
        assert plot["height"] > 100
        assert plot["right"] <= width
        assert plot["lowest"] >= 9  # pixels of a line of text
        assert plot["texts"] > 5
    assert seen["table"][0] >= 0
    assert seen["table"][1] <= width


@pytest.mark.parametrize("name", ["bench-qwen2.5-coder-0.5b-all", "bench-smollm2-135m-builtin"])
def test_the_page_prints_whole(browser, tmp_path, name):
    """On paper nothing can be scrolled: as printed, no table is wider than its sheet."""
    page = next(page for page in PAGES if page.parent.name == name).read_text(encoding="utf-8")
    # The rules for paper, on a sheet of A4 without its margins.
    shown = page.replace("@media print", "@media all")
    assert shown != page
    wrapper = tmp_path / "sheet"
    wrapper.mkdir()
    (seen,) = _seen(browser[0], [shown], 718, wrapper)
    assert seen["page"][1] <= seen["page"][0]
    assert seen["widest"] <= seen["page"][0]
    assert len(seen["plots"]) == 5
    assert all(plot["cut"] == [] and plot["right"] <= 718 for plot in seen["plots"])
    pdf = tmp_path / "page.pdf"
    source = tmp_path / "page.html"
    source.write_text(page, encoding="utf-8")
    command = [browser[0], "--headless", "--no-sandbox", "--disable-gpu"]
    command += [f"--user-data-dir={tmp_path / 'printing'}", f"--print-to-pdf={pdf}"]
    subprocess.run([*command, source.as_uri()], capture_output=True, timeout=300, check=True)
    sheets = len(re.findall(rb"/Type\s*/Page\b(?!s)", pdf.read_bytes()))
    assert 1 <= sheets <= 6
