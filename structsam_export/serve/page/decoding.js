// The decoder in this browser: which exports it has, and questions to its worker. What it cannot do, the server does.

import * as api from "./api.js";

const state = { worker: null, broken: "", waiting: new Map(), number: 0, pictures: new Map() };

export const broken = () => state.broken;

function start() {
  if (state.worker || state.broken) return;
  state.worker = new Worker("decoder.js", { type: "module" });
  state.worker.addEventListener("message", ({ data }) => {
    const asked = state.waiting.get(data.number);
    state.waiting.delete(data.number);
    if (data.error) asked?.reject(new Error(data.error)); else asked?.resolve(data);
  });
  state.worker.addEventListener("error", (event) => fail(event.message || "the worker cannot be loaded"));
}

function fail(reason) {
  state.broken = reason;
  state.worker?.terminate();
  state.worker = null;
  for (const asked of state.waiting.values()) asked.reject(new Error(reason));
  state.waiting.clear();
}

function ask(message, transfer = []) {
  start();
  if (!state.worker) return Promise.reject(new Error(state.broken));
  const number = state.number += 1;
  return new Promise((resolve, reject) => {
    state.waiting.set(number, { resolve, reject });
    state.worker.postMessage({ ...message, number }, transfer);
  });
}

// Loads an export's decoder; resolves to nothing, whatever comes of it: the server decodes meanwhile.
export async function load(about) {
  if (!about.browser_decoder) return;
  try {
    const model = await api.decoder(about.name);
    await ask({ kind: "load", name: about.name, about, model }, [model]);
    state.pictures.set(about.name, "");
  } catch (error) {
    fail(error.message);
  }
}

// Gives the worker a picture's embedding; one picture is kept for each export.
export async function prepare(about, found, signal) {
  if (!state.pictures.has(about.name) || state.pictures.get(about.name) === found.image) return;
  const embedding = await api.embedding(about.name, found.image, signal);
  await ask({ kind: "picture", name: about.name, embedding, size: [found.height, found.width] }, [embedding]);
  state.pictures.set(about.name, found.image);
}

export const ready = (about, image) => !state.broken && Boolean(image) && state.pictures.get(about.name) === image;

// Masks as the server gives them, of the picture that was prepared last; null where a later question overtook this one.
export async function decode(about, prompt, signal) {
  const found = await ask({ kind: "decode", name: about.name, prompt });
  signal.throwIfAborted();
  return found.masks ? found : null;
}
