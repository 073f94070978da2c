/**
 * The people's vote (paper 4.3): a question, two pictures, the better one. Wired to Python by vote.py.
 *
 * State that Python shares (traits):  rater, _question {at, kind, text, left, right, references | words}, _progress.
 * The page sends {type: start | vote | back | csv} and holds nothing: drawn anew, it shows what Python has.
 */

const SILENCE = 6000; // milliseconds without an answer before we say so

/** An element with attributes, listeners (`onclick: f`) and children. */
function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== false && value != null) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

function save(text) {
  const url = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  make("a", { href: url, download: "votes.csv" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

export default () => {
  function render({ model, el }) {
    let sent = null; // the question that was answered and not replaced yet
    let waiting = null;

    const status = make("p", { class: "mos-vote-status", role: "status", "aria-live": "polite" });
    const bar = make("progress", { "aria-label": "Answered questions" });
    const asked = make("h3", {});
    const context = make("div", { class: "mos-vote-context" });
    const sides = ["left", "right"].map((name, side) =>
      make("button", { type: "button", "aria-label": `The ${name} picture`, onclick: () => vote(side) }));
    const pair = make("div", { class: "mos-vote-pair" }, ...sides);
    const name = make("input", { type: "text", "aria-label": "Your name", placeholder: "Your name", autocomplete: "off" });
    const start = make("form", { onsubmit: (event) => { event.preventDefault(); send({ type: "start", rater: name.value }); } },
      name, make("button", { type: "submit" }, "Start"));
    const back = make("button", { type: "button", onclick: () => send({ type: "back" }) }, "Back");
    const csv = make("button", { type: "button", onclick: () => send({ type: "csv" }) }, "Save all votes as CSV");
    const other = make("button", { type: "button", onclick: () => send({ type: "start", rater: "" }) }, "Another rater");
    const hint = make("p", { class: "mos-vote-hint" }, "← or 1: left    → or 2: right    Backspace: the question before");
    const root = make("section", { class: "mos-vote", tabindex: "0", "aria-label": "Vote: which picture is better?", onkeydown: press },
      start, asked, context, pair, make("div", { class: "mos-vote-bar" }, bar, back, other, csv), status, hint);

    const question = () => model.get("_question") ?? {};
    const open = () => question().at !== undefined && sent !== question().at;

    function send(message) {
      clearTimeout(waiting);
      waiting = setTimeout(() => { status.textContent = "Python does not answer: is the kernel running?"; }, SILENCE);
      model.send(message);
    }

    function vote(side) {
      if (!open()) return;
      sent = question().at;
      for (const picture of sides) picture.disabled = true;
      root.focus();
      send({ type: "vote", at: sent, side });
    }

    function press(event) {
      event.stopPropagation(); // a notebook would add or delete cells
      if (event.target === name || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
      const side = { ArrowLeft: 0, 1: 0, ArrowRight: 1, 2: 1 }[event.key];
      if (side !== undefined) { event.preventDefault(); vote(side); }
      if (event.key === "Backspace") { event.preventDefault(); send({ type: "back" }); }
    }

    function draw() {
      clearTimeout(waiting);
      sent = null;
      const [answered, all] = model.get("_progress");
      const now = question();
      const asking = now.at !== undefined;
      start.hidden = Boolean(model.get("rater"));
      for (const node of [asked, context, pair]) node.hidden = !asking;
      for (const node of [bar, back, other]) node.hidden = !model.get("rater");
      csv.hidden = !(model.get("rater") && !asking);
      back.disabled = asking && now.at === 0;
      hint.hidden = !asking;
      [bar.max, bar.value] = [Math.max(all, 1), answered];
      if (asking) {
        asked.textContent = now.text;
        context.replaceChildren(...(now.references ?? []).map((src) => make("img", { src, alt: "The concept" })),
          ...(now.words ? [make("blockquote", {}, now.words)] : []));
        sides.forEach((picture, side) => {
          picture.disabled = false;
          picture.replaceChildren(make("img", { src: side ? now.right : now.left, alt: "", draggable: "false" }));
        });
        status.textContent = `${answered} of ${all} answered`;
      } else {
        status.textContent = model.get("rater") ? `Thank you: all ${all} questions are answered.` : "Type a name to begin.";
      }
      // A field that is hidden keeps the focus for a moment, and then loses it to the whole page.
      const lost = start.contains(document.activeElement) || document.activeElement === document.body;
      if (root.isConnected && lost && model.get("rater")) root.focus({ preventScroll: true });
    }

    function receive(message) {
      clearTimeout(waiting);
      if (message.type === "csv") save(message.text);
      if (message.type === "error") { draw(); status.textContent = `Your vote was not kept: ${message.message}`; }
    }

    for (const key of ["rater", "_question", "_progress"]) model.on(`change:${key}`, draw);
    model.on("msg:custom", receive);
    draw();
    el.replaceChildren(root);
    return () => {
      clearTimeout(waiting);
      for (const key of ["rater", "_question", "_progress"]) model.off(`change:${key}`, draw);
      model.off("msg:custom", receive);
    };
  }

  return { render };
};
