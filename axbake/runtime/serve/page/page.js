"use strict";
// The page of serve.py: it asks the server's /api, and keeps what was drawn in this browser's IndexedDB.

const $ = (id) => document.getElementById(id);
const POLL = 250; // ms, while something is drawn
const STATE_POLL = 3000; // ms
const MOST_SIDE = 2048; // pixels of a picture that is sent
const MOST_HISTORY = 300; // pictures
const JOB = "axbake.job", TOKEN = "axbake.token", FORM = "axbake.form";
const FIELDS = ["model", "prompt", "negative", "seed", "steps", "guidance", "count", "strength", "resize", "fill"];
let models = [], job = null, painted = false, erasing = false, urls = [];

// --- The server -------------------------------------------------------------------------------------------------------------

async function ask(path, how = {}) {
  const token = localStorage.getItem(TOKEN);
  const headers = { ...(how.headers || {}), ...(token ? { Authorization: `Bearer ${token}` } : {}) };
  const answer = await fetch(path, { ...how, headers });
  if (answer.status === 401) {
    await login();
    return ask(path, how);
  }
  const content = await answer.json();
  if (!answer.ok) throw Object.assign(new Error(content.detail || answer.statusText), { status: answer.status });
  return content;
}

let loggingIn = null;
function login() {
  loggingIn ||= new Promise((resolve) => {
    $("login").showModal();
    $("login").addEventListener("close", () => {
      localStorage.setItem(TOKEN, $("token").value.trim());
      loggingIn = null;
      resolve();
    }, { once: true });
  });
  return loggingIn;
}

const post = (path, content) => ask(path, {
  method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(content ?? {}),
});

async function showState() {
  let state;
  try {
    state = await ask("/api/state");
  } catch (error) {
    $("cards").textContent = "The server does not answer; trying again …";
    return;
  }
  $("ribbon").hidden = !state.emulated;
  if (JSON.stringify(models) !== JSON.stringify(state.models)) setModels(state.models);
  const cards = state.cards.map((card) => {
    const holds = card.loaded.length ? `holds ${card.loaded.join(", ")}` : "holds nothing";
    const doing = card.bundle ? `${card.what} ${card.bundle}` : card.what;
    const what = card.provider === "CPUExecutionProvider" ? "This host" : `Card ${card.number}`;
    return `${what}${card.provider ? ` (${card.provider})` : ""}: ${doing}, ${holds}${card.told ? `; ${card.told}` : ""}.`;
  });
  $("cards").textContent = `${cards.join(" ")} ${state.waiting} of ${state.most_waiting} places in the queue are taken.`;
}

// --- The form ---------------------------------------------------------------------------------------------------------------

function setModels(found) {
  const first = models.length === 0;
  models = found;
  const chosen = $("model").value;
  $("model").replaceChildren(...models.map((model) => new Option(`${model.name}, ${model.width} × ${model.height}`, model.name)));
  if (models.some((model) => model.name === chosen)) $("model").value = chosen;
  const kept = first ? JSON.parse(sessionStorage.getItem(FORM) || "null") : null;
  if (kept && models.some((model) => model.name === kept.model)) $("model").value = kept.model;
  setModel(first);
  if (kept) fillForm(kept);
}

const model = () => models.find((one) => one.name === $("model").value) || models[0];

function setModel(withPrompt) {
  const now = model();
  $("model-facts").textContent = `${now.title ? `${now.title}; ` : ""}${now.sampler}${now.emulated ? "; EMULATED" : ""}`;
  $("steps").replaceChildren(...now.steps.map((steps) => new Option(steps, steps)));
  $("steps").value = now.own_steps;
  $("guidance").value = now.guidance_scale;
  $("guidance").disabled = now.guidance_fixed;
  if (withPrompt) {
    $("prompt").value = now.prompt;
    $("negative").value = now.negative_prompt;
  }
}

function fillForm(values) {
  for (const name of FIELDS) if (values[name] !== undefined && name !== "model") $(name).value = values[name];
  if (!$("steps").value) $("steps").value = model().own_steps;
  $("strength-shown").value = $("strength").value;
}

const formValues = () => Object.fromEntries(FIELDS.map((name) => [name, $(name).value]));

function problem(text) {
  $("problem").textContent = text;
  $("problem").hidden = !text;
}

async function draw(event) {
  event.preventDefault();
  if (job) return;
  problem("");
  const values = formValues();
  sessionStorage.setItem(FORM, JSON.stringify(values));
  const order = {
    model: values.model, prompt: values.prompt, negative_prompt: values.negative, steps: Number(values.steps),
    guidance_scale: Number(values.guidance), count: Number(values.count),
    seed: values.seed || -1, // text, since JavaScript's numbers have 53 bits
  };
  if (!$("painting").hidden) {
    order.image = $("picture").toDataURL("image/png");
    order.resize_mode = values.resize;
    order.strength = Number(values.strength);
    if (painted) {
      [order.mask, order.fill] = [$("mask").toDataURL("image/png"), values.fill];
      order.blur = Math.floor(Math.min($("mask").width, $("mask").height) / 128); // 4 pixels of 512, as in web UIs
    }
  }
  busy(true);
  $("told").textContent = "Sending …";
  try {
    const told = await post("/api/draw", order);
    sessionStorage.setItem(JOB, told.id);
    showState();
    await follow(told);
  } catch (error) {
    $("told").textContent = "";
    problem(error.message);
    busy(false);
  }
}

function busy(yes) {
  $("draw").disabled = yes;
  $("stop").disabled = !yes;
  $("bar").hidden = !yes;
}

// --- A drawing on its way ---------------------------------------------------------------------------------------------------

async function follow(told) {
  job = told.id;
  let seen = 0, lost = 0; // pictures; requests without an answer
  busy(true);
  for (;;) {
    if (!told.over && !lost) show(told);
    for (; seen < told.pictures.length; seen += 1) await keep(told, told.pictures[seen]);
    if (told.over) break;
    await new Promise((resolve) => setTimeout(resolve, POLL));
    try {
      told = await ask(`/api/jobs/${job}`);
      lost = 0;
    } catch (error) {
      lost += 1;
      if (error.status === 404) {
        problem(error.message);
        break;
      }
      $("told").textContent = "The server does not answer; trying again …";
      if (lost > 240) {
        problem("The server did not answer for a minute.");
        break;
      }
    }
  }
  sessionStorage.removeItem(JOB);
  job = null;
  show(told);
  busy(false);
  if (told.state === "failed") problem(told.error);
  showState();
}

function show(told) {
  $("bar").value = told.progress;
  const which = told.count > 1 ? `picture ${told.number + 1} of ${told.count}, ` : "";
  $("told").textContent = {
    waiting: told.ahead ? `Waiting: ${told.ahead} before this one` : "Waiting: the next one",
    loading: "Loading the models …",
    drawing: `Drawing: ${which}step ${told.step} of ${told.steps}`,
    interrupted: "Interrupted.",
    failed: "Failed.",
    done: "Done.",
  }[told.state];
  if (told.preview) showPicture(`data:image/png;base64,${told.preview}`, { preview: true, emulated: told.emulated });
}

function showPicture(source, { preview = false, emulated = false, alt = "" } = {}) {
  $("empty").hidden = true;
  $("shown").hidden = false;
  $("shown").src = source;
  $("shown").alt = preview ? "Preview of the picture that is being drawn" : alt;
  $("shown").classList.toggle("preview", preview);
  $("stage-mark").hidden = !emulated;
  if (preview) $("parameters").hidden = true;
}

async function keep(told, picture) {
  const answer = await fetch(picture.url);
  if (!answer.ok) {
    problem(`The picture of seed ${picture.seed} is not on the server any more.`);
    return;
  }
  const form = JSON.parse(sessionStorage.getItem(FORM) || "{}");
  const entry = {
    key: picture.url, blob: await answer.blob(), parameters: picture.parameters, seconds: picture.seconds, time: Date.now(),
    emulated: told.emulated, warnings: picture.warnings, form: { ...form, seed: String(picture.seed), count: "1" },
  };
  await store(entry);
  showEntry(entry);
  await showHistory();
}

function showEntry(entry) {
  showPicture(address(entry.blob), { emulated: entry.emulated, alt: entry.parameters.split("\n")[0] });
  const warnings = entry.warnings.map((warning) => `\nPrompt: ${warning}`).join("");
  $("parameters").textContent = `${entry.parameters}\nDrawn in ${entry.seconds.toFixed(2)} s${warnings}`;
  $("parameters").hidden = false;
}

async function interrupt() {
  if (!job) return;
  try {
    await post(`/api/jobs/${job}/interrupt`);
  } catch (error) {
    problem(error.message);
  }
}

async function resume() {
  const id = sessionStorage.getItem(JOB);
  if (!id) return;
  try {
    await follow(await ask(`/api/jobs/${encodeURIComponent(id)}`));
  } catch (error) {
    sessionStorage.removeItem(JOB);
    problem(error.message);
    busy(false);
  }
}

// --- History ----------------------------------------------------------------------------------------------------------------

const database = new Promise((resolve, reject) => {
  const opening = indexedDB.open("axbake", 1);
  opening.onupgradeneeded = () => opening.result.createObjectStore("pictures", { keyPath: "key" }).createIndex("time", "time");
  opening.onsuccess = () => resolve(opening.result);
  opening.onerror = () => reject(opening.error);
});

async function pictures(mode, work) {
  const transaction = (await database).transaction("pictures", mode);
  const request = work(transaction.objectStore("pictures"));
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve(request.result);
    transaction.onerror = () => reject(transaction.error);
  });
}

const entries = () => pictures("readonly", (all) => all.index("time").getAll());

async function store(entry) {
  await pictures("readwrite", (all) => all.put(entry));
  const all = await entries();
  for (const old of all.slice(0, Math.max(0, all.length - MOST_HISTORY))) await pictures("readwrite", (one) => one.delete(old.key));
}

function address(blob) {
  const url = URL.createObjectURL(blob);
  urls.push(url);
  return url;
}

async function showHistory() {
  const all = (await entries()).reverse();
  const old = urls;
  urls = old.filter((url) => $("shown").src === url);
  $("history").replaceChildren(...all.map(card));
  old.filter((url) => !urls.includes(url)).forEach((url) => URL.revokeObjectURL(url));
}

function card(entry) {
  const box = document.createElement("div"), open = document.createElement("button"), image = document.createElement("img");
  const frame = document.createElement("div"), text = document.createElement("p"), row = document.createElement("div");
  box.className = "card";
  frame.className = "frame";
  [open.type, open.className, open.title] = ["button", "open", "Show it, and take its values"];
  [image.src, image.alt, image.loading] = [address(entry.blob), entry.parameters.split("\n")[0] || "without a prompt", "lazy"];
  open.append(image);
  frame.append(open);
  if (entry.emulated) frame.append(Object.assign(document.createElement("span"), { className: "emulated", textContent: "EMULATED" }));
  open.addEventListener("click", () => {
    showEntry(entry);
    if (models.some((one) => one.name === entry.form.model)) {
      $("model").value = entry.form.model;
      setModel(false);
    }
    fillForm(entry.form);
    $("stage").scrollIntoView({ block: "nearest" });
  });
  text.textContent = entry.parameters;
  text.title = entry.parameters;
  row.className = "buttons";
  const save = document.createElement("a"), over = document.createElement("button"), remove = document.createElement("button");
  [save.href, save.download, save.textContent] = [image.src, `${entry.form.model || "axbake"}-${entry.form.seed}.png`, "Save"];
  [over.type, over.className, over.textContent] = ["button", "plain", "Draw over"];
  over.addEventListener("click", () => usePicture(entry.blob));
  [remove.type, remove.className, remove.textContent] = ["button", "plain", "Delete"];
  remove.addEventListener("click", async () => {
    await pictures("readwrite", (all) => all.delete(entry.key));
    await showHistory();
  });
  row.append(save, over, remove);
  box.append(frame, text, row);
  return box;
}

// --- The picture to draw over, and its mask ---------------------------------------------------------------------------------

async function usePicture(blob) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob);
  } catch (error) {
    problem("The browser cannot read this picture. Give a PNG, a JPEG or a WebP.");
    return;
  }
  const scale = Math.min(1, MOST_SIDE / Math.max(bitmap.width, bitmap.height));
  for (const canvas of [$("picture"), $("mask")]) {
    canvas.width = Math.round(bitmap.width * scale);
    canvas.height = Math.round(bitmap.height * scale);
  }
  $("picture").getContext("2d").drawImage(bitmap, 0, 0, $("picture").width, $("picture").height);
  clearMask();
  $("painting").hidden = false;
  $("over").open = true;
}

function clearMask() {
  $("mask").getContext("2d").clearRect(0, 0, $("mask").width, $("mask").height);
  painted = false;
}

let last = null;
function paint(event) {
  const canvas = $("mask"), box = canvas.getBoundingClientRect(), context = canvas.getContext("2d");
  const scale = canvas.width / box.width;
  const at = [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
  context.globalCompositeOperation = erasing ? "destination-out" : "source-over";
  [context.strokeStyle, context.lineCap, context.lineJoin] = ["#fff", "round", "round"];
  context.lineWidth = Number($("brush").value) * scale;
  context.beginPath();
  context.moveTo(...(last || at));
  context.lineTo(...at);
  context.stroke();
  last = at;
  painted ||= !erasing;
}

// --- What starts it all -----------------------------------------------------------------------------------------------------

$("form").addEventListener("submit", draw);
$("stop").addEventListener("click", interrupt);
$("model").addEventListener("change", () => setModel(false));
$("strength").addEventListener("input", () => { $("strength-shown").value = $("strength").value; });
$("file").addEventListener("change", () => { if ($("file").files[0]) usePicture($("file").files[0]); });
$("clear").addEventListener("click", clearMask);
$("remove").addEventListener("click", () => {
  $("painting").hidden = true;
  $("file").value = "";
});
$("erase").addEventListener("click", () => {
  erasing = !erasing;
  $("erase").setAttribute("aria-pressed", String(erasing));
});
$("mask").addEventListener("pointerdown", (event) => {
  event.preventDefault();
  $("mask").setPointerCapture(event.pointerId);
  paint(event);
});
$("mask").addEventListener("pointermove", (event) => { if (last) paint(event); });
for (const end of ["pointerup", "pointercancel"]) $("mask").addEventListener(end, () => { last = null; });
$("forget").addEventListener("click", async () => {
  if (!confirm("Delete all pictures of the history from this browser?")) return;
  await pictures("readwrite", (all) => all.clear());
  await showHistory();
});

(async () => {
  await showHistory();
  await showState();
  setInterval(showState, STATE_POLL);
  await resume();
})();
