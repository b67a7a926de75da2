// The page of stn_train.demo.page: an image, distorted by sliders, goes through the network.
//
// Convention: as in stn_train.geometry.plane. Maps lead from output to input; points are (x, y), x
// to the right and y down; [-1, 1] spans an image from the outer edge of its first pixel to that
// of its last; outside everything is zero. Images are Float32Array, channel by channel, row by row.

const model = JSON.parse(document.getElementById("model").textContent);
const { side_px: side, canvas_px: canvasSide, channels, classes, transformers } = model;
const reach = canvasSide / side; // the canvas in image coordinates
const GRID_LINES = 8; // each way; the transformer samples far more points between them
const MARGIN = 1 / 7; // of the canvas, around it: grids reach beyond the input
const OUTSIDE_COLOUR = "#30343a";
const FAR = 3; // points further out are left out of a fit

const byId = (id) => document.getElementById(id);
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

const state = {
  image: new Float32Array(channels * side * side), // undistorted, in [0, 1]
  picked: null, // number of the test image, or null for a drawing
  strokes: [], // of the drawing: lists of points on the pad, in [0, 1]
  values: {}, // of the sliders
  input: null, // what the network was given
  outputs: null, // logits (K), and of each transformer in front grid, seen and theta
  poses: [], // what the transformers take the image's pose to be
  rest: { image: null, poses: [] }, // the same with all sliders at rest, and of which image
  computing: false,
};
globalThis.demo = state; // for tests, and for whoever opens the developer tools

// ---- The sliders, and the distortion that they make

const SLIDERS = model.sliders;

function restValues() {
  return Object.fromEntries(SLIDERS.map(({ name, rest }) => [name, rest]));
}

// Where a point of the canvas, in image coordinates, is read from in the undistorted image.
function undistorted(x, y, { turn, size, right, down, tilt, bend }) {
  const angle = (turn * Math.PI) / 180; // counter-clockwise
  const cos = Math.cos(angle) / size, sin = Math.sin(angle) / size;
  const dx = x - (2 * right) / side, dy = y - (2 * down) / side;
  x = cos * dx - sin * dy;
  y = sin * dx + cos * dy;
  const depth = 1 + tilt * x; // perspective: the plane leans to the side
  x /= depth;
  y /= depth;
  return [x + bend * Math.sin(Math.PI * y), y + bend * Math.sin(Math.PI * x)];
}

// The image on the canvas, in one bilinear interpolation.
function distort(image, values) {
  const result = new Float32Array(channels * canvasSide * canvasSide);
  for (let row = 0; row < canvasSide; row++) {
    for (let column = 0; column < canvasSide; column++) {
      const at = [column, row].map((place) => (((2 * place + 1) / canvasSide) - 1) * reach);
      const [x, y] = undistorted(...at, values).map((place) => ((place + 1) * side - 1) / 2);
      const left = Math.floor(x), top = Math.floor(y);
      for (let channel = 0; channel < channels; channel++) {
        let sum = 0;
        for (const [i, wide] of [[left, left + 1 - x], [left + 1, x - left]]) {
          for (const [j, high] of [[top, top + 1 - y], [top + 1, y - top]]) {
            if (i >= 0 && j >= 0 && i < side && j < side) {
              sum += wide * high * image[(channel * side + j) * side + i];
            }
          }
        }
        result[(channel * canvasSide + row) * canvasSide + column] = sum;
      }
    }
  }
  return result;
}

// ---- Drawing: strokes of a pen, made as large as a training image and centred

const DRAWN = 20 / 28; // of the side: what MNIST's digits fill
const PEN = 1.25 / 28; // radius, likewise

function distanceToSegment(x, y, [ax, ay], [bx, by]) {
  const dx = bx - ax, dy = by - ay;
  const along = dx || dy ? clamp(((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy), 0, 1) : 0;
  return Math.hypot(x - ax - along * dx, y - ay - along * dy);
}

// Strokes in pixels of the image as an image, with soft edges.
function rasterised(strokes) {
  const plane = new Float32Array(side * side);
  const radius = PEN * side;
  for (const stroke of strokes) {
    for (let number = 0; number < stroke.length; number++) {
      const from = stroke[Math.max(number - 1, 0)], to = stroke[number];
      const [left, right] = [from[0], to[0]].sort((a, b) => a - b);
      const [top, bottom] = [from[1], to[1]].sort((a, b) => a - b);
      const low = (value) => clamp(Math.floor(value - radius - 1), 0, side);
      const high = (value) => clamp(Math.ceil(value + radius + 1), 0, side);
      for (let row = low(top); row < high(bottom); row++) {
        for (let column = low(left); column < high(right); column++) {
          const distance = distanceToSegment(column + 0.5, row + 0.5, from, to);
          const ink = clamp(radius + 0.5 - distance, 0, 1);
          plane[row * side + column] = Math.max(plane[row * side + column], ink);
        }
      }
    }
  }
  return plane;
}

// The centre of mass of a plane, in pixels.
function centreOf(plane) {
  let mass = 0, x = 0, y = 0;
  plane.forEach((ink, at) => {
    mass += ink;
    x += ink * ((at % side) + 0.5);
    y += ink * (Math.floor(at / side) + 0.5);
  });
  return mass ? [x / mass, y / mass] : [side / 2, side / 2];
}

function imageOfStrokes(strokes) {
  const points = strokes.flat();
  if (!points.length) return new Float32Array(channels * side * side);
  const [left, top] = [0, 1].map((axis) => Math.min(...points.map((point) => point[axis])));
  const [right, bottom] = [0, 1].map((axis) => Math.max(...points.map((point) => point[axis])));
  const extent = Math.max(right - left, bottom - top, 0.1); // a dot stays small
  const scale = ((DRAWN - 2 * PEN) * side) / extent;
  const placed = (moveX, moveY) =>
    strokes.map((stroke) =>
      stroke.map(([x, y]) => [
        (x - (left + right) / 2) * scale + side / 2 + moveX,
        (y - (top + bottom) / 2) * scale + side / 2 + moveY,
      ]),
    );
  const [x, y] = centreOf(rasterised(placed(0, 0)));
  const plane = rasterised(placed(side / 2 - x, side / 2 - y));
  const image = new Float32Array(channels * side * side);
  for (let channel = 0; channel < channels; channel++) image.set(plane, channel * side * side);
  return image;
}

// ---- The network

async function unpacked(id) {
  const text = atob(byId(id).textContent.trim());
  const packed = new Uint8Array(text.length);
  for (let at = 0; at < text.length; at++) packed[at] = text.charCodeAt(at);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function loadNetwork() {
  const script = new Blob([await unpacked("runtime-script")], { type: "text/javascript" });
  const ort = await import(URL.createObjectURL(script));
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmBinary = (await unpacked("runtime-program")).buffer;
  ort.env.logLevel = "error";
  const weights = byId("weights") ? [{ path: model.weights, data: await unpacked("weights") }] : [];
  const session = await ort.InferenceSession.create(await unpacked("graph"), {
    executionProviders: ["wasm"],
    externalData: weights,
    logSeverityLevel: 3,
  });
  return async (input) => {
    const images = new ort.Tensor("float32", input, [1, channels, canvasSide, canvasSide]);
    const outputs = await session.run({ images });
    return Object.fromEntries(Object.entries(outputs).map(([name, { data }]) => [name, data]));
  };
}

function softmax(logits) {
  const largest = Math.max(...logits);
  const powers = Array.from(logits, (logit) => Math.exp(logit - largest));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((power) => power / sum);
}

// ---- What a transformer takes the image's pose to be: that which its grid would undo exactly

// The least-squares affine fit to a grid (H, W, 2): x = a u + b v + c, y = d u + e v + f.
function affineFit(grid, [height, width]) {
  const normal = [[0, 0, 0], [0, 0, 0], [0, 0, 0]], right = [[0, 0, 0], [0, 0, 0]];
  for (let at = 0; at < height * width; at++) {
    const x = grid[2 * at] * reach, y = grid[2 * at + 1] * reach; // in image coordinates
    if (!(Math.max(Math.abs(x), Math.abs(y)) < FAR)) continue;
    const column = at % width, row = Math.floor(at / width);
    const basis = [(2 * column + 1) / width - 1, (2 * row + 1) / height - 1, 1];
    basis.forEach((one, i) => {
      basis.forEach((other, j) => { normal[i][j] += one * other; });
      right[0][i] += one * x;
      right[1][i] += one * y;
    });
  }
  return right.map((values) => solved(normal, values));
}

// The solution of a 3 x 3 system, by Cramer's rule.
function solved(matrix, values) {
  const determinant = ([a, b, c]) =>
    a[0] * (b[1] * c[2] - b[2] * c[1]) - a[1] * (b[0] * c[2] - b[2] * c[0]) +
    a[2] * (b[0] * c[1] - b[1] * c[0]);
  const whole = determinant(matrix);
  return [0, 1, 2].map((column) =>
    determinant(matrix.map((row, i) => row.map((entry, j) => (j === column ? values[i] : entry)))) /
    whole,
  );
}

function poseOf(grid, size) {
  const [[a, b, c], [d, e, f]] = affineFit(grid, size);
  const area = a * e - b * d, sign = Math.sign(area);
  return {
    turn: (Math.atan2(sign * (b - d), sign * (a + e)) * 180) / Math.PI,
    size: Math.sqrt(Math.abs(area)),
    right: (c * side) / 2,
    down: (f * side) / 2,
  };
}

// How one pose differs from another.
function change(pose, from) {
  return {
    turn: ((((pose.turn - from.turn + 180) % 360) + 360) % 360) - 180,
    size: pose.size / from.size,
    right: pose.right - from.right,
    down: pose.down - from.down,
  };
}

// ---- Pictures

// An image (C, H, W) as a canvas of its own size.
function pictured(image, count, height, width) {
  const plane = height * width, colours = new ImageData(width, height);
  for (let at = 0; at < plane; at++) {
    const values = Array.from({ length: count }, (_, channel) => image[channel * plane + at]);
    let rgb = values;
    if (count === 2) rgb = [0, 1, 2].map((c) => values[0] * model.two_channels[0][c] + values[1] * model.two_channels[1][c]);
    else if (count !== 3) rgb = Array(3).fill(values.reduce((a, b) => a + b, 0) / count);
    rgb.forEach((value, c) => { colours.data[4 * at + c] = 255 * clamp(value, 0, 1); });
    colours.data[4 * at + 3] = 255;
  }
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  canvas.getContext("2d").putImageData(colours, 0, 0);
  return canvas;
}

function drawPixels(canvas, picture, margin = 0) {
  const context = canvas.getContext("2d"), inner = 1 - 2 * margin;
  context.imageSmoothingEnabled = false;
  context.fillStyle = OUTSIDE_COLOUR;
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(picture, margin * canvas.width, margin * canvas.height, inner * canvas.width, inner * canvas.height);
}

function drawPad() {
  const canvas = byId("pad"), context = canvas.getContext("2d");
  if (state.picked !== null) {
    drawPixels(canvas, pictured(state.image, channels, side, side));
    return;
  }
  context.fillStyle = "#000";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.strokeStyle = "#fff";
  context.lineWidth = 0.08 * canvas.width;
  context.lineCap = context.lineJoin = "round";
  for (const stroke of state.strokes) {
    context.beginPath();
    stroke.forEach(([x, y]) => context.lineTo(x * canvas.width, y * canvas.height));
    if (stroke.length === 1) context.lineTo(stroke[0][0] * canvas.width + 0.1, stroke[0][1] * canvas.height);
    context.stroke();
  }
  if (!state.strokes.length) {
    context.fillStyle = "#9198a1";
    context.font = `${Math.round(canvas.width / 18)}px system-ui, sans-serif`;
    context.textAlign = "center";
    context.fillText("draw here", canvas.width / 2, canvas.height / 2);
  }
}

// Evenly spaced numbers of rows or columns.
function lineNumbers(count) {
  return Array.from({ length: GRID_LINES }, (_, line) => Math.round((line * (count - 1)) / (GRID_LINES - 1)));
}

function drawInput() {
  const canvas = byId("input"), context = canvas.getContext("2d");
  const margin = transformers.length ? MARGIN / (1 + 2 * MARGIN) : 0;
  drawPixels(canvas, pictured(state.input, channels, canvasSide, canvasSide), margin);
  const zoom = (canvas.width * (1 - 2 * margin)) / 2;
  const place = (x, y) => [canvas.width / 2 + x * zoom, canvas.height / 2 + y * zoom];
  transformers.forEach(({ colour, grid_size: [height, width], theta }, number) => {
    const grid = state.outputs[`grid_${number}`];
    const line = (points, thickness) => {
      context.lineWidth = (thickness * canvas.width) / 480;
      context.beginPath();
      points.forEach((at) => context.lineTo(...place(grid[2 * at], grid[2 * at + 1])));
      context.stroke();
    };
    const row = (number) => Array.from({ length: width }, (_, column) => number * width + column);
    const column = (number) => Array.from({ length: height }, (_, row) => row * width + number);
    context.strokeStyle = context.fillStyle = colour;
    lineNumbers(height).forEach((each) => line(row(each), each === 0 ? 6 : 1.5));
    lineNumbers(width).forEach((each) => line(column(each), 1.5));
    if (theta.layout !== "points") return;
    const points = state.outputs[`theta_${number}`];
    for (let at = 0; at < points.length; at += 2) {
      context.beginPath();
      context.arc(...place(points[at], points[at + 1]), canvas.width / 110, 0, 2 * Math.PI);
      context.fill();
    }
  });
}

function drawLooks() {
  transformers.forEach(({ seen_size: [height, width] }, number) => {
    drawPixels(byId(`look-${number}`), pictured(state.outputs[`seen_${number}`], channels, height, width));
  });
}

// ---- Words and numbers

function signed(value, digits) {
  const size = Math.abs(value).toFixed(digits);
  return Number(size) === 0 ? size : `${value < 0 ? "−" : "+"}${size}`;
}
const percent = (share) => `${(100 * share).toFixed(share > 0.9995 ? 0 : 1)} %`;

const POSES = [
  ["turn", "turned", (value) => `${signed(value, 0)}°`],
  ["size", "size", (value) => `× ${value.toFixed(2)}`],
  ["right", "right", (value) => `${signed(value, 1)} px`],
  ["down", "down", (value) => `${signed(value, 1)} px`],
];

function showAnswer() {
  const shares = softmax(state.outputs.logits);
  let order = shares.map((_, number) => number);
  const byShare = [...order].sort((a, b) => shares[b] - shares[a]);
  if (order.length > 12) order = byShare.slice(0, 10);
  const best = byShare[0];
  byId("said").replaceChildren(`${classes[best]} `, Object.assign(document.createElement("small"), { textContent: percent(shares[best]) }));
  [...byId("bars").children].forEach((row, at) => {
    const [name, track, number] = row.children, which = order[at];
    name.textContent = classes[which];
    track.firstElementChild.style.width = `${100 * shares[which]}%`;
    number.textContent = percent(shares[which]);
    row.classList.toggle("best", which === best);
  });
}

function showPoses() {
  const changes = state.poses.map((pose, number) => change(pose, state.rest.poses[number]));
  POSES.forEach(([name, , written], row) => {
    const cells = byId("poses").rows[row].cells;
    cells[1].textContent = written(state.values[name]);
    cells[2].textContent = changes.map((each) => (Number.isFinite(each[name]) ? written(each[name]) : "none")).join(", ");
  });
  transformers.forEach(({ theta }, number) => {
    byId(`theta-${number}`).textContent = thetaText(theta, state.outputs[`theta_${number}`]);
  });
}

function thetaText({ layout, rows, columns, names }, values) {
  const written = (value) => signed(value, 2).replace("+", " ").padStart(7);
  const numbers = Array.from(values, written);
  if (layout === "matrix") {
    if (numbers.length < rows * columns) numbers.push("1".padStart(7));
    return Array.from({ length: rows }, (_, row) => numbers.slice(row * columns, (row + 1) * columns).join("")).join("\n");
  }
  if (names.length) return names.map((name, at) => `${name.padEnd(6)}${numbers[at]}`).join("\n");
  return numbers.map((number, at) => number + (at % 4 === 3 ? "\n" : "")).join("");
}

// ---- The page at work: one computation at a time, always of the newest state

let network = null, wanted = false;

const posesOf = (outputs) => transformers.map(({ grid_size: size }, number) => poseOf(outputs[`grid_${number}`], size));

async function update() {
  wanted = true;
  if (state.computing || !network) return;
  state.computing = true;
  while (wanted) {
    wanted = false;
    const { image } = state, input = distort(image, state.values);
    if (state.rest.image !== image) {
      state.rest = { image, poses: posesOf(await network(distort(image, restValues()))) };
    }
    const outputs = await network(input);
    Object.assign(state, { input, outputs, poses: posesOf(outputs) });
    drawInput();
    showAnswer();
    if (transformers.length) {
      drawLooks();
      showPoses();
    }
    await new Promise(requestAnimationFrame);
  }
  state.computing = false;
}

function setImage(image, picked) {
  Object.assign(state, { image, picked });
  [...byId("picks").children].forEach((button, number) => button.setAttribute("aria-pressed", number === picked));
  drawPad();
  return update();
}

function setValues(values) {
  Object.assign(state.values, values);
  for (const { name, digits, unit, rest } of SLIDERS) {
    const input = byId(`slider-${name}`), value = state.values[name];
    if (Number(input.value) !== value) input.value = value;
    const text = `${rest === 0 ? signed(value, digits) : value.toFixed(digits)}${unit}`;
    byId(`value-${name}`).textContent = text;
    input.setAttribute("aria-valuetext", text);
  }
  return update();
}

function buildSliders() {
  for (const { name, label, low, high, step, rest, trained } of SLIDERS) {
    const control = document.createElement("div");
    control.className = "control";
    control.innerHTML = `<label for="slider-${name}">${label}</label><output id="value-${name}" for="slider-${name}"></output><input id="slider-${name}" type="range" min="${low}" max="${high}" step="${step}" value="${rest}">`;
    byId("controls").append(control);
    const [from, to] = (trained ?? [rest, rest]).map((value) => (100 * (value - low)) / (high - low));
    const line = Object.assign(document.createElement("span"), { className: "trained" });
    line.append(document.createElement("i"));
    Object.assign(line.firstChild.style, { left: `${from}%`, width: `${to - from}%` });
    control.append(line);
    byId(`slider-${name}`).addEventListener("input", (event) => {
      stopSwinging();
      setValues({ [name]: Number(event.target.value) });
    });
  }
}

function buildPicks(images) {
  const plane = channels * side * side;
  model.examples.forEach((label, number) => {
    const image = Float32Array.from(images.subarray(number * plane, (number + 1) * plane), (byte) => byte / 255);
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-label", `Test image: ${classes[label]}`);
    button.title = classes[label];
    button.append(pictured(image, channels, side, side));
    button.addEventListener("click", () => {
      state.strokes = [];
      setImage(image, number);
    });
    byId("picks").append(button);
  });
  return () => byId("picks").children[model.first]?.click();
}

function buildRest() {
  const rows = Math.min(classes.length, classes.length > 12 ? 10 : 12);
  for (let row = 0; row < rows; row++) {
    const line = document.createElement("li");
    line.innerHTML = '<span></span><span class="track" aria-hidden="true"><i></i></span><span></span>';
    byId("bars").append(line);
  }
  if (!transformers.length) return;
  for (const [, label] of POSES) {
    const row = byId("poses").insertRow();
    const head = document.createElement("th");
    head.scope = "row";
    head.textContent = label;
    row.append(head, document.createElement("td"), document.createElement("td"));
  }
  transformers.forEach(({ colour }, number) => {
    const canvas = document.createElement("canvas");
    Object.assign(canvas, { id: `look-${number}`, width: 280, height: 280 });
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", "The input as the transformer passes it on");
    canvas.style.borderColor = colour;
    byId("looks").append(canvas);
    const numbers = document.createElement("pre");
    numbers.id = `theta-${number}`;
    byId("numbers").append(numbers);
  });
}

function listenToPad() {
  const pad = byId("pad");
  const place = (event) => {
    const box = pad.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  };
  let drawing = null; // the id of the pointer
  const draw = (event) => {
    const events = event.getCoalescedEvents?.() ?? [];
    for (const each of events.length ? events : [event]) state.strokes.at(-1).push(place(each));
    setImage(imageOfStrokes(state.strokes), null);
  };
  pad.addEventListener("pointerdown", (event) => {
    if (drawing !== null || event.button > 0) return;
    event.preventDefault();
    pad.setPointerCapture(event.pointerId);
    drawing = event.pointerId;
    state.strokes.push([]);
    draw(event);
  });
  pad.addEventListener("pointermove", (event) => {
    if (event.pointerId === drawing) draw(event);
  });
  for (const end of ["pointerup", "pointercancel"]) {
    pad.addEventListener(end, (event) => {
      if (event.pointerId === drawing) drawing = null;
    });
  }
}

// ---- Motion: between plus and minus the largest trained angle, or 45 degrees

let swinging = null; // when it started, in milliseconds

function stopSwinging() {
  swinging = null;
  byId("swing").setAttribute("aria-pressed", "false");
}

async function swing() {
  if (swinging !== null) {
    stopSwinging();
    return;
  }
  const started = performance.now(), reach = model.swing_deg;
  swinging = started;
  byId("swing").setAttribute("aria-pressed", "true");
  while (swinging === started) {
    const turn = Math.round(reach * Math.sin((performance.now() - started) / 1200));
    setValues({ turn });
    await new Promise(requestAnimationFrame);
  }
}

function randomPose() {
  stopSwinging();
  const values = restValues();
  for (const { name, trained, digits } of SLIDERS) {
    if (trained) values[name] = Number((trained[0] + Math.random() * (trained[1] - trained[0])).toFixed(digits));
  }
  setValues(values);
}

async function start() {
  buildSliders();
  buildRest();
  listenToPad();
  byId("clear").addEventListener("click", () => {
    state.strokes = [];
    setImage(imageOfStrokes([]), null);
  });
  byId("rest").addEventListener("click", () => {
    stopSwinging();
    setValues(restValues());
  });
  byId("random").addEventListener("click", randomPose);
  byId("swing").addEventListener("click", swing);
  state.values = restValues();
  const pickFirst = buildPicks(await unpacked("images"));
  network = await loadNetwork();
  setValues(restValues());
  pickFirst();
  byId("status").hidden = true;
}

start().catch((error) => {
  byId("status").className = "problem";
  byId("status").textContent = `The network could not be started in this browser (${error.message}). A current Chrome, Edge, Firefox or Safari is needed.`;
  console.error(error);
});
