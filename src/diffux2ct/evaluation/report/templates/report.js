const table = document.getElementById("cases"), body = table.tBodies[0];
const heads = [...table.tHead.rows[0].cells];
heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
  const up = head.getAttribute("aria-sort") === "descending", rows = [...body.rows];
  heads.forEach(other => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const value = row => row.cells[column].dataset.v;
  // An empty cell is a metric that the case lacks; it sorts last, whichever way.
  const empty = row => value(row) === "", numeric = rows.every(row => !isNaN(value(row)));
  const order = (a, b) => numeric ? value(a) - value(b)
    : value(a).localeCompare(value(b), undefined, { numeric: true });
  rows.sort((a, b) => empty(a) - empty(b) || (up ? order(a, b) : order(b, a))).forEach(row => body.append(row));
}));
// Folded parts are printed too.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(part => { part.open = true; }));
