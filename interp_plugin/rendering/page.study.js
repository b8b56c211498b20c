"use strict";
// a click on a metric sorts each group's methods, best first; on "method" it brings back the first order
for (const table of document.querySelectorAll(".study")) {
  const heads = Array.from(table.tHead.rows[0].cells);
  const bodies = Array.from(table.tBodies, (body) => Array.from(body.rows).slice(1));
  heads.forEach((head, c) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.title = c ? "Sort: best first" : "Bring back the first order";
    head.append(button);
    button.addEventListener("click", () => {
      const sign = head.dataset.better === "higher" ? -1 : 1;
      const worth = (row) => {
        const { value } = row.cells[c].dataset;
        return value === undefined ? Infinity : sign * Number(value); // what has no value comes last
      };
      const compare = (a, b) => (worth(a) === worth(b) ? 0 : worth(a) - worth(b));
      bodies.forEach((rows, b) => table.tBodies[b].append(...(c ? [...rows].sort(compare) : rows)));
      for (const other of heads) other.removeAttribute("aria-sort");
      if (c) head.setAttribute("aria-sort", sign < 0 ? "descending" : "ascending");
    });
  });
}
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => { part.open = true; }));
