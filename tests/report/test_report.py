"""The report of a run: what it says, that nothing in it is markup from outside, and how a browser shows it."""

from __future__ import annotations

import base64
import csv
import html
import io
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from figure_checks import run_results

import superweight_ensembles as swe
from superweight_ensembles import __main__ as cli
from superweight_ensembles.plan import bank_words
from superweight_ensembles.report import changed, describe, figures, plan_section, sentences, write_report
from superweight_ensembles.report.figures.catalog import (
    ARMS_FIGURES,
    FIGURE_NAMES,
    RUN_FIGURES,
    RUNS_FIGURES,
    SEARCH_FIGURES,
)

COMMITTED = Path(__file__).parents[2] / "benchmarks" / "results"
EVIL = "<script>alert(1)</script>\"' onload=x"
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
VOID = {"meta", "link", "img"}


class Page(HTMLParser):
    """The elements and texts of a page; refuses elements that are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append(data.strip())

    def all(self, *names: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name in names]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The committed runs of digits with their report, once for all tests; without the curves that a test adds."""
    runs = {}
    for name in ("digits", "digits-search"):
        runs[name] = tmp_path_factory.mktemp("runs") / name
        shutil.copytree(COMMITTED / name, runs[name])
        edit(runs[name] / "results.json", lambda content: [arm.pop("anytime", None) for arm in content["arms"]])
        write_report(runs[name])
    return runs


@pytest.fixture
def run(drawn: dict[str, Path], tmp_path: Path) -> Path:
    return shutil.copytree(drawn["digits"], tmp_path / "run")


def edit(path: Path, change: Any) -> None:
    content = json.loads(path.read_text())
    change(content)
    times = path.stat()
    path.write_text(json.dumps(content))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # the figures stay as new as they were


def table_rows(text: str) -> list[list[str]]:
    return [
        [html.unescape(re.sub("<[^>]*>", "", cell)) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)]
        for row in re.findall(r"<tr>(.*?)</tr>", text)
    ]


def test_the_page_says_what_the_results_say(drawn: dict[str, Path]) -> None:
    text = (drawn["digits"] / "report.html").read_text()
    results = json.loads((drawn["digits"] / "results.json").read_text())
    rows = table_rows(text)
    shared, independent = results["arms"]
    for arm in (shared, independent):
        metrics = arm["ensemble"]["metrics"]
        row = next(row for row in rows if f"{arm['num_parameters']:,}" in row and arm["name"] in row)
        assert row[-4:] == [
            f"{100 * metrics['accuracy']:.2f}", f"{metrics['nll']:.4f}", f"{100 * metrics['ece']:.2f}",
            f"{metrics['brier']:.4f}",
        ]  # fmt: skip
    change = next(row for row in rows if row[0] == "difference")
    points = 100 * (shared["ensemble"]["metrics"]["accuracy"] - independent["ensemble"]["metrics"]["accuracy"])
    assert change[2] == f"\N{MINUS SIGN}{independent['num_parameters'] - shared['num_parameters']:,}"
    assert change[5].replace("\N{MINUS SIGN}", "-") == f"{points:+.2f}"
    assert len([row for row in rows if row[:1] == ["wrn16-2"] and "in the bank" in row]) == 1
    page = Page(text)
    shown = " ".join(page.texts)
    commit = results["provenance"]["commit"]
    for said in ("17 % fewer than the 1,247,144", "seed 0", "budget: 0.83", "epochs: 30", "torch", commit):
        assert said in shown, said
    plan = swe.SharingPlan.from_json((drawn["digits"] / "plan.json").read_text())
    for cluster in plan.clusters:
        assert any(row[:1] == [cluster.name] for row in rows)
    assert any(row[:1] == ["in all"] and f"{plan.num_parameters:,}" in row for row in rows)


def test_the_page_needs_nothing_else_and_runs_nothing(drawn: dict[str, Path]) -> None:
    for folder in drawn.values():
        text = (folder / "report.html").read_text()
        page = Page(text)
        policies = [given["content"] for given in page.all("meta") if given.get("http-equiv")]
        assert len(policies) == 1 and policies[0].startswith("default-src 'none'; img-src data:; style-src")
        assert not page.all("script", "iframe", "object", "embed", "form", "base")
        for name, attributes in page.elements:
            assert not [key for key in attributes if key.startswith("on")]
            for value in (attributes.get("src"), attributes.get("href")):
                assert value is None or value.startswith(("data:", "#")), (name, value)
        assert "http://" not in text and "https://" not in text and "@import" not in text and "url(" not in text
        assert len(text) < 2_000_000


def test_the_page_can_be_read_without_eyes(drawn: dict[str, Path]) -> None:
    for name, count in (("digits", 6), ("digits-search", 8)):
        page = Page((drawn[name] / "report.html").read_text())
        assert page.all("html")[0]["lang"] == "en"
        levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
        assert levels[0] == 1 and levels.count(1) == 1
        assert all(after <= before + 1 for before, after in pairwise(levels))
        images = page.all("img")
        assert len(images) == count
        assert len({image["alt"] for image in images}) == count and all(
            len(image["alt"] or "") > 40 for image in images
        )
        assert all(heading.get("scope") in ("col", "row", "rowgroup") for heading in page.all("th"))
        targets = {given["id"] for _, given in page.elements if "id" in given}
        assert {(link["href"] or "")[1:] for link in page.all("a") if "download" not in link} <= targets
        boxes = [given for given in page.all("div") if "scroll" in (given.get("class") or "")]
        assert boxes and all(box["tabindex"] == "0" and box["aria-label"] for box in boxes)


def test_names_are_shown_as_text(run: Path) -> None:
    def rename(content: dict) -> None:
        content["name"] = content["dataset"]["name"] = EVIL
        content["provenance"]["cpu"] = EVIL
        for arm in content["arms"]:
            arm["members"][0]["name"] = EVIL
            arm["training"]["device"] = EVIL

    edit(run / "results.json", rename)
    edit(run / "plan.json", lambda content: _rename_in_plan(content, "wrn16-2", EVIL))
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["members"][0]["name"] = EVIL
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (run / "figures").mkdir(exist_ok=True)
    (run / "figures" / "<img src=x>.png").write_bytes(PIXEL)
    text = write_report(run).read_text()
    page = Page(text)
    assert not page.all("script") and not [given for _, given in page.elements if "onload" in given]
    assert EVIL in page.texts and any(EVIL in (image["alt"] or "") for image in page.all("img"))
    assert len(page.all("img")) == 7 and all((image["src"] or "").startswith("data:") for image in page.all("img"))
    assert "<script" not in text


@pytest.mark.parametrize(
    ("budget", "columns", "words"),
    [
        (0.29, ["slots", "templates", "bank", "how layers read it"], "in templates and flat banks (at least"),
        (0.05, ["bank", "how layers read it"], "in flat banks (at least"),
        (0.83, ["slots", "templates"], "in templates (at least"),
    ],
)
def test_the_sharing_table_has_the_columns_of_its_generators(budget: float, columns: list[str], words: str) -> None:
    plan = swe.plan_sharing({"wrn16-2": swe.wide_resnet(16, 2, 10)}, budget=budget)
    page = Page(str(plan_section(plan)))
    head = [*["cluster", "wrn16-2"], *columns, "parameters", "share"]
    text = str(plan_section(plan))
    assert [name for name in page.texts if name in head][: len(head)] == head
    rows = text.split("<tr")[1:]
    assert {row.count("<td") + row.count("<th") for row in rows} == {len(head)}
    assert words in text
    for group in plan.ssn_groups.values():
        assert f"{group.bank_size:,}" in page.texts and bank_words(group) in page.texts
    seen = describe("sharing_map", run_results({"arms": []}), plan)
    assert ("of them flat banks" in seen) == (budget == 0.29) and ("of flat banks" in seen) == (budget == 0.05)


def test_every_figure_is_exported_described_and_listed() -> None:
    results, plan = swe.experiment.read_results(COMMITTED / "adaptive-ensemble" / "learned")
    assert len(set(FIGURE_NAMES)) == len(FIGURE_NAMES)
    listed = (COMMITTED.parents[1] / "docs" / "figures.md").read_text().split("## Restyle one")
    for record in (*RUN_FIGURES, *SEARCH_FIGURES, *RUNS_FIGURES, *ARMS_FIGURES):
        assert getattr(figures, record.name).__name__ == record.name
        assert all(f"`{record.name}`" in table for table in listed), record.name
    for page_figure in (*RUN_FIGURES, *SEARCH_FIGURES):
        seen = describe(page_figure.name, results, plan)
        assert len(seen) > 40 and "without a description" not in seen, page_figure.name
    assert list(figures.run_figures(results, plan)) == [one.name for one in RUN_FIGURES if one.applies(results, plan)]
    assert describe("my_own", results, plan) == "My own: a figure in the run's folder, without a description."
    last = next(record.widths for record in reversed(results.widths or results.arms[0].history) if record.widths)
    member, own = next(iter(last.items()))
    assert all(f"{member}.{layer}: {width}" in describe("width_history", results, plan) for layer, width in own.items())


def _rename_in_plan(content: dict, old: str, new: str) -> None:
    content.pop("fingerprint", None)
    for member in content["members"]:
        member["name"] = new if member["name"] == old else member["name"]
    for cluster in content["clusters"]:
        for target in cluster["targets"]:
            target["member"] = new if target["member"] == old else target["member"]


def test_figures_are_svg_and_others_are_shown(run: Path) -> None:
    (run / "figures").mkdir(exist_ok=True)
    (run / "figures" / "my_notes.png").write_bytes(PIXEL)
    (run / "figures" / "sharing_map.png").write_bytes(PIXEL)  # of before: the report draws its own
    text = write_report(run).read_text()
    sources = [image["src"] or "" for image in Page(text).all("img")]
    assert [source.split(";")[0] for source in sources] == ["data:image/svg+xml"] * 6 + ["data:image/png"]
    assert "My notes" in text and text.count(base64.b64encode(PIXEL).decode()) == 1
    for source in sources[:6]:
        drawn = base64.b64decode(source.split(",")[1]).decode()
        assert "<svg" in drawn and "<script" not in drawn and "<dc:date>" not in drawn
    (run / "figures" / "broken.png").write_bytes(b"no picture")
    with pytest.raises(swe.SuperWeightError, match=r"broken\.png is no PNG file"):
        write_report(run)


def tables(page: Path) -> dict[str, list[list[str]]]:
    """The CSV files that a page offers, by name."""
    links = [link for link in Page(page.read_text()).all("a") if "download" in link]
    assert all((link["href"] or "").startswith("data:text/csv;charset=utf-8;base64,") for link in links)
    texts = {link["download"] or "": base64.b64decode((link["href"] or "").split(",")[1]).decode() for link in links}
    return {name: list(csv.reader(io.StringIO(text))) for name, text in texts.items()}


def test_every_figure_has_its_data(drawn: dict[str, Path]) -> None:
    found = tables(drawn["digits"] / "report.html")
    results = json.loads((drawn["digits"] / "results.json").read_text())
    assert len(found) == 6 and all(len({len(row) for row in rows}) == 1 for rows in found.values())
    head, *rows = found["accuracy_flops.csv"]
    assert head == ["arm", "members", "FLOPs per image", "test accuracy (%)"]
    given = [(arm["name"], " ".join(one["members"]), one["flops"], 100 * one["metrics"]["accuracy"])
             for arm in results["arms"] for one in arm["subsets"]]  # fmt: skip
    assert [(*row[:2], int(row[2]), float(row[3])) for row in rows] == given
    assert sum(row[1] == "ensemble" for row in found["training_curves.csv"]) == sum(
        len(arm["history"]) for arm in results["arms"]
    )
    searched = tables(drawn["digits-search"] / "report.html")
    assert len(searched) == 8
    cosines = searched["similarity_matrix.csv"]
    assert cosines[0][-1] == "cosine" and all(-1.001 <= float(row[-1]) <= 1.001 for row in cosines[1:] if row[-1])
    assert len({row[0] for row in searched["sharing_change.csv"][1:]}) == 3


def test_a_run_without_a_baseline(drawn: dict[str, Path]) -> None:
    text = (drawn["digits-search"] / "report.html").read_text()
    assert "No independent ensemble was trained beside it" in text and ">difference<" not in text
    assert "What the search saw" in text and "What the search changed" in text
    assert "What the search saw" not in (drawn["digits"] / "report.html").read_text()


def arm(name: str, parameters: int, right: int, count: int) -> dict[str, Any]:
    metrics = {"accuracy": right / count, "top5_accuracy": 1.0, "nll": 0.1, "ece": 0.01, "brier": 0.02}
    member = {"name": "a", "flops": 1_000_000, "metrics": metrics}
    ensemble = {"flops": 2_000_000, "latency_ms": 1.0, "metrics": metrics}
    return {"name": name, "num_parameters": parameters, "independent_parameters": 100, "members": [member, member],
            "ensemble": ensemble}  # fmt: skip


@pytest.mark.parametrize(
    ("right", "said"),
    [
        (950, "Both are right equally often."),
        (951, "That is 1 image of 1,000: too few to tell the two apart."),
        (945, "That is 5 images of 1,000: too few to tell the two apart."),
        (956, "That is 6 images of 1,000. This is one seed"),
    ],
)
def test_sentences_follow_from_the_numbers(right: int, said: str) -> None:
    results = {
        "dataset": {"name": "d", "num_test": 1000},
        "arms": [arm("shared", 83, right, 1000), arm("independent", 100, 950, 1000)],
    }
    found = sentences(run_results(results))
    assert "17 % fewer than the 100" in found[0] and any(said in sentence for sentence in found)
    points = f"{(right - 950) / 10:+.2f}".replace("-", "\N{MINUS SIGN}") if right != 950 else "0.00"
    assert f"accuracy {points} points" in found[1]
    assert "level with its best member" in found[-1]
    assert (changed(130, 100), changed(100, 100)) == ("30 % more", "as many")


ANYTIME = {
    "order": ["wrn16-2"], "batch_size": 64, "timed_images": 512,
    "policy": {
        "order": ["wrn16-2"], "confidence": "margin", "temperatures": [1.0], "thresholds": [], "monotone": False
    },
    "calibration": {
        "num_samples": 180, "target": ["flops", 0.5], "accuracy": 0.9, "full_accuracy": 0.9, "flops": 1e6,
        "full_flops": 1000000, "exits": [1.0], "overthinking": {},
    },
    "curves": [
        {
            "name": name, "area": 0.93, "latency_area": 0.91,
            "points": [
                {"flops": 1e6 * n, "latency_ms": 0.5 * n, "members_used": n, "accuracy": 0.9 + n / 100, "nll": 0.3 / n}
                for n in (1, 2)
            ],
        }
        for name in ("stream", "cascade")
    ],
    "members": [{"name": "wrn16-2", "flops": 1000000, "latency_ms": 0.5, "accuracy": 0.91, "nll": 0.3}],
    "calibrated": {"flops": 1.5e6, "latency_ms": 0.7, "members_used": 1.25, "accuracy": 0.915, "nll": 0.2},
}  # fmt: skip


def test_measured_curves_of_a_committed_run(tmp_path: Path) -> None:
    run = shutil.copytree(COMMITTED / "digits", tmp_path / "run")
    text = write_report(run).read_text()
    arms = json.loads((run / "results.json").read_text())["arms"]
    for arm in arms:
        areas = {curve["name"]: f"{100 * curve['area']:.2f}" for curve in arm["anytime"]["curves"]}
        assert any(row[:3] == ["cascade", arm["name"], areas["cascade"]] for row in table_rows(text))
    assert len(Page(text).all("img")) == 7


def test_anytime_curves_where_they_were_measured(run: Path) -> None:
    assert ">Anytime<" not in (run / "report.html").read_text()
    edit(run / "results.json", lambda content: content["arms"][0].update(anytime=ANYTIME))
    rows = table_rows(write_report(run).read_text())
    assert ["stream", "shared", "93.00", "91.00"] in rows
    assert ["cascade", "shared", "1.00", "1.00", "0.50", "91.00", "0.3000"] in rows
    assert ["", "2.00", "2.00", "1.00", "92.00", "0.1500"] in rows
    assert ["policy kept", "shared", "1.25", "1.50", "0.70", "91.50", "0.2000"] in rows


@pytest.mark.parametrize(
    "anytime",
    [
        3, {}, {**ANYTIME, "curves": None}, {**ANYTIME, "curves": [None, {}]},
        {**ANYTIME, "curves": [{"name": EVIL, "area": None}]},
        {**ANYTIME, "curves": [{"name": "stream", "points": [None, {}, {"flops": "many", "members": ["a", EVIL]}]}]},
        {**ANYTIME, "curves": [{"name": "stream", "area": 0.5, "points": [{"members": 2, "accuracy": None}]}]},
    ],
)  # fmt: skip
def test_curves_that_were_edited_are_refused(run: Path, anytime: object) -> None:
    page = (run / "report.html").read_bytes()
    edit(run / "results.json", lambda content: content["arms"][0].update(anytime=anytime))
    with pytest.raises(swe.SuperWeightError, match=r"results\.json is damaged \(arms\.0\.anytime.*: evaluate the run"):
        write_report(run)
    assert (run / "report.html").read_bytes() == page


def test_mistakes(run: Path, tmp_path: Path) -> None:
    with pytest.raises(swe.SuperWeightError, match="is no run folder: superweights train RECIPE"):
        write_report(tmp_path)
    with pytest.raises(swe.SuperWeightError, match="is a comparison, not a run: superweights plot"):
        write_report(COMMITTED / "cifar10-16px")
    kept = (run / "results.json").read_bytes()
    with pytest.raises(swe.SuperWeightError, match="--out must name an HTML file"):
        write_report(run, run / "results.json")
    assert (run / "results.json").read_bytes() == kept
    edit(run / "results.json", lambda content: content["arms"][0]["ensemble"].pop("metrics"))
    page = (run / "report.html").read_bytes()
    with pytest.raises(swe.SuperWeightError, match=r"results\.json is damaged .*: evaluate the run again"):
        write_report(run)
    assert (run / "report.html").read_bytes() == page  # whole or as before
    (run / "results.json").unlink()
    with pytest.raises(swe.SuperWeightError, match=r"has no results yet: superweights evaluate .* writes them"):
        write_report(run)


def test_command_line(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def superweights(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["superweights", *map(str, arguments)])
        with pytest.raises(SystemExit, match=r"[02]") as stopped:  # noqa: PT012 - main may return or exit
            cli.main()
            sys.exit(0)
        return int(stopped.value.code or 0)

    (run / "report.html").unlink()
    assert superweights("report", run) == 0
    assert str(run / "report.html") in capsys.readouterr().out and (run / "report.html").is_file()
    assert superweights("report", run, "--out", tmp_path / "new" / "mine.html") == 0
    assert (tmp_path / "new" / "mine.html").read_bytes() == (run / "report.html").read_bytes()
    assert superweights("report", tmp_path) == 2
    assert "is no run folder" in capsys.readouterr().err
    assert not list(run.glob(".*"))


MEASURE = """<!doctype html><body><script>
const sizes = [];
function measure() {
  for (const frame of document.querySelectorAll("iframe")) {
    const page = frame.contentDocument, root = page.documentElement, box = (e) => e.getBoundingClientRect();
    const scrolls = (e) => e.closest(".scroll") !== null;
    sizes.push({
      width: frame.clientWidth, page: Math.max(root.scrollWidth, page.body.scrollWidth),
      images: [...page.images].map((image) => image.naturalWidth),
      outside: [...page.body.querySelectorAll("*")].filter((e) => !scrolls(e) && box(e).right > frame.clientWidth + 1)
        .map((e) => e.tagName),
      scrolled: [...page.querySelectorAll(".scroll")].filter((e) => e.scrollWidth > e.clientWidth).length,
      loaded: page.defaultView.performance.getEntriesByType("resource").map((e) => e.name.slice(0, 30)),
      dark: getComputedStyle(page.body).backgroundColor,
    });
  }
  document.body.innerHTML = "";
  document.body.textContent = JSON.stringify(sizes);
}
addEventListener("load", () => setTimeout(measure, 200));
</script>"""


def browse(chromium: str, page: Path, folder: Path, *flags: str) -> list[dict[str, Any]]:
    """A page at two widths in a browser without a network: frames of an outer page, which measures them."""
    frames = [f'<iframe width={width} height=900 srcdoc="{html.escape(page.read_text())}"></iframe>'
              for width in (390, 1280)]  # fmt: skip
    (folder / "outer.html").write_text(MEASURE + "".join(frames))
    command = [
        chromium, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND", *flags,
        f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=5000", "--window-size=1700,1000", "--dump-dom",
        (folder / "outer.html").as_uri(),
    ]  # fmt: skip
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    shown = re.search(r"<body>(.*?)</body>", answer.stdout, flags=re.DOTALL)
    assert shown is not None, answer.stderr[-2000:]
    return json.loads(html.unescape(shown.group(1)))


@pytest.mark.slow
def test_in_a_browser(drawn: dict[str, Path], tmp_path: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    backgrounds = []
    for name, count, flags in (
        ("digits", 6, ("--blink-settings=preferredColorScheme=1",)),
        ("digits-search", 8, ("--blink-settings=preferredColorScheme=0",)),
    ):
        folder = tmp_path / name
        folder.mkdir()
        phone, desktop = browse(chromium, drawn[name] / "report.html", folder, *flags)
        for found, width in ((phone, 390), (desktop, 1280)):
            assert found["width"] == width and found["page"] <= width, found
            assert found["outside"] == []
            assert len(found["images"]) == count and min(found["images"]) > 0
            assert all(entry.startswith("data:") for entry in found["loaded"])
        assert phone["scrolled"] > desktop["scrolled"]  # tables and wide figures scroll in their own boxes
        backgrounds.append(phone["dark"])
    assert backgrounds == ["rgb(250, 250, 248)", "rgb(20, 23, 26)"]
