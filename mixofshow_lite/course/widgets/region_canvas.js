/**
 * Region canvas, part 4: the page. Paint where each prompt belongs (paper 3.4), sample, try again. canvas.py joins the
 * four parts (region_geometry, region_state, region_gestures, this one) into one module and wires it to Python.
 *
 * State that Python shares (traits):  _regions, prompt, negative_prompt, seed, seed_locked, steps, _background, _history.
 * State of the page alone (session):  undo and redo, the selected region, the tool. It outlives a view that is redrawn.
 */

import { LEAST, clamp, fromRGBA, inkOn, percent, round, tint, toRGBA } from "./region_geometry.js";
import { followPython, newSession, pixelsOf, regionState, remember } from "./region_state.js";
import { gestures } from "./region_gestures.js";

const SILENCE = 6000; // milliseconds without an answer before we say so
const KEYS = [
  ["V, B, P, E", "select, box, paint, erase"],
  ["N", "new box in the middle"],
  ["Arrows", "move the region, or the brush"],
  ["Shift + arrows", "resize the region, or paint along"],
  ["Space", "paint or erase under the brush"],
  ["[ and ]", "previous, next region"],
  ["Enter", "write the region's prompt"],
  ["Delete", "delete the region"],
  ["Ctrl + Z, Ctrl + Y", "undo, redo"],
  ["H", "hide or show regions"],
  ["Ctrl + Enter", "sample, or cancel"],
  ["Alt + ↑ ↓ (in the list)", "reorder"],
];
const ICONS = {
  select: "M6 3l13 8-6 1.5L10 19z",
  box: "M4 8V4h4M16 4h4v4M20 16v4h-4M8 20H4v-4M12 9v6M9 12h6",
  brush: "M14.5 4.5l5 5-8 8-5-5zM6.5 12.5c-2 .5-2.5 2-2.5 3.5 0 2-1 3-1 3 3 1 7 .5 8.5-1.5",
  eraser: "M9 20h11M4.5 14.5L14 5l6 6-8.5 9H8z M9 10l6 6",
  undo: "M9 5L4 10l5 5M4 10h9a6 6 0 010 12h-3",
  redo: "M15 5l5 5-5 5M20 10h-9a6 6 0 000 12h3",
  eye: "M2 12s4-7 10-7 10 7 10 7-4 7-10 7-10-7-10-7zM12 9a3 3 0 100 6 3 3 0 000-6z",
  import: "M12 3v12M7 10l5 5 5-5M4 21h16",
  export: "M12 15V3M7 8l5-5 5 5M4 21h16",
  up: "M6 15l6-6 6 6",
  down: "M6 9l6 6 6-6",
  trash: "M4 7h16M9 7V4h6v3M6 7l1 13h10l1-13M10 11v5M14 11v5",
  lock: "M6 11h12v9H6zM8.5 11V8a3.5 3.5 0 017 0v3",
  unlock: "M6 11h12v9H6zM8.5 11V8a3.5 3.5 0 016.8-1.2",
  plus: "M12 5v14M5 12h14",
  play: "M7 4l13 8-13 8z",
  stop: "M6 6h12v12H6z",
};

// Elements

/** An element with attributes, listeners (`onclick: f`) and children. */
function make(tag, attributes = {}, ...children) {
  const svg = ["svg", "g", "rect", "circle", "text", "path"].includes(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== false && value != null) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

const icon = (name) => make("svg", { viewBox: "0 0 24 24", "aria-hidden": "true" }, make("path", { d: ICONS[name] }));

function button(name, label, onclick, attributes = {}) {
  return make("button", { type: "button", title: label, "aria-label": label, onclick, ...attributes }, icon(name));
}

function field(label, input, className = "") {
  return make("label", { class: `mos-field ${className}` }, make("span", {}, label), input);
}

// Masks as the model of Python has them: base64 PNGs of `_raster` pixels

function encode(pixels, [width, height]) {
  const canvas = make("canvas", { width, height });
  canvas.getContext("2d").putImageData(new ImageData(toRGBA(pixels), width, height), 0, 0);
  const text = canvas.toDataURL("image/png").split(",")[1];
  remember(text, pixels);
  return text;
}

async function decode(text, [width, height]) {
  const image = new Image();
  image.src = `data:image/png;base64,${text}`;
  await image.decode();
  const context = make("canvas", { width, height }).getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0, width, height);
  remember(text, fromRGBA(context.getImageData(0, 0, width, height).data));
}

export default () => {
  const session = newSession();
  const initialize = ({ model }) => followPython(session, model);

  function render({ model, el }) {
    const [height, width] = model.get("_size");
    const tall = (1000 * height) / width; // the drawing is 1000 units wide
    let preview = null; // object URL of the growing picture
    let waiting = null; // timer of an unanswered message
    let tinted = null; // what the masks' layer shows: pixels, colour and strength of each; null during a gesture

    const page = { place, hold, drawStage, refresh, say, setTool, toggleRegions };
    page.encode = (pixels) => encode(pixels, size);
    page.writePrompt = () => prompt.focus();
    const state = regionState(model, session, page);
    const { size, regions, chosen, painting, shapeOf, edit, describe, select, neighbour, remove, reorder, add } = state;
    const gesture = gestures(state, session, page);

    function say(words) {
      status.textContent = words;
    }

    /** Where an event is, in fractions of the picture. */
    function place(event) {
      const frame = stage.getBoundingClientRect();
      return [clamp((event.clientX - frame.left) / frame.width, 0, 1), clamp((event.clientY - frame.top) / frame.height, 0, 1)];
    }

    function hold(pointer) {
      if (pointer === undefined) svg.focus({ preventScroll: true });
      else svg.setPointerCapture(pointer);
    }

    /** Keys of the whole widget; none of them may reach the notebook, where "b" adds a cell and "dd" deletes one. */
    function rootKey(event) {
      event.stopPropagation();
      const text = event.target.matches("textarea, input:not([type=range]):not([type=color])");
      const name = event.key.toLowerCase();
      if (!(event.ctrlKey || event.metaKey)) return;
      if (name === "enter" && model.get("_can_sample")) sample();
      else if (name === "z" && !text) event.shiftKey ? state.redo() : state.undo();
      else if (name === "y" && !text) state.redo();
      else return;
      event.preventDefault();
    }

    function listKey(event) {
      const step = { ArrowUp: -1, ArrowDown: 1 }[event.key];
      if (step) event.altKey ? reorder(step) : neighbour(step);
      else if (event.key === "Delete" || event.key === "Backspace") remove();
      else if (event.key === "Enter") prompt.focus();
      else if (event.key === "F2") name.select();
      else return;
      event.preventDefault();
    }

    // Sampling and files

    function ask(message) {
      clearTimeout(waiting);
      waiting = setTimeout(() => say("The kernel does not answer. It may be busy; if it was restarted, run the cell again."), SILENCE);
      model.send(message);
    }

    function sample() {
      if (model.get("_running")) {
        say("Stopping after this step …");
        return ask({ type: "cancel" });
      }
      root.querySelector(":focus")?.dispatchEvent(new Event("change")); // what is being written counts
      const names = ["prompt", "negative_prompt", "seed", "seed_locked", "steps", "_regions"];
      say("Asking the model …");
      ask({ type: "sample", state: Object.fromEntries(names.map((key) => [key, model.get(key)])) });
    }

    function receive(message, buffers) {
      clearTimeout(waiting);
      if (message.type === "step") {
        progress.max = message.steps;
        progress.value = message.step;
        say(`Step ${message.step} of ${message.steps}`);
        if (buffers?.length) setPreview(URL.createObjectURL(new Blob([buffers[0]], { type: "image/png" })));
        return;
      }
      if (message.type !== "imported") setPreview(null);
      const silent = message.silent?.length ? ` Left out, for want of a prompt: ${message.silent.join(", ")}.` : "";
      if (message.type === "done") say(`The picture is done.${silent}`);
      if (message.type === "stopped") say("Cancelled.");
      if (message.type === "imported") say(`Regions imported: ${message.regions}.`);
      if (message.type === "error") say(message.message);
    }

    function setPreview(url) {
      if (preview) URL.revokeObjectURL(preview);
      preview = url;
      drawBackground();
    }

    function restore(index) {
      const { picture, regions: then, ...settings } = model.get("_history")[index];
      for (const [key, value] of Object.entries({ ...settings, _background: picture })) model.set(key, value);
      state.commit(then, `Sample with seed ${settings.seed} and its regions (${then.length}) are back.`);
      model.send({ type: "restore", index }); // Python has the picture in full
    }

    function exportFile() {
      const settings = Object.fromEntries(["prompt", "negative_prompt", "seed", "steps"].map((key) => [key, model.get(key)]));
      const text = JSON.stringify({ ...model.get("_header"), ...settings, regions: model.get("_regions") }, null, 1);
      const href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
      make("a", { href, download: "regions.json" }).click();
      setTimeout(() => URL.revokeObjectURL(href), 1000);
      say("Exported to regions.json.");
    }

    async function importFile() {
      if (!file.files.length) return;
      ask({ type: "import", text: await file.files[0].text() });
      file.value = "";
    }

    // The page

    const store = (key, value) => {
      model.set(key, value);
      model.save_changes();
    };

    /** A number field that keeps what Python would refuse from getting there. */
    function number(key, low, high) {
      const input = make("input", { type: "number", min: low, max: high, step: 1 });
      input.addEventListener("change", () => {
        const value = clamp(Math.round(Number(input.value)), low, high);
        input.value = Number.isFinite(value) ? value : model.get(key);
        store(key, Number(input.value));
      });
      return input;
    }

    const tools = {};
    for (const [tool, label] of [["select", "Select, move, resize (V)"], ["box", "Draw a box (B)"], ["brush", "Paint a mask (P)"], ["eraser", "Erase from a mask (E)"]])
      tools[tool] = button(tool, label, () => setTool(tool));
    const brush = make("input", { type: "range", min: 0.02, max: 0.5, step: 0.01, value: session.brush });
    const soft = make("input", { type: "range", min: 0, max: 1, step: 0.05, value: session.soft });
    brush.addEventListener("input", () => ((session.brush = Number(brush.value)), drawStage()));
    soft.addEventListener("input", () => ((session.soft = Number(soft.value)), drawStage()));
    const brushes = make("div", { class: "mos-brushes" }, field("Size", brush), field("Softness", soft));
    const back = button("undo", "Undo (Ctrl+Z)", state.undo);
    const forth = button("redo", "Redo (Ctrl+Y)", state.redo);
    const eye = button("eye", "Show regions (H)", toggleRegions);
    const layout = make("select", { title: "Lay out regions", "aria-label": "Layout", onchange: () => (state.applyPreset(layout.value), (layout.value = "")) });
    layout.append(make("option", { value: "" }, "Layout …"), ...model.get("_presets").map(([title]) => make("option", { value: title }, title)));
    const file = make("input", { type: "file", accept: ".json,application/json", hidden: true, onchange: importFile });
    const gap = () => make("span", { class: "mos-gap" });
    const toolbar = make("div", { class: "mos-toolbar", role: "toolbar", "aria-label": "Tools" },
      make("div", { class: "mos-group" }, ...Object.values(tools)), brushes, gap(),
      make("div", { class: "mos-group" }, back, forth, eye), layout,
      make("div", { class: "mos-group" }, button("import", "Import regions", () => file.click()), button("export", "Export regions", exportFile)), file);

    const picture = make("img", { alt: "", draggable: "false" });
    const ink = make("canvas", { width: size[0], height: size[1], "aria-hidden": "true" });
    const help = `mos-help-${Math.floor(Math.random() * 1e9)}`;
    const svg = make("svg", { viewBox: `0 0 1000 ${tall}`, tabindex: 0, role: "application", "aria-roledescription": "region canvas", "aria-describedby": help,
      onpointerdown: gesture.down, onpointermove: gesture.move, onpointerup: gesture.finish, onpointercancel: gesture.abort,
      onpointerleave: gesture.leave, onkeydown: gesture.key, onkeyup: gesture.keyUp, onblur: gesture.blur });
    const hint = make("p", { class: "mos-hint" }, "Drag to draw a region");
    const stage = make("div", { class: "mos-stage", style: `aspect-ratio: ${width} / ${height}` }, picture, ink, svg, hint);

    const seed = number("seed", 0, 2 ** 32 - 1);
    const steps = number("steps", 1, 1000);
    const lock = button("lock", "", () => (store("seed_locked", !model.get("seed_locked")), drawSampling()));
    const go = make("button", { type: "button", class: "mos-go", onclick: sample });
    const progress = make("progress", { max: 1, value: 0, "aria-label": "Sampling" });
    const samplebar = make("div", { class: "mos-samplebar" }, field("Seed", make("span", { class: "mos-join" }, seed, lock), "mos-seed"), field("Steps", steps, "mos-steps"), go);

    const whole = make("textarea", { rows: 2, placeholder: "the whole picture, e.g. two friends on the beach", onchange: () => store("prompt", whole.value) });
    const wholeNot = make("input", { type: "text", placeholder: "what it should not show", onchange: () => store("negative_prompt", wholeNot.value) });
    const list = make("ul", { class: "mos-list", role: "listbox", tabindex: 0, "aria-label": "Regions", onkeydown: listKey });
    const count = make("span", { class: "mos-count" });
    const name = make("input", { type: "text", onchange: () => edit({ name: name.value.trim() || "Region" }, "Renamed.") });
    const color = make("input", { type: "color", "aria-label": "Colour", title: "Colour", onchange: () => edit({ color: color.value }) });
    const prompt = make("textarea", { rows: 2, placeholder: "what is here, e.g. a <bibi1> <bibi2>", onchange: () => edit({ prompt: prompt.value }) });
    const not = make("input", { type: "text", placeholder: "as for the whole picture", onchange: () => edit({ negative_prompt: not.value }) });
    const weight = make("input", { type: "range", min: 0.05, max: 2, step: 0.05, onchange: () => edit({ weight: Number(weight.value) }), oninput: () => (heavy.textContent = Number(weight.value).toFixed(2)) });
    const heavy = make("output");
    const sides = ["Left", "Top", "Right", "Bottom"].map((label, i) => {
      const input = make("input", { type: "number", min: 0, max: 100, step: 1, "aria-label": `${label}, percent` });
      input.addEventListener("change", () => {
        const box = [...chosen().box];
        const [low, high] = i < 2 ? [0, box[i + 2] - LEAST] : [box[i - 2] + LEAST, 1];
        box[i] = clamp(Number(input.value) / 100 || 0, low, high);
        edit({ box: round(box) }, `${label} at ${percent(box[i])} percent.`);
        drawPanel();
      });
      return field(label, input);
    });
    const boxes = make("div", { class: "mos-sides" }, ...sides);
    const toBox = make("button", { type: "button", class: "mos-text", onclick: () => edit({ box: round(shapeOf(chosen())), mask: null }, "The mask is a box now.") }, "Painted mask: turn it into its box");
    const inspector = make("div", { class: "mos-inspector" },
      make("div", { class: "mos-row" }, color, field("Name", name, "mos-grow"),
        button("up", "Earlier in the list (Alt+Up)", () => reorder(-1)), button("down", "Later in the list (Alt+Down)", () => reorder(1)), button("trash", "Delete the region (Delete)", remove)),
      field("Prompt", prompt), field("Negative prompt", not),
      field("Weight", make("span", { class: "mos-join" }, weight, heavy)), boxes, toBox);
    const status = make("p", { class: "mos-status", role: "status", "aria-live": "polite" });
    const keys = make("details", { class: "mos-keys" }, make("summary", {}, "Keyboard"),
      make("dl", { id: help }, ...KEYS.map(([pressed, does]) => make("div", {}, make("dt", {}, pressed), make("dd", {}, does)))));
    const history = make("div", { class: "mos-history", role: "group", "aria-label": "What was tried" });
    const root = make("div", { class: "mos-canvas", "data-lm-suppress-shortcuts": "true", onkeydown: rootKey },
      toolbar,
      make("div", { class: "mos-body" },
        make("div", { class: "mos-left" }, stage, progress, samplebar, history),
        make("div", { class: "mos-panel" }, field("Whole picture", whole), field("Negative prompt", wholeNot),
          make("div", { class: "mos-head" }, make("h3", {}, "Regions"), count, gap(), button("plus", "New region (N)", add)), list, inspector)),
      make("div", { class: "mos-foot" }, status, keys));
    for (const kind of ["keyup", "keypress", "paste", "copy", "cut"]) root.addEventListener(kind, (event) => event.stopPropagation());

    function setTool(tool) {
      session.tool = tool;
      refresh();
      say(tools[tool].title);
    }

    function toggleRegions() {
      session.hidden = !session.hidden;
      refresh();
      say(session.hidden ? "Regions hidden." : "Regions shown.");
    }

    // Drawing

    function drawBackground() {
      const source = preview ?? model.get("_background");
      picture.hidden = !source;
      if (source) picture.src = source;
      stage.classList.toggle("mos-empty", !source);
    }

    function drawMasks() {
      const shown = session.hidden ? [] : regions().filter((one) => !one.box);
      for (const entry of shown.filter((one) => !pixelsOf(one))) decode(entry.mask, size).then(refresh, () => {});
      const masks = shown.filter(pixelsOf);
      const layers = masks.map((one) => [pixelsOf(one), one.color, one.id === session.selected ? 0.6 : 0.42]);
      // Composing takes time, and every move of the pointer comes here; a gesture changes pixels in place.
      const now = gesture.busy() ? null : layers.flat();
      if (now?.length === tinted?.length && now?.every((value, i) => value === tinted[i])) return;
      tinted = now;
      const image = new ImageData(...size);
      for (const layer of layers) tint(image.data, ...layer);
      ink.getContext("2d").putImageData(image, 0, 0);
    }

    /** One region: outline, name on a plate, and handles if it is the selected one. `unit` is one CSS pixel. */
    function drawRegion(entry, unit) {
      const box = shapeOf(entry);
      if (!box) return "";
      const [x, y, w, h] = [box[0] * 1000, box[1] * tall, (box[2] - box[0]) * 1000, (box[3] - box[1]) * tall];
      const on = entry.id === session.selected;
      const rect = { x, y, width: w, height: h, stroke: entry.color, fill: entry.color, class: `mos-shape${entry.box ? "" : " mos-around"}${on ? " mos-on" : ""}` };
      const group = make("g", { role: "img", "aria-label": describe(entry) });
      if (entry.box || on) group.append(make("rect", { ...rect, class: "mos-halo" }), make("rect", rect));
      const title = entry.name.length > 22 ? `${entry.name.slice(0, 21)}…` : entry.name;
      const plate = [title.length * 6.6 * unit + 12 * unit, 19 * unit];
      const corner = [clamp(x, 0, 1000 - plate[0]), clamp(y, 0, tall - plate[1])];
      group.append(make("rect", { x: corner[0], y: corner[1], width: plate[0], height: plate[1], rx: 3 * unit, fill: entry.color }),
        make("text", { x: corner[0] + plate[0] / 2, y: corner[1] + 13.5 * unit, "font-size": 11.5 * unit, class: "mos-name", fill: inkOn(entry.color) }, title));
      if (!on || painting()) return group;
      for (const handle of ["n", "s", "w", "e", "nw", "ne", "sw", "se"]) {
        let cx = handle.includes("w") ? x : handle.includes("e") ? x + w : x + w / 2;
        let cy = handle.includes("n") ? y : handle.includes("s") ? y + h : y + h / 2;
        const edge = 6 * unit; // a handle on the picture's edge stays in sight
        [cx, cy] = [clamp(cx, edge, 1000 - edge), clamp(cy, edge, tall - edge)];
        group.append(make("circle", { cx, cy, r: 4.5 * unit, stroke: entry.color, class: "mos-handle" }),
          make("circle", { cx, cy, r: 12 * unit, class: "mos-grip", "data-handle": handle, style: `cursor: ${handle}-resize` }));
      }
      return group;
    }

    function drawStage() {
      const unit = 1000 / (svg.clientWidth || 420);
      const all = regions();
      const top = [...all].sort((a, b) => (a.id === session.selected) - (b.id === session.selected));
      svg.replaceChildren(...(session.hidden ? [] : top.map((entry) => drawRegion(entry, unit)).filter(Boolean)));
      const cursor = gesture.cursor();
      if (painting() && cursor) {
        const place = { cx: cursor[0] * 1000, cy: cursor[1] * tall, r: (session.brush * Math.max(1000, tall)) / 2 };
        svg.append(make("circle", { ...place, class: "mos-cursor mos-dark" }), make("circle", { ...place, class: "mos-cursor" }));
      }
      svg.dataset.tool = session.tool;
      svg.setAttribute("aria-label", `Picture, regions: ${all.length}.${chosen() ? ` Chosen: ${describe(chosen())}.` : ""}`);
      hint.hidden = all.length > 0 || Boolean(model.get("_background"));
      drawMasks();
    }

    const focused = (input) => root.getRootNode().activeElement === input;
    const fill = (input, value) => !focused(input) && (input.value = value);

    function drawPanel() {
      const [all, entry] = [model.get("_regions"), chosen()];
      const items = new Map([...list.children].map((item) => [item.dataset.id, item]));
      all.forEach((one, i) => {
        const item = items.get(one.id) ?? make("li", { role: "option", "data-id": one.id, id: `${help}-${one.id}`, onclick: () => select(one.id) });
        items.delete(one.id);
        item.setAttribute("aria-selected", one.id === session.selected);
        item.replaceChildren(make("span", { class: "mos-swatch", style: `background: ${one.color}` }), make("strong", {}, one.name),
          make("span", { class: "mos-snippet" }, one.prompt || "no prompt yet"), ...(one.weight === 1 ? [] : [make("span", { class: "mos-badge" }, `× ${Number(one.weight.toFixed(2))}`)]));
        if (list.children[i] !== item) list.insertBefore(item, list.children[i] ?? null);
      });
      items.forEach((item) => item.remove());
      list.setAttribute("aria-activedescendant", entry ? `${help}-${entry.id}` : "");
      count.textContent = all.length || "";
      inspector.hidden = !entry;
      if (!entry) return;
      fill(name, entry.name);
      fill(color, entry.color);
      fill(prompt, entry.prompt);
      fill(not, entry.negative_prompt);
      fill(weight, entry.weight);
      heavy.textContent = entry.weight.toFixed(2);
      boxes.hidden = !entry.box;
      toBox.hidden = Boolean(entry.box);
      if (entry.box) sides.forEach((side, i) => fill(side.querySelector("input"), percent(entry.box[i])));
    }

    function drawTools() {
      for (const [tool, node] of Object.entries(tools)) node.setAttribute("aria-pressed", tool === session.tool);
      brushes.hidden = !painting();
      back.disabled = !session.undo.length;
      forth.disabled = !session.redo.length;
      eye.setAttribute("aria-pressed", !session.hidden);
    }

    function drawSampling() {
      const [running, locked] = [model.get("_running"), model.get("seed_locked")];
      samplebar.hidden = !model.get("_can_sample");
      progress.style.visibility = running ? "visible" : "hidden"; // it keeps its place: nothing jumps
      if (!running) progress.value = 0;
      go.replaceChildren(icon(running ? "stop" : "play"), running ? "Cancel" : "Sample");
      go.classList.toggle("mos-stop", running);
      fill(seed, model.get("seed"));
      fill(steps, model.get("steps"));
      lock.replaceChildren(icon(locked ? "lock" : "unlock"));
      lock.setAttribute("aria-pressed", locked);
      lock.title = locked ? "The seed stays: same seed, same picture" : "Every sample gets a new seed";
      lock.setAttribute("aria-label", "Keep the seed");
      fill(whole, model.get("prompt"));
      fill(wholeNot, model.get("negative_prompt"));
    }

    function drawHistory() {
      const tried = model.get("_history").map((one, index) => {
        const label = `Restore sample ${index + 1}: seed ${one.seed}, regions: ${one.regions.length}, ${one.prompt || "no prompt"}`;
        const shapes = one.regions.filter((entry) => entry.box).map(({ box: [l, t, r, b], color: stroke }) =>
          make("rect", { x: l * 1000, y: t * tall, width: (r - l) * 1000, height: (b - t) * tall, stroke, class: "mos-mini" }));
        return make("button", { type: "button", title: label, "aria-label": label, onclick: () => restore(index) },
          make("img", { src: one.picture, alt: "", draggable: "false" }), make("svg", { viewBox: `0 0 1000 ${tall}`, "aria-hidden": "true" }, ...shapes),
          make("span", {}, `seed ${one.seed}`));
      });
      history.replaceChildren(...tried.reverse());
      history.hidden = !tried.length;
    }

    function refresh() {
      drawTools();
      drawStage();
      drawPanel();
    }

    function fromPython() {
      if (!gesture.busy()) state.sketch(null);
      refresh();
    }

    model.on("change:_regions", fromPython);
    model.on("change:_background", drawBackground);
    model.on("change:_history", drawHistory);
    for (const key of ["prompt", "negative_prompt", "seed", "seed_locked", "steps", "_running"]) model.on(`change:${key}`, drawSampling);
    model.on("msg:custom", receive);
    el.replaceChildren(root);
    const watcher = new ResizeObserver(drawStage); // also redraws when a notebook scrolls the cell back into the page
    watcher.observe(stage);
    drawBackground();
    drawSampling();
    drawHistory();
    refresh();

    return () => {
      clearTimeout(waiting);
      watcher.disconnect();
      if (preview) URL.revokeObjectURL(preview);
    };
  }

  return { initialize, render };
};
