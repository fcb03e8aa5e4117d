// Sorting and filtering of the table of models. Without JavaScript the table is there as it is.
"use strict";

const NUMBER = /^-?[\d,]*\.?\d+(e-?\d+)?$/;

function textOf(row, column) {
  return row.cells[column].textContent.trim();
}

// Numbers by value, words by letters; empty cells come last whichever way.
function compare(first, second, direction) {
  if (first === "" || second === "") return (first === "") - (second === "");
  if (NUMBER.test(first) && NUMBER.test(second)) {
    return direction * (Number(first.replaceAll(",", "")) - Number(second.replaceAll(",", "")));
  }
  return direction * first.localeCompare(second, "en", { numeric: true });
}

function addSorting(table, body) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...(head.querySelector("p") ?? head).childNodes);
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const direction = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", direction === 1 ? "ascending" : "descending");
      const rows = [...body.rows];
      rows.sort((a, b) => compare(textOf(a, column), textOf(b, column), direction));
      body.append(...rows);
    });
  });
}

function labelled(text, control) {
  const label = document.createElement("label");
  label.append(text, " ", control);
  return label;
}

function addFilters(table, body) {
  const titles = [...table.tHead.rows[0].cells].map((head) => head.textContent.trim());
  const family = titles.indexOf("family");
  const weights = titles.indexOf("weights");
  const rows = [...body.rows];

  const words = document.createElement("input");
  words.type = "search";
  words.placeholder = "words of a row, such as: deit small";
  const families = document.createElement("select");
  const names = [...new Set(rows.map((row) => textOf(row, family)))].sort();
  ["all", ...names].forEach((name) => families.append(new Option(name, name)));
  const published = document.createElement("input");
  published.type = "checkbox";
  const count = document.createElement("output");

  function filter() {
    const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !(
        wanted.every((word) => text.includes(word)) &&
        (families.value === "all" || textOf(row, family) === families.value) &&
        (!published.checked || textOf(row, weights) !== "")
      );
      shown += !row.hidden;
    }
    count.textContent = `${shown} of ${rows.length} models`;
  }

  const bar = document.createElement("div");
  bar.className = "zoo-filters";
  bar.append(labelled("Filter", words), labelled("Family", families), labelled("Published weights", published), count);
  [words, families, published].forEach((control) => control.addEventListener("input", filter));
  (table.closest(".table-wrapper") ?? table).before(bar);
  filter();
}

for (const table of document.querySelectorAll("table.zoo")) {
  addFilters(table, table.tBodies[0]);
  addSorting(table, table.tBodies[0]);
}
