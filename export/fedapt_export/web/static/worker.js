// Decodes and classifies in a worker, so the page stays usable meanwhile.

import { decode } from "./decode.js";
import { predict } from "./predict.js";

const MAX_THREADS = 4; // more threads are not faster for one image
let model;

self.addEventListener("message", async ({ data: { id, load, image } }) => {
  try {
    if (load) model = await open(load);
    const answer = load ? { device: model.device } : await classify(image);
    self.postMessage({ id, answer });
  } catch (error) {
    self.postMessage({ id, error: error.message ?? String(error) });
  }
});

async function classify(image) {
  const { manifest, session, ort, outputs } = model;
  let pixels;
  try {
    pixels = await decode(image, manifest.preprocessing);
  } catch (error) {
    return { error: error.message };
  }
  const images = new ort.Tensor("uint8", pixels, [1, ...manifest.preprocessing.size, 3]);
  const results = await session.run({ images }, outputs);
  return predict(Object.fromEntries(outputs.map((name) => [name, results[name].data])), manifest);
}

async function open({ bundle, webgpu }) {
  const bytes = await fetchModel(bundle.model);
  const usesGpu = webgpu && (await hasGpu());
  const ort = await import(usesGpu ? "./ort/ort.webgpu.min.mjs" : "./ort/ort.wasm.min.mjs");
  const threads = self.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency, MAX_THREADS) : 1;
  ort.env.wasm.numThreads = threads;
  ort.env.wasm.wasmPaths = new URL("ort/", import.meta.url).href;
  const executionProviders = usesGpu ? ["webgpu", "wasm"] : ["wasm"];
  const session = await ort.InferenceSession.create(bytes, { executionProviders, logSeverityLevel: 3 });
  const { manifest } = bundle;
  const outputs = ["logits", "domain_weights", ...(manifest.unknown ? ["features"] : [])];
  const device = usesGpu ? "WebGPU" : `WebAssembly, ${threads === 1 ? "one thread" : `${threads} threads`}`;
  return { ort, session, manifest, outputs, device };
}

async function fetchModel({ file, bytes, sha256 }) {
  const response = await fetch(file);
  if (!response.ok) throw new Error(`${file}: the server answered ${response.status}`);
  const content = new Uint8Array(await response.arrayBuffer());
  // browsers have `subtle` on secure pages only
  const digest = crypto.subtle && new Uint8Array(await crypto.subtle.digest("SHA-256", content));
  const found = digest && Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
  if (content.length !== bytes || (found && found !== sha256)) {
    throw new Error(`${file} is not the file that this page was made for; reload the page`);
  }
  return content;
}

async function hasGpu() {
  try {
    return Boolean(await navigator.gpu?.requestAdapter());
  } catch {
    return false;
  }
}
