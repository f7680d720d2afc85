// The conversation.

import { show, speed } from "./instruments.js";
import { Refused, chat, setKey, status } from "./server.js";

const $ = (id) => document.getElementById(id);
const KINDS = {
  layer_skip: "drafted",
  cascade: "drafted",
  copying: "copied",
  recycling: "copied",
  sibling: "sibling",
  bonus: "",
  plain: "",
};
const NAMES = { drafted: "drafted", copied: "copied or recalled", sibling: "an alternative" };
const QUICK = 500, SLOW = 4000; // milliseconds between two looks at the server

let messages = [];
let running = null; // what stops the answer in the making
let next = 0; // the timer of the next look at the server

function message(role) {
  $("welcome")?.remove();
  const box = document.createElement("div");
  box.className = `message ${role}`;
  const text = document.createElement("div");
  text.className = "text";
  box.append(text);
  $("log").append(box);
  return box;
}

function footer(box, words) {
  const cost = document.createElement("p");
  cost.className = "cost quiet";
  cost.textContent = words;
  box.append(cost);
}

// Follows the end of the text, unless the reader has scrolled up.
function keepingUp(change) {
  const log = $("log");
  const follows = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
  change();
  if (follows) log.scrollTop = log.scrollHeight;
}

// Neighbours of one kind share an element: a long answer stays light.
function add(text, piece) {
  const kind = KINDS[piece.origin] ?? "drafted";
  const last = text.lastElementChild;
  if (last && last.dataset.kind === kind) {
    last.append(piece.text);
    return;
  }
  const token = document.createElement("span");
  token.className = `token ${kind}`;
  token.dataset.kind = kind;
  if (NAMES[kind]) token.title = NAMES[kind];
  token.append(piece.text);
  text.append(token);
}

function request() {
  return {
    model: $("model").value,
    messages,
    temperature: Number($("temperature").value),
    max_completion_tokens: Number($("longest").value) || undefined,
  };
}

async function answer() {
  const talk = messages; // a new conversation may begin meanwhile
  const box = message("assistant");
  const text = box.firstChild;
  box.classList.add("running");
  const stop = new AbortController();
  running = stop;
  $("send").textContent = "Stop";
  look();
  let usage = null;
  const begin = performance.now();
  let first = null;
  try {
    for await (const chunk of chat(request(), stop.signal)) {
      usage = chunk.usage ?? usage;
      if (!chunk.origins) continue;
      first ??= performance.now();
      keepingUp(() => chunk.origins.forEach((piece) => add(text, piece)));
    }
    footer(box, cost(usage, begin, first));
  } catch (error) {
    failed(box, error);
  } finally {
    box.classList.remove("running");
    running = null;
    $("send").textContent = "Send";
    keepingUp(() => {});
    look();
  }
  if (text.textContent) talk.push({ role: "assistant", content: text.textContent });
  else talk.pop();
}

function cost(usage, begin, first) {
  const tokens = usage.completion_tokens;
  const seconds = (performance.now() - (first ?? begin)) / 1000;
  const share = tokens ? Math.round((100 * usage.accepted_tokens) / tokens) : 0;
  const pace = tokens > 1 && seconds > 0 ? ` · ${speed((tokens - 1) / seconds)} a second` : "";
  return `${tokens} tokens${pace} · ${share} % from drafts`;
}

function failed(box, error) {
  if (error.name === "AbortError") {
    footer(box, "stopped");
    return;
  }
  box.classList.add("failed");
  footer(box, error instanceof Refused ? error.message : "the server cannot be reached");
  if (error.status === 401) $("key").showModal();
}

function send(event) {
  event.preventDefault();
  if (running) {
    if (event.type === "submit") running.abort(); // the button says Stop
    return;
  }
  const said = $("text").value.trim();
  if (!said) return;
  message("user").firstChild.textContent = said;
  messages.push({ role: "user", content: said });
  $("text").value = "";
  grow();
  $("log").scrollTop = $("log").scrollHeight;
  answer();
}

function grow() {
  const text = $("text");
  text.style.height = "auto";
  text.style.height = `${text.scrollHeight}px`;
}

function showModels(models) {
  const select = $("model");
  const names = Object.keys(models);
  if (select.options.length !== names.length) {
    select.replaceChildren(...names.map((name) => new Option(name, name)));
  }
  document.title = `swift-sd · ${select.value}`;
}

async function look() {
  clearTimeout(next);
  try {
    if (!document.hidden && !$("key").open) {
      const now = await status();
      showModels(now.models);
      show(now.models[$("model").value]);
    }
  } catch (error) {
    if (error.status === 401) $("key").showModal();
  }
  clearTimeout(next);
  next = setTimeout(look, running ? QUICK : SLOW);
}

$("form").addEventListener("submit", send);
$("text").addEventListener("input", grow);
$("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) send(event);
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && running) running.abort();
});
$("inside").addEventListener("click", () => {
  const isOpen = $("instruments").classList.toggle("open");
  $("inside").setAttribute("aria-expanded", isOpen);
});
$("origins").addEventListener("change", (event) => {
  document.body.classList.toggle("unmarked", !event.target.checked);
});
$("reset").addEventListener("click", () => {
  running?.abort();
  messages = [];
  $("log").replaceChildren();
  $("text").focus();
});
$("key").addEventListener("close", () => {
  setKey($("secret").value);
  $("secret").value = "";
});
look();
