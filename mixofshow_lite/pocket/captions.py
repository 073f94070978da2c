"""Captions of Pocket World: varied plain English, attributes sometimes left out, so that short, long, global and
regional prompts are all inside the domain of Pocket Diffusion."""

from .world import Picture, Subject

PLACES = {
    "beach": ("on the beach", "at the beach"), "forest": ("in the forest", "in the woods"), "snow": ("in the snow",),
    "city": ("in the city",), "desert": ("in the desert",), "moon": ("on the moon",),
}  # fmt: skip
TIMES = {"day": "", "sunset": "at sunset", "night": "at night"}
NOUNS = {"bow": "bow", "hat": "hat", "scarf": "scarf", "glasses": "glasses", "crown": "crown"}
OPENINGS = ("", "", "", "photo of ", "a photo of ", "picture of ", "a picture of ", "a drawing of ")
ODD = "odd"  # whatever marks a subject has: the model can draw them, and has no words to choose them by
COUNTS = {1: ("a friend", "someone"), 2: ("two friends",), 3: ("three friends",)}


def article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def full_name(subject: Subject, colour: bool = True, mood: bool = False, wear: bool = False) -> str:
    """A subject in words: "a happy red cat wearing a blue hat"."""
    words = [subject.expression] if mood and subject.is_character else []
    if subject.odd:
        words.append(ODD)
    if colour and subject.colour:
        words.append(subject.colour)
    text = article(" ".join([*words, subject.cls]))
    if wear and subject.accessories:
        worn = [
            f"{tint} {name}" if name == "glasses" else article(f"{tint} {name}")
            for name, tint, _ in subject.accessories
        ]
        text += " wearing " + " and ".join(worn)
    return text


def _name(subject: Subject, rng, colour_odds=0.88) -> str:
    return full_name(subject, rng.random() < colour_odds, rng.random() < 0.3, rng.random() < 0.6)


def _pose(subject: Subject, rng) -> str:
    raised = sum(a > 90 for a in subject.arms) if subject.is_character else 0
    if raised == 0 or rng.random() < 0.4:
        return ""
    return " waving" if raised == 1 else " with arms up"


def side(subject: Subject) -> str:
    """Where in the picture it stands: " on the left", " on the right", nothing in the middle."""
    return " on the left" if subject.x < 0.42 else " on the right" if subject.x > 0.58 else ""


def _pair(a: Subject, b: Subject, rng) -> str:
    """Two subjects with or without a relation; `a` stands left of `b`."""
    first, second = _name(a, rng), _name(b, rng)
    roll = rng.random()
    if roll < 0.3:
        return f"{first} and {second}" if rng.random() < 0.5 else f"{second} and {first}"
    if roll < 0.45:
        names = (f"{first} on the left", f"{second} on the right")
        return " and ".join(names if rng.random() < 0.5 else names[::-1])
    if roll < 0.6:
        return f"{first} to the left of {second}"
    if roll < 0.8:
        return f"{second} to the right of {first}"
    if roll < 0.9 and abs(a.x - b.x) < 0.28:
        front, back = (first, second) if a.y > b.y else (second, first)
        return f"{back} behind {front}"
    return f"{first} next to {second}"


def _with_friends(subjects: list[Subject], rng) -> str:
    """One of several characters by name, the others as friends: "a red cat and a friend"."""
    k = int(rng.integers(len(subjects)))
    name, others = _name(subjects[k], rng), ("a friend", "two friends")[len(subjects) - 2]
    roll, sides = rng.random(), (" on the left", *[""] * (len(subjects) - 2), " on the right")
    if rng.random() < 0.45:
        return f"{name}{sides[k]} {'and' if rng.random() < 0.6 else 'with'} {others}"
    if roll < 0.7 or len(subjects) > 2:
        return f"{name} {'and' if rng.random() < 0.6 else 'with'} {others}"
    if roll < 0.8:
        return f"{others} and {name}"
    return f"{name} to the {'right' if k else 'left'} of {others}"


def caption(picture: Picture, rng, company: bool = False) -> str:
    """One caption; called again it gives another of the same picture.

    Of several subjects it names all, or one and how many friends, or gives only the count, or only the place: words for
    one subject always mean a picture of one.
    A region's prompt that says "a red cat on the left and a friend" is so inside the domain: a picture of two, one of
    them named, and where it stands. With `company` every second caption of several characters is such.
    """
    subjects = sorted(picture.subjects, key=lambda s: s.x)
    n, roll = len(subjects), rng.random()
    friends, count = (0.52, 0.62) if company else (0.27, 0.37)
    people = n > 1 and all(s.is_character for s in subjects)
    if n == 1:
        where = side(subjects[0]) if rng.random() < 0.3 else ""
        text = _name(subjects[0], rng) + _pose(subjects[0], rng) + where if roll < 0.96 else ""
    elif people and roll < friends:
        text = _with_friends(subjects, rng)
    elif people and roll < count:
        text = COUNTS[n][0]
    elif roll > 0.96:
        text = ""
    elif n == 2:
        text = _pair(*subjects, rng)
    else:
        text = ", ".join(_name(s, rng) for s in subjects[:2]) + " and " + _name(subjects[2], rng)
    where = str(rng.choice(PLACES[picture.scene])) if rng.random() < 0.88 or not text else ""
    when = TIMES[picture.light] if rng.random() < 0.75 else ""
    if not text:
        place = where.split("the ", 1)[1]
        return " ".join(p for p in (f"{rng.choice(OPENINGS)}the {place}", when) if p)
    if where and rng.random() < 0.15:
        return " ".join(p for p in (where, when) if p) + ", " + text
    return str(rng.choice(OPENINGS)) + " ".join(p for p in (text, where, when) if p)
