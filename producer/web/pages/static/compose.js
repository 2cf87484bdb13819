// The form: its fields are a manifest's fields, and what it sends is a manifest.

import { $, ask, complain, say, shown } from "./page.js";
import { refreshNow } from "./live.js";
import * as easel from "./mask.js";

const form = $("#compose");
const field = (name) => form.elements.namedItem(name);
const NUMBERS = ["steps", "cfg_scale", "number_of_images", "width", "height"];
const TEXTS = ["negative_prompt", "model", "scheduler"];
const KEPT = ["negative_prompt", "steps", "cfg_scale", "number_of_images", "width", "height", "model", "scheduler"];
const limits = { side: +form.dataset.side, pixels: +form.dataset.pixels, bytes: +form.dataset.bytes };
let strengthChosen = false;

/** The manifest as JSON; a seed may have more digits than JavaScript's numbers can hold. */
function manifest() {
  const wanted = { prompt: field("prompt").value };
  for (const name of TEXTS) if (field(name).value.trim()) wanted[name] = field(name).value;
  for (const name of NUMBERS) if (field(name).value !== "" && !field(name).disabled) wanted[name] = Number(field(name).value);
  if (easel.hasPicture()) {
    wanted.image = easel.image();
    wanted.strength = Number(field("strength").value);
    const mask = easel.painted();
    if (mask) wanted.mask_image = mask;
  }
  const text = JSON.stringify(wanted);
  const seed = field("seed").value.trim();
  return seed ? `${text.slice(0, -1)},"seed":${seed.replace(/^(-?)0+(?=\d)/, "$1")}}` : text;
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
form.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    if (form.reportValidity()) submit();
  }
});

async function submit() {
  const button = $("#draw");
  if (button.disabled) return;
  button.disabled = true;
  complain(null);
  for (const wrong of form.querySelectorAll("[aria-invalid]")) wrong.removeAttribute("aria-invalid");
  try {
    remember();
    await ask("/jobs", { method: "POST", headers: { "Content-Type": "application/json" }, body: manifest() });
    say("Queued");
    await refreshNow();
  } catch (error) {
    complain(error);
    const wrong = (error.fields ?? []).map((name) => field(name)).find((found) => found?.focus && !found.disabled);
    wrong?.setAttribute("aria-invalid", "true");
    wrong?.closest("details")?.setAttribute("open", "");
    wrong?.focus();
  } finally {
    button.disabled = false;
  }
}

// Settings are kept for the next visit; words and pictures are not.
function remember() {
  try {
    localStorage.setItem("dreamdrop", JSON.stringify(Object.fromEntries(KEPT.map((name) => [name, field(name).value]))));
  } catch {
    // a browser may refuse to keep anything
  }
}

function recall() {
  try {
    const kept = JSON.parse(localStorage.getItem("dreamdrop") ?? "{}");
    for (const name of KEPT) if (kept[name]) field(name).value = kept[name];
    if (field("model").selectedIndex < 0) field("model").selectedIndex = 0;
  } catch {
    // nothing kept, or nothing that can be read
  }
  if (["width", "height", "model", "scheduler"].some((name) => field(name).value)) $("#more").open = true;
}

/** Fill the form from a manifest. */
async function fill(wanted, seed) {
  for (const name of [...TEXTS, "prompt", ...NUMBERS]) {
    if (name === "model" && wanted.model && ![...field("model").options].some((o) => o.value === wanted.model))
      field("model").add(new Option(wanted.model));
    if (wanted[name] !== undefined || TEXTS.includes(name)) field(name).value = wanted[name] ?? "";
  }
  field("seed").value = seed ?? wanted.seed ?? "";
  if (wanted.image) {
    await easel.show(await decoded(wanted.image), limits);
    if (wanted.mask_image) await easel.showMask(await decoded(wanted.mask_image));
  } else easel.remove();
  if (wanted.strength) {
    field("strength").value = wanted.strength;
    strengthChosen = true;
  }
  changed();
}

/** A picture as manifests carry it: base64, bare or as a data URI. */
async function decoded(text) {
  const bytes = Uint8Array.from(atob(text.replace(/^data:[^,]*,/, "").replace(/\s/g, "")), (c) => c.charCodeAt(0));
  const type = bytes[0] === 0x89 ? "image/png" : bytes[0] === 0xff ? "image/jpeg" : "image/webp";
  return new Blob([bytes], { type });
}

// A picture decides the size; a mask decides the task, and with it how strong is usual.
function changed() {
  const given = easel.hasPicture();
  for (const name of ["width", "height"]) field(name).disabled = given;
  const masked = given && easel.painted() !== "";
  if (!strengthChosen) field("strength").value = masked ? 1 : 0.8;
  $("#strength-value").textContent = Number(field("strength").value).toFixed(2);
  $("#draw").textContent = masked ? "Repaint" : given ? "Redraw" : "Draw";
}
field("strength").addEventListener("input", () => {
  strengthChosen = true;
  changed();
});

async function take(file) {
  if (/\.json$/i.test(file.name ?? "")) {
    const text = await file.text();
    let wanted;
    try {
      wanted = JSON.parse(text);
    } catch {
      throw new Error(`${file.name} is not JSON.`);
    }
    await fill(wanted);
    say("The form is filled from the manifest");
    return;
  }
  strengthChosen = false;
  await easel.show(file, limits);
  say("The picture is on the easel");
}

$("#file").addEventListener("change", shown(async (event) => {
  const [file] = event.target.files;
  if (file) await take(file);
  event.target.value = ""; // the same file may be chosen again
}));
const carries = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
addEventListener("dragover", (event) => {
  if (!carries(event)) return;
  event.preventDefault();
  $("#drop").classList.add("over");
});
addEventListener("dragleave", (event) => event.relatedTarget ?? $("#drop").classList.remove("over"));
addEventListener("drop", shown(async (event) => {
  if (!carries(event)) return;
  event.preventDefault();
  $("#drop").classList.remove("over");
  if (event.dataTransfer.files[0]) await take(event.dataTransfer.files[0]);
}));
addEventListener("paste", shown(async (event) => {
  const file = [...(event.clipboardData?.files ?? [])].find((one) => one.type.startsWith("image/"));
  if (!file) return;
  event.preventDefault();
  await take(file);
}));

easel.onChange(changed);
recall();
changed();
$("#draw").disabled = false;
const link = new URLSearchParams(location.search);
const begin = shown(async () => {
  if (link.has("recipe")) {
    const answer = await ask(`/recipe/${link.get("recipe").split("/").map(encodeURIComponent).join("/")}`);
    await fill(await answer.json(), answer.headers.get("X-Seed"));
  } else if (link.has("image") && link.get("image").startsWith("/jobs/")) {
    await easel.show(await (await ask(link.get("image"))).blob(), limits);
    changed();
  } else return;
  history.replaceState(null, "", "/");
  field("prompt").focus();
});
begin();
