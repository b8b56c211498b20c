"""Open pages in a headless Chromium and try their scripts, and see that the console stays silent.

Of an explanation: labels, arrow keys, slider, tip.  Of a study: sorting.

    python tests/benchmarks/page_in_browser.py [--browser chromium]

Prints one line per claim and ends with status 1 if one does not hold.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from explanations import HOSTILE, explanation, falling, row, text
from studies import made_report, study_table

from interp_plugin.report import explanations, html

ACT = """{
const said = [], claim = (name, holds) => said.push(`${holds ? "ok " : "NOT"} ${name}`);
const cells = [...document.querySelectorAll(".map td")], tip = document.getElementById("tip");
const press = (key, more) => document.activeElement.dispatchEvent(
  new KeyboardEvent("keydown", {key, bubbles: true, cancelable: true, ...more}));
claim("the table is a grid", document.querySelector("table").getAttribute("role") === "grid");
claim("one cell is a tab stop", cells.filter((cell) => cell.tabIndex === 0).length === 1);
const label = /kept .* nats; entropy left .* sigma .* ± /;
claim("every cell has a label", cells.every((cell) => label.test(cell.ariaLabel)));
cells[0].focus();
claim("focus shows the tip", !tip.hidden && tip.textContent.includes("entropy left"));
press("ArrowRight"); press("ArrowDown");
claim("arrows move", document.activeElement === cells[WIDTH + 1]);
claim("the sentence follows the layer", document.querySelector("output").textContent === "layer 2");
claim("still one tab stop", cells.filter((cell) => cell.tabIndex === 0).length === 1);
press("End"); claim("End goes to the row's end", document.activeElement === cells[2 * WIDTH - 1]);
press("ArrowRight"); claim("the edge holds", document.activeElement === cells[2 * WIDTH - 1]);
press("Home", {ctrlKey: true}); claim("Ctrl+Home goes to the first cell", document.activeElement === cells[0]);
press("Escape"); claim("Escape hides the tip", tip.hidden);
cells[3].dispatchEvent(new MouseEvent("mouseover", {bubbles: true}));
claim("hovering shows the tip", !tip.hidden && tip.textContent.includes("cannot be told apart"));
const slider = document.querySelector("input");
slider.value = 2; slider.dispatchEvent(new Event("input"));
const units = [...document.querySelectorAll("[data-unit]")];
const shaded = (unit) => cells[2 * WIDTH + Number(unit.dataset.unit)].classList[0];
claim("the slider shades the sentence", units.every((unit) =>
  unit.classList.contains("special") || unit.classList.contains(shaded(unit))));
document.querySelector(".map tbody th").click();
claim("a click on a layer selects it", document.querySelector("output").textContent === "layer 1");
units[1].dispatchEvent(new MouseEvent("mouseenter"));
claim("a word has its cell's tip", !tip.hidden && tip.textContent.includes("entropy left"));
units[1].click();
claim("a click on a word selects its column", document.querySelectorAll(".map thead .picked").length === 1);
const map = document.querySelector(".map"), number = (cell) => Number.parseFloat(cell.textContent);
const order = () => [...map.rows[1].cells].slice(1).map(number);
const first = order();
document.querySelector(".tools button").click();
claim("units are sorted by value", order().every((value, i, all) => !i || value <= all[i - 1]));
document.querySelector(".tools button").click();
claim("their first order comes back", order().join() === first.join());
claim("a table has lines and tabs", values(map).split("\\n")[0].split("\\t").length === WIDTH + 1);
document.title = said.join("|");
}"""

SORT = """{
const said = [], claim = (name, holds) => said.push(`${holds ? "ok " : "NOT"} ${name}`);
const table = document.querySelector("table"), heads = [...table.tHead.rows[0].cells];
const names = () => [...table.tBodies].map((body) => [...body.rows].map((row) => row.cells[0].textContent));
const values = (body, c) => [...body.rows].slice(1).map((row) => Number(row.cells[c].dataset.value ?? NaN));
const sorted = (numbers, sign) => numbers.every((x, i) =>
  !i || (Number.isNaN(x) || sign * x >= sign * numbers[i - 1]) && !(Number.isNaN(numbers[i - 1]) && !Number.isNaN(x)));
const before = names();
claim("every heading is a button", heads.every((head) => head.querySelector("button")));
heads.forEach((head, c) => {
  if (!c) return;
  head.querySelector("button").click();
  const sign = head.dataset.better === "higher" ? -1 : 1;
  claim(`best first by ${head.textContent}`, [...table.tBodies].every((body) => sorted(values(body, c), sign)));
  claim("one heading says so", document.querySelectorAll("[aria-sort]").length === 1 && head.ariaSort !== null);
});
claim("groups stay apart, each under its name", names().every((group, b) =>
  group[0] === before[b][0] && [...group].sort().join() === [...before[b]].sort().join()));
heads[0].querySelector("button").click();
claim("the first order comes back", names().join() === before.join());
document.title = said.join("|");
}"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--browser", default="chromium")
    browser = parser.parse_args().browser

    width = len(HOSTILE)
    rows = [row(falling(width), layer) | {"tied": [True] * width} for layer in (1, 2, 3)]
    source = html.page(explanations.report(explanation(text(list(HOSTILE), rows))))
    said = _tried(browser, source, ACT.replace("WIDTH", str(width)))
    table = study_table()
    said += _tried(browser, html.page(made_report(table)), SORT)
    print("\n".join(said))
    sys.exit(any(line.startswith("NOT") for line in said) or len(said) < 20)


def _tried(browser: str, source: str, script: str) -> list[str]:
    """What the script claims of the page, and that both are silent."""
    # the policy forbids any script but the page's own: the copy that is tried goes without it
    acting = re.sub("<meta http-equiv[^>]*>", "", source).replace(
        "</body>", f"<script>{script}</script></body>"
    )
    said, quiet = _open(browser, acting)
    silent = quiet and _open(browser, source)[1]
    return [*said, "ok  the console is silent" if silent else "NOT the console is silent"]


def _open(browser: str, source: str) -> tuple[list[str], bool]:
    """The title that the script left, and whether the console stayed empty."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "page.html"
        path.write_text(source, encoding="utf-8")
        command = [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={folder}/profile",
        ]
        command += ["--enable-logging=stderr", "--v=0", "--dump-dom", path.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    [title] = re.findall("<title>(.*?)</title>", done.stdout.partition("</head>")[0], flags=re.DOTALL)
    return title.split("|"), ":CONSOLE" not in done.stderr


if __name__ == "__main__":
    main()
