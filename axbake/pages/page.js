"use strict";
// Everything can be read without this script. It lets tables be sorted, pictures be compared and commands be copied.

function sortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  const value = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.value === undefined ? cell.textContent.trim() : Number(cell.dataset.value);
  };
  heads.forEach((head, column) => {
    if (head.textContent.trim() === "") return;
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const descending = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const rows = [...table.tBodies[0].rows].sort((one, other) => {
        const [a, b] = [value(one, column), value(other, column)];
        const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
        return descending ? -order : order;
      });
      table.tBodies[0].append(...rows);
    });
  });
}

function comparable(box) {
  const stack = box.querySelector(".stack");
  box.querySelector("input").addEventListener("input", (event) => {
    stack.style.setProperty("--at", `${event.target.value}%`);
  });
  box.querySelector("select")?.addEventListener("change", (event) => {
    const shown = document.getElementById(event.target.value);
    stack.querySelector(".over").src = shown.src;
    const mark = box.querySelector(".emulated");
    if (mark) mark.hidden = shown.dataset.emulated === undefined;
  });
  box.hidden = false;
}

function copyable(command) {
  const text = command.querySelector("code");
  const button = document.createElement("button");
  button.textContent = "Copy";
  button.addEventListener("click", async () => {
    getSelection().selectAllChildren(text);
    try {
      await navigator.clipboard.writeText(text.textContent);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Selected: press Ctrl+C"; // the browser keeps pages from files off the clipboard
    }
  });
  const box = document.createElement("div");
  box.className = "copy";
  command.replaceWith(box);
  box.append(command, button);
}

document.querySelectorAll("table.sortable").forEach(sortable);
document.querySelectorAll(".compare").forEach(comparable);
document.querySelectorAll(".command").forEach(copyable);
