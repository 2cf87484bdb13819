// Batches: upload a file, and choose what the grid compares.

import { $, ask, complain } from "./page.js";

const upload = $("#upload");
upload?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = $("button[type=submit]", upload);
  const name = upload.elements.namedItem("id").value.trim();
  button.disabled = true;
  complain(null);
  try {
    const answer = await ask(`/batches${name ? `?id=${encodeURIComponent(name)}` : ""}`, {
      method: "POST",
      headers: { "Content-Type": "application/jsonl" },
      body: $("#rows").files[0],
      patience: 600_000,
    });
    const { id } = await answer.json();
    location.assign(`/b/${id.split("/").map(encodeURIComponent).join("/")}`);
  } catch (error) {
    complain(error);
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
  grid.dataset.keep = "class style"; // from now on this page decides, not the server
  const columns = compare.elements.namedItem("columns").value;
  grid.classList.toggle("fixed", columns !== "");
  grid.style.setProperty("--columns", columns || "auto-fill");
  for (const box of compare.querySelectorAll("[name=show]")) grid.classList.toggle(`hide-${box.value}`, !box.checked);
});
