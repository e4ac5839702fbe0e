"use strict";

// The first part of the script of the page: the network, and images as it sees them.

// --- the network: numbers are in Float32Arrays [channels, height, width] ---

const LAYERS = {
  convolution([x], layer, weights) {
    const { kernel_size: size, stride, padding, dilation, groups, out } = layer;
    const side = (n) => Math.floor((n + 2 * padding - dilation * (size - 1) - 1) / stride) + 1;
    const y = tensor(out, side(x.height), side(x.width));
    const inputs = x.channels / groups, outputs = out / groups;
    const taps = inputs * size * size, area = y.height * y.width;
    const inPlace = size === 1 && stride === 1 && padding === 0;
    const patches = inPlace ? null : new Float32Array(taps * area);
    for (let o = 0; o < out; o++) {
      const first = Math.floor(o / outputs) * inputs; // the first channel of the group
      if (!inPlace && o % outputs === 0) layPatches(patches, x, first, inputs, layer, y);
      const rows = inPlace ? x.data.subarray(first * area, (first + inputs) * area) : patches;
      const sums = y.data.subarray(o * area, (o + 1) * area).fill(weights[layer.bias + o]);
      const start = layer.weight + o * taps;
      addProducts(sums, rows, weights.subarray(start, start + taps));
    }
    return y;
  },
  maxpool([x], { size }) {
    const y = tensor(x.channels, Math.floor(x.height / size), Math.floor(x.width / size));
    let i = 0;
    for (let c = 0; c < y.channels; c++)
      for (let row = 0; row < y.height; row++)
        for (let column = 0; column < y.width; column++, i++) {
          let most = -Infinity;
          for (let dy = 0; dy < size; dy++) {
            const from = (c * x.height + row * size + dy) * x.width + column * size;
            for (let dx = 0; dx < size; dx++) most = Math.max(most, x.data[from + dx]);
          }
          y.data[i] = most;
        }
    return y;
  },
  relu: ([x]) => each(x, (value) => Math.max(value, 0)),
  sigmoid: ([x]) => each(x, (value) => 1 / (1 + Math.exp(-value))),
  add: (inputs) => both(inputs, (a, b) => a + b),
  multiply: (inputs) => both(inputs, (a, b) => a * b),
  mean: ([x]) => ofChannels(x, (values) => values.reduce((a, b) => a + b, 0) / values.length),
  max: ([x]) => ofChannels(x, (values) => values.reduce((a, b) => Math.max(a, b))),
};

function tensor(channels, height, width) {
  return { channels, height, width, data: new Float32Array(channels * height * width) };
}

function each(x, compute) {
  return { ...x, data: x.data.map(compute) };
}

/** Combines two tensors; one of them may have one value for each channel of the other. */
function both(inputs, compute) {
  const [a, b] = inputs[0].data.length < inputs[1].data.length ? inputs.toReversed() : inputs;
  const repeated = a.data.length / b.data.length;
  return { ...a, data: a.data.map((value, i) => compute(value, b.data[Math.floor(i / repeated)])) };
}

function ofChannels(x, compute) {
  const y = tensor(x.channels, 1, 1), area = x.height * x.width;
  y.data.forEach((_, c) => (y.data[c] = compute(x.data.subarray(c * area, (c + 1) * area))));
  return y;
}

/** Lays out what each tap of the kernel meets, one row a tap: patches [taps, height * width of y]. */
function layPatches(patches, x, first, inputs, { kernel_size: size, stride, padding, dilation }, y) {
  let i = 0;
  for (let c = first; c < first + inputs; c++)
    for (let tap = 0; tap < size * size; tap++) {
      const down = Math.floor(tap / size) * dilation - padding;
      const right = (tap % size) * dilation - padding;
      for (let row = 0; row < y.height; row++) {
        const from = row * stride + down, start = (c * x.height + from) * x.width;
        const inside = from >= 0 && from < x.height;
        for (let column = 0, at = right; column < y.width; column++, at += stride)
          patches[i++] = inside && at >= 0 && at < x.width ? x.data[start + at] : 0;
      }
    }
}

/** Adds kernel [taps] times rows [taps, n] to sums [n]. Four rows at once: it is faster. */
function addProducts(sums, rows, kernel) {
  const n = sums.length, even = kernel.length - (kernel.length % 4);
  for (let tap = 0; tap < even; tap += 4) {
    const a = kernel[tap], b = kernel[tap + 1], c = kernel[tap + 2], d = kernel[tap + 3];
    for (let i = 0, p = tap * n, q = p + n, r = q + n, s = r + n; i < n; i++)
      sums[i] += a * rows[p + i] + b * rows[q + i] + c * rows[r + i] + d * rows[s + i];
  }
  for (let tap = even; tap < kernel.length; tap++) {
    const a = kernel[tap];
    for (let i = 0, p = tap * n; i < n; i++) sums[i] += a * rows[p + i];
  }
}

/** The values of all layers for an image, bytes [3, size, size]; the last one holds the logits. */
function run(network, weights, pixels) {
  const image = tensor(3, network.size, network.size), area = network.size ** 2;
  pixels.forEach((value, i) => {
    const c = Math.floor(i / area);
    image.data[i] = (value / 255 - network.mean[c]) / network.std[c];
  });
  const values = [image];
  for (const layer of network.layers)
    values.push(LAYERS[layer.kind](layer.of.map((i) => values[i]), layer, weights));
  return values;
}

/** The class indices, the highest logit first. */
function ranked(logits) {
  return [...logits.keys()].sort((a, b) => logits[b] - logits[a]);
}

/** The class activation map of a class: its mean, plus the bias of the head, is the logit. */
function classMap(features, label, head, weights) {
  const start = head.weight + label * features.channels;
  const map = tensor(1, features.height, features.width);
  addProducts(map.data, features.data, weights.subarray(start, start + features.channels));
  return map;
}

// --- an image of any size -> bytes [3, side, side], as in training ---

/** Resizes as Pillow does: bicubic, after averaging whole blocks of an image that is much larger. */
function squeezed({ data, width, height }, side) {
  const [across, down] = [width, height].map((n) => Math.max(1, Math.floor(n / side / 3)));
  const columns = Math.ceil(width / across), rows = Math.ceil(height / down);
  const sums = [0, 1, 2].map(() => new Float64Array(rows * columns));
  for (let y = 0, i = 0; y < height; y++) {
    let block = Math.floor(y / down) * columns;
    for (let x = 0; x < width; block++) {
      let red = 0, green = 0, blue = 0;
      for (const end = Math.min(x + across, width); x < end; x++, i += 4) {
        red += data[i];
        green += data[i + 1];
        blue += data[i + 2];
      }
      sums[0][block] += red;
      sums[1][block] += green;
      sums[2][block] += blue;
    }
  }
  const pixels = new Uint8Array(3 * side * side);
  sums.forEach((plane, c) => {
    const means = plane.map((sum, i) => {
      const x = i % columns, y = Math.floor(i / columns);
      const wide = Math.min(across, width - x * across), high = Math.min(down, height - y * down);
      return Math.round(sum / (wide * high));
    });
    const narrow = stretched(means, columns, rows, side, width / across);
    pixels.set(stretched(narrow, rows, side, side, height / down), c * side * side);
  });
  return pixels;
}

/**
 * Resizes lines [count, length] to [side, count], turned: twice it resizes a plane. `extent` is the
 * part of `length` that they cover.
 */
function stretched(lines, length, count, side, extent) {
  const result = new Uint8ClampedArray(side * count); // it limits
  const scale = extent / side, spread = Math.max(scale, 1);
  for (let to = 0; to < side; to++) {
    const centre = (to + 0.5) * scale;
    const first = Math.max(0, Math.floor(centre - 2 * spread + 0.5));
    const end = Math.min(length, Math.floor(centre + 2 * spread + 0.5));
    const shares = [];
    for (let i = first; i < end; i++) shares.push(cubic((i - centre + 0.5) / spread));
    const total = shares.reduce((a, b) => a + b);
    for (let line = 0; line < count; line++) {
      const start = line * length + first;
      const sum = shares.reduce((sum, share, i) => sum + share * lines[start + i], 0);
      result[to * count + line] = Math.floor(sum / total + 0.5);
    }
  }
  return result;
}

/** Keys's kernel with a = -0.5, as in Pillow. */
function cubic(x) {
  x = Math.abs(x);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
}

/** The colours of an image; what is transparent becomes black. Some phones have no larger canvas
 *  than 2^24 pixels. */
function drawn(bitmap) {
  const shrink = Math.min(1, Math.sqrt(2 ** 24 / (bitmap.width * bitmap.height)));
  const [width, height] = [bitmap.width, bitmap.height].map((n) => Math.max(1, Math.floor(n * shrink)));
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { alpha: false, willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, width, height);
  bitmap.close();
  return context.getImageData(0, 0, width, height);
}

