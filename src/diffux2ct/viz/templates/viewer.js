(() => {
  const root = document.getElementById("viewer");
  if (!root) return;
  const part = name => document.getElementById("viewer-" + name);
  const meta = JSON.parse(part("meta").textContent);
  const stage = part("stage"), slider = part("slice"), chooser = part("case");
  const planes = ["axial", "coronal", "sagittal"], windows = Object.keys(meta.windows);
  const { panes } = meta, names = [...new Set(["truth", ...panes.map(pane => pane.volume)])];
  const state = { case: 0, plane: "axial", window: "bone", shown: "images", slice: {}, volumes: null, request: 0 };

  const kinds = ["plane", "window", "shown"];
  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
  const shape = () => meta.cases[state.case].shape;
  const axis = () => planes.indexOf(state.plane);
  const count = () => shape()[axis()];

  // Geometry of a plane: rows, columns, mm per row and column, and where pixel (r, c) of slice i lies in the volume.
  // Superior is up, so rows of coronal and sagittal slices run against z.
  function layout() {
    const [d, h, w] = shape(), [x, y, z] = meta.cases[state.case].spacing, i = state.slice[state.plane];
    return {
      axial: { rows: h, cols: w, high: y, wide: x, at: (r, c) => (i * h + r) * w + c },
      coronal: { rows: d, cols: w, high: z, wide: x, at: (r, c) => ((d - 1 - r) * h + i) * w + c },
      sagittal: { rows: d, cols: h, high: z, wide: y, at: (r, c) => ((d - 1 - r) * h + c) * w + i },
    }[state.plane];
  }

  async function inflate(id) {
    const packed = Uint8Array.from(atob(document.getElementById(id).textContent), c => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    const codes = new Uint8Array(await new Response(stream).arrayBuffer());
    const [, h, w] = shape();
    for (let k = h * w; k < codes.length; k++) codes[k] += codes[k - h * w];
    return codes;
  }

  async function open(index) {
    const request = ++state.request;
    state.case = index;
    state.volumes = null;
    root.dataset.ready = "false";
    const volumes = await Promise.all(names.map(name => inflate(`volume-${index}-${name}`)));
    if (request !== state.request) return;  // another case was chosen meanwhile
    state.volumes = Object.fromEntries(names.map((name, k) => [name, volumes[k]]));
    planes.forEach((plane, k) => { state.slice[plane] = meta.cases[index].centre[k]; });
    chooser.value = index;
    const { shrink } = meta.cases[index];
    part("note").textContent = "Grey values are stored in 8 bits: within 2 HU in soft tissue, "
      + "7 in bone, 11 in lung; 1500 HU and more look alike."
      + (shrink > 1 ? ` To keep the page small, its voxels are means of ${shrink}×${shrink}×${shrink}.` : "");
    root.dataset.ready = "true";
    draw();
  }

  function colourTable() {
    const stops = meta.errorColours, table = [];
    for (let k = 0; k <= 500; k++) {
      const place = k / 500 * (stops.length - 1), low = Math.min(Math.floor(place), stops.length - 2);
      table.push(stops[low].map((v, j) => Math.round(v + (place - low) * (stops[low + 1][j] - v))));
    }
    return table;
  }
  const colours = colourTable();

  const isError = pane => pane.error || (state.shown === "errors" && pane.volume !== "truth");
  function painter(pane) {
    const volume = state.volumes[pane.volume], { truth } = state.volumes;
    if (!isError(pane)) return place => greys[volume[place]];
    return place => {
      const error = meta.hu[volume[place]] - meta.hu[truth[place]];
      return colours[Math.round(250 * (clamp(error / meta.errorLimit, -1, 1) + 1))];
    };
  }

  let greys = [];
  function draw() {
    if (!state.volumes) return;
    const [black, white] = meta.windows[state.window];
    greys = meta.hu.map(hu => Array(3).fill(Math.round(255 * clamp((hu - black) / (white - black), 0, 1))));
    const view = layout(), [left, right] = meta.edges[state.plane];
    for (const pane of panes) {
      const canvas = part(pane.key), frame = canvas.parentElement, colour = painter(pane);
      canvas.width = view.cols;
      canvas.height = view.rows;
      const ratio = view.cols * view.wide / (view.rows * view.high);
      canvas.style.aspectRatio = ratio;
      frame.style.maxWidth = `${70 / meta.rows * ratio}vh`;  // so that all slices are seen at once
      const context = canvas.getContext("2d"), image = context.createImageData(view.cols, view.rows);
      let k = 0;
      for (let r = 0; r < view.rows; r++) for (let c = 0; c < view.cols; c++) {
        const [red, green, blue] = colour(view.at(r, c));
        image.data[k++] = red; image.data[k++] = green; image.data[k++] = blue; image.data[k++] = 255;
      }
      context.putImageData(image, 0, 0);
      canvas.dataset.slice = state.slice[state.plane] + 1;
      const sides = isError(pane) ? ["", ""] : [left, right];
      frame.querySelectorAll("i").forEach((mark, side) => { mark.textContent = sides[side]; });
    }
    describe();
  }

  function describe() {
    const slice = state.slice[state.plane] + 1, where = `${state.plane} slice ${slice} of ${count()}`;
    slider.max = count();
    slider.value = slice;
    slider.setAttribute("aria-valuetext", where);
    part("where").textContent = `${where}, ${state.window} window `
      + `(${meta.windows[state.window].map(v => String(v).replace("-", "−")).join(" to ")} HU)`;
    const { plane, window, shown } = state;
    Object.assign(root.dataset, { case: state.case, plane, window, shown, slice });
    root.querySelectorAll("button[aria-pressed]").forEach(button => {
      button.setAttribute("aria-pressed", String(kinds.some(kind => button.dataset[kind] === state[kind])));
    });
    for (const pane of panes) {
      const what = pane.error || !isError(pane) ? pane.title : `${pane.title}, error`;
      part(pane.key).setAttribute("aria-label", `${what}, ${where}`);
    }
    point();
  }

  // True if the slice changed, so that a wheel turned past the end scrolls the page.
  function show(slice) {
    if (!state.volumes) return false;
    const next = clamp(slice, 0, count() - 1), moved = next !== state.slice[state.plane];
    state.slice[state.plane] = next;
    if (moved) draw();
    return moved;
  }
  const scroll = steps => show(state.slice[state.plane] + steps);
  const choose = (kind, value) => { state[kind] = value; draw(); };
  const turnCase = step => open((state.case + step + meta.cases.length) % meta.cases.length);

  const keys = {
    ArrowUp: () => scroll(1), ArrowRight: () => scroll(1), ArrowDown: () => scroll(-1), ArrowLeft: () => scroll(-1),
    PageUp: () => scroll(10), PageDown: () => scroll(-10), Home: () => show(0), End: () => show(count() - 1),
    a: () => choose("plane", "axial"), c: () => choose("plane", "coronal"), s: () => choose("plane", "sagittal"),
    w: () => choose("window", windows[(windows.indexOf(state.window) + 1) % windows.length]),
    n: () => turnCase(1), p: () => turnCase(-1),
  };
  if (meta.errorsOnDemand) keys.e = () => choose("shown", state.shown === "errors" ? "images" : "errors");
  windows.forEach((name, k) => { keys[k + 1] = () => choose("window", name); });

  root.addEventListener("keydown", event => {
    if (event.target === chooser || event.ctrlKey || event.altKey || event.metaKey) return;
    const action = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!action) return;
    event.preventDefault();
    action();
  });

  let turned = 0;
  stage.addEventListener("wheel", event => {
    if (event.ctrlKey) return;  // the browser's zoom
    // A notch of a mouse wheel is one slice; a touchpad's many small steps add up to one.
    const pixels = event.deltaMode === 1 ? 33 * event.deltaY : event.deltaY;
    turned = Math.abs(pixels) >= 50 ? pixels : turned + pixels;
    const steps = Math.abs(turned) >= 30 ? Math.sign(turned) : 0;
    if (steps) turned = 0;
    const more = pixels < 0 ? state.slice[state.plane] < count() - 1 : state.slice[state.plane] > 0;
    if (more) event.preventDefault();
    scroll(-steps);
  }, { passive: false });

  let drag = null, pointer = null;
  stage.addEventListener("pointerdown", event => {
    if (event.button) return;
    drag = { y: event.clientY, slice: state.slice[state.plane] };
    stage.setPointerCapture(event.pointerId);
    stage.focus({ preventScroll: true });
  });
  stage.addEventListener("pointermove", event => {
    if (drag) show(drag.slice + Math.round((drag.y - event.clientY) / 4));
    const canvas = document.elementsFromPoint(event.clientX, event.clientY).find(e => e.tagName === "CANVAS");
    const box = canvas && canvas.getBoundingClientRect();
    pointer = box && { x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height };
    point();
  });
  for (const end of ["pointerup", "pointercancel"]) stage.addEventListener(end, () => { drag = null; });
  stage.addEventListener("pointerleave", () => { pointer = null; point(); });

  // The same place in all panes, and its values.
  function point() {
    stage.classList.toggle("pointing", Boolean(pointer));
    part("point").textContent = "";
    if (!pointer || !state.volumes) return;
    stage.querySelectorAll(".viewer-frame").forEach(frame => {
      frame.querySelector("b").style.top = 100 * pointer.y + "%";
      frame.querySelector("u").style.left = 100 * pointer.x + "%";
    });
    const view = layout(), r = clamp(Math.floor(pointer.y * view.rows), 0, view.rows - 1);
    const place = view.at(r, clamp(Math.floor(pointer.x * view.cols), 0, view.cols - 1));
    const text = value => String(Math.round(value)).replace("-", "−");
    const value = pane => meta.hu[state.volumes[pane.volume][place]] - (pane.error ? truth : 0);
    const truth = meta.hu[state.volumes.truth[place]];
    part("point").textContent = panes.map(pane => `${pane.title} ${text(value(pane))} HU`).join(", ");
  }

  slider.addEventListener("input", () => show(slider.value - 1));
  chooser.addEventListener("change", () => open(Number(chooser.value)));
  root.addEventListener("click", event => {
    const button = event.target.closest("button");
    if (!button) return;
    for (const kind of kinds) if (button.dataset[kind]) choose(kind, button.dataset[kind]);
  });
  document.querySelectorAll("[data-open-case]").forEach(button => button.addEventListener("click", () => {
    open(Number(button.dataset.openCase));
    root.scrollIntoView({ block: "start" });
    stage.focus({ preventScroll: true });
  }));

  if (typeof DecompressionStream === "undefined") {
    part("where").textContent = "This browser is too old for the viewer (no DecompressionStream).";
    return;
  }
  open(0).catch(error => { part("where").textContent = "The viewer could not start: " + error.message; });
})();
