// Classifies images that are dropped, pasted, chosen or photographed. Names and labels reach the page as
// text alone, never as markup.
"use strict";

const find = (id) => document.getElementById(id);
const percent = (share) => `${(100 * share).toFixed(1)} %`;
let models = [];

// session storage: a token is gone with the tab
const token = () => sessionStorage.getItem("token");

function ask(path, options = {}) {
  const headers = token() ? { Authorization: `Bearer ${token()}` } : {};
  return fetch(path, { ...options, headers });
}

async function loadModels() {
  let answer;
  try {
    answer = await ask("/v1/models");
  } catch {
    say("The server does not answer.");
    return;
  }
  find("access").hidden = answer.status !== 401;
  if (answer.status === 401) {
    find("about").textContent = token() ? "The server does not know this token." : "";
    find("token").focus();
    return;
  }
  models = (await answer.json()).models;
  find("model").replaceChildren(...models.map((model) => new Option(model.name)));
  find("model-choice").hidden = models.length < 2;
  describeModel();
}

function describeModel() {
  const model = models.find((known) => known.name === find("model").value);
  if (model === undefined) {
    find("about").textContent = "No model is served.";
    return;
  }
  const { classes, domains } = model;
  const count = (n, one, many) => `${n} ${n === 1 ? one : many}`;
  find("about").textContent =
    `${model.name}: ${count(classes.length, "class", "classes")}, ` +
    `${count(domains.length, "domain", "domains")} (${domains.slice(0, 8).join(", ")}${domains.length > 8 ? ", …" : ""})`;
}

const say = (text) => (find("status").textContent = text);

function addResult(file) {
  const item = find("result").content.firstElementChild.cloneNode(true);
  const image = item.querySelector("img");
  image.src = URL.createObjectURL(file);
  image.addEventListener("load", () => URL.revokeObjectURL(image.src), { once: true });
  image.addEventListener("error", () => image.remove(), { once: true });
  item.querySelector(".name").textContent = file.name;
  find("results").prepend(item);
  find("clear").hidden = false;
  return item;
}

function fail(item, text) {
  item.classList.add("failed");
  item.querySelector(".label").textContent = text;
}

function show(item, prediction) {
  if (prediction.error !== null) {
    fail(item, prediction.error);
    return;
  }
  item.querySelector(".label").textContent = prediction.label;
  item.querySelector("img")?.setAttribute("alt", `Classified as ${prediction.label}`);
  item.querySelector(".scores").replaceChildren(...prediction.top_k.map(drawScore));
  const weights = prediction.domain_weights;
  item.querySelector(".routed").textContent =
    Object.keys(weights).length > 1
      ? `Routed to ${prediction.routed_to} with a weight of ${percent(weights[prediction.routed_to])}`
      : "";
  const unknown = item.querySelector(".unknown");
  unknown.hidden = prediction.unknown !== true;
  unknown.textContent =
    `Unlike every known domain (${(prediction.unknown_score ?? 0).toFixed(1)} standard deviations beyond the usual)`;
}

function drawScore([label, score]) {
  const line = document.createElement("li");
  const bar = document.createElement("progress");
  bar.value = score;
  bar.setAttribute("aria-hidden", "true");
  const [name, share] = [label, percent(score)].map((text) => {
    const span = document.createElement("span");
    span.textContent = text;
    return span;
  });
  line.append(bar, name, share);
  return line;
}

async function classify(file) {
  const item = addResult(file);
  const model = models.find((known) => known.name === find("model").value);
  const form = new FormData();
  form.append("image", file, file.name);
  if (model !== undefined) {
    form.append("model", model.name);
    form.append("flag_unknown", String(model.flags_unknown));
  }
  try {
    const answer = await ask("/v1/classify", { method: "POST", body: form });
    const said = await answer.json();
    if (said.predictions === undefined) {
      fail(item, said.error);
      if (answer.status === 401) await loadModels();
      return;
    }
    show(item, said.predictions[0]);
  } catch {
    fail(item, "The server does not answer.");
  }
}

// a few at a time: a folder of photos must not fill the server's queue
async function classifyAll(files) {
  const waiting = [...files].filter((file) => file.type.startsWith("image/") || file.type === "");
  if (waiting.length === 0) {
    say("There is no image in that.");
    return;
  }
  const total = waiting.length;
  let done = 0;
  say(`0 of ${total} done`);
  const work = async () => {
    for (let file = waiting.shift(); file !== undefined; file = waiting.shift()) {
      await classify(file);
      done += 1;
      say(`${done} of ${total} done`);
    }
  };
  await Promise.all([work(), work(), work(), work()]);
}

function takeFiles(input) {
  input.addEventListener("change", () => {
    classifyAll(input.files);
    input.value = ""; // the same file can be chosen again
  });
}

async function openCamera() {
  try {
    const stream = await navigator.mediaDevices.getUserMedia({
      video: { facingMode: "environment" },
    });
    find("video").srcObject = stream;
    find("live").hidden = false;
    find("camera").hidden = true;
    await find("video").play();
    find("shoot").focus();
  } catch (error) {
    say(`The camera cannot be used: ${error.message}`);
  }
}

function closeCamera() {
  find("video").srcObject?.getTracks().forEach((track) => track.stop());
  find("video").srcObject = null;
  find("live").hidden = true;
  find("camera").hidden = false;
  find("camera").focus();
}

function shoot() {
  const video = find("video");
  const canvas = document.createElement("canvas");
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  canvas.getContext("2d").drawImage(video, 0, 0);
  const name = `photo ${new Date().toLocaleTimeString()}.jpg`;
  canvas.toBlob((blob) => classifyAll([new File([blob], name, { type: blob.type })]), "image/jpeg", 0.95);
}

function watchDrops() {
  const drop = find("drop");
  addEventListener("dragover", (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
  addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) drop.classList.remove("over");
  });
  addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    classifyAll(event.dataTransfer.files);
  });
  addEventListener("paste", (event) => {
    if (event.clipboardData.files.length > 0) classifyAll(event.clipboardData.files);
  });
}

takeFiles(find("files"));
takeFiles(find("photo"));
watchDrops();
// browsers lend the camera to https and localhost alone
find("camera").hidden = navigator.mediaDevices?.getUserMedia === undefined;
find("camera").addEventListener("click", openCamera);
find("close").addEventListener("click", closeCamera);
find("shoot").addEventListener("click", shoot);
find("model").addEventListener("change", describeModel);
find("clear").addEventListener("click", () => {
  find("results").replaceChildren();
  find("clear").hidden = true;
  say("");
  find("files").focus();
});
find("access").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", find("token").value.trim());
  loadModels();
});
// "Take a photo" opens the camera of a phone; elsewhere it is a second way to choose a file
if (matchMedia("(pointer: coarse)").matches) {
  find("camera").remove();
} else {
  find("photo").remove();
  document.querySelector('label[for="photo"]').remove();
}
loadModels();
