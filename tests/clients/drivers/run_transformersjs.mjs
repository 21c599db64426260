// transformers.js (Apache-2.0) on Node; reads and writes what drive.py does.
import fs from 'node:fs';
import path from 'node:path';
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

const job = JSON.parse(fs.readFileSync(process.argv[2]));
const home = process.argv[3];                       // folder with node_modules
const require = createRequire(path.join(home, 'package.json'));
const { SamModel, AutoProcessor, RawImage, Tensor, env } = await import(pathToFileURL(require.resolve('@huggingface/transformers')));

env.allowRemoteModels = false;
env.localModelPath = path.dirname(job.pack);
const name = path.basename(job.pack);

function readNpy(file) {
  const bytes = fs.readFileSync(file), length = bytes.readUInt16LE(8);
  const shape = bytes.subarray(10, 10 + length).toString().match(/\(([\d, ]+)\)/)[1].split(',').filter(s => s.trim()).map(Number);
  return { shape, data: bytes.subarray(10 + length) };
}

function writeNpy(file, data, shape, type) {
  let head = `{'descr': '${type}', 'fortran_order': False, 'shape': (${shape.join(', ')},), }`;
  head = head.padEnd(64 * Math.ceil((head.length + 11) / 64) - 11) + '\n';
  const start = Buffer.concat([Buffer.from([0x93]), Buffer.from('NUMPY'), Buffer.from([1, 0, head.length & 255, head.length >> 8])]);
  fs.writeFileSync(file, Buffer.concat([start, Buffer.from(head), Buffer.from(data.buffer, data.byteOffset, data.byteLength)]));
}

const model = await SamModel.from_pretrained(name);
const processor = await AutoProcessor.from_pretrained(name);
const sizes = [];
for (const [i, photo] of job.photos.entries()) {
  const { shape: [h, w], data } = readNpy(photo.image);
  const image = new RawImage(new Uint8ClampedArray(data), w, h, 3);
  let embeddings;
  for (const [j, prompt] of photo.prompts.entries()) {
    const inputs = await processor(image, { input_points: [[prompt.points]], input_labels: [[prompt.labels]] });
    if (!embeddings) {
      embeddings = await model.get_image_embeddings(inputs);
      writeNpy(path.join(job.out, `fed.${i}.npy`), inputs.pixel_values.data, inputs.pixel_values.dims, '<f4');
      sizes.push(Array.from(inputs.reshaped_input_sizes[0]).map(Number));
    }
    const out = await model({ ...embeddings, input_points: inputs.input_points, input_labels: inputs.input_labels });
    const masks = (await processor.post_process_masks(out.pred_masks, inputs.original_sizes, inputs.reshaped_input_sizes))[0];
    const area = h * w, all = Uint8Array.from(masks.data);
    for (let k = 0; k < 3; k++) writeNpy(path.join(job.out, `mask${k}.${i}.${j}.npy`), all.subarray(k * area, (k + 1) * area), [h, w], '|b1');
  }
}
fs.writeFileSync(path.join(job.out, 'about.json'), JSON.stringify({ version: env.version, sizes }));
await model.dispose();
