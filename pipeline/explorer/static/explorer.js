// The page: what is chosen, in the address bar too, and what is asked when it changes.

import * as api from "./api.js";
import { combobox } from "./combobox.js";
import { List, extentOf, mark, nameOf, placesOf } from "./lists.js";

const BEAT_MS = 3000; // between two looks at the server while it answers
const RETRY_MS = 1000; // while it does not
const MAX_WEIGHT = 5;
const STEP = 0.05;

const byId = (id) => document.getElementById(id);
const wait = (ms) => new Promise((done) => setTimeout(done, ms));

// What is chosen.
const chosen = {
  mode: "user",
  user: null,
  history: [], // {id, title, level}, oldest first
  weights: null, // objective -> weight
  excluded: [], // {id, title}
  excludeSeen: true,
  count: 20,
  versions: [null], // of each list; null = the newest served one
};
let info = null; // of /api/state
let columns = []; // {list, answer, before, milliseconds}
const titles = new Map(); // of all items met so far

// --- the address bar ---------------------------------------------------------------------------

function readAddress() {
  const given = new URLSearchParams(location.search);
  const number = (text) => (/^\d+$/.test(text ?? "") ? Number(text) : null);
  chosen.user = given.get("user");
  chosen.history = given.getAll("history").map((text) => {
    const at = text.indexOf(":");
    return { id: text.slice(at + 1), title: "", level: number(text.slice(0, at)) ?? 0 };
  });
  chosen.mode = given.has("history") ? "history" : "user";
  chosen.excluded = given.getAll("exclude").map((id) => ({ id, title: "" }));
  chosen.excludeSeen = given.get("seen") !== "shown";
  const count = byId("count");
  count.value = given.get("count") ?? count.value;
  if (!count.value) count.value = "20";
  chosen.count = Number(count.value);
  chosen.versions = [number(given.get("version"))];
  if (given.has("compare")) chosen.versions.push(number(given.get("compare")));
  const weights = [...given].filter(([name]) => name.startsWith("w."));
  if (weights.length) {
    chosen.weights = Object.fromEntries(
      weights.map(([name, text]) => [name.slice(2), Number.isFinite(Number(text)) ? Number(text) : 1]),
    );
  }
}

let addressTimer;
function writeAddress() {
  clearTimeout(addressTimer);
  // Browsers refuse more than a few changes a second.
  addressTimer = setTimeout(() => {
    const fields = new URLSearchParams();
    if (chosen.mode === "user") fields.set("user", chosen.user ?? "");
    else for (const { id, level } of chosen.history) fields.append("history", `${level}:${id}`);
    for (const [name, weight] of Object.entries(chosen.weights ?? {})) fields.set(`w.${name}`, weight);
    for (const { id } of chosen.excluded) fields.append("exclude", id);
    if (!chosen.excludeSeen) fields.set("seen", "shown");
    if (chosen.count !== 20) fields.set("count", chosen.count);
    const [first, second] = chosen.versions;
    if (first !== null) fields.set("version", first);
    if (second !== undefined) fields.set("compare", second ?? "");
    history.replaceState(null, "", `?${fields}`);
  }, 300);
}

// --- versions and objectives -------------------------------------------------------------------

const numberOf = (version) => version ?? info.default;
const about = (version) => info.versions.find((entry) => entry.version === numberOf(version));

/** Objectives of all lists, in the order of the funnel of the first. */
function objectives() {
  const names = chosen.versions.flatMap((version) => about(version)?.objectives ?? []);
  for (const { answer } of columns) names.push(...(answer?.objectives ?? []));
  return [...new Set(names)];
}

const presets = () => about(chosen.versions[0])?.presets ?? {};

function chooseDefaults() {
  const names = objectives();
  if (chosen.weights === null) {
    const preset = presets()[names.at(-1)];
    chosen.weights = Object.fromEntries(names.map((name, at) => [name, preset?.[at] ?? 1]));
  }
  for (const name of names) chosen.weights[name] ??= 0;
}

// --- sliders -----------------------------------------------------------------------------------

let dragging = false;

function drawSliders() {
  const names = objectives();
  const box = byId("sliders");
  if (box.dataset.names === JSON.stringify(names)) return;
  box.dataset.names = JSON.stringify(names);
  const most = Math.max(
    MAX_WEIGHT,
    ...Object.values(presets()).flat(),
    ...names.map((name) => Math.ceil(chosen.weights[name])),
  );
  const least = Math.min(0, ...names.map((name) => Math.floor(chosen.weights[name])));
  box.replaceChildren(
    ...names.map((name, at) => {
      const { sign, style } = mark(at);
      const row = document.createElement("div");
      row.className = "slider";
      const label = document.createElement("label");
      label.htmlFor = `weight-${at}`;
      const signed = document.createElement("span");
      signed.className = `mark ${style}`;
      signed.setAttribute("aria-hidden", "true");
      signed.textContent = sign;
      label.append(signed, ` ${name}`);
      const input = document.createElement("input");
      Object.assign(input, { type: "range", id: `weight-${at}`, className: style, min: least, max: most, step: STEP });
      input.dataset.objective = name;
      const output = document.createElement("output");
      output.htmlFor = input.id;
      input.addEventListener("input", (event) => {
        if (!dragging) remember();
        dragging = true;
        chosen.weights[name] = Number(input.value);
        showWeights();
        changed(event.timeStamp);
      });
      input.addEventListener("change", () => (dragging = false));
      row.append(label, input, output);
      return row;
    }),
  );
  drawPresets();
  showWeights();
}

function drawPresets() {
  const names = about(chosen.versions[0])?.objectives ?? [];
  const choices = Object.entries(presets()).map(([name, weights]) => [`Best for ${name}`, weights]);
  choices.push(["All equal", names.map(() => 1)]);
  byId("presets").replaceChildren(
    ...choices.map(([label, weights]) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = label;
      button.title = names.map((name, at) => `${name} ${weights[at]}`).join(", ");
      button.dataset.weights = JSON.stringify(Object.fromEntries(names.map((name, at) => [name, weights[at]])));
      button.addEventListener("click", (event) => {
        remember();
        Object.assign(chosen.weights, JSON.parse(button.dataset.weights));
        showWeights();
        changed(event.timeStamp);
      });
      return button;
    }),
  );
}

function showWeights() {
  for (const input of byId("sliders").querySelectorAll("input")) {
    const weight = chosen.weights[input.dataset.objective];
    input.value = weight;
    input.nextElementSibling.value = weight.toFixed(2);
  }
  for (const button of byId("presets").children) {
    const preset = Object.entries(JSON.parse(button.dataset.weights));
    button.setAttribute("aria-pressed", preset.every(([name, weight]) => chosen.weights[name] === weight));
  }
}

// --- asking and drawing ------------------------------------------------------------------------

/** Movements are told against what the lists show now. */
function remember() {
  for (const column of columns) column.before = column.answer && placesOf(column.answer);
}

function forget() {
  for (const column of columns) column.before = null;
}

function changed(stamp) {
  writeAddress();
  refresh(stamp);
}

let running = false;
let again = false;
let since = null; // when the last change was made that is not drawn yet

/** Asks for all lists; while one question is under way, only the last change is kept. */
async function refresh(stamp) {
  if (stamp !== undefined) since = stamp;
  again = true;
  if (running || !info) return;
  running = true;
  while (again) {
    again = false;
    const started = since;
    since = null;
    const drawn = await Promise.all(columns.map(ask));
    if (started !== null && drawn.every(Boolean)) measure(started);
  }
  running = false;
}

function queryOf(column) {
  const byHand = chosen.mode === "history";
  return {
    user: byHand ? "" : chosen.user ?? "",
    history: byHand ? chosen.history.map(({ id, level }) => ({ item: id, level })) : [],
    weights: chosen.weights,
    exclude: chosen.excluded.map(({ id }) => id),
    count: chosen.count,
    show_seen: !chosen.excludeSeen,
    version: chosen.versions[columns.indexOf(column)],
  };
}

async function ask(column) {
  const query = queryOf(column);
  const started = performance.now();
  try {
    column.answer = await api.recommend(query);
    column.milliseconds = performance.now() - started;
  } catch (error) {
    if (!columns.includes(column)) return false;
    if (error.status === 0 || error.status === 503) {
      lost(error);
    } else {
      column.list.trouble(error.message, query.version, error.status === 202);
      if (error.passing) setTimeout(refresh, RETRY_MS);
    }
    return false;
  }
  for (const item of column.answer.items) titles.set(item.id, nameOf(item));
  if (columns.includes(column)) draw();
  return true;
}

function draw() {
  chooseDefaults();
  drawSliders();
  const answers = columns.map(({ answer }) => answer).filter(Boolean);
  const extent = extentOf(answers);
  const said = columns.map((column) => {
    const { list, answer, before, milliseconds } = column;
    if (!answer) return "";
    const second = columns.find((entry) => entry !== column)?.answer;
    const told = list.draw(answer, {
      objectives: objectives(),
      extent,
      before,
      milliseconds,
      addable: chosen.mode === "history",
      other: second && { version: second.version, places: placesOf(second) },
      left: (id) => titles.get(id) ?? id,
    });
    const first = answer.items[0];
    return `Version ${answer.version}: ${told}.${first ? ` First: ${nameOf(first)}.` : ""}`;
  });
  announce(said.join(" "));
}

let announceTimer;
function announce(text) {
  clearTimeout(announceTimer);
  announceTimer = setTimeout(() => (byId("announce").textContent = text), 700);
}

const measured = [];

/** Notes the time from a change to the frame that shows the new list. */
function measure(started) {
  requestAnimationFrame(() => {
    const channel = new MessageChannel();
    channel.port1.onmessage = () => {
      const milliseconds = performance.now() - started;
      measured.push(milliseconds);
      if (measured.length > 100) measured.shift();
      const sorted = [...measured].sort((a, b) => a - b);
      const median = sorted[Math.floor((sorted.length - 1) / 2)];
      byId("latency").textContent =
        `Change to list ${milliseconds.toFixed(0)} ms, median of ${measured.length}: ${median.toFixed(0)} ms`;
      const page = document.documentElement.dataset;
      page.last = JSON.stringify({ milliseconds, calls: columns.map(({ answer }) => answer.calls) });
      page.redraws = Number(page.redraws ?? 0) + 1;
    };
    channel.port2.postMessage(null); // handled after the frame
  });
}

// --- the server --------------------------------------------------------------------------------

let down = false;

function lost(error) {
  const starting = error.status === 202;
  const banner = byId("banner");
  banner.hidden = false;
  banner.classList.toggle("calm", starting);
  const drawn = columns.some(({ answer }) => answer);
  const text = starting
    ? error.message
    : `${error.message} Trying again every second.${drawn ? " The list below is the last answer." : ""}`;
  if (banner.textContent !== text) banner.textContent = text;
  byId("server").textContent = starting ? "Starting" : "No connection";
  byId("server").className = "off";
  for (const { list } of columns) list.stale(true);
  down = true;
}

function found() {
  byId("banner").hidden = true;
  byId("banner").textContent = "";
  byId("server").textContent = `${info.model} at ${info.address}`;
  byId("server").className = "on";
  const missing = byId("missing");
  missing.hidden = !info.missing.length;
  missing.textContent = info.missing.join(" ");
}

/** Looks again and again whether the server answers and which versions there are. */
async function watch() {
  for (;;) {
    const before = info?.default;
    try {
      info = await api.state();
      found();
      const first = before === undefined;
      if (first) await begin();
      for (const [at, { list }] of columns.entries()) {
        list.versions(info.versions, info.default, chosen.versions[at]);
      }
      if (first) await refresh();
      else if (down || info.default !== before) {
        if (info.default !== before) remember();
        down = false;
        await Promise.all([refresh(), showUser()]);
      }
      down = false;
    } catch (error) {
      lost(error);
    }
    await wait(RETRY_MS);
    for (let waited = RETRY_MS; waited < BEAT_MS && !down; waited += RETRY_MS) await wait(RETRY_MS);
  }
}

async function begin() {
  chooseDefaults();
  drawSliders();
  if (chosen.user === null && chosen.mode === "user") {
    const { found: users } = await api.users("", chosen.versions[0]).catch(() => ({ found: [] }));
    chosen.user = users[0]?.id ?? "";
  }
  await nameItems([...chosen.history, ...chosen.excluded]);
  drawColumns();
  drawPicked();
  drawExcluded();
  await showUser();
}

/** Titles of items of which the address bar holds only the ids. */
async function nameItems(entries) {
  for (const entry of entries) {
    const { found: items } = await api.items(entry.id, chosen.versions[0]).catch(() => ({ found: [] }));
    entry.title = items.find(({ id }) => id === entry.id)?.title ?? "";
  }
}

// --- lists -------------------------------------------------------------------------------------

function drawColumns() {
  const box = byId("lists");
  while (columns.length > chosen.versions.length) columns.pop().list.remove();
  while (columns.length < chosen.versions.length) {
    const column = { answer: null, before: null, milliseconds: 0 };
    column.list = new List(box, {
      version: (value) => chooseVersion(columns.indexOf(column), value === "" ? null : Number(value)),
      exclude: (item) => {
        remember();
        chosen.excluded.push({ id: item.id, title: item.title });
        drawExcluded();
        changed();
      },
      add: (item) => pick(item),
    });
    columns.push(column);
  }
  box.classList.toggle("two", columns.length > 1);
  byId("compare").checked = columns.length > 1;
  for (const [at, { list }] of columns.entries()) list.versions(info.versions, info.default, chosen.versions[at]);
}

function chooseVersion(at, version) {
  remember();
  chosen.versions[at] = version;
  chooseDefaults();
  drawSliders();
  if (at === 0) {
    drawPresets();
    showWeights();
    showUser();
  }
  changed();
}

byId("compare").addEventListener("change", (event) => {
  if (event.target.checked) {
    const shown = numberOf(chosen.versions[0]);
    const others = info.versions.map(({ version }) => version).filter((version) => version !== shown);
    chosen.versions.push(others[0] ?? shown);
  } else {
    chosen.versions.pop();
  }
  drawColumns();
  changed();
});

byId("exclude-seen").addEventListener("change", (event) => {
  remember();
  chosen.excludeSeen = event.target.checked;
  changed(event.timeStamp);
});

byId("count").addEventListener("change", (event) => {
  forget();
  chosen.count = Number(event.target.value);
  changed(event.timeStamp);
});

function drawExcluded() {
  byId("excluded").hidden = !chosen.excluded.length;
  byId("excluded").querySelector("ul").replaceChildren(
    ...chosen.excluded.map((item) => {
      const entry = document.createElement("li");
      const undo = document.createElement("button");
      undo.type = "button";
      undo.textContent = "Undo";
      undo.setAttribute("aria-label", `Undo: show ${nameOf(item)} again`);
      undo.addEventListener("click", () => {
        remember();
        chosen.excluded = chosen.excluded.filter(({ id }) => id !== item.id);
        drawExcluded();
        changed();
      });
      entry.append(nameOf(item), " ", undo);
      return entry;
    }),
  );
}

// --- who ---------------------------------------------------------------------------------------

for (const radio of document.querySelectorAll("input[name=mode]")) {
  radio.addEventListener("change", () => {
    chosen.mode = radio.value;
    forget();
    showMode();
    showUser();
    changed();
  });
}

function showMode() {
  document.querySelector(`input[name=mode][value=${chosen.mode}]`).checked = true;
  byId("user-mode").hidden = chosen.mode !== "user";
  byId("history-mode").hidden = chosen.mode !== "history";
}

let userTicket = 0;

/** Shows what is stored of the user. */
async function showUser() {
  const ticket = ++userTicket;
  if (chosen.mode !== "user") return;
  byId("user").value = chosen.user ?? "";
  document.title = `${chosen.user} · csmf explorer`;
  let answer;
  try {
    answer = await api.history(chosen.user ?? "", chosen.versions[0]);
  } catch {
    return; // the list says what is wrong
  }
  if (ticket !== userTicket) return;
  const { events, known, version } = answer;
  byId("stored").hidden = !events?.length;
  const note = byId("user-note");
  if (known === false) note.textContent = `Unknown to version ${version}: answered like anybody new.`;
  else if (events === null) {
    note.textContent = `Version ${version} does not tell stored histories: it was exported before there was a way.`;
  } else if (known === null) note.textContent = `Whether version ${version} knows this user cannot be said: its files are not here.`;
  else note.textContent = events.length ? "" : "Known from training, without a stored event.";
  if (!events?.length) return;
  const names = about(version)?.objectives ?? [];
  const [summary] = byId("stored").getElementsByTagName("summary");
  summary.textContent = `Stored history: ${events.length} ${events.length === 1 ? "event" : "events"}`;
  byId("stored").querySelector("tbody").replaceChildren(
    ...events.map((event) => {
      const row = document.createElement("tr");
      for (const text of [nameOf(event), names[event.level] ?? `level ${event.level}`]) row.insertCell().textContent = text;
      return row;
    }),
  );
}

combobox(byId("user"), (text) => api.users(text, chosen.versions[0]), ({ id }) => {
  chosen.user = id;
  forget();
  showUser();
  changed();
}, true);

combobox(byId("item"), (text) => api.items(text, chosen.versions[0]), (item) => {
  byId("item").value = "";
  pick(item);
}, false);

function pick(item) {
  const names = objectives();
  chosen.history = chosen.history.filter(({ id }) => id !== item.id);
  chosen.history.push({ id: item.id, title: item.title, level: names.length - 1 });
  remember();
  drawPicked();
  changed();
}

function drawPicked() {
  const names = objectives();
  byId("picked-note").textContent = chosen.history.length
    ? ""
    : "Nothing picked yet: the list is that of somebody unknown.";
  byId("picked").replaceChildren(
    ...chosen.history.map((event) => {
      const entry = document.createElement("li");
      const title = document.createElement("span");
      title.textContent = nameOf(event);
      const level = document.createElement("select");
      level.setAttribute("aria-label", `Level that ${nameOf(event)} has reached`);
      level.replaceChildren(...names.map((name, at) => new Option(name, at)));
      level.value = Math.min(event.level, names.length - 1);
      level.addEventListener("change", () => {
        remember();
        event.level = Number(level.value);
        changed();
      });
      const drop = document.createElement("button");
      drop.type = "button";
      drop.textContent = "×";
      drop.setAttribute("aria-label", `Remove ${nameOf(event)} from the history`);
      drop.addEventListener("click", () => {
        remember();
        chosen.history = chosen.history.filter((other) => other !== event);
        drawPicked();
        changed();
        byId("item").focus();
      });
      entry.append(title, level, drop);
      return entry;
    }),
  );
}

readAddress();
byId("exclude-seen").checked = chosen.excludeSeen;
showMode();
watch();
