"use strict";
// Draws plots with plotly.js in the colours of the page. Widths decide how subplots are laid out.

const NARROW = 520;
const PRINTED_WIDTH = 680;
const LOG_TICKS = Array.from({ length: 13 }, (_, power) => [1, 2, 5].map((digit) => digit * 10 ** (power - 6))).flat();

const PAPER = { text: "#000000", faint: "#333333", line: "#999999", grid: "#dddddd", raised: "#ffffff" };

let onPaper = false; // styles of the page change for paper after plots are drawn

async function unpackPlotly() {
  const packed = document.getElementById("packed-plotly");
  const bytes = Uint8Array.from(atob(packed.textContent), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);
  packed.remove();
}

function color(name) {
  return onPaper ? PAPER[name] : getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

function axisStyle(axis) {
  const style = { gridcolor: color("grid"), linecolor: color("line"), zerolinecolor: color("line"), tickcolor: color("line") };
  return { ...style, showline: true, ...(axis.type === "log" ? { tickvals: LOG_TICKS, nticks: undefined } : {}), ...axis };
}

// The layout as Python made it, in the colours of the page, with one column of subplots where there is no room for more.
function styled(layout, width) {
  const own = structuredClone(layout);
  if (own.grid && width < NARROW && own.grid.columns > 1) {
    const count = Object.keys(own).filter((key) => /^xaxis\d*$/.test(key)).length;
    own.height = Math.max((own.height / own.grid.rows) * count, 200 * count);
    own.grid = { ...own.grid, rows: count, columns: 1 };
    if (own.legend) own.legend.y = -0.2 / count;
  }
  for (const key of Object.keys(own)) {
    if (/^[xy]axis\d*$/.test(key)) own[key] = axisStyle(own[key]);
    if (/^yaxis\d*$/.test(key)) own[key] = { ...own[key], automargin: true, title: { standoff: 10, ...own[key].title } };
  }
  return {
    uirevision: "kept", // what was zoomed or hidden stays so when numbers change
    ...own,
    font: { color: color("text"), family: "system-ui, sans-serif", size: 12 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    hoverlabel: { bgcolor: color("raised"), bordercolor: color("line"), font: { color: color("text") }, align: "left" },
    width,
  };
}

// Draws a plot into its place. One that is hidden is drawn when it is shown.
function draw(name, plot, width) {
  const place = document.getElementById(name);
  if (!place || !plot || !place.offsetParent) return;
  const layout = styled(plot.layout, width || place.clientWidth);
  place.style.height = `${layout.height}px`;
  const fresh = !place.classList.contains("js-plotly-plot");
  Plotly.react(place, plot.traces, layout, { displayModeBar: false, responsive: false });
  if (fresh) place.dispatchEvent(new CustomEvent("drawn", { bubbles: true }));
}
