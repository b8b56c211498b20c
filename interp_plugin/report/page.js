"use strict";
const tip = document.getElementById("tip");
let told = null; // the element that the tip is about
const minus = (number) => String(number).replace(/^-/, "−");

function tell(element, parts) {
  tip.replaceChildren(...parts);
  told = element;
  tip.hidden = false;
  pin();
}

function pin() {
  if (told === null) return;
  const box = told.getBoundingClientRect();
  const own = tip.getBoundingClientRect();
  const fits = box.bottom + own.height + 8 < innerHeight;
  const right = document.documentElement.clientWidth - own.width - 8;
  tip.style.left = `${Math.max(8, Math.min(box.left, right))}px`;
  tip.style.top = `${fits ? box.bottom + 4 : Math.max(4, box.top - own.height - 4)}px`;
}

function hide() {
  told = null;
  tip.hidden = true;
  for (const piece of document.querySelectorAll(".line > .here")) piece.classList.remove("here");
}

function button(words, title, act) {
  const made = document.createElement("button");
  made.type = "button";
  made.append(words);
  made.title = title;
  made.addEventListener("click", () => act(made));
  return made;
}

// --- every table: copy and save as tab-separated values, in the order that is shown

function values(table) {
  const text = (cell) => cell.textContent.trim().replace(/\s+/g, " ");
  const rows = [...table.rows].filter((row) => !row.classList.contains("group"));
  return rows.map((row) => [...row.cells].map(text).join("\t")).join("\n") + "\n";
}

function copy(text) {
  const put = (event) => {
    event.clipboardData.setData("text/plain", text);
    event.preventDefault();
  };
  document.addEventListener("copy", put);
  const done = document.execCommand("copy"); // also where the page is a frame of a notebook
  document.removeEventListener("copy", put);
  return done;
}

function save(text, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/tab-separated-values" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function equip(table) {
  const tools = document.createElement("p");
  tools.className = "tools";
  tools.append(
    button("Copy", "Copy the table as tab-separated values", (made) => {
      made.textContent = copy(values(table)) ? "Copied" : "Not copied: the browser forbids it";
      setTimeout(() => { made.textContent = "Copy"; }, 1500);
    }),
    button("Download", "Save the table as tab-separated values", () => save(values(table), "table.tsv")),
  );
  table.parentElement.after(tools);
  return tools;
}

// --- lists and studies: a click on a heading sorts the rows of each group, on the first brings back the first order

function sortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  const bodies = [...table.tBodies].map((body) => [...body.rows].filter((row) => !row.classList.contains("group")));
  heads.forEach((head, c) => {
    const made = button("", c ? "Sort" : "Bring back the first order", () => {
      const sign = head.dataset.better === "lower" ? 1 : -1;
      const worth = (row) => {
        const { value } = row.cells[c].dataset;
        return value === undefined ? Infinity : sign * Number(value); // what has no value comes last
      };
      const compare = (a, b) => (worth(a) === worth(b) ? 0 : worth(a) - worth(b));
      bodies.forEach((rows, b) => table.tBodies[b].append(...(c ? [...rows].sort(compare) : rows)));
      for (const other of heads) other.removeAttribute("aria-sort");
      if (c) head.setAttribute("aria-sort", sign < 0 ? "descending" : "ascending");
    });
    made.append(...head.childNodes);
    head.append(made);
  });
}

// --- layers x units: the text follows the layer, words and cells tell more, arrow keys move

function start(section, table) {
  const data = section.querySelector("script");
  const more = data === null ? null : JSON.parse(data.textContent);
  const heads = [...table.tHead.rows[0].cells].slice(1);
  const names = heads.map((head) => head.textContent);
  const rows = [...table.tBodies[0].rows];
  const cells = rows.map((row) => [...row.cells].slice(1));
  const labels = rows.map((row) => row.cells[0].firstElementChild.textContent);
  const slider = section.querySelector("input");
  const output = section.querySelector("output");
  const pieces = [...section.querySelectorAll("[data-unit]")];
  const place = new Map();
  let order = names.map((_, u) => u); // of the units, as they are shown
  let layer = rows.length - 1;
  let unit = null;
  let stop = cells[0][0];
  const tools = equip(table);
  const sorter = button("Sort by value", "Order the units by the selected layer", (made) => {
    made.setAttribute("aria-pressed", String(made.getAttribute("aria-pressed") !== "true"));
    arrange();
  });
  sorter.setAttribute("aria-pressed", "false");
  tools.prepend(sorter);

  function facts(r, u) {
    const [value, ...others] = cells[r][u].textContent.trim().split(/\s+/);
    const error = others.find((part) => part.startsWith("±"));
    const line = [value === "-" ? "not known" : `${more === null ? "lost" : "kept"} ${value}${error ? ` ${error.replace("±", "± ")}` : ""}${more === null ? "" : " nats"}`];
    if (more !== null) {
      const [lost, sigma, off] = [more.lost[r][u], more.sigma[r][u], more.sigmaError[r][u]];
      if (lost !== null) line.push(`entropy left ${minus(lost)} nats`);
      if (sigma !== null) line.push(`sigma ${sigma}${off === null ? "" : ` ± ${off}`}`);
    }
    if (others.includes("≈")) line.push("cannot be told apart from its neighbour in rank");
    if (cells[r][u].classList.contains("hazy")) line.push("uncertain");
    return line;
  }

  function arrange() {
    const value = (u) => (heads[u].classList.contains("special") ? -Infinity : Number.parseFloat(cells[layer][u].textContent) || 0);
    const wanted = names.map((_, u) => u);
    if (sorter.getAttribute("aria-pressed") === "true") wanted.sort((a, b) => value(b) - value(a) || a - b);
    if (wanted.join() === order.join()) return; // a cell that is moved loses the focus
    order = wanted;
    const focused = document.activeElement;
    table.tHead.rows[0].append(...order.map((u) => heads[u]));
    rows.forEach((row, r) => row.append(...order.map((u) => cells[r][u])));
    if (place.has(focused)) focused.focus();
  }

  function choose(r) {
    layer = r;
    slider.value = r;
    slider.setAttribute("aria-valuetext", labels[r]);
    output.textContent = labels[r];
    for (const piece of pieces) {
      const kept = ["special", "here", "picked"].filter((kind) => piece.classList.contains(kind));
      const cell = cells[r][piece.dataset.unit];
      piece.className = [...kept, ...(kept.includes("special") ? [] : cell.classList)].join(" ");
    }
    rows.forEach((row, i) => row.classList.toggle("picked", i === r));
    arrange();
  }

  function pick(u) {
    unit = unit === u ? null : u;
    for (const piece of pieces) piece.classList.toggle("picked", Number(piece.dataset.unit) === unit);
    heads.forEach((head, i) => head.classList.toggle("picked", i === unit));
    if (unit !== null) cells[layer][u].scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  function show(element, r, u) {
    const name = document.createElement("bdi");
    name.textContent = names[u];
    name.style.fontWeight = "bold";
    tell(element, [name, `, ${labels[r]}\n${facts(r, u).join("\n")}`]);
    for (const piece of pieces) piece.classList.toggle("here", Number(piece.dataset.unit) === u);
  }

  function move(event) {
    const [r, u] = place.get(event.target.closest("td"));
    const [at, end] = [order.indexOf(u), names.length - 1];
    const ends = { Home: [event.ctrlKey ? 0 : r, 0], End: [event.ctrlKey ? rows.length - 1 : r, end] };
    const steps = { ArrowUp: [r - 1, at], ArrowDown: [r + 1, at], ArrowLeft: [r, at - 1], ArrowRight: [r, at + 1] };
    const to = { ...ends, ...steps }[event.key];
    if (!to || event.altKey || event.metaKey) return;
    event.preventDefault();
    const next = cells[to[0]]?.[order[to[1]]];
    if (next) next.focus();
  }

  cells.forEach((row, r) => row.forEach((cell, u) => {
    place.set(cell, [r, u]);
    cell.tabIndex = -1;
    cell.setAttribute("aria-label", `${names[u]}, ${labels[r]}: ${facts(r, u).join("; ")}`);
  }));
  const body = table.tBodies[0];
  body.addEventListener("keydown", (event) => place.has(event.target) && move(event));
  body.addEventListener("focusin", ({ target }) => {
    if (!place.has(target)) return;
    stop.tabIndex = -1;
    target.tabIndex = 0;
    stop = target;
    choose(place.get(target)[0]);
    show(target, ...place.get(target));
  });
  body.addEventListener("mouseover", ({ target }) => {
    const cell = target.closest("td");
    if (cell) show(cell, ...place.get(cell));
    else hide();
  });
  for (const name of ["focusout", "mouseleave"]) body.addEventListener(name, hide);
  rows.forEach((row, r) => row.cells[0].addEventListener("click", () => choose(r)));
  heads.forEach((head, u) => head.addEventListener("click", () => pick(u)));
  for (const piece of pieces) {
    const u = Number(piece.dataset.unit);
    piece.tabIndex = 0;
    piece.setAttribute("role", "button");
    for (const name of ["mouseenter", "focus"]) piece.addEventListener(name, () => show(piece, layer, u));
    for (const name of ["mouseleave", "blur"]) piece.addEventListener(name, hide);
    piece.addEventListener("click", () => pick(u));
    piece.addEventListener("keydown", ({ key }) => key === "Enter" && pick(u));
  }
  slider.addEventListener("input", () => choose(Number(slider.value)));
  table.setAttribute("role", "grid");
  table.parentElement.removeAttribute("tabindex"); // its cells take the focus now
  stop.tabIndex = 0;
  slider.hidden = rows.length < 2;
  choose(rows.length - 1);
}

for (const table of document.querySelectorAll("table")) {
  if ("selects" in table.dataset) {
    start(table.closest("section"), table);
  } else {
    equip(table);
    sortable(table);
  }
}
document.addEventListener("keydown", (event) => event.key === "Escape" && hide());
document.addEventListener("scroll", pin, true);
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => { part.open = true; }));
