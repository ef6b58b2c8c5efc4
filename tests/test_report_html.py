# SPDX-License-Identifier: GPL-2.0-only
"""Promises of the HTML reports, in a real Chromium without a network: one file that needs nothing
else, the verdict first, readable in light and dark, a leak where it cannot be missed."""
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shmkern import cli
from shmkern_stress import common, run_report, samples
from shmkern_stress.recording import result_of

from pages import CONTRAST, LUMINANCE, contrasts

pytestmark = pytest.mark.timeout(120)

BENCH = Path(__file__).resolve().parent.parent / "bench"
SECTIONS = ["Turns", "Over time", "Latencies", "Processes", "Nodes", "Kernel objects", "What was slow", "Words"]


# The command; but each turn lasts until there are samples enough for a trend.  On a busy host a second may have less.
SAMPLED = """
import sys
from shmkern import cli
from shmkern_stress import harness
def through(supervision, through=harness.Supervision.through):
    sampler = supervision.tick
    return through(supervision) and sampler.samples.rows(
        "SELECT count(*) FROM sample WHERE phase = 'running' AND turn = ?", sampler.turn)[0][0] > 15
harness.Supervision.through = through
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def soaked(once):
    """The samples of a real soak, and its report."""
    def soak(folder):
        done = subprocess.run([sys.executable, "-c", SAMPLED, "soak", "anon", "fork", "--seconds", "2", "--every", "0.05",
                               "--workers", "3", "--html", folder / "soak.html", "--samples", folder / "soak.db"],
                              capture_output=True, text=True, timeout=100)
        assert done.returncode == common.HELD, done
    return once("soak", soak)


@pytest.fixture(scope="module")
def broken(once, soaked):
    """The report of the same soak, if a worker had leaked a descriptor with each sample."""
    def leak(folder):
        shutil.copy(soaked / "soak.db", folder / "broken.db")
        file = samples.Samples.open(folder / "broken.db")
        with file.writing() as db:
            db.execute("UPDATE process SET fds = fds + sample WHERE name = 'worker 1'")
            db.execute("INSERT INTO finding VALUES (1, 1, 'growth', 'worker 1', 'growth: <script>document.title = 1</script>')")
        run_report.write(folder / "broken.html", file, result_of(file))
        file.close()
    return once("leak", leak) / "broken.html"


def test_report_is_one_file_that_asks_for_nothing(soaked, show):
    path = soaked / "soak.html"
    page = show(path)
    assert page.asked == [f"file://{path}"] and page.complaints == []
    text = path.read_text()
    assert "<script" not in text and "@import" not in text and 'src="' not in text
    # Names of XML dialects are no addresses.
    assert set(re.findall(r"https?://[^\s\"'<]*", text)) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert len(text) < 2_000_000


def test_verdict_comes_first_and_every_part_is_there(soaked, show):
    page = show(soaked / "soak.html")
    assert page.locator("h1 + .verdict.held b").inner_text() == "Held"
    assert "2 turns" in page.locator(".verdict").inner_text()
    assert page.locator("h2").all_inner_texts() == SECTIONS
    facts = page.locator("dl").inner_text()
    for word in ("commit", "seed", "cores", "Linux", "Python"):
        assert word in facts
    for word in ("anon", "fork", "held"):
        assert word in page.locator("table").first.inner_text()
    percentiles = page.locator("table").nth(1)
    assert {"p50", "p90", "p99", "p99.9"} <= set(percentiles.locator("th").all_inner_texts())
    assert {"migration wait", "fault", "lock wait"} <= set(percentiles.locator("td:first-child").all_inner_texts())


def test_every_plot_is_seen_and_has_lines_and_a_name(soaked, show):
    page = show(soaked / "soak.html")
    plots = page.locator("figure svg")
    assert plots.count() == 5
    for number in range(plots.count()):
        box = plots.nth(number).bounding_box()
        assert box["width"] > 600 and box["height"] > 100
        assert plots.nth(number).get_attribute("aria-label")
        assert plots.nth(number).locator("path").count() > 5
    assert page.locator("figure svg text", has_text="descriptors").count() == 1
    ids = page.evaluate("() => [...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    # Whatever a plot refers to is in it.
    wanted = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', (soaked / "soak.html").read_text()))
    assert wanted <= set(ids)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read(soaked, broken, show, scheme):
    for path in (soaked / "soak.html", broken):
        found = contrasts(show(path, scheme))
        assert len(found) > 100 and min(found) >= CONTRAST


def test_dark_is_dark_and_the_lines_follow(soaked, show):
    def colours(scheme):
        page = show(soaked / "soak.html", scheme)
        paper = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
        line = page.evaluate("() => getComputedStyle([...document.querySelectorAll('svg path')]"
                             ".find(e => (e.getAttribute('style') || '').includes('--s1'))).stroke")
        return page.evaluate(f"colours => colours.map({LUMINANCE})", [paper, line])
    light, dark = colours("light"), colours("dark")
    assert light[0] > 0.9 and dark[0] < 0.05 and light[1] < 0.3 < dark[1]


@pytest.mark.parametrize("width", [400, 1150])
def test_page_does_not_scroll_sideways(soaked, show, width):
    page = show(soaked / "soak.html", width=width)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width


def test_a_leak_cannot_be_missed_and_texts_are_no_markup(broken, show):
    page = show(broken)
    assert page.locator(".verdict.broken b").inner_text() == "Broken" and "1 finding (growth) in" in page.locator(".verdict").inner_text()
    assert page.locator("h2").first.inner_text() == "What was found"
    assert "<script>" in page.locator("ul").first.inner_text() and page.title().startswith("shmkern")
    first = page.locator("tr.bad", has_text="LEAK").first
    assert "worker 1" in first.inner_text() and "descriptors" in first.inner_text()
    assert page.locator("tr.bad", has_text="LEAK").count() == 1
    # The fitted line of the one leak is drawn in the colour of what is bad.
    assert page.locator("svg [style*='--bad']").count() == 1


def test_stress_writes_a_report(tmp_path, show):
    assert cli.main(["stress", "anon", "--seconds", "0.5", "--workers", "2", "--seed", "9", "--html",
                     str(tmp_path / "a.html")]) == common.HELD
    page = show(tmp_path / "a.html")
    assert page.locator(".verdict.held").count() == 1 and "1 turn" in page.locator(".verdict").inner_text()
    assert "9" in page.locator("dl").inner_text() and page.locator("h2").all_inner_texts() == SECTIONS


@pytest.mark.parametrize("name, options", [("fault", ["--pages", "600"]), ("migrate", ["--pages", "300"])])
def test_bench_writes_a_report(tmp_path, show, name, options):
    done = subprocess.run([sys.executable, BENCH / f"{name}.py", "--rounds", "2", *options, "--html", tmp_path / "b.html"],
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done
    page = show(tmp_path / "b.html")
    assert page.locator(".verdict.measured").count() == 1 and page.complaints == []
    assert page.locator("table tr").count() >= 2 and page.locator("figure svg").bounding_box()["height"] > 50
    assert min(contrasts(page)) >= CONTRAST


@pytest.mark.parametrize("line", ["stress anon --seconds 0.3 --workers 2", "soak anon --seconds 0.5 --workers 2"])
def test_report_that_cannot_be_written_is_a_sentence_and_the_result_is_kept(tmp_path, capsys, monkeypatch, line):
    # To draw the plots takes two seconds.
    monkeypatch.setattr("shmkern.html_report.svg", lambda *_arguments: "<svg></svg>")

    def run(html):
        more = ["--samples", str(tmp_path / "s.db")] if "soak" in line else []
        return cli.main([*line.split(), *more, "--html", html, "--json", str(tmp_path / "r.json")]), capsys.readouterr()
    # Known beforehand, it costs no run.
    status, said = run("/nowhere/x.html")
    assert status == common.BAD_USE and len(said.err.splitlines()) == 1 and "/nowhere/x.html" in said.err
    assert not (tmp_path / "s.db").exists()
    status, said = run("/dev/full")
    assert status == common.BAD_USE, said
    assert said.err.endswith("the report cannot be written to /dev/full: No space left on device\n")
    assert "held" in said.out and (tmp_path / "r.json").stat().st_size > 100


def test_colours_are_all_named(tmp_path):
    """None of the values that stand for a name is left in a plot."""
    from shmkern import html_report

    figure, axes = html_report.plot(1)
    axes[0].plot([1, 2], [3, 4], color=html_report.SERIES[7])
    axes[0].set_title("a < b")
    text = html_report.svg(figure, 1, "it's <a> \"plot\"")
    assert "#0f0e" not in text and "var(--s8)" in text and "&lt;a&gt;" in text
    with pytest.raises(AssertionError):
        html_report.Page("x", "fine", "", {})
