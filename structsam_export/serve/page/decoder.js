// The worker: ONNX Runtime's WebAssembly runs an export's decoder on an embedding that the server made.

import * as ort from "./vendor/ort.wasm.min.mjs";
import { fed, masked, resized } from "./prompting.js";

ort.env.wasm.wasmPaths = new URL("./vendor/", import.meta.url).href;
ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency || 1) : 1;

const models = new Map();
const questions = [];
let running = false;

async function load({ name, about, model }) {
  const session = await ort.InferenceSession.create(new Uint8Array(model), { executionProviders: ["wasm"] });
  models.set(name, { session, about });
  return {};
}

function picture({ name, embedding, size }) {
  const one = models.get(name), [h, w] = one.about.low_res.map((side) => side / 4), values = new Float32Array(embedding);
  one.embedding = new ort.Tensor("float32", values, [1, values.length / (h * w), h, w]);
  one.size = size;
  return {};
}

async function decode({ name, prompt }) {
  const { session, about, embedding, size } = models.get(name), began = performance.now();
  const [h, w] = about.low_res, { coords, labels } = fed(prompt, size, about);
  const found = await session.run({
    image_embeddings: embedding,
    point_coords: new ort.Tensor("float32", coords, [1, labels.length, 2]),
    point_labels: new ort.Tensor("int64", labels, [1, labels.length]),
    mask_input: new ort.Tensor("float32", new Float32Array(h * w), [1, 1, h, w]),
    has_mask_input: new ort.Tensor("float32", new Float32Array(1), [1]),
  });
  const logits = found.low_res_masks.data.subarray(0, h * w); // SAM's single mask is the first
  const mask = masked(logits, [h, w], about, resized(size, about), size);
  return { masks: [{ ...mask, score: found.iou_predictions.data[0] }], decode_ms: performance.now() - began };
}

const KINDS = { load, picture, decode };

// One after the other; of several clicks that wait only the last is worth an answer.
async function work() {
  if (running) return;
  running = true;
  while (questions.length) {
    const asked = questions.shift(), { number, kind, name } = asked;
    const overtaken = kind === "decode" && questions.some((later) => later.kind === "decode" && later.name === name);
    try {
      self.postMessage({ number, ...(overtaken ? {} : await KINDS[kind](asked)) });
    } catch (error) {
      self.postMessage({ number, error: String(error.message || error) });
    }
  }
  running = false;
}

self.addEventListener("message", ({ data }) => { questions.push(data); work(); });
