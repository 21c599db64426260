// From a prompt to the decoder's inputs, and from its logits to a mask: the arithmetic of the server's Predictor.

// (height, width) of a picture in the encoder's square.
export function resized([height, width], { image_size: side, preprocessing }) {
  if (["medsam", "efficientsam"].includes(preprocessing)) return [side, side];
  const scale = side / Math.max(height, width);
  return [height, width].map((size) => Math.max(1, Math.floor(size * scale + 0.5)));
}

// Points first, then a box's corners; points without a box end with SAM's padding point.
export function fed({ points = [], labels = [], box = null }, size, about) {
  const [rows, columns] = resized(size, about), places = [], kinds = [];
  points.forEach(([x, y], i) => {
    places.push([x, y]);
    kinds.push(labels[i] ?? 1);
  });
  if (points.length && !box) { places.push([0, 0]); kinds.push(-1); }
  if (box) { places.push(box.slice(0, 2), box.slice(2)); kinds.push(2, 3); }
  const coords = new Float32Array(2 * places.length);
  places.forEach(([x, y], i) => { coords[2 * i] = x * (columns / size[1]); coords[2 * i + 1] = y * (rows / size[0]); });
  return { coords, labels: BigInt64Array.from(kinds, BigInt) };
}

// Linear interpolation of `count` samples at `target` places, as PyTorch's with align_corners=False: pairs and weights.
function interpolation(count, target) {
  const step = Math.fround(count / target), low = new Int32Array(target), weight = new Float32Array(target);
  for (let i = 0; i < target; i += 1) {
    const place = Math.max(0, Math.fround((i + 0.5) * step - 0.5));
    low[i] = Math.floor(place);
    weight[i] = place - low[i];
  }
  return { low, weight };
}

// Two interpolations in a row: `count` samples to `square`, of which the first `kept` become `target`. Four terms each.
function twice(count, square, kept, target) {
  const inner = interpolation(count, square), outer = interpolation(kept, target);
  const index = new Int32Array(4 * target), weight = new Float64Array(4 * target);
  for (let i = 0; i < target; i += 1) {
    const pair = [outer.low[i], Math.min(kept - 1, outer.low[i] + 1)], share = [1 - outer.weight[i], outer.weight[i]];
    for (let k = 0; k < 2; k += 1) {
      const at = Math.min(square - 1, pair[k]), low = Math.min(count - 1, inner.low[at]);
      index[4 * i + 2 * k] = low;
      index[4 * i + 2 * k + 1] = Math.min(count - 1, low + 1);
      weight[4 * i + 2 * k] = share[k] * (1 - inner.weight[at]);
      weight[4 * i + 2 * k + 1] = share[k] * inner.weight[at];
    }
  }
  return { index, weight };
}

// A mask in the picture's size, in COCO's run lengths (column by column), from logits (h, w).
export function masked(logits, [h, w], { image_size: side, mask_threshold: threshold }, [rows, columns], [height, width]) {
  const down = twice(h, side, rows, height), across = twice(w, side, columns, width);
  const column = new Float64Array(h), counts = [];
  let run = 0, inside = 0, area = 0;
  for (let x = 0; x < width; x += 1) {
    for (let y = 0; y < h; y += 1) {
      let sum = 0;
      for (let k = 4 * x; k < 4 * x + 4; k += 1) sum += across.weight[k] * logits[y * w + across.index[k]];
      column[y] = sum;
    }
    for (let y = 0; y < height; y += 1) {
      let sum = 0;
      for (let k = 4 * y; k < 4 * y + 4; k += 1) sum += down.weight[k] * column[down.index[k]];
      const now = sum > threshold ? 1 : 0;
      if (now !== inside) { counts.push(run); run = 0; inside = now; }
      run += 1;
      area += now;
    }
  }
  counts.push(run);
  return { segmentation: { size: [height, width], counts }, area };
}
