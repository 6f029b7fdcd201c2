// The page where people classify images. Who classifies them is not known here: `main.js` of a
// service sends them to it, `main.js` of a browser bundle runs the model itself.

const MAX_CARDS = 200; // older ones leave the page, and their images the memory

const find = (id) => document.getElementById(id);
const percent = (share) => `${(100 * share).toFixed(1)} %`;

/**
 * Let people classify images.
 *
 * @param {object} model
 * @param {string} model.about one line under the title
 * @param {string[]} model.classes
 * @param {string[]} model.domains
 * @param {string} model.note where the images are classified, and by what
 * @param {number} model.parallel how many images are classified at once
 * @param {(image: Blob, name: string) => Promise<object>} model.classify gives a prediction as
 *   `fedapt-runtime classify` writes it: label, score, top_k, routed_to, domain_weights, unknown,
 *   error. A failure that concerns the image alone is in `error`.
 */
export function startPage({ about, classes, domains, note, parallel, classify }) {
  const queue = [];
  let running = 0, done = 0, failed = 0, batch = 0, started = 0;

  find("about").textContent = about;
  find("classes").textContent = classes.join(", ");
  find("domains").textContent = domains.join(", ");
  find("note").textContent = note;
  find("names").hidden = false;
  for (const id of ["files", "photo"]) {
    const input = find(id);
    input.disabled = false;
    input.addEventListener("change", () => {
      add(input.files);
      input.value = ""; // the same file may be chosen again
    });
  }
  listenForDrops(add);
  find("clear").addEventListener("click", clear);

  function add(files) {
    for (const file of files) queue.push({ file, card: addCard(file) });
    if (queue.length && running === 0) [batch, started] = [0, performance.now()];
    while (running < parallel && queue.length) work();
    show();
  }

  async function work() {
    running += 1;
    while (queue.length) {
      const { file, card } = queue.shift();
      let found;
      try {
        found = await classify(file, file.name);
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
    const parts = [];
    if (done || queue.length) parts.push(done === 1 ? "1 image" : `${done} images`);
    if (failed) parts.push(`${failed} failed`);
    if (queue.length + running) parts.push(`${queue.length + running} waiting`);
    const seconds = (performance.now() - started) / 1000;
    if (batch) parts.push(`${(batch / seconds).toPrecision(3)} images/s`);
    find("status").textContent = parts.join(", ");
    find("clear").hidden = done === 0;
  }

  function clear() {
    for (const card of [...find("results").children]) {
      if (!card.classList.contains("waiting")) removeCard(card);
    }
    [done, failed, batch] = [0, 0, 0];
    find("status").textContent = "";
    find("clear").hidden = true;
    find("files").focus();
  }
}

/** Say why the page cannot classify at all. */
export function showFailure(text) {
  find("about").textContent = text;
  find("about").classList.add("bad");
}

/** Say what the page is doing before it can classify. */
export function showProgress(text) {
  find("about").textContent = text;
}

function listenForDrops(add) {
  const drop = find("drop");
  const images = (data) => [...(data?.files ?? [])].filter((file) => file.type.startsWith("image/"));
  document.addEventListener("dragover", (event) => {
    event.preventDefault(); // else the browser opens what is dropped beside the box
    drop.classList.add("over");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) drop.classList.remove("over");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    add(images(event.dataTransfer));
  });
  document.addEventListener("paste", (event) => add(images(event.clipboardData)));
}

function addCard(file) {
  const card = find("card").content.firstElementChild.cloneNode(true);
  card.classList.add("waiting");
  card.querySelector("img").src = URL.createObjectURL(file);
  card.querySelector(".name").textContent = file.name;
  card.querySelector(".name").title = file.name;
  const results = find("results");
  results.prepend(card);
  for (const old of [...results.children].slice(MAX_CARDS)) {
    if (!old.classList.contains("waiting")) removeCard(old);
  }
  return card;
}

function removeCard(card) {
  URL.revokeObjectURL(card.querySelector("img").src);
  card.remove();
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
  card.querySelector(".unknown").hidden = !found.unknown;
  for (const [name, score] of found.top_k) addBar(card.querySelector(".bars"), name, score);
  const routed = card.querySelector(".routed");
  routed.hidden = Object.keys(found.domain_weights).length < 2;
  routed.textContent = `routed to ${found.routed_to}, ${percent(found.domain_weights[found.routed_to])}`;
}

function addBar(list, name, score) {
  const bar = find("class").content.firstElementChild.cloneNode(true);
  bar.querySelector(".class").textContent = name;
  bar.querySelector(".class").title = name;
  bar.querySelector(".share").textContent = percent(score);
  bar.querySelector(".fill").style.width = `${100 * score}%`;
  list.append(bar);
}
