// The page: a photo, prompts that all panels share, and the tools that make them.

import * as api from "./api.js";
import { Panel } from "./panel.js";
import { watchPointer } from "./pointer.js";
import { savedMask } from "./save.js";

const at = (id) => document.getElementById(id);
const state = { panels: [], photo: null, name: "", steps: [], drawn: null, cross: null, limits: {}, mode: "clicks", asking: 0 };

function say(text, wrong = false) {
  at("status").textContent = text;
  at("status").classList.toggle("error", wrong);
}

function failed(error) {
  if (error.name === "AbortError") return;
  if (error.status === 401) at("unlock").hidden = false;
  say(error.message, true);
  for (const panel of state.panels) if (panel.photo) panel.say("no mask");
}

// What the steps so far add up to: all points, and the last box.
function prompt() {
  const points = state.steps.filter((step) => step.point).map((step) => step.point);
  const box = state.steps.filter((step) => step.box).at(-1)?.box ?? null;
  return { points, box };
}

const shown = () => state.panels.filter((panel) => !panel.figure.hidden);

function draw() {
  const { points, box } = prompt();
  for (const panel of shown()) panel.draw({ points, box: state.drawn ?? box, cross: state.cross });
  const [one, other] = shown();
  const iou = other && state.mode === "clicks" ? one.agreement(other) : null;
  at("agreement").hidden = iou === null;
  if (iou !== null) at("agreement").textContent = `Both masks overlap: IoU ${iou.toFixed(4)}.`;
  const empty = !state.steps.length;
  at("undo").disabled = at("clear").disabled = empty && state.mode === "clicks";
  at("save").disabled = !shown().some((panel) => panel.masks.length);
}

async function update() {
  state.mode = "clicks";
  const { points, box } = prompt();
  if (!points.length && !box) {
    for (const panel of shown()) { panel.stop(); panel.show([]); panel.say("click on an object"); }
    draw();
    return;
  }
  draw();
  const asked = { ...(box ? { box } : {}) };
  if (points.length) Object.assign(asked, { points: points.map(([x, y]) => [x, y]), labels: points.map((p) => p[2]) });
  await all((panel) => panel.predict(asked, at("here").checked));
}

// Every shown panel does something; each is drawn as soon as it is done.
async function all(work) {
  state.asking += 1;
  const results = await Promise.allSettled(shown().map(async (panel) => { await work(panel); draw(); }));
  const wrong = results.find((result) => result.status === "rejected" && result.reason.name !== "AbortError");
  if (wrong) failed(wrong.reason); else if (results.every((r) => r.status === "fulfilled")) say(state.name);
  state.asking -= 1;
  draw();
}

function step(made) {
  if (!state.photo) return;
  state.steps.push(made);
  update();
}

function addPoint([x, y], label) {
  if (prompt().points.length >= state.limits.points) { say(`At most ${state.limits.points} points.`, true); return; }
  step({ point: [x, y, label] });
}

const tool = () => document.querySelector("input[name=tool]:checked").value;

async function open(file) {
  if (!file) return;
  if (file.size > state.limits.body_bytes) { say(`This file is larger than ${(state.limits.body_bytes / 1e6).toFixed(0)} MB.`, true); return; }
  let photo;
  try {
    photo = await createImageBitmap(file); // turned as its EXIF says, as the server does
  } catch {
    say("The browser cannot show this file. Choose a JPEG, PNG or WebP photo.", true);
    return;
  }
  Object.assign(state, { photo, name: file.name, steps: [], drawn: null, cross: null });
  at("drop").hidden = true;
  at("panels").hidden = at("tools").hidden = false;
  say(`${file.name}: embedding …`);
  await all((panel) => { const done = panel.open(photo, file); draw(); return done; });
}

async function everything() {
  if (!state.photo) return;
  state.mode = "everything";
  state.steps = [];
  for (const panel of shown()) panel.show([]);
  draw();
  at("everything").disabled = true;
  // Thresholds below SAM's: small models rate their masks lower.
  await all((panel) => panel.everything({ points_per_side: 16, min_iou: 0.5, min_stability: 0.8 }));
  at("everything").disabled = false;
}

function undo() { state.steps.pop(); update(); }
function clear() { state.steps = []; update(); }

function save() {
  const panel = shown().find((one) => one.masks.length);
  if (panel) savedMask(panel.masks, state.name);
}

function moveCross(dx, dy, far) {
  const { width, height } = state.photo, pace = Math.max(1, Math.round(Math.max(width, height) / (far ? 20 : 200)));
  const [x, y] = state.cross ?? [width / 2, height / 2];
  state.cross = [Math.min(width - 1, Math.max(0, x + dx * pace)), Math.min(height - 1, Math.max(0, y + dy * pace))];
  draw();
}

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const KEYS = { u: undo, c: clear, e: everything, s: save };

function key(event) {
  if (!state.photo || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName) && event.target.type !== "radio") return;
  const letter = event.key.toLowerCase();
  if ((event.ctrlKey || event.metaKey) && letter === "z") { event.preventDefault(); undo(); return; }
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const onCanvas = event.target.tagName === "CANVAS";
  if (onCanvas && ARROWS[event.key]) { event.preventDefault(); moveCross(...ARROWS[event.key], event.shiftKey); }
  else if (onCanvas && event.key === "Enter" && state.cross) addPoint(state.cross.map(Math.round), tool() === "remove" ? 0 : 1);
  else if ("123".includes(event.key)) document.querySelectorAll("input[name=tool]")[Number(event.key) - 1].click();
  else if (event.key === "Escape") { state.cross = null; clear(); }
  else if (KEYS[letter]) KEYS[letter]();
}

function choose() {
  const value = at("shown").value;
  state.panels.forEach((panel, i) => { panel.figure.hidden = value !== "both" && value !== String(i); });
  const missing = shown().filter((panel) => state.photo && panel.photo !== state.photo);
  if (missing.length || state.steps.length) refresh(); else draw();
}

async function refresh() {
  const file = state.panels.find((panel) => panel.file)?.file;
  await all(async (panel) => { if (panel.photo !== state.photo) await panel.open(state.photo, file); });
  if (state.mode === "clicks") await update();
}

function listen() {
  at("file").addEventListener("change", (event) => { open(event.target.files[0]); event.target.value = ""; });
  for (const [id, action] of [["undo", undo], ["clear", clear], ["everything", everything], ["save", save]]) at(id).addEventListener("click", action);
  at("shown").addEventListener("change", choose);
  at("here").addEventListener("change", () => { if (state.photo && state.mode === "clicks") update(); });
  document.addEventListener("keydown", key);
  document.addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("dragging"); });
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dragging"); });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dragging");
    open(event.dataTransfer.files[0]);
  });
  document.addEventListener("paste", (event) => { if (event.clipboardData.files.length) open(event.clipboardData.files[0]); });
  at("unlock").addEventListener("submit", (event) => {
    event.preventDefault();
    api.setToken(at("token").value.trim());
    at("unlock").hidden = true;
    start();
  });
  addEventListener("resize", () => { if (state.photo) draw(); });
}

async function start() {
  try {
    const found = await api.exports();
    state.limits = found.limits;
    state.panels = found.exports.map((about) => new Panel(about, draw));
  } catch (error) {
    failed(error);
    return;
  }
  at("panels").replaceChildren(...state.panels.map((panel) => panel.figure));
  const options = state.panels.map((panel, i) => new Option(panel.title, String(i)));
  at("shown").replaceChildren(at("shown").options[0], ...options);
  at("which").hidden = state.panels.length < 2;
  for (const panel of state.panels) {
    watchPointer(panel, {
      tool,
      point: addPoint,
      drawn: (box) => { state.drawn = box; draw(); },
      box: (box) => { state.drawn = null; step({ box }); },
    });
  }
  at("here").disabled = !state.panels.some((panel) => panel.about.browser_decoder);
  say(`Ready: ${found()}`);
}

const found = () => state.panels.map((panel) => `${panel.about.name} (${panel.title}, ${panel.about.backend})`).join(" beside ");

// For whoever drives the page from outside, such as its tests.
window.structsam = Object.assign(state, { idle: () => state.asking === 0 });

listen();
start();
