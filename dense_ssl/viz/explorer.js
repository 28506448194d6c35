// What is clicked: one ES module for JupyterLab (anywidget) and for a page without kernel and server.
// `render` draws a scene as `dense_ssl.viz.clickable.scene` packs it; everything a click asks for is computed here.

const bytes = text => Uint8Array.from(atob(text), letter => letter.charCodeAt(0)).buffer;
const clamp = (v, low, high) => Math.min(high, Math.max(low, v));

/** int8 features with a scale for each channel -> vectors, Float32Array (h * w * d). Not brought back to unit length:
 *  what the channels left out adds to the length of each adds next to nothing to the product of two. */
export function unpack(data, scales) {
  return Float32Array.from(new Int8Array(bytes(data)), (q, i) => q * scales[i % scales.length]);
}

/** Cosine of every cell with one vector (d), Float32Array (h * w). */
export function cosines(vectors, query) {
  const d = query.length, out = new Float32Array(vectors.length / d);
  for (let i = 0; i < out.length; i++) {
    let sum = 0;
    for (let k = 0; k < d; k++) sum += vectors[i * d + k] * query[k];
    out[i] = clamp(sum, -1, 1);
  }
  return out;
}

/** Eigenvectors of a symmetric matrix (d x d, rows), largest eigenvalue first, by Jacobi's rotations. */
function eigenvectors(a) {
  const d = a.length, v = a.map((_, i) => Float64Array.from({length: d}, (_, j) => +(i == j)));
  const turn = (m, p, q, c, s) => {
    for (let k = 0; k < d; k++) {
      const x = m[p][k], y = m[q][k];
      m[p][k] = c * x - s * y, m[q][k] = s * x + c * y;
    }
  };
  let whole = 0;
  for (const row of a) for (const x of row) whole += x * x;
  for (let sweep = 0; sweep < 30; sweep++) {
    let off = 0;
    for (let p = 0; p < d; p++) for (let q = p + 1; q < d; q++) off += a[p][q] ** 2;
    if (off <= 1e-18 * whole) break;
    for (let p = 0; p < d; p++) for (let q = p + 1; q < d; q++) {
      if (Math.abs(a[p][q]) < 1e-300) continue;
      const t = (a[q][q] - a[p][p]) / (2 * a[p][q]);
      const tan = (t < 0 ? -1 : 1) / (Math.abs(t) + Math.hypot(t, 1)), c = 1 / Math.hypot(tan, 1), s = tan * c;
      turn(a, p, q, c, s);
      for (const row of a) [row[p], row[q]] = [c * row[p] - s * row[q], s * row[p] + c * row[q]];
      turn(v, p, q, c, s);
    }
  }
  const order = [...a.keys()].sort((i, j) => a[j][j] - a[i][i]);
  return order.map(i => v[i]);
}

/** The first `count` principal components of rows of vectors: their projections, Float64Array (n * count). */
function project(rows, d, count) {
  const n = rows.length / d, mean = new Float64Array(d);
  for (let i = 0; i < rows.length; i++) mean[i % d] += rows[i] / n;
  const a = Array.from({length: d}, () => new Float64Array(d)), x = new Float64Array(d);
  for (let i = 0; i < n; i++) {
    for (let k = 0; k < d; k++) x[k] = rows[i * d + k] - mean[k];
    for (let k = 0; k < d; k++) for (let l = k; l < d; l++) a[k][l] += x[k] * x[l] / n;
  }
  for (let k = 0; k < d; k++) for (let l = 0; l < k; l++) a[k][l] = a[l][k];
  const basis = eigenvectors(a).slice(0, count), out = new Float64Array(n * count);
  basis.forEach((b, c) => {
    const most = b.reduce((m, v) => Math.abs(v) > Math.abs(m) ? v : m, 0), sign = most < 0 ? -1 : 1;
    for (let i = 0; i < n; i++)
      for (let k = 0; k < d; k++) out[i * count + c] += sign * b[k] * (rows[i * d + k] - mean[k]);
  });
  return out;
}

/** Each column of (n * count) from its 1st to its 99th percentile, in [0, 1]; without spread: 0.5. */
function stretched(values, count) {
  for (let c = 0; c < count; c++) {
    const column = values.filter((_, i) => i % count == c).sort();
    const [low, high] = [0.01, 0.99].map(p => {
      const at = p * (column.length - 1), i = Math.floor(at);
      return column[i] + (at - i) * ((column[i + 1] ?? column[i]) - column[i]);
    });
    for (let i = c; i < values.length; i += count)
      values[i] = high - low > 1e-9 ? clamp((values[i] - low) / (high - low), 0, 1) : 0.5;
  }
  return values;
}

/** Feature maps as colours: three principal components in one basis and range for all maps, [(h * w * 3)] in [0, 1].
 *  Foreground t > 0: cells whose first component is below t of its range are 0, and the basis is that of the others;
 *  t < 0 keeps those below -t. */
export function colours(maps, d, foreground = 0) {
  let rows = new Float64Array(maps.reduce((n, m) => n + m.length, 0)), at = 0;
  for (const map of maps) rows.set(map, at), at += map.length;
  const n = rows.length / d, out = new Float64Array(n * 3);
  let kept = [...Array(n).keys()];
  if (foreground) {
    const first = stretched(project(rows, d, 1), 1);
    kept = kept.filter(i => foreground > 0 ? first[i] >= foreground : first[i] < -foreground);
    if (kept.length < 2) return maps.map(m => new Float64Array(m.length / d * 3));
    const few = new Float64Array(kept.length * d);
    kept.forEach((i, j) => few.set(rows.subarray(i * d, i * d + d), j * d));
    rows = few;
  }
  const count = Math.min(3, d), seen = stretched(project(rows, d, count), count);
  kept.forEach((i, j) => out.set(seen.subarray(j * count, j * count + count), i * 3));
  at = 0;
  return maps.map(m => out.subarray(at, at += m.length / d * 3));
}

/** 1 / depth at a pixel; linear between the kept pixels, for that is exact on planes; across an edge the nearest. */
function inverseDepth(image, row, col) {
  const {size: [h, w], unit} = image.depth, [H, W] = image.size, q = image.inverse;
  const y = clamp((row + 0.5) / H * h - 0.5, 0, h - 1), x = clamp((col + 0.5) / W * w - 0.5, 0, w - 1);
  const i = Math.min(Math.floor(y), h - 2), j = Math.min(Math.floor(x), w - 2), a = y - i, b = x - j;
  const four = [q[i * w + j], q[i * w + j + 1], q[(i + 1) * w + j], q[(i + 1) * w + j + 1]];
  if (Math.min(...four) * 1.1 < Math.max(...four)) return q[Math.round(y) * w + Math.round(x)] * unit;
  const [top, low] = [four[0] * (1 - b) + four[1] * b, four[2] * (1 - b) + four[3] * b];
  return (top * (1 - a) + low * a) * unit;
}

/** Where a pixel of one posed image stands in another: {row, col, seen}, or null where that is not known. */
export function reproject(from, to, row, col) {
  if (!from.pose || !to.pose || !from.inverse || !to.inverse || from.scene != to.scene) return null;
  const inverse = inverseDepth(from, row, col);
  if (!(inverse > 0)) return null;
  const z = 1 / inverse, K = from.K, p = [(col - K[0][2]) / K[0][0] * z, (row - K[1][2]) / K[1][1] * z, z];
  const world = from.pose.slice(0, 3).map(r => r[0] * p[0] + r[1] * p[1] + r[2] * p[2] + r[3]);
  const off = world.map((v, i) => v - to.pose[i][3]);
  const camera = [0, 1, 2].map(j => off[0] * to.pose[0][j] + off[1] * to.pose[1][j] + off[2] * to.pose[2][j]);
  if (camera[2] <= 0) return {seen: false};
  const x = camera[0] / camera[2] * to.K[0][0] + to.K[0][2], y = camera[1] / camera[2] * to.K[1][1] + to.K[1][2];
  const inside = x >= -0.5 && x < to.size[1] - 0.5 && y >= -0.5 && y < to.size[0] - 0.5;
  if (!inside) return {seen: false};
  const found = inverseDepth(to, y, x), seen = found > 0 && Math.abs(1 / found - camera[2]) < 0.05 + 0.03 * camera[2];
  return {row: y, col: x, seen};
}

/** What training takes for positives of a pixel (PixDepth Eq. 1, 3, 4), a byte for each kept pixel of depth. */
export function positives(image, row, col, distance, level) {
  const [h, w] = image.depth?.size ?? [96, 128], [H, W] = image.size, out = new Uint8Array(h * w);
  const depth = level == null ? null : image.level;
  const here = depth && depth[clamp(Math.floor((row + 0.5) / H * h), 0, h - 1) * w +
                              clamp(Math.floor((col + 0.5) / W * w), 0, w - 1)];
  for (let i = 0; i < h; i++) for (let j = 0; j < w; j++) {
    const far = Math.hypot((i + 0.5) / h * H - 0.5 - row, (j + 0.5) / w * W - 0.5 - col) / image.bin;
    out[i * w + j] = far <= distance && !(depth && Math.abs(depth[i * w + j] - here) > level);   // unknown is near
  }
  return {size: [h, w], mask: out};
}

/** The border of a mask as an SVG path in pixels of an image. */
function outline({size: [h, w], mask}, [H, W]) {
  const parts = [], y = H / h, x = W / w, at = (i, j) => i >= 0 && j >= 0 && i < h && j < w && mask[i * w + j];
  for (let i = 0; i <= h; i++) for (let j = 0; j <= w; j++) {
    if (!at(i, j) != !at(i - 1, j)) parts.push(`M${j * x} ${i * y}h${x}`);
    if (!at(i, j) != !at(i, j - 1)) parts.push(`M${j * x} ${i * y}v${y}`);
  }
  return parts.join("");
}

const STYLE = `
.dense-explorer {position: relative; font: 14px/1.4 var(--jp-ui-font-family, system-ui, sans-serif);
  color: var(--jp-ui-font-color1, #222); max-width: 1320px; margin: 0 auto}
.dense-explorer * {box-sizing: border-box}
.dense-tiles {display: grid; gap: 6px 10px; justify-content: center}
.dense-tile {margin: 0; min-width: 0}
.dense-face {position: relative; cursor: crosshair; touch-action: manipulation; overflow: hidden; border-radius: 4px;
  outline-offset: 2px; background: #777; user-select: none}
.dense-face:focus-visible {outline: 3px solid #1976d2}
.dense-face > * {position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; display: block;
  pointer-events: none; max-width: none}
.dense-tile figcaption {font-size: 12px; line-height: 1.35; min-height: 2.7em; padding: 2px 1px; margin: 0;
  font-style: normal; max-width: none; text-align: left; color: inherit}
.dense-tile figcaption b {font-size: 13px}
.dense-problem {color: #b00020}
.dense-match {position: absolute; transform: translate(-50%, -50%); min-width: 15px; min-height: 15px;
  border: 3px solid #ff9a00; outline: 1.5px solid #000; box-shadow: inset 0 0 0 1.5px #000}
.dense-bar {display: flex; flex-wrap: wrap; gap: 8px 22px; align-items: center; margin: 4px 0}
.dense-bar label, .dense-more label {display: inline-flex; gap: 7px; align-items: center}
.dense-explorer :is(button, select, input, summary) {font: inherit; color: inherit}
.dense-explorer button {border: 1px solid #8888; background: transparent; padding: 5px 12px; cursor: pointer;
  min-height: 34px}
.dense-choice {display: inline-flex} .dense-choice button:first-child {border-radius: 6px 0 0 6px}
.dense-choice button:last-child {border-radius: 0 6px 6px 0} .dense-choice button + button {border-left: 0}
.dense-explorer button[aria-pressed=true] {background: #1f5fa8; color: #fff}
.dense-explorer :is(button, input, select, summary):focus-visible {outline: 2px solid #1976d2; outline-offset: 1px}
.dense-explorer input[type=range] {width: 170px; accent-color: #1f5fa8; min-height: 28px; margin: 0}
.dense-explorer select {padding: 4px; background: transparent; border: 1px solid #8888; border-radius: 4px;
  max-width: 230px}
.dense-explorer select option {color: #222; background: #fff}
.dense-explorer output {min-width: 3.2em; font-variant-numeric: tabular-nums}
.dense-scale {width: 120px; height: 11px; border-radius: 3px; display: inline-block}
.dense-key {font-size: 12px} .dense-key svg {width: 17px; height: 17px; vertical-align: -4px}
.dense-said {position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%)}
.dense-grey img {filter: grayscale(1)}
.dense-click {width: max-content} .dense-read {font-size: 11px; line-height: 15px; height: 15px}
.dense-stack {position: relative}
.dense-stack > :is(img, svg) {position: absolute; inset: 0; width: 100%; height: 100%; max-width: none; margin: 0}
.dense-board :is(button, input, select, .noUi-handle):focus-visible {outline: 2px solid #1976d2; outline-offset: 1px}
.dense-more {margin: 2px 0} .dense-more > div {display: flex; flex-wrap: wrap; gap: 8px 20px; padding: 8px 0}
.dense-more summary {cursor: pointer; padding: 5px 0} .dense-more p {margin: 4px 0; max-width: 75em; font-size: 12.5px}
`;

const SHAPES = {   // where the click is, what the features find, what is true: told apart by form, not by colour alone
  asked: "<circle r='7' fill='none' stroke='#000' stroke-width='5'/>" +
         "<circle r='7' fill='none' stroke='#fff' stroke-width='2.4'/><circle r='1.6' fill='#fff' stroke='#000'/>",
  match: "<rect x='-9' y='-9' width='18' height='18' fill='none' stroke='#000' stroke-width='5.5'/>" +
         "<rect x='-9' y='-9' width='18' height='18' fill='none' stroke='#ff9a00' stroke-width='3'/>",
  truth: "<path d='M-11 0H11M0 -11V11' stroke='#000' stroke-width='6'/>" +
         "<path d='M-11 0H11M0 -11V11' stroke='#5fd3ff' stroke-width='3'/>",
};
const TEMPERATURES = [0, 1, 0.5, 0.3, 0.2, 0.1, 0.07, 0.05, 0.03];
const MODES = {similarity: "similar places", components: "all as colours", image: "image only"};
const MASKS = {none: "none", near: "near", both: "near and in depth"};

/** An element with attributes (those that begin with "on": listeners) and children. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes))
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) element.setAttribute(name, value === true ? "" : value);
  element.append(...children);
  return element;
}

/** A scene with what is packed in it made ready, once. */
function opened(scene) {
  const images = scene.images.map(image => ({...image}));
  for (const image of images) if (image.depth) {
    image.inverse = new Uint16Array(bytes(image.depth.data));
    const z = Float32Array.from(image.inverse, q => q ? 1 / (q * image.depth.unit) : NaN);
    const known = z.filter(v => v > 0), low = known.reduce((a, b) => Math.min(a, b), Infinity);
    const high = known.reduce((a, b) => Math.max(a, b), 0);
    image.level = z.map(v => (v - low) / Math.max(high - low, 1e-9));
  }
  const luts = Object.fromEntries(Object.entries(scene.colours).map(([k, v]) => [k, new Uint8Array(bytes(v))]));
  const ready = new Map();   // what was unpacked: "encoder shot image" -> vectors
  const vectors = (e, shot, i) => {
    const key = `${e} ${shot} ${i}`, {maps, scales} = scene.encoders[e].shots[shot];
    if (!ready.has(key)) ready.set(key, unpack(maps[i].data, scales));
    return ready.get(key);
  };
  return {...scene, images, luts, vectors, painted: new Map()};
}

/** The state of a view: what is asked (image, row, column), and what the controls say. */
function fresh(scene, point) {
  const start = scene.images[point?.[0]] ? [...point] : [...scene.start], [left, right] = pairOf(scene, start[0]);
  return {point: start, left, right, mode: "similarity", sharp: 0, foreground: 0, time: 1,
          colours: Object.keys(scene.colours)[0], strength: 0.75, smooth: true, masks: "none",
          shown: new Set(scene.encoders.keys())};
}

/** The two images that are shown when one of them is asked about. */
const pairOf = (scene, image) => scene.pairs.find(pair => pair.includes(image)) ?? [image, image];

/** The snapshot of an encoder at a moment in [0, 1] of its training. */
const shotAt = (encoder, time) => Math.round(time * (encoder.shots.length - 1));

/** The value that a twentieth of all values lies below. */
function lowest(maps) {
  const all = new Float32Array(maps.reduce((n, m) => n + m.length, 0));
  let at = 0;
  for (const map of maps) all.set(map, at), at += map.length;
  return all.sort()[Math.floor(all.length / 20)];
}

/** All that one encoder answers: a map for each image, the range of its colours, the best cell of the other image. */
function answer(scene, state, e) {
  const encoder = scene.encoders[e], shot = shotAt(encoder, state.time), [asked, row, col] = state.point;
  const {maps, scales} = encoder.shots[shot], d = scales.length, places = [...new Set([state.left, state.right])];
  if (state.mode == "components") {
    const key = `${e} ${shot} ${places} ${state.foreground}`;
    if (!scene.painted.has(key))
      scene.painted.set(key, colours(places.map(i => scene.vectors(e, shot, i)), d, state.foreground));
    return {maps: new Map(places.map((i, k) => [i, scene.painted.get(key)[k]]))};
  }
  const [h, w] = maps[asked].size, [H, W] = scene.images[asked].size;
  const cell = clamp(Math.floor(row * h / H), 0, h - 1) * w + clamp(Math.floor(col * w / W), 0, w - 1);
  const query = scene.vectors(e, shot, asked).subarray(cell * d, cell * d + d);
  const found = new Map(places.map(i => [i, cosines(scene.vectors(e, shot, i), query)]));
  found.get(asked)[cell] = 1;
  const other = places.find(i => i != asked), best = new Map();
  if (other != null) {
    const values = found.get(other), at = values.reduce((m, v, i) => v > values[m] ? i : m, 0);
    const [h2, w2] = maps[other].size, [H2, W2] = scene.images[other].size;
    best.set(other, {cosine: values[at], row: (Math.floor(at / w2) + 0.5) * H2 / h2 - 0.5,
                     col: (at % w2 + 0.5) * W2 / w2 - 0.5, high: H2 / h2, wide: W2 / w2});
  }
  const tau = TEMPERATURES[state.sharp], all = [...found.values()];   // without tau: from the lowest twentieth to 1
  if (tau) for (const values of all) values.forEach((v, i) => values[i] = Math.exp((v - 1) / tau));
  return {maps: found, low: tau ? 0 : lowest(all), high: 1, best};
}

/** Paint a map into a canvas of one pixel a cell: weak values let the image through. */
function paint(canvas, size, values, state, found, lut) {
  [canvas.height, canvas.width] = size;
  const picture = new ImageData(size[1], size[0]), solid = state.strength >= 1, n = size[0] * size[1];
  for (let i = 0; i < n; i++) {
    if (state.mode == "components") {
      for (let c = 0; c < 3; c++) picture.data[4 * i + c] = Math.round(255 * values[3 * i + c]);
      picture.data[4 * i + 3] = 255 * state.strength;
    } else {
      const t = clamp((values[i] - found.low) / Math.max(found.high - found.low, 1e-6), 0, 1);
      const step = 3 * Math.round(255 * t);
      for (let c = 0; c < 3; c++) picture.data[4 * i + c] = lut[step + c];
      picture.data[4 * i + 3] = solid ? 255 : 255 * state.strength * (0.15 + 0.85 * t ** 1.5);
    }
  }
  canvas.getContext("2d").putImageData(picture, 0, 0);
}

/** A picture that can be clicked, with a map, marks and a caption. */
function tile(scene, act, e, i) {
  const image = scene.images[i], encoder = scene.encoders[e], [H, W] = image.size;
  const canvas = make("canvas"), caption = make("figcaption"), marks = make("div", {"aria-hidden": true});
  const at = event => {
    const box = face.getBoundingClientRect();
    act.ask(i, Math.floor((event.clientY - box.top) / box.height * H),
            Math.floor((event.clientX - box.left) / box.width * W));
  };
  const face = make("div", {
    class: "dense-face", tabindex: 0, role: "application", style: `aspect-ratio: ${W} / ${H}`,
    "data-lm-suppress-shortcuts": true,
    "aria-label": `${image.name} by ${encoder.name}: click, or move with the arrow keys`,
    onclick: at, onpointermove: event => event.buttons == 1 && event.pointerType == "mouse" && at(event),
    onkeydown: event => act.key(event, e, i)}, make("img", {src: image.jpeg, alt: image.name, draggable: "false"}),
    canvas, marks);
  return {e, i, face, canvas, caption, marks, figure: make("figure", {class: "dense-tile"}, face, caption)};
}

const problem = encoder => make("span", {class: "dense-problem", role: "alert"}, `⚠ ${encoder.problem}`);

/** A mark at a pixel of an image, of the same size on the page whatever the image's. */
function mark(kind, [H, W], row, col, faint = false) {
  const place = `left:${100 * (col + 0.5) / W}%;top:${100 * (row + 0.5) / H}%;opacity:${faint ? 0.55 : 1}`;
  return `<svg class='dense-${kind}' viewBox='-14 -14 28 28' style='position:absolute;width:28px;height:28px;` +
         `margin:-14px;${place}' data-at='${row.toFixed(2)} ${col.toFixed(2)}'>${SHAPES[kind]}</svg>`;
}

const pixels = n => `${n.toFixed(n < 10 ? 1 : 0)} px`;

/** The marks over a picture, and the words below it. */
function explain(scene, state, tile, found) {
  const image = scene.images[tile.i], [asked, row, col] = state.point, from = scene.images[asked];
  const best = found.best?.get(tile.i), truth = tile.i == asked ? null : reproject(from, image, row, col);
  let drawn = "", words = "";
  if (tile.i == asked) drawn += training(state, image, row, col) + mark("asked", image.size, row, col);
  if (best) {
    const [H, W] = image.size, style = `left:${100 * (best.col + 0.5) / W}%;top:${100 * (best.row + 0.5) / H}%;` +
      `width:${100 * best.wide / W}%;height:${100 * best.high / H}%`;
    drawn += `<div class='dense-match' style='${style}' data-at='${best.row} ${best.col}'></div>`;
    words = `best match: cosine ${best.cosine.toFixed(2)}`;
  }
  if (truth?.row != null) {
    drawn += mark("truth", image.size, truth.row, truth.col, !truth.seen);
    const off = best && Math.hypot(best.row - truth.row, best.col - truth.col);
    if (!truth.seen) words += (words && ", ") + "the true point is hidden here";
    else if (best) words += `, ${pixels(off)} from the true point`;
  } else if (truth) words += (words && ", ") + "the true point is outside this image";
  return [drawn, words];
}

/** Outlines of what training takes for positives of the pixel, widest first. */
function training(state, image, row, col) {
  if (state.masks == "none" || (state.masks == "both" && !image.level)) return "";
  const path = ([distance, level]) => {
    const d = outline(positives(image, row, col, distance, state.masks == "both" ? level : null), image.size);
    return `<path d='${d}' stroke='#000' stroke-width='3.4'/><path d='${d}' stroke='#fff' stroke-width='1.5'/>`;
  };
  const [H, W] = image.size, paths = image.thresholds.map(path).join("");
  return `<svg class='dense-positives' viewBox='0 0 ${W} ${H}' preserveAspectRatio='none' fill='none'
    style='position:absolute;inset:0;width:100%;height:100%;vector-effect:non-scaling-stroke'>${paths}</svg>`;
}

/** A slider that names itself and says its value. */
function slider(name, low, high, step, value, say, act) {
  const output = make("output", {}, say(value));
  const input = make("input", {type: "range", min: low, max: high, step, "aria-label": name,
                               oninput: () => { output.textContent = say(+input.value); act(+input.value); }});
  input.value = value;
  return make("label", {}, name, input, output);
}

function select(name, options, value, act) {
  const input = make("select", {"aria-label": name, onchange: () => act(input.value)},
                     ...options.map(([v, text]) => make("option", {value: v}, text)));
  input.value = value;
  return make("label", {}, name, input);
}

/** The controls in sight: what is shown, one slider that belongs to it, and the time of training where there is one. */
function controls(scene, state, act) {
  const modes = make("span", {class: "dense-choice", role: "group", "aria-label": "show"});
  for (const [mode, words] of Object.entries(MODES))
    modes.append(make("button", {type: "button", "aria-pressed": String(state.mode == mode),
                                 onclick: () => act.set({mode})}, words));
  const fitting = {
    similarity: () => slider("temperature", 0, TEMPERATURES.length - 1, 1, state.sharp,
                             k => TEMPERATURES[k] || "cosine", sharp => act.set({sharp}, false)),
    components: () => slider("foreground", -0.95, 0.95, 0.05, state.foreground,
                             t => Math.abs(t) < 0.01 ? "all" : t.toFixed(2),
                             t => act.set({foreground: Math.abs(t) < 0.01 ? 0 : t}, false)),
    image: () => "",
  };
  const most = scene.encoders.reduce((a, b) => b.shots.length > a.length ? b.shots : a, []);
  const last = most.length - 1, moved = k => act.set({time: k / last}, false);
  const time = last > 0 ? slider("training", 0, last, 1, state.time * last, k => `step ${most[k].step}`, moved) : "";
  const pairs = make("span", {class: "dense-choice", role: "group", "aria-label": "images"});
  scene.pairs.forEach(([left, right], k) => pairs.append(make("button", {
    type: "button", "aria-pressed": String(state.left == left && state.right == right),
    onclick: () => act.set({left, right})}, left == right ? scene.images[left].name : `pair ${k + 1}`)));
  return make("div", {class: "dense-bar"}, modes, fitting[state.mode](), time, scene.pairs.length > 1 ? pairs : "");
}

/** What folds away: which images and encoders, how they are painted, and how exact it is. */
function more(scene, state, act, open) {
  const names = scene.images.map((image, i) => [i, image.name]), set = name => value => act.set({[name]: value}, false);
  const images = names.length > 2 ? [select("left", names, state.left, v => act.set({left: +v})),
                                     select("right", names, state.right, v => act.set({right: +v}))] : [];
  const encoders = scene.encoders.length > 1 ? scene.encoders.map((encoder, e) => {
    const box = make("input", {type: "checkbox", onchange: () => act.show(e, box.checked)});
    box.checked = state.shown.has(e);
    return make("label", {}, box, encoder.name);
  }) : [];
  const smooth = make("input", {type: "checkbox", onchange: () => set("smooth")(smooth.checked)});
  smooth.checked = state.smooth;
  const maps = Object.keys(scene.colours).map(name => [name, name]);
  const rules = Object.entries(MASKS).filter(([k]) => k != "both" || scene.images.some(i => i.level));
  const notes = [...scene.notes, ...scene.encoders.filter(e => e.note).map(e => `${e.name}: ${e.note}`)];
  const all = make("div", {}, ...images, ...encoders, select("colours", maps, state.colours, set("colours")),
                   slider("strength", 0, 1, 0.05, state.strength, v => v.toFixed(2), set("strength")),
                   make("label", {}, smooth, "smooth"),
                   select("training's positives", rules, state.masks, set("masks")));
  return make("details", {class: "dense-more", open}, make("summary", {}, "more"), all,
              ...notes.map(note => make("p", {}, note)));
}

/** Columns are encoders and rows images; in a narrow place, or for one encoder, the other way round. */
function arrange(box, tiles, scene) {
  const encoders = [...new Set(tiles.map(t => t.e))], images = [...new Set(tiles.map(t => t.i))];
  const turned = encoders.length == 1 || box.parentNode.parentNode.clientWidth < 620;
  const columns = (turned ? images : encoders).length;
  const widest = turned && encoders.length == 1 ? 650 : 470;
  box.style.gridTemplateColumns = `repeat(${columns}, minmax(0, ${widest}px))`;
  box.parentNode.style.maxWidth = `${columns * (widest + 10) - 10}px`;
  for (const t of tiles) {
    const [e, i] = [encoders.indexOf(t.e) + 1, images.indexOf(t.i) + 1];
    t.figure.style.gridRow = turned ? e : i, t.figure.style.gridColumn = turned ? i : e;
  }
}

/** One view on a page: state, pictures, controls. `told(point)`: called when another pixel is asked about. */
function board(root, packed, point, told) {
  const scene = opened(packed), state = fresh(scene, point), key = make("div", {class: "dense-key dense-bar"});
  const box = make("div", {class: "dense-tiles"}), said = make("div", {class: "dense-said", role: "status"});
  let tiles = [], bar = make("div"), folded = make("details"), step = null;

  const act = {
    ask(i, row, col, tell = true) {
      if (!scene.images[i]) return;
      const [H, W] = scene.images[i].size, there = [state.left, state.right].includes(i);
      state.point = [i, clamp(row, 0, H - 1), clamp(col, 0, W - 1)];
      if (!there) [state.left, state.right] = pairOf(scene, i);
      there ? draw() : lay();
      if (tell) told(state.point);
    },
    key(event, e, i) {
      const move = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]}[event.key];
      const moment = {"[": -1, "]": 1}[event.key], mode = {c: "components", s: "similarity", i: "image"}[event.key];
      if (event.ctrlKey || event.metaKey || event.altKey || !(move || moment || mode)) return;
      event.preventDefault(), event.stopPropagation();
      if (mode) return act.set({mode});
      const shots = scene.encoders[e].shots;
      if (moment) return act.set({time: clamp(state.time + moment / Math.max(shots.length - 1, 1), 0, 1)});
      const [asked, row, col] = state.point, [H, W] = scene.images[i].size;
      if (i != asked) return act.ask(i, Math.floor(H / 2), Math.floor(W / 2));
      const [h, w] = (shots.length ? shots[0].maps[i].size : [24, 32]), n = event.shiftKey ? 5 : 1;
      act.ask(i, Math.round(row + n * move[0] * H / h), Math.round(col + n * move[1] * W / w));
    },
    set(change, again = true) {
      Object.assign(state, change);
      if ("left" in change || "right" in change) return act.pick();
      if (again) fill();
      draw();
    },
    show(e, on) {
      on ? state.shown.add(e) : state.shown.size > 1 && state.shown.delete(e);
      lay();
    },
    pick() {                                      // first the pictures, for whoever is told of the pixel may ask again
      const gone = ![state.left, state.right].includes(state.point[0]), [H, W] = scene.images[state.left].size;
      if (gone) state.point = [state.left, Math.floor(H / 2), Math.floor(W / 2)];
      lay();
      if (gone) told(state.point);
    },
  };

  /** Draw anew by `work`, and put the keyboard where it was: what is new is called and stands as what it replaces. */
  function keeping(work) {
    const focusable = () => [...root.querySelectorAll("button, input, select, summary, .dense-face")];
    const name = node => node.ariaLabel || node.closest("label, summary")?.textContent || node.textContent;
    const old = focusable(), at = old.indexOf(document.activeElement), wanted = at >= 0 && name(old[at]);
    work();
    if (at < 0 || old[at].isConnected) return;
    const like = focusable().filter(node => node.tagName == old[at].tagName && name(node) == wanted);
    (like[0] ?? focusable()[0])?.focus({preventScroll: true});
  }

  function fill() {
    keeping(() => {
      const [newBar, newFolded] = [controls(scene, state, act), more(scene, state, act, folded.open)];
      bar.replaceWith(newBar), folded.replaceWith(newFolded);
      bar = newBar, folded = newFolded;
    });
  }

  function lay() {
    const places = [...new Set([state.left, state.right])];
    keeping(() => {
      tiles = [...state.shown].sort((a, b) => a - b).flatMap(e => places.map(i => tile(scene, act, e, i)));
      box.replaceChildren(...tiles.map(t => t.figure));
      arrange(box, tiles, scene), fill(), draw();
    });
  }

  function draw() {
    const lines = [], lut = scene.luts[state.colours];
    let range = null;
    for (const e of new Set(tiles.map(t => t.e))) {
      const encoder = scene.encoders[e], found = encoder.problem ? {} : answer(scene, state, e);
      for (const t of tiles.filter(t => t.e == e)) {
        const [drawn, words] = state.mode == "similarity" || t.i == state.point[0]
          ? explain(scene, state, t, found) : ["", ""];
        t.canvas.hidden = encoder.problem || state.mode == "image";
        if (!t.canvas.hidden)
          paint(t.canvas, encoder.shots[0].maps[t.i].size, found.maps.get(t.i), state, found, lut);
        t.face.classList.toggle("dense-grey", state.mode == "similarity" && !encoder.problem);
        t.canvas.style.imageRendering = state.smooth ? "auto" : "pixelated";
        t.marks.innerHTML = drawn;
        const note = encoder.problem ? problem(encoder) : words, on = ` on ${scene.images[t.i].name}`;
        t.caption.replaceChildren(make("b", {}, encoder.name), on, make("br"), note);
        if (words && t.i != state.point[0]) lines.push(`${encoder.name}: ${words}`);
      }
      range ??= found.low == null ? null : found;
    }
    const [i, row, col] = state.point;
    said.textContent = [`pixel (${row}, ${col}) of ${scene.images[i].name}`, ...lines].join("; ");
    legend(range);
    root.dataset.point = JSON.stringify(state.point), root.dataset.mode = state.mode;
  }

  function legend(range) {
    const sign = kind => `<svg viewBox='-13 -13 26 26'>${SHAPES[kind]}</svg>`, lut = scene.luts[state.colours];
    const stops = [0, 64, 128, 192, 255].map(k => `rgb(${lut.slice(3 * k, 3 * k + 3).join(",")})`);
    const several = state.shown.size > 1 && !TEMPERATURES[state.sharp];
    const low = range && (several ? "least like it" : range.low.toFixed(2)), high = several ? "most like it" : "1";
    const scale = range && state.mode == "similarity" ? `<span>${low} <span class='dense-scale' style='background:` +
      `linear-gradient(90deg,${stops})'></span> ${high}</span>` : "";
    const two = state.left != state.right, posed = two && scene.images[state.left].pose &&
      scene.images[state.left].scene == scene.images[state.right].scene;
    key.innerHTML = `${scale}<span>${sign("asked")} your pixel: click anywhere, or move it with the arrow keys</span>` +
      (two && state.mode == "similarity" ? `<span>${sign("match")} best match</span>` : "") +
      (posed && state.mode == "similarity" ? `<span>${sign("truth")} true point</span>` : "");
  }

  root.append(box, key, bar, said, folded);
  lay();
  const watch = new ResizeObserver(() => arrange(box, tiles, scene));
  watch.observe(root.parentNode);
  return {ask: act.ask, close: () => watch.disconnect()};
}

/** A scene: the explorer of features, in JupyterLab or alone. */
function sceneView({model, el}) {
  const root = make("div", {class: "dense-explorer"});
  el.append(root);
  let shown = null;
  const told = point => { model.set("point", point), model.save_changes(); };
  const again = () => {
    shown?.close(), root.replaceChildren();
    shown = board(root, model.get("scene"), model.get("point"), told);
  };
  const moved = () => {
    const point = model.get("point");
    if (point?.length && JSON.stringify(point) != root.dataset.point) shown.ask(...point, false);
  };
  again();
  model.on("change:scene", again), model.on("change:point", moved);
  return () => shown.close();
}

/** ipywidgets gives sliders and groups of buttons a label that only eyes can find: names for screen readers. */
function nameControls(board) {
  for (const widget of board.querySelectorAll(".widget-slider, .widget-toggle-buttons")) {
    const text = widget.querySelector("label")?.textContent;
    if (widget.matches(".widget-toggle-buttons")) widget.role = "group", widget.ariaLabel = text;
    for (const handle of widget.querySelectorAll(".noUi-handle")) handle.ariaLabel = text;
    for (const readout of widget.querySelectorAll(".widget-readout"))
      readout.role = "textbox", readout.ariaLabel = `${text}, as a number`;
  }
}

/** The value under the pointer, of the numbers that came with a layer. */
function valueAt(layer, x, y) {
  const told = layer.querySelector("[data-cells]");
  if (!told) return "";
  const [h, w, low, high, name] = JSON.parse(told.dataset.map), cells = new Uint8Array(bytes(told.dataset.cells));
  const i = clamp(Math.floor(y * h), 0, h - 1), j = clamp(Math.floor(x * w), 0, w - 1), step = cells[i * w + j];
  return step == 255 ? "no value here" : `${name} ${(low + step / 254 * (high - low)).toFixed(2)} at cell ${i}, ${j}`;
}

/** A picture whose answers the kernel draws: an image, a layer over it, and where it was clicked. */
function pictureView({model, el}) {
  const image = make("img", {draggable: "false"}), over = make("div", {class: "dense-over"});
  const read = make("div", {class: "dense-read"});
  const place = event => {
    const box = face.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  };
  const send = (x, y) => { model.set("sent", `${x.toFixed(5)} ${y.toFixed(5)} ${Date.now()}`), model.save_changes(); };
  const key = event => {
    const move = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0]}[event.key];
    if (!move) return;
    event.preventDefault(), event.stopPropagation();
    const stack = over.firstElementChild, [row, col, high, wide, down, right] = JSON.parse(stack.dataset.point);
    const n = event.shiftKey ? 10 : 1, to = [clamp(row + n * move[0] * down, 0, high - 1),
                                             clamp(col + n * move[1] * right, 0, wide - 1)];
    stack.dataset.point = JSON.stringify([...to, high, wide, down, right]);
    send((to[1] + 0.5) / wide, (to[0] + 0.5) / high);
  };
  const face = make("div", {
    class: "dense-face", tabindex: 0, role: "application", "data-lm-suppress-shortcuts": true, onkeydown: key,
    onclick: event => { face.focus({preventScroll: true}), send(...place(event)); },
    onpointermove: event => { read.textContent = valueAt(over, ...place(event)); },
    onpointerleave: () => { read.textContent = ""; }}, image, over);
  const show = () => {
    const {uri, label, width, height} = model.get("base");
    image.src = uri, image.alt = label, face.ariaLabel = `${label}. Click, or move with the arrow keys`;
    face.style.width = `${width}px`, face.style.height = `${height}px`;
  };
  const layer = () => { over.innerHTML = model.get("over"); };
  el.append(make("div", {class: "dense-click"}, face, read));
  show(), layer();
  model.on("change:base", show), model.on("change:over", layer);
  for (const wait of [0, 300, 1500, 5000])     // other widgets may be drawn later than this one
    setTimeout(() => el.closest(".dense-board") && nameControls(el.closest(".dense-board")), wait);
}

/** The entry point of anywidget; a page without a kernel calls it with a model that only remembers. */
function render({model, el}) {
  el.append(make("style", {}, STYLE));
  return model.get("kind") == "picture" ? pictureView({model, el}) : sceneView({model, el});
}

export default {render};
