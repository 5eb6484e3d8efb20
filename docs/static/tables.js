/* On a phone, site.css folds each line of a wide table into a block: every cell needs the name of its column there. */
"use strict";

document.querySelectorAll("table.benchmark").forEach((table) => {
  const names = [...table.querySelectorAll("thead th")].map((cell) => cell.textContent.trim());
  table.querySelectorAll("tbody tr").forEach((line) => [...line.cells].slice(1).forEach((cell, i) => {
    if (cell.textContent.trim()) cell.dataset.column = names[i + 1];
  }));
});
