// The form: its fields are fields of a manifest, and it sends a manifest.

import { $, announce, pathOf, request, showError, showingErrors } from "./page.js";
import { refreshNow } from "./live.js";
import * as editor from "./editor.js";

const form = $("#compose");
const field = (name) => form.elements.namedItem(name);
const NUMBERS = ["steps", "cfg_scale", "number_of_images", "width", "height"];
const TEXTS = ["negative_prompt", "model", "scheduler"];
const OPEN = ["steps", "cfg_scale", "width", "height", "scheduler"]; // what is left empty, the model's card fills
const REMEMBERED = ["negative_prompt", "steps", "cfg_scale", "number_of_images", "width", "height", "model", "scheduler"];
const SAVED = "dreamdrop-form"; // not "dreamdrop": there older pages saved steps and guidance that nobody had chosen
const limits = { side: +form.dataset.side, pixels: +form.dataset.pixels, bytes: +form.dataset.bytes };
// Of a recipe; the form has no inputs for them, nor for pictures behind the first one of `image`.
const CARRIED = ["loras", "clip_skip", "controlnet", "ip_adapter", "upscale", "refiner", "image"];
let strengthChosen = false;
let carried = {};

/** Keep those fields of a manifest that the form has no inputs for, and say so. */
function carry(manifest) {
  const names = CARRIED.filter((name) => manifest[name] != null && manifest[name].length !== 0);
  carried = Object.fromEntries(names.map((name) => [name, manifest[name]]));
  $("#carried").hidden = !names.length;
  $("#carried-names").textContent = names.join(", ");
}
$("#carried button").addEventListener("click", () => carry({}));

/** The manifest as JSON. The seed is added as text: JavaScript's numbers would round it. */
function manifest() {
  const { image: others, ...rest } = carried;
  const values = { prompt: field("prompt").value, ...rest };
  for (const name of TEXTS) if (field(name).value.trim()) values[name] = field(name).value;
  for (const name of NUMBERS) if (field(name).value !== "" && !field(name).disabled) values[name] = Number(field(name).value);
  if (editor.hasPicture()) {
    values.image = others ? [editor.image(), ...others] : editor.image();
    values.strength = Number(field("strength").value);
    const mask = editor.painted();
    if (mask) values.mask_image = mask;
  }
  const text = JSON.stringify(values);
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
  showError(null);
  for (const wrong of form.querySelectorAll("[aria-invalid]")) wrong.removeAttribute("aria-invalid");
  try {
    saveSettings();
    await request("/jobs", { method: "POST", headers: { "Content-Type": "application/json" }, body: manifest() });
    announce("Queued");
    await refreshNow();
  } catch (error) {
    showError(error);
    const wrong = (error.fields ?? []).map((name) => field(name)).find((input) => input?.focus && !input.disabled);
    wrong?.setAttribute("aria-invalid", "true");
    wrong?.closest("details")?.setAttribute("open", "");
    wrong?.focus();
  } finally {
    button.disabled = false;
  }
}

/** Show in the empty fields what the chosen model draws with. */
function showDefaults() {
  const defaults = JSON.parse(field("model").selectedOptions[0]?.dataset.defaults ?? "{}");
  for (const name of OPEN) field(name).placeholder = defaults[name] ?? (name === "scheduler" ? "the model's default" : "auto");
  const multiple = defaults.size_multiple ?? 8;
  for (const name of ["width", "height"]) field(name).step = field(name).min = multiple;
}
field("model").addEventListener("change", showDefaults);

// Settings are saved for the next visit; prompts and pictures are not.
function saveSettings() {
  try {
    localStorage.setItem(SAVED, JSON.stringify(Object.fromEntries(REMEMBERED.map((name) => [name, field(name).value]))));
  } catch {
    // the browser may not allow it
  }
}

function loadSettings() {
  try {
    const saved = JSON.parse(localStorage.getItem(SAVED) ?? "{}");
    for (const name of REMEMBERED) if (saved[name]) field(name).value = saved[name];
    if (field("model").selectedIndex < 0) field("model").selectedIndex = 0;
  } catch {
    // nothing is saved, or it cannot be read
  }
  openMore();
}

/** Show the fields that are folded away if one of them is filled in. */
function openMore() {
  if (["width", "height", "model", "scheduler"].some((name) => field(name).value)) $("#more").open = true;
}

// What the form holds, with its picture and mask, stays over a reload and a look at another page, until the tab is closed.
const DRAFT = "dreamdrop-draft";

function saveDraft() {
  const fields = Object.fromEntries(["prompt", "seed", "strength", ...REMEMBERED].map((name) => [name, field(name).value]));
  const draft = { fields, strengthChosen };
  const pictures = { image: editor.image(), mask: editor.painted(), carried };
  for (const text of [JSON.stringify({ ...draft, ...pictures }), JSON.stringify(draft)])
    try {
      sessionStorage.setItem(DRAFT, text);
      return;
    } catch {
      // a picture may be larger than the browser keeps: then only the fields are kept
    }
}

async function loadDraft() {
  let draft;
  try {
    draft = JSON.parse(sessionStorage.getItem(DRAFT) ?? "null");
  } catch {
    return; // the browser does not allow it
  }
  if (!draft) return;
  for (const [name, value] of Object.entries(draft.fields)) if (field(name)) field(name).value = value;
  if (field("model").selectedIndex < 0) field("model").selectedIndex = 0; // that model is not offered any more
  strengthChosen = draft.strengthChosen;
  openMore();
  carry(draft.carried ?? {});
  if (draft.image) await editor.show(await blobOf(draft.image), limits);
  if (draft.image && draft.mask) await editor.showMask(await blobOf(draft.mask));
}

/** Show a picture that the chosen model has drawn. */
function showModel() {
  const shown = field("model").selectedOptions[0]?.dataset.picture;
  $("#model-picture").hidden = !shown;
  if (shown) $("#model-picture").src = shown;
}

/** Fill the form from a manifest. */
async function fill(manifest, seed) {
  for (const name of [...TEXTS, "prompt", ...NUMBERS]) {
    if (name === "model" && manifest.model && ![...field("model").options].some((o) => o.value === manifest.model))
      field("model").add(new Option(manifest.model));
    if (manifest[name] !== undefined || TEXTS.includes(name) || OPEN.includes(name)) field(name).value = manifest[name] ?? "";
  }
  showModel();
  const [image, ...others] = [manifest.image ?? []].flat();
  carry({ ...manifest, image: others });
  field("seed").value = seed ?? manifest.seed ?? "";
  if (image) {
    await editor.show(await blobOf(image), limits);
    if (manifest.mask_image) await editor.showMask(await blobOf(manifest.mask_image));
  } else editor.remove();
  if (manifest.strength) {
    field("strength").value = manifest.strength;
    strengthChosen = true;
  }
  changed();
}

/** The picture in a manifest: base64, plain or as a data URI. */
async function blobOf(text) {
  const bytes = Uint8Array.from(atob(text.replace(/^data:[^,]*,/, "").replace(/\s/g, "")), (c) => c.charCodeAt(0));
  const type = bytes[0] === 0x89 ? "image/png" : bytes[0] === 0xff ? "image/jpeg" : "image/webp";
  return new Blob([bytes], { type });
}

// A picture sets the size; a mask sets the task, and with it the default strength.
function changed() {
  showDefaults();
  const hasPicture = editor.hasPicture();
  for (const name of ["width", "height"]) field(name).disabled = hasPicture;
  const masked = hasPicture && editor.painted() !== "";
  if (!strengthChosen) field("strength").value = masked ? 1 : 0.8;
  $("#strength-value").textContent = Number(field("strength").value).toFixed(2);
  $("#draw").textContent = masked ? "Repaint" : hasPicture ? "Redraw" : "Draw";
}
field("strength").addEventListener("input", () => {
  strengthChosen = true;
  changed();
});

async function load(file) {
  if (/\.json$/i.test(file.name ?? "")) {
    const text = await file.text();
    let manifest;
    try {
      manifest = JSON.parse(text);
    } catch {
      throw new Error(`${file.name} is not a JSON file.`);
    }
    await fill(manifest);
    announce("The form now has the manifest's settings");
    return;
  }
  strengthChosen = false;
  await editor.show(file, limits);
  announce("The picture is loaded");
}

$("#file").addEventListener("change", showingErrors(async (event) => {
  const [file] = event.target.files;
  if (file) await load(file);
  event.target.value = ""; // the same file may be chosen again
}));
const hasFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
addEventListener("dragover", (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  $("#drop").classList.add("over");
});
addEventListener("dragleave", (event) => event.relatedTarget ?? $("#drop").classList.remove("over"));
addEventListener("drop", showingErrors(async (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  $("#drop").classList.remove("over");
  if (event.dataTransfer.files[0]) await load(event.dataTransfer.files[0]);
}));
addEventListener("paste", showingErrors(async (event) => {
  const file = [...(event.clipboardData?.files ?? [])].find((item) => item.type.startsWith("image/"));
  if (!file) return;
  event.preventDefault();
  await load(file);
}));

editor.onChange(changed);
loadSettings();
field("model").addEventListener("change", showModel);
showModel();
changed();
$("#draw").disabled = false;
addEventListener("pagehide", saveDraft);
const link = new URLSearchParams(location.search);
const openLink = showingErrors(async () => {
  await loadDraft();
  changed();
  if (link.has("recipe")) {
    const response = await request(`/recipe/${pathOf(link.get("recipe"))}`);
    await fill(await response.json(), response.headers.get("X-Seed"));
  } else if (link.has("image") && link.get("image").startsWith("/jobs/")) {
    await editor.show(await (await request(link.get("image"))).blob(), limits);
    changed();
  } else return;
  history.replaceState(null, "", "/");
  field("prompt").focus();
});
openLink();
