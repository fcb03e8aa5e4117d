// The page: what is chosen, and what follows from it.

const $ = (id) => document.getElementById(id);
const MODES = { attention: "Attention", rollout: "Rollout", relevance: "Relevance", tokens: "Tokens", none: "Image" };
const MOST = 5;

// `from` is what the map is seen from: { prefix: i }, { mean: true } or { x, y } in parts of the image; `kept`
// is where it returns to when the pointer leaves.
const state = { image: 0, mode: "attention", layer: -1, head: -1, class: 0, from: null, kept: null };
const image = () => report.images[state.image];

const startOf = (img) => {
  if (img.pooled || !askers(img).length) return { mean: true };
  return { prefix: 0 };
};

// Tokens that lie nowhere and look at patches: those in front of them, or the query of a pooling.
const askers = (img) => {
  if (img.prefix.length) return img.prefix;
  return img.layers.some((layer) => !layer.queries.rows) ? ["pooling query"] : [];
};

const shownLayer = () => (state.mode === "rollout" ? image().rollout : image().layers[state.layer]);

// The tokens of a layer that answer for what the map is seen from, and their name.
const resolve = (layer, from) => {
  const { queries } = layer;
  const single = !queries.rows;
  if (single) return { query: 0, name: askers(image())[0], instead: from.prefix !== 0 };
  if (from.prefix < queries.prefix) return { query: from.prefix, name: image().prefix[from.prefix] };
  if (from.x === undefined) return { query: null, name: "mean of all patches", instead: from.prefix !== undefined };
  const { row, column } = cellAt(queries, from.x, from.y);
  const query = queries.prefix + row * queries.columns + column;
  return { query, name: nameOf(row, column), row, column };
};

const nameOf = (row, column) => `row ${row + 1}, column ${column + 1}`;

// Where keys lie on another grid than queries, its size is told, too.
const nameOfKey = ({ keys, queries }, key) => {
  if (key < keys.prefix) return image().prefix[key];
  const name = nameOf(Math.floor((key - keys.prefix) / keys.columns), (key - keys.prefix) % keys.columns);
  const other = queries.rows && (queries.rows !== keys.rows || queries.columns !== keys.columns);
  return other ? `${name} of ${keys.rows} × ${keys.columns}` : name;
};

const nameOfFrom = (from) => (from.mean ? "mean" : from.x === undefined ? `p${from.prefix}` : "patch");

const gridOf = (mode) => {
  const img = image();
  if (mode === "relevance") return img.relevance.places;
  if (mode === "tokens") return img.colours.places;
  if (mode === "none") return (img.layers[state.layer] ?? img.relevance).keys ?? img.relevance.places;
  const layer = shownLayer();
  return layer.queries.rows ? layer.queries : layer.keys;
};

let turn = 0;

// Everything that changes with the pointer.
const render = async () => {
  const mine = ++turn;
  const { mode, from, head } = state;
  if (mode === "attention" || mode === "rollout") {
    const layer = shownLayer();
    const maps = await load(layer);
    if (mine !== turn) return;
    const asked = resolve(layer, from);
    const index = mode === "rollout" ? 0 : head;
    const weights = asked.query === null ? maps.mean(index) : maps.row(index, asked.query);
    const cells = weights.subarray(layer.keys.prefix);
    const largest = largestOf(cells);
    place(layer.keys);
    drawHeat($("overlay"), layer.keys, cells, largest);
    scale(percent(largest));
    tellAttention(layer, asked, weights);
    if (mode === "attention") drawHeads(layer, maps, asked);
  } else if (mode === "relevance") {
    const { places, maps } = image().relevance;
    place(places);
    drawHeat($("overlay"), places, maps[state.class], 255);
    scale("most");
    tellRelevance(places, maps[state.class]);
  } else if (mode === "tokens") {
    place(image().colours.places);
    drawColours($("overlay"), image().colours.places, image().colours.bytes);
    tellPlace();
  } else {
    tellPlace();
  }
  $("overlay").hidden = mode === "none";
  const heat = mode !== "none" && mode !== "tokens";
  for (const id of ["low", "high", "ramp"]) $(id).hidden = !heat;
  $("picture").classList.toggle("under", mode !== "none");
  check("from", nameOfFrom(from));
  outline();
};

const place = (places) => {
  $("overlay").style.width = `${(100 * places.columns) / places.wide}%`;
  $("overlay").style.height = `${(100 * places.rows) / places.high}%`;
};

const scale = (text) => { $("high").textContent = text; };

// The frame around the patch that is pointed at.
const outline = () => {
  const { from } = state;
  $("cell").hidden = from.x === undefined;
  if (from.x === undefined) return;
  const places = gridOf(state.mode);
  const { row, column } = cellAt(places, from.x, from.y);
  const [left, top] = [column / places.wide, row / places.high];
  Object.assign($("cell").style, {
    left: `${100 * left}%`,
    top: `${100 * top}%`,
    width: `${100 * Math.min(1 - left, 1 / places.wide)}%`,
    height: `${100 * Math.min(1 - top, 1 / places.high)}%`,
  });
};

const tell = (who, rows) => {
  $("who").textContent = who;
  $("most").replaceChildren(...rows.map(([name, value]) => make("li", {}, make("span", {}, name), make("span", {}, value))));
  announce(`${who} ${rows.map(([name, value]) => `${name}: ${value}`).join("; ")}`);
};

let waiting = 0;

// Told to a screen reader once the pointer rests; not before somebody has done something.
const announce = (text) => {
  if (!document.documentElement.dataset.ready) return;
  clearTimeout(waiting);
  waiting = setTimeout(() => { if ($("live").textContent !== text) $("live").textContent = text; }, 300);
};

const tellAttention = (layer, asked, weights) => {
  const order = Array.from(weights.keys()).sort((a, b) => weights[b] - weights[a]).slice(0, MOST);
  const heads = layer.heads === 1 ? "" : state.head < 0 ? `, mean of ${layer.heads} heads` : `, head ${state.head + 1}`;
  const where = state.mode === "rollout" ? "Through all layers" : `Layer ${state.layer + 1}${heads}`;
  const only = asked.instead ? " (all that this layer has)" : "";
  tell(`${where}: seen from ${asked.row === undefined ? "" : "the patch in "}${asked.name}${only}, most comes from`,
    order.map((key) => [nameOfKey(layer, key), percent(weights[key])]));
};

const tellRelevance = (places, values) => {
  const name = image().top[state.class].name;
  const most = largestOf(values);
  const part = (cell) => percent(most ? values[cell] / most : 0);
  const order = Array.from(values.keys()).sort((a, b) => values[b] - values[a]).slice(0, MOST);
  let who = `Most relevant for ${name}, of the largest`;
  if (state.from.x !== undefined) {
    const { row, column } = cellAt(places, state.from.x, state.from.y);
    who = `The patch in ${nameOf(row, column)} has ${part(row * places.columns + column)} of the largest relevance for ${name}. Most have`;
  }
  tell(who, order.map((cell) => [nameOf(Math.floor(cell / places.columns), cell % places.columns), part(cell)]));
};

const tellPlace = () => {
  const places = gridOf(state.mode);
  if (state.from.x === undefined) return tell(`${places.rows} rows and ${places.columns} columns of patches.`, []);
  const { row, column } = cellAt(places, state.from.x, state.from.y);
  let colour = "";
  if (state.mode === "tokens") {
    const start = 3 * (row * places.columns + column);
    colour = `: red ${image().colours.bytes[start]}, green ${image().colours.bytes[start + 1]}, blue ${image().colours.bytes[start + 2]}`;
  }
  return tell(`The patch in ${nameOf(row, column)}${colour}.`, []);
};

const drawHeads = (layer, maps, asked) => {
  const buttons = $("heads").children;
  for (let head = 0; head < layer.heads; head++) {
    const weights = asked.query === null ? maps.mean(head) : maps.row(head, asked.query);
    const cells = weights.subarray(layer.keys.prefix);
    drawHeat(buttons[head].firstChild, layer.keys, cells, largestOf(cells), 255);
  }
};
