// Draws a page's pictures: columns over days, or bars with their intervals. Each stands beside a table that says the
// same. Colours are those of the page, and change with its colour scheme.
"use strict";

const ROW_HEIGHT = 34;
const AXIS_HEIGHT = 60;
const drawn = [];

function colour(variable) {
  return getComputedStyle(document.documentElement).getPropertyValue(variable).trim();
}

function axis(isCategory) {
  return {
    border: { color: colour("--control") },
    grid: { color: colour("--line"), display: !isCategory },
    ticks: { color: colour("--muted"), autoSkip: true, maxRotation: 0, precision: isCategory ? undefined : 0 },
  };
}

function base() {
  return {
    animation: false,
    responsive: true,
    maintainAspectRatio: false,
    locale: document.documentElement.lang,
    plugins: { legend: { display: false } },
  };
}

/** Columns, one for each label. */
function columns({ label, labels, points }) {
  const values = points.map(({ value }) => value);
  return {
    type: "bar",
    data: { labels, datasets: [{ label, data: values, backgroundColor: colour("--accent"), maxBarThickness: 32 }] },
    options: { ...base(), scales: { x: axis(true), y: { ...axis(false), beginAtZero: true } } },
  };
}

/** Lying bars with their intervals, one row for each label. */
function intervals({ label, labels, points }) {
  const data = points.map(({ value, low, high }) => ({ x: value, xMin: low, xMax: high }));
  const line = { errorBarColor: colour("--text"), errorBarWhiskerColor: colour("--text"), errorBarLineWidth: 1.5 };
  const bar = { backgroundColor: colour("--accent-soft"), borderColor: colour("--accent"), borderWidth: 1 };
  const value = { ...axis(false), ticks: { color: colour("--muted") } };
  const names = { ...axis(true), ticks: { color: colour("--muted"), autoSkip: false } };
  return {
    type: "barWithErrorBars",
    data: { labels, datasets: [{ label, data, maxBarThickness: 14, ...bar, ...line }] },
    options: { ...base(), indexAxis: "y", scales: { x: value, y: names } },
  };
}

function draw() {
  drawn.splice(0).forEach((chart) => chart.destroy());
  for (const canvas of document.querySelectorAll("canvas[data-chart]")) {
    const told = JSON.parse(document.getElementById(canvas.dataset.chart).textContent);
    const { rows } = canvas.parentElement.dataset;
    if (rows) canvas.parentElement.style.height = `${rows * ROW_HEIGHT + AXIS_HEIGHT}px`;
    drawn.push(new Chart(canvas, told.kind === "bar" ? columns(told) : intervals(told)));
  }
  document.documentElement.dataset.drawn = String(drawn.length);
}

draw();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
