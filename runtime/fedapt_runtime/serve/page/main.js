// The page of a service: the server classifies the images.

import { showFailure, showModel, showProgress, startPage } from "./page.js";

const PARALLEL = 4; // a folder of photos must not fill the server's queue

// session storage: closing the tab removes the token
const token = () => sessionStorage.getItem("token");

const access = makeElement("form", { id: "access", hidden: true });
const tokenInput = makeElement("input", {
  id: "token", type: "password", autocomplete: "off", required: true, ariaLabel: "Token",
});
access.append(tokenInput, makeElement("button", { className: "main", textContent: "Use the token" }));
access.addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", tokenInput.value.trim());
  loadModels();
});

const choice = makeElement("label", { id: "choice", textContent: "Model ", hidden: true });
const select = makeElement("select", { id: "model" });
select.addEventListener("change", showChosen);
choice.append(select);

document.getElementById("about").after(access, choice);

let models = [];
let started = false;
loadModels();

async function loadModels() {
  let answer, found;
  try {
    answer = await ask("v1/models");
    found = await answer.json();
  } catch {
    showFailure("The server does not answer.");
    return;
  }
  access.hidden = answer.status !== 401;
  if (!answer.ok) {
    if (answer.status !== 401) showFailure(found.error);
    else if (token()) showFailure("This token is not valid.");
    else showProgress("This server requires a token.");
    tokenInput.focus();
    return;
  }
  models = found.models;
  select.replaceChildren(...models.map(({ name }) => new Option(name)));
  choice.hidden = models.length < 2;
  showChosen();
  if (!started) startPage({ parallel: PARALLEL, classify });
  started = true;
}

function showChosen() {
  const { name, version, classes, domains, precision, backend } = models[select.selectedIndex];
  showModel({
    about: "The images are sent to this server, which does not keep them.",
    classes,
    domains,
    note: `Model ${name}, version ${version}, in ${precision}. ${backend}.`,
  });
  // a link carries no token
  if (!token()) document.getElementById("note").append(" ", makeElement("a", { href: "docs", textContent: "API of this server" }));
}

async function classify(file) {
  const { name, flags_unknown: flagsUnknown } = models[select.selectedIndex];
  const form = new FormData();
  form.append("image", file, file.name);
  form.append("model", name);
  form.append("flag_unknown", flagsUnknown);
  let answer, found;
  try {
    answer = await ask("v1/classify", { method: "POST", body: form });
    found = await answer.json();
  } catch {
    throw new Error("The server does not answer, or the file cannot be read.");
  }
  if (answer.status === 401) loadModels();
  if (!found.predictions) throw new Error(found.error);
  return found.predictions[0];
}

function ask(path, options = {}) {
  const headers = token() ? { Authorization: `Bearer ${token()}` } : {};
  return fetch(path, { ...options, headers });
}

function makeElement(tag, properties) {
  return Object.assign(document.createElement(tag), properties);
}
