"""The canvas on a bare page: its real module and style, with twenty lines of JavaScript in the kernel's place."""

import json
import os

from mixofshow_lite.course.widgets import page

SLOW = float(os.environ.get("SLOW", 1))
MODEL = """
class Model {
  constructor(state) { Object.assign(this, { state, listeners: {}, sent: [], saves: [] }); }
  get(key) { return this.state[key]; }
  set(key, value) {
    const changed = JSON.stringify(this.state[key]) !== JSON.stringify(value);
    this.state[key] = value;
    (this.dirty ??= new Set()).add(key);
    if (changed) this.fire(`change:${key}`);
  }
  save_changes() { this.saves.push([...(this.dirty ?? [])]); this.dirty = new Set(); }
  send(message) { this.sent.push(message); }
  on(name, listener) { (this.listeners[name] ??= []).push(listener); }
  off() {}
  fire(name, ...details) { for (const listener of this.listeners[name] ?? []) listener(...details); }
}
"""


def html(state: dict, attributes: str = "") -> str:
    """A page that holds the canvas with `state`; `window.model` is its model, `window.again()` draws its view anew."""
    module = json.dumps(page.module())
    return f"""<!doctype html><html><head><meta charset="utf-8">
    <style>body {{ margin: 16px; }} {page.STYLE.read_text("utf-8")}</style></head>
    <body {attributes}><div id="canvas"></div><script type="module">{MODEL}
    const url = URL.createObjectURL(new Blob([{module}], {{ type: "text/javascript" }}));
    const widget = (await import(url)).default();
    window.model = new Model({json.dumps(state)});
    const el = document.getElementById("canvas");
    widget.initialize({{ model }});
    let cleanup = widget.render({{ model, el }});
    window.again = () => {{ cleanup(); el.replaceChildren(); cleanup = widget.render({{ model, el }}); }};
    window.ready = true;
    </script></body></html>"""
