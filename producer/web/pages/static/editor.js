// The mask editor: a picture, and over it a mask that is painted with a mouse, pen, finger or the keyboard.
// Strokes are in pixels of the picture, so the mask is exact at any display size.

import { $ } from "./page.js";

const picture = $("#picture");
const mask = $("#mask");
const cursor = $("#cursor");
const brush = $("#brush");
const eraser = $("#erase");
const SENDABLE = ["image/png", "image/jpeg", "image/webp"];

let strokes = []; // {erase, size, points: [[x, y], ...]} in pixels, or {bitmap}
let source = ""; // the picture as a data URI; "" without one
let at = [0, 0]; // position of the keyboard's brush
let painting = null; // the stroke in progress
let changed = () => {};

export const hasPicture = () => source !== "";
export const image = () => source;
/** Set a function to call after every change of the picture or the mask. */
export const onChange = (handler) => (changed = handler);

/** Load a picture, scaled down to the limits. Throws an Error to be shown when it cannot be read. */
export async function show(blob, limits = {}) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob);
  } catch {
    throw new Error("The browser cannot read this file as a picture.");
  }
  const scale = Math.min(
    1,
    (limits.side || Infinity) / Math.max(bitmap.width, bitmap.height),
    Math.sqrt((limits.pixels || Infinity) / (bitmap.width * bitmap.height)),
  );
  for (const canvas of [picture, mask]) {
    canvas.width = Math.max(8, Math.round(bitmap.width * scale));
    canvas.height = Math.max(8, Math.round(bitmap.height * scale));
  }
  picture.getContext("2d").drawImage(bitmap, 0, 0, picture.width, picture.height);
  bitmap.close();
  const unchanged = scale === 1 && SENDABLE.includes(blob.type) && blob.size < (limits.bytes || Infinity) / 2;
  source = unchanged ? await dataUri(blob) : picture.toDataURL("image/png");
  strokes = [];
  at = [picture.width / 2, picture.height / 2];
  $("#editor").hidden = false;
  $("#choose").hidden = true;
  for (const canvas of [picture, mask]) canvas.classList.toggle("small", picture.width <= 192);
  redraw();
}

export function remove() {
  source = "";
  strokes = [];
  $("#editor").hidden = true;
  $("#choose").hidden = false;
  changed();
}

/** Load a mask: its white part is painted. */
export async function showMask(blob) {
  const bitmap = await createImageBitmap(blob);
  strokes = [{ bitmap: whiteOnly(bitmap) }];
  redraw();
}

/** The mask as a data URI, white where it is painted; "" if nothing is. */
export function painted() {
  if (!strokes.length) return "";
  const pixels = mask.getContext("2d").getImageData(0, 0, mask.width, mask.height);
  let any = false;
  for (let i = 0; i < pixels.data.length; i += 4) {
    const white = pixels.data[i + 3] > 127 ? 255 : 0;
    any ||= white > 0;
    pixels.data.fill(white, i, i + 3);
    pixels.data[i + 3] = 255;
  }
  if (!any) return "";
  const canvas = Object.assign(document.createElement("canvas"), { width: mask.width, height: mask.height });
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas.toDataURL("image/png");
}

function whiteOnly(bitmap) {
  const canvas = Object.assign(document.createElement("canvas"), { width: mask.width, height: mask.height });
  const context = canvas.getContext("2d");
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
  for (let i = 0; i < pixels.data.length; i += 4) pixels.data[i + 3] = pixels.data[i]; // white is opaque
  context.putImageData(pixels, 0, 0);
  return canvas;
}

export const dataUri = (blob) =>
  new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error("The browser cannot read this file."));
    reader.readAsDataURL(blob);
  });

function redraw() {
  const context = mask.getContext("2d", { willReadFrequently: true });
  context.clearRect(0, 0, mask.width, mask.height);
  strokes.forEach((stroke) => draw(context, stroke));
  changed();
}

function draw(context, { erase, size, points, bitmap }) {
  context.globalCompositeOperation = erase ? "destination-out" : "source-over";
  if (bitmap) {
    context.drawImage(bitmap, 0, 0);
    return;
  }
  Object.assign(context, { strokeStyle: "#fff", fillStyle: "#fff", lineWidth: size, lineCap: "round", lineJoin: "round" });
  context.beginPath();
  if (points.length === 1) context.arc(...points[0], size / 2, 0, 2 * Math.PI);
  else points.forEach((point, n) => (n ? context.lineTo(...point) : context.moveTo(...point)));
  points.length === 1 ? context.fill() : context.stroke();
}

const size = () => Math.max(1, (Number(brush.value) / 100) * Math.max(mask.width, mask.height));
const isErasing = () => eraser.getAttribute("aria-pressed") === "true";

function begin(point, erase) {
  painting = { erase: erase || isErasing(), size: size(), points: [point] };
  strokes.push(painting);
  draw(mask.getContext("2d"), painting);
  changed();
}

/** Continue the stroke in progress; only the new part is drawn. */
function extend(points) {
  const fresh = [painting.points.at(-1), ...points];
  painting.points.push(...points);
  draw(mask.getContext("2d"), { ...painting, points: fresh });
}

function finish() {
  if (!painting) return;
  painting = null;
  changed();
}

function positionOf(event) {
  const box = mask.getBoundingClientRect();
  return [((event.clientX - box.left) / box.width) * mask.width, ((event.clientY - box.top) / box.height) * mask.height];
}

/** Show the brush's position and size. */
function showCursor([x, y]) {
  const scale = mask.clientWidth / mask.width;
  cursor.hidden = false;
  Object.assign(cursor.style, { width: `${size() * scale}px`, height: `${size() * scale}px`, left: `${x * scale}px`, top: `${y * scale}px` });
}

mask.addEventListener("pointerdown", (event) => {
  if (event.button > 0 && event.button !== 5) return;
  mask.setPointerCapture(event.pointerId);
  begin(positionOf(event), event.button === 5 || (event.buttons & 32) > 0); // a pen's eraser
  event.preventDefault();
  mask.focus({ preventScroll: true });
});
mask.addEventListener("pointermove", (event) => {
  showCursor(positionOf(event));
  if (!painting || !mask.hasPointerCapture(event.pointerId)) return;
  const moves = event.getCoalescedEvents?.() ?? [];
  extend((moves.length ? moves : [event]).map(positionOf));
});
for (const over of ["pointerup", "pointercancel", "lostpointercapture"]) mask.addEventListener(over, finish);
mask.addEventListener("pointerleave", () => (cursor.hidden = true));
mask.addEventListener("blur", () => {
  cursor.hidden = true;
  finish();
});
mask.addEventListener("focus", () => showCursor(at));

const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
mask.addEventListener("keydown", (event) => {
  const move = MOVES[event.key];
  if (move) {
    const step = Math.max(1, size() / (event.shiftKey ? 2 : 6));
    at = [0, 1].map((k) => Math.min([mask.width, mask.height][k], Math.max(0, at[k] + move[k] * step)));
    if (painting) extend([at]);
  } else if (event.key === " " && !event.repeat) begin(at, false);
  else if (event.key === "z" && (event.ctrlKey || event.metaKey)) undo();
  else if (event.key !== " ") return;
  event.preventDefault();
  showCursor(at);
});
mask.addEventListener("keyup", (event) => event.key === " " && finish());

function undo() {
  strokes.pop();
  redraw();
}

eraser.addEventListener("click", () => eraser.setAttribute("aria-pressed", String(!isErasing())));
$("#undo").addEventListener("click", undo);
$("#clear").addEventListener("click", () => {
  strokes = [];
  redraw();
});
$("#remove").addEventListener("click", () => {
  remove();
  $("#file").focus();
});
