// Caches the bundle for use offline, and adds the headers that browsers require for threads.
// The export inserts the version and the names of the small files, which are cached at once. Other
// files are cached when they are first read.

const PREFIX = `fedapt ${self.registration.scope} `; // an origin may hold several bundles
const VERSION = `${PREFIX}@VERSION@`;
const FILES = "@FILES@".split(" ");
const HEADERS = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
};

self.addEventListener("install", (event) => {
  event.waitUntil(keepFiles().then(() => self.skipWaiting()));
});

self.addEventListener("activate", (event) => {
  event.waitUntil(removeOldVersions().then(() => self.clients.claim()));
});

self.addEventListener("fetch", (event) => {
  const url = new URL(event.request.url);
  const mine = url.href.startsWith(self.registration.scope);
  if (event.request.method === "GET" && mine) event.respondWith(answer(event.request, url));
});

async function keepFiles() {
  const cache = await caches.open(VERSION);
  await cache.addAll(FILES.map((file) => new Request(file, { cache: "no-cache" })));
}

async function removeOldVersions() {
  for (const name of await caches.keys()) {
    if (name !== VERSION && name.startsWith(PREFIX)) await caches.delete(name);
  }
}

async function answer(request, url) {
  url.search = "";
  if (url.href === self.registration.scope) url.pathname += "index.html";
  const cache = await caches.open(VERSION);
  let found = await cache.match(url.href);
  if (!found) {
    found = await fetch(new Request(url.href, { cache: "no-cache" }));
    if (found.ok) await cache.put(url.href, found.clone());
  }
  const headers = new Headers(found.headers);
  for (const [name, value] of Object.entries(HEADERS)) headers.set(name, value);
  return new Response(found.body, { status: found.status, statusText: found.statusText, headers });
}
