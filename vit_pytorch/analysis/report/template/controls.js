// Controls: made for the image that is chosen, and what they do.

const choose = (changes) => {
  Object.assign(state, changes);
  if (changes.kept) state.from = changes.kept;
  showControls();
  return render().catch(fail);
};

const fail = (error) => {
  $("failure").textContent = `The maps cannot be drawn: ${error.message}`;
  $("failure").hidden = false;
};

const radio = (group, value, label, change) => {
  const input = make("input", { type: "radio", name: group, value });
  input.addEventListener("change", change);
  return make("label", {}, input, ...label);
};

const check = (group, value) => {
  for (const input of document.getElementsByName(group)) input.checked = input.value === String(value);
};

// Controls that do not depend on the image.
const buildPage = () => {
  report.images.forEach((each, i) => {
    const picture = make("img", { src: each.picture, alt: "" });
    picture.classList.toggle("pixels", each.width < 128);
    $("images").append(radio("image", i, [picture, make("span", { title: each.name }, each.name)], () => openImage(i)));
  });
  $("images").hidden = report.images.length < 2;
  const colours = STOPS.map((_, i) => `rgb(${RAMP.slice(3 * Math.round((i * 255) / 16), 3 * Math.round((i * 255) / 16) + 3).join(" ")})`);
  $("ramp").style.background = `linear-gradient(to right, ${colours.join(", ")})`;

  const dark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light")) === "dark";
  const showTheme = () => $("theme").setAttribute("aria-pressed", isDark());
  $("theme").addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    showTheme();
  });
  dark.addEventListener("change", showTheme);
  showTheme();

  $("strength").addEventListener("input", () => { $("overlay").style.opacity = $("strength").value / 100; });
  $("overlay").style.opacity = $("strength").value / 100;
  $("smooth").addEventListener("change", () => $("overlay").classList.toggle("smooth", $("smooth").checked));
  $("layer").addEventListener("input", () => choose({ layer: $("layer").value - 1, head: headIn($("layer").value - 1), mode: "attention" }));
  $("head").addEventListener("change", () => choose({ head: Number($("head").value), mode: "attention" }));
  new ResizeObserver(showDistances).observe($("plot"));
  buildMap();
};

// The head stays where the next layer has it, too.
const headIn = (layer) => (state.head < image().layers[layer].heads ? state.head : -1);

const openImage = (index) => {
  state.image = index;
  const img = image();
  if (!(state.layer in img.layers)) state.layer = Math.max(0, img.layers.length - 1);
  state.class = 0;
  const has = { attention: img.layers.length, rollout: img.rollout, relevance: true, tokens: img.colours, none: true };
  if (!has[state.mode]) state.mode = img.layers.length ? "attention" : "relevance";
  if (img.layers.length) state.head = headIn(state.layer);

  $("picture").src = img.picture;
  $("picture").alt = `${img.name}, as the model sees it`;
  $("picture").classList.toggle("pixels", img.width < 128);
  $("map").style.aspectRatio = `${img.width} / ${img.height}`;
  const modes = Object.entries(MODES).filter(([mode]) => has[mode]);
  $("modes").replaceChildren($("modes").firstElementChild,
    ...modes.map(([mode, name]) => radio("mode", mode, [make("span", {}, name)], () => choose({ mode }))));
  $("classes").replaceChildren($("classes").firstElementChild, ...img.top.map(({ name, probability, text }, i) => {
    const bar = make("span");
    bar.style.width = `${100 * probability}%`;
    const label = [make("span", {}, name), make("span", { className: "share" }, text || percent(probability)),
      make("span", { className: "bar" }, bar)];
    const made = radio("class", i, label, () => choose({ class: i, mode: "relevance" }));
    // a class that is chosen already shows its relevance, too
    made.firstChild.addEventListener("click", () => { if (state.mode !== "relevance") choose({ class: i, mode: "relevance" }); });
    return made;
  }));
  $("method").textContent = `Relevance: ${img.relevance.method}. Choosing a class shows it.`;
  $("attention").hidden = !img.layers.length;
  $("layer").max = img.layers.length;
  const from = [...askers(img).map((name, i) => [`p${i}`, name, { prefix: i }]), ["mean", "mean of patches", { mean: true }],
    ["patch", "a patch", { x: 0.5, y: 0.5 }]];
  $("from").replaceChildren($("from").firstElementChild,
    ...from.map(([value, name, kept]) => radio("from", value, [make("span", {}, name)], () => choose({ kept, mode: attentive() }))));
  $("notes").replaceChildren(...img.notes.map((note) => make("li", {}, note)));
  $("distance").hidden = !img.distances.some((found) => found);
  fillDistances();
  return choose({ kept: startOf(img) });
};

// What is seen from somewhere: the maps, or the rollout where that is shown.
const attentive = () => (state.mode === "rollout" ? "rollout" : "attention");

const showControls = () => {
  const img = image();
  check("image", state.image);
  check("mode", state.mode);
  check("class", state.class);
  const { rows, columns } = gridOf(state.mode);
  $("map").setAttribute("aria-label", `${img.name}: ${rows} rows and ${columns} columns of patches, ${MODES[state.mode].toLowerCase()}`);
  if (!img.layers.length) return;
  const layer = img.layers[state.layer];
  $("layer").value = state.layer + 1;
  $("layer-shown").textContent = `${state.layer + 1} of ${img.layers.length}`;
  $("layer").setAttribute("aria-valuetext", `${state.layer + 1} of ${img.layers.length}, ${layer.name}`);
  $("module").textContent = layer.name;
  if ($("head").options.length !== layer.heads + 1) {
    const names = Array.from({ length: layer.heads }, (_, head) => [head, `head ${head + 1}`]);
    $("head").replaceChildren(...[[-1, `mean of ${layer.heads} heads`], ...names].map(([value, name]) => make("option", { value }, name)));
    $("heads").replaceChildren(...names.map(([head, name]) => {
      const button = make("button", { type: "button" }, make("canvas"), String(head + 1));
      button.setAttribute("aria-label", name);
      button.addEventListener("click", () => choose({ head: state.head === head ? -1 : head, mode: "attention" }));
      return button;
    }));
    $("heads").style.setProperty("--columns", layer.heads <= 6 ? Math.max(4, layer.heads) : Math.min(8, Math.ceil(layer.heads / 2)));
  }
  $("head").value = state.head;
  Array.from($("heads").children).forEach((button, head) => {
    button.setAttribute("aria-pressed", head === state.head);
    button.firstChild.style.aspectRatio = `${img.width} / ${img.height}`;
  });
  showDistances();
};

const showDistances = () => {
  if ($("distance").hidden) return;
  drawDistances($("plot"), image(), state, (layer, head) => choose({ layer, head, mode: "attention" }));
};

const fillDistances = () => {
  const rows = image().distances.flatMap((found, layer) => (found ? [[layer + 1, Math.min(...found),
    found.reduce((a, b) => a + b, 0) / found.length, Math.max(...found)]] : []));
  $("distances").tBodies[0].replaceChildren(...rows.map(([layer, ...values]) =>
    make("tr", {}, make("th", { scope: "row" }, String(layer)), ...values.map((value) => make("td", {}, value.toFixed(1))))));
};

// Pointer and keys on the image.
const buildMap = () => {
  const map = $("map");
  const at = (event) => {
    const box = map.getBoundingClientRect();
    const part = (value, start, extent) => Math.min(1 - 1e-6, Math.max(0, (value - start) / extent));
    return { x: part(event.clientX, box.left, box.width), y: part(event.clientY, box.top, box.height) };
  };
  let drawn = null;
  map.addEventListener("pointermove", (event) => {
    if (event.pointerType === "touch") return;
    state.from = at(event);
    drawn ??= requestAnimationFrame(() => { drawn = null; render().catch(fail); });
  });
  map.addEventListener("pointerleave", () => choose({ kept: state.kept }));
  map.addEventListener("click", (event) => choose({ kept: at(event) }));
  map.addEventListener("keydown", onKey);
};

const STEPS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0], Home: [0, -1e6], End: [0, 1e6] };

const onKey = (event) => {
  const img = image();
  if (event.altKey || event.ctrlKey || event.metaKey) return;
  if (event.key in STEPS) {
    choose({ kept: moved(gridOf(state.mode), ...STEPS[event.key]) });
  } else if (event.key === "Escape") {
    choose({ kept: startOf(img) });
  } else if (event.key === "Enter") {
    choose({ kept: state.from });
  } else if ((event.key === "PageDown" || event.key === "PageUp") && img.layers.length) {
    const layer = state.layer + (event.key === "PageDown" ? 1 : -1);
    if (layer in img.layers) choose({ layer, head: headIn(layer), mode: "attention" });
  } else {
    return;
  }
  event.preventDefault();
};

// The middle of the cell some rows and columns further; of the central cell where none was chosen.
const moved = (places, down, right) => {
  const { from } = state;
  let { row, column } = cellAt(places, from.x ?? 0.5, from.y ?? 0.5);
  if (from.x !== undefined) {
    row = Math.min(places.rows - 1, Math.max(0, row + down));
    column = Math.min(places.columns - 1, Math.max(0, column + right));
  }
  const middle = (index, extent) => (index + Math.min(index + 1, extent)) / 2 / extent;
  return { x: middle(column, places.wide), y: middle(row, places.high) };
};

const start = async () => {
  for (const img of report.images) {
    img.relevance.maps = img.relevance.maps.map(fromBase64);
    if (img.colours) img.colours.bytes = fromBase64(img.colours.bytes);
  }
  buildPage();
  await openImage(0);
  document.documentElement.dataset.ready = Math.round(performance.now());
};

start().catch(fail);
