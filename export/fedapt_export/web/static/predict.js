// The graph's outputs -> a prediction, as in fedapt_runtime/prediction.py and unknown.py.

const TOP_K = 5;

/**
 * The prediction for one image.
 *
 * @param {{logits: Float32Array, domain_weights: Float32Array, features?: Float32Array}} outputs
 *   the graph's outputs for the image
 * @param {object} manifest manifest of the model
 * @returns {object} label, score, top_k, routed_to, domain_weights, unknown, or error
 */
export function predict({ logits, domain_weights: weights, features }, manifest) {
  const probabilities = softmax(logits);
  if (![...probabilities, ...weights].every(Number.isFinite)) {
    return { error: "the model returned NaN or infinity" };
  }
  const order = [...probabilities.keys()].sort((a, b) => probabilities[b] - probabilities[a]);
  const top = order.slice(0, TOP_K).map((i) => [manifest.classes[i], probabilities[i]]);
  const routed = weights.indexOf(Math.max(...weights));
  const found = {
    label: top[0][0],
    score: top[0][1],
    top_k: top,
    routed_to: manifest.domains[routed],
    domain_weights: Object.fromEntries(manifest.domains.map((name, i) => [name, weights[i]])),
  };
  if (!manifest.unknown) return found;
  const score = scoreUnknown(features, manifest.unknown);
  return { ...found, unknown_score: score, unknown: score > manifest.unknown.threshold };
}

function softmax(logits) {
  const largest = Math.max(...logits);
  const powers = Array.from(logits, (logit) => Math.exp(logit - largest));
  const total = powers.reduce((sum, power) => sum + power, 0);
  return powers.map((power) => power / total);
}

/** The score of `UnknownSignal.score`: distance from known domains, in standard deviations. */
export function scoreUnknown(features, signal) {
  const network = readRows(signal.adaptive_network, 4, signal.width);
  const centres = readRows(signal.centres, 2, signal.width);
  const z = network.map((row) => dot(row, features));
  const largest = Math.max(...z);
  const powers = z.map((value) => Math.exp(value - largest));
  const total = powers.reduce((sum, power) => sum + power, 0);
  const entropy = powers.reduce(
    (sum, power, i) => sum + (power / total) * (Math.log(total) - (z[i] - largest)), 0,
  ) / Math.log(network.length);
  const length = Math.max(Math.sqrt(dot(features, features)), 1e-12);
  const domain = z.indexOf(largest);
  let cosine = -1;
  centres.forEach((centre, i) => {
    if (signal.domains[i] === domain) cosine = Math.max(cosine, dot(centre, features) / length);
  });
  const [mean, deviation, far, farDeviation] = signal.usual;
  return Math.max((entropy - mean) / deviation, (1 - cosine - far) / farDeviation);
}

function dot(a, b) {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
}

/** Base64 of little-endian floats of 2 or 4 bytes -> rows of numbers. */
function readRows(text, bytes, width) {
  const raw = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const view = new DataView(raw.buffer);
  const read = bytes === 4 ? (at) => view.getFloat32(at, true) : (at) => toFloat(view.getUint16(at, true));
  const values = Array.from({ length: raw.length / bytes }, (_, i) => read(i * bytes));
  return Array.from({ length: values.length / width }, (_, i) => values.slice(i * width, (i + 1) * width));
}

/** The bits of an IEEE half -> its value; many browsers lack `DataView.getFloat16`. */
function toFloat(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}
