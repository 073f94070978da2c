"""The people's vote in a real browser: the page's own module, and the widget's real Python side behind it."""

import json

import pytest
from bare_page import MODEL
from PIL import Image

widget = pytest.importorskip("mixofshow_lite.course.widgets.vote", reason="pip install '.[lab]'")
from mixofshow_lite.paper.vote import Ballot, Pair, read_votes  # noqa: E402

WAYS = ("averaging", "gradient fusion")
SYNCED = ("rater", "_question", "_progress")


def ballot(pairs=3):
    """The second way's pictures are blue, so that a person could tell."""
    made = []
    for i in range(pairs):
        pictures = tuple(Image.new("RGB", (64, 64), colour) for colour in ((200, 20 * i, 0), (0, 20 * i, 200)))
        made.append(Pair(f"pair {i}", f"a rabbit {i} on the beach", pictures, (Image.new("RGB", (64, 64), "blue"),)))
    return Ballot(WAYS, tuple(made))


def html(state):
    module = json.dumps((widget.HERE / "vote.js").read_text("utf-8"))
    style = (widget.HERE / "vote.css").read_text("utf-8")
    return f"""<!doctype html><html><head><meta charset="utf-8"><style>{style}</style></head>
    <body><div id="vote"></div><script type="module">{MODEL}
    const url = URL.createObjectURL(new Blob([{module}], {{ type: "text/javascript" }}));
    const widget = (await import(url)).default();
    window.model = new Model({json.dumps(state)});
    const send = model.send.bind(model);
    model.send = (message) => {{ send(message); window.toPython(message); }};
    widget.render({{ model, el: document.getElementById("vote") }});
    window.ready = true;
    </script></body></html>"""


class Booth:
    """A page and the Python widget behind it, as a kernel would join them."""

    def __init__(self, browser, file):
        self.python, self.wrong = widget.VotePage(ballot(), file), []
        self.context = browser.new_context(viewport={"width": 900, "height": 900}, accept_downloads=True)
        self.page = self.context.new_page()
        self.page.set_default_timeout(120_000)
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", lambda request: request.url.startswith("http") and self.wrong.append(request.url))
        self.messages = []
        self.page.expose_function("toPython", lambda message: self.messages.append(message))
        self.said = []
        self.python.send = lambda message, buffers=None: self.said.append(message)
        self.page.set_content(html(self.state()))
        self.page.wait_for_function("window.ready")

    def state(self):
        return {name: getattr(self.python, name) for name in SYNCED}

    def carry(self):
        """Hand the page's messages to Python, and Python's state and messages to the page."""
        self.page.wait_for_timeout(20)
        while self.messages:
            self.python._receive(None, self.messages.pop(0), [])
            self.page.evaluate("state => Object.entries(state).forEach(([k, v]) => model.set(k, v))", self.state())
            while self.said:
                self.page.evaluate("message => model.fire('msg:custom', message, [])", self.said.pop(0))

    def press(self, key):
        self.page.keyboard.press(key)
        self.carry()

    @property
    def status(self):
        return self.page.locator("[role=status]").text_content()

    def side_of_blue(self):
        """Which picture a person who likes blue would take, by the pixels on the page."""
        blue = self.page.evaluate(
            """async () => Promise.all([...document.querySelectorAll('.mos-vote-pair img')].map(async (img) => {
              await img.decode();
              const paint = document.createElement('canvas').getContext('2d');
              paint.drawImage(img, 0, 0, 1, 1);
              return paint.getImageData(0, 0, 1, 1).data[2];
            }))"""
        )
        return blue.index(max(blue))


def test_a_whole_vote_by_keyboard_resumed_and_saved(browser, tmp_path, shot):
    file = tmp_path / "votes.jsonl"
    booth = Booth(browser, file)
    assert booth.status == "Type a name to begin."
    booth.page.get_by_label("Your name").fill("ada")
    booth.press("Enter")
    assert booth.status == "0 of 6 answered"
    assert booth.page.get_by_text("Which of the two looks more like those above them?").is_visible()
    for way in WAYS:
        assert way not in booth.page.content(), "the page is blind"
    shot(booth.page, "vote", booth.page.locator(".mos-vote"))
    for _ in range(2):
        booth.press(("ArrowLeft", "ArrowRight")[booth.side_of_blue()])
    assert booth.status == "2 of 6 answered"
    assert len(read_votes(file)) == 2
    booth.context.close()  # the browser crashes

    booth = Booth(browser, file)
    booth.page.get_by_label("Your name").fill("ada")
    booth.press("Enter")
    assert booth.status == "2 of 6 answered", "the same name goes on"
    booth.press("Backspace")
    booth.press("12"[1 - booth.side_of_blue()])  # a changed mind, by the number keys
    booth.page.get_by_label("The left picture").wait_for()
    booth.page.locator(".mos-vote-pair button").nth(booth.side_of_blue()).click()
    booth.carry()
    assert booth.status == "3 of 6 answered"
    assert booth.page.get_by_text("on the beach").is_visible(), "the text questions show the words"
    for _ in range(3):
        booth.press(("ArrowLeft", "ArrowRight")[booth.side_of_blue()])
    assert booth.status == "Thank you: all 6 questions are answered."
    assert booth.page.locator("progress").evaluate("bar => bar.value / bar.max") == 1
    with booth.page.expect_download() as download:
        booth.page.get_by_role("button", name="Save all votes as CSV").click()
        booth.carry()
    download.value.save_as(tmp_path / "votes.csv")
    lines = (tmp_path / "votes.csv").read_text().splitlines()
    assert lines[0] == "rater,pair,question,left,right,choice" and len(lines) == 7
    found = booth.python.result()
    assert (found.preferred["image"].votes, found.preferred["text"].share) == (3, 1.0)
    assert found.preferred["image"].share == pytest.approx(2 / 3)  # the changed mind
    booth.page.get_by_role("button", name="Another rater").click()
    booth.carry()
    assert booth.page.get_by_label("Your name").is_visible()
    assert not booth.wrong
    booth.context.close()
