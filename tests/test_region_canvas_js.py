"""The canvas's geometry, masks, state and undo alone, in node: no page, no kernel. The page: tests/browser."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from mixofshow_lite.course.widgets import page
from mixofshow_lite.course.widgets.drawing import extent, ink
from mixofshow_lite.course.widgets.scene import HEADER, PALETTE, PRESETS
from mixofshow_lite.engine.regional import Region

NODE = shutil.which("node") or shutil.which("nodejs")
needs_node = pytest.mark.skipif(NODE is None, reason="there is no node")
WHOLE = (7, 5)  # width, height of a small mask

STATE = """
class Model {
  constructor(state) { this.state = state; this.saves = 0; this.listeners = []; }
  get(key) { return this.state[key]; }
  set(key, value) { this.state[key] = value; this.listeners.forEach((listener) => listener()); }
  save_changes() { this.saves++; }
  on(_, listener) { this.listeners.push(listener); }
}
const said = [];
const model = new Model({ _regions: [], _raster: [7, 5], _palette: ["#2f6fd6", "#bb510d"], _presets: presets });
const session = newSession();
followPython(session, model);
const state = regionState(model, session, { say: (words) => said.push(words), refresh() {} });
const names = () => model.get("_regions").map((entry) => entry.name);
"""


def run(code, *parts, **given):
    """What a script prints as JSON; it stands behind the parts of the page and the `given` values."""
    values = "".join(f"const {name} = {json.dumps(value)};\n" for name, value in given.items())
    text = f"{page.module(*parts)}\n{values}{code}"
    done = subprocess.run([NODE, "--input-type=module"], input=text, capture_output=True, text=True, timeout=120)
    assert not done.returncode, done.stderr
    return json.loads(done.stdout)


def geometry(*expressions, **given):
    """The values of some expressions in the pure part."""
    return run(f"console.log(JSON.stringify([{', '.join(expressions)}]))", "region_geometry", **given)


def of_state(code):
    """What `return` in a script on an empty canvas's state gives."""
    script = f"{STATE}\nconst found = (() => {{ {code} }})();\nconsole.log(JSON.stringify(found));"
    presets = [[name, [list(part) for part in parts]] for name, parts in PRESETS.items()]
    return run(script, "region_geometry", "region_state", presets=presets)


def test_one_module_without_imports_between_its_parts():
    text = page.module()
    assert re.findall(r"^(?:import|export) .*", text, flags=re.M) == ["export default () => {"]
    for part in page.PARTS:
        assert page.module(part).strip().splitlines()[0] == "/**" and page.module(part) in text


@needs_node
def test_boxes_stay_inside_and_keep_their_size():
    box = [0.1, 0.2, 0.4, 0.6]
    found = geometry(
        "moved(box, 0.1, 0.1)", "moved(box, 5, -5)", "resized(box, 'se', 0.1, 0.1)", "resized(box, 'nw', 9, 9)",
        "resized(box, 'e', -9, 9)", "spanned([0.6, 0.1], [0.2, 0.3])", "inside([0.4, 0.6], box)",
        "inside([0.41, 0.6], box)", box=box,
    )  # fmt: skip
    wanted = [[0.2, 0.3, 0.5, 0.7], [0.7, 0, 1, 0.4], [0.1, 0.2, 0.5, 0.7], [0.38, 0.58, 0.4, 0.6]]
    assert found == [*wanted, [0.1, 0.2, 0.12, 0.6], [0.2, 0.1, 0.6, 0.3], True, False]


@needs_node
def test_the_page_and_python_choose_the_same_ink():
    colors = [*PALETTE, "#000000", "#ffffff", *(f"#{level:02x}{level:02x}{level:02x}" for level in range(110, 130))]
    colors += [f"#{r:02x}{g:02x}{b:02x}" for r in (0, 90, 180, 255) for g in (0, 90, 180, 255) for b in (0, 128, 255)]
    assert geometry("colors.map(inkOn)", colors=colors)[0] == [ink(color) for color in colors]


@needs_node
def test_the_page_and_python_see_the_same_bounds():
    width, height = WHOLE
    masks = [np.zeros((height, width), bool) for _ in range(4)]
    masks[0][0, 0] = masks[1][4, 6] = masks[1][2, 3] = True
    masks[2][1:4, 2:5] = masks[3][:] = True
    flat = [mask.astype(int).ravel().tolist() for mask in masks]
    found = geometry("masks.map((mask) => bounds(mask, [7, 5]))", "bounds([0, 0, 0], [3, 1])", masks=flat)
    assert found[1] is None
    for mask, box in zip(masks, found[0], strict=True):
        in_pixels = extent(Region("", mask=mask.astype(np.float32)), height, width)
        np.testing.assert_allclose(np.multiply(box, [width, height, width, height]), in_pixels, atol=1e-9)


@needs_node
def test_masks_are_filled_stamped_and_stretched():
    script = """
    const hard = new Uint8Array(16 * 16), soft = new Uint8Array(16 * 16);
    stamp(hard, [16, 16], [0.5, 0.5], 0.5, 0, false);
    stamp(soft, [16, 16], [0.5, 0.5], 0.5, 1, false);
    const erased = hard.slice();
    stamp(erased, [16, 16], [0.5, 0.5], 0.5, 0, true);
    const box = filled([0.25, 0, 0.75, 0.5], [8, 4]);
    const larger = stretched(box, [8, 4], [0.25, 0, 0.75, 0.5], [0, 0, 1, 1]);
    console.log(JSON.stringify([hard, soft, erased, box, larger].map((pixels) => [...pixels])));"""
    hard, soft, erased, box, larger = (np.array(pixels) for pixels in run(script, "region_geometry"))
    y, x = np.mgrid[:16, :16] + 0.5
    far = np.hypot(x - 8, y - 8)
    np.testing.assert_array_equal(hard.reshape(16, 16), np.where(far <= 4, 255, 0))
    np.testing.assert_allclose(soft.reshape(16, 16), np.clip(255 * (1 - far / 4), 0, 255), atol=1)
    assert not erased.any()
    assert np.array_equal(box.reshape(4, 8) > 0, np.outer([1, 1, 0, 0], [0, 0, 1, 1, 1, 1, 0, 0]) > 0)
    assert (larger == 255).all()


@needs_node
def test_masks_are_laid_over_each_other():
    """Two tints of 60 % over nothing: the second hides 60 % of the first; what is painted by half shows by half."""
    script = """
    const bytes = new Uint8ClampedArray(12);
    tint(bytes, [255, 255, 0], "#ff0000", 0.6);
    tint(bytes, [0, 255, 128], "#0000ff", 0.6);
    console.log(JSON.stringify([[...bytes], [...toRGBA([7, 200])], [...fromRGBA(toRGBA([7, 200]))]]));"""
    bytes, grey, back = run(script, "region_geometry")
    alpha = 0.6 + 0.6 * 0.4
    both = [255 * 0.6 * 0.4 / alpha, 0, 255 * 0.6 / alpha, 255 * alpha]
    np.testing.assert_allclose(bytes, [255, 0, 0, 153, *both, 0, 0, 255, 255 * 0.6 * 128 / 255], atol=1.5)
    assert grey == [7, 7, 7, 255, 200, 200, 200, 255] and back == [7, 200]


@needs_node
def test_one_change_is_one_message_and_one_step_of_undo():
    found = of_state("""
    state.add(); state.add();
    state.edit({ prompt: "a cat" }, "Written.");
    const written = model.get("_regions");
    state.undo(); state.undo();
    const one = names();
    state.redo(); state.redo(); state.redo();
    return { one, same: written === model.get("_regions"), saves: model.saves, last: said.at(-1),
             prompt: state.chosen().prompt };
    """)
    assert found == {"one": ["Region 1"], "same": True, "saves": 7, "last": "Nothing to redo.", "prompt": "a cat"}


@needs_node
def test_a_new_change_forgets_what_was_undone_and_python_s_can_be_undone():
    found = of_state("""
    state.add(); state.undo(); state.add();
    const own = session.redo.length;
    state.undo();
    model.set("_regions", [{ ...state.fresh({ box: [0, 0, 1, 1] }), name: "from Python" }]);
    const redo = session.redo.length;
    state.undo();
    const before = names();
    state.redo();
    return { own, redo, before, after: names() };
    """)
    assert found == {"own": 0, "redo": 0, "before": [], "after": ["from Python"]}


@needs_node
def test_regions_are_chosen_moved_in_the_list_and_deleted():
    found = of_state("""
    state.add(); state.add(); state.add();
    state.neighbour(1);
    const around = state.chosen().name;
    state.reorder(1);
    const order = names();
    state.remove();
    const next = state.chosen().name;
    state.remove(); state.remove(); state.remove();
    return { around, order, next, none: names(), selected: session.selected };
    """)
    wanted = {"around": "Region 1", "order": ["Region 2", "Region 1", "Region 3"], "next": "Region 3"}
    assert found == wanted | {"none": [], "selected": None}


@needs_node
@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_python_s_and_keep_what_was_written(name):
    found = of_state(f"""
    state.add();
    state.edit({{ prompt: "a cat" }});
    const old = state.chosen();
    state.applyPreset({json.dumps(name)});
    const regions = model.get("_regions");
    return {{ regions, kept: regions[0].id === old.id && regions[0].color === old.color, prompt: regions[0].prompt }};
    """)
    assert found["kept"] and found["prompt"] == "a cat"
    made = [(entry["name"], tuple(entry["box"]), entry["weight"]) for entry in found["regions"]]
    assert made == PRESETS[name] and len({entry["id"] for entry in found["regions"]}) == len(made)


@needs_node
def test_a_mask_without_pixels_has_no_shape_until_it_is_known():
    found = of_state("""
    const entry = state.fresh({ mask: "abc" });
    const before = state.shapeOf(entry) ?? null;
    remember("abc", filled([0, 0, 3 / 7, 0.4], [7, 5]));
    const draft = state.shapeOf({ ...entry, pixels: filled([0, 0, 1, 1], [7, 5]) });
    return { before, after: state.shapeOf(entry), draft };
    """)
    assert found["before"] is None and found["draft"] == [0, 0, 1, 1]
    assert found["after"] == pytest.approx([0, 0, 3 / 7, 0.4])


def test_a_file_of_regions_begins_the_same_from_the_page_and_from_python():
    text = page.module()
    assert 'model.get("_header")' in text and HEADER["format"] not in text
