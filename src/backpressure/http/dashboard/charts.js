// The charts: what each shows of the history, and how it is drawn. uPlot is loaded before.

const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

export const count = (value) => (value == null ? "–" : compact.format(value));

export const seconds = (value) => {
  if (value == null) return "–";
  if (value === 0) return "0 s";
  if (value < 1) return `${Number((value * 1000).toPrecision(2))} ms`;
  return value < 120 ? `${Number(value.toPrecision(2))} s` : `${Math.round(value / 60)} min`;
};

const share = (value) => (value == null ? "–" : value.toFixed(2));

const STATES = ["closed", "half-open", "open"];

// Lines differ by dashes as well as by colour. A stacked chart is drawn from the back: the whole sum first.
const CHARTS = {
  rates: {
    format: count,
    series: [
      { key: "accepted", label: "in", color: "--in", fill: 0.1 },
      { key: "delivered", label: "out", color: "--out", dash: [8, 4] },
      { key: "refused", label: "refused", color: "--refused", dash: [2, 3] },
    ],
  },
  delay: {
    format: seconds,
    series: [
      { key: "delay", label: "delay", color: "--delay", fill: 0.14 },
      { key: "delayThreshold", label: "threshold", color: "--threshold", dash: [6, 5], width: 1.5 },
    ],
  },
  waiting: {
    format: count,
    stacked: true,
    // One for each lane that the buffer has: those without a value are left out.
    sparse: true,
    series: [5, 4, 3, 2, 1].map((priority) => (
      { key: `waiting${priority}`, label: `${priority}`, color: `--p${priority}`, fill: 1, width: 1 }
    )),
    extra: { key: "disk", label: "on disk", color: "--disk", dash: [3, 3] },
  },
  pressure: {
    format: share,
    range: [0, 1.02],
    series: [
      { key: "pressure", label: "pressure", color: "--pressure", fill: 0.16 },
      { key: "pressureThreshold", label: "threshold", color: "--threshold", dash: [6, 5], width: 1.5 },
    ],
  },
  batch: {
    format: count,
    stepped: true,
    series: [{ key: "batch", label: "events", color: "--batch", fill: 0.12 }],
  },
  circuit: {
    format: (value) => (value == null ? "–" : STATES[value]),
    range: [-0.15, 2.2],
    splits: [0, 1, 2],
    stepped: true,
    series: [{ key: "circuit", label: "state", color: "--circuit", fill: 0.22 }],
  },
};

const HEIGHT = 184;

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function translucent(hex, alpha) {
  const [r, g, b] = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  return `rgba(${r}, ${g}, ${b}, ${alpha})`;
}

class Chart {
  constructor(figure, definition) {
    this.definition = definition;
    this.place = document.createElement("div");
    this.place.className = "plot";
    this.place.setAttribute("role", "img");
    this.title = figure.querySelector("figcaption").textContent;
    figure.append(this.place);
    this.raw = [];
    this.extra = false;
    this.shown = definition.series;
    this.build();
    new ResizeObserver(() => this.resize()).observe(this.place);
  }

  series() {
    return this.extra ? [...this.shown, this.definition.extra] : this.shown;
  }

  // Built anew when the colours change: uPlot keeps the old ones.
  build() {
    this.plot?.destroy();
    const { format, range, splits, stepped } = this.definition;
    const axis = {
      stroke: colour("--soft"),
      grid: { stroke: colour("--grid"), width: 1 },
      ticks: { stroke: colour("--grid"), width: 1, size: 5 },
      font: "12px system-ui, sans-serif",
      gap: 6,
    };
    this.plot = new uPlot({
      width: Math.max(this.place.clientWidth, 200),
      height: HEIGHT,
      padding: [10, 12, 0, 0],
      cursor: { sync: { key: "time" }, points: { size: 7 }, drag: { x: false, y: false } },
      legend: { live: true },
      scales: { y: { range: range ? () => range : (plot, low, high) => [0, high > 0 ? high * 1.12 : 1] } },
      axes: [
        { ...axis, size: 30, space: 70, values: (plot, times) => times.map((time) => clock(time, plot)) },
        { ...axis, size: 66, splits: splits && (() => splits), values: (plot, values) => values.map(format) },
      ],
      series: [{}, ...this.series().map((one, index) => ({
        label: one.label,
        stroke: colour(one.color),
        width: one.width ?? 2,
        dash: one.dash,
        fill: one.fill && translucent(colour(one.color), one.fill),
        points: { show: false },
        paths: stepped ? uPlot.paths.stepped({ align: 1 }) : undefined,
        value: (plot, value, series, at) => format(at == null ? null : this.raw[index]?.[at]),
      }))],
    }, [[], ...this.series().map(() => [])], this.place);
    this.plot.over.addEventListener("mouseleave", () => this.showLatest());
    if (this.last) this.draw(...this.last);
  }

  draw(times, columns, from, to) {
    this.last = [times, columns, from, to];
    const { series, sparse, extra, stacked, format } = this.definition;
    const known = ({ key }) => columns[key].some((value) => value != null);
    const shown = sparse ? series.filter(known) : series;
    const withExtra = extra !== undefined && (this.extra || known(extra));
    const same = shown.length === this.shown.length && shown.every((one, index) => one === this.shown[index]);
    if (withExtra !== this.extra || (shown.length && !same)) {
      this.shown = shown.length ? shown : this.shown;
      this.extra = withExtra;
      this.build();
      return;
    }
    this.raw = this.series().map(({ key }) => columns[key]);
    this.plot.batch(() => {
      this.plot.setData([times, ...(stacked ? stack(this.raw, this.extra) : this.raw)], false);
      this.plot.setScale("x", { min: from, max: to });
    });
    if (this.plot.cursor.idx == null || this.plot.cursor.left < 0) this.showLatest();
    const now = this.series().map(({ label }, index) => `${label} ${format(this.raw[index].at(-1))}`);
    this.place.setAttribute("aria-label", `${this.title}. Now: ${now.join(", ")}.`);
  }

  showLatest() {
    if (this.last?.[0].length) this.plot.setLegend({ idx: this.last[0].length - 1 });
  }

  resize() {
    const width = this.place.clientWidth;
    if (width && width !== this.plot.width) this.plot.setSize({ width, height: HEIGHT });
  }
}

function stack(raw, extra) {
  const stacked = raw.map((column) => [...column]);
  const top = extra ? raw.length - 2 : raw.length - 1;
  for (let series = top - 1; series >= 0; series--) {
    for (let at = 0; at < stacked[series].length; at++) {
      if (stacked[series][at] != null) stacked[series][at] += stacked[series + 1][at] ?? 0;
    }
  }
  return stacked;
}

function clock(time, plot) {
  const { min, max } = plot.scales.x;
  const whole = new Date(time * 1000).toLocaleTimeString("en-GB");
  return max - min > 240 ? whole.slice(0, 5) : whole;
}

export class Charts {
  constructor(root) {
    this.charts = [...root.querySelectorAll("[data-chart]")].map((figure) => new Chart(figure, CHARTS[figure.dataset.chart]));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.charts.forEach((one) => one.build()));
  }

  draw(history, width) {
    const to = history.times.at(-1) ?? Date.now() / 1000;
    for (const one of this.charts) one.draw(history.times, history.columns, to - width, to);
  }
}
