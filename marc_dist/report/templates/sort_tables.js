
// A click on the head of a column: best first, then worst first, then the order of the study.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells], given = [...body.rows];
  const value = (row, at) => row.cells[at].dataset.value;
  heads.forEach((head, at) => {
    const button = head.querySelector("button");
    if (!button) return;
    button.disabled = false;
    button.addEventListener("click", () => {
      const first = head.dataset.first, other = first === "ascending" ? "descending" : "ascending";
      const now = head.getAttribute("aria-sort"), next = now === "none" ? first : now === first ? other : "none";
      heads.forEach((one) => { if (one.hasAttribute("aria-sort")) one.setAttribute("aria-sort", "none"); });
      head.setAttribute("aria-sort", next);
      const sign = next === "ascending" ? 1 : -1, words = "words" in head.dataset;
      const order = (one, two) => {
        const a = value(one, at), b = value(two, at);
        if (a === "" || b === "") return (a === "") - (b === "");  // what has no value comes last
        return sign * (words ? a.localeCompare(b) : a - b);
      };
      body.append(...(next === "none" ? given : [...given].sort(order)));
    });
  });
}
