// Which tokens each block of an export treats as one, drawn over its picture; a slider goes through the blocks.

import * as api from "./api.js";
import { resized } from "./prompting.js";

const WHAT = { merge: "tokens merged", grid: "tokens merged from here on", keys: "tokens no keys", mlp: "tokens past the MLP" };

export class TokenView {
  constructor(panel, redraw) {
    Object.assign(this, { panel, redraw, found: null, image: null, pictures: new Map() });
    this.box = document.createElement("div");
    this.box.className = "tokens";
    this.button = document.createElement("button");
    this.button.type = "button";
    this.button.textContent = "Merged tokens";
    this.button.setAttribute("aria-pressed", "false");
    this.label = document.createElement("label");
    this.slider = Object.assign(document.createElement("input"), { type: "range", min: 0, max: 0, value: 0 });
    this.text = document.createElement("output");
    this.label.append("Block ", this.slider);
    this.label.hidden = true;
    this.box.append(this.button, this.label, this.text);
    this.button.addEventListener("click", () => this.toggle());
    this.slider.addEventListener("input", () => { this.tell(); redraw(); });
  }

  get on() { return this.button.getAttribute("aria-pressed") === "true"; }

  async toggle(on = !this.on) {
    this.button.setAttribute("aria-pressed", String(on));
    if (on) await this.read(); else { this.label.hidden = true; this.text.textContent = ""; }
    this.redraw();
  }

  // A new photo: its map is asked for if it is looked at.
  forget() {
    this.found = this.image = null;
    this.pictures.clear();
    if (this.on) this.toggle(false);
  }

  async read() {
    const { image, about } = this.panel;
    if (!image || this.image === image) { if (this.found) { this.label.hidden = false; this.tell(); } return; }
    this.text.textContent = "asking for the map …";
    try {
      const found = await api.tokens({ image, export: about.name });
      if (this.panel.image !== image) return;
      Object.assign(this, { found, image });
      this.slider.max = found.layers.length - 1;
      this.label.hidden = false;
      this.tell();
    } catch (error) {
      this.button.setAttribute("aria-pressed", "false");
      this.text.textContent = error.message;
    }
  }

  tell() {
    const layer = this.found.layers[this.slider.value], groups = new Set(layer.groups).size;
    const where = layer.window ? `${layer.window} × ${layer.window} windows` : "global attention";
    const text = `block ${layer.block}, ${where}: ${layer.groups.length} tokens in ${groups} groups (${WHAT[layer.kind] ?? layer.kind})`;
    this.text.textContent = text;
    this.slider.setAttribute("aria-valuetext", text);
  }

  // Merged tokens in the mean colour of their group, with the borders of groups, over the photo.
  draw(pen) {
    if (!this.on || !this.found) return;
    const { photo, about, canvas } = this.panel, at = Number(this.slider.value);
    const [h, w] = this.found.grid, [rows, columns] = resized([photo.height, photo.width], about);
    const patch = about.image_size / Math.max(...about.low_res) * 4;
    const sizes = [canvas.width * patch / columns, canvas.height * patch / rows];
    if (!this.pictures.has(at)) this.pictures.set(at, coloured(photo, this.found.layers[at].groups, w, h, columns / patch, rows / patch));
    const { colours, merged } = this.pictures.get(at), { groups } = this.found.layers[at];
    pen.lineWidth = Math.max(1, canvas.width / 900);
    pen.strokeStyle = "#ffb000";
    pen.beginPath();
    for (let i = 0; i < groups.length; i += 1) {
      if (!merged[i]) continue;
      const x = (i % w) * sizes[0], y = Math.floor(i / w) * sizes[1];
      pen.fillStyle = colours[i];
      pen.fillRect(x, y, sizes[0] + 0.5, sizes[1] + 0.5);
      if (i % w + 1 < w && groups[i + 1] !== groups[i]) { pen.moveTo(x + sizes[0], y); pen.lineTo(x + sizes[0], y + sizes[1]); }
      if (i + w < groups.length && groups[i + w] !== groups[i]) { pen.moveTo(x, y + sizes[1]); pen.lineTo(x + sizes[0], y + sizes[1]); }
    }
    pen.stroke();
  }
}

// The mean colour of each token's group, and whether that group has more than one token.
function coloured(photo, groups, w, h, across, down) {
  const sheet = new OffscreenCanvas(w, h), pen = sheet.getContext("2d");
  pen.imageSmoothingQuality = "high";
  pen.drawImage(photo, 0, 0, across, down);
  const { data } = pen.getImageData(0, 0, w, h), sums = new Map();
  groups.forEach((group, i) => {
    const sum = sums.get(group) ?? [0, 0, 0, 0];
    for (let c = 0; c < 3; c += 1) sum[c] += data[4 * i + c];
    sum[3] += 1;
    sums.set(group, sum);
  });
  const colours = groups.map((group) => {
    const [r, g, b, n] = sums.get(group);
    return `rgb(${Math.round(r / n)} ${Math.round(g / n)} ${Math.round(b / n)})`;
  });
  return { colours, merged: groups.map((group) => sums.get(group)[3] > 1) };
}
