"use strict";

// Tables: a press on a heading sorts by that column; what has no value stays last.
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => {
      const up = heading.getAttribute("aria-sort") !== "ascending";
      for (const other of headings) other.setAttribute("aria-sort", "none");
      heading.setAttribute("aria-sort", up ? "ascending" : "descending");
      const body = table.tBodies[0];
      const rows = [...body.rows].map((row) => {
        const text = row.cells[column].dataset.value;
        return [text === undefined ? row.cells[column].textContent.trim() : text === "" ? null : Number(text), row];
      });
      rows.sort(([a], [b]) => {
        if (a === null || b === null) return (a === null) - (b === null);
        const order = typeof a === "string" ? a.localeCompare(b, undefined, { numeric: true }) : a - b;
        return up ? order : -order;
      });
      body.append(...rows.map(([, row]) => row));
    });
  });
}

// Legends: a press shows one teacher alone, another press all again.
for (const legend of document.querySelectorAll(".legend")) {
  const buttons = [...legend.querySelectorAll("button")];
  const marks = document.querySelectorAll(`#${legend.dataset.for} .chart [data-series]`);
  legend.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    const alone = button.getAttribute("aria-pressed") !== "true";
    for (const other of buttons) other.setAttribute("aria-pressed", String(alone && other === button));
    for (const mark of marks) mark.classList.toggle("dim", alone && mark.dataset.series !== button.dataset.series);
  });
}

// Tokens: their numbers on hover, tap, or with Tab and the arrow keys.
const tip = document.getElementById("tip");
let shown = null, shownAt = null;

function placeOf(token) {
  return token.getClientRects()[0] ?? token.getBoundingClientRect();
}

function describe(token) {
  if (shown) shown.classList.remove("at");
  shown = token;
  tip.hidden = !token;
  if (!token) return;
  token.classList.add("at");
  const surprisal = Number(token.dataset.s);
  const probability = 100 * Math.exp(-surprisal);
  const lines = [
    `“${token.textContent}”`,
    `rank ${Number(token.dataset.r).toLocaleString("en")}, probability ${
      probability < 0.01 ? "below 0.01" : probability.toPrecision(3)}%, surprisal ${surprisal.toFixed(2)} nats`,
  ];
  if (token.dataset.t !== undefined) lines.push(`the student's own choice: “${token.dataset.t}”`);
  tip.textContent = lines.join("\n");
  const at = shownAt = placeOf(token);
  const left = Math.min(at.left, document.documentElement.clientWidth - tip.offsetWidth - 8);
  const above = at.top - tip.offsetHeight - 6;
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${above > 4 ? above : at.bottom + 6}px`;
}

for (const heatmap of document.querySelectorAll(".heatmap")) {
  const tokens = [...heatmap.querySelectorAll(".tokens i")];
  let place = 0;
  const go = (to) => {
    place = Math.max(0, Math.min(tokens.length - 1, to));
    if (!tokens.length) return;
    tokens[place].scrollIntoView({ block: "nearest" });
    describe(tokens[place]);
  };
  const point = (event) => {
    const token = event.target.closest(".tokens i");
    if (token) {
      place = tokens.indexOf(token);
      describe(token);
    }
  };
  heatmap.addEventListener("mouseover", point);
  heatmap.addEventListener("click", point);
  heatmap.addEventListener("mouseleave", () => describe(null));
  heatmap.addEventListener("focus", () => { if (heatmap.matches(":focus-visible")) go(place); });
  heatmap.addEventListener("blur", () => describe(null));
  heatmap.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10 }[event.key];
    if (event.key === "Escape") describe(null);
    if (step === undefined) return;
    event.preventDefault();
    go(place + step);
  });
}
// The tip stays where it is put, so it goes when its token moves away; a scroll event that arrives late moves nothing.
addEventListener("scroll", () => {
  if (!shown) return;
  const { left, top } = placeOf(shown);
  if (Math.abs(top - shownAt.top) > 1 || Math.abs(left - shownAt.left) > 1) describe(null);
}, { capture: true, passive: true });
