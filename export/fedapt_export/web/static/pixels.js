// Decoded image -> uint8 array, as fedapt_runtime/preprocess.py makes it with Pillow.
//
// Pillow resamples one axis, rounds to 8 bits, and resamples the other. Its weights are integers with
// 22 fractional bits, so the same integers here give the same pixels. The order of the axes follows
// Pillow 13. Older versions resample columns first; images over twice as high as wide then differ.
//
// Source: Pillow, src/libImaging/Resample.c (`precompute_coeffs`, `bicubic_filter` with a = -0.5,
// `ImagingResampleHorizontal_8bpc`), Geometry.c (`ImagingScaleAffine`), Convert.c
// (`rgbA2rgba`, `rgba2rgbA`).

const PRECISION_BITS = 32 - 8 - 2;
const HALF = 1 << (PRECISION_BITS - 1);
const MAX_PIXELS = 100_000_000;

const FILTERS = {
  bicubic: { support: 2, weight: cubic },
  bilinear: { support: 1, weight: (x) => Math.max(1 - Math.abs(x), 0) },
};

function cubic(x) {
  const a = -0.5;
  const d = Math.abs(x);
  if (d < 1) return ((a + 2) * d - (a + 3)) * d * d + 1;
  if (d < 2) return (((d - 5) * d + 8) * d - 4) * a;
  return 0;
}

/** [width, height] of the resized image. */
export function resizedSize(width, height, { size, resize_mode }) {
  if (resize_mode === "squash") return [size[1], size[0]];
  const long = Math.floor((size[0] * Math.max(width, height)) / Math.min(width, height));
  return width <= height ? [size[0], long] : [long, size[0]];
}

/** The reason to refuse an image of this width and height; "" if there is none. */
export function refuseSize(width, height, { size, resize_mode }) {
  let scale = 1;
  if (resize_mode === "shortest") scale = Math.max(1, Math.max(...size) / Math.min(width, height));
  if (width * height * scale * scale <= MAX_PIXELS) return "";
  return `${width} x ${height} pixels, over the limit of ${MAX_PIXELS} (resized)`;
}

/** The first of `size` pixels in the centre of `length`; halves round to the even number. */
function cropOffset(length, size) {
  const half = (length - size) / 2;
  const floor = Math.floor(half);
  return half - floor === 0.5 ? floor + (floor & 1) : Math.round(half);
}

/**
 * Resize, crop and drop the alpha channel.
 *
 * @param {Uint8ClampedArray} rgba the whole image, not premultiplied, [height * width * 4]
 * @param {number} width columns of the image
 * @param {number} height rows of the image
 * @param {object} preprocessing preprocessing in the manifest
 * @param {boolean} nearest true for images with a palette, which Pillow resizes without a filter
 * @returns {Uint8Array} RGB, [size[0] * size[1] * 3]
 */
export function prepare(rgba, width, height, preprocessing, nearest = false) {
  const [rows, columns] = preprocessing.size;
  const [newWidth, newHeight] = resizedSize(width, height, preprocessing);
  const crop = preprocessing.resize_mode === "shortest";
  const left = crop ? cropOffset(newWidth, columns) : 0;
  const top = crop ? cropOffset(newHeight, rows) : 0;
  if (nearest) {
    const xs = nearestPlaces(width, newWidth).subarray(left, left + columns);
    const ys = nearestPlaces(height, newHeight).subarray(top, top + rows);
    return gather(rgba, width, xs, ys);
  }
  const horizontal = weigh(width, newWidth, left, columns, preprocessing.interpolation);
  const vertical = weigh(height, newHeight, top, rows, preprocessing.interpolation);
  const pixels = hasAlpha(rgba) && (newWidth !== width || newHeight !== height)
    ? premultiply(rgba) : rgba;
  // the axis that shrinks more comes first, see `ImagingResampleInner`
  if (newHeight < height && height - newHeight > 2 * (width - newWidth)) {
    const [first, last] = range(horizontal);
    const between = resampleRows(pixels, width, first, last, vertical, 0);
    return finish(resampleColumns(between, last - first, 0, rows, horizontal, first), pixels !== rgba);
  }
  const [first, last] = range(vertical);
  const between = resampleColumns(pixels, width, first, last, horizontal, 0);
  return finish(resampleRows(between, columns, 0, columns, vertical, first), pixels !== rgba);
}

/** Integer weights for the results `from` to `from + count` (exclusive) of a resampled axis. */
function weigh(length, newLength, from, count, interpolation) {
  const filter = FILTERS[interpolation];
  const scale = length / newLength;
  const filterScale = Math.max(scale, 1);
  const support = filter.support * filterScale;
  const width = Math.ceil(support) * 2 + 1;
  const starts = new Int32Array(count);
  const counts = new Int32Array(count);
  const weights = new Int32Array(count * width);
  const exact = new Float64Array(width);
  for (let i = 0; i < count; i++) {
    if (scale === 1) { // Pillow does not resample an axis that keeps its length
      [starts[i], counts[i], weights[i * width]] = [from + i, 1, 1 << PRECISION_BITS];
      continue;
    }
    const centre = (from + i + 0.5) * scale;
    const inverse = 1 / filterScale;
    const start = Math.max(Math.trunc(centre - support + 0.5), 0);
    const end = Math.min(Math.trunc(centre + support + 0.5), length);
    let total = 0;
    for (let x = start; x < end; x++) {
      exact[x - start] = filter.weight((x - centre + 0.5) * inverse);
      total += exact[x - start];
    }
    starts[i] = start;
    counts[i] = end - start;
    for (let x = 0; x < end - start; x++) {
      const weight = (total === 0 ? exact[x] : exact[x] / total) * (1 << PRECISION_BITS);
      weights[i * width + x] = Math.trunc(weight + (weight < 0 ? -0.5 : 0.5));
    }
  }
  return { starts, counts, weights, width };
}

/** The first pixel that the weights read, and the pixel after the last. */
function range({ starts, counts }) {
  const last = starts.length - 1;
  return [starts[0], starts[last] + counts[last]];
}

/**
 * Rows `first` to `last` of [height, width, 4] -> [last - first, columns, 4].
 *
 * @param {number} skipped columns at the left that `pixels` does not contain
 */
function resampleColumns(pixels, width, first, last, { starts, counts, weights, width: stride }, skipped) {
  const columns = starts.length;
  const out = new Uint8ClampedArray((last - first) * columns * 4);
  for (let y = first, to = 0; y < last; y++) {
    for (let x = 0; x < columns; x++, to += 4) {
      const base = x * stride;
      let at = (y * width + starts[x] - skipped) * 4;
      let r = HALF, g = HALF, b = HALF, a = HALF;
      for (let i = base; i < base + counts[x]; i++, at += 4) {
        const weight = weights[i];
        r += pixels[at] * weight;
        g += pixels[at + 1] * weight;
        b += pixels[at + 2] * weight;
        a += pixels[at + 3] * weight;
      }
      out[to] = r >> PRECISION_BITS;
      out[to + 1] = g >> PRECISION_BITS;
      out[to + 2] = b >> PRECISION_BITS;
      out[to + 3] = a >> PRECISION_BITS;
    }
  }
  return out;
}

/**
 * Columns `first` to `last` of [height, width, 4] -> [rows, last - first, 4].
 *
 * @param {number} skipped rows at the top that `pixels` does not contain
 */
function resampleRows(pixels, width, first, last, { starts, counts, weights, width: stride }, skipped) {
  const length = (last - first) * 4;
  const sums = new Int32Array(length);
  const out = new Uint8ClampedArray(starts.length * length);
  for (let y = 0; y < starts.length; y++) {
    sums.fill(HALF);
    for (let i = 0; i < counts[y]; i++) {
      const weight = weights[y * stride + i];
      const at = ((starts[y] - skipped + i) * width + first) * 4;
      for (let x = 0; x < length; x++) sums[x] += pixels[at + x] * weight;
    }
    for (let x = 0; x < length; x++) out[y * length + x] = sums[x] >> PRECISION_BITS;
  }
  return out;
}

/** The source pixel of each pixel of the resized axis, with the rounding of Pillow's running sum. */
function nearestPlaces(length, newLength) {
  const scale = length / newLength;
  const places = new Int32Array(newLength);
  let at = scale * 0.5;
  for (let i = 0; i < newLength; i++, at += scale) places[i] = Math.trunc(at);
  return places;
}

function gather(rgba, width, xs, ys) {
  const out = new Uint8Array(xs.length * ys.length * 3);
  let to = 0;
  for (const y of ys) {
    for (const x of xs) {
      const at = (y * width + x) * 4;
      for (let channel = 0; channel < 3; channel++) out[to++] = rgba[at + channel];
    }
  }
  return out;
}

function hasAlpha(rgba) {
  for (let i = 3; i < rgba.length; i += 4) if (rgba[i] !== 255) return true;
  return false;
}

function premultiply(rgba) {
  const out = new Uint8ClampedArray(rgba);
  for (let i = 0; i < out.length; i += 4) {
    for (let channel = 0; channel < 3; channel++) {
      const product = rgba[i + channel] * rgba[i + 3] + 128;
      out[i + channel] = ((product >> 8) + product) >> 8;
    }
  }
  return out;
}

/** RGBA, premultiplied or not -> RGB. */
function finish(rgba, premultiplied) {
  const out = new Uint8ClampedArray((rgba.length / 4) * 3);
  for (let from = 0, to = 0; from < rgba.length; from += 4) {
    const alpha = rgba[from + 3];
    const divide = premultiplied && alpha !== 0 && alpha !== 255;
    for (let channel = 0; channel < 3; channel++) {
      const value = rgba[from + channel];
      out[to++] = divide ? Math.trunc((255 * value) / alpha) : value;
    }
  }
  return new Uint8Array(out.buffer);
}
