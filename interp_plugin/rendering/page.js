"use strict";
const tip = document.getElementById("tip");
let told = null; // the cell that the tip is about
const minus = (number) => String(number).replace(/^-/, "−");

function tell(cell, numbers, r, u) {
  const [value, error, tied] = cell.textContent.trim().split(/\s+/);
  const what = numbers.kind;
  const unit = what === "kept" ? " nats" : "";
  const line = [value === "-" ? `${what}: not known` : `${what} ${value} ${error.replace("±", "± ")}${unit}`];
  const loss = numbers.loss[r][u];
  if (loss !== null) line.push(`lost ${minus(loss)} nats`);
  const sigma = numbers.sigma[r][u];
  const off = numbers.sigmaError[r][u];
  if (sigma !== null) line.push(`sigma ${sigma}${off === null ? "" : ` ± ${off}`}`);
  if (tied) line.push("cannot be told apart from its neighbour in rank");
  return line;
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

function start(section) {
  const data = section.querySelector("script");
  if (data === null) return;
  const numbers = { ...JSON.parse(data.textContent), kind: data.dataset.kind };
  const table = section.querySelector(".map");
  const names = Array.from(table.tHead.rows[0].cells, (cell) => cell.textContent).slice(1);
  const rows = Array.from(table.tBodies[0].rows);
  const cells = rows.map((row) => Array.from(row.cells).slice(1));
  const labels = rows.map((row) => row.cells[0].firstElementChild.textContent);
  const slider = section.querySelector("input");
  const output = section.querySelector("output");
  const pieces = Array.from(section.querySelectorAll("[data-unit]"));
  const place = new Map();
  let stop = cells[0][0];

  function choose(r) {
    slider.value = r;
    slider.setAttribute("aria-valuetext", labels[r]);
    output.textContent = labels[r];
    for (const piece of pieces) {
      const special = piece.classList.contains("special") ? "special " : "";
      piece.className = special + cells[r][piece.dataset.unit].className;
    }
    rows.forEach((row, i) => row.classList.toggle("here", i === r));
  }

  function show(cell) {
    const [r, u] = place.get(cell);
    const name = document.createElement("bdi");
    name.textContent = names[u];
    name.style.fontWeight = "bold";
    tip.replaceChildren(name, `, ${labels[r]}\n${tell(cell, numbers, r, u).join("\n")}`);
    told = cell;
    tip.hidden = false;
    pin();
    for (const piece of pieces) piece.classList.toggle("here", Number(piece.dataset.unit) === u);
  }

  function move(event) {
    const [r, u] = place.get(event.target.closest("td"));
    const ends = { Home: [event.ctrlKey ? 0 : r, 0], End: [event.ctrlKey ? rows.length - 1 : r, names.length - 1] };
    const steps = { ArrowUp: [r - 1, u], ArrowDown: [r + 1, u], ArrowLeft: [r, u - 1], ArrowRight: [r, u + 1] };
    const to = { ...ends, ...steps }[event.key];
    if (!to || event.altKey || event.metaKey) return;
    event.preventDefault();
    const next = cells[to[0]]?.[to[1]];
    if (next) next.focus();
  }

  cells.forEach((row, r) => row.forEach((cell, u) => {
    place.set(cell, [r, u]);
    cell.tabIndex = -1;
    cell.setAttribute("aria-label", `${names[u]}, ${labels[r]}: ${tell(cell, numbers, r, u).join("; ")}`);
  }));
  const body = table.tBodies[0];
  body.addEventListener("keydown", (event) => place.has(event.target) && move(event));
  body.addEventListener("focusin", ({ target }) => {
    if (!place.has(target)) return;
    stop.tabIndex = -1;
    target.tabIndex = 0;
    stop = target;
    choose(place.get(target)[0]);
    show(target);
  });
  body.addEventListener("mouseover", ({ target }) => {
    const cell = target.closest("td");
    if (cell) show(cell);
    else hide();
  });
  for (const name of ["focusout", "mouseleave"]) body.addEventListener(name, hide);
  slider.addEventListener("input", () => choose(Number(slider.value)));
  table.setAttribute("role", "grid");
  table.parentElement.removeAttribute("tabindex"); // its cells take the focus now
  if (stop) stop.tabIndex = 0;
  slider.hidden = rows.length < 2;
  choose(rows.length - 1);
}

function hide() {
  told = null;
  tip.hidden = true;
  for (const piece of document.querySelectorAll(".line > .here")) piece.classList.remove("here");
}

document.querySelectorAll("section").forEach(start);
document.addEventListener("keydown", (event) => event.key === "Escape" && hide());
document.addEventListener("scroll", pin, true);
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => { part.open = true; }));
