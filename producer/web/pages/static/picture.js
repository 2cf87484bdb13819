// The page of one picture: copy its recipe, draw it again, go to the newer or older one.

import { $, announce, copy, pathOf, request, showingErrors } from "./page.js";

document.addEventListener("click", showingErrors(async (event) => {
  const button = event.target.closest?.("[data-copy], [data-copy-from]");
  if (!button) return;
  const { copy: selector, copyFrom: url } = button.dataset;
  await copy(selector ? $(selector).textContent : await (await request(url)).text());
  announce("Copied");
  const label = (button.dataset.label ??= button.textContent);
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = label), 1500);
}));

$("#again")?.addEventListener("click", showingErrors(async (event) => {
  const button = event.currentTarget;
  button.disabled = true;
  try {
    const recipe = await (await request(button.dataset.recipe)).text();
    const manifest = JSON.parse(recipe);
    delete manifest.seed;
    const response = await request("/jobs", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: "sameSeed" in button.dataset ? recipe : JSON.stringify(manifest),
    });
    const { id } = await response.json();
    location.assign(`/pictures/${pathOf(id)}`);
  } finally {
    button.disabled = false;
  }
}));

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return;
  if (event.target.closest?.("input, textarea, select, pre")) return;
  const link = { ArrowLeft: $("#newer"), ArrowRight: $("#older"), Escape: $(".crumbs a") }[event.key];
  if (link) {
    event.preventDefault();
    link.click();
  }
});

for (const time of document.querySelectorAll("time")) {
  const date = new Date(time.dateTime);
  if (!Number.isNaN(date.valueOf())) time.textContent = date.toLocaleString();
}
