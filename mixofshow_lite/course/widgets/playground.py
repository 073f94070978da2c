"""The fusion playground (paper 3.2, 3.3.2): choose concepts, weights, method and ridge; see what each identity keeps.

`render` is pure: frames that are already drawn and a choice make one picture. `Playground` only wires it to controls.
A choice that nobody has drawn yet is fused and sampled on a click.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from PIL import Image, ImageDraw, ImageFont

from ...engine.fusion import gradient_fusion, weight_fusion
from ...engine.fusion.settings import default_ridge
from ...files.concept import Concept
from ...model import DiffusionModel
from ...rivals import peft_fusion
from .panel import Panel, shown_picture
from .sampling import to_bytes

METHODS = {  # method -> what it is called on the page
    "weight": "weight fusion",
    "gradient": "gradient fusion",
    "sum": "plain sum",
    "ties": "peft's ties",
}
RIDGE = round(default_ridge(3), 3)  # a fixed one here: the choices stay comparable when concepts join
RIDGES = (0.0001, 0.001, 0.003, 0.01, 0.1, 1.0, 3.0)
WEIGHTS = {"out": 0.0, "1/2": 0.5, "1": 1.0, "2": 2.0}
SIDE, GAP, HEAD, LEFT = 96, 4, 24, 92  # pixels: of a picture, between pictures, above them, left of them
INK, FAINT, PAPER = (40, 44, 52), (150, 155, 163), (240, 241, 244)


@dataclass(frozen=True)
class Choice:
    """One fusion, written so that equal fusions are equal: made by `choose`."""

    members: tuple[tuple[str, float], ...]  # (name, share), sorted by name; the shares sum to one
    method: str  # one of METHODS
    ridge: float | None  # of gradient fusion, None for methods that have none

    def __str__(self) -> str:
        ridge = "" if self.ridge is None else f", ridge {self.ridge:g}"
        equal = len({share for _, share in self.members}) == 1
        shares = "" if equal else ", weights " + " ".join(f"{share:.2f}" for _, share in self.members)
        return METHODS[self.method] + ridge + shares


def choose(weights: Mapping[str, float] | Iterable[str], method: str = "gradient", ridge: float = RIDGE) -> Choice:
    """The choice of these concepts: names, or names with weights (0 leaves one out).

    Raises ValueError on an unknown method, a ridge or weight that is none, or no concept at all.
    """
    weights = dict(weights) if isinstance(weights, Mapping) else dict.fromkeys(weights, 1.0)
    if method not in METHODS:
        raise ValueError(f"There is no method {method!r}: choose one of {', '.join(METHODS)}.")
    if not 0 <= ridge < float("inf") or not all(0 <= weight < float("inf") for weight in weights.values()):
        raise ValueError(f"ridge={ridge}, weights={weights}: give numbers that are not negative.")
    total = sum(weights.values())
    if not total > 0:
        raise ValueError("Every concept is left out: give at least one of them a weight.")
    members = tuple((name, round(weight / total, 6)) for name, weight in sorted(weights.items()) if weight > 0)
    return Choice(members, method, float(ridge) if method == "gradient" else None)


@dataclass(frozen=True)
class Frame:
    """What one model draws of every concept in it."""

    pictures: dict[str, list[Image.Image]]  # concept -> its pictures, from the same seeds in every frame
    scores: dict[str, float] = field(default_factory=dict)  # concept -> one number, e.g. its image-alignment


def fuse(base: DiffusionModel, concepts: Mapping[str, Concept], choice: Choice, **options) -> DiffusionModel:
    """The fused model of a choice; `options` go to gradient_fusion. Sums and peft's merges have mean weight 1."""
    members = [concepts[name] for name, _ in choice.members]
    shares = [share for _, share in choice.members]
    full = [len(shares) * share / sum(shares) for share in shares]
    if choice.method == "gradient":
        return gradient_fusion(base, members, weights=shares, ridge=choice.ridge, progress=False, **options)
    if choice.method == "sum":
        return weight_fusion(base, members, full, normalise=False)
    if choice.method == "weight":
        return weight_fusion(base, members, shares)
    return peft_fusion(base, members, choice.method, full)


def render(
    frames: Mapping[Choice, Frame],
    choice: Choice | None,
    alone: Frame,
    note: str = "not drawn yet: press Fuse",
) -> Image.Image:
    """One row per concept: what its own model draws (`alone`), and beside it what the chosen fused model draws.

    A choice that is not among the frames has a note in their place. The same arguments give the same pixels, and every
    choice a picture of the same size.
    """
    n = max(len(pictures) for pictures in alone.pictures.values())
    block = n * (SIDE + GAP)
    second_block = max(n, 2) * (SIDE + GAP)  # the choice is written above it, and a note in its place
    canvas = Image.new(
        "RGB", (LEFT + block + second_block + 3 * GAP, HEAD + len(alone.pictures) * (SIDE + GAP) + GAP), "white"
    )
    draw, large, small = ImageDraw.Draw(canvas), ImageFont.load_default(size=13), ImageFont.load_default(size=11)
    second = LEFT + block + 3 * GAP
    frame = frames.get(choice)
    draw.text((LEFT, 5), "each alone", INK, large)
    draw.text((second, 5), "nothing chosen" if choice is None else str(choice), INK, large)
    for row, (name, pictures) in enumerate(alone.pictures.items()):
        top = HEAD + row * (SIDE + GAP)
        _row(canvas, pictures, LEFT, top)
        draw.text((6, top + SIDE / 2 - 14), name, INK, large)
        if frame is not None and name in frame.pictures:
            _row(canvas, frame.pictures[name], second, top)
            if name in alone.scores and name in frame.scores:
                draw.text((6, top + SIDE / 2 + 3), f"{alone.scores[name]:.3f} -> {frame.scores[name]:.3f}", INK, small)
            continue
        absent = choice is None or name not in dict(choice.members)
        draw.rectangle((second, top, second + second_block - GAP - 1, top + SIDE - 1), fill=PAPER)
        draw.text((second + 8, top + SIDE / 2 - 6), "not in this model" if absent else note, FAINT, small)
    return canvas


def _row(canvas: Image.Image, pictures: Sequence[Image.Image], left: int, top: int) -> None:
    for i, picture in enumerate(pictures):
        canvas.paste(
            picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS), (left + i * (SIDE + GAP), top)
        )


class Playground(Panel):
    """Controls over fusions of a few concepts.

        play = Playground(base, [bibi, momo, kiki])
        play.precompute([choose(["bibi", "momo"], "weight"), ...])
        play                            # show it: what is drawn already at once, the rest on a click
        play.choose({"bibi": 1, "kiki": 2}, "gradient", 0.1); play.fuse()  # the same from Python, to be shown again

    `prompt` names a concept by {}; `n` pictures of each from `seed` on; `score(name, pictures)` puts a number beside
    them; `fusing` holds more settings of gradient_fusion. Raises ValueError without concepts, or if two share a name.
    """

    def __init__(
        self,
        base: DiffusionModel,
        concepts: Sequence[Concept],
        prompt: str = "photo of a {}",
        n: int = 2,
        seed: int = 100,
        steps: int = 25,
        score: Callable[[str, list[Image.Image]], float] | None = None,
        fusing: Mapping | None = None,
    ):
        self.concepts = {concept.name: concept for concept in concepts}
        if not self.concepts or len(self.concepts) < len(concepts):
            raise ValueError(
                f"{len(concepts)} concepts with {len(self.concepts)} names: give at least one, named apart."
            )
        self.base, self.prompt, self.n, self.seed, self.steps = base, prompt, n, seed, steps
        self.score, self.options = score, dict(fusing or {})
        self.frames: dict[Choice, Frame] = {}
        self.weights, self.method, self.ridge = dict.fromkeys(self.concepts, 1.0), "gradient", RIDGE
        drawn = {name: self._draw(base.with_concept(c), [c])[name] for name, c in self.concepts.items()}
        self.alone = self._frame(drawn)

    def choose(
        self, weights: Mapping[str, float] | Iterable[str], method: str = "gradient", ridge: float = RIDGE
    ) -> None:
        """Make this the choice that is shown; raises ValueError as `choose` does, or on unknown names."""
        choice = choose(weights, method, ridge)
        unknown = sorted({name for name, _ in choice.members} - set(self.concepts))
        if unknown:
            raise ValueError(f"{unknown[0]!r} is not here: there are {', '.join(self.concepts)}.")
        given = dict(weights) if isinstance(weights, Mapping) else dict.fromkeys(weights, 1.0)
        self.weights = {name: float(given.get(name, 0.0)) for name in self.concepts}
        self.method, self.ridge = method, float(ridge)
        self._view = None  # shown again, the controls stand where they were put here

    @property
    def choice(self) -> Choice | None:
        """What is chosen; None while every concept is left out."""
        return choose(self.weights, self.method, self.ridge) if any(self.weights.values()) else None

    def fuse(self) -> Frame:
        """Fuse what is chosen and draw it, unless it is drawn already; raises ValueError if nothing is chosen."""
        if self.choice is None:
            raise ValueError("Every concept is left out: give at least one of them a weight.")
        if self.choice not in self.frames:
            self.frames[self.choice] = self.draw(self.choice)
        return self.frames[self.choice]

    def precompute(self, choices: Iterable[Choice]) -> None:
        """Draw the frames of these choices, those that are there already excepted."""
        for choice in choices:
            if choice not in self.frames:
                self.frames[choice] = self.draw(choice)

    def draw(self, choice: Choice) -> Frame:
        """Fuse and sample one choice."""
        fused = fuse(self.base, self.concepts, choice, **(self.options if choice.method == "gradient" else {}))
        return self._frame(self._draw(fused, [self.concepts[name] for name, _ in choice.members]))

    def _draw(self, model: DiffusionModel, concepts: Sequence[Concept]) -> dict[str, list[Image.Image]]:
        prompts = [self.prompt.replace("{}", concept.phrase) for concept in concepts]
        drawn = model.sample(prompts, n=self.n, seed=self.seed, steps=self.steps, progress=False)
        return {concept.name: drawn[i * self.n : (i + 1) * self.n] for i, concept in enumerate(concepts)}

    def _frame(self, pictures: dict[str, list[Image.Image]]) -> Frame:
        scored = {} if self.score is None else {name: float(self.score(name, p)) for name, p in pictures.items()}
        return Frame(pictures, scored)

    def figure(self) -> Image.Image:
        return render(self.frames, self.choice, self.alone)

    def build(self):
        import ipywidgets as ui

        known = {weight: label for label, weight in WEIGHTS.items()}
        wide = {"description_width": "60px"}
        weights = {}
        for name, weight in self.weights.items():
            stops = [(known.get(w, f"{w:g}"), w) for w in sorted({*known, weight})]
            weights[name] = ui.SelectionSlider(options=stops, value=weight, description=name, style=wide)
        methods = [(label, method) for method, label in METHODS.items()]
        method = ui.Dropdown(options=methods, value=self.method, description="method", style=wide)
        ridges = [(f"{r:g}", r) for r in sorted({*RIDGES, self.ridge})]
        ridge = ui.SelectionSlider(options=ridges, value=self.ridge, description="ridge", style=wide)
        button, status = ui.Button(description="Fuse", button_style="primary"), ui.Label()
        picture = shown_picture(self.figure())

        def show(*_) -> None:
            self.weights = {name: float(slider.value) for name, slider in weights.items()}
            self.method, self.ridge = method.value, float(ridge.value)
            ridge.disabled = self.method != "gradient"
            button.disabled = self.choice is None or self.choice in self.frames
            status.value = "Give at least one concept a weight." if self.choice is None else ""
            picture.value = to_bytes(self.figure())

        def clicked(_) -> None:
            button.disabled, status.value = True, "fusing and drawing ..."
            try:
                self.fuse()
                show()
            except (
                Exception
            ) as error:  # whatever the model raises belongs on the page: a click has no cell to show it in
                button.disabled, status.value = False, f"It failed: {error}"

        for control in (*weights.values(), method, ridge):
            control.observe(show, names="value")
        button.on_click(clicked)
        show()
        right = ui.VBox([method, ridge, ui.HBox([button, status])])
        return ui.VBox([ui.HBox([ui.VBox(list(weights.values())), right]), picture])

    def __repr__(self) -> str:
        chosen = (
            "nothing" if self.choice is None else f"{', '.join(n for n, _ in self.choice.members)} by {self.choice}"
        )
        return f"Playground({chosen}; {len(self.frames)} frames drawn)"
