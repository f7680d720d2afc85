// What the server measures, drawn.

const $ = (id) => document.getElementById(id);
const one = new Intl.NumberFormat("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

export const speed = (value) => (value == null ? "–" : one.format(value));

export function show(state) {
  showSpeed(state.tokens_per_second, state.plain_tokens_per_second);
  showMap(state);
  showLengths(state.accepted_histogram);
}

function showSpeed(now, plain) {
  $("glance").textContent = now == null ? "" : `${speed(now)} tokens/s`;
  const most = Math.max(now ?? 0, plain ?? 0) || 1;
  const rows = [["now", now], ["plain", plain]].flatMap(([name, value]) => {
    const bar = element("div", `bar ${name}`);
    bar.append(element("i"));
    bar.firstChild.style.setProperty("--share", `${(100 * (value ?? 0)) / most}%`);
    return [element("span", "", name), bar, element("span", "", speed(value))];
  });
  $("speed").replaceChildren(...rows, element("p", "verdict quiet", verdict(now, plain)));
}

function verdict(now, plain) {
  if (now == null) return "tokens per second, once something was asked";
  if (plain == null) return "tokens per second; plain decoding is not measured yet";
  return `tokens per second: ${(now / plain).toFixed(2)} times plain decoding, lately`;
}

let drawn = "";

// One column a layer; the upper row is attention, the lower one MLP.
function showMap({ depth, attention, mlp }) {
  const map = $("map");
  if (drawn !== `${depth}`) {
    drawn = `${depth}`;
    map.style.gridTemplateColumns = `auto repeat(${depth}, minmax(0, 1fr))`;
    if (depth > 40) map.style.gap = "1px";
    map.replaceChildren();
    for (const kind of ["attention", "mlp"]) {
      map.append(element("span", "", kind === "mlp" ? "MLP" : "attention"));
      for (let layer = 0; layer < depth; layer += 1) {
        const cell = element("i");
        cell.dataset.kind = kind;
        cell.dataset.layer = layer;
        cell.title = `${kind} of layer ${layer}`;
        map.append(cell);
      }
    }
  } else {
    for (const cell of map.querySelectorAll("i")) cell.classList.remove("changed");
  }
  const fresh = !map.dataset.seen;
  const skipped = { attention: new Set(attention), mlp: new Set(mlp) };
  for (const cell of map.querySelectorAll("i")) {
    const isSkipped = skipped[cell.dataset.kind].has(Number(cell.dataset.layer));
    if (!fresh && isSkipped !== cell.classList.contains("skipped")) cell.classList.add("changed");
    cell.classList.toggle("skipped", isSkipped);
  }
  map.dataset.seen = "yes";
  const words = `${attention.length} attention and ${mlp.length} MLP sublayers left out, of ${depth} layers`;
  $("skipped").textContent = words;
  map.setAttribute("aria-label", words);
}

function showLengths(histogram) {
  const counts = Object.entries(histogram);
  const longest = Math.max(0, ...counts.map(([length]) => Number(length)));
  const most = Math.max(1, ...counts.map(([, count]) => count));
  const bars = [];
  for (let length = 0; length <= longest; length += 1) {
    const count = histogram[length] ?? 0;
    const bar = element("div");
    bar.title = `${count} drafts with ${length} accepted`;
    bar.append(element("i"), element("span", "", longest < 16 || length % 5 === 0 ? length : ""));
    bar.firstChild.style.setProperty("--share", `${(85 * count) / most}%`);
    bars.push(bar);
  }
  const words = counts.map(([length, count]) => `${length}: ${count}`).join(", ");
  $("lengths").replaceChildren(...(counts.length ? bars : [element("p", "", "nothing was drafted yet")]));
  $("lengths").setAttribute("aria-label", `Accepted tokens, and how many drafts: ${words || "none"}`);
}
