/**
 * Region canvas, part 2: the regions, which of them is chosen, undo and redo. Knows the model of Python, but no page.
 *
 * An entry of _regions is {id, name, color, prompt, negative_prompt, weight, box | mask, options}; masks are base64 PNGs
 * of `_raster` pixels. Entries are never changed in place. While a gesture lasts, the entries that it changes are a
 * draft, in which a mask may be {pixels} that nobody has encoded yet.
 */

import { bounds, percent, round } from "./region_geometry.js";

/** What the page alone knows: it outlives a view that is redrawn. */
export const newSession = () => ({ undo: [], redo: [], known: [], selected: null, tool: "select", brush: 0.12, soft: 0, hidden: false });

/** Changes that come from Python can be undone too. */
export function followPython(session, model) {
  session.known = model.get("_regions");
  model.on("change:_regions", () => {
    const now = model.get("_regions");
    if (now === session.known) return;
    session.undo.push(session.known);
    session.redo.length = 0;
    session.known = now;
  });
}

const decoded = new Map(); // base64 -> pixels
const RECENT = 400;

/** Keep the pixels of a mask that was encoded or decoded, among the RECENT ones. */
export function remember(text, pixels) {
  decoded.set(text, pixels);
  if (decoded.size > RECENT) decoded.delete(decoded.keys().next().value);
}

/** The mask's pixels, undefined while nobody has decoded them. */
export const pixelsOf = (entry) => entry.pixels ?? decoded.get(entry.mask);

/** `page` is {say(words), refresh()}: what happened in words for the status line, and all to be drawn anew. */
export function regionState(model, session, page) {
  const size = model.get("_raster");
  let draft = null; // the regions while a gesture lasts

  const regions = () => draft ?? model.get("_regions");
  const chosen = () => regions().find((entry) => entry.id === session.selected) ?? null;
  const painting = () => session.tool === "brush" || session.tool === "eraser";
  const shapeOf = (entry) => entry.box ?? (pixelsOf(entry) && bounds(pixelsOf(entry), size));
  const sketch = (next) => (draft = next);

  function commit(next, words) {
    session.undo.push(session.known);
    session.redo.length = 0;
    show(next, words);
  }

  function show(next, words) {
    session.known = next;
    draft = null;
    model.set("_regions", next);
    model.save_changes();
    if (words) page.say(words);
    page.refresh();
  }

  function travel(from, to, word) {
    if (!from.length) return page.say(`Nothing to ${word}.`);
    to.push(session.known);
    show(from.pop(), word === "undo" ? "Undone." : "Done again.");
  }

  const undo = () => travel(session.undo, session.redo, "undo");
  const redo = () => travel(session.redo, session.undo, "redo");
  const replaced = (id, change) => regions().map((entry) => (entry.id === id ? { ...entry, ...change } : entry));

  function edit(change, words) {
    if (chosen()) commit(replaced(session.selected, change), words);
  }

  function fresh(shape) {
    const all = regions();
    const palette = model.get("_palette");
    const color = palette.find((c) => !all.some((entry) => entry.color === c)) ?? palette[all.length % palette.length];
    let number = all.length + 1;
    while (all.some((entry) => entry.name === `Region ${number}`)) number++;
    const id = `p${Date.now().toString(36)}${Math.floor(Math.random() * 1e6).toString(36)}`;
    const texts = { name: `Region ${number}`, color, prompt: "", negative_prompt: "" };
    return { id, ...texts, weight: 1, box: null, mask: null, options: {}, ...shape };
  }

  function describe(entry) {
    const box = shapeOf(entry);
    const place = box ? `left ${percent(box[0])}, top ${percent(box[1])}, right ${percent(box[2])}, bottom ${percent(box[3])} percent` : "";
    return `${entry.name}, ${entry.box ? "box" : "mask"}, ${place}${entry.prompt ? `, ${entry.prompt}` : ", no prompt yet"}`;
  }

  function select(id, words = true) {
    session.selected = id;
    page.refresh();
    if (words && chosen()) page.say(describe(chosen()));
  }

  function neighbour(step) {
    const all = regions();
    const at = all.findIndex((entry) => entry.id === session.selected);
    if (all.length) select(all[at < 0 ? (step > 0 ? 0 : all.length - 1) : (at + step + all.length) % all.length].id);
  }

  function remove() {
    const gone = chosen();
    if (!gone) return;
    const all = regions();
    const at = all.indexOf(gone);
    session.selected = (all[at + 1] ?? all[at - 1])?.id ?? null;
    commit(all.filter((entry) => entry !== gone), `${gone.name} deleted.`);
  }

  function reorder(step) {
    const next = [...regions()];
    const at = next.indexOf(chosen());
    if (at < 0 || !next[at + step]) return;
    [next[at], next[at + step]] = [next[at + step], next[at]];
    commit(next, `${chosen().name} is now ${at + step + 1} of ${next.length}.`);
  }

  function add() {
    const shift = (regions().length % 6) * 0.04;
    const entry = fresh({ box: round([0.25 + shift, 0.25 + shift, 0.65 + shift, 0.65 + shift]) });
    session.selected = entry.id;
    session.tool = "select";
    commit([...regions(), entry], `Added: ${describe(entry)}. Enter writes its prompt.`);
  }

  function applyPreset(name) {
    const parts = model.get("_presets").find(([title]) => title === name)[1];
    const next = parts.map(([title, box, weight], i) => {
      const old = regions()[i] ?? {};
      const kept = { id: old.id, color: old.color, prompt: old.prompt ?? "", negative_prompt: old.negative_prompt ?? "" };
      const color = kept.color ?? model.get("_palette")[i % model.get("_palette").length];
      return { ...fresh({ box }), ...kept, id: kept.id ?? `${fresh({}).id}${i}`, color, name: title, weight };
    });
    session.selected = next[0].id;
    commit(next, `${name}: regions laid out (${next.length}). Undo brings the old ones back.`);
  }

  return {
    size, regions, chosen, painting, shapeOf, sketch, sketched: () => draft, commit, undo, redo, replaced, edit, fresh,
    describe, select, neighbour, remove, reorder, add, applyPreset,
  };
}
