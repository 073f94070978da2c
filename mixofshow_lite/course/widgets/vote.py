"""The people's vote on a page (paper 4.3, Table 2 b, c): two pictures, one question, the better one.

    page = VotePage(ballot, "out/votes.jsonl")
    page                                # show it; answer with the mouse, or with the arrow keys
    print(page.result())

`VotePage` only wires: what is asked, how votes are kept and what they say is in `paper.vote`, the page in `vote.js` and
`.css` (a plain ES module, nothing is fetched). The page never learns which way made a picture.
"""

import base64
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

try:
    import anywidget
    import traitlets
except ImportError as error:
    raise ImportError("The vote needs anywidget: pip install 'mixofshow_lite[lab]'.") from error

from ...engine.arguments import as_path
from ...files.grid import grid
from ...paper.vote import (
    QUESTIONS,
    Ask,
    Ballot,
    Result,
    add_vote,
    asks,
    check_votes_file,
    read_votes,
    result,
    votes_csv,
)
from .sampling import data_url, to_bytes

HERE = Path(__file__).parent


class VotePage(anywidget.AnyWidget):
    """A blind vote on a ballot, kept in `file` (JSON lines, only ever added to).

    A rater types a name and answers; the same name goes on where it stopped, also tomorrow and on another page. Going
    back one question and answering again replaces the answer. Raises OSError, and says it on the page, if a vote
    cannot be written: no answer is taken that is not on the disk. A file that holds other things is refused at once.
    """

    _esm = HERE / "vote.js"
    _css = HERE / "vote.css"

    rater = traitlets.Unicode().tag(sync=True)
    _question = traitlets.Dict().tag(sync=True)  # what the page shows; {} before there is a name, and at the end
    _progress = traitlets.List([0, 0]).tag(sync=True)  # answered, asked

    def __init__(self, ballot: Ballot, file: str | Path, rater: str = ""):
        file = as_path(file)
        check_votes_file(file)
        super().__init__()
        self.ballot, self.file = ballot, file
        self._asks: list[Ask] = []
        self._at = 0  # of the question that is shown
        self.on_msg(self._receive)
        self.start(rater)

    def start(self, rater: str) -> None:
        """Ask this rater, from the first question without an answer on; an empty name asks for one."""
        with self.hold_sync():
            self.rater = " ".join(rater.split())
            self._asks = asks(self.ballot, self.rater) if self.rater else []
            answered = self._answered()
            unanswered = (i for i, ask in enumerate(self._asks) if key(ask) not in answered)
            self.show(next(unanswered, len(self._asks)))

    def answer(self, side: int) -> None:
        """Vote for the left (0) or right (1) picture of the question at hand and go on to the next without an answer.

        Raises ValueError if no question is shown, OSError if the vote could not be written.
        """
        if self._at >= len(self._asks):
            raise ValueError("There is no question to answer: start(name) first.")
        add_vote(self.file, self.ballot, self.rater, self._asks[self._at], side)
        answered = self._answered()
        later = (i for i in range(self._at + 1, len(self._asks)) if key(self._asks[i]) not in answered)
        self.show(next(later, len(self._asks)))

    def back(self) -> None:
        """The question before this one, to be answered again."""
        self.show(max(0, self._at - 1))

    def show(self, index: int) -> None:
        """Put a question on the page; beyond the last one the page says thanks."""
        self._at, answered = index, self._answered()
        with self.hold_sync():  # the page hears of both at once
            self._progress = [sum(key(ask) in answered for ask in self._asks), len(self._asks)]
            self._question = self._shown(index) if index < len(self._asks) else {}

    def _shown(self, index: int) -> dict:
        """A question as the page takes it."""
        ask = self._asks[index]
        left, right = (data_url(ask.pair.pictures[i]) for i in ask.sides)
        shown = {"at": index, "kind": ask.question, "text": QUESTIONS[ask.question], "left": left, "right": right}
        if ask.question == "image":
            return shown | {"references": [data_url(picture) for picture in ask.pair.references]}
        return shown | {"words": ask.pair.words}

    def result(self, metrics: Mapping | None = None) -> Result:
        """What all raters of the file say; see `paper.vote.result`."""
        names = [pair.name for pair in self.ballot.pairs]
        return result(read_votes(self.file), self.ballot.ways, names, metrics)

    def _answered(self) -> set[tuple[str, str]]:
        return {(vote["pair"], vote["question"]) for vote in read_votes(self.file) if vote["rater"] == self.rater}

    def _receive(self, _, message: dict, buffers) -> None:
        try:
            match message:
                case {"type": "start", "rater": str(rater)}:
                    self.start(rater)
                case {"type": "vote", "at": int(at), "side": int(side)} if at == self._at:  # not a key held down
                    self.answer(side)
                case {"type": "back"}:
                    self.back()
                case {"type": "csv"}:
                    self.send({"type": "csv", "text": votes_csv(read_votes(self.file))})
        except (ValueError, OSError) as error:
            self.send({"type": "error", "message": str(error)})

    def figure(self) -> Image.Image:
        """The first pair as a static picture, for readers without a front end."""
        ask = asks(self.ballot, self.rater)[0]
        rows = [list(ask.pair.references)] if ask.pair.references else []
        rows.append([ask.pair.pictures[i] for i in ask.sides])
        return grid(rows, {len(rows) - 1: ["left", "right"]}, heading=QUESTIONS[ask.question])

    def __repr__(self) -> str:
        answered, asked = self._progress
        who = f"{self.rater!r}, {answered} of {asked} answered" if self.rater else "no rater yet"
        return f"VotePage({len(self.ballot.pairs)} pairs; {who})"

    def _repr_mimebundle_(self, **kwargs):
        """The widget, and beside it the static picture for readers that know no widgets."""
        bundle = super()._repr_mimebundle_(**kwargs)
        if bundle is None:
            return None
        data, metadata = bundle
        return {**data, "image/png": base64.b64encode(to_bytes(self.figure())).decode()}, metadata


def key(ask: Ask) -> tuple[str, str]:
    """What an answer belongs to."""
    return ask.pair.name, ask.question
