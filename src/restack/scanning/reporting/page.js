// A click on a head sorts by its column; a second click turns the order round.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.querySelectorAll("thead th[data-column]")];
  for (const head of heads) head.querySelector("button").addEventListener("click", () => {
    const column = Number(head.dataset.column), first = head.dataset.first;
    const order = head.ariaSort === first ? (first === "ascending" ? "descending" : "ascending") : first;
    const sign = order === "ascending" ? 1 : -1;
    const key = row => row.cells[column].dataset.v ?? "";
    const rows = [...table.tBodies[0].rows].map(row => [key(row), row]);
    rows.sort(([a], [b]) => {
      if (a === "" || b === "") return (a === "") - (b === "");
      return sign * (isNaN(a) || isNaN(b) ? a.localeCompare(b, undefined, {numeric: true}) : a - b);
    });
    table.tBodies[0].append(...rows.map(([, row]) => row));
    for (const other of heads) other.removeAttribute("aria-sort");
    head.ariaSort = order;
  });
}
// What a chart has under the pointer is told in words below it.
for (const figure of document.querySelectorAll("figure")) {
  const told = figure.querySelector(".told");
  if (told) for (const event of ["pointerover", "click"]) figure.addEventListener(event, at => {
    const mark = at.target.closest("[data-tip]");
    if (mark) told.textContent = mark.querySelector("title").textContent;
  });
}
