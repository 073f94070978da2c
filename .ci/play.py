"""A page that needs no installation: sliders over pictures drawn beforehand, in one file: python .ci/play.py

Four panels: the LoRA weight alpha (paper 3.3.1), the way to fuse (3.2, 3.3.2), the ridge, regions (3.4). The pictures
are drawn once by the library (some minutes) into a folder of out/play that is named after all they depend on, and kept
there; out/site/play.html holds them all and asks no server for anything.
"""

import base64
import functools
import hashlib
import html
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

OUT = Path(__file__).resolve().parents[1] / "out"
SITE = OUT / "site"
NAMES, SEEDS, PLACE = ("bibi", "kiki"), 3, "on the beach"
ALPHAS, RIDGES = (0, 0.25, 0.5, 0.75, 1), (0.001, 0.03, 0.3, 3.0)
TEXTS = {  # of each panel: its title, what to look for
    "alpha": ("How much of the LoRA?", "At 0 the words act alone; the marks come with the weights."),
    "way": ("How to fuse?", "Compare each way with the first stop: which marks are left?"),
    "ridge": ("How strong a pull to the average?", "A large ridge is the average; a small one fits what was recorded."),
    "regions": (
        "Who stands where?",
        "The pose is the same. One prompt mixes who wears what; regions say it; swapped, they say the other.",
    ),
}


@dataclass(frozen=True)
class Panel:
    """One slider: its title, what to look for, and for every stop a label and a picture."""

    title: str
    say: str
    stops: list[tuple[str, Image.Image]]


def kept(file: Path, draw: Callable[[], Image.Image]) -> Image.Image:
    """The picture in a file; drawn and saved first where there is none."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        draw().save(file, quality=90)
    return Image.open(file).convert("RGB")


def state(fingerprint: str, digests: list[str]) -> str:
    """A name for all that the pictures depend on: the base's weights, the concepts', and the numbers above."""
    parts = (fingerprint, digests, NAMES, SEEDS, PLACE, ALPHAS, RIDGES)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def drawn(place: Path) -> Iterator[Panel]:
    """The four panels, drawn by the library on the pocket model; what `place` has of this model is not drawn again."""
    import mixofshow_lite as mos
    from mixofshow_lite import course
    from mixofshow_lite.engine.fusion.memory import Memory, digest
    from mixofshow_lite.files.grid import grid

    kit = course.setup("pocket")
    concepts = [mos.Concept.load(kit.tuned / f"{name}-ed_lora-0", kit.base) for name in NAMES]
    folder = place / state(kit.base.fingerprint, [digest(concept) for concept in concepts])

    memory = Memory()  # what is recorded is the same for every ridge
    fuse = functools.partial(mos.gradient_fusion, kit.base, concepts, memory=memory, progress=False)
    fused = functools.cache(lambda ridge=None: fuse(ridge=ridge))

    def each(models) -> Image.Image:
        """A row a concept, drawn by its model from the same noise."""
        rows = {}
        for concept, model in zip(concepts, models, strict=True):
            prompt = f"photo of a {concept.phrase}"
            rows[concept.name] = model.sample(prompt, n=SEEDS, seed=7, progress=False)
        return grid(rows, side=160)

    @functools.cache
    def alone(alpha) -> Image.Image:
        return each([kit.base.with_concept(concept, alpha) for concept in concepts])

    def together(prompt=f"two friends {PLACE}", **how) -> Image.Image:
        """Both in one picture, in the same drawn pose whoever says who is who."""
        columns = mos.side_by_side(["a rabbit"] * 2)[:2]
        pose = mos.load_adapter("pocket-keypose", kit.base.device), mos.keypose_layout(columns), 1.0
        return grid([fused().sample(prompt, n=SEEDS, seed=3, spatial=pose, progress=False, **how)], side=160)

    def side_by_side(*friends) -> Image.Image:
        return together(regions=mos.side_by_side(friends, PLACE), isolate=True)

    one, other = (f"a {concept.phrase}" for concept in concepts)
    weights = {f"alpha {a:g}": lambda a=a: alone(a) for a in ALPHAS}
    ways = {
        "each alone": lambda: alone(1),
        "averaged (Eq. 2)": lambda: each([mos.weight_fusion(kit.base, concepts)] * 2),
        "plain sum": lambda: each([mos.weight_fusion(kit.base, concepts, normalise=False)] * 2),
        "gradient fusion": lambda: each([fused()] * 2),
    }
    pulls = {f"ridge {r:g}": lambda r=r: each([fused(r)] * 2) for r in RIDGES}
    places = {
        "one prompt": lambda: together(f"{one} and {other} {PLACE}"),
        "regions": lambda: side_by_side(one, other),
        "regions, swapped": lambda: side_by_side(other, one),
    }
    for key, (title, say), draws in zip(TEXTS, TEXTS.values(), (weights, ways, pulls, places), strict=True):
        yield panel_of(folder, key, title, say, draws)


def panel_of(folder: Path, key: str, title: str, say: str, draws: dict[str, Callable[[], Image.Image]]) -> Panel:
    """A panel from what draws each stop."""
    stops = [(label, kept(folder / f"{key}-{k}.jpg", draw)) for k, (label, draw) in enumerate(draws.items())]
    return Panel(title, say, stops)


def as_url(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Mix-of-Show: try it here</title>
<meta name="viewport" content="width=device-width"><style>
body { font: 18px/1.5 system-ui, sans-serif; max-width: 44rem; margin: 2rem auto; padding: 0 1rem; color: #22262c; }
section { margin: 2.5rem 0; } img { max-width: 100%; display: block; } input { width: 100%; }
output { font-weight: 600; } a { color: #1d55b0; }
</style></head><body><h1>Mix-of-Show: try it here</h1>
<p>Two rabbits, tuned by two people, on one small model. Nothing to install: every picture was drawn beforehand.
Move a slider by mouse, finger or arrow keys. <a href="index.html">The course</a> says why.</p>
SECTIONS
<script>
const panels = PANELS;
for (const [k, stops] of panels.entries()) {
  const section = document.querySelectorAll('section')[k];
  const [slider, label, picture] = ['input', 'output', 'img'].map((name) => section.querySelector(name));
  const show = () => {
    const [text, url] = stops[slider.value];
    label.value = text;
    slider.setAttribute('aria-valuetext', text);
    picture.src = url;
    picture.alt = `${section.querySelector('h2').textContent} ${text}`;
  };
  slider.addEventListener('input', show);
  show();
}
</script></body></html>"""


def page(panels: list[Panel]) -> str:
    """The page of these panels, one file that needs nothing else."""
    sections = "\n".join(
        f"<section><h2>{html.escape(panel.title)}</h2><p>{html.escape(panel.say)}</p><img alt=''>"
        f"<label><input type='range' min='0' max='{len(panel.stops) - 1}' value='0' step='1'"
        f" aria-label='{html.escape(panel.title, quote=True)}'></label><output></output></section>"
        for panel in panels
    )
    data = json.dumps([[[label, as_url(picture)] for label, picture in panel.stops] for panel in panels])
    return PAGE.replace("SECTIONS", sections).replace("PANELS", data.replace("</", "<\\/"))


if __name__ == "__main__":
    made = page(list(drawn(OUT / "play")))
    SITE.mkdir(parents=True, exist_ok=True)
    (SITE / "play.html").write_text(made, encoding="utf-8")
    print(f"{SITE / 'play.html'}: {len(made) / 1e6:.1f} MB")
