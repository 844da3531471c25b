"use strict";
// Sorting, filtering, hiding columns and copying. Without JavaScript the page is complete to read.

const WORDY = ["backbone", "decoder", "target", "source", "compared", "changed"];

function say(text) {
  const box = document.getElementById("said");
  box.textContent = text;
  box.classList.add("shown");
  clearTimeout(say.timer);
  say.timer = setTimeout(() => box.classList.remove("shown"), 1800);
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch (_) { // pages from a disk may have no clipboard of their own
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    if (!copied) { say("The browser does not allow copying"); return; }
  }
  say("Copied");
}

const shown = (element) => !element.hidden;
const cells = (row) => [...row.children].filter(shown);
const as = (cell, name) => cell.dataset[name] ?? (cell.querySelector("button") ?? cell).textContent;

const headings = (table) => table.tHead.rows[table.tHead.rows.length - 1];

function markdown(table) {
  const head = cells(headings(table));
  const rule = head.map((cell) => (cell.classList.contains("number") ? "---:" : "---"));
  const body = [...table.tBodies[0].rows].filter(shown).map((row) => cells(row).map((cell) => as(cell, "md")));
  return [head.map((cell) => as(cell, "md")), rule, ...body].map((row) => `| ${row.join(" | ")} |`).join("\n") + "\n";
}

function latex(table) {
  const head = cells(headings(table));
  const align = head.map((cell) => cell.dataset.align).join("");
  const line = (row) => cells(row).map((cell) => as(cell, "tex")).join(" & ") + " \\\\";
  const body = [...table.tBodies[0].rows].filter(shown).map(line);
  return ["% \\usepackage{array,booktabs}", `\\begin{tabular}{${align}}`, "\\toprule", line(headings(table)), "\\midrule",
    ...body, "\\bottomrule", "\\end{tabular}", ""].join("\n");
}

function sort(table, index) {
  const head = headings(table).children[index];
  const number = head.classList.contains("number");
  const before = head.getAttribute("aria-sort");
  const order = before === (number ? "descending" : "ascending") ? (number ? "ascending" : "descending") : (number ? "descending" : "ascending");
  for (const cell of headings(table).children) cell.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", order);
  const sign = order === "ascending" ? 1 : -1;
  const key = (row) => {
    const cell = row.children[index];
    return number ? (cell.dataset.value === undefined ? null : Number(cell.dataset.value)) : cell.textContent;
  };
  const first = (row) => row.classList.contains("default"); // its numbers are no differences
  const compare = (a, b) => {
    if (first(a) || first(b)) return first(b) - first(a);
    const x = key(a), y = key(b);
    if (x === null || y === null) return (x === null) - (y === null); // what is missing stays last
    return sign * (number ? x - y : x.localeCompare(y));
  };
  table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
}

function column(table, index, visible) {
  for (const row of [headings(table), ...table.tBodies[0].rows]) row.children[index].hidden = !visible;
  if (table.tHead.rows.length < 2) return;
  let start = 0; // a group spans those of its columns that are shown
  for (const group of table.tHead.rows[0].children) {
    const size = Number((group.dataset.size ??= group.colSpan));
    const left = [...headings(table).children].slice(start, start + size).filter(shown).length;
    group.hidden = left === 0;
    group.colSpan = Math.max(left, 1);
    start += size;
  }
}

for (const section of document.querySelectorAll("section.table")) {
  const table = section.querySelector("table.data");
  [...headings(table).children].forEach((cell, index) => {
    cell.querySelector("button").addEventListener("click", () => sort(table, index));
  });
  section.querySelector("[data-filter]").addEventListener("input", (event) => {
    const words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of table.tBodies[0].rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
  });
  for (const box of section.querySelectorAll("[data-column]")) {
    box.addEventListener("change", () => column(table, Number(box.dataset.column), box.checked));
    const name = headings(table).children[box.dataset.column].dataset.name;
    if (matchMedia("(max-width: 640px)").matches && WORDY.includes(name)) {
      box.click(); // the numbers first; the menu brings the words back
    }
  }
  for (const button of section.querySelectorAll("[data-as]")) {
    button.addEventListener("click", () => copy(button.dataset.as === "latex" ? latex(table) : markdown(table)));
  }
}
for (const button of document.querySelectorAll("[data-copy]")) {
  button.addEventListener("click", () => copy(button.dataset.copy));
}
document.addEventListener("click", (event) => {
  for (const menu of document.querySelectorAll(".menu[open]")) if (!menu.contains(event.target)) menu.open = false;
});
