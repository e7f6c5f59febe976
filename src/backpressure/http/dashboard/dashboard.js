// The page: polls the statistics every second, listens to the events, and sends the controls' changes.
// All text goes into the page as text, never as markup: events carry text of sinks and callers.

import { Charts, count, seconds } from "./charts.js";

const POLL = 1000; // ms between two polls
const PATIENCE = 5000; // ms for an answer
const KEPT = 15 * 60; // polls that are kept, as many as the longest window shows
const LINES = 200; // in the list of events
const KEYS = [
  "accepted", "delivered", "refused", "delay", "delayThreshold", "pressure", "pressureThreshold", "batch", "circuit", "disk",
  "waiting1", "waiting2", "waiting3", "waiting4", "waiting5",
];
const STATE = { closed: 0, disabled: 0, half_open: 1, open: 2, forced_open: 2 };
const NAME = { closed: "closed", disabled: "disabled", half_open: "half-open", open: "open", forced_open: "forced open" };

const $ = (selector) => document.querySelector(selector);
const sum = (counts) => Object.values(counts).reduce((total, one) => total + one, 0);

// ------------------------------------------------------------------ history

class History {
  constructor() {
    this.times = [];
    this.columns = Object.fromEntries(KEYS.map((key) => [key, []]));
    this.before = null;
  }

  // Adds a poll: counts since the start become rates. Across a restart or a lost connection there is no rate.
  add(time, stats, thresholds) {
    const before = this.before;
    const elapsed = before && stats.at - before.at;
    const rate = (read) => {
      const change = before && read(stats) - read(before);
      return elapsed > 0 && change >= 0 ? change / elapsed : null;
    };
    const lanes = Object.values(stats.lanes);
    this.push(time, {
      accepted: rate((one) => one.accepted),
      delivered: rate((one) => one.acked),
      refused: rate((one) => sum(one.rejected)),
      delay: stats.oldest_age,
      delayThreshold: stats.pressure.signal === "delay" && stats.pressure.threshold || thresholds.delay,
      pressure: stats.pressure.pressure,
      pressureThreshold: 0.5,
      batch: stats.batching.batch_size,
      circuit: STATE[stats.circuit_breaker.state],
      disk: stats.disk?.events ?? null,
      ...Object.fromEntries(lanes.map((lane) => [`waiting${lane.priority}`, lane.waiting])),
    });
    this.before = stats;
  }

  gap(time) {
    if (this.before) this.push(time, {});
    this.before = null;
  }

  push(time, row) {
    this.times.push(time);
    for (const key of KEYS) this.columns[key].push(row[key] ?? null);
    if (this.times.length > KEPT) {
      this.times.shift();
      for (const key of KEYS) this.columns[key].shift();
    }
  }
}

// ------------------------------------------------------------------ polling

let history = new History();
let sink = null; // of several; null: there is one, without a name
let charts;
let thresholds = null;
let lostSince = null;

async function poll() {
  const asked = Date.now() / 1000;
  try {
    await chooseSink();
    const of = sink;
    thresholds ??= (await get("backpressure")).thresholds;
    const [stats, health] = await Promise.all([get("stats"), get("health?probe=live")]);
    if (of !== sink) return void setTimeout(poll, POLL); // another was chosen meanwhile
    history.add(asked, stats, thresholds);
    showTiles(stats);
    showHealth(health);
    showConnected();
  } catch (error) {
    showLost(error);
    history.gap(asked);
  }
  draw();
  setTimeout(poll, POLL);
}

// Which sinks there are is asked once, and again after a lost connection.
let sinks = null;

async function chooseSink() {
  if (sinks !== null) return;
  sinks = (await get("sinks")).sinks;
  $("#sinks").hidden = sinks.length === 0;
  $("#sink").replaceChildren(...sinks.map((name) => new Option(name, name)));
  const chosen = sinks.includes(sink) ? sink : sinks[0] ?? null;
  if (chosen !== sink) show(chosen);
  else listen();
  $("#sink").value = sink ?? "";
}

function show(name) {
  sink = name;
  history = new History();
  thresholds = null;
  source?.close();
  source = null;
  listen();
}

function ofSink(path) {
  if (sink === null || path === "sinks") return path;
  return `${path}${path.includes("?") ? "&" : "?"}sink=${encodeURIComponent(sink)}`;
}

async function get(path) {
  const reply = await fetch(ofSink(path), { signal: AbortSignal.timeout(PATIENCE), cache: "no-store" });
  if (!reply.ok) throw new Error(`${path} answered ${reply.status}`);
  return reply.json();
}

function draw() {
  charts.draw(history, Number($("#window").value));
}

function showConnected() {
  pill("#connection", "ok", "●", "live");
  if (lostSince === null) return;
  lostSince = null;
  thresholds = null; // the server may have restarted with others,
  sinks = null; // and with other sinks
  $("#lost").hidden = true;
  listen();
}

function showLost(error) {
  if (lostSince === null) {
    lostSince = new Date();
    const at = lostSince.toLocaleTimeString("en-GB");
    $("#lost").textContent = `Connection lost at ${at} (${error.message}). What is shown is from before; trying again …`;
    $("#lost").hidden = false;
  }
  pill("#connection", "lost", "✕", "connection lost");
  pill("#health", "", "?", "unknown");
}

function pill(selector, state, mark, text) {
  const element = $(selector);
  if (element.dataset.state === state && element.querySelector(".text").textContent === text) return;
  element.dataset.state = state;
  element.querySelector(".mark").textContent = mark;
  element.querySelector(".text").textContent = text;
}

function showHealth({ status, reasons }) {
  const mark = { ok: "✓", degraded: "▲", unready: "✕" }[status];
  pill("#health", status, mark, status === "ok" ? "healthy" : `${status}: ${reasons.join("; ")}`);
}

function showTiles(stats) {
  const now = (key) => history.columns[key].at(-1);
  tile("accepted", count(now("accepted")), "/s");
  tile("delivered", count(now("delivered")), "/s");
  tile("refused", count(now("refused")), "/s", now("refused") > 0);
  tile("waiting", count(stats.waiting));
  tile("delay", seconds(stats.oldest_age), "", stats.oldest_age > now("delayThreshold"));
  tile("batch", count(stats.batching.batch_size));
  tile("circuit", NAME[stats.circuit_breaker.state], "", STATE[stats.circuit_breaker.state] > 0);
  tile("pressure", stats.pressure.pressure.toFixed(2), stats.pressure.active ? ` ${stats.pressure.signal}` : "", stats.pressure.active);
  suggest("#rate", stats.flow_control.rate_limit);
  suggest("#batch", stats.batching.batch_size);
}

function tile(name, text, unit = "", alarm = false) {
  const element = $(`[data-tile="${name}"]`);
  element.replaceChildren(text);
  if (unit) {
    const small = document.createElement("small");
    small.textContent = unit;
    element.append(small);
  }
  element.toggleAttribute("data-alarm", alarm);
}

function suggest(selector, value) {
  $(selector).placeholder = value == null ? "no limit" : `now ${value.toLocaleString("en", { maximumFractionDigits: 1 })}`;
}

// ------------------------------------------------------------------ events

let source = null;

// The browser connects again by itself, but not after an answer that is no stream: then the next poll that succeeds does.
function listen() {
  if (source && source.readyState !== EventSource.CLOSED) return;
  source = new EventSource(ofSink("events"));
  for (const type of Object.keys(DESCRIPTIONS)) source.addEventListener(type, (message) => showEvent(type, JSON.parse(message.data)));
  source.onerror = () => { if (source.readyState === EventSource.CLOSED) setTimeout(listen, 5 * POLL); };
}

const plural = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
const value = (one) => (one == null ? "no limit" : typeof one === "number" ? one.toLocaleString("en") : String(one).toLowerCase().replace("_", "-"));

// For each type: tone, mark, and text.
const DESCRIPTIONS = {
  backpressure_activated: (e) => ["bad", "▲", `Backpressure: ${e.signal} is ${value(e.value)}, above ${value(e.threshold)}`],
  backpressure_deactivated: (e) => ["good", "✓", `Backpressure is over, after ${seconds(e.active_for)}`],
  circuit_state_changed: (e) => [e.new === "CLOSED" ? "good" : "bad", e.new === "CLOSED" ? "✓" : "✕",
    `The circuit went from ${value(e.old)} to ${value(e.new)}: ${e.reason}`],
  batch_size_changed: (e) => ["", "↕", `Batch size ${value(e.old)} → ${value(e.new)}: ${e.reason}`],
  batch_redelivered: (e) => ["", "↻", `${plural(e.events, "event")} of priority ${e.priority} again, attempt ${e.attempt}${e.error ? `: ${e.error}` : ""}`],
  batch_dead_lettered: (e) => ["bad", "†", `${plural(e.events, "event")} of priority ${e.priority} to the dead letters after ${plural(e.attempts, "attempt")}`],
  emergency_entered: (e) => ["bad", "▲", `Emergency mode: ${Math.round(e.failure_rate * 100)} % of what the sink was given failed`],
  emergency_left: (e) => ["good", "✓", `Emergency mode is over, after ${seconds(e.active_for)}`],
  sink_failing: (e) => ["bad", "✕", `The sink ${e.sink} fails: ${e.error}`],
  sink_recovered: (e) => ["good", "✓", `The sink ${e.sink} works again, after ${seconds(e.failing_for)}`],
  delivery_ended: (e) => [e.error ? "bad" : "", "■", `Delivery to ${e.sink} has ended${e.error ? `: ${e.error}` : ""}`],
  rate_changed: (e) => ["", "↕", `Admitted rate ${value(e.old)} → ${value(e.new)} a second`],
  events_dropped: (e) => ["bad", "✕", `${plural(e.events, "event")} of priority ${e.priority} dropped: ${e.reason}`],
  buffer_closing: (e) => ["bad", "■", `The buffer closes with ${plural(e.resident, "event")} not delivered`],
  tuned: (e) => ["hand", "✎", `By hand: ${e.setting.replaceAll("_", " ")} ${value(e.old)} → ${value(e.new)}, by ${e.by}`],
  missed: (e) => ["", "…", `${plural(e.events, "event")} came too fast to be shown`],
};

function showEvent(type, event) {
  const [tone, mark, text] = DESCRIPTIONS[type](event);
  const line = document.createElement("li");
  line.dataset.tone = tone;
  line.dataset.type = type;
  const time = document.createElement("time");
  time.textContent = new Date().toLocaleTimeString("en-GB");
  const sign = document.createElement("span");
  sign.className = "mark";
  sign.setAttribute("aria-hidden", "true");
  sign.textContent = mark;
  const words = document.createElement("span");
  words.textContent = text;
  line.append(time, sign, words);
  const feed = $("#feed");
  feed.querySelector(".none")?.remove();
  feed.prepend(line);
  while (feed.children.length > LINES) feed.lastChild.remove();
}

// ------------------------------------------------------------------ controls

const TOKEN = "forebay-token"; // of sessionStorage: gone with the tab

async function send(path, body) {
  const token = sessionStorage.getItem(TOKEN);
  if (!token) {
    say("bad", "A change needs the token.");
    $("#token").focus();
    return;
  }
  try {
    const reply = await fetch(ofSink(path), {
      method: "POST",
      headers: { "Authorization": `Bearer ${token}`, "Content-Type": "application/json" },
      body: JSON.stringify(body),
      signal: AbortSignal.timeout(PATIENCE),
    });
    const told = await reply.json();
    if (reply.ok) {
      say("ok", `✓ ${told.setting.replaceAll("_", " ")}: ${value(told.old)} → ${value(told.new)}`);
    } else {
      say("bad", `✕ ${told.detail}`);
      if (reply.status === 401) forget();
    }
  } catch (error) {
    say("bad", `✕ Not sent: ${error.message}`);
  }
}

function say(state, text) {
  $("#result").dataset.state = state;
  $("#result").textContent = text;
}

function forget() {
  sessionStorage.removeItem(TOKEN);
  showToken();
  $("#token").focus();
}

function showToken() {
  const known = sessionStorage.getItem(TOKEN) !== null;
  $("#token").placeholder = known ? "known in this tab" : "";
  $("#token-form button").textContent = known ? "Forget" : "Use";
}

function wire() {
  $("#token-form").addEventListener("submit", (submitted) => {
    submitted.preventDefault();
    const token = $("#token").value.trim();
    $("#token").value = "";
    if (token) {
      sessionStorage.setItem(TOKEN, token);
      showToken();
      say("ok", "The token is known in this tab.");
    } else {
      forget();
      say("ok", "The token is forgotten.");
    }
  });
  const controls = {
    rate: () => ["flow-control/rate", { rate: $("#rate").valueAsNumber }],
    batch: () => ["batch-size", { size: $("#batch").valueAsNumber }],
    reset: () => ["circuit-breaker/reset", {}],
  };
  for (const [name, read] of Object.entries(controls)) {
    $(`[data-control="${name}"]`).addEventListener("submit", (submitted) => {
      submitted.preventDefault();
      send(...read());
    });
  }
  $("#window").addEventListener("change", draw);
  $("#sink").addEventListener("change", () => show($("#sink").value));
  showToken();
}

// uPlot is loaded: its script is deferred, and deferred scripts run in the order of the page.
charts = new Charts(document);
wire();
poll();
