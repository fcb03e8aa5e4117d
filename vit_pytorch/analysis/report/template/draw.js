// Colours and shapes.

const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};

const svg = (tag, attributes = {}, ...children) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
};

const percent = (value) => `${(100 * value).toFixed(value < 0.00995 ? 2 : value < 0.0995 ? 1 : 0)} %`;

// Matplotlib's "inferno", in steps of a sixteenth.
const STOPS = [
  "000004", "0b0724", "210c4a", "3d0965", "57106e", "71196e", "8a226a", "a32c61", "bc3754",
  "d24644", "e45a31", "f1731d", "f98e09", "fcac11", "f9cb35", "f2ea69", "fcffa4",
].map((hex) => [0, 2, 4].map((i) => parseInt(hex.slice(i, i + 2), 16)));

const RAMP = new Uint8ClampedArray(256 * 3);
for (let i = 0; i < 256; i++) {
  const place = (i / 255) * (STOPS.length - 1);
  const below = Math.min(STOPS.length - 2, Math.floor(place));
  for (let c = 0; c < 3; c++) {
    RAMP[3 * i + c] = STOPS[below][c] + (place - below) * (STOPS[below + 1][c] - STOPS[below][c]);
  }
}

// Draw numbers from 0 to `largest` as colours, one pixel a cell.
// Small ones let the image through, unless told otherwise.
const drawHeat = (canvas, places, values, largest, least = 150) => {
  const cells = places.rows * places.columns;
  const data = new ImageData(places.columns, places.rows);
  for (let i = 0; i < cells; i++) {
    const level = Math.round(255 * Math.min(1, largest > 0 ? values[i] / largest : 0));
    data.data.set(RAMP.subarray(3 * level, 3 * level + 3), 4 * i);
    data.data[4 * i + 3] = least + Math.round((level / 255) * (255 - least));
  }
  put(canvas, places, data);
};

const drawColours = (canvas, places, bytes) => {
  const data = new ImageData(places.columns, places.rows);
  for (let i = 0; i < places.rows * places.columns; i++) {
    data.data.set(bytes.subarray(3 * i, 3 * i + 3), 4 * i);
    data.data[4 * i + 3] = 255;
  }
  put(canvas, places, data);
};

const put = (canvas, places, data) => {
  canvas.width = places.columns;
  canvas.height = places.rows;
  canvas.getContext("2d").putImageData(data, 0, 0);
};

const largestOf = (values) => values.reduce((most, value) => Math.max(most, value), 0);

// The plot of mean attention distances; `choose(layer, head)` is called for what is clicked.
const drawDistances = (box, image, chosen, choose) => {
  const width = Math.max(260, box.clientWidth);
  const height = Math.min(300, Math.max(200, width * 0.4));
  const left = 40, right = 12, top = 14, bottom = 38;
  const known = image.distances.flatMap((found) => found ?? []);
  const even = image.uniform.map((value) => value ?? 0);
  const step = niceStep(Math.max(...known, ...even) / 4);
  const most = step * Math.ceil((Math.max(...known, ...even) * 1.02) / step);
  const count = image.layers.length;
  const room = (width - left - right) / count;
  const x = (layer) => left + (layer + 0.5) * room;
  const y = (value) => top + (1 - value / most) * (height - top - bottom);
  const means = image.distances.map((found) => found && found.reduce((a, b) => a + b, 0) / found.length);

  const first = means.findIndex((value) => value !== null);
  const last = means.findLastIndex((value) => value !== null);
  const label =
    `Mean attention distance of ${count} layers: layer ${first + 1} ${means[first].toFixed(1)} pixels, ` +
    `layer ${last + 1} ${means[last].toFixed(1)} pixels; heads from ${Math.min(...known).toFixed(1)} to ` +
    `${Math.max(...known).toFixed(1)}. The table below has the numbers.`;
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  picture.append(
    svg("rect", { class: "band", x: x(chosen.layer) - room / 2, y: top, width: room, height: height - top - bottom }),
  );
  for (let value = 0; value <= most + 1e-9; value += step) {
    picture.append(
      svg("line", { class: "axis", x1: left, x2: width - right, y1: y(value), y2: y(value) }),
      svg("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, String(+value.toFixed(6))),
    );
  }
  const every = Math.ceil(26 / room);
  for (let layer = 0; layer < count; layer += every) {
    picture.append(svg("text", { x: x(layer), y: height - 20, "text-anchor": "middle" }, String(layer + 1)));
  }
  picture.append(
    svg("text", { x: left + (width - left - right) / 2, y: height - 3, "text-anchor": "middle" }, "layer"),
  );
  const path = (values) =>
    values.map((value, i) => (value === null ? "" : `${i && values[i - 1] !== null ? "L" : "M"}${x(i)} ${y(value)}`)).join("");
  picture.append(svg("path", { class: "even", fill: "none", d: path(image.uniform) }));
  image.distances.forEach((found, layer) => {
    const hit = svg("rect", { class: "hit", x: x(layer) - room / 2, y: top, width: room, height: height - top - bottom });
    hit.addEventListener("click", () => choose(layer, -1));
    picture.append(hit);
    (found ?? []).forEach((value, head) => {
      const dot = svg("circle", { class: "dot", cx: x(layer), cy: y(value), r: 4 });
      dot.classList.toggle("chosen", layer === chosen.layer && head === chosen.head);
      dot.append(svg("title", {}, `layer ${layer + 1}, head ${head + 1}: ${value.toFixed(1)} pixels`));
      dot.addEventListener("click", () => choose(layer, head));
      picture.append(dot);
    });
  });
  picture.append(svg("path", { class: "mean", d: path(means), "pointer-events": "none" }));
  box.replaceChildren(picture);
};

const niceStep = (rough) => {
  const power = 10 ** Math.floor(Math.log10(rough));
  return power * [1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough);
};
