"""Open a page in a headless Chromium and try its script: labels, arrow keys, slider, tip, a silent console.

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

sys.path.insert(0, str(Path(__file__).parent.parent))
from explanations import HOSTILE, explanation, falling, row, text

from interp_plugin import rendering

ACT = """{
const said = [], claim = (name, holds) => said.push(`${holds ? "ok " : "NOT"} ${name}`);
const cells = [...document.querySelectorAll("td")], tip = document.getElementById("tip");
const press = (key, more) => document.activeElement.dispatchEvent(
  new KeyboardEvent("keydown", {key, bubbles: true, cancelable: true, ...more}));
claim("the table is a grid", document.querySelector("table").getAttribute("role") === "grid");
claim("one cell is a tab stop", cells.filter((cell) => cell.tabIndex === 0).length === 1);
claim("every cell has a label", cells.every((cell) => /kept .* nats; lost .* sigma .* ± /.test(cell.ariaLabel)));
cells[0].focus();
claim("focus shows the tip", !tip.hidden && tip.textContent.includes("lost"));
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
claim("the slider shades the sentence", units.every((unit) =>
  unit.classList.contains(cells[2 * WIDTH + Number(unit.dataset.unit)].className)));
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
    source = rendering.to_html(explanation(text(list(HOSTILE), rows)))
    # the policy forbids any script but the page's own: the copy that is tried goes without it
    acting = re.sub("<meta http-equiv[^>]*>", "", source)
    acting = acting.replace("</body>", f"<script>{ACT.replace('WIDTH', str(width))}</script></body>")

    said, quiet = _open(browser, acting)
    said += [
        "ok  the console is silent" if quiet and _open(browser, source)[1] else "NOT the console is silent"
    ]
    print("\n".join(said))
    sys.exit(any(line.startswith("NOT") for line in said) or len(said) < 10)


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
    [title] = re.findall("<title>(.*?)</title>", done.stdout, flags=re.DOTALL)
    return title.split("|"), ":CONSOLE" not in done.stderr


if __name__ == "__main__":
    main()
