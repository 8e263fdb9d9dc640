// Draws a run's curves and keeps them up while it works. What is said of the run besides is swapped in by htmx.
"use strict";

const POLL_MS = 2000;
const CURVES = [
  { name: "loss", title: "Loss" },
  { name: "accuracy", title: "Accuracy" },
  { name: "reward", title: "Reward" },
];
const COLOURS = ["#3b76d6", "#d9730d", "#1f9d6b", "#a855c7", "#c0392b"];
const HEIGHT = 240;

const place = document.getElementById("run-curves");
const figures = new Map(CURVES.map(({ name }) => [name, null]));
let rows = [];
let first = null;

function colour(variable) {
  return getComputedStyle(document.documentElement).getPropertyValue(variable).trim();
}

/** Points of one curve by phase: {train: [steps, values], validation: [steps, values]}. */
function seriesOf(name) {
  const byPhase = new Map();
  for (const row of rows) {
    if (typeof row[name] !== "number" || typeof row.step !== "number") continue;
    if (!byPhase.has(row.phase)) byPhase.set(row.phase, new Map());
    byPhase.get(row.phase).set(row.step, row[name]);
  }
  return [...byPhase].map(([phase, points]) => {
    const steps = [...points.keys()].sort((a, b) => a - b);
    return { phase, table: [steps, steps.map((step) => points.get(step))] };
  });
}

function axis(label) {
  const stroke = colour("--body-quiet-color");
  const line = { stroke: colour("--hairline-color"), width: 1 };
  return { label, labelSize: 20, size: label === "step" ? 36 : 56, stroke, grid: line, ticks: line };
}

function options(title, series, width) {
  return {
    width,
    height: HEIGHT,
    scales: { x: { time: false } },
    axes: [axis("step"), axis("")],
    series: [
      { label: "step" },
      ...series.map(({ phase, table }, index) => ({
        label: phase,
        stroke: COLOURS[index % COLOURS.length],
        width: 2,
        spanGaps: true,
        points: { show: table[0].length < 40, size: 5 },
        value: (_, value) => (value === null || value === undefined ? "–" : value.toPrecision(4)),
      })),
    ],
  };
}

function describe(title, series) {
  const newest = series.map(({ phase, table }) => `${phase} ${table[1].at(-1).toPrecision(4)} at step ${table[0].at(-1)}`);
  return `${title} by step: ${newest.join(", ")}.`;
}

function draw({ name, title }) {
  const series = seriesOf(name);
  const shown = figures.get(name);
  shown?.chart.destroy();
  if (series.length === 0) {
    shown?.figure.remove();
    figures.set(name, null);
    return;
  }
  const figure = shown?.figure ?? addFigure(title);
  figure.setAttribute("aria-label", describe(title, series));
  const canvas = figure.querySelector("div");
  const chart = new uPlot(options(title, series, canvas.clientWidth), uPlot.join(series.map(({ table }) => table)), canvas);
  figures.set(name, { figure, chart });
}

function addFigure(title) {
  if (!place.classList.contains("curves")) {
    place.replaceChildren();
    place.classList.add("curves");
  }
  const figure = document.createElement("figure");
  figure.className = "curve";
  figure.setAttribute("role", "img");
  const caption = document.createElement("figcaption");
  caption.textContent = title;
  figure.append(caption, document.createElement("div"));
  place.append(figure);
  return figure;
}

function drawAll() {
  CURVES.forEach(draw);
}

async function load() {
  const query = new URLSearchParams({ after: rows.length, first: first ?? "" });
  const answer = await fetch(`${place.dataset.url}?${query}`, { credentials: "same-origin" });
  if (!answer.ok) throw new Error(answer.statusText);
  const news = await answer.json();
  const isAnew = news.first !== first;
  rows = news.start === 0 ? news.rows : rows.concat(news.rows);
  first = news.first;
  if (isAnew || news.rows.length > 0) drawAll();
  return news;
}

async function follow() {
  let wait = POLL_MS;
  try {
    const news = await load();
    if (!news.is_active && !news.is_more) return;
    if (news.is_more) wait = 0;
  } catch {
    wait = 5 * POLL_MS; // the server is away for a moment
  }
  setTimeout(follow, wait);
}

new ResizeObserver(() => {
  for (const shown of figures.values()) {
    shown?.chart.setSize({ width: shown.figure.clientWidth, height: HEIGHT });
  }
}).observe(place);
new MutationObserver(drawAll).observe(document.documentElement, { attributeFilter: ["data-theme"] });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
follow();
