// The batch pages: upload a file, and choose what the grid shows.

import { $, pathOf, request, showError } from "./page.js";

const upload = $("#upload");
upload?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = $("button[type=submit]", upload);
  const name = upload.elements.namedItem("id").value.trim();
  button.disabled = true;
  showError(null);
  try {
    const response = await request(`/batches${name ? `?id=${encodeURIComponent(name)}` : ""}`, {
      method: "POST",
      headers: { "Content-Type": "application/jsonl" },
      body: $("#rows").files[0],
      timeout: 600_000,
    });
    const { id } = await response.json();
    location.assign(`/b/${pathOf(id)}`);
  } catch (error) {
    showError(error);
  } finally {
    button.disabled = false;
  }
});
if (upload) {
  $("button[type=submit]", upload).disabled = false;
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    if (event.dataTransfer.files.length) $("#rows").files = event.dataTransfer.files;
  });
}

const compare = $("#compare");
compare?.addEventListener("submit", (event) => event.preventDefault());
compare?.addEventListener("change", () => {
  const grid = $("#grid");
  grid.dataset.keep = "class style"; // live.js must not overwrite the user's choice
  const columns = compare.elements.namedItem("columns").value;
  grid.classList.toggle("fixed", columns !== "");
  grid.style.setProperty("--columns", columns || "auto-fill");
  for (const box of compare.querySelectorAll("[name=show]")) grid.classList.toggle(`hide-${box.value}`, !box.checked);
});
