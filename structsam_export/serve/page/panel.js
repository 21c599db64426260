// One export's picture: a canvas with the photo, the masks and the prompts, and a line of figures below it.

import * as api from "./api.js";
import * as decoding from "./decoding.js";
import { overlap, painted, sampled } from "./masks.js";
import { TokenView } from "./tokens.js";

// Pixels of a canvas' longer side: small photos are enlarged, and masks of large ones are shown sampled, but kept whole.
const SMALLEST = 1000, LARGEST = 1600;

export class Panel {
  constructor(about, redraw) {
    this.about = about;
    this.masks = [];
    this.layer = null;
    this.figure = document.createElement("figure");
    this.canvas = document.createElement("canvas");
    this.canvas.tabIndex = 0;
    this.canvas.setAttribute("role", "img");
    this.caption = document.createElement("figcaption");
    this.tokens = new TokenView(this, redraw);
    this.figure.append(this.canvas, this.caption);
    if (about.token_maps) this.figure.append(this.tokens.box);
    this.title = about.method === "none" ? "dense" : `${about.method} ${about.rate ?? ""}`.trim();
  }

  // A new photo, sent at once; questions wait until the server has it.
  async open(photo, file) {
    this.stop();
    this.sending?.abort();
    this.sending = new AbortController();
    const side = Math.max(photo.width, photo.height), scale = Math.min(LARGEST, Math.max(SMALLEST, side)) / side;
    this.photo = photo;
    this.canvas.width = Math.max(1, Math.round(photo.width * scale));
    this.canvas.height = Math.max(1, Math.round(photo.height * scale));
    this.canvas.style.setProperty("--ratio", String(this.canvas.width / this.canvas.height));
    this.masks = [];
    this.layer = null;
    this.file = file;
    this.say("embedding …");
    this.image = null;
    this.tokens.forget();
    const { signal } = this.sending;
    this.opening = api.embed(this.about.name, file, signal);
    const found = await this.opening;
    this.image = found.image;
    this.fetching = this.fetch(found, signal);
    this.say(`embedded in ${ms(found.embed_ms)}${found.cached ? " (kept from before)" : ""}`);
  }

  // The decoder and the embedding, for clicks without a round trip; until both are here the server decodes.
  async fetch(found, signal) {
    try {
      await (this.loading ??= decoding.load(this.about));
      await decoding.prepare(this.about, found, signal);
    } catch (error) {
      if (error.name !== "AbortError") console.info(`The server decodes: ${error.message}`);
    }
  }

  // Masks for a prompt, from this browser's decoder where it is ready, else from the server's.
  async predict(prompt, here = true) {
    const began = performance.now();
    let found = null, place = "in this browser";
    if (here && decoding.ready(this.about, this.image)) {
      const signal = this.begin();
      try {
        found = await decoding.decode(this.about, prompt, signal);
        if (!found) return; // a later click has its answer
      } catch (error) {
        if (error.name === "AbortError") throw error;
      }
    }
    if (!found) {
      place = "on the server";
      found = await this.asked(api.predict, prompt);
    }
    this.place = place;
    this.show(found.masks);
    const guess = found.masks[0].score.toFixed(2);
    this.say(`mask in ${ms(performance.now() - began)} (decoder ${ms(found.decode_ms)}, ${place}), guessed IoU ${guess}`);
  }

  async everything(options) {
    this.say("segmenting everything …");
    const began = performance.now();
    const found = await this.asked(api.everything, options);
    const order = [...found.masks].sort((a, b) => b.area - a.area);
    this.show(order);
    this.say(`${order.length} object${order.length === 1 ? "" : "s"} in ${ms(performance.now() - began)}`);
  }

  // Asks with the picture's name, the latest question only; a server that has dropped the picture gets it again.
  async asked(question, about) {
    const signal = this.begin(), export_ = this.about.name;
    const { image } = await this.opening;
    signal.throwIfAborted();
    try {
      return await question({ image, export: export_, ...about }, signal);
    } catch (error) {
      if (error.status !== 404) throw error;
      await api.embed(export_, this.file, signal);
      return question({ image, export: export_, ...about }, signal);
    }
  }

  begin() {
    this.stop();
    this.running = new AbortController();
    return this.running.signal;
  }

  stop() { this.running?.abort(); }

  show(masks) {
    this.masks = masks;
    const { width, height } = this.canvas;
    this.layer = masks.length ? painted(masks.map((m) => sampled(m.segmentation, width, height)), width, height) : null;
  }

  say(text) {
    const name = document.createElement("b");
    name.textContent = this.title;
    const gate = this.about.passed === false ? " — did not pass its parity check" : "";
    this.caption.replaceChildren(name, ` · ${this.about.backend} · ${text}${gate}`);
    this.canvas.setAttribute("aria-label", `Photo with masks of ${this.title}: ${text}`);
  }

  // Photo, masks, then prompts: points (x, y, label), a box, a cross for the keyboard; in pixels of the photo.
  draw({ points = [], box = null, cross = null }) {
    if (!this.photo) return;
    const { canvas } = this, pen = canvas.getContext("2d");
    pen.clearRect(0, 0, canvas.width, canvas.height);
    pen.drawImage(this.photo, 0, 0, canvas.width, canvas.height);
    this.tokens.draw(pen);
    if (this.layer) {
      const sheet = new OffscreenCanvas(canvas.width, canvas.height);
      sheet.getContext("2d").putImageData(this.layer, 0, 0);
      pen.drawImage(sheet, 0, 0);
    }
    const unit = canvas.width / Math.max(1, canvas.clientWidth || canvas.width), scale = canvas.width / this.photo.width;
    if (box) {
      const [x0, y0, x1, y1] = box.map((v) => v * scale);
      for (const [colour, width] of [["#000", 4], ["#fff", 2]]) {
        pen.strokeStyle = colour;
        pen.lineWidth = width * unit;
        pen.strokeRect(x0, y0, x1 - x0, y1 - y0);
      }
    }
    for (const [x, y, label] of points) disc(pen, (x + 0.5) * scale, (y + 0.5) * scale, 7 * unit, label);
    if (cross) plus(pen, cross[0] * scale, cross[1] * scale, 12 * unit);
  }

  // What the mask is worth against another panel's.
  agreement(other) {
    const [one, two] = [this.masks[0]?.segmentation, other.masks[0]?.segmentation];
    return one && two ? overlap(one, two) : null;
  }
}

// A point: green with a plus, or red with a minus, so that colours are not all that tells them apart.
function disc(pen, x, y, radius, label) {
  pen.beginPath();
  pen.arc(x, y, radius, 0, 2 * Math.PI);
  pen.fillStyle = label ? "#00845f" : "#c2410c";
  pen.fill();
  pen.strokeStyle = "#fff";
  pen.lineWidth = radius / 3.5;
  pen.stroke();
  pen.beginPath();
  pen.moveTo(x - radius / 2, y);
  pen.lineTo(x + radius / 2, y);
  if (label) { pen.moveTo(x, y - radius / 2); pen.lineTo(x, y + radius / 2); }
  pen.stroke();
}

function plus(pen, x, y, size) {
  for (const [colour, width] of [["#000", 4], ["#fff", 2]]) {
    pen.beginPath();
    pen.strokeStyle = colour;
    pen.lineWidth = width * size / 12;
    pen.moveTo(x - size, y); pen.lineTo(x + size, y);
    pen.moveTo(x, y - size); pen.lineTo(x, y + size);
    pen.stroke();
  }
}

const ms = (value) => (value >= 1000 ? `${(value / 1000).toFixed(1)} s` : `${Math.round(value)} ms`);
