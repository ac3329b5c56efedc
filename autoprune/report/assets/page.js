// The choice of a model: by a budget, by its name, in the table or in the plot; and, where a server is behind the page,
// changes as they come.

const FRONT = "front-plot";
const COSTS = { latency: "latency", bytes: "bytes" };
const UNITS = [[1e9, "GB"], [1e6, "MB"], [1e3, "kB"], [1, "B"]];

let state = JSON.parse(document.getElementById("state").textContent);
const live = state.live;
let picked = null;
let budget = null; // { by, value } while a slider has picked

const element = (id) => document.getElementById(id);
const say = (text) => { element("status").textContent = text; };

function shown(by, value) {
  if (by === "score") return `at least ${value.toFixed(4)}`;
  if (by === "latency") return `at most ${value >= 100 ? value.toFixed(0) : value.toPrecision(3)} ${state.models[0].unit}`;
  const [size, unit] = UNITS.find(([each]) => value >= each) || UNITS[3];
  return `at most ${(value / size).toPrecision(3)} ${unit}`;
}

function range(by) {
  const key = by === "score" ? "score" : COSTS[by];
  const values = state.models.map((model) => model[key]);
  return [Math.min(...values), Math.max(...values)];
}

// The best model within a cost, or the fastest with a score; ties go to the faster, then to the better one.
function pickedBy({ by, value }) {
  const tolerance = 1e-9 * Math.abs(value);
  const fits = state.models.filter((model) =>
    by === "score" ? model.score >= value - tolerance : model[COSTS[by]] <= value + tolerance);
  const better = (a, b) => b.score - a.score || a.latency - b.latency;
  const faster = (a, b) => a.latency - b.latency || b.score - a.score;
  return fits.sort(by === "score" ? faster : better)[0] || null;
}

function frontPlot() {
  const plot = structuredClone(state.plots[FRONT]);
  const score = element("score-of").value, unit = element("x-unit").value;
  for (const trace of plot.traces) {
    if (!trace.meta) continue;
    trace.y = trace.meta.y[score];
    if (unit === "share" && trace.meta.share) {
      trace.x = trace.x.map((x) => x * trace.meta.share);
      if (trace.error_x.array) trace.error_x.array = trace.error_x.array.map((x) => x * trace.meta.share);
    }
    if (trace.meta.error_y) trace.error_y = trace.meta.error_y[score];
    trace.visible = trace.y.length > 0;
  }
  plot.layout.xaxis.type = element("x-scale").value;
  plot.layout.uirevision = `${plot.layout.xaxis.type} ${unit} ${score}`;
  if (unit === "share") Object.assign(plot.layout.xaxis, { title: { text: "share of the dense latency" }, tickformat: "~%" });
  plot.layout.yaxis.title.text += `, ${score}`;
  plot.layout.shapes = budgetLines(unit);
  const model = state.models.find((each) => each.key === picked);
  if (model) {
    plot.traces.push({
      type: "scatter", mode: "markers", name: "picked", x: [unit === "share" ? model.share : model.latency], y: [model[score === "test" ? "test_score" : "score"]],
      hoverinfo: "skip", marker: { size: 22, symbol: "circle-open", color: color("text"), line: { width: 2 } },
    });
  }
  return plot;
}

function budgetLines(unit) {
  if (!budget || budget.by === "bytes") return [];
  const line = { color: color("faint"), width: 1, dash: "dash" };
  if (budget.by === "latency") {
    // Runs beside each other may have dense models of different latencies, and so a line each.
    const shares = state.plots[FRONT].traces.map((trace) => trace.meta && trace.meta.share).filter(Boolean);
    const places = unit === "share" ? shares.map((share) => budget.value * share) : [budget.value];
    return [...new Set(places)].map((x) => ({ type: "line", x0: x, x1: x, yref: "paper", y0: 0, y1: 1, line }));
  }
  return [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: budget.value, y1: budget.value, line }];
}

function redraw(width) {
  for (const name of Object.keys(state.plots)) {
    draw(name, name === FRONT ? frontPlot() : state.plots[name], width);
  }
}

function pick(key) {
  picked = key;
  for (const card of document.querySelectorAll(".card")) card.classList.toggle("shown", card.dataset.key === key);
  for (const button of document.querySelectorAll("button.pick")) {
    const own = button.dataset.key === key;
    button.setAttribute("aria-pressed", String(own));
    button.closest("tr").classList.toggle("picked", own);
  }
  const choice = element("model");
  if (choice) choice.value = key || "";
  const card = document.querySelector(".card.shown");
  for (const place of card ? card.querySelectorAll(".plot") : []) draw(place.id, state.plots[place.id]);
  if (element(FRONT)) draw(FRONT, frontPlot());
}

function slide() {
  if (state.models.length === 0) return;
  const by = element("budget-by").value;
  const [least, most] = range(by);
  const share = Number(element("budget").value) / 1000;
  budget = { by, value: least + share * (most - least) };
  const model = pickedBy(budget);
  const text = shown(by, budget.value);
  element("budget").setAttribute("aria-valuetext", text);
  element("budget-text").textContent = model ? `${text}: ${model.label}` : `${text}: no model`;
  pick(model && model.key);
}

// Fills the controls from the models; what was chosen stays chosen.
function prepare() {
  if (!element("budget")) return;
  element("controls").hidden = state.plots[FRONT].traces.length === 0;
  for (const id of ["budget-by", "budget", "model"]) element(id).closest("label").hidden = state.models.length === 0;
  element("budget-text").hidden = state.models.length === 0;
  element("model").replaceChildren(...state.models.map((model) => new Option(model.label, model.key)));
  const known = state.models.some((model) => model.key === picked);
  if (state.models.length === 0) pick(null);
  else if (budget) slide();
  else pick(known ? picked : (state.models.find((model) => model.is_first) || state.models[0]).key);
  showDownloads();
}

function showDownloads() {
  for (const link of live ? document.querySelectorAll("a.download") : []) {
    link.hidden = false;
    link.href = link.dataset.place + live.query;
  }
}

// Takes the parts of a newer state that differ; a part that has the focus or an open fold is left until it is free.
function take(newer) {
  element("introduction").innerHTML = newer.introduction;
  for (const [name, text] of Object.entries(newer.sections)) {
    const section = element(name);
    if (section && (state.sections || {})[name] === text) continue;
    const fresh = document.createRange().createContextualFragment(text).firstElementChild;
    const controls = section && section.querySelector("#controls");
    if (controls) fresh.querySelector("#controls").replaceWith(controls); // keeps what was chosen, and the focus
    for (const open of section ? section.querySelectorAll("details[open]") : []) {
      const title = open.querySelector("summary").textContent;
      for (const fold of fresh.querySelectorAll("details")) fold.open ||= fold.querySelector("summary").textContent === title;
    }
    const focused = section && section.contains(document.activeElement) ? document.activeElement : null;
    if (section) section.replaceWith(fresh);
    else document.querySelector("main").append(fresh);
    if (focused && focused.dataset.key) {
      const again = [...fresh.querySelectorAll("button.pick")].find((button) => button.dataset.key === focused.dataset.key);
      if (again) again.focus();
    } else if (focused && fresh.contains(focused)) focused.focus();
  }
  state = newer;
  prepare();
  redraw();
}

async function follow(version) {
  let delay = live.seconds * 1000;
  try {
    const answer = await fetch(`state${live.query}`, { headers: version ? { "If-None-Match": version } : {} });
    if (answer.status === 200) {
      version = answer.headers.get("ETag");
      take(await answer.json());
    } else if (answer.status !== 304) throw new Error(`the server answered ${answer.status}`);
    say(`Live: looked at ${new Date().toLocaleTimeString()}.`);
  } catch (error) {
    say(`The server cannot be reached (${error.message}): the page shows what it knew.`);
    delay *= 3;
  }
  setTimeout(follow, delay, version);
}

function listen() {
  document.addEventListener("click", async ({ target }) => {
    if (target.matches("button.pick")) { budget = null; pick(target.dataset.key); }
    if (target.matches("button.copy")) {
      try { await navigator.clipboard.writeText(target.dataset.text); say("The command is copied."); }
      catch { getSelection().selectAllChildren(target.parentElement.querySelector("code")); say("The command is selected: copy it."); }
    }
  });
  document.addEventListener("input", ({ target }) => {
    if (target.id === "budget") slide();
  });
  document.addEventListener("change", ({ target }) => {
    if (target.id === "budget-by") slide();
    if (target.id === "model") { budget = null; element("budget-text").textContent = "chosen by name"; pick(target.value); }
    if (["x-scale", "x-unit"].includes(target.id) || target.id === "score-of") draw(FRONT, frontPlot());
  });
  document.addEventListener("drawn", ({ target }) => {
    if (target.id !== FRONT) return;
    target.on("plotly_click", ({ points: [{ customdata: key }] }) => { // of a policy that has no card: nothing to show
      if (state.models.some((model) => model.key === key)) { budget = null; pick(key); }
    });
  });
  document.addEventListener("toggle", () => redraw(), true);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraw());
  let waiting;
  addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(redraw, 100); });
  addEventListener("beforeprint", () => { onPaper = true; redraw(PRINTED_WIDTH); });
  addEventListener("afterprint", () => { onPaper = false; redraw(); });
}

async function start() {
  document.documentElement.classList.add("scripted");
  try {
    await unpackPlotly();
  } catch (error) {
    say(`The plots cannot be drawn in this browser (${error.message}); the tables hold the numbers.`);
    return;
  }
  listen();
  prepare();
  redraw();
  document.documentElement.dataset.ready = "true";
  if (live) setTimeout(follow, live.seconds * 1000, live.version);
}

start();
