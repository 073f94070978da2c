"""The people's vote without a browser: what is asked, what is kept, what it says."""

import json
import multiprocessing
import os
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import make_concept

from mixofshow_lite.engine.evaluation import Scorer
from mixofshow_lite.paper import ballots, vote
from mixofshow_lite.paper.vote import Ballot, Pair

WAYS = ("averaging", "gradient fusion")


def plain(*rgb):
    return Image.new("RGB", (16, 16), rgb)


def toy_ballot(pairs=12, seed=0):
    made = []
    for i in range(pairs):
        pictures = (plain(200, i, 0), plain(0, i, 200))
        made.append(Pair(f"pair {i}", f"a rabbit {i}", pictures, (plain(9, 9, 9),)))
    return Ballot(WAYS, tuple(made), seed)


def simulate(ballot, file, raters, prefers=0.5, seed=0):
    """Raters who choose the second way with probability `prefers`, whatever the side."""
    rng = np.random.default_rng(seed)
    for rater in raters:
        for ask in vote.asks(ballot, rater):
            way = int(rng.random() < prefers)
            vote.add_vote(file, ballot, rater, ask, ask.sides.index(way))
    return vote.read_votes(file)


# ---- what is asked ----


def test_everybody_is_asked_everything_in_an_order_of_their_own_and_on_both_sides():
    ballot = toy_ballot()
    mine, theirs = vote.asks(ballot, "ada"), vote.asks(ballot, "ben")
    assert [(a.pair.name, a.question, a.sides) for a in vote.asks(ballot, "ada")] == [
        (a.pair.name, a.question, a.sides) for a in mine
    ]
    for asks in (mine, theirs):
        assert Counter((a.pair.name, a.question) for a in asks).most_common(1)[0][1] == 1 and len(asks) == 24
        for question in vote.QUESTIONS:
            assert sum(a.sides == (0, 1) for a in asks if a.question == question) == 6
    assert [a.pair.name for a in mine] != [a.pair.name for a in theirs]
    assert [a.pair.name for a in vote.asks(toy_ballot(seed=1), "ada")] != [a.pair.name for a in mine]


def test_a_ballot_needs_two_ways_and_pairs_with_names():
    pair = toy_ballot().pairs[0]
    for wrong in ((("a",), (pair,)), (("a", "a"), (pair,)), (WAYS, ()), (WAYS, (pair, pair))):
        with pytest.raises(ValueError, match="give"):
            Ballot(*wrong)


# ---- what is kept ----


def test_a_vote_is_on_the_disk_at_once_and_a_changed_mind_replaces_it(tmp_path):
    ballot, file = toy_ballot(), tmp_path / "new" / "votes.jsonl"
    ask = vote.asks(ballot, "ada")[0]
    vote.add_vote(file, ballot, "ada", ask, 0)
    assert json.loads(file.read_text())["choice"] == WAYS[ask.sides[0]]
    vote.add_vote(file, ballot, "ada", ask, 1)
    (kept,) = vote.read_votes(file)
    assert kept["choice"] == WAYS[ask.sides[1]] and len(file.read_text().splitlines()) == 2
    with pytest.raises(ValueError, match="0 is the left"):
        vote.add_vote(file, ballot, "ada", ask, 2)
    assert vote.read_votes(tmp_path / "none") == []


@pytest.mark.parametrize("cut", range(1, 140, 23))
def test_a_line_that_was_cut_loses_no_other_vote(tmp_path, cut):
    ballot, file = toy_ballot(), tmp_path / "votes.jsonl"
    first, second, third = vote.asks(ballot, "ada")[:3]
    vote.add_vote(file, ballot, "ada", first, 0)
    whole = file.read_bytes()
    vote.add_vote(file, ballot, "ada", second, 0)
    file.write_bytes(file.read_bytes()[: len(whole) + cut])  # killed while it wrote the second
    vote.add_vote(file, ballot, "ada", third, 1)
    assert {v["pair"] for v in vote.read_votes(file)} >= {first.pair.name, third.pair.name}


def test_votes_are_never_added_to_something_else(tmp_path):
    ballot, ask = toy_ballot(), vote.asks(toy_ballot(), "ada")[0]
    (tmp_path / "thesis.txt").write_text("ten years")
    (tmp_path / "other.jsonl").write_text('{"file_name": "a.png"}\n')
    for name, error, match in (
        ("thesis.txt", FileExistsError, "holds something else than votes"),
        ("other.jsonl", FileExistsError, "holds something else than votes"),
        (".", FileExistsError, "no file that votes can be added to"),
        ("thesis.txt/votes", NotADirectoryError, "is a file, no folder"),
    ):
        with pytest.raises(error, match=match):
            vote.add_vote(tmp_path / name, ballot, "ada", ask, 0)
    assert (tmp_path / "thesis.txt").read_text() == "ten years" and len(list(tmp_path.iterdir())) == 2
    for start in (b"", b"\n", vote.BEGINNING[:4], vote.BEGINNING + b"bo"):  # a first vote that was cut
        (tmp_path / "votes.jsonl").write_bytes(start)
        vote.add_vote(tmp_path / "votes.jsonl", ballot, "ada", ask, 0)
        assert len(vote.read_votes(tmp_path / "votes.jsonl")) == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no full device")
def test_a_vote_that_is_not_on_the_disk_is_told(tmp_path, monkeypatch):
    ballot, ask = toy_ballot(), vote.asks(toy_ballot(), "ada")[0]
    monkeypatch.setattr(vote, "check_votes_file", lambda file: None)
    (tmp_path / "votes").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"Could not write .*votes \(No space left on device\): free some space"):
        vote.add_vote(tmp_path / "votes", ballot, "ada", ask, 0)


def vote_all(ballot, file, rater):
    for ask in vote.asks(ballot, rater):
        vote.add_vote(file, ballot, rater, ask, 0)


def test_several_raters_vote_into_one_file_at_once(tmp_path):
    ballot, file = toy_ballot(), tmp_path / "votes.jsonl"
    fork = multiprocessing.get_context("fork")
    raters = [fork.Process(target=vote_all, args=(ballot, file, f"rater {i}")) for i in range(3)]
    for process in raters:
        process.start()
    for process in raters:
        process.join(60)
    assert Counter(v["rater"] for v in vote.read_votes(file)) == {f"rater {i}": 24 for i in range(3)}


def test_votes_as_a_table(tmp_path):
    votes = simulate(toy_ballot(2), tmp_path / "v", ['a "quoted", name'])
    lines = vote.votes_csv(votes).splitlines()
    assert lines[0] == "rater,pair,question,left,right,choice" and len(lines) == 5
    assert lines[1].startswith('"a ""quoted"", name",pair')


# ---- what it says ----


def test_wilson_s_interval():
    assert vote.wilson(0, 0) == (0.0, 1.0)
    low, high = vote.wilson(665, 1000, 0.95)  # the paper's share, if it were of a thousand
    assert (round(low, 4), round(high, 4)) == (0.6352, 0.6936)
    assert vote.wilson(0, 10, 0.95) == (pytest.approx(0, abs=1e-9), pytest.approx(0.2775, abs=1e-4))
    assert vote.wilson(10, 10, 0.95) == (pytest.approx(0.7225, abs=1e-4), pytest.approx(1))


def test_krippendorff_s_alpha_on_his_own_example():
    """Krippendorff's two-observer binary example: ten units, 14 zeros and 6 ones, alpha 0.095."""
    first, second = "0100000010", "1110010000"
    votes = [
        {"pair": str(i), "question": "image", "choice": choice}
        for i, pair in enumerate(zip(first, second, strict=True))
        for choice in pair
    ]
    assert vote.alpha(votes, "image") == pytest.approx(0.095, abs=5e-4)
    agreeing = [{"pair": str(i), "question": "image", "choice": "01"[i % 2]} for i in range(10) for _ in range(3)]
    assert vote.alpha(agreeing, "image") == 1
    assert np.isnan(vote.alpha([v | {"choice": "1"} for v in agreeing], "image"))
    assert np.isnan(vote.alpha(agreeing[::3], "image"))  # one vote a pair


def test_a_known_preference_is_recovered(tmp_path):
    ballot = toy_ballot(30)
    found = vote.result(simulate(ballot, tmp_path / "v", [f"rater {i}" for i in range(8)], 0.7, seed=1), WAYS)
    for question in vote.QUESTIONS:
        share = found.preferred[question]
        assert share.shown and abs(share.share - 0.7) < 0.08 and share.votes == 240
    assert found.raters == 8 and "preferred (the paper: 66.5%)" in str(found)


def test_a_preference_that_is_not_there_is_not_found(tmp_path):
    ballot, shown = toy_ballot(12), 0
    for seed in range(20):
        votes = simulate(ballot, tmp_path / str(seed), ["ada", "ben", "cid"], 0.5, seed)
        found = vote.result(votes, WAYS)
        shown += sum(share.shown for share in found.preferred.values())
        assert abs(found.alpha["image"]) < 0.5
    assert shown <= 5  # of 40; one side of a 90 % interval errs in 2


def test_raters_with_a_favourite_side_prefer_no_way(tmp_path):
    ballot, file = toy_ballot(20), tmp_path / "v"
    for i in range(6):
        vote_all(ballot, file, f"rater {i}")  # always left
    found = vote.result(vote.read_votes(file), WAYS)
    assert found.preferred["image"].share == 0.5 and not found.preferred["image"].shown


def test_few_pairs_asked_often_are_still_few(tmp_path):
    """One of three pairs decides: many votes do not make more pictures of it."""
    ballot, file = toy_ballot(3), tmp_path / "v"
    for i in range(30):
        for ask in vote.asks(ballot, f"rater {i}"):
            way = 0 if ask.pair.name == "pair 0" else 1
            vote.add_vote(file, ballot, f"rater {i}", ask, ask.sides.index(way))
    share = vote.result(vote.read_votes(file), WAYS).preferred["image"]
    assert share.low > 0.5 and not share.shown


def test_agreement_of_a_metric_with_people(tmp_path):
    ballot = toy_ballot(20)
    votes = simulate(ballot, tmp_path / "v", ["ada", "ben"], 1.0)
    scores = {pair.name: (0.1, 0.9) for pair in ballot.pairs[:10]} | {p.name: (0.5, 0.5) for p in ballot.pairs[10:15]}
    found = vote.result(votes, WAYS, metrics={"CLIP": scores, "blind": {}})
    same = found.metrics["CLIP", "image"]
    assert (same.share, same.votes) == (1.0, 20)  # ties and unscored pairs are no opinion
    assert ("blind", "image") not in found.metrics and "what CLIP scores higher: 100.0%" in str(found)
    opposite = {name: pair[::-1] for name, pair in scores.items()}
    assert vote.agreement(votes, "image", opposite, WAYS).share == 0


def test_votes_of_an_older_ballot_do_not_count(tmp_path):
    file = tmp_path / "v"
    simulate(toy_ballot(4), file, ["ada"], 1.0)
    votes = vote.read_votes(file)
    for ways, pairs in ((("plain sum", "gradient fusion"), None), (WAYS, ["pair 9"])):
        with pytest.raises(ValueError, match="no vote on this ballot"):
            vote.result(votes, ways, pairs)
    assert vote.result(votes, WAYS, ["pair 0", "pair 1"]).preferred["image"].votes == 2


# ---- ballots ----


class Painter:
    """Draws one colour, a little brighter for each picture."""

    def __init__(self, colour):
        self.colour, self.asked = colour, []

    def sample(self, prompt, n, seed, progress):
        self.asked.append((prompt, seed))
        return [plain(*(min(255, c + 10 * i) for c in self.colour)) for i in range(n)]


def test_a_ballot_is_the_same_prompts_and_seeds_for_both(tiny_base):
    concept = make_concept(tiny_base)
    models = dict(zip(WAYS, (Painter((200, 0, 0)), Painter((0, 0, 200))), strict=True))
    data = {"bibi": type("Data", (), {"pictures": [plain(0, 0, 220)] * 5})}
    ballot = ballots.draw_ballot(models, [concept], data, n=2)
    assert models[WAYS[0]].asked == models[WAYS[1]].asked
    assert len(ballot.pairs) == 2 * len(ballots.PROMPTS) and ballot.ways == WAYS
    assert "rabbit" in ballot.pairs[0].words and "<" not in ballot.pairs[0].words
    assert len(ballot.pairs[0].references) == 3
    scorer = Scorer("colours", None, None, lambda texts: torch.tensor([[len(text)] for text in texts]))
    scorer.image_features = lambda images: torch.tensor([[float(p.getpixel((0, 0))[2] > 99)] for p in images])
    scorer.text_features = lambda prompts: torch.ones(len(prompts), 1)  # blue is what the words say
    scores = ballots.clip_scores(ballot, scorer)
    assert scores["CLIP's image-alignment"] == {pair.name: (0.0, 1.0) for pair in ballot.pairs}
    assert scores["CLIP's text-alignment"] == {pair.name: (0.0, 2.5) for pair in ballot.pairs}
    second = {"rater": "ada", "question": "text", "left": WAYS[0], "right": WAYS[1], "choice": WAYS[1]}
    votes = [second | {"pair": pair.name} for pair in ballot.pairs]
    assert vote.result(votes, WAYS, metrics=scores).metrics["CLIP's text-alignment", "text"].share == 1
    with pytest.raises(ValueError, match="two ways"):
        ballots.draw_ballot({"one": models[WAYS[0]]}, [concept], data)


# ---- the page's Python side ----


@pytest.fixture
def page(tmp_path):
    widgets = pytest.importorskip("mixofshow_lite.course.widgets.vote", reason="pip install '.[lab]'")
    return widgets.VotePage(toy_ballot(2), tmp_path / "votes.jsonl")


def test_the_page_asks_keeps_goes_back_and_resumes(page, tmp_path):
    assert page._question == {} and page._progress == [0, 0] and repr(page) == "VotePage(2 pairs; no rater yet)"
    page.start("  ada  ")
    assert page.rater == "ada" and page._progress == [0, 4] and page._question["kind"] == "image"
    page.answer(0)
    page.answer(1)
    assert page._progress == [2, 4] and page._question["kind"] == "text" and "rabbit" in page._question["words"]
    page.back()
    assert page._question["at"] == 1
    page.answer(0)
    assert page._progress == [2, 4] and page._question["at"] == 2
    again = type(page)(page.ballot, page.file, "ada")  # another day
    assert again._progress == [2, 4] and again._question["at"] == 2
    again.answer(0)
    again.answer(0)
    assert again._question == {} and again._progress == [4, 4]
    with pytest.raises(ValueError, match="no question to answer"):
        again.answer(0)
    again.start("ben")
    assert again._progress == [0, 4]
    assert again.result().raters == 1 and "over averaging" in str(again.result())
    assert len(vote.votes_csv(vote.read_votes(again.file)).splitlines()) == 5


def test_the_page_is_blind(page):
    page.start("ada")
    for _ in range(4):
        assert not any(way in json.dumps(page.get_state()) for way in WAYS)
        page.answer(0)


def test_messages_of_the_page(page):
    said = []
    page.send = lambda message, buffers=None: said.append(message)
    page._receive(None, {"type": "start", "rater": "ada"}, [])
    page._receive(None, {"type": "vote", "at": 0, "side": 1}, [])
    page._receive(None, {"type": "vote", "at": 0, "side": 1}, [])  # the key was held down
    assert page._progress == [1, 4] and page._question["at"] == 1
    page._receive(None, {"type": "back"}, [])
    assert page._question["at"] == 0
    page._receive(None, {"type": "csv"}, [])
    assert said[-1]["type"] == "csv" and said[-1]["text"].startswith("rater,")
    page.file = page.file / "no" / "folder"  # below a file
    page._receive(None, {"type": "vote", "at": 0, "side": 0}, [])
    assert said[-1]["type"] == "error" and page._question["at"] == 0


def test_the_static_picture(page):
    assert page.figure().size[0] > 16
