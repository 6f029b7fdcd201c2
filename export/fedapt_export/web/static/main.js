// The page of a browser bundle: the model runs on the visitor's own device.

import { showFailure, showModel, showProgress, startPage } from "./page.js";

const RELOADED = "fedapt-reloaded";

async function main() {
  const kept = await keepOffline();
  const bundle = await (await fetch("bundle.json")).json();
  const megabytes = (bundle.model.bytes / 1e6).toFixed(1);
  showProgress(`Loading the model (${megabytes} MB).`);
  const call = startWorker();
  const asked = new URLSearchParams(location.search).get("device");
  const { device } = await call({ load: { bundle, webgpu: bundle.webgpu && asked === "webgpu" } });
  const { classes, domains, precision } = bundle.manifest;
  showModel({
    about: "The images stay on this device: the model runs in the browser.",
    classes,
    domains,
    note: `Model of ${megabytes} MB in ${precision}, on ${device}. ${kept}`,
  });
  // one image is read while another is classified
  startPage({ parallel: 2, classify: (image) => call({ image }) });
}

/** A function that sends a message to the worker and resolves with its answer. */
function startWorker() {
  const worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
  const open = new Map();
  let next = 0;
  worker.addEventListener("message", ({ data: { id, answer, error } }) => {
    const { resolve, reject } = open.get(id);
    open.delete(id);
    if (error === undefined) resolve(answer);
    else reject(new Error(error));
  });
  worker.addEventListener("error", (event) => {
    for (const { reject } of open.values()) reject(new Error(event.message || "the worker cannot start"));
    open.clear();
  });
  return (message) =>
    new Promise((resolve, reject) => {
      open.set(next, { resolve, reject });
      worker.postMessage({ id: next++, ...message });
    });
}

/**
 * Register the service worker, which caches the files for use without a network and adds the headers
 * that threads need. The page is reloaded once if the headers were missing.
 */
async function keepOffline() {
  if (!navigator.serviceWorker) return "The browser does not allow use offline at this address.";
  try {
    const registration = await navigator.serviceWorker.register("sw.js");
    if (!navigator.serviceWorker.controller && !registration.active) {
      await new Promise((resolve) => {
        navigator.serviceWorker.addEventListener("controllerchange", resolve, { once: true });
      });
    }
  } catch (error) {
    return `The page does not work offline (${error.message}).`;
  }
  if (!self.crossOriginIsolated && !sessionStorage.getItem(RELOADED)) {
    sessionStorage.setItem(RELOADED, "yes");
    location.reload();
    await new Promise(() => {}); // stops this page until the reload
  }
  return "The page now works offline.";
}

main().catch((error) => showFailure(`The model cannot be loaded: ${error.message}`));
