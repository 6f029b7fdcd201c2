// The page that classifies images. `main.js` provides the classifier: in a service it sends the
// images to the server, and in a browser bundle it runs the model. File names, class names and
// messages are inserted as text, never as markup.

import { startCamera } from "./camera.js";

const MAX_CARDS = 200;

const find = (id) => document.getElementById(id);
const percent = (share) => `${(100 * share).toFixed(1)} %`;
const count = (n, one, many) => `${n} ${n === 1 ? one : many}`;

// otherwise a browser opens a file that is dropped on the page
for (const name of ["dragover", "drop"]) {
  document.addEventListener(name, (event) => event.preventDefault());
}

/**
 * Show the current model.
 *
 * @param {object} model
 * @param {string} model.about one line under the title
 * @param {string[]} model.classes
 * @param {string[]} model.domains
 * @param {string} model.note the model's version and backend
 */
export function showModel({ about, classes, domains, note }) {
  showProgress(about);
  find("counts").textContent =
    `${count(classes.length, "class", "classes")}, ${count(domains.length, "domain", "domains")}`;
  find("classes").textContent = classes.join(", ");
  find("domains").textContent = domains.join(", ");
  find("names").hidden = false;
  find("note").textContent = note;
}

/** Show a message while the page is not ready yet. */
export function showProgress(text) {
  find("about").textContent = text;
  find("about").classList.remove("bad");
}

/** Show the reason why the page cannot classify. */
export function showFailure(text) {
  find("about").textContent = text;
  find("about").classList.add("bad");
}

/**
 * Enable the page's controls; called once.
 *
 * @param {object} options
 * @param {number} options.parallel number of images that are classified at the same time
 * @param {(image: File) => Promise<object>} options.classify resolves with the fields of a row of
 *   `fedapt-runtime classify`: label, score, top_k, routed_to, domain_weights, unknown_score,
 *   unknown, error. It throws an Error if there is no prediction; the image's card shows its
 *   message.
 */
export function startPage({ parallel, classify }) {
  const queue = [];
  let running = 0, done = 0, failed = 0, batch = 0, started = 0;

  for (const id of ["files", "photo"]) {
    const input = find(id);
    input.disabled = false;
    input.addEventListener("change", () => {
      add(input.files);
      input.value = ""; // so that the same file can be chosen again
    });
  }
  startCamera((photo) => add([photo]), say);
  listenForDrops(add);
  find("clear").addEventListener("click", clear);

  function add(files) {
    // a file whose type the browser does not know may be an image
    const images = [...files].filter(({ type }) => type === "" || type.startsWith("image/"));
    if (!images.length) {
      say("No image found.");
      return;
    }
    if (running === 0) [batch, started] = [0, performance.now()];
    queue.push(...images);
    while (running < parallel && queue.length) work();
    show();
  }

  async function work() {
    running += 1;
    while (queue.length) {
      const file = queue.shift();
      const card = addCard(file);
      let found;
      try {
        found = await classify(file);
      } catch (error) {
        found = { error: error.message };
      }
      fillCard(card, found);
      done += 1;
      batch += 1;
      if (found.error) failed += 1;
      show();
    }
    running -= 1;
    show();
  }

  function show() {
    const parts = [count(done, "image", "images")];
    if (failed) parts.push(`${failed} failed`);
    if (queue.length + running) parts.push(`${queue.length + running} waiting`);
    const seconds = (performance.now() - started) / 1000;
    if (batch) parts.push(`${(batch / seconds).toPrecision(3)} images/s`);
    say(parts.join(", "));
    find("clear").hidden = done === 0;
  }

  function clear() {
    queue.length = 0;
    for (const card of document.querySelectorAll(".card:not(.waiting)")) card.remove();
    [done, failed, batch, started] = [0, 0, 0, performance.now()];
    say("");
    find("clear").hidden = true;
    find("files").focus();
  }
}

function say(text) {
  find("status").textContent = text;
}

function listenForDrops(add) {
  const drop = find("drop");
  document.addEventListener("dragover", () => drop.classList.add("over"));
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) drop.classList.remove("over");
  });
  document.addEventListener("drop", (event) => {
    drop.classList.remove("over");
    add(event.dataTransfer.files);
  });
  document.addEventListener("paste", (event) => {
    if (event.clipboardData.files.length) add(event.clipboardData.files); // ignores pasted text
  });
}

/** Show the card of an image; remove the oldest card if there are more than MAX_CARDS. */
function addCard(file) {
  const card = find("card").content.firstElementChild.cloneNode(true);
  const image = card.querySelector("img");
  const free = () => URL.revokeObjectURL(image.src);
  image.addEventListener("load", free);
  image.addEventListener("error", () => {
    free();
    image.remove();
  });
  image.src = URL.createObjectURL(file);
  setText(card.querySelector(".name"), file.name);
  find("results").prepend(card);
  for (const old of [...find("results").children].slice(MAX_CARDS)) old.remove();
  return card;
}

function fillCard(card, found) {
  card.classList.remove("waiting");
  const label = card.querySelector(".label");
  if (found.error) {
    card.classList.add("failed");
    label.textContent = found.error;
    return;
  }
  label.textContent = found.label;
  card.querySelector("img")?.setAttribute("alt", `Classified as ${found.label}`);
  if (found.unknown) {
    const unknown = card.querySelector(".unknown");
    unknown.hidden = false;
    unknown.textContent = `Unlike the known domains (${found.unknown_score.toFixed(1)})`;
    unknown.title = "Distance from the known domains, in standard deviations above their mean";
  }
  for (const [name, score] of found.top_k) addBar(card.querySelector(".bars"), name, score);
  const routed = card.querySelector(".routed");
  routed.hidden = Object.keys(found.domain_weights).length < 2;
  routed.textContent = `routed to ${found.routed_to}, ${percent(found.domain_weights[found.routed_to])}`;
}

function addBar(list, name, score) {
  const bar = find("class").content.firstElementChild.cloneNode(true);
  setText(bar.querySelector(".class"), name);
  bar.querySelector(".share").textContent = percent(score);
  bar.querySelector(".fill").style.width = `${100 * score}%`;
  list.append(bar);
}

/** Set a text that may be cut off; its tooltip shows all of it. */
function setText(node, text) {
  node.textContent = text;
  node.title = text;
}
