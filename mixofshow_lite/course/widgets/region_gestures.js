/**
 * Region canvas, part 3: gestures of mouse, pen, finger and keyboard. One gesture (pointer down to up, key down to up)
 * is one commit: one step of undo, one message to the kernel.
 */

import { LEAST, bounds, clamp, filled, inside, moved, percent, resized, spanned, stamp, stretched } from "./region_geometry.js";
import { pixelsOf } from "./region_state.js";

const NUDGE = 0.02; // what an arrow key moves

/**
 * The handlers of a stage's events. What they need of the page: place(event) in fractions, hold(pointer) or the focus
 * alone, encode(pixels) as a mask's text, drawStage(), refresh(), say(words), setTool(name), toggleRegions(),
 * writePrompt().
 */
export function gestures(state, session, page) {
  const { size, regions, chosen, painting, shapeOf, replaced, fresh, describe, sketch } = state;
  let gesture = null; // {update(point), done() -> [regions, words], key | pointer}
  let cursor = null; // the brush, [x, y]

  // Each returns what a move does, and what is committed at the end

  function drawing(start) {
    const entry = fresh({ box: [...start, ...start] });
    const before = regions();
    return {
      update: (to) => sketch([...before, { ...entry, box: spanned(start, to) }]),
      done() {
        const drawn = state.sketched();
        if (!drawn) return null; // a click
        const made = drawn.at(-1);
        if (made.box[2] - made.box[0] < LEAST || made.box[3] - made.box[1] < LEAST)
          return page.say("That box is too small: drag from one corner to the other.");
        session.selected = made.id;
        session.tool = "select";
        return [drawn, `Drawn: ${describe(made)}. Enter writes its prompt.`];
      },
    };
  }

  function shaping(entry, change) {
    const from = shapeOf(entry);
    const base = pixelsOf(entry);
    return {
      update(to) {
        const box = change(from, to);
        sketch(replaced(entry.id, entry.box ? { box } : { pixels: stretched(base, size, from, box) }));
      },
      done: () => state.sketched() && [state.sketched(), describe(chosen())],
    };
  }

  function brushing(erase) {
    let entry = chosen();
    if (!entry && erase) return page.say("Choose a region to erase from.");
    const before = entry ? regions() : [...regions(), (entry = fresh({ mask: "" }))];
    const pixels = entry.box ? filled(entry.box, size) : (pixelsOf(entry)?.slice() ?? new Uint8Array(size[0] * size[1]));
    let last = null;
    return {
      update(to) {
        const steps = last ? Math.ceil((6 * Math.hypot(to[0] - last[0], to[1] - last[1])) / session.brush) : 1;
        for (let i = 1; i <= Math.max(1, steps); i++) {
          const at = last ? [0, 1].map((k) => last[k] + ((to[k] - last[k]) * i) / Math.max(1, steps)) : to;
          stamp(pixels, size, at, session.brush, session.soft, erase);
        }
        last = to;
        session.selected = entry.id;
        sketch(before.map((other) => (other.id === entry.id ? { ...other, box: null, mask: "", pixels } : other)));
      },
      done() {
        if (bounds(pixels, size)) return state.sketched() && [state.sketched(), `${entry.name} ${erase ? "erased from" : "painted"}.`];
        session.selected = null;
        return [before.filter((other) => other.id !== entry.id), `Nothing is left of ${entry.name}: it is gone. Undo brings it back.`];
      },
    };
  }

  function begin(kind, point) {
    gesture = kind ?? null;
    if (gesture && point) gesture.update(point);
    page.drawStage();
  }

  function finish() {
    if (!gesture) return;
    const result = gesture.done();
    gesture = null;
    if (!Array.isArray(result)) return abort();
    const [next, words] = result;
    state.commit(next.map(({ pixels, ...entry }) => (pixels ? { ...entry, mask: page.encode(pixels) } : entry)), words);
  }

  function abort() {
    gesture = sketch(null);
    page.refresh();
  }

  // Pointer

  function down(event) {
    if (event.button || gesture) return;
    event.preventDefault();
    page.hold(); // before anything changes: a field that loses the focus commits what it holds
    const point = page.place(event);
    const handle = event.target.dataset?.handle;
    const hit = [...regions()].reverse().filter((entry) => shapeOf(entry) && inside(point, shapeOf(entry)));
    const entry = hit.find((one) => one.id === session.selected) ?? hit[0];
    if (painting()) begin(brushing(session.tool === "eraser"), point);
    else if (handle) begin(shaping(chosen(), (box, to) => resized(box, handle, to[0] - point[0], to[1] - point[1])));
    else if (session.tool === "box") begin(drawing(point));
    else {
      state.select(entry?.id ?? null);
      if (entry) begin(shaping(entry, (box, to) => moved(box, to[0] - point[0], to[1] - point[1])));
      else begin(drawing(point));
    }
    if (gesture) {
      gesture.pointer = event.pointerId;
      page.hold(event.pointerId);
    }
  }

  function move(event) {
    cursor = page.place(event);
    if (gesture?.pointer === event.pointerId) gesture.update(cursor);
    else if (!painting()) return;
    page.drawStage();
  }

  function leave() {
    if (gesture) return;
    cursor = null;
    page.drawStage();
  }

  // Keyboard

  function key(event) {
    const command = event.ctrlKey || event.metaKey;
    const name = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const arrow = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[name];
    const actions = {
      Escape: () => (gesture ? abort() : state.select(null)),
      Delete: state.remove, Backspace: state.remove, n: state.add,
      "[": () => state.neighbour(-1), "]": () => state.neighbour(1),
      Enter: () => (chosen() ? page.writePrompt() : state.add()),
      v: () => page.setTool("select"), b: () => page.setTool("box"), p: () => page.setTool("brush"), e: () => page.setTool("eraser"),
      h: page.toggleRegions,
    };
    if (arrow) arrowKey(arrow, event.shiftKey, name);
    else if (name === " " && painting()) paintKey(name);
    else if (!command && !event.altKey && actions[name]) actions[name]();
    else return;
    event.preventDefault();
  }

  function arrowKey([dx, dy], shift, name) {
    if (painting()) {
      cursor ??= [0.5, 0.5];
      if (shift) paintKey(name);
      cursor = [clamp(cursor[0] + dx * NUDGE, 0, 1), clamp(cursor[1] + dy * NUDGE, 0, 1)];
      gesture?.update(cursor);
      if (!gesture) page.say(`Brush at ${percent(cursor[0])}, ${percent(cursor[1])} percent.`);
      return page.drawStage();
    }
    const entry = chosen();
    if (!entry || !shapeOf(entry) || gesture?.pointer != null) return;
    const nudged = (box) => (shift ? resized(box, "se", dx * NUDGE, dy * NUDGE) : moved(box, dx * NUDGE, dy * NUDGE));
    begin({ ...shaping(entry, nudged), key: name }, [0, 0]);
  }

  function paintKey(name) {
    cursor ??= [0.5, 0.5];
    if (!gesture) begin(brushing(session.tool === "eraser"), cursor);
    if (gesture) gesture.key ??= name;
  }

  function keyUp(event) {
    if (gesture?.key === event.key || gesture?.key === event.key.toLowerCase()) finish();
  }

  const blur = () => gesture?.key && finish();
  return { down, move, leave, finish, abort, key, keyUp, blur, busy: () => gesture !== null, cursor: () => cursor };
}
