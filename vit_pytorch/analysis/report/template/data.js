// What the page holds, read when it is needed.

const report = JSON.parse(document.getElementById("report").textContent);

const fromBase64 = (text) => {
  const raw = atob(text);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return bytes;
};

const inflate = async (bytes) => {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
};

// A place of the report is { prefix, rows, columns, high, wide }: tokens in front, then a grid of cells. The
// image is `high` by `wide` cells; the last row and column may stick out of it where patches were merged.
const countOf = (places) => places.prefix + places.rows * places.columns;

const cellAt = (places, x, y) => ({
  row: Math.min(places.rows - 1, Math.floor(y * places.high)),
  column: Math.min(places.columns - 1, Math.floor(x * places.wide)),
});

// Maps of one layer: numbers whose squares, divided by the sum of their row, are weights of attention.
class Maps {
  constructor(layer, numbers) {
    this.layer = layer;
    this.queries = countOf(layer.queries);
    this.keys = countOf(layer.keys);
    this.numbers = numbers;
    if (layer.differences) this.sumUp();
  }

  sumUp() {
    const { numbers, queries, keys } = this;
    for (let head = 0; head < this.layer.heads; head++) {
      const start = head * queries * keys;
      for (let i = start + keys; i < start + queries * keys; i++) numbers[i] += numbers[i - keys];
    }
  }

  // What one query takes from every key; `head` -1 is the mean of all heads.
  row(head, query, into = new Float32Array(this.keys), share = 1) {
    if (head < 0) {
      const { heads } = this.layer;
      for (let each = 0; each < heads; each++) this.row(each, query, into, share / heads);
      return into;
    }
    const start = (head * this.queries + query) * this.keys;
    let total = 0;
    for (let i = 0; i < this.keys; i++) total += this.numbers[start + i] ** 2;
    for (let i = 0; i < this.keys; i++) into[i] += (share * this.numbers[start + i] ** 2) / total;
    return into;
  }

  // The mean over all queries that are patches.
  mean(head) {
    const { prefix } = this.layer.queries;
    const into = new Float32Array(this.keys);
    for (let query = prefix; query < this.queries; query++) {
      this.row(head, query, into, 1 / (this.queries - prefix));
    }
    return into;
  }
}

const loaded = new Map();

// Decoded once, then kept.
const load = (layer) => {
  if (!loaded.has(layer.chunk)) {
    const text = document.getElementById(layer.chunk).textContent;
    loaded.set(layer.chunk, inflate(fromBase64(text)).then((numbers) => new Maps(layer, numbers)));
  }
  return loaded.get(layer.chunk);
};
