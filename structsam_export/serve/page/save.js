// A mask as a PNG of the photo's own size, white on black; several masks as shades of one picture.

import { sampled } from "./masks.js";

export async function savedMask(masks, name) {
  const [height, width] = masks[0].segmentation.size;
  const sheet = new OffscreenCanvas(width, height), pen = sheet.getContext("2d");
  const image = new ImageData(width, height), data = image.data;
  for (let i = 3; i < data.length; i += 4) data[i] = 255;
  masks.forEach((mask, index) => {
    const shade = masks.length === 1 ? 255 : 1 + index % 255;
    sampled(mask.segmentation, width, height).forEach((inside, i) => { if (inside) data.fill(shade, 4 * i, 4 * i + 3); });
  });
  pen.putImageData(image, 0, 0);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await sheet.convertToBlob({ type: "image/png" }));
  link.download = `${name.replace(/\.[^.]*$/, "") || "photo"}.mask.png`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
