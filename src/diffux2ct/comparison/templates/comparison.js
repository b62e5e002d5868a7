// A table body per test set: rows are sorted within theirs, and its floor stays last.
const heads = [...document.querySelectorAll("#runs thead th")];
heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
  const first = head.dataset.better === "1" ? "descending" : "ascending";
  const other = first === "ascending" ? "descending" : "ascending";
  const order = head.getAttribute("aria-sort") === first ? other : first;
  heads.forEach(each => each.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", order);
  const sign = order === "ascending" ? 1 : -1, value = row => row.cells[column].dataset.v;
  for (const body of document.querySelectorAll("#runs tbody")) {
    const rows = [...body.querySelectorAll("tr:not(.floor)")];
    const numeric = rows.every(row => !isNaN(value(row)));
    rows.sort((a, b) => {
      if (value(a) === "" || value(b) === "") return (value(a) === "") - (value(b) === "");
      return sign * (numeric ? value(a) - value(b) : value(a).localeCompare(value(b), undefined, { numeric: true }));
    });
    rows.reverse().forEach(row => body.prepend(row));
  }
}));
