// Masks: COCO's run lengths to pixels, and pixels to colours. Run lengths go column by column.

export const COLOURS = [[230, 159, 0], [86, 180, 233], [0, 158, 115], [204, 121, 167], [240, 228, 66], [213, 94, 0], [0, 114, 178]];

// Run lengths as bytes (0 or 1) of a mask that is `width` x `height`, sampled from its own size.
export function sampled({ size: [h, w], counts }, width, height) {
  const ends = new Uint32Array(counts.length);
  let sum = 0;
  for (let i = 0; i < counts.length; i += 1) { sum += counts[i]; ends[i] = sum; }
  const out = new Uint8Array(width * height);
  for (let x = 0; x < width; x += 1) {
    const column = Math.min(w - 1, Math.floor((x + 0.5) * w / width)) * h;
    let run = first(ends, column);
    for (let y = 0; y < height; y += 1) {
      const at = column + Math.min(h - 1, Math.floor((y + 0.5) * h / height));
      while (run < ends.length && ends[run] <= at) run += 1;
      out[y * width + x] = run & 1;
    }
  }
  return out;
}

// The run that pixel `at` is in: the first that ends behind it.
function first(ends, at) {
  let low = 0, high = ends.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (ends[middle] <= at) low = middle + 1; else high = middle;
  }
  return low;
}

// Masks (bytes each) painted over each other, with outlines, as ImageData.
export function painted(masks, width, height) {
  const image = new ImageData(width, height), data = image.data;
  masks.forEach((mask, i) => {
    const [r, g, b] = COLOURS[i % COLOURS.length];
    for (let y = 0, at = 0; y < height; y += 1) {
      for (let x = 0; x < width; x += 1, at += 1) {
        if (!mask[at]) continue;
        const edge = (x > 0 && !mask[at - 1]) || (x < width - 1 && !mask[at + 1])
          || (y > 0 && !mask[at - width]) || (y < height - 1 && !mask[at + width]);
        data.set([r, g, b, edge ? 255 : 128], 4 * at);
      }
    }
  });
  return image;
}

// Intersection over union of two masks in run lengths of the same size, exactly.
export function overlap(one, other) {
  let both = 0, either = 0, i = 0, j = 0, restOne = one.counts[0] ?? 0, restOther = other.counts[0] ?? 0;
  while (i < one.counts.length && j < other.counts.length) {
    const step = Math.min(restOne, restOther);
    if (i & 1 && j & 1) both += step;
    if (i & 1 || j & 1) either += step;
    restOne -= step; restOther -= step;
    if (!restOne) { i += 1; restOne = one.counts[i] ?? 0; }
    if (!restOther) { j += 1; restOther = other.counts[j] ?? 0; }
    // Runs of no length are passed on the next turn.
  }
  return either ? both / either : 1;
}
