"use strict";
// The headings of a sortable table become buttons; without scripts it stays as it is.
const number = (text) => Number(text.replace(/[,%\s]/g, "").replace("\u2212", "-"));
const compare = (a, b) => {
  if (a === b) return 0;
  if (a === "" || a === "-") return Infinity;
  if (b === "" || b === "-") return -Infinity;
  const difference = number(a) - number(b);
  return Number.isNaN(difference) ? a.localeCompare(b, undefined, { numeric: true }) : difference;
};
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const falling = heading.getAttribute("aria-sort") === "ascending";
      headings.forEach((each) => each.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", falling ? "descending" : "ascending");
      const value = (row) => row.cells[column].textContent.trim();
      const order = (one, other) => {
        const found = compare(value(one), value(other));
        return falling && Number.isFinite(found) ? -found : found;
      };
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort(order));
    });
  });
}
